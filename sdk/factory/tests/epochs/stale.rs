//! Somebody publishes an older epoch: it is outrun by the newest, and where it was not, its stock is
//! the member's, sold or not.

use bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use superscalar_factory::exit::stale::{due, stale_stock};
use superscalar_factory::exit::{
    Action, ChainFacts, Goal, OnChain, Progress, SignedPath, Spend, plan,
};
use superscalar_factory::member::revocation_key;
use superscalar_factory::shape::NodeId;
use superscalar_factory::signing::FactoryKey;
use superscalar_factory::tree::{Role, TxName};

use crate::support::core_script;
use crate::support::simulated_chain::SimulatedChain;
use crate::world::{World, bytes, payout};
use crate::{active, agree, endow};

const SLOT: u16 = 1;
const START: u32 = 100;
const STEP: u32 = 6;

/// The member moved once after it had bought twice, and bought once more since.
fn moved() -> World {
    let mut world = active(4, 3);
    world.buy(SLOT, 20_000);
    world.buy(SLOT, 10_000);
    endow(&mut world);
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 1);
    world.buy(SLOT, 7_000);
    world
}

fn path(world: &World) -> SignedPath {
    world.members[&SLOT].signed_path().unwrap().unwrap()
}

fn rates() -> Vec<FeeRate> {
    [40, 1, 10].map(FeeRate::from_sat_per_vb_u32).into()
}

fn seed() -> [u8; 32] {
    bytes("member seed", u64::from(SLOT))
}

/// Publishes root and leaf kickoff and the old leaf state; `leaf` is the epoch.
fn publish_leaf(chain: &mut SimulatedChain, path: &SignedPath, leaf: u8) -> Transaction {
    for node in path.nodes() {
        chain.publish(&node.kickoff);
        chain.mine();
        let epoch = match node.node {
            NodeId(0) => 0,
            _ => leaf,
        };
        let state = node.epochs[&epoch].state.clone();
        chain.mine_empty(state.input[0].sequence.0);
        chain.publish(&state);
        chain.mine();
        if node.node != NodeId(0) {
            return state;
        }
    }
    panic!("a path of two layers");
}

#[test]
fn the_newest_state_outruns_an_older_one() {
    let world = moved();
    let path = path(&world);
    let mut chain = SimulatedChain::new(path.funding(), START);
    // The LSP opens everything, with the old leaf state in mind.
    for node in &path.nodes()[..1] {
        chain.publish(&node.kickoff);
        chain.mine();
        chain.mine_empty(2 * STEP);
        chain.publish(&node.epochs[&0].state);
        chain.mine();
    }
    chain.publish(&path.nodes()[1].kickoff);
    chain.mine();
    // The old one waits for two steps, the newest for one.
    for block in 0..STEP {
        let plan = chain.follow(&path, Goal::Defend);
        assert!(
            plan.actions.is_empty() || block + 1 == STEP,
            "{block}: {plan:?}"
        );
        chain.mine();
    }
    let newest = path.nodes()[1].epochs[&1].state.compute_txid();
    assert!(chain.is_confirmed(newest));
    let plan = chain.follow(&path, Goal::Defend);
    // What was sold since is put on chain after it.
    let [Action::Publish { name, .. }] = plan.actions.as_slice() else {
        panic!("{plan:?}");
    };
    assert_eq!(name.role, Role::Sale(0));
    chain.mine();
    let plan = chain.follow(&path, Goal::Defend);
    let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress else {
        panic!("{plan:?}");
    };
    assert_eq!(outpoint, path.channel_outpoint());
    assert_eq!(path.channel_outpoints().len(), 2);
}

#[test]
fn what_is_below_an_old_state_on_chain_is_followed() {
    let world = moved();
    let path = path(&world);
    let mut chain = SimulatedChain::new(path.funding(), START);
    let stale = publish_leaf(&mut chain, &path, 0);
    for _ in 0..4 {
        chain.follow(&path, Goal::Leave);
        chain.mine();
    }
    let plan = plan(&path, Goal::Leave, &chain.facts(&path)).unwrap();
    let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress else {
        panic!("{plan:?}");
    };
    assert_eq!(outpoint.txid, stale.compute_txid());
    // Its own old channel and both that were bought there.
    assert_eq!(plan.status.channels.len(), 3);
    let there = plan.status.channels.iter();
    assert!(
        there
            .clone()
            .all(|it| matches!(it.on_chain, OnChain::Confirmed { .. }))
    );
}

/// With the revealed preimages the member alone takes all of it, at whatever the block takes.
#[test]
fn stale_stock_is_taken_at_several_feerates() {
    let world = moved();
    let member = &world.members[&SLOT];
    let to = payout(77);
    let sweeps = member.stale_sweeps(&seed(), &to, &rates());
    let stock = stale_stock(&member.retired_stock(), &to);
    // The leaf's, and what each of two sales left; nothing of the stock in use.
    assert_eq!((sweeps.len(), stock.len()), (3, 3));
    let live: Vec<OutPoint> = member
        .stock_chain()
        .unwrap()
        .stocks()
        .map(|stock| stock.outpoint())
        .collect();
    assert!(sweeps.iter().all(|sweep| !live.contains(&sweep.outpoint)));
    for (sweep, stock) in sweeps.iter().zip(&stock) {
        assert_eq!(sweep.outpoint, stock.outpoint);
        assert_eq!(sweep.transactions.len(), 3);
        for (tx, feerate) in sweep.transactions.iter().zip([1, 10, 40]) {
            core_script::check(tx, &stock.output).unwrap();
            assert_eq!(tx.output.len(), 1);
            assert_eq!(tx.output[0].script_pubkey, to);
            let fee = stock.output.value - tx.output[0].value;
            assert_eq!(fee, Amount::from_sat(feerate * tx.vsize() as u64));
            // No delay, and replaceable.
            assert!(tx.input[0].sequence.is_rbf() && !tx.input[0].sequence.is_relative_lock_time());
        }
        // Nobody else's key does, nor another preimage.
        let other = FactoryKey::derive(&bytes("member seed", 0), &bytes("member salt", 0));
        let forged = stock.spend(&other, FeeRate::BROADCAST_MIN).unwrap();
        core_script::check(&forged, &stock.output).expect_err("the member's key alone");
        let mut wrong = sweep.transactions[0].clone();
        let mut witness = wrong.input[0].witness.to_vec();
        witness[1][0] ^= 1;
        wrong.input[0].witness = bitcoin::Witness::from_slice(&witness);
        core_script::check(&wrong, &stock.output).expect_err("the preimage is checked");
    }
    // The same from a journal.
    let records = &world.journal[&crate::world::Party::Member(SLOT)];
    let replayed = superscalar_factory::member::Member::replay(&seed(), records, START);
    let again = replayed.unwrap().0.stale_sweeps(&seed(), &to, &rates());
    assert_eq!(again, sweeps);
}

/// Before the switch is complete nobody takes anything.
#[test]
fn without_preimages_there_is_nothing_to_take() {
    let mut world = active(4, 3);
    world.tamper = Box::new(|_, message| match message {
        superscalar_factory::message::Message::EpochReveal(_) => None,
        other => Some(other),
    });
    world.merge(SLOT).unwrap();
    let member = &world.members[&SLOT];
    assert_eq!(member.version(), 1);
    assert_eq!(member.retired_stock().len(), 1);
    assert!(
        member
            .stale_sweeps(&seed(), &payout(77), &rates())
            .is_empty()
    );
}

/// What is published follows the chain: nothing before the leaf is there, what is spent no more.
#[test]
fn sweeps_are_due_when_their_output_is_on_chain() {
    let world = moved();
    let path = path(&world);
    let sweeps = world.members[&SLOT].stale_sweeps(&seed(), &payout(77), &rates());
    let facts = |chain: &SimulatedChain| {
        let mut facts = chain.facts(&path);
        // The outpoints of the sweeps are watched as well.
        for sweep in &sweeps {
            let taken = sweep.transactions.iter().map(Transaction::compute_txid);
            let taken = taken.rev().find(|txid| chain.is_confirmed(*txid));
            facts.spends.extend(taken.map(|txid| {
                let height = Some(chain.tip);
                (sweep.outpoint, Spend { txid, height })
            }));
        }
        facts
    };
    let mut chain = SimulatedChain::new(path.funding(), START);
    assert!(due(&sweeps, &facts(&chain)).is_empty());
    assert!(due(&sweeps, &ChainFacts::default()).is_empty());
    // Of the newest leaf nothing is taken.
    publish_leaf(&mut chain, &path, 1);
    assert!(due(&sweeps, &facts(&chain)).is_empty());
    let mut chain = SimulatedChain::new(path.funding(), START);
    publish_leaf(&mut chain, &path, 0);
    let now: Vec<OutPoint> = due(&sweeps, &facts(&chain))
        .iter()
        .map(|sweep| sweep.outpoint)
        .collect();
    assert_eq!(now, [sweeps[0].outpoint]);
    // The sale comes first: then it is what the sale left.
    let mut sold = SimulatedChain::new(path.funding(), START);
    publish_leaf(&mut sold, &path, 0);
    sold.publish(path.sales()[0].links()[0].transaction());
    let pending = due(&sweeps, &facts(&sold));
    assert_eq!(pending[0].outpoint, sweeps[0].outpoint, "it still competes");
    sold.mine();
    let now: Vec<OutPoint> = due(&sweeps, &facts(&sold))
        .iter()
        .map(|sweep| sweep.outpoint)
        .collect();
    assert_eq!(now, [sweeps[1].outpoint]);
    // Taken, it is over.
    chain.publish(sweeps[0].transactions.last().unwrap());
    chain.mine();
    assert!(due(&sweeps, &facts(&chain)).is_empty());
}

/// After a carry: stale roots, stale leaves below stale and newest roots.
#[test]
fn a_stale_root_is_outrun_or_followed() {
    let mut world = active(4, 2);
    world.merge(SLOT).unwrap();
    world.merge(SLOT).unwrap();
    let path = path(&world);
    assert_eq!((path.nodes().len(), path.nodes()[0].epochs.len()), (3, 2));
    let mut chain = SimulatedChain::new(path.funding(), START);
    let mut last = None;
    for _ in 0..60 {
        let plan = chain.follow(&path, Goal::Leave);
        if let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress {
            last = Some(outpoint);
            break;
        }
        chain.mine();
    }
    assert_eq!(last, Some(path.channel_outpoint()));
    // The root's old state was first: the newest leaf below it is the one of that time.
    let mut chain = SimulatedChain::new(path.funding(), START);
    chain.publish(&path.nodes()[0].kickoff);
    chain.mine();
    chain.mine_empty(STEP);
    chain.publish(&path.nodes()[0].epochs[&0].state);
    chain.mine();
    let mut last = None;
    for _ in 0..60 {
        let plan = chain.follow(&path, Goal::Leave);
        if let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress {
            last = Some(outpoint);
            break;
        }
        chain.mine();
    }
    let old = path.nodes()[1].epochs[&1].state.compute_txid();
    assert_eq!(last.map(|outpoint| outpoint.txid), Some(old));
    let name = TxName::state(NodeId(1));
    assert_eq!(name.role, Role::State);
    // All of that stock is revoked: of the first epoch, and of the second.
    let key = revocation_key(&seed(), &bytes("member salt", 0));
    drop(key);
    let sweeps = world.members[&SLOT].stale_sweeps(&seed(), &payout(77), &rates());
    assert!(sweeps.iter().any(|sweep| sweep.outpoint.txid == old));
}
