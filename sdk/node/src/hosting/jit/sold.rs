//! The LSP's register of channels it sold before they are open.
//!
//! What always holds: an entry changes on disk first; an entry with a funding keeps that funding's
//! coins from being freed.
#![allow(clippy::drop_non_drop, reason = "inside LDK's macros")]

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bitcoin::Transaction;
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channelmanager::InterceptId;
use lightning::ln::types::ChannelId;
use lightning::util::ser::{Readable, Writeable};
use lightning::{impl_writeable_tlv_based, impl_writeable_tlv_based_enum};

use super::super::Store;
use super::PATIENCE;

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "jit_sold";
/// Entries without a payment that all peers together may cause. One for which there is no room is
/// left without an answer.
const MAX_UNPAID: usize = 10_000;
/// Parts of a payment, and payments that fail before one succeeds.
pub(super) const MAX_HTLCS: usize = 64;

/// How far a sold channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::hosting) enum SoldPhase {
    /// Its payment is not there, or not all of it.
    Unpaid,
    /// Being negotiated.
    Opening,
    /// The funding is signed and kept back.
    Funded,
    /// It can be used, and has been given its payment.
    Given,
    /// The buyer has claimed: the funding must go on chain.
    Due,
    /// The funding has confirmed.
    Confirmed,
}

/// One of them.
#[derive(Clone, Debug)]
pub(in crate::hosting) struct Sold {
    /// LDK's `user_channel_id` for it, which names the sale.
    pub(in crate::hosting) id: u128,
    pub(in crate::hosting) peer: PublicKey,
    pub(in crate::hosting) scid: u64,
    /// Seconds since 1970 until which its first payment may come.
    pub(in crate::hosting) expires_at: u64,
    pub(in crate::hosting) phase: SoldPhase,
    /// LDK's id, which is another one once the funding is known.
    pub(in crate::hosting) channel: Option<ChannelId>,
    pub(in crate::hosting) funding: Option<Transaction>,
    /// What was kept back of payments that were claimed.
    pub(in crate::hosting) earned_msat: u64,
    /// Height at which LDK closed the channel.
    pub(in crate::hosting) closed_at: Option<u32>,
    /// Everything taken for it before it was paid for.
    pub(in crate::hosting) htlcs: Vec<InterceptId>,
}

impl_writeable_tlv_based_enum!(SoldPhase,
    (0, Unpaid) => {},
    (2, Opening) => {},
    (4, Funded) => {},
    (6, Given) => {},
    (8, Due) => {},
    (10, Confirmed) => {},
);

impl_writeable_tlv_based!(Sold, {
    (0, id, required),
    (2, peer, required),
    (4, scid, required),
    (6, expires_at, required),
    (8, phase, required),
    (10, earned_msat, required),
    (12, htlcs, required_vec),
    (13, channel, option),
    (15, funding, option),
    (17, closed_at, option),
});

/// All of them.
pub(in crate::hosting) struct SoldChannels {
    store: Store,
    entries: Mutex<Entries>,
    /// Held by whoever gives a sale up, so that nobody does it twice.
    ending: Mutex<()>,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<u128, Sold>,
    /// When something last happened to an entry that is under way.
    touched: HashMap<u128, Instant>,
    /// HTLCs given up at the start, which LDK tells of once more.
    given_up: HashSet<InterceptId>,
}

impl SoldChannels {
    pub(in crate::hosting) fn load(store: Store) -> Result<Self, lightning::io::Error> {
        let mut entries = Entries::default();
        for key in store.list(PRIMARY, SECONDARY)? {
            let bytes = store.read(PRIMARY, SECONDARY, &key)?;
            let sold = Sold::read(&mut Cursor::new(bytes)).map_err(|error| {
                let kind = lightning::io::ErrorKind::InvalidData;
                lightning::io::Error::new(kind, format!("{key}: {error:?}"))
            })?;
            entries.touched.insert(sold.id, Instant::now());
            entries.by_id.insert(sold.id, sold);
        }
        Ok(Self {
            store,
            entries: Mutex::new(entries),
            ending: Mutex::default(),
        })
    }

    /// While it is held nobody else gives a sale up.
    pub(super) fn ending(&self) -> MutexGuard<'_, ()> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a sale; `false` when there is no room for one.
    pub(super) fn insert(&self, sold: Sold) -> Result<bool, lightning::io::Error> {
        let mut entries = self.lock();
        let unpaid = entries.by_id.values();
        if unpaid.filter(|it| it.phase == SoldPhase::Unpaid).count() >= MAX_UNPAID {
            return Ok(false);
        }
        self.write(&sold)?;
        entries.by_id.insert(sold.id, sold);
        Ok(true)
    }

    pub(in crate::hosting) fn get(&self, id: u128) -> Option<Sold> {
        self.lock().by_id.get(&id).cloned()
    }

    pub(in crate::hosting) fn by_scid(&self, scid: u64) -> Option<Sold> {
        self.matching(|sold| sold.scid == scid).pop()
    }

    pub(in crate::hosting) fn by_channel(&self, channel: &ChannelId) -> Option<Sold> {
        self.matching(|sold| sold.channel.as_ref() == Some(channel))
            .pop()
    }

    pub(in crate::hosting) fn matching(&self, wanted: impl Fn(&Sold) -> bool) -> Vec<Sold> {
        let entries = self.lock();
        let found = entries.by_id.values().filter(|sold| wanted(sold));
        found.cloned().collect()
    }

    /// Changes an entry, on disk first; gives what it is then. `None` if it is gone.
    pub(super) fn update(
        &self,
        id: u128,
        change: impl FnOnce(&mut Sold),
    ) -> Result<Option<Sold>, lightning::io::Error> {
        self.change(&mut self.lock(), id, change)
    }

    fn change(
        &self,
        entries: &mut Entries,
        id: u128,
        change: impl FnOnce(&mut Sold),
    ) -> Result<Option<Sold>, lightning::io::Error> {
        entries.touched.insert(id, Instant::now());
        let Some(entry) = entries.by_id.get_mut(&id) else {
            return Ok(None);
        };
        let mut changed = entry.clone();
        change(&mut changed);
        self.write(&changed)?;
        *entry = changed.clone();
        Ok(Some(changed))
    }

    /// Begins to open a channel whose payment is here; `false`, and nothing is changed, where `most`
    /// are under way already.
    pub(super) fn open(&self, id: u128, most: u16) -> Result<bool, lightning::io::Error> {
        let mut entries = self.lock();
        let under_way = SoldPhase::Opening..=SoldPhase::Given;
        let all = entries.by_id.values();
        if all.filter(|it| under_way.contains(&it.phase)).count() >= usize::from(most) {
            return Ok(false);
        }
        self.change(&mut entries, id, |it| it.phase = SoldPhase::Opening)?;
        Ok(true)
    }

    /// Forgets an entry. What cannot be removed from the disk is an entry again after the next
    /// start, and is ended again.
    pub(super) fn remove(&self, id: u128) {
        let mut entries = self.lock();
        entries.by_id.remove(&id);
        entries.touched.remove(&id);
        if let Err(error) = self.store.remove(PRIMARY, SECONDARY, &key(id), false) {
            tracing::warn!(%error, "a sold channel that is over stays on disk");
        }
    }

    /// Something happens to this entry: it is waited for anew.
    pub(super) fn touch(&self, id: u128) {
        self.lock().touched.insert(id, Instant::now());
    }

    /// Entries under way to which nothing has happened for too long.
    pub(super) fn overdue(&self) -> Vec<Sold> {
        let entries = self.lock();
        let is_overdue = |sold: &&Sold| {
            let under_way = match sold.phase {
                SoldPhase::Unpaid => !sold.htlcs.is_empty(),
                SoldPhase::Opening | SoldPhase::Funded | SoldPhase::Given => true,
                SoldPhase::Due | SoldPhase::Confirmed => false,
            };
            let touched = entries.touched.get(&sold.id);
            under_way
                && sold.closed_at.is_none()
                && touched.is_none_or(|at| at.elapsed() >= PATIENCE)
        };
        entries.by_id.values().filter(is_overdue).cloned().collect()
    }

    /// LDK will tell once more of these HTLCs, which are failed already.
    pub(super) fn expect_again(&self, htlcs: &[InterceptId]) {
        self.lock().given_up.extend(htlcs);
    }

    /// Whether an HTLC is one of those.
    pub(super) fn is_given_up(&self, htlc: &InterceptId) -> bool {
        self.lock().given_up.remove(htlc)
    }

    fn write(&self, sold: &Sold) -> Result<(), lightning::io::Error> {
        let bytes = sold.encode();
        self.store.write(PRIMARY, SECONDARY, &key(sold.id), bytes)
    }

    // A panic while the lock was held left the map as it was: entries change by whole values.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(id: u128) -> String {
    format!("{id:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Mnemonic, WalletKeys, WordCount};
    use bitcoin::Network;
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{Secp256k1, SecretKey};
    use std::sync::Arc;
    use tempfile::TempDir;

    fn sold(id: u128, phase: SoldPhase, htlcs: Vec<InterceptId>) -> Sold {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        Sold {
            id,
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            scid: 9,
            expires_at: 10,
            phase,
            channel: Some(ChannelId([3; 32])),
            funding: Some(Transaction {
                version: bitcoin::transaction::Version::TWO,
                lock_time: bitcoin::absolute::LockTime::ZERO,
                input: vec![bitcoin::TxIn {
                    previous_output: bitcoin::OutPoint::new(bitcoin::Txid::all_zeros(), 1),
                    ..Default::default()
                }],
                output: vec![],
            }),
            earned_msat: 12,
            closed_at: Some(13),
            htlcs,
        }
    }

    fn store(directory: &TempDir) -> Store {
        let words = Mnemonic::generate(WordCount::Twelve).unwrap();
        let keys = WalletKeys::new(&words, "", Network::Regtest).unwrap();
        let identity = keys.identity().unwrap();
        Arc::new(crate::store::Store::open(directory.path(), &identity).unwrap())
    }

    #[test]
    fn what_was_said_to_be_written_is_read_back() {
        let directory = TempDir::new().unwrap();
        let store = store(&directory);
        let register = SoldChannels::load(Arc::clone(&store)).unwrap();
        let one = sold(1, SoldPhase::Unpaid, vec![]);
        assert!(register.insert(one).unwrap());
        let htlc = InterceptId([4; 32]);
        let changed = register.update(1, |it| {
            it.phase = SoldPhase::Due;
            it.htlcs.push(htlc);
        });
        let changed = changed.unwrap().unwrap();
        let again = SoldChannels::load(Arc::clone(&store)).unwrap();
        let read = again.get(1).unwrap();
        assert_eq!(format!("{read:?}"), format!("{changed:?}"));
        assert_eq!((read.phase, read.htlcs), (SoldPhase::Due, vec![htlc]));
        again.remove(1);
        assert!(SoldChannels::load(store).unwrap().get(1).is_none());
    }

    #[test]
    fn what_is_under_way_becomes_overdue_and_what_is_paid_for_never() {
        let directory = TempDir::new().unwrap();
        let register = SoldChannels::load(store(&directory)).unwrap();
        let open = |id, phase, htlcs| Sold {
            closed_at: None,
            ..sold(id, phase, htlcs)
        };
        let htlc = || vec![InterceptId([4; 32])];
        let entries = [
            open(1, SoldPhase::Unpaid, vec![]),
            open(2, SoldPhase::Unpaid, htlc()),
            open(3, SoldPhase::Opening, htlc()),
            open(4, SoldPhase::Funded, htlc()),
            open(5, SoldPhase::Given, htlc()),
            open(6, SoldPhase::Due, vec![]),
            open(7, SoldPhase::Confirmed, vec![]),
            sold(8, SoldPhase::Given, htlc()),
        ];
        for entry in entries {
            // Nothing has happened to them in this life of the program.
            assert!(register.insert(entry).unwrap());
        }
        let overdue = || {
            let mut ids: Vec<u128> = register.overdue().iter().map(|it| it.id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(overdue(), [2, 3, 4, 5]);
        // 3, 4, 5 and 8 are under way: there is no room for a fifth where four may be.
        assert!(!register.open(2, 4).unwrap());
        assert_eq!(register.get(2).unwrap().phase, SoldPhase::Unpaid);
        register.touch(3);
        assert_eq!(overdue(), [2, 4, 5]);
    }
}
