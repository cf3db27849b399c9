//! What the tests of this crate share: parties with real keys, and factories they really sign.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file includes it and uses another part of it"
)]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, SignOnly};
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Transaction, Txid, WPubkeyHash};
use superscalar_factory::exit::SignedPath;
use superscalar_factory::scripts::tagged_hash;
use superscalar_factory::shape::Shape;
use superscalar_factory::signing::{
    AggregateNonce, FactoryKey, NoncePool, PublicNonce, SecretNonce, SigningSession,
};
use superscalar_factory::stock::{LinkTerms, StockChain};
use superscalar_factory::terms::{
    FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy,
};
use superscalar_factory::timing::Timing;
use superscalar_factory::tree::{Blueprint, Tree, TreeTx, TxName};

pub mod core_script;
pub mod generators;
pub mod simulated_chain;

/// The secret keys of one factory.
pub struct Parties {
    lsp: FactoryKey,
    members: Vec<FactoryKey>,
}

impl Parties {
    pub fn new(members: usize) -> Parties {
        let key = |index: usize| {
            let salt = tagged_hash("test salt", &[&(index as u64).to_be_bytes()]);
            FactoryKey::derive(&[0x42; 32], &salt)
        };
        Parties {
            lsp: key(0),
            members: (1..=members).map(key).collect(),
        }
    }

    pub fn lsp(&self) -> &FactoryKey {
        &self.lsp
    }

    pub fn lsp_key(&self) -> PublicKey {
        self.lsp.public()
    }

    pub fn member(&self, slot: usize) -> &FactoryKey {
        &self.members[slot]
    }

    pub fn member_key(&self, slot: usize) -> PublicKey {
        self.members[slot].public()
    }

    /// Who signs `tx`, the LSP first.
    pub fn signers(&self, tree: &Tree, tx: &TreeTx) -> Vec<&FactoryKey> {
        let slots = &tree.topology().node(tx.name.node).slots;
        let members = usize::from(slots.start)..usize::from(slots.end);
        let members = self.members[members].iter();
        std::iter::once(&self.lsp).chain(members).collect()
    }

    /// Everyone's signature of one transaction.
    pub fn sign(&self, tree: &Tree, tx: &TreeTx) -> Signature {
        sign_with(&self.signers(tree, tx), tx)
    }

    /// Everyone's signatures of everything a view of a tree holds.
    pub fn sign_all(&self, tree: &Tree) -> BTreeMap<TxName, Signature> {
        let all = tree.transactions();
        all.map(|tx| (tx.name, self.sign(tree, tx))).collect()
    }

    /// A member's path, signed by everyone on it.
    pub fn signed_path(&self, tree: &Tree, slot: u16) -> SignedPath {
        let order = tree.signing_order(slot);
        let signatures = order.into_iter().map(|name| {
            let tx = tree.tx(name).unwrap();
            (name, self.sign(tree, tx))
        });
        SignedPath::new(tree, slot, signatures).unwrap()
    }
}

/// The signature of all of `signers`.
pub fn sign_with(signers: &[&FactoryKey], tx: &TreeTx) -> Signature {
    let (nonces, public) = nonces(signers);
    let aggregate = AggregateNonce::sum(&public).unwrap();
    let session = SigningSession::new(&tx.key, aggregate, tx.sighash);
    let partials: Vec<_> = signers
        .iter()
        .zip(nonces)
        .map(|(key, nonce)| session.partial_sign(nonce, key).unwrap())
        .collect();
    session.aggregate(&public, &partials).unwrap()
}

/// What is agreed for the next sale of a chain.
pub fn link_terms(chain: &StockChain, amount: Amount) -> LinkTerms {
    let number = chain.links().len() as u64;
    let everything = amount == chain.sellable().whole;
    let hash = tagged_hash("next stock", &[&number.to_be_bytes()]);
    LinkTerms {
        amount,
        member_funding_key: point("bought by member", number),
        lsp_funding_key: point("sold by lsp", number),
        next_hash: (!everything).then_some(hash),
    }
}

/// A sale that was signed by both: it is part of the chain then.
pub fn sell(parties: &Parties, chain: &mut StockChain, slot: usize, sat: u64) -> Transaction {
    let wanted = link_terms(chain, Amount::from_sat(sat));
    let link = chain.sell(&wanted).unwrap();
    let signature = sign_with(&[parties.lsp(), parties.member(slot)], &link.tx);
    chain.push(wanted, signature).unwrap().transaction().clone()
}

/// A fresh nonce of each signer. Two of one key differ by the operating system's randomness, and
/// so do two runs of a test: as in real life.
pub fn nonces(signers: &[&FactoryKey]) -> (Vec<SecretNonce>, Vec<PublicNonce>) {
    let secret: Vec<SecretNonce> = signers
        .iter()
        .map(|key| {
            let mut pool = NoncePool::new(key);
            pool.refill(key, &[rand::random()]).unwrap();
            pool.take().unwrap()
        })
        .collect();
    let public = secret.iter().map(SecretNonce::public).collect();
    (secret, public)
}

/// Some public key that nobody signs with.
pub fn point(label: &str, index: u64) -> PublicKey {
    static SECP: LazyLock<Secp256k1<SignOnly>> = LazyLock::new(Secp256k1::signing_only);
    let secret = tagged_hash(label, &[&index.to_be_bytes()]);
    SecretKey::from_slice(&secret).unwrap().public_key(&SECP)
}

pub fn payout(index: u64) -> ScriptBuf {
    let hash = tagged_hash("payout", &[&index.to_be_bytes()]);
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_slice(&hash[..20]).unwrap())
}

pub fn funding() -> OutPoint {
    OutPoint::new(Txid::from_byte_array([9; 32]), 1)
}

/// A record with distinct keys; amounts are the caller's to change.
pub fn record(parties: &Parties, slot: usize) -> SlotRecord {
    let index = slot as u64;
    SlotRecord {
        member_key: parties.member_key(slot),
        capacity: Amount::from_sat(300_000 + index),
        push_msat: 0,
        stock: Amount::from_sat(50_000),
        payout: payout(index),
        member_funding_key: point("member funding", index),
        lsp_funding_key: point("lsp funding", index),
        stock_hash: tagged_hash("stock", &[&index.to_be_bytes()]),
        member_revocation_key: point("revocation", index).x_only_public_key().0,
    }
}

/// Plain terms for regtest that end at height `expiry`.
pub fn terms(parties: &Parties, shape: Shape, policy: TimeoutPolicy, expiry: u32) -> Terms {
    let members = parties.members.len();
    Terms {
        header: Header {
            instance: Instance([7; 32]),
            attempt: 0,
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            lsp_key: parties.lsp_key(),
            lsp_payout: payout(u64::MAX),
            timing: Timing::regtest(shape.layers()),
            shape,
            expiry,
            tree_feerate: 10,
            policy,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots: (0..members).map(|slot| record(parties, slot)).collect(),
    }
}

/// The signed path of slot 0 in a factory of four at [`funding`].
pub fn path_of_four(policy: TimeoutPolicy) -> (Tree, SignedPath) {
    let parties = Parties::new(4);
    let terms = terms(&parties, Shape::two_layers(4), policy, 1_000);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    let path = parties.signed_path(&tree, 0);
    (tree, path)
}
