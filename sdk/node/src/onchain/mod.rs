//! The on-chain wallet: BIP86 coins, seen through full blocks, kept by `bdk_wallet`.
//!
//! What always holds:
//! - Private keys stay in [`WalletKeys`]: the wallet itself only watches.
//! - A transaction is on disk before it is published, and is published again until it confirms.
//! - Coins of a funding transaction are reserved from its signature until it is released or has
//!   taken them, those kept for an exit until it is over; nothing else spends them, also after a
//!   restart.
//! - A write that fails changes nothing visible to callers; blocks that could not be written are
//!   written with the next change, or shown again after a restart.

mod error;
mod exits;
mod funding;
mod listen;
mod publish;
mod spend;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bdk_chain::{BlockId, ChainPosition};
use bdk_wallet::{ChangeSet, KeychainKind, LocalOutput, Update, Wallet};
use bitcoin::{Address, Amount, OutPoint, ScriptBuf};
use lightning::chain::BlockLocator;

use crate::chain::ChainSource;
use crate::keys::WalletKeys;
use crate::store::{Store, StoreError};

pub use error::OnchainError;
pub use exits::AnchorChild;
pub use funding::FundingRequest;

/// The on-chain wallet of one seed.
pub struct OnchainWallet {
    store: Arc<Store>,
    source: Arc<dyn ChainSource>,
    keys: Arc<WalletKeys>,
    state: Mutex<State>,
}

struct State {
    wallet: Wallet,
    /// Between the end of an old branch and the first block of the new one, the fork's height:
    /// `wallet` still believes in the blocks above it.
    fork_height: Option<u32>,
    /// The last moment given out by `moment`.
    last_moment: u64,
}

/// What the wallet holds. Every coin is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnchainBalance {
    /// Confirmed and free to spend.
    pub spendable: Amount,
    /// Confirmed and reserved: for funding transactions that are not published yet, and for exits.
    pub reserved: Amount,
    /// Unconfirmed change of our own transactions: [`OnchainWallet::send`] spends it too.
    pub pending_change: Amount,
    /// Unconfirmed payments from others: not to be relied on.
    pub incoming: Amount,
    /// Mined by us, less than 100 blocks ago.
    pub immature: Amount,
}

impl OnchainBalance {
    /// Everything together.
    pub fn total(&self) -> Amount {
        self.spendable + self.reserved + self.pending_change + self.incoming + self.immature
    }
}

/// One unspent coin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Utxo {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is worth.
    pub amount: Amount,
    /// The script it is locked to.
    pub script: ScriptBuf,
    /// Height of its block, `None` while unconfirmed.
    pub confirmed_at: Option<u32>,
    /// Whether a funding transaction has reserved it.
    pub reserved: bool,
}

impl OnchainWallet {
    /// Opens the wallet of `keys` in `store`. A new one begins at `start`: coins in that block and
    /// before are not found, so a restored seed needs a block older than its first coin. Take it
    /// from [`Chain::best_block`](crate::chain::Chain::best_block) or
    /// [`Chain::block_at`](crate::chain::Chain::block_at): the wallet can follow a reorganisation
    /// back to the oldest block the locator names.
    pub fn open(
        store: Arc<Store>,
        keys: Arc<WalletKeys>,
        source: Arc<dyn ChainSource>,
        start: &BlockLocator,
    ) -> Result<Self, OnchainError> {
        let changes = store.transaction(|tx| {
            ChangeSet::init_sqlite_tables(tx).map_err(StoreError::from)?;
            ChangeSet::from_sqlite(tx).map_err(StoreError::from)
        })?;
        let external = keys.onchain_descriptor(KeychainKind::External)?;
        let internal = keys.onchain_descriptor(KeychainKind::Internal)?;
        let known = Wallet::load()
            .descriptor(KeychainKind::External, Some(external.clone()))
            .descriptor(KeychainKind::Internal, Some(internal.clone()))
            .check_network(keys.network())
            .load_wallet_no_persist(changes)
            .map_err(StoreError::corrupt)?;
        let wallet = match known {
            Some(wallet) => wallet,
            None => {
                let mut wallet = Wallet::create(external, internal)
                    .network(keys.network())
                    .create_wallet_no_persist()
                    .map_err(OnchainError::wallet)?;
                begin_at(&mut wallet, start).map_err(OnchainError::wallet)?;
                wallet
            }
        };
        let opened = Self {
            store,
            source,
            keys,
            state: Mutex::new(State {
                wallet,
                fork_height: None,
                last_moment: 0,
            }),
        };
        opened.save(&mut opened.state())?;
        Ok(opened)
    }

    /// The last block seen, to be brought up to date from.
    pub fn locator(&self) -> BlockLocator {
        let tip = self.state().wallet.latest_checkpoint();
        let mut locator = BlockLocator::new(tip.hash(), tip.height());
        let earlier = (0..tip.height()).rev().map(|height| tip.get(height));
        for (slot, block) in locator.previous_blocks.iter_mut().zip(earlier) {
            *slot = block.map(|block| block.hash());
        }
        locator
    }

    /// A fresh receiving address.
    pub fn address(&self) -> Result<Address, OnchainError> {
        let mut state = self.state();
        let address = state.wallet.reveal_next_address(KeychainKind::External);
        self.save(&mut state)?;
        Ok(address.address)
    }

    /// What the wallet holds.
    pub fn balance(&self) -> OnchainBalance {
        let state = self.state();
        let mut balance = OnchainBalance {
            immature: state.wallet.balance().immature,
            ..OnchainBalance::default()
        };
        let tip = state.wallet.latest_checkpoint().height();
        for coin in state.wallet.list_unspent() {
            let amount = coin.txout.value;
            if state.confirmed_at(&coin).is_none() {
                match coin.keychain {
                    KeychainKind::Internal => balance.pending_change += amount,
                    KeychainKind::External => balance.incoming += amount,
                }
            } else if state.wallet.is_outpoint_locked(coin.outpoint) {
                balance.reserved += amount;
            } else if !state.is_immature(&coin, tip) {
                balance.spendable += amount;
            }
        }
        balance
    }

    /// All unspent coins, reserved and unconfirmed ones included.
    pub fn utxos(&self) -> Vec<Utxo> {
        let state = self.state();
        let coins = state.wallet.list_unspent();
        coins
            .map(|coin| Utxo {
                outpoint: coin.outpoint,
                amount: coin.txout.value,
                confirmed_at: state.confirmed_at(&coin),
                reserved: state.wallet.is_outpoint_locked(coin.outpoint),
                script: coin.txout.script_pubkey,
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what changed in the wallet.
    fn save(&self, state: &mut State) -> Result<(), StoreError> {
        self.save_with(state, |_| Ok(()))
    }

    /// Writes what changed in the wallet together with what `more` writes. On an error the changes
    /// stay staged for the next call.
    fn save_with(
        &self,
        state: &mut State,
        more: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.store.transaction(|tx| {
            if let Some(changes) = state.wallet.staged() {
                changes.persist_to_sqlite(tx)?;
            }
            more(tx)
        })?;
        drop(state.wallet.take_staged());
        Ok(())
    }
}

impl State {
    /// Height of a coin's block, unless a reorganisation is just taking that block away.
    fn confirmed_at(&self, coin: &LocalOutput) -> Option<u32> {
        let ChainPosition::Confirmed { anchor, .. } = &coin.chain_position else {
            return None;
        };
        let height = anchor.block_id.height;
        let stands = self.fork_height.is_none_or(|fork| height <= fork);
        stands.then_some(height)
    }

    /// The time in seconds, later with every call: `bdk_wallet` decides by it whether a transaction
    /// was last seen or last evicted, also within one second.
    fn moment(&mut self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.last_moment = now.max(self.last_moment + 1);
        self.last_moment
    }

    fn is_immature(&self, coin: &LocalOutput, tip: u32) -> bool {
        let coinbase = self
            .wallet
            .get_tx(coin.outpoint.txid)
            .is_some_and(|tx| tx.tx_node.tx.is_coinbase());
        let age = self
            .confirmed_at(coin)
            .map_or(0, |height| (tip + 1).saturating_sub(height));
        coinbase && age < bitcoin::constants::COINBASE_MATURITY
    }
}

/// Tells a new wallet of the block it begins at, and of those before it as far as they are known:
/// a reorganisation can be followed back to the oldest of them.
fn begin_at(
    wallet: &mut Wallet,
    start: &BlockLocator,
) -> Result<(), bdk_chain::local_chain::CannotConnectError> {
    let earlier = (0..start.height).rev().zip(start.previous_blocks);
    let blocks = earlier
        .filter_map(|(height, hash)| Some((height, hash?)))
        .chain([(start.height, start.block_hash)])
        .filter(|(height, _)| *height > 0);
    let chain = blocks.fold(wallet.latest_checkpoint(), |chain, (height, hash)| {
        chain.insert(BlockId { height, hash })
    });
    wallet.apply_update(Update {
        chain: Some(chain),
        ..Update::default()
    })
}
