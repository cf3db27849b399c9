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
});
