//! The stock chain of one slot: the leaf's stock output, and the sales that spend it one after
//! another, each into a channel for the buyer and a smaller stock output.
//!
//! What always holds: a link is a function of the output it spends and its [`LinkTerms`]; inputs
//! equal outputs plus the fee at the terms' feerate; every stock output has a revocation hash of its
//! own and all other rules of the first; a chain in memory carries valid signatures only, and no more
//! links than the terms allow. What an undelivered sale would leave is among its outputs where it is
//! retired, because the LSP can bring it about, and nowhere else.

mod link;

use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};

use crate::codec::fields;
use crate::scripts;
use crate::shape::NodeId;
use crate::signing::{SignerSet, SignerSetError, TweakedKey, verify};
use crate::terms::{Header, SlotRecord};
use crate::tree::{Cut, Tree};

pub use link::{Link, LinkTerms, Sellable, StockError};

/// What a chain begins with; the rest of its rules stands in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockOrigin {
    /// The leaf's stock output.
    pub outpoint: OutPoint,
    /// The member's factory key.
    pub member_key: PublicKey,
    /// The member's key on every revocation leaf of the chain.
    pub member_revocation_key: XOnlyPublicKey,
    /// SHA256 of the first output's revocation preimage.
    pub hash: [u8; 32],
}

fields!(StockOrigin {
    outpoint,
    member_key,
    member_revocation_key,
    hash,
});

/// What holds for every output of a chain.
#[derive(Debug)]
struct Rules {
    node: NodeId,
    signers: SignerSet,
    lsp: XOnlyPublicKey,
    member_revocation_key: XOnlyPublicKey,
    csv: u16,
    max_sales: u8,
    tree_feerate: u32,
}

/// One stock output: the leaf's, or that of a sale.
#[derive(Debug, Clone)]
pub struct Stock {
    link: u8,
    outpoint: OutPoint,
    value: Amount,
    hash: [u8; 32],
    key: TweakedKey,
    rules: Arc<Rules>,
}

impl Stock {
    /// How many sales came before it.
    pub fn link(&self) -> u8 {
        self.link
    }

    /// Where it is.
    pub fn outpoint(&self) -> OutPoint {
        self.outpoint
    }

    /// Its amount.
    pub fn value(&self) -> Amount {
        self.value
    }

    /// SHA256 of the preimage that revokes it.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// What it is locked to: both parties, or one of two scripts.
    pub fn key(&self) -> &TweakedKey {
        &self.key
    }

    /// Amount and script.
    pub fn output(&self) -> TxOut {
        TxOut {
            value: self.value,
            script_pubkey: self.key.script_pubkey(),
        }
    }

    /// The member's key on its revocation leaf.
    pub fn member_revocation_key(&self) -> XOnlyPublicKey {
        self.rules.member_revocation_key
    }

    /// The member's revocation leaf, and the LSP's delayed one.
    pub(crate) fn leaf_scripts(&self) -> [ScriptBuf; 2] {
        let rules = &self.rules;
        [
            scripts::stock_revocation_script(self.hash, rules.member_revocation_key),
            scripts::stock_reclaim_script(rules.csv, rules.lsp),
        ]
    }
}

impl Rules {
    fn key(&self, hash: [u8; 32]) -> TweakedKey {
        let root = scripts::stock_root(hash, self.member_revocation_key, self.lsp, self.csv);
        self.signers.tweaked(root)
    }
}

/// A sale both parties have signed.
#[derive(Debug, Clone)]
pub struct SoldLink {
    stock: Stock,
    terms: LinkTerms,
    signature: schnorr::Signature,
    transaction: Transaction,
    link: Link,
}

impl SoldLink {
    /// What was agreed.
    pub fn terms(&self) -> &LinkTerms {
        &self.terms
    }

    /// The final signature.
    pub fn signature(&self) -> schnorr::Signature {
        self.signature
    }

    /// The signed transaction.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// The sale as values.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How many sales came before it.
    pub fn place(&self) -> u8 {
        self.stock.link
    }

    /// The output it spends.
    pub fn stock(&self) -> &Stock {
        &self.stock
    }
}

/// The stock of one slot below one leaf state, and what was sold of it.
#[derive(Debug, Clone)]
pub struct StockChain {
    origin: StockOrigin,
    first: Stock,
    links: Vec<SoldLink>,
    /// What a sale that was signed and not delivered leaves.
    lost: Option<Stock>,
}

impl StockChain {
    /// The chain of a slot below the leaf of `tree`, with nothing sold; `None` if the slot has no
    /// stock or this view not its leaf. `tree` is of the first edition.
    ///
    /// # Errors
    /// LSP and member have the same key; valid terms do not.
    pub fn of_slot(
        tree: &Tree,
        slot: u16,
        record: &SlotRecord,
    ) -> Result<Option<StockChain>, SignerSetError> {
        Self::of_cut(tree, slot, record, &record.cut())
    }

    /// The same of a place that the leaf of `tree` cuts in this way.
    ///
    /// # Errors
    /// LSP and member have the same key; valid terms do not.
    pub fn of_cut(
        tree: &Tree,
        slot: u16,
        record: &SlotRecord,
        cut: &Cut,
    ) -> Result<Option<StockChain>, SignerSetError> {
        let cut = cut.channel().filter(|cut| cut.stock > Amount::ZERO);
        let (Some(leaf), Some(cut)) = (tree.leaf(slot), cut) else {
            return Ok(None);
        };
        let mut origin = StockOrigin {
            outpoint: OutPoint::null(),
            member_key: record.member_key,
            member_revocation_key: record.member_revocation_key,
            hash: cut.stock_hash,
        };
        let rules = rules(&tree.header, leaf.node.id, &origin)?;
        let wanted = TxOut {
            value: cut.stock,
            script_pubkey: rules.key(origin.hash).script_pubkey(),
        };
        let vout = leaf.state.tx.output.iter().position(|out| *out == wanted);
        Ok(vout.map(|vout| {
            origin.outpoint = OutPoint::new(leaf.state.txid(), vout as u32);
            Self::begun(rules, origin, cut.stock)
        }))
    }

    /// The chain that begins with `output`, which stands in a leaf state of `node`.
    ///
    /// # Errors
    /// [`StockError::Origin`] if the output is not locked as `origin` says.
    pub fn at_output(
        header: &Header,
        node: NodeId,
        origin: StockOrigin,
        output: &TxOut,
    ) -> Result<StockChain, StockError> {
        let rules = rules(header, node, &origin).map_err(|_| StockError::Origin)?;
        match output.script_pubkey == rules.key(origin.hash).script_pubkey() {
            true => Ok(Self::begun(rules, origin, output.value)),
            false => Err(StockError::Origin),
        }
    }

    fn begun(rules: Rules, origin: StockOrigin, value: Amount) -> StockChain {
        let first = Stock {
            link: 0,
            outpoint: origin.outpoint,
            value,
            hash: origin.hash,
            key: rules.key(origin.hash),
            rules: Arc::new(rules),
        };
        StockChain {
            origin,
            first,
            links: Vec::new(),
            lost: None,
        }
    }

    /// What the chain begins with.
    pub fn origin(&self) -> &StockOrigin {
        &self.origin
    }

    /// The leaf the chain is below.
    pub fn node(&self) -> NodeId {
        self.first.rules.node
    }

    /// The leaf's stock output.
    pub fn first(&self) -> &Stock {
        &self.first
    }

    /// What was sold, in order.
    pub fn links(&self) -> &[SoldLink] {
        &self.links
    }

    /// What is not sold; `None` after a sale of everything.
    pub fn newest(&self) -> Option<&Stock> {
        match self.links.last() {
            None => Some(&self.first),
            Some(sold) => sold.link.next.as_ref(),
        }
    }

    /// Every stock output, the leaf's first.
    pub fn stocks(&self) -> impl Iterator<Item = &Stock> {
        let next = self.links.iter().filter_map(|sold| sold.link.next.as_ref());
        std::iter::once(&self.first).chain(next).chain(&self.lost)
    }

    /// The chain with what the sale of its newest output leaves that was signed and not delivered.
    pub(crate) fn and_left_by_a_lost_sale(self, left: Option<Stock>) -> StockChain {
        StockChain { lost: left, ..self }
    }

    /// What the next sale may be of; nothing once there were as many as the terms allow.
    pub fn sellable(&self) -> Sellable {
        let stock = self.newest().filter(|stock| stock.may_be_sold());
        stock.map(Stock::sellable).unwrap_or_default()
    }

    /// The next sale, unsigned.
    ///
    /// # Errors
    /// See [`StockError`].
    pub fn sell(&self, terms: &LinkTerms) -> Result<Link, StockError> {
        let stock = self.newest().ok_or(StockError::Amount {
            sellable: Sellable::default(),
        })?;
        stock.sell(terms)
    }

    /// Adds a signed sale.
    ///
    /// # Errors
    /// See [`StockError`]; the chain is then as it was.
    pub fn push(
        &mut self,
        terms: LinkTerms,
        signature: schnorr::Signature,
    ) -> Result<&SoldLink, StockError> {
        let link = self.sell(&terms)?;
        let stock = self.newest().filter(|_| link.is_signed(&signature));
        let stock = stock.ok_or(StockError::Signature)?.clone();
        self.links.push(SoldLink {
            stock,
            transaction: link.tx.signed(&signature),
            terms,
            signature,
            link,
        });
        Ok(&self.links[self.links.len() - 1])
    }
}

/// Equal chains are built from equal facts.
impl PartialEq for StockChain {
    fn eq(&self, other: &StockChain) -> bool {
        let sold = |chain: &StockChain| -> Vec<_> {
            let links = chain.links.iter();
            links.map(|it| it.transaction.compute_wtxid()).collect()
        };
        let start = |chain: &StockChain| (chain.node(), chain.first.value);
        self.origin == other.origin && start(self) == start(other) && sold(self) == sold(other)
    }
}

impl Eq for StockChain {}

fn rules(header: &Header, node: NodeId, origin: &StockOrigin) -> Result<Rules, SignerSetError> {
    Ok(Rules {
        node,
        signers: SignerSet::new(&[header.lsp_key, origin.member_key])?,
        lsp: header.lsp_key.x_only_public_key().0,
        member_revocation_key: origin.member_revocation_key,
        csv: header.timing.stock_csv,
        max_sales: header.timing.max_sales,
        tree_feerate: header.tree_feerate,
    })
}

impl Link {
    /// Whether `signature` is the final one of this sale.
    pub fn is_signed(&self, signature: &schnorr::Signature) -> bool {
        verify(&self.tx.key.output_key(), &self.tx.sighash, signature)
    }
}
