//! What was sold below a path's leaves, and the path as bytes.
//!
//! A chain is written as what it is a function of and its signatures, and built anew when it is read:
//! what decodes has been verified to the last signature here as well.

use bitcoin::secp256k1::schnorr;
use bitcoin::{OutPoint, TxOut};

use super::{SignedEpoch, SignedNode, SignedPath, SignedPathError};
use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::shape::NodeId;
use crate::stock::{LinkTerms, SoldLink, StockChain, StockOrigin};
use crate::terms::Header;

impl SignedPath {
    /// The path with what was sold out of one stock output of it. A chain in which nothing was sold
    /// adds nothing; a longer one of the same stock takes the place of the one before.
    ///
    /// # Errors
    /// The chain does not begin in a leaf state of this path, see [`SignedPathError`].
    pub fn with_sales(mut self, chain: StockChain) -> Result<SignedPath, SignedPathError> {
        let origin = chain.origin().outpoint;
        self.sales.retain(|other| other.origin().outpoint != origin);
        if chain.links().is_empty() {
            return Ok(self);
        }
        let place = self.place(&chain)?;
        let position = self.sales.iter().filter_map(|other| self.place(other).ok());
        let position = position.filter(|other| *other < place).count();
        self.sales.insert(position, chain);
        Ok(self)
    }

    /// Everything that was sold, by leaf state; a chain that is there has something sold.
    pub fn sales(&self) -> &[StockChain] {
        &self.sales
    }

    /// All signed sales.
    pub(super) fn sold(&self) -> impl Iterator<Item = &SoldLink> {
        self.sales.iter().flat_map(StockChain::links)
    }

    /// The outpoints of all channels in the newest state of everything: the leaf's own, then those
    /// bought, in order.
    pub fn channel_outpoints(&self) -> Vec<OutPoint> {
        let own = self.channel_outpoint();
        let chain = self.sales_below(own.txid);
        let bought = chain.into_iter().flat_map(StockChain::links);
        let bought = bought.map(|sold| sold.link().channel);
        std::iter::once(own).chain(bought).collect()
    }

    /// What was sold below the leaf state with this id.
    pub(in crate::exit) fn sales_below(&self, state: bitcoin::Txid) -> Option<&StockChain> {
        let mut chains = self.sales.iter();
        chains.find(|chain| chain.origin().outpoint.txid == state)
    }

    /// Which leaf state of this path a chain is below: position of the node, and epoch.
    fn place(&self, chain: &StockChain) -> Result<(usize, u8), SignedPathError> {
        let stock = chain.origin().outpoint;
        let stray = SignedPathError::StrayChain { stock };
        let found = self.leaf_state(stock).filter(|(node, _, output)| {
            *node == chain.node() && chain.first().output() == **output
        });
        let (_, place, _) = found.ok_or(stray)?;
        Ok(place)
    }

    /// The leaf state that `outpoint` is an output of, and the output.
    fn leaf_state(&self, outpoint: OutPoint) -> Option<(NodeId, (usize, u8), &TxOut)> {
        let leaf = self.levels.last()?.node;
        let leaves = self.nodes.iter().enumerate();
        let mut states = leaves.filter(|(_, node)| node.node == leaf).flat_map(
            |(position, node): (usize, &SignedNode)| {
                let epochs = node.epochs.iter();
                epochs.map(move |(epoch, signed): (&u8, &SignedEpoch)| {
                    ((position, *epoch), &signed.state)
                })
            },
        );
        let (place, state) = states.find(|(_, tx)| tx.compute_txid() == outpoint.txid)?;
        let output = state.output.get(outpoint.vout as usize)?;
        Some((leaf, place, output))
    }

    /// The bytes of a path without its sales: all there was before there were any.
    pub(in crate::exit) fn encode_tree(&self, out: &mut Vec<u8>) {
        self.header.encode(out);
        self.members.encode(out);
        self.slot.encode(out);
        self.funding.encode(out);
        self.funding_output.encode(out);
        self.nodes.encode(out);
    }

    /// Reads [`Self::encode_tree`] and checks it as [`SignedPath::new`] does, every signature
    /// included.
    pub(in crate::exit) fn decode_tree(
        r: &mut Reader<'_>,
        field: &'static str,
    ) -> Result<SignedPath, DecodeError> {
        let header = Header::decode(r, "header")?;
        let members = u16::decode(r, "members")?;
        let slot = u16::decode(r, "slot")?;
        let funding = OutPoint::decode(r, "funding")?;
        let funding_output = TxOut::decode(r, "funding_output")?;
        let nodes = Vec::<SignedNode>::decode(r, "nodes")?;
        Self::checked(header, members, slot, funding, funding_output, nodes)
            .map_err(|_| DecodeError::Invalid { field })
    }

    /// Builds a chain that was read.
    fn rebuilt(&self, written: WrittenChain) -> Result<StockChain, SignedPathError> {
        let WrittenChain { origin, links } = written;
        let stock = origin.outpoint;
        let stray = SignedPathError::StrayChain { stock };
        let (node, _, output) = self.leaf_state(stock).ok_or(stray)?;
        let mut chain = StockChain::at_output(&self.header, node, origin, output)?;
        for (terms, signature) in links {
            chain.push(terms, signature)?;
        }
        Ok(chain)
    }
}

/// Every outpoint of a chain whose spender matters: stock outputs and channels.
pub(super) fn outpoints(chain: &StockChain) -> Vec<OutPoint> {
    let stocks = chain.stocks().map(|stock| stock.outpoint());
    let channels = chain.links().iter().map(|sold| sold.link().channel);
    stocks.chain(channels).collect()
}

type WrittenLink = (LinkTerms, schnorr::Signature);

struct WrittenChain {
    origin: StockOrigin,
    links: Vec<WrittenLink>,
}

crate::codec::fields!(WrittenChain { origin, links });

/// A path with its sales.
impl Encode for SignedPath {
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_tree(out);
        let written = |chain: &StockChain| WrittenChain {
            origin: chain.origin().clone(),
            links: chain
                .links()
                .iter()
                .map(|sold| (sold.terms().clone(), sold.signature()))
                .collect(),
        };
        let chains: Vec<WrittenChain> = self.sales.iter().map(written).collect();
        chains.encode(out);
    }
}

impl Decode for SignedPath {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let mut path = Self::decode_tree(r, field)?;
        let invalid = DecodeError::Invalid { field: "sales" };
        for written in Vec::<WrittenChain>::decode(r, "sales")? {
            let chain = path.rebuilt(written).map_err(|_| invalid.clone())?;
            let place = path.place(&chain).map_err(|_| invalid.clone())?;
            // One encoding per value: chains with something sold, in the order of their leaves.
            let before = path.sales.last().map(|last| path.place(last));
            let ascends = before.is_none_or(|before| before.is_ok_and(|before| before < place));
            if chain.links().is_empty() || !ascends {
                return Err(invalid);
            }
            path.sales.push(chain);
        }
        Ok(path)
    }
}
