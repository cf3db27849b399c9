//! The timelock evaluator and the planner against Bitcoin Core: real blocks on a real bitcoind.
//!
//! At every height Core is asked twice, as mempool and as judge of a block made by hand, and both
//! answers must be the evaluator's. A transaction that is refused leaves the chain as it was.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bitcoin::{Amount, OutPoint, Transaction};
use superscalar_factory::exit::timelock::{self, TimelockError};
use superscalar_factory::exit::{
    Action, ChainFacts, Goal, Progress, SignedPath, Spend, Waiting, plan,
};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::{Terms, TimeoutPolicy};
use superscalar_factory::tree::{Blueprint, Role, Tree, TxName};
use superscalar_regtest::{Acceptance, Displaced, RegtestNode};
use support::{Parties, terms};

/// A factory of four whose funding is confirmed.
struct Factory {
    parties: Parties,
    tree: Tree,
    funding_height: u32,
}

impl Factory {
    /// `blocks` is how far away its expiry is; `change` has a last look at the terms.
    fn funded(node: &RegtestNode, blocks: u32, change: fn(&mut Terms)) -> Factory {
        let parties = Parties::new(4);
        let expiry = node.height().unwrap() + blocks;
        let policy = TimeoutPolicy::MembersReclaim;
        let mut terms = terms(&parties, Shape::two_layers(4), policy, expiry);
        change(&mut terms);
        let blueprint = Blueprint::whole(&terms).unwrap();
        let output = blueprint.funding_output().unwrap();
        let funding = node.fund(&output.script_pubkey, output.value).unwrap();
        Factory {
            parties,
            tree: blueprint.tree(funding).unwrap(),
            funding_height: node.height().unwrap(),
        }
    }

    fn signed(&self, node: NodeId, role: Role) -> Transaction {
        let tx = self.tree.tx(TxName { node, role }).unwrap();
        tx.signed(&self.parties.sign(&self.tree, tx))
    }

    fn expiry(&self) -> u32 {
        self.tree.header.expiry
    }
}

/// Whether Core takes `tx` in the next block, after checking that Core and evaluator agree.
fn next_block_takes(node: &RegtestNode, tx: &Transaction, input_height: u32) -> bool {
    let tip = node.height().unwrap();
    let (in_mempool, in_block) = match timelock::check(tx, &[input_height], tip + 1) {
        Ok(()) => {
            let verdict = node.test_accept(tx).unwrap();
            assert!(
                matches!(verdict, Acceptance::Accepted { .. }),
                "{verdict:?}"
            );
            return true;
        }
        Err(TimelockError::Absolute { .. }) => ("non-final", "bad-txns-nonfinal"),
        Err(TimelockError::Relative { .. }) => ("non-BIP68-final", "bad-txns-nonfinal"),
        Err(other) => panic!("{other}"),
    };
    let refused = Acceptance::Refused {
        reason: in_mempool.to_owned(),
    };
    assert_eq!(node.test_accept(tx).unwrap(), refused, "block {}", tip + 1);
    let error = node.mine_with(std::slice::from_ref(tx)).unwrap_err();
    assert!(error.refused_with(in_block), "block {}: {error}", tip + 1);
    assert_eq!(node.height().unwrap(), tip);
    false
}

/// Mines empty blocks until one takes `tx`, comparing at every height; gives its height.
fn mine_when_allowed(node: &RegtestNode, tx: &Transaction, input_height: u32) -> u32 {
    let expected = timelock::earliest_height(tx, &[input_height]).unwrap();
    while !next_block_takes(node, tx, input_height) {
        assert!(node.height().unwrap() < expected);
        node.mine_empty(1).unwrap();
    }
    node.mine_with(std::slice::from_ref(tx)).unwrap();
    node.height().unwrap()
}

#[test]
fn a_whole_path_is_mined_at_exactly_its_heights() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 1_000, |_| {});
    let step = u32::from(factory.tree.header.timing.step);
    let mut height = factory.funding_height;
    for (index, id) in factory.tree.topology().path(2).into_iter().enumerate() {
        let kickoff = factory.signed(id, Role::Kickoff);
        let started = mine_when_allowed(&node, &kickoff, height);
        assert_eq!(started, height + 1, "kickoff of layer {index}");
        let state = factory.signed(id, Role::State);
        height = mine_when_allowed(&node, &state, started);
        assert_eq!(height, started + step, "state of layer {index}");
    }
    let channel = factory.tree.channel_outpoint(2).unwrap();
    let leaf = node.raw_tx(channel.txid).unwrap().unwrap();
    let output = &leaf.output[channel.vout as usize];
    assert_eq!(output.value, Amount::from_sat(300_002));
    assert!(output.script_pubkey.is_p2wsh());
}

#[test]
fn a_distribution_waits_for_expiry() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 30, |_| {});
    let kickoff = factory.signed(NodeId(0), Role::Kickoff);
    let started = mine_when_allowed(&node, &kickoff, factory.funding_height);
    let delay = factory.tree.header.timing.distribution_delay();
    assert!(
        started + delay < factory.expiry(),
        "expiry is what it waits for"
    );
    let distribution = factory.signed(NodeId(0), Role::Distribution);
    let height = mine_when_allowed(&node, &distribution, started);
    assert_eq!(height, factory.expiry() + 1);
}

#[test]
fn a_distribution_after_expiry_waits_for_its_delay() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 5, |_| {});
    node.mine_empty_to_height(factory.expiry() - 2).unwrap();
    let kickoff = factory.signed(NodeId(0), Role::Kickoff);
    let started = mine_when_allowed(&node, &kickoff, factory.funding_height);
    let distribution = factory.signed(NodeId(0), Role::Distribution);
    let height = mine_when_allowed(&node, &distribution, started);
    assert_eq!(
        height,
        started + factory.tree.header.timing.distribution_delay()
    );
    assert!(height > factory.expiry() + 1);
}

/// Without a delay a state may even share its kickoff's block, as the evaluator says.
#[test]
fn a_state_without_delay_may_follow_in_the_same_block() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 1_000, |terms| terms.header.timing.states = 1);
    let both = [Role::Kickoff, Role::State].map(|role| factory.signed(NodeId(0), role));
    let height = factory.funding_height + 1;
    assert_eq!(timelock::check(&both[1], &[height], height), Ok(()));
    node.mine_with(&both).unwrap();
    assert_eq!(
        node.confirmed_at(both[1].compute_txid()).unwrap(),
        Some(height)
    );
}

/// With one it may not, as the evaluator says as well.
#[test]
fn a_state_with_delay_may_not_follow_in_the_same_block() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 1_000, |_| {});
    let both = [Role::Kickoff, Role::State].map(|role| factory.signed(NodeId(0), role));
    let height = factory.funding_height + 1;
    timelock::check(&both[1], &[height], height).unwrap_err();
    let error = node.mine_with(&both).unwrap_err();
    assert!(error.refused_with("bad-txns-nonfinal"), "{error}");
}

fn facts(node: &RegtestNode, path: &SignedPath) -> ChainFacts {
    let spend = |outpoint: OutPoint| {
        let spend = node.spender_of(outpoint).unwrap()?;
        let (txid, height) = (spend.txid, spend.height);
        Some((outpoint, Spend { txid, height }))
    };
    ChainFacts {
        tip: node.height().unwrap(),
        funding_height: node.confirmed_at(path.funding().txid).unwrap(),
        spends: path.watched().into_iter().filter_map(spend).collect(),
    }
}

/// Does what the plan says and mines a block, until nothing of ours is left to do. Everything is
/// computed anew at each block, as after a restart.
fn follow(node: &RegtestNode, path: &SignedPath, goal: Goal, limit: u32) -> Progress {
    for _ in 0..limit {
        let plan = plan(path, goal, &facts(node, path)).unwrap();
        let Progress::Underway { waiting, .. } = plan.status.progress else {
            return plan.status.progress;
        };
        assert_eq!(plan.actions.is_empty(), waiting != Waiting::Confirmation);
        for action in plan.actions {
            let Action::Publish { transaction, .. } = action else {
                panic!("an action this test does not know: {action:?}");
            };
            node.submit(&transaction).unwrap();
        }
        node.mine(1).unwrap();
    }
    plan(path, goal, &facts(node, path))
        .unwrap()
        .status
        .progress
}

#[test]
fn the_planner_brings_a_leaf_on_a_real_chain_also_through_reorgs() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 1_000, |_| {});
    // Deep enough to stay when the reorgs come.
    let path = factory.parties.signed_path(&factory.tree, 1);
    let first = plan(&path, Goal::Leave, &facts(&node, &path)).unwrap();
    let Progress::Underway { blocks_left, .. } = first.status.progress else {
        panic!("{first:?}");
    };
    let outpoint = path.channel_outpoint();
    let height = factory.funding_height + blocks_left.best;
    let on_time = Progress::LeafConfirmed { outpoint, height };
    let before = follow(&node, &path, Goal::Leave, blocks_left.best - 1);
    assert!(
        matches!(before, Progress::Underway { step: 4, of: 4, .. }),
        "{before:?}"
    );
    assert_eq!(follow(&node, &path, Goal::Leave, 1), on_time);
    for depth in [1, 6] {
        node.reorg(depth, Displaced::Unconfirmed).unwrap();
        let again = follow(&node, &path, Goal::Leave, 50);
        let Progress::LeafConfirmed {
            outpoint: found,
            height: later,
        } = again
        else {
            panic!("{again:?}");
        };
        assert_eq!(found, outpoint);
        assert!(later > height);
    }
}

#[test]
fn the_planner_reclaims_on_a_real_chain() {
    let node = RegtestNode::new().unwrap();
    let factory = Factory::funded(&node, 8, |_| {});
    let path = factory.parties.signed_path(&factory.tree, 3);
    let end = follow(&node, &path, Goal::Reclaim, 60);
    let Progress::PaidOut {
        node: of,
        outpoint,
        amount,
        height,
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!((of, amount), (NodeId(0), Amount::from_sat(350_003)));
    let delay = factory.tree.header.timing.distribution_delay();
    assert_eq!(height, factory.expiry() + 1 + delay);
    let paid = node.raw_tx(outpoint.txid).unwrap().unwrap();
    assert_eq!(paid.output[outpoint.vout as usize].value, amount);
}
