//! A Merkle tree over slot records, so that a member can check its own record against `terms_id`
//! without seeing the others'. Leaves carry their slot number; an odd node moves up unchanged.

use crate::codec::{Encode, fields};
use crate::scripts::tagged_hash;
use crate::terms::SlotRecord;

/// The siblings on the way from one record to the root, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordProof {
    /// Hash of each sibling; levels at which a node has none are left out.
    pub siblings: Vec<[u8; 32]>,
}

fields!(RecordProof { siblings });

impl RecordProof {
    /// The root that `record` at `slot` of `slots` leads to; `None` if the proof has not the
    /// length that position needs.
    pub fn root(&self, slots: usize, slot: u16, record: &SlotRecord) -> Option<[u8; 32]> {
        let mut siblings = self.siblings.iter();
        let mut hash = leaf(slot, record);
        let (mut index, mut width) = (usize::from(slot), slots);
        if index >= width {
            return None;
        }
        while width > 1 {
            if index ^ 1 < width {
                let sibling = siblings.next()?;
                hash = match index % 2 {
                    0 => branch(&hash, sibling),
                    _ => branch(sibling, &hash),
                };
            }
            index /= 2;
            width = width.div_ceil(2);
        }
        siblings.next().is_none().then_some(hash)
    }
}

pub(super) fn root(records: &[SlotRecord]) -> [u8; 32] {
    let mut level = leaves(records);
    while level.len() > 1 {
        level = parents(&level);
    }
    level.first().copied().unwrap_or_default()
}

pub(super) fn prove(records: &[SlotRecord], slot: u16) -> Option<RecordProof> {
    let mut index = usize::from(slot);
    records.get(index)?;
    let mut siblings = Vec::new();
    let mut level = leaves(records);
    while level.len() > 1 {
        siblings.extend(level.get(index ^ 1));
        level = parents(&level);
        index /= 2;
    }
    Some(RecordProof { siblings })
}

fn leaves(records: &[SlotRecord]) -> Vec<[u8; 32]> {
    let indexed = records.iter().enumerate();
    indexed.map(|(slot, r)| leaf(slot as u16, r)).collect()
}

fn parents(level: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let pairs = level.chunks(2);
    pairs
        .map(|pair| match pair {
            [left, right] => branch(left, right),
            odd => odd[0],
        })
        .collect()
}

fn leaf(slot: u16, record: &SlotRecord) -> [u8; 32] {
    tagged_hash(
        "superscalar/record",
        &[&slot.to_be_bytes(), &record.to_bytes()],
    )
}

fn branch(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    tagged_hash("superscalar/records", &[left, right])
}
