//! A wallet's lower rooms on a regtest node.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::{Block, BlockHash, FeeRate, Network};
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::chain::{
    BitcoindAuth, BitcoindConfig, BitcoindSource, Chain, ChainSource, Follower, Listener,
};
use superscalar_sdk::keys::{Mnemonic, WalletKeys};
use superscalar_sdk::onchain::OnchainWallet;
use superscalar_sdk::store::Store;

/// Long enough never to fire by itself in a test that polls on its own.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);
/// What a test waits for at most.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon abandon about";

pub(crate) fn sat_per_vb(feerate: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(feerate).unwrap()
}

pub(crate) fn source(node: &RegtestNode) -> Arc<dyn ChainSource> {
    Arc::new(BitcoindSource::new(config(node)))
}

pub(crate) fn config(node: &RegtestNode) -> BitcoindConfig {
    BitcoindConfig {
        address: format!("{}:{}", node.rpc_host(), node.rpc_port()),
        auth: BitcoindAuth::UserPassword {
            user: node.rpc_user().to_owned(),
            password: node.rpc_password().to_owned(),
        },
    }
}

pub(crate) fn keys() -> Arc<WalletKeys> {
    let words = Mnemonic::parse(WORDS).unwrap();
    Arc::new(WalletKeys::new(&words, "", Network::Regtest).unwrap())
}

/// Everything that runs below the wallet.
pub(crate) struct Rooms {
    pub(crate) store: Arc<Store>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) onchain: Arc<OnchainWallet>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) follower: Follower,
}

impl Rooms {
    /// Opens what is in `directory`, or begins there at the node's tip, and follows the chain.
    pub(crate) async fn open(node: &RegtestNode, directory: &Path, every: Duration) -> Self {
        let source = source(node);
        let keys = keys();
        let store = Arc::new(Store::open(directory, &keys.identity().unwrap()).unwrap());
        let start = Chain::best_block(&source).await.unwrap();
        let fallback = sat_per_vb(3);
        let chain = Chain::open(
            Arc::clone(&source),
            Network::Regtest,
            Arc::clone(&store),
            &start,
            fallback,
        )
        .unwrap();
        let onchain = OnchainWallet::open(Arc::clone(&store), keys, source, &start).unwrap();
        let onchain = Arc::new(onchain);
        let recorder = Arc::new(Recorder::new(&start));
        let synced = chain
            .synchronize(vec![(onchain.locator(), &*onchain), (start, &*recorder)])
            .await
            .unwrap();
        let listeners: Vec<Listener> = vec![onchain.clone(), recorder.clone()];
        let follower = chain.follow(synced, listeners, every);
        Self {
            store,
            chain,
            onchain,
            recorder,
            follower,
        }
    }

    pub(crate) async fn poll(&self) {
        self.follower.poll_now().await.unwrap();
    }

    /// Ends everything so that the directory can be opened again.
    pub(crate) async fn close(self) {
        self.follower.stop().await;
        let store = Arc::downgrade(&self.store);
        drop((self.store, self.chain, self.onchain, self.recorder));
        assert!(store.upgrade().is_none(), "somebody still holds the store");
    }
}

/// The chain as a listener was told it, which has to link at every step.
pub(crate) struct Recorder {
    start: u32,
    chain: Mutex<Vec<BlockHash>>,
    forks: Mutex<Vec<u32>>,
}

impl Recorder {
    fn new(start: &BlockLocator) -> Self {
        Self {
            start: start.height,
            chain: Mutex::new(vec![start.block_hash]),
            forks: Mutex::default(),
        }
    }

    /// Hashes from the start block to the tip.
    pub(crate) fn hashes(&self) -> Vec<BlockHash> {
        self.chain.lock().unwrap().clone()
    }

    /// Heights of the fork points that were told.
    pub(crate) fn forks(&self) -> Vec<u32> {
        self.forks.lock().unwrap().clone()
    }

    pub(crate) fn assert_equals(&self, node: &RegtestNode) {
        let expected: Vec<BlockHash> = (self.start..=node.height().unwrap())
            .map(|height| node.block_hash(height).unwrap())
            .collect();
        assert_eq!(self.hashes(), expected);
    }
}

impl Listen for Recorder {
    fn filtered_block_connected(
        &self,
        _: &bitcoin::block::Header,
        _: &TransactionData<'_>,
        height: u32,
    ) {
        panic!("block {height} came without its transactions");
    }

    fn block_connected(&self, block: &Block, height: u32) {
        let mut chain = self.chain.lock().unwrap();
        assert_eq!(chain.last(), Some(&block.header.prev_blockhash));
        assert_eq!(height, self.start + chain.len() as u32);
        chain.push(block.block_hash());
    }

    fn blocks_disconnected(&self, fork: BlockLocator) {
        let mut chain = self.chain.lock().unwrap();
        chain.truncate((fork.height - self.start + 1) as usize);
        assert_eq!(chain.last(), Some(&fork.block_hash));
        self.forks.lock().unwrap().push(fork.height);
    }
}
