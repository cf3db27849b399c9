//! The durable register of agreed slots: what LDK is held to.
//!
//! Signer, open gate, HTLC gate and broadcaster gate all ask it. What always holds: an entry is
//! on disk before anything is done because of it, a phase only moves as [`SlotPhase`] says, and
//! no two entries share keys, ids or a funding outpoint.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bitcoin::{OutPoint, Txid};
use lightning::util::ser::{Readable, Writeable};

use super::Store;
use super::rest::Rests;
use super::slot::{SlotChannel, SlotId};

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "slots";

/// How far a slot's channel has come.
///
/// ```text
/// Agreed ─ Signable ─ Committed ─ Held ─ Active ⇄ Frozen
///    └─────────┴──────────┴────────┴───────┴────────┴─ Retired, Closed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotPhase {
    /// Registered. No channel may be opened on it yet.
    Agreed,
    /// The path's final signatures are stored: the channel may be opened.
    Signable,
    /// A commitment signature of ours may have left. The slot's keys are never used for another
    /// channel from here on.
    Committed,
    /// Both commitments are exchanged and our monitor and channel state are on disk.
    Held,
    /// The factory exists: payments pass.
    Active,
    /// No payment passes while the state above changes.
    Frozen,
    /// A channel on a newer outpoint has replaced it: its commitment is never broadcast, unless
    /// its own leaf appears on chain.
    Retired,
    /// LDK closed the channel, or it was never opened and never will be.
    Closed,
}

impl SlotPhase {
    fn may_become(self, next: Self) -> bool {
        use SlotPhase::*;
        match next {
            Agreed => false,
            Signable => self == Agreed,
            Committed => self == Signable,
            Held => self == Committed,
            Active => matches!(self, Held | Frozen),
            Frozen => matches!(self, Held | Active),
            Retired => matches!(self, Committed | Held | Active | Frozen),
            Closed => self != Closed,
        }
    }

    /// Whether this side may still sign new commitments.
    pub(super) fn may_sign(self) -> bool {
        matches!(
            self,
            Self::Committed | Self::Held | Self::Active | Self::Frozen
        )
    }
}

/// One agreed slot and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What was agreed.
    pub channel: SlotChannel,
    /// How far it has come.
    pub phase: SlotPhase,
    /// Height of the block which confirmed the leaf; `None` while the leaf is virtual.
    pub leaf_height: Option<u32>,
    /// In a closed channel: value of the HTLCs that only the chain can settle.
    pub at_stake_msat: u64,
    /// In a closed channel: our balance in its last commitment, without HTLCs; 0 where LDK did not
    /// say.
    pub last_balance_msat: u64,
    /// In a channel that a newer one has replaced: what invoices call it.
    pub alias: Option<u64>,
}

/// Why the register refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// A field is outside what any channel could have.
    #[error("slot {slot}: field {field} is out of range")]
    Invalid {
        /// The slot.
        slot: SlotId,
        /// The field's name.
        field: &'static str,
    },
    /// The slot, its ids or its outpoint are taken by different terms.
    #[error("slot {slot} conflicts with slot {other} already agreed")]
    Conflict {
        /// The refused slot.
        slot: SlotId,
        /// The one in its way.
        other: SlotId,
    },
    /// Nothing was agreed for this slot.
    #[error("slot {0} was never agreed")]
    Unknown(SlotId),
    /// The slot is not in a phase from which this is possible.
    #[error("slot {slot} is {now:?} and cannot become {wanted:?}")]
    WrongPhase {
        /// The slot.
        slot: SlotId,
        /// Its phase.
        now: SlotPhase,
        /// The phase asked for.
        wanted: SlotPhase,
    },
    /// The store failed; nothing changed.
    #[error("cannot store slot")]
    Store(#[from] lightning::io::Error),
    /// An entry of the store cannot be read.
    #[error("stored slot {key} is damaged")]
    Damaged {
        /// The entry's name.
        key: String,
    },
}

/// The register. Cheap to share behind an [`Arc`].
pub(super) struct Slots {
    store: Store,
    entries: RwLock<Entries>,
    pub(super) rests: Rests,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<SlotId, Slot>,
    by_user_channel_id: HashMap<u128, SlotId>,
    by_keys_id: HashMap<[u8; 32], SlotId>,
    by_outpoint: HashMap<OutPoint, SlotId>,
}

impl Slots {
    pub(super) fn load(store: Store) -> Result<Self, SlotError> {
        let mut entries = Entries::default();
        for key in store.list(PRIMARY, SECONDARY)? {
            let bytes = store.read(PRIMARY, SECONDARY, &key)?;
            let slot = Slot::read(&mut Cursor::new(bytes))
                .map_err(|_| SlotError::Damaged { key: key.clone() })?;
            if slot.channel.slot.store_key() != key || slot.channel.validate().is_err() {
                return Err(SlotError::Damaged { key });
            }
            entries.insert(slot);
        }
        Ok(Self {
            store,
            entries: RwLock::new(entries),
            rests: Rests::default(),
        })
    }

    /// Registers a slot. Agreeing to the same terms again changes nothing.
    pub(super) fn agree(&self, channel: SlotChannel) -> Result<(), SlotError> {
        let slot = channel.slot;
        channel
            .validate()
            .map_err(|field| SlotError::Invalid { slot, field })?;
        let mut entries = self.write();
        if let Some(known) = entries.by_id.get(&slot) {
            return match known.channel == channel {
                true => Ok(()),
                false => Err(SlotError::Conflict { slot, other: slot }),
            };
        }
        // The instance is the LSP's choice: it could search for colliding ids.
        let taken = [
            entries.by_user_channel_id.get(&slot.user_channel_id()),
            entries
                .by_keys_id
                .get(&super::signer::channel_keys_id(&slot)),
            entries.by_outpoint.get(&channel.outpoint),
        ];
        if let Some(other) = taken.into_iter().flatten().next() {
            return Err(SlotError::Conflict {
                slot,
                other: *other,
            });
        }
        let entry = Slot {
            channel,
            phase: SlotPhase::Agreed,
            leaf_height: None,
            at_stake_msat: 0,
            last_balance_msat: 0,
            alias: None,
        };
        self.persist(&entry)?;
        entries.insert(entry);
        Ok(())
    }

    /// Moves a slot to `next`; already being there changes nothing.
    pub(super) fn set_phase(&self, slot: &SlotId, next: SlotPhase) -> Result<(), SlotError> {
        self.update(slot, |entry| {
            if entry.phase != next && !entry.phase.may_become(next) {
                return Err(SlotError::WrongPhase {
                    slot: *slot,
                    now: entry.phase,
                    wanted: next,
                });
            }
            entry.phase = next;
            Ok(())
        })
    }

    /// LDK has closed the channel and left this much to be settled on chain.
    pub(super) fn close(
        &self,
        slot: &SlotId,
        at_stake_msat: u64,
        last_balance_msat: u64,
    ) -> Result<(), SlotError> {
        self.update(slot, |entry| {
            entry.phase = SlotPhase::Closed;
            entry.at_stake_msat = at_stake_msat;
            entry.last_balance_msat = last_balance_msat;
            Ok(())
        })
    }

    /// A newer channel has taken the place of this one, in which `last_balance_msat` was ours and
    /// which invoices call `alias`.
    pub(super) fn supersede(
        &self,
        slot: &SlotId,
        last_balance_msat: Option<u64>,
        alias: Option<u64>,
    ) -> Result<(), SlotError> {
        self.update(slot, |entry| {
            let now = entry.phase;
            let wanted = match now {
                // No commitment exists.
                SlotPhase::Agreed | SlotPhase::Signable => SlotPhase::Closed,
                _ => SlotPhase::Retired,
            };
            if now == wanted {
                return Ok(());
            }
            if !now.may_become(wanted) {
                let slot = *slot;
                return Err(SlotError::WrongPhase { slot, now, wanted });
            }
            entry.phase = wanted;
            entry.last_balance_msat = last_balance_msat.unwrap_or(0);
            entry.alias = alias;
            Ok(())
        })
    }

    /// Records that the leaf is in the block at `height`, or no longer in any.
    pub(super) fn set_leaf_height(
        &self,
        slot: &SlotId,
        height: Option<u32>,
    ) -> Result<(), SlotError> {
        self.update(slot, |entry| {
            entry.leaf_height = height;
            Ok(())
        })
    }

    pub(super) fn get(&self, slot: &SlotId) -> Option<Slot> {
        let slot = self.read().by_id.get(slot).cloned();
        slot.map(|slot| self.rests.shown(slot))
    }

    pub(super) fn by_user_channel_id(&self, id: u128) -> Option<Slot> {
        let entries = self.read();
        entries
            .by_user_channel_id
            .get(&id)
            .and_then(|slot| entries.by_id.get(slot))
            .cloned()
            .map(|slot| self.rests.shown(slot))
    }

    pub(super) fn by_keys_id(&self, id: &[u8; 32]) -> Option<Slot> {
        let entries = self.read();
        entries
            .by_keys_id
            .get(id)
            .and_then(|slot| entries.by_id.get(slot))
            .cloned()
            .map(|slot| self.rests.shown(slot))
    }

    pub(super) fn by_outpoint(&self, outpoint: &OutPoint) -> Option<Slot> {
        let entries = self.read();
        entries
            .by_outpoint
            .get(outpoint)
            .and_then(|slot| entries.by_id.get(slot))
            .cloned()
            .map(|slot| self.rests.shown(slot))
    }

    /// Slots whose leaf is the transaction `txid`.
    pub(super) fn with_leaf(&self, txid: &Txid) -> Vec<Slot> {
        self.matching(|slot| slot.channel.outpoint.txid == *txid)
    }

    pub(super) fn matching(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<Slot> {
        let entries = self.read();
        let shown = entries.by_id.values().cloned();
        let shown = shown.map(|slot| self.rests.shown(slot));
        shown.filter(|slot| wanted(slot)).collect()
    }

    fn update(
        &self,
        slot: &SlotId,
        change: impl FnOnce(&mut Slot) -> Result<(), SlotError>,
    ) -> Result<(), SlotError> {
        let mut entries = self.write();
        let entry = entries
            .by_id
            .get_mut(slot)
            .ok_or(SlotError::Unknown(*slot))?;
        let mut changed = entry.clone();
        change(&mut changed)?;
        if changed != *entry {
            self.persist(&changed)?;
            *entry = changed;
        }
        Ok(())
    }

    fn persist(&self, entry: &Slot) -> Result<(), SlotError> {
        let key = entry.channel.slot.store_key();
        Ok(self.store.write(PRIMARY, SECONDARY, &key, entry.encode())?)
    }

    // A panic while the lock was held left the map as it was: entries change by whole values.
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn insert(&mut self, entry: Slot) {
        let slot = entry.channel.slot;
        self.by_user_channel_id.insert(slot.user_channel_id(), slot);
        self.by_keys_id
            .insert(super::signer::channel_keys_id(&slot), slot);
        self.by_outpoint.insert(entry.channel.outpoint, slot);
        self.by_id.insert(slot, entry);
    }
}

/// Shared by everything LDK calls.
pub(super) type SharedSlots = Arc<Slots>;

#[cfg(test)]
mod tests {
    use super::*;
    use SlotPhase::*;

    /// Before its path is on disk a slot has no channel, and one that is replaced or closed has none
    /// any more: a signature would be for a state nobody agreed to.
    #[test]
    fn only_a_channel_that_is_there_signs() {
        let all = [
            Agreed, Signable, Committed, Held, Active, Frozen, Retired, Closed,
        ];
        let signing: Vec<SlotPhase> = all.into_iter().filter(|phase| phase.may_sign()).collect();
        assert_eq!(signing, [Committed, Held, Active, Frozen]);
    }
}
