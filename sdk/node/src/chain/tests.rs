use std::path::Path;
use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{
    Block, BlockHash, CompactTarget, Network, OutPoint, Sequence, Transaction, TxIn, TxMerkleNode,
    Txid,
};
use lightning::chain::{BlockLocator, Listen};
use proptest::prelude::*;

use super::view::ChainView;
use super::*;
use crate::store::{Identity, Store};

const OWNER: Identity = Identity {
    network: Network::Regtest,
    seed_tag: [7; 32],
};

/// How many transactions the world of these tests has; each may be watched, by its txid and by the
/// outpoint it spends.
const TXS: u8 = 6;

fn outpoint(index: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([index + 1; 32]), 0)
}

/// Spends `outpoint(index)`.
fn tx(index: u8) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint(index),
            sequence: Sequence::MAX,
            ..TxIn::default()
        }],
        output: vec![],
    }
}

fn start() -> BlockLocator {
    BlockLocator::new(BlockHash::from_byte_array([9; 32]), 100)
}

/// The world's best chain above `start`.
#[derive(Default)]
struct World {
    blocks: Vec<(Block, Vec<u8>)>,
    mined: u32,
}

impl World {
    fn tip(&self) -> BlockLocator {
        let mut locator = start();
        for (block, _) in &self.blocks {
            locator.advance(block.block_hash());
        }
        locator
    }

    fn height(&self, position: usize) -> u32 {
        start().height + 1 + position as u32
    }

    /// Mines those of `wanted` that are not in the chain yet.
    fn mine(&mut self, wanted: &[u8]) {
        let mut indices: Vec<u8> = wanted
            .iter()
            .copied()
            .filter(|index| !self.blocks.iter().any(|(_, mined)| mined.contains(index)))
            .collect();
        indices.sort_unstable();
        indices.dedup();
        // A nonce of its own: the same transactions mined again make another block.
        self.mined += 1;
        let header = Header {
            version: BlockVersion::TWO,
            prev_blockhash: self.tip().block_hash,
            merkle_root: TxMerkleNode::all_zeros(),
            time: 0,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: self.mined,
        };
        let txdata = indices.iter().map(|index| tx(*index)).collect();
        self.blocks.push((Block { header, txdata }, indices));
    }

    /// Takes the newest blocks away; the new tip.
    fn unmine(&mut self, count: usize) -> BlockLocator {
        self.blocks
            .truncate(self.blocks.len().saturating_sub(count));
        self.tip()
    }

    /// Shows `watcher` what it has missed, as the follower would.
    fn show(&self, watcher: &ChainWatcher) {
        let known = watcher.locator().unwrap();
        let hash_at = |height| self.tip_at(height).map(|locator| locator.block_hash);
        let fork = (start().height..=known.height)
            .rev()
            .find(|height| {
                hash_at(*height).is_some() && hash_at(*height) == known.get_hash_at_height(*height)
            })
            .unwrap();
        if fork < known.height {
            watcher.blocks_disconnected(self.tip_at(fork).unwrap());
        }
        for (position, (block, _)) in self.blocks.iter().enumerate() {
            if self.height(position) > fork {
                watcher.block_connected(block, self.height(position));
            }
        }
    }

    fn tip_at(&self, height: u32) -> Option<BlockLocator> {
        let above = height.checked_sub(start().height)? as usize;
        let mut locator = start();
        for (block, _) in self.blocks.get(..above)? {
            locator.advance(block.block_hash());
        }
        Some(locator)
    }

    /// What a view that had watched from the beginning would know.
    fn replay(&self, watched: &[u8]) -> ChainView {
        let mut view = ChainView::new(&start());
        for index in watched {
            view.outpoints.insert(outpoint(*index), None);
            view.txs.insert(tx(*index).compute_txid(), None);
        }
        for (position, (block, _)) in self.blocks.iter().enumerate() {
            let height = self.height(position);
            assert!(view.links(&block.header, height));
            let findings = view.find(&block.header, block.txdata.iter(), height);
            view.connect(block.block_hash(), height, findings);
        }
        view
    }
}

#[derive(Clone, Debug)]
enum Step {
    Mine(Vec<u8>),
    Reorganise(usize, Vec<Vec<u8>>),
    Watch(u8),
    Unwatch(u8),
    Restart,
    /// The disk refuses writes while these blocks arrive.
    MineUnwritten(Vec<Vec<u8>>),
}

fn step() -> impl Strategy<Value = Step> {
    let txs = prop::collection::vec(0..TXS, 0..3);
    let branch = prop::collection::vec(txs.clone(), 1..5);
    prop_oneof![
        4 => txs.prop_map(Step::Mine),
        3 => (1..4usize, branch.clone()).prop_map(|(depth, branch)| Step::Reorganise(depth, branch)),
        3 => (0..TXS).prop_map(Step::Watch),
        1 => (0..TXS).prop_map(Step::Unwatch),
        1 => Just(Step::Restart),
        1 => branch.prop_map(Step::MineUnwritten),
    ]
}

fn open(directory: &Path) -> (Arc<Store>, ChainWatcher) {
    let store = Arc::new(Store::open(directory, &OWNER).unwrap());
    let watcher = ChainWatcher::open(Arc::clone(&store), &start()).unwrap();
    (store, watcher)
}

fn set_disk_refuses(store: &Store, refuses: bool) {
    let statement = if refuses {
        "CREATE TEMP TRIGGER refuse BEFORE INSERT ON chain_block
         BEGIN SELECT RAISE(ABORT, 'refused by the test'); END;"
    } else {
        "DROP TRIGGER refuse;"
    };
    store
        .connection()
        .unwrap()
        .execute_batch(statement)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any history of blocks, reorganisations, late watches, restarts and failing writes the
    /// watcher says what one says that was shown the present chain alone.
    #[test]
    fn any_history_equals_a_replay(steps in prop::collection::vec(step(), 1..25)) {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, mut watcher) = open(directory.path());
        let mut world = World::default();
        let mut watched: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Mine(txs) => {
                    world.mine(&txs);
                    world.show(&watcher);
                }
                Step::Reorganise(depth, branch) => {
                    // All of it at once, so that the watcher sees one fork point. Longer than what
                    // it replaces, as only that makes a best chain.
                    world.unmine(depth);
                    (0..depth).for_each(|_| world.mine(&[]));
                    branch.iter().for_each(|txs| world.mine(txs));
                    world.show(&watcher);
                }
                Step::Watch(index) => {
                    watcher.watch_outpoints(&[outpoint(index)]).unwrap();
                    watcher.watch_txs(&[tx(index).compute_txid()]).unwrap();
                    for (position, (block, _)) in world.blocks.iter().enumerate().rev() {
                        prop_assert!(watcher.scan(block, world.height(position)).unwrap());
                    }
                    watched.push(index);
                }
                Step::Unwatch(index) => {
                    watcher.unwatch(&[outpoint(index)], &[tx(index).compute_txid()]).unwrap();
                    watched.retain(|it| *it != index);
                }
                Step::Restart => {
                    drop((store, watcher));
                    (store, watcher) = open(directory.path());
                    world.show(&watcher);
                }
                Step::MineUnwritten(branch) => {
                    set_disk_refuses(&store, true);
                    branch.iter().for_each(|txs| world.mine(txs));
                    world.show(&watcher);
                    set_disk_refuses(&store, false);
                }
            }
            let expected = world.replay(&watched);
            prop_assert_eq!(watcher.tip().unwrap(), expected.tip().unwrap());
            for index in 0..TXS {
                let spend = expected.outpoints.get(&outpoint(index)).cloned().flatten();
                prop_assert_eq!(watcher.spend(&outpoint(index)), spend);
                let txid = tx(index).compute_txid();
                let confirmation = expected.txs.get(&txid).copied().flatten();
                prop_assert_eq!(watcher.confirmation(&txid), confirmation);
            }
        }
    }
}

#[test]
fn a_block_of_another_branch_is_ignored_by_scan_and_connect() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, watcher) = open(directory.path());
    watcher.watch_outpoints(&[outpoint(0)]).unwrap();
    let mut world = World::default();
    world.mine(&[0]);
    world.mine(&[]);
    let stale = world.blocks[0].0.clone();
    let elsewhere = world.blocks[1].0.clone();
    world.unmine(2);
    (0..3).for_each(|_| world.mine(&[]));
    world.show(&watcher);
    let tip = watcher.tip().unwrap();
    assert!(!watcher.scan(&stale, 101).unwrap());
    watcher.block_connected(&elsewhere, 104);
    assert_eq!(watcher.tip().unwrap(), tip);
    assert_eq!(watcher.spend(&outpoint(0)), None);
}

#[test]
fn depth_counts_the_tip_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, watcher) = open(directory.path());
    let txid = tx(0).compute_txid();
    watcher.watch_txs(&[txid]).unwrap();
    let mut world = World::default();
    for expected in [1, 2, 3] {
        world.mine(&[0]);
        world.show(&watcher);
        assert_eq!(watcher.confirmations(&txid), expected);
    }
    assert_eq!(watcher.confirmations(&tx(1).compute_txid()), 0);
}

/// A fork below everything that is remembered.
#[test]
fn a_reorganisation_deeper_than_the_memory_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, watcher) = open(directory.path());
    watcher.watch_outpoints(&[outpoint(0)]).unwrap();
    let mut world = World::default();
    world.mine(&[0]);
    (0..200).for_each(|_| world.mine(&[]));
    world.show(&watcher);
    assert_eq!(
        watcher.spend(&outpoint(0)).unwrap().confirmation.height,
        101
    );
    let fork = world.unmine(201);
    watcher.blocks_disconnected(fork);
    assert_eq!(watcher.tip().unwrap().height, 100);
    assert_eq!(watcher.spend(&outpoint(0)), None);
    world.mine(&[0]);
    watcher.block_connected(&world.blocks[0].0, 101);
    assert_eq!(
        watcher.spend(&outpoint(0)).unwrap().confirmation.height,
        101
    );
}

#[test]
fn the_locator_names_the_latest_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, watcher) = open(directory.path());
    let mut world = World::default();
    (0..20).for_each(|_| world.mine(&[]));
    world.show(&watcher);
    assert_eq!(watcher.locator().unwrap(), world.tip());
}

#[test]
fn reject_reasons_of_core_are_understood() {
    for (reason, expected) in [
        ("bad-txns-inputs-missingorspent", Rejection::MissingInputs),
        ("non-final", Rejection::NotFinal),
        ("non-BIP68-final", Rejection::NotBip68Final),
        ("min relay fee not met, 0 < 110", Rejection::FeeTooLow),
        ("mempool min fee not met, 110 < 550", Rejection::FeeTooLow),
        (
            "insufficient fee, rejecting replacement",
            Rejection::Conflict,
        ),
        ("TRUC-violation, version=2 tx cannot spend", Rejection::Truc),
        ("dust, tx with dust output must be 0-fee", Rejection::Policy),
        (
            "mempool-script-verify-flag-failed (Signature must be zero)",
            Rejection::Policy,
        ),
        ("bad-txns-in-belowout, value in < out", Rejection::Invalid),
        ("", Rejection::Invalid),
    ] {
        assert_eq!(Rejection::from_core(reason), expected, "{reason}");
    }
}

#[test]
fn credentials_do_not_show() {
    let config = BitcoindConfig {
        address: "127.0.0.1:1".to_owned(),
        auth: BitcoindAuth::UserPassword {
            user: "alice".to_owned(),
            password: "correct horse".to_owned(),
        },
    };
    let source = BitcoindSource::new(config.clone());
    assert!(!format!("{config:?} {source:?}").contains("correct"));
}
