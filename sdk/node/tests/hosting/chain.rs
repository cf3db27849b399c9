//! A chain in memory: blocks as the tests want them, given to every host.

use std::sync::{Arc, Mutex};

use bitcoin::block::{Header, Version};
use bitcoin::constants::genesis_block;
use bitcoin::hashes::Hash;
use bitcoin::{Block, CompactTarget, Network, Transaction, TxMerkleNode};
use lightning::chain::{BlockLocator, Listen};
use superscalar_sdk::hosting::{ChainFollower, LoadedHost};

#[derive(Clone)]
pub(crate) struct Chain(Arc<Mutex<State>>);

struct State {
    blocks: Vec<Block>,
    followers: Vec<(String, ChainFollower)>,
    nonce: u32,
}

impl State {
    /// No two blocks are the same, also after a reorg.
    fn next_nonce(&mut self) -> u32 {
        self.nonce += 1;
        self.nonce
    }
}

impl Chain {
    pub(crate) fn new() -> Self {
        let state = State {
            blocks: vec![genesis_block(Network::Regtest)],
            followers: Vec::new(),
            nonce: 0,
        };
        let chain = Self(Arc::new(Mutex::new(state)));
        chain.mine_empty(10);
        chain
    }

    pub(crate) fn height(&self) -> u32 {
        self.0.lock().unwrap().blocks.len() as u32 - 1
    }

    pub(crate) fn tip(&self) -> BlockLocator {
        let state = self.0.lock().unwrap();
        let tip = state.blocks.last().unwrap().block_hash();
        BlockLocator::new(tip, state.blocks.len() as u32 - 1)
    }

    pub(crate) fn mine_empty(&self, count: u32) {
        (0..count).for_each(|_| self.mine(Vec::new()));
    }

    pub(crate) fn mine(&self, txdata: Vec<Transaction>) {
        let mut state = self.0.lock().unwrap();
        let nonce = state.next_nonce();
        let parent = state.blocks.last().unwrap().header;
        let height = state.blocks.len() as u32;
        let header = Header {
            version: Version::TWO,
            prev_blockhash: parent.block_hash(),
            merkle_root: TxMerkleNode::all_zeros(),
            time: parent.time + 600,
            bits: CompactTarget::from_consensus(parent.bits.to_consensus()),
            nonce,
        };
        let block = Block { header, txdata };
        state.blocks.push(block.clone());
        for (_, follower) in &state.followers {
            follower.block_connected(&block, height);
        }
    }

    /// Takes the last `count` blocks away.
    pub(crate) fn disconnect(&self, count: usize) {
        let mut state = self.0.lock().unwrap();
        let left = state.blocks.len() - count;
        state.blocks.truncate(left);
        let tip = state.blocks.last().unwrap().block_hash();
        for (_, follower) in &state.followers {
            follower.blocks_disconnected(BlockLocator::new(tip, left as u32 - 1));
        }
    }

    /// Brings everything in a loaded host to the tip.
    pub(crate) fn catch_up(&self, host: &LoadedHost) {
        let state = self.0.lock().unwrap();
        for (seen, listener) in host.listeners() {
            assert_eq!(
                state.blocks[seen.height as usize].block_hash(),
                seen.block_hash
            );
            for (height, block) in state
                .blocks
                .iter()
                .enumerate()
                .skip(seen.height as usize + 1)
            {
                listener.block_connected(block, height as u32);
            }
        }
    }

    pub(crate) fn follow(&self, name: &str, follower: ChainFollower) {
        self.0
            .lock()
            .unwrap()
            .followers
            .push((name.into(), follower));
    }

    pub(crate) fn unfollow(&self, name: &str) {
        self.0
            .lock()
            .unwrap()
            .followers
            .retain(|(known, _)| known != name);
    }
}
