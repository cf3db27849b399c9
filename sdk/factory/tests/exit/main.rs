//! The exit planner on a simulated chain: every goal, every way others can interfere, restarts and
//! reorgs. Factories are really signed; a [`SignedPath`] would not exist otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod epochs;
mod reclaim;
mod sales;
mod stored;
#[path = "../support/mod.rs"]
mod support;
mod tower;

use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, FeeRate, OutPoint, Txid};
use superscalar_factory::exit::{
    Action, ChainFacts, Goal, Plan, PlanError, Progress, SignedPath, Spend, Waiting, Worth, plan,
};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tree::{Blueprint, Role, Tree, TxName};
use support::simulated_chain::SimulatedChain;
use support::{Parties, funding, path_of_four, terms};

const START: u32 = 100;
/// Of [`path_of_four`]'s terms.
const EXPIRY: u32 = 1_000;
const STATE_DELAY: u32 = 6;
const DISTRIBUTION_DELAY: u32 = 18;

const ROOT: NodeId = NodeId(0);
const LEAF: NodeId = NodeId(1);

pub(crate) fn name(node: NodeId, role: Role) -> TxName {
    TxName { node, role }
}

fn published(plan: &Plan) -> Vec<TxName> {
    let names = plan.actions.iter().map(|action| match action {
        Action::Publish { name, .. } => *name,
        other => panic!("an action this test does not know: {other:?}"),
    });
    names.collect()
}

fn waiting(plan: &Plan) -> Waiting {
    match plan.status.progress {
        Progress::Underway { waiting, .. } => waiting,
        ref other => panic!("not underway: {other:?}"),
    }
}

fn step(plan: &Plan) -> (u32, u32) {
    match plan.status.progress {
        Progress::Underway { step, of, .. } => (step, of),
        ref other => panic!("not underway: {other:?}"),
    }
}

pub(crate) fn signed(
    tree: &Tree,
    path: &SignedPath,
    node: NodeId,
    role: Role,
) -> bitcoin::Transaction {
    let txid = tree.tx(name(node, role)).unwrap().txid();
    let all = path.nodes().iter().flat_map(|node| {
        let after = node.epochs.values();
        let after = after.flat_map(|e| std::iter::once(&e.state).chain(&e.distribution));
        std::iter::once(&node.kickoff).chain(after)
    });
    let mut all = all;
    all.find(|tx| tx.compute_txid() == txid).unwrap().clone()
}

/// Follows the plan block by block until nothing of ours is left; gives the blocks it took.
pub(crate) fn follow_to_the_end(
    chain: &mut SimulatedChain,
    path: &SignedPath,
    goal: Goal,
) -> (u32, Plan) {
    let start = chain.tip;
    for _ in 0..5_000 {
        let plan = chain.follow(path, goal);
        if !matches!(plan.status.progress, Progress::Underway { .. }) {
            return (chain.tip - start, plan);
        }
        chain.mine();
    }
    panic!("no end after 5,000 blocks");
}

#[test]
fn leaving_publishes_each_transaction_when_its_delay_is_over() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let plan = chain.follow(&path, Goal::Leave);
    assert_eq!(published(&plan), [name(ROOT, Role::Kickoff)]);
    assert_eq!(
        (step(&plan), waiting(&plan)),
        ((1, 4), Waiting::Confirmation)
    );
    assert_eq!(plan.status.figures.transactions, 4);
    assert_eq!(plan.status.figures.arriving, Amount::from_sat(300_000));
    // Until a block has it, it is published again and again.
    chain.mine_empty(3);
    assert_eq!(published(&chain.follow(&path, Goal::Leave)).len(), 1);
    chain.mine();
    let kickoff_height = chain.tip;

    for mined in 0..STATE_DELAY - 1 {
        let plan = chain.follow(&path, Goal::Leave);
        assert_eq!(published(&plan), []);
        let allowed = kickoff_height + STATE_DELAY;
        let blocks = STATE_DELAY - 1 - mined;
        assert_eq!(waiting(&plan), Waiting::Delay { allowed, blocks });
        assert_eq!(step(&plan), (2, 4));
        chain.mine();
    }
    let plan = chain.follow(&path, Goal::Leave);
    assert_eq!(published(&plan), [name(ROOT, Role::State)]);
    chain.mine();
    assert_eq!(
        published(&chain.follow(&path, Goal::Leave)),
        [name(LEAF, Role::Kickoff)]
    );

    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Leave);
    let outpoint = tree.channel_outpoint(0).unwrap();
    assert_eq!(outpoint, path.channel_outpoint());
    let height = kickoff_height + 2 * STATE_DELAY + 1;
    assert_eq!(
        plan.status.progress,
        Progress::LeafConfirmed { outpoint, height }
    );
}

#[test]
fn figures_are_those_of_the_tree() {
    let (tree, path) = path_of_four(TimeoutPolicy::LspReclaims);
    let chain = SimulatedChain::new(funding(), START);
    let figures = plan(&path, Goal::Leave, &chain.facts(&path))
        .unwrap()
        .status
        .figures;
    let order = tree.signing_order(0);
    let fees: Amount = order.iter().map(|name| tree.tx(*name).unwrap().fee()).sum();
    let vsize: usize = order
        .iter()
        .map(|name| tree.tx(*name).unwrap().vsize())
        .sum();
    assert_eq!((figures.fees, figures.vsize_vb), (fees, vsize as u64));
    let rate = |sat| FeeRate::from_sat_per_vb(sat).unwrap();
    assert_eq!(figures.coins_needed(rate(10)), Amount::ZERO);
    // One child of 153 vB each, which has the anchor's 240 sat, and the last one's change.
    let bumped = Amount::from_sat((vsize as u64 + 4 * 153) * 20) - fees;
    let own = bumped - Amount::from_sat(4 * 240);
    assert_eq!(figures.own_fees(rate(20)), own);
    assert_eq!(figures.coins_needed(rate(20)), own + Amount::from_sat(330));
    let balance = Amount::from_sat(10_000);
    let net = Amount::from_sat(10_000 - 1_325);
    assert_eq!(Worth::of(balance, rate(10)), Worth::Yes { net });
    let cost = Amount::from_sat(530 * 70 / 4);
    assert_eq!(Worth::of(balance, rate(70)), Worth::No { cost });
}

#[test]
fn blocks_left_are_met_when_blocks_confirm_at_once_and_stay_below_exit_delay() {
    for members in [2, 4, 7, 16] {
        let parties = Parties::new(members);
        let terms = terms(
            &parties,
            Shape::binary(members),
            TimeoutPolicy::MembersReclaim,
            EXPIRY,
        );
        let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
        let path = parties.signed_path(&tree, members as u16 - 1);
        let mut chain = SimulatedChain::new(funding(), START);
        let first = plan(&path, Goal::Leave, &chain.facts(&path)).unwrap();
        let Progress::Underway { blocks_left, .. } = first.status.progress else {
            panic!("underway");
        };
        assert!(blocks_left.worst <= terms.header.timing.exit_delay(terms.header.shape.layers()));
        let (blocks, _) = follow_to_the_end(&mut chain, &path, Goal::Leave);
        assert_eq!(blocks, blocks_left.best);
    }
}

#[test]
fn an_unconfirmed_funding_is_waited_for() {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    for goal in [Goal::Leave, Goal::Reclaim] {
        let facts = ChainFacts {
            tip: EXPIRY + 9,
            ..ChainFacts::default()
        };
        let plan = plan(&path, goal, &facts).unwrap();
        assert_eq!(published(&plan), []);
        assert_eq!(waiting(&plan), Waiting::Funding);
    }
}

#[test]
fn the_exit_goes_on_from_what_others_published() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    chain.publish(&signed(&tree, &path, ROOT, Role::Kickoff));
    chain.mine();
    chain.mine_empty(STATE_DELAY);
    chain.publish(&signed(&tree, &path, ROOT, Role::State));
    // In the mempool already: published once more all the same, and nobody's rival.
    let plan = chain.follow(&path, Goal::Leave);
    assert_eq!(published(&plan), [name(ROOT, Role::State)]);
    assert_eq!(plan.status.rival, None);
    chain.mine();
    let plan = chain.follow(&path, Goal::Leave);
    assert_eq!(
        (published(&plan), step(&plan)),
        (vec![name(LEAF, Role::Kickoff)], (3, 4))
    );
}

#[test]
fn a_reorg_is_just_other_facts() {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    for depth in [1, 6] {
        let mut chain = SimulatedChain::new(funding(), START);
        for _ in 0..10 {
            chain.follow(&path, Goal::Leave);
            chain.mine();
        }
        let before = chain.follow(&path, Goal::Leave);
        chain.disconnect(depth);
        let after = chain.follow(&path, Goal::Leave);
        assert!(step(&after) <= step(&before));
        // Mined again, the same height gives the same plan.
        for _ in 0..depth {
            chain.follow(&path, Goal::Leave);
            chain.mine();
        }
        assert_eq!(chain.follow(&path, Goal::Leave), before);
        let (_, end) = follow_to_the_end(&mut chain, &path, Goal::Leave);
        assert!(matches!(
            end.status.progress,
            Progress::LeafConfirmed { .. }
        ));
    }
    // Even the funding can go.
    let mut chain = SimulatedChain::new(funding(), START);
    chain.follow(&path, Goal::Leave);
    chain.mine();
    chain.disconnect(2);
    assert_eq!(waiting(&chain.follow(&path, Goal::Leave)), Waiting::Funding);
}

#[test]
fn defending_answers_kickoffs_and_opens_nothing() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let guarding = |answered| Progress::Guarding { answered };
    let plan = chain.follow(&path, Goal::Defend);
    assert_eq!(
        (published(&plan), plan.status.progress),
        (vec![], guarding(None))
    );
    chain.publish(&signed(&tree, &path, ROOT, Role::Kickoff));
    let plan = chain.follow(&path, Goal::Defend);
    assert_eq!(plan.status.progress, guarding(None));
    chain.mine();
    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Defend);
    let root_height = chain.tip;
    let answered = Some((name(ROOT, Role::State), root_height));
    assert_eq!(plan.status.progress, guarding(answered));
    chain.mine_empty(50);
    assert_eq!(published(&chain.follow(&path, Goal::Defend)), []);
    // A neighbour in our leaf leaves: now the leaf is answered as well.
    chain.publish(&signed(&tree, &path, LEAF, Role::Kickoff));
    chain.mine();
    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Defend);
    assert!(matches!(
        plan.status.progress,
        Progress::LeafConfirmed { .. }
    ));
}

#[test]
fn reclaiming_waits_for_expiry_and_takes_the_roots_distribution() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let plan = chain.follow(&path, Goal::Reclaim);
    assert_eq!(published(&plan), []);
    let (allowed, blocks) = (EXPIRY + 1, EXPIRY - START);
    assert_eq!(waiting(&plan), Waiting::Expiry { allowed, blocks });
    assert_eq!(plan.status.figures.arriving, Amount::from_sat(350_000));
    chain.mine_empty(EXPIRY - START - 1);
    assert_eq!(published(&chain.follow(&path, Goal::Reclaim)), []);
    chain.mine_empty(1);
    let plan = chain.follow(&path, Goal::Reclaim);
    assert_eq!(published(&plan), [name(ROOT, Role::Kickoff)]);
    assert_eq!(step(&plan), (1, 2));
    let (blocks, plan) = follow_to_the_end(&mut chain, &path, Goal::Reclaim);
    assert_eq!(blocks, 1 + DISTRIBUTION_DELAY);
    let distribution = tree.tx(name(ROOT, Role::Distribution)).unwrap();
    assert_eq!(
        plan.status.progress,
        Progress::PaidOut {
            node: ROOT,
            outpoint: OutPoint::new(distribution.txid(), 0),
            amount: Amount::from_sat(350_000),
            height: EXPIRY + 1 + DISTRIBUTION_DELAY,
        }
    );
}

#[test]
fn reclaiming_below_a_confirmed_state_takes_the_childs_distribution() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    chain.publish(&signed(&tree, &path, ROOT, Role::Kickoff));
    chain.mine();
    chain.mine_empty(STATE_DELAY - 1);
    chain.publish(&signed(&tree, &path, ROOT, Role::State));
    chain.mine();
    let plan = chain.follow(&path, Goal::Reclaim);
    assert_eq!(step(&plan), (3, 4));
    assert!(matches!(waiting(&plan), Waiting::Expiry { .. }));
    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Reclaim);
    let Progress::PaidOut { node, amount, .. } = plan.status.progress else {
        panic!("not paid: {:?}", plan.status.progress);
    };
    assert_eq!((node, amount), (LEAF, Amount::from_sat(350_000)));
}

#[test]
fn a_kickoff_out_long_ago_leaves_only_the_expiry_to_wait_for() {
    let (tree, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    chain.publish(&signed(&tree, &path, ROOT, Role::Kickoff));
    chain.mine();
    chain.mine_empty(EXPIRY - 1 - chain.tip);
    let plan = chain.follow(&path, Goal::Reclaim);
    let (allowed, blocks) = (EXPIRY + 1, 1);
    assert_eq!(waiting(&plan), Waiting::Expiry { allowed, blocks });
    chain.mine_empty(1);
    let plan = chain.follow(&path, Goal::Reclaim);
    assert_eq!(published(&plan), [name(ROOT, Role::Distribution)]);
    // Whoever still wants the channel finds the payout instead.
    chain.mine();
    let plan = chain.follow(&path, Goal::Leave);
    assert!(matches!(
        plan.status.progress,
        Progress::PaidOut { node: ROOT, .. }
    ));
}

#[test]
fn a_factory_without_distributions_has_no_reclaim() {
    let (_, path) = path_of_four(TimeoutPolicy::LspReclaims);
    let facts = SimulatedChain::new(funding(), START).facts(&path);
    assert_eq!(
        plan(&path, Goal::Reclaim, &facts),
        Err(PlanError::NoDistributions)
    );
    assert!(plan(&path, Goal::Leave, &facts).is_ok());
}

#[test]
fn a_foreign_spender_supersedes_the_path_once_confirmed() {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let by = Txid::from_byte_array([0xee; 32]);
    for outpoint in [path.funding(), path.nodes()[0].started()] {
        let mut chain = SimulatedChain::new(funding(), START);
        if outpoint != path.funding() {
            chain.publish(&path.nodes()[0].kickoff);
            chain.mine();
            chain.mine_empty(20);
        }
        let mut facts = chain.facts(&path);
        let mut spend = Spend {
            txid: by,
            height: None,
        };
        facts.spends.insert(outpoint, spend);
        // A mempool proves nothing: publish ours, and say whom it meets.
        let unconfirmed = plan(&path, Goal::Leave, &facts).unwrap();
        assert_eq!(published(&unconfirmed).len(), 1);
        assert_eq!(unconfirmed.status.rival, Some(by));
        let height = facts.tip;
        spend.height = Some(height);
        facts.spends.insert(outpoint, spend);
        let confirmed = plan(&path, Goal::Leave, &facts).unwrap();
        assert_eq!(published(&confirmed), []);
        let superseded = Progress::Superseded {
            outpoint,
            by,
            height,
        };
        assert_eq!(confirmed.status.progress, superseded);
    }
}

#[test]
fn facts_of_two_chains_are_refused() {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let mut facts = SimulatedChain::new(funding(), START).facts(&path);
    let outpoint = path.funding();
    for height in [START + 1, START - 1] {
        let txid = path.nodes()[0].started().txid;
        facts.spends.insert(
            outpoint,
            Spend {
                txid,
                height: Some(height),
            },
        );
        let refused = Err(PlanError::Inconsistent { outpoint, height });
        assert_eq!(plan(&path, Goal::Leave, &facts), refused);
    }
    facts.spends.clear();
    facts.funding_height = Some(START + 1);
    assert!(matches!(
        plan(&path, Goal::Defend, &facts),
        Err(PlanError::Inconsistent { .. })
    ));
}
