//! The chain as the wallet sees it: blocks in order, transactions out, fees.
//!
//! ```text
//! ChainSource ──▶ Chain::synchronize ──▶ every listener at one tip
//!  (bitcoind)        Chain::follow   ──▶ Follower: polls, tells the listeners, moves `tip`
//! ```
//!
//! What always holds:
//! - Every listener sees every block of the best chain once, in order, full; a reorganisation is
//!   told to all of them (`blocks_disconnected`) before the first block of the new branch.
//! - [`ChainWatcher`] hears of a block before all other listeners, so whoever reacts to the block
//!   finds it up to date.
//! - [`Tip`] moves only after every listener has seen the block.
//! - What is confirmed is read from the watcher, never remembered by the reader: a reorganisation
//!   takes it back there.

mod bitcoind;
mod error;
mod fees;
mod follow;
mod view;
mod watcher;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;

use bitcoin::{BlockHash, FeeRate, OutPoint, Transaction, Txid};
pub use lightning_block_sync::BlockData;
use lightning_block_sync::BlockHeaderData;

pub use bitcoind::{BitcoindAuth, BitcoindConfig, BitcoindSource};
pub use error::{BroadcastError, ChainError, Rejection};
pub use fees::FeeRates;
pub use follow::{Chain, Follower, Listener, OutPointStatus, Synchronized, TxStatus};
pub use view::{Confirmation, Spend};
pub use watcher::ChainWatcher;

/// The end of the best chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Height in blocks; the genesis block has height 0.
    pub height: u32,
    /// The block's hash.
    pub hash: BlockHash,
}

/// What became of a transaction that was handed over and not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the source's mempool, now or already before.
    Mempool,
    /// It is in a block already.
    Confirmed,
}

/// A transaction in the source's mempool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MempoolEntry {
    /// Virtual size in vbytes.
    pub vsize: u64,
    /// Its own fee, in satoshis.
    pub fee_sat: u64,
    /// Fee of it and all its unconfirmed ancestors, in satoshis.
    pub ancestor_fee_sat: u64,
    /// Virtual size of it and all its unconfirmed ancestors, in vbytes.
    pub ancestor_vsize: u64,
    /// Unconfirmed transactions that spend an output of it.
    pub spent_by: Vec<Txid>,
}

/// A boxed future, which keeps [`ChainSource`] usable as `dyn`.
pub type SourceFuture<'a, T, E = ChainError> =
    Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// Where blocks come from and transactions go to.
///
/// The source is trusted for the best chain and for unconfirmed transactions; proof of work,
/// Merkle roots and the linking of headers are checked by the caller.
pub trait ChainSource: Send + Sync + 'static {
    /// Hash of the best block, and its height when it costs nothing.
    fn best_block(&self) -> SourceFuture<'_, (BlockHash, Option<u32>)>;

    /// The header of a block, also of one that left the best chain if it is still known.
    fn header(
        &self,
        hash: BlockHash,
        height_hint: Option<u32>,
    ) -> SourceFuture<'_, BlockHeaderData>;

    /// A block.
    fn block(&self, hash: BlockHash) -> SourceFuture<'_, BlockData>;

    /// Hash of the block at `height` of the best chain.
    fn block_hash(&self, height: u32) -> SourceFuture<'_, BlockHash>;

    /// Hands over one transaction. Handing over one that is known already succeeds.
    fn broadcast<'a>(&'a self, tx: &'a Transaction) -> SourceFuture<'a, Accepted, BroadcastError>;

    /// Hands over a child and its unconfirmed parents, parents first, to be judged together.
    fn broadcast_package<'a>(
        &'a self,
        package: &'a [Transaction],
    ) -> SourceFuture<'a, Accepted, BroadcastError>;

    /// The feerate that should confirm within `target_blocks`, `None` when the source cannot say.
    fn estimate_feerate(&self, target_blocks: u16) -> SourceFuture<'_, Option<FeeRate>>;

    /// The feerate below which the source's mempool takes nothing at the moment.
    fn mempool_minimum(&self) -> SourceFuture<'_, FeeRate>;

    /// The entry of an unconfirmed transaction, `None` when the mempool lacks it.
    fn mempool_entry(&self, txid: Txid) -> SourceFuture<'_, Option<MempoolEntry>>;

    /// The unconfirmed transaction that spends `outpoint`, if there is one.
    fn mempool_spender(&self, outpoint: OutPoint) -> SourceFuture<'_, Option<Txid>>;
}
