//! The wallet's register of channels it bought ahead of a payment.
//!
//! What always holds: a purchase is on disk before its invoice is given out, and names its channel
//! before that is accepted; one purchase has one channel at a time, and a newer one takes the place
//! only of one that could never be used.
#![allow(clippy::drop_non_drop, reason = "inside LDK's macros")]

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::secp256k1::PublicKey;
use lightning::impl_writeable_tlv_based;
use lightning::types::payment::PaymentHash;
use lightning::util::ser::{Readable, Writeable};

use super::super::Store;
use super::super::load::unix_time;

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "jit_bought";
/// A payment that was under way when its invoice expired may still arrive.
const GRACE_SECS: u64 = 600;

/// One of them.
#[derive(Clone, Debug)]
pub(in crate::hosting) struct Purchase {
    pub(in crate::hosting) hash: PaymentHash,
    pub(in crate::hosting) lsp: PublicKey,
    pub(in crate::hosting) amount_msat: u64,
    /// What the LSP may keep of it.
    pub(in crate::hosting) fee_msat: u64,
    /// Seconds since 1970.
    pub(in crate::hosting) expires_at: u64,
    /// Longest delay we may put on the LSP's side.
    pub(in crate::hosting) max_delay_on_lsp_blocks: u16,
    /// LDK's `user_channel_id` of the channel that was accepted for it.
    pub(in crate::hosting) channel: Option<u128>,
}

impl_writeable_tlv_based!(Purchase, {
    (0, hash, required),
    (2, lsp, required),
    (4, amount_msat, required),
    (6, fee_msat, required),
    (8, expires_at, required),
    (10, max_delay_on_lsp_blocks, required),
    (11, channel, option),
});

/// All that are not received yet.
pub(in crate::hosting) struct Bought {
    store: Store,
    entries: Mutex<HashMap<PaymentHash, Purchase>>,
}

impl Bought {
    pub(in crate::hosting) fn load(store: Store) -> Result<Self, lightning::io::Error> {
        let mut entries = HashMap::new();
        for key in store.list(PRIMARY, SECONDARY)? {
            let bytes = store.read(PRIMARY, SECONDARY, &key)?;
            let purchase = Purchase::read(&mut Cursor::new(bytes)).map_err(|error| {
                let kind = lightning::io::ErrorKind::InvalidData;
                lightning::io::Error::new(kind, format!("{key}: {error:?}"))
            })?;
            entries.insert(purchase.hash, purchase);
        }
        Ok(Self {
            store,
            entries: Mutex::new(entries),
        })
    }

    /// Records a purchase, and forgets those nobody paid for in time.
    pub(in crate::hosting) fn insert(
        &self,
        purchase: Purchase,
    ) -> Result<(), lightning::io::Error> {
        let mut entries = self.lock();
        let now = unix_time().as_secs();
        let is_over = |it: &Purchase| it.channel.is_none() && is_late(it, now);
        let over: Vec<PaymentHash> = entries
            .values()
            .filter(|it| is_over(it))
            .map(|it| it.hash)
            .collect();
        for hash in over {
            self.store
                .remove(PRIMARY, SECONDARY, &hash.to_string(), false)?;
            entries.remove(&hash);
        }
        self.write(&purchase)?;
        entries.insert(purchase.hash, purchase);
        Ok(())
    }

    /// What the LSP may keep of a payment.
    pub(in crate::hosting) fn agreed_fee_msat(&self, hash: &PaymentHash) -> u64 {
        self.lock().get(hash).map_or(0, |it| it.fee_msat)
    }

    /// The purchase a channel of this size may be for, the largest first: a smaller one may be
    /// served by another channel.
    pub(in crate::hosting) fn open_for(
        &self,
        peer: &PublicKey,
        funding_sat: u64,
        is_ready: impl Fn(u128) -> bool,
    ) -> Option<Purchase> {
        let now = unix_time().as_secs();
        let entries = self.lock();
        let fits = entries.values().filter(|it| {
            let needed_msat = it.amount_msat.saturating_sub(it.fee_msat);
            it.lsp == *peer
                && !it.channel.is_some_and(&is_ready)
                && !is_late(it, now)
                && funding_sat.saturating_mul(1_000) > needed_msat
        });
        fits.max_by_key(|it| it.amount_msat).cloned()
    }

    /// The purchase has this channel from now on.
    pub(in crate::hosting) fn accept(
        &self,
        hash: &PaymentHash,
        channel: u128,
    ) -> Result<(), lightning::io::Error> {
        self.set_channel(hash, Some(channel))
    }

    /// The channels of all purchases are those that LDK has.
    pub(in crate::hosting) fn reconcile(
        &self,
        known: &HashSet<u128>,
    ) -> Result<(), lightning::io::Error> {
        let entries = self.lock();
        let lost = entries
            .values()
            .filter(|it| it.channel.is_some_and(|channel| !known.contains(&channel)));
        let lost: Vec<PaymentHash> = lost.map(|it| it.hash).collect();
        drop(entries);
        lost.iter()
            .try_for_each(|hash| self.set_channel(hash, None))
    }

    /// A channel is closed: the LSP may try again while its purchase is not paid.
    pub(in crate::hosting) fn closed(&self, channel: u128) -> Result<(), lightning::io::Error> {
        let hash = {
            let entries = self.lock();
            let its = entries.values().find(|it| it.channel == Some(channel));
            its.map(|it| it.hash)
        };
        hash.map_or(Ok(()), |hash| self.set_channel(&hash, None))
    }

    /// The payment is ours.
    pub(in crate::hosting) fn received(
        &self,
        hash: &PaymentHash,
    ) -> Result<(), lightning::io::Error> {
        let mut entries = self.lock();
        if entries.contains_key(hash) {
            self.store
                .remove(PRIMARY, SECONDARY, &hash.to_string(), false)?;
            entries.remove(hash);
        }
        Ok(())
    }

    fn set_channel(
        &self,
        hash: &PaymentHash,
        channel: Option<u128>,
    ) -> Result<(), lightning::io::Error> {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(hash) else {
            return Ok(());
        };
        let changed = Purchase {
            channel,
            ..entry.clone()
        };
        self.write(&changed)?;
        *entry = changed;
        Ok(())
    }

    fn write(&self, purchase: &Purchase) -> Result<(), lightning::io::Error> {
        let key = purchase.hash.to_string();
        let bytes = purchase.encode();
        self.store.write(PRIMARY, SECONDARY, &key, bytes)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PaymentHash, Purchase>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_late(purchase: &Purchase, now_secs: u64) -> bool {
    now_secs > purchase.expires_at + GRACE_SECS
}
