//! What a member checks of a new epoch before it acts on it, and the path it rebuilds from it.

use std::collections::BTreeMap;

use bitcoin::TxOut;

use super::mover::{Ground, Mover};
use super::version::Version;
use super::{Departure, EpochLimits};
use crate::message::{CutOffer, EpochName, EpochPropose, RefusalCode};
use crate::shape::Odometer;
use crate::tree::{Blueprint, Change, ChannelCut, Cut, Tree, leaf_hash, own_leaf};

/// Why something is refused: code and field.
pub(super) type Wrong = (RefusalCode, &'static str);

/// What of an offer does not depend on the member's key.
pub(super) fn cut(offer: &CutOffer, member_funding_key: bitcoin::secp256k1::PublicKey) -> Cut {
    match offer {
        CutOffer::Departed => Cut::Departed,
        CutOffer::Channel {
            capacity,
            stock,
            lsp_funding_key,
            stock_hash,
        } => Cut::Channel(ChannelCut {
            capacity: *capacity,
            stock: *stock,
            member_funding_key,
            lsp_funding_key: *lsp_funding_key,
            stock_hash: *stock_hash,
        }),
    }
}

/// The name of a new epoch: it follows the newest one of its node, and nothing was signed for it.
pub(super) fn name(ground: &Ground<'_>, tree: &Tree, name: &EpochName) -> Result<(), Wrong> {
    let path = tree.topology().path(ground.slot.slot);
    let terms = |field| Err((RefusalCode::Terms, field));
    let Some(depth) = path.iter().position(|node| *node == name.node) else {
        return terms("node");
    };
    let mut expected = tree.edition().epochs_to(tree.topology(), name.node);
    let newest = expected.pop().unwrap_or(0);
    let Some((epoch, above)) = name.epochs.split_last() else {
        return terms("epochs");
    };
    if above.len() != depth || *above != expected[..] {
        return terms("epochs");
    }
    if *epoch >= tree.header.timing.states {
        return Err((RefusalCode::UsedUp, "epochs"));
    }
    match *epoch > newest {
        true => Ok(()),
        false => Err((RefusalCode::Equivocation, "epochs")),
    }
}

/// The version that follows from a name.
pub(super) fn version(ground: &Ground<'_>, tree: &Tree, name: &EpochName) -> Option<u32> {
    let mut epochs = name.epochs.clone();
    epochs.resize(tree.topology().path(ground.slot.slot).len(), 0);
    let version = Odometer::at(tree.header.timing.states, epochs).version();
    u32::try_from(version).ok()
}

/// What the member's place is to hold: within its limits, and what distributions pay.
pub(super) fn offer(
    ground: &Ground<'_>,
    mover: &Mover,
    limits: &EpochLimits,
    propose: &EpochPropose,
) -> Result<(), Wrong> {
    let record = &ground.path.terms().facts.record;
    let CutOffer::Channel { stock_hash, .. } = &propose.cut else {
        return within(ground, mover, limits, &propose.cut);
    };
    if mover.is_departed() {
        return Err((RefusalCode::Terms, "cut"));
    }
    // The member's key is not said yet; its own record's stands for it.
    let cut = cut(&propose.cut, record.member_funding_key);
    let checked = cut.check(record);
    checked.map_err(|error| (RefusalCode::Terms, error.field()))?;
    within(ground, mover, limits, &propose.cut)?;
    // The preimage of a hash that is used again would be known before its time.
    match mover.knows_hash(ground, stock_hash) {
        true => Err((RefusalCode::Terms, "stock_hash")),
        false => Ok(()),
    }
}

/// Whether the member accepts a place that is cut so: its user may have thought better of it.
pub(super) fn within(
    ground: &Ground<'_>,
    mover: &Mover,
    limits: &EpochLimits,
    cut: &CutOffer,
) -> Result<(), Wrong> {
    let held = || ground.channels.iter().map(|(_, capacity)| *capacity).sum();
    match cut {
        CutOffer::Departed if limits.departure == Departure::Stays && !mover.is_departed() => {
            Err((RefusalCode::Limits, "cut"))
        }
        CutOffer::Channel { capacity, .. }
            if *capacity < limits.min_capacity.unwrap_or_else(held) =>
        {
            Err((RefusalCode::Limits, "capacity"))
        }
        _ => Ok(()),
    }
}

/// The member's path in the new epoch, unsigned.
pub(super) fn rebuilt(
    ground: &Ground<'_>,
    tree: &Tree,
    name: &EpochName,
    cut: &Cut,
    outputs: &[TxOut],
    contents: &[[u8; 32]],
) -> Result<Tree, Wrong> {
    let wrong = |field| (RefusalCode::Terms, field);
    let (header, facts) = (&tree.header, &ground.path.terms().facts);
    let topology = tree.topology();
    let leaf = tree.leaf(facts.slot).ok_or(wrong("leaf_outputs"))?;
    own_leaf(header, &facts.record, cut, facts.slot, &leaf.node, outputs)
        .map_err(|error| wrong(error.field()))?;
    let leaf = leaf.node.id;
    if name.node == leaf {
        if !contents.is_empty() {
            return Err(wrong("contents"));
        }
    } else {
        let leaves = topology.leaves(name.node);
        let own = leaves.iter().position(|other| *other == leaf);
        let own = own.and_then(|place| contents.get(place));
        if contents.len() != leaves.len() || own != Some(&leaf_hash(outputs)) {
            return Err(wrong("contents"));
        }
    }
    let change = Change {
        node: name.node,
        epoch: name.epoch(),
        leaves: BTreeMap::from([(leaf, outputs.to_vec())]),
        contents: contents.to_vec(),
    };
    let edition = tree.edition().after(topology, tree.factory_id, &change);
    let blueprint = Blueprint::path(header, facts);
    let built = blueprint.and_then(|blueprint| blueprint.edition(tree.funding, &edition));
    built.map_err(|error| wrong(error.field()))
}

/// The new epoch with the final signatures of what is below.
pub(super) fn signed(
    name: &EpochName,
    tree: Tree,
    signatures: &[bitcoin::secp256k1::schnorr::Signature],
) -> Result<Version, Wrong> {
    let version = Version::new(name.clone(), tree, signatures);
    version.ok_or((RefusalCode::Signature, "signatures"))
}
