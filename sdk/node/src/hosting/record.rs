//! How slots are written to the store: LDK's TLV streams, where unknown odd fields are skipped
//! and unknown even ones refused, so a record never changes its meaning between versions.
#![allow(clippy::drop_non_drop, reason = "inside LDK's macros")]

use lightning::{impl_writeable_tlv_based, impl_writeable_tlv_based_enum};

use super::slot::{SlotChannel, SlotId, SlotRole};
use super::slots::{Slot, SlotPhase};

impl_writeable_tlv_based!(SlotId, {
    (0, instance, required),
    (2, attempt, required),
    (4, slot, required),
    (6, epoch, required),
    (8, seq, required),
});

impl_writeable_tlv_based_enum!(SlotRole,
    (0, Funder) => {},
    (2, Acceptor) => {},
);

impl_writeable_tlv_based!(SlotChannel, {
    (0, slot, required),
    (2, peer, required),
    (4, role, required),
    (6, outpoint, required),
    (8, capacity_sat, required),
    (10, push_msat, required),
    (12, funding_script, required),
    (14, delay_on_us_blocks, required),
    (16, delay_on_peer_blocks, required),
    (18, exit_delay_blocks, required),
    (20, blocks_early, required),
    (22, last_htlc_expiry_height, required),
});

impl_writeable_tlv_based_enum!(SlotPhase,
    (0, Agreed) => {},
    (2, Signable) => {},
    (4, Committed) => {},
    (6, Held) => {},
    (8, Active) => {},
    (10, Frozen) => {},
    (12, Retired) => {},
    (14, Closed) => {},
);

impl_writeable_tlv_based!(Slot, {
    (0, channel, required),
    (2, phase, required),
    (3, leaf_height, option),
    (5, at_stake_msat, (default_value, 0)),
    (7, last_balance_msat, (default_value, 0)),
    (9, alias, option),
});

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use bitcoin::{OutPoint, ScriptBuf, WScriptHash};
    use lightning::util::ser::{Readable, Writeable};
    use proptest::prelude::*;

    use super::*;

    fn slots() -> impl Strategy<Value = Slot> {
        let phase = prop_oneof![
            Just(SlotPhase::Agreed),
            Just(SlotPhase::Signable),
            Just(SlotPhase::Committed),
            Just(SlotPhase::Held),
            Just(SlotPhase::Active),
            Just(SlotPhase::Frozen),
            Just(SlotPhase::Retired),
            Just(SlotPhase::Closed),
        ];
        let ids = (
            any::<[u8; 32]>(),
            any::<u32>(),
            any::<u16>(),
            any::<u32>(),
            any::<u32>(),
        );
        let values = (any::<u64>(), any::<u64>(), any::<[u16; 4]>(), any::<bool>());
        (ids, values, phase, any::<Option<u32>>()).prop_map(|(ids, values, phase, leaf_height)| {
            let (instance, attempt, slot, epoch, seq) = ids;
            let (capacity_sat, push_msat, blocks, funder) = values;
            let secret = SecretKey::from_slice(&[1; 32]).unwrap();
            let channel = SlotChannel {
                slot: SlotId {
                    instance,
                    attempt,
                    slot,
                    epoch,
                    seq,
                },
                peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
                role: if funder {
                    SlotRole::Funder
                } else {
                    SlotRole::Acceptor
                },
                outpoint: OutPoint {
                    txid: bitcoin::Txid::from_byte_array(instance),
                    vout: seq,
                },
                capacity_sat,
                push_msat,
                funding_script: ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array(instance)),
                delay_on_us_blocks: blocks[0],
                delay_on_peer_blocks: blocks[1],
                exit_delay_blocks: blocks[2],
                blocks_early: blocks[3],
                last_htlc_expiry_height: epoch,
            };
            Slot {
                channel,
                phase,
                leaf_height,
                at_stake_msat: push_msat,
                last_balance_msat: capacity_sat,
                alias: leaf_height.map(u64::from),
            }
        })
    }

    proptest! {
        #[test]
        fn records_round_trip_and_damage_is_an_error(slot in slots(), at: prop::sample::Index) {
            let bytes = slot.encode();
            prop_assert_eq!(Slot::read(&mut Cursor::new(&bytes)).ok(), Some(slot));
            let short = &bytes[..at.index(bytes.len())];
            prop_assert!(Slot::read(&mut Cursor::new(short)).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Slot::read(&mut Cursor::new(bytes));
        }
    }
}
