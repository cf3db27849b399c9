//! Bringing listeners up to date, and keeping them there.
//!
//! Start-up has two steps, because a `ChannelMonitor` is brought up to date alone before it moves
//! into the `ChainMonitor`: [`Chain::synchronize`] with every object at its own height, then
//! [`Chain::follow`] with the objects as they run.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::block::Header;
use bitcoin::{Block, BlockHash, FeeRate, Network, OutPoint, Txid};
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use lightning_block_sync::init::{synchronize_listeners, validate_best_block_header};
use lightning_block_sync::poll::{ChainPoller, ChainTip, Validate, ValidatedBlockHeader};
use lightning_block_sync::{
    BlockData, BlockHeaderData, BlockSource, BlockSourceResult, HeaderCache, SpvClient,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::{ChainError, ChainSource, ChainWatcher, Confirmation, FeeRates, Spend, Tip};
use crate::store::Store;

/// A feerate estimate older than this is asked for again.
const FEE_REFRESH: Duration = Duration::from_secs(60);

/// Something that wants to hear of every block.
pub type Listener = Arc<dyn Listen + Send + Sync>;

/// Where a watched transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxStatus {
    /// In a block of the best chain.
    Confirmed(Confirmation),
    /// In the source's mempool.
    Mempool,
    /// In neither.
    Unknown,
}

/// Whether a watched outpoint is spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutPointStatus {
    /// By a transaction in a block of the best chain.
    Spent(Spend),
    /// By an unconfirmed transaction in the source's mempool.
    SpentInMempool(Txid),
    /// By nobody we know of; the output itself need not exist yet.
    Unspent,
}

/// One chain source, what is watched in its chain, and the tip.
pub struct Chain {
    source: Arc<dyn ChainSource>,
    network: Network,
    watcher: Arc<ChainWatcher>,
    fees: Arc<FeeRates>,
    tip: watch::Sender<Tip>,
}

/// All listeners given to [`Chain::synchronize`] stand here.
pub struct Synchronized {
    tip: ValidatedBlockHeader,
    headers: HeaderCache,
}

impl Synchronized {
    /// The block at which everybody stands.
    pub fn locator(&self) -> BlockLocator {
        self.tip.to_block_locator()
    }
}

impl Chain {
    /// The source's best block: where a new wallet, with no past to look for, begins.
    pub async fn best_block(source: &Arc<dyn ChainSource>) -> Result<BlockLocator, ChainError> {
        let header = validate_best_block_header(&Blocks(Arc::clone(source))).await?;
        with_ancestors(&**source, header).await
    }

    /// The block at `height` of the source's best chain: where a restored wallet begins.
    pub async fn block_at(
        source: &Arc<dyn ChainSource>,
        height: u32,
    ) -> Result<BlockLocator, ChainError> {
        let hash = source.block_hash(height).await?;
        let header = source.header(hash, Some(height)).await?.validate(hash)?;
        with_ancestors(&**source, header).await
    }

    /// Opens the record of the chain in `store`. A fresh one begins at `start`.
    /// `fallback_feerate` is what [`FeeRates`] says where the source cannot estimate.
    pub fn open(
        source: Arc<dyn ChainSource>,
        network: Network,
        store: Arc<Store>,
        start: &BlockLocator,
        fallback_feerate: FeeRate,
    ) -> Result<Arc<Self>, ChainError> {
        let watcher = ChainWatcher::open(store, start)?;
        let tip = watch::Sender::new(watcher.tip()?);
        Ok(Arc::new(Self {
            source,
            network,
            watcher: Arc::new(watcher),
            fees: Arc::new(FeeRates::new(fallback_feerate)),
            tip,
        }))
    }

    /// The source, to hand transactions to.
    pub fn source(&self) -> &Arc<dyn ChainSource> {
        &self.source
    }

    /// What is watched in the chain.
    pub fn watcher(&self) -> &Arc<ChainWatcher> {
        &self.watcher
    }

    /// The last known feerates.
    pub fn fees(&self) -> &Arc<FeeRates> {
        &self.fees
    }

    /// The tip all listeners have seen. Level-triggered: a receiver that lags sees the newest.
    pub fn tip(&self) -> watch::Receiver<Tip> {
        self.tip.subscribe()
    }

    /// Where a transaction is: the watcher's answer, then the mempool's.
    pub async fn tx_status(&self, txid: Txid) -> Result<TxStatus, ChainError> {
        if let Some(confirmation) = self.watcher.confirmation(&txid) {
            return Ok(TxStatus::Confirmed(confirmation));
        }
        Ok(match self.source.mempool_entry(txid).await? {
            Some(_) => TxStatus::Mempool,
            None => TxStatus::Unknown,
        })
    }

    /// Who spends an outpoint: the watcher's answer, then the mempool's.
    pub async fn outpoint_status(&self, outpoint: OutPoint) -> Result<OutPointStatus, ChainError> {
        if let Some(spend) = self.watcher.spend(&outpoint) {
            return Ok(OutPointStatus::Spent(spend));
        }
        Ok(match self.source.mempool_spender(outpoint).await? {
            Some(txid) => OutPointStatus::SpentInMempool(txid),
            None => OutPointStatus::Unspent,
        })
    }

    /// Brings each listener, from its own block, and the watcher to the source's best block.
    ///
    /// # Errors
    /// On an error each listener may stand at another block than before: load it again, or take
    /// its position from itself, before the next try.
    pub async fn synchronize(
        &self,
        listeners: Vec<(BlockLocator, &(dyn Listen + Send + Sync))>,
    ) -> Result<Synchronized, ChainError> {
        let watcher: &(dyn Listen + Send + Sync) = &*self.watcher;
        let mut all = vec![(self.watcher.locator()?, watcher)];
        all.extend(listeners);
        let blocks = Blocks(Arc::clone(&self.source));
        let (headers, tip) = synchronize_listeners(&blocks, self.network, all).await?;
        self.check_in_step(&tip)?;
        self.tip.send_replace(self.watcher.tip()?);
        Ok(Synchronized { tip, headers })
    }

    /// From `from` on tells `listeners`, in their order and after the watcher, of every block.
    /// Looks for new blocks every `poll_interval`, the first time at once.
    pub fn follow(
        self: &Arc<Self>,
        from: Synchronized,
        listeners: Vec<Listener>,
        poll_interval: Duration,
    ) -> Follower {
        let (requests, inbox) = mpsc::channel(8);
        let audience = Arc::new(Audience {
            chain: Arc::clone(self),
            listeners,
        });
        let blocks = Arc::new(Blocks(Arc::clone(&self.source)));
        let poller = ChainPoller::new(blocks, self.network);
        let client = SpvClient::new(from.tip, poller, from.headers, audience);
        let task = tokio::spawn(Arc::clone(self).run(client, inbox, poll_interval));
        Follower { requests, task }
    }

    /// Searches the blocks from `from_height` to the tip again, for watches that came after them.
    pub async fn rescan(&self, from_height: u32) -> Result<(), ChainError> {
        while !self.rescan_once(from_height).await? {
            debug!("a reorganisation interrupted the rescan, which begins again");
        }
        Ok(())
    }

    /// `false` when a reorganisation came between.
    async fn rescan_once(&self, from_height: u32) -> Result<bool, ChainError> {
        // Backwards by hash from our own tip: whatever the source does meanwhile, these are blocks
        // of one chain.
        let Tip { height, mut hash } = self.watcher.tip()?;
        for height in (from_height..=height).rev() {
            let data = self.source.block(hash).await?.validate(hash)?;
            let BlockData::FullBlock(block) = &*data else {
                return Err(ChainError::unexpected("a header where a block was needed"));
            };
            if !self.watcher.scan(block, height)? {
                return Ok(false);
            }
            hash = block.header.prev_blockhash;
        }
        Ok(true)
    }

    async fn run(
        self: Arc<Self>,
        mut client: Client,
        mut inbox: mpsc::Receiver<oneshot::Sender<Result<Tip, ChainError>>>,
        poll_interval: Duration,
    ) {
        let mut ticks = interval(poll_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fees_due = Instant::now();
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => None,
                request = inbox.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
            };
            // First: whoever reacts to a block decides by fresh feerates.
            if fees_due <= Instant::now() || asked.is_some() {
                match self.fees.refresh(&*self.source).await {
                    Ok(()) => fees_due = Instant::now() + FEE_REFRESH,
                    Err(error) => debug!(%error, "feerates were not refreshed"),
                }
            }
            let polled = self.poll(&mut client).await;
            match (asked, polled) {
                // Nobody waits any more: the caller's future was dropped.
                (Some(asked), polled) => drop(asked.send(polled)),
                (None, Err(error)) => warn!(%error, "looking for new blocks failed"),
                (None, Ok(_)) => {}
            }
        }
    }

    async fn poll(&self, client: &mut Client) -> Result<Tip, ChainError> {
        let (tip, _) = client.poll_best_tip().await?;
        if let ChainTip::Better(best) = tip {
            self.check_in_step(&best)?;
        }
        self.watcher.tip()
    }

    /// The block-sync client swallows a block it could not fetch, so we compare.
    fn check_in_step(&self, best: &ValidatedBlockHeader) -> Result<(), ChainError> {
        let (seen, best) = (self.watcher.tip()?, best.to_block_locator());
        if seen.hash == best.block_hash {
            return Ok(());
        }
        Err(ChainError::Unreachable {
            detail: format!(
                "stopped at block {}, the best chain has {}",
                seen.height, best.height
            ),
        })
    }
}

type Client = SpvClient<ChainPoller<Arc<Blocks>, Blocks>, Arc<Audience>>;

/// A locator that names the block and as many before it as fit, so that a reorganisation of the
/// block itself can be followed.
async fn with_ancestors(
    source: &dyn ChainSource,
    header: ValidatedBlockHeader,
) -> Result<BlockLocator, ChainError> {
    let mut locator = header.to_block_locator();
    let mut hash = header.header.prev_blockhash;
    let heights = (0..locator.height).rev();
    for (slot, height) in locator.previous_blocks.iter_mut().zip(heights) {
        *slot = Some(hash);
        let header = source.header(hash, Some(height)).await?.validate(hash)?;
        hash = header.header.prev_blockhash;
    }
    Ok(locator)
}

/// The running task that follows the chain. Dropping it stops the task.
pub struct Follower {
    requests: mpsc::Sender<oneshot::Sender<Result<Tip, ChainError>>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Looks for new blocks now; when it returns every listener has seen the source's best block,
    /// and the feerates are fresh.
    pub async fn poll_now(&self) -> Result<Tip, ChainError> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(answer)
            .await
            .map_err(|_| ChainError::Stopped)?;
        answered.await.map_err(|_| ChainError::Stopped)?
    }

    /// Stops after the poll that may be running.
    pub async fn stop(self) {
        let Self { requests, task } = self;
        drop(requests);
        if let Err(error) = task.await {
            warn!(%error, "the task that follows the chain ended badly");
        }
    }
}

/// The watcher, the listeners, then the tip.
struct Audience {
    chain: Arc<Chain>,
    listeners: Vec<Listener>,
}

impl Audience {
    fn tell(&self, tell: impl Fn(&dyn Listen)) {
        tell(&*self.chain.watcher);
        for listener in &self.listeners {
            tell(&**listener);
        }
        if let Ok(tip) = self.chain.watcher.tip() {
            self.chain.tip.send_replace(tip);
        }
    }
}

impl Listen for Audience {
    fn filtered_block_connected(&self, header: &Header, txs: &TransactionData<'_>, height: u32) {
        self.tell(|listener| listener.filtered_block_connected(header, txs, height));
    }

    fn block_connected(&self, block: &Block, height: u32) {
        self.tell(|listener| listener.block_connected(block, height));
    }

    fn blocks_disconnected(&self, fork_point: BlockLocator) {
        self.tell(|listener| listener.blocks_disconnected(fork_point));
    }
}

/// A [`ChainSource`] as `lightning-block-sync` wants it, which is not usable as `dyn`.
struct Blocks(Arc<dyn ChainSource>);

impl BlockSource for Blocks {
    async fn get_header<'a>(
        &'a self,
        hash: &'a BlockHash,
        height_hint: Option<u32>,
    ) -> BlockSourceResult<BlockHeaderData> {
        Ok(self.0.header(*hash, height_hint).await?)
    }

    async fn get_block<'a>(&'a self, hash: &'a BlockHash) -> BlockSourceResult<BlockData> {
        Ok(self.0.block(*hash).await?)
    }

    async fn get_best_block(&self) -> BlockSourceResult<(BlockHash, Option<u32>)> {
        Ok(self.0.best_block().await?)
    }
}
