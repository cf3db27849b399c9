//! What a factory slot's channel must look like, and the ids that bind LDK's channel to it.
//!
//! Every id is a tagged hash of the [`SlotId`], so both sides compute the same ones before a
//! channel exists, and a channel's keys are known before it is opened. What always holds: two
//! different `SlotId`s never share keys, and one `SlotId` is used for at most one channel whose
//! funding outpoint LDK was told.

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf};
use lightning::ln::types::ChannelId;
#[cfg(doc)]
use superscalar_factory::scripts::channel_witness_script;

/// Names one channel of one member: the place in the factory and which replacement of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// The factory's name on the wire, chosen at the invitation.
    pub instance: [u8; 32],
    /// Building attempt within the instance; each takes fresh keys.
    pub attempt: u32,
    /// The member's position, counted from 1 (0 is the LSP).
    pub slot: u16,
    /// Epoch of the leaf the channel belongs to.
    pub epoch: u32,
    /// Counts the channels of this slot within the epoch: 0 is the leaf's own, others are sales. In
    /// the upper half stands which try at the epoch the leaf's own is of.
    pub seq: u32,
}

impl SlotId {
    /// LDK's `user_channel_id` for this slot, the same on both sides.
    pub fn user_channel_id(&self) -> u128 {
        let hash = self.tagged_hash(b"superscalar_v1/user_channel_id");
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        u128::from_be_bytes(id)
    }

    /// The `temporary_channel_id` the funder must use in `open_channel` (BOLT 2), which has no
    /// field of ours: the acceptor recognises the slot by it.
    pub fn temporary_channel_id(&self) -> ChannelId {
        ChannelId(self.tagged_hash(b"superscalar_v1/temporary_channel_id"))
    }

    /// What all channels of one member in one factory have in common.
    pub fn place(&self) -> SlotId {
        SlotId {
            epoch: 0,
            seq: 0,
            ..*self
        }
    }

    /// Whether the channel is a leaf's own in a newer epoch than the first.
    pub fn is_moved(&self) -> bool {
        self.epoch > 0 && !self.is_sold()
    }

    /// Which of its leaf's channels in this epoch it is, whichever try that was: 0 is the leaf's own,
    /// others were sold out of stock, in this order.
    pub(crate) fn place_in_leaf(&self) -> u32 {
        self.seq & 0xffff
    }

    /// Whether the channel was sold out of stock.
    pub(crate) fn is_sold(&self) -> bool {
        self.place_in_leaf() > 0
    }

    /// The input to key derivation, secret only in combination with the node's seed.
    pub(super) fn keys_seed(&self) -> [u8; 32] {
        self.tagged_hash(b"superscalar_v1/channel_keys")
    }

    /// The name of this slot's entry in the store.
    pub(super) fn store_key(&self) -> String {
        hex::encode(self.tagged_hash(b"superscalar_v1/store_key"))
    }

    fn tagged_hash(&self, tag: &[u8]) -> [u8; 32] {
        let tag = sha256::Hash::hash(tag).to_byte_array();
        let mut engine = sha256::Hash::engine();
        engine.input(&tag);
        engine.input(&tag);
        engine.input(&self.instance);
        engine.input(&self.attempt.to_be_bytes());
        engine.input(&self.slot.to_be_bytes());
        engine.input(&self.epoch.to_be_bytes());
        engine.input(&self.seq.to_be_bytes());
        sha256::Hash::from_engine(engine).to_byte_array()
    }
}

impl std::fmt::Display for SlotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", hex::encode(&self.instance[..4]))?;
        write!(f, "/{}/{}", self.attempt, self.slot)?;
        write!(f, "@{}.{}", self.epoch, self.seq)
    }
}

/// Which side of the channel's opening we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotRole {
    /// We send `open_channel`: the LSP.
    Funder,
    /// We answer it: the member.
    Acceptor,
}

/// Everything the two sides agreed about a slot's channel before LDK hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotChannel {
    /// The slot.
    pub slot: SlotId,
    /// The other side's Lightning node.
    pub peer: PublicKey,
    /// Who opens.
    pub role: SlotRole,
    /// The leaf output the channel stands on; its transaction is signed but not broadcast.
    pub outpoint: OutPoint,
    /// Value of that output.
    pub capacity_sat: u64,
    /// The acceptor's part of it at the start.
    pub push_msat: u64,
    /// The output's P2WSH script, of [`channel_witness_script`].
    pub funding_script: ScriptBuf,
    /// CSV on our own commitment's `to_local` output.
    pub delay_on_us_blocks: u16,
    /// CSV on the peer's.
    pub delay_on_peer_blocks: u16,
    /// Blocks to bring the leaf and the commitment on chain, constant for the factory's life.
    pub exit_delay_blocks: u16,
    /// How long before its expiry a received HTLC must still be, at least `exit_delay_blocks`.
    pub blocks_early: u16,
    /// No HTLC may expire above this height: `blocks_early` before the factory ends.
    pub last_htlc_expiry_height: u32,
}

impl SlotChannel {
    /// Refuses terms no channel could be opened on, naming the field.
    pub(super) fn validate(&self) -> Result<(), &'static str> {
        if self.capacity_sat < 1_000 || self.capacity_sat > 21_000_000 * 100_000_000 {
            return Err("capacity_sat");
        }
        if self.push_msat > self.capacity_sat * 1_000 {
            return Err("push_msat");
        }
        if !self.funding_script.is_p2wsh() {
            return Err("funding_script");
        }
        if self.outpoint.vout > u32::from(u16::MAX) {
            return Err("outpoint");
        }
        // LDK's own bounds on BOLT 2 `to_self_delay`.
        if !(144..=2016).contains(&self.delay_on_us_blocks) {
            return Err("delay_on_us_blocks");
        }
        if !(144..=2016).contains(&self.delay_on_peer_blocks) {
            return Err("delay_on_peer_blocks");
        }
        if self.exit_delay_blocks == 0 || 2 * u32::from(self.exit_delay_blocks) + 200 > 2016 {
            return Err("exit_delay_blocks");
        }
        if self.blocks_early < self.exit_delay_blocks || self.blocks_early > 2016 {
            return Err("blocks_early");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_in_every_field_and_purpose() {
        let base = SlotId {
            instance: [7; 32],
            attempt: 0,
            slot: 1,
            epoch: 0,
            seq: 0,
        };
        let mut other_instance = base;
        other_instance.instance[31] ^= 1;
        let ids = [
            base,
            other_instance,
            SlotId { attempt: 1, ..base },
            SlotId { slot: 2, ..base },
            SlotId { epoch: 1, ..base },
            SlotId { seq: 1, ..base },
        ];
        let mut seen = std::collections::HashSet::new();
        for id in ids {
            assert!(seen.insert(id.keys_seed()), "{id}");
            assert!(seen.insert(id.temporary_channel_id().0), "{id}");
            assert!(
                !seen.contains(&id.user_channel_id().to_be_bytes()[..]),
                "{id}"
            );
        }
    }

    #[test]
    fn ids_are_pinned() {
        let id = SlotId {
            instance: [7; 32],
            attempt: 1,
            slot: 2,
            epoch: 3,
            seq: 4,
        };
        // Both sides of a channel, and every later version of this code, must agree on these.
        assert_eq!(id.to_string(), "07070707/1/2@3.4");
        let mut data = vec![7; 32];
        data.extend([0, 0, 0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]);
        let tag = sha256::Hash::hash(b"superscalar_v1/temporary_channel_id").to_byte_array();
        let expected = sha256::Hash::hash(&[&tag[..], &tag[..], &data[..]].concat());
        assert_eq!(id.temporary_channel_id().0, expected.to_byte_array());
    }
    #[test]
    fn channels_have_the_script_ldk_gives_them() {
        let secp = bitcoin::secp256k1::Secp256k1::new();
        let key = |byte| {
            let secret = bitcoin::secp256k1::SecretKey::from_slice(&[byte; 32]);
            secret.expect("a valid scalar").public_key(&secp)
        };
        for (a, b) in [(1, 2), (2, 1), (7, 9), (9, 7)] {
            let ours = superscalar_factory::scripts::channel_witness_script(&key(a), &key(b));
            let theirs = lightning::ln::chan_utils::make_funding_redeemscript(&key(a), &key(b));
            assert_eq!(ours, theirs);
        }
    }
}
