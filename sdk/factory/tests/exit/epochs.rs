//! A path with a newer epoch of its root: which one is published, which one is followed.

use std::collections::BTreeMap;

use bitcoin::hashes::Hash as _;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{OutPoint, Sequence};
use superscalar_factory::codec::{Decode, Encode};
use superscalar_factory::exit::{
    Action, Goal, Plan, Progress, SignedEpoch, SignedNode, SignedPath, plan,
};
use superscalar_factory::shape::NodeId;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tree::{Role, Tree, TreeTx};

use crate::support::simulated_chain::SimulatedChain;
use crate::support::{Parties, funding, path_of_four};
use crate::{LEAF, ROOT, START, STATE_DELAY, follow_to_the_end, name, signed};

/// The state of `node` again, faster: what a later epoch signs. Its input is `spent`.
fn newer(tree: &Tree, node: NodeId, role: Role, spent: OutPoint, delay: u16) -> TreeTx {
    let mut tx = tree.tx(name(node, role)).unwrap().clone();
    tx.tx.input[0].previous_output = spent;
    if role == Role::State {
        tx.tx.input[0].sequence = Sequence::from_height(delay);
    }
    let sighash = SighashCache::new(&tx.tx).taproot_key_spend_signature_hash(
        0,
        &Prevouts::All(&[&tx.prevout]),
        TapSighashType::Default,
    );
    tx.sighash = sighash.unwrap().to_byte_array();
    tx
}

/// The path of slot 0 after the root's epoch was advanced: the old branch, and below the new root
/// state a leaf signed anew.
pub(crate) fn path_with_two_root_epochs() -> (Tree, SignedPath) {
    let (tree, old) = path_of_four(TimeoutPolicy::MembersReclaim);
    let parties = Parties::new(4);
    let sign = |tx: &TreeTx| tx.signed(&parties.sign(&tree, tx));
    let [mut root, leaf] = old.nodes().to_vec().try_into().unwrap();
    let root_state = newer(&tree, ROOT, Role::State, root.started(), 0);
    let distribution = root.epochs[&0].distribution.clone();
    let state = sign(&root_state);
    root.epochs.insert(
        1,
        SignedEpoch {
            state,
            distribution,
        },
    );
    let funds_leaf = OutPoint::new(root_state.txid(), 0);
    let kickoff = sign(&newer(&tree, LEAF, Role::Kickoff, funds_leaf, 0));
    let started = OutPoint::new(kickoff.compute_txid(), 0);
    let state = sign(&newer(
        &tree,
        LEAF,
        Role::State,
        started,
        STATE_DELAY as u16,
    ));
    let distribution = sign(&newer(&tree, LEAF, Role::Distribution, started, 0));
    let distribution = Some(distribution);
    let new_leaf = SignedNode {
        node: LEAF,
        kickoff,
        epochs: BTreeMap::from([(
            0,
            SignedEpoch {
                state,
                distribution,
            },
        )]),
    };
    let bytes = stored(&old, vec![root, leaf, new_leaf]);
    (tree, SignedPath::from_bytes(&bytes, "path").unwrap())
}

/// The encoding of a path with other nodes.
pub(crate) fn stored(path: &SignedPath, nodes: Vec<SignedNode>) -> Vec<u8> {
    let mut bytes = path.header().to_bytes();
    4u16.encode(&mut bytes);
    path.slot().encode(&mut bytes);
    path.funding().encode(&mut bytes);
    path.funding_output().encode(&mut bytes);
    nodes.encode(&mut bytes);
    // No sales.
    0u8.encode(&mut bytes);
    bytes
}

#[test]
fn the_newest_epoch_is_published_and_an_older_one_is_followed() {
    let (tree, path) = path_with_two_root_epochs();
    let mut chain = SimulatedChain::new(funding(), START);
    chain.follow(&path, Goal::Leave);
    chain.mine();
    // Epoch 1 of 2 has no delay: it may follow its kickoff at once.
    let plan = chain.follow(&path, Goal::Leave);
    let [
        Action::Publish {
            epoch, transaction, ..
        },
    ] = plan.actions.as_slice()
    else {
        panic!("one transaction: {plan:?}");
    };
    assert_eq!(*epoch, Some(1));
    let newest = transaction.compute_txid();
    chain.mine();
    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Leave);
    let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress else {
        panic!("{plan:?}");
    };
    assert_eq!(outpoint, path.channel_outpoint());
    assert!(chain.is_confirmed(newest));

    // Somebody got the old root state confirmed: the exit goes on below that one.
    let mut chain = SimulatedChain::new(funding(), START);
    chain.publish(&path.nodes()[0].kickoff);
    chain.mine();
    chain.mine_empty(STATE_DELAY);
    chain.publish(&signed(&tree, &path, ROOT, Role::State));
    let plan = plan_only(&chain, &path);
    assert_eq!(
        plan.status.rival,
        Some(tree.tx(name(ROOT, Role::State)).unwrap().txid())
    );
    chain.mine();
    let (_, plan) = follow_to_the_end(&mut chain, &path, Goal::Leave);
    let Progress::LeafConfirmed { outpoint, .. } = plan.status.progress else {
        panic!("{plan:?}");
    };
    assert_eq!(outpoint, tree.channel_outpoint(0).unwrap());
    assert_ne!(outpoint, path.channel_outpoint());
}

fn plan_only(chain: &SimulatedChain, path: &SignedPath) -> Plan {
    plan(path, Goal::Leave, &chain.facts(path)).unwrap()
}
