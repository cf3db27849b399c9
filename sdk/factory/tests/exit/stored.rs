//! A path as bytes: what is not whole, not signed or not as it was is refused.

use std::collections::BTreeMap;

use superscalar_factory::codec::{Decode, DecodeError, Encode};
use superscalar_factory::exit::{SignedNode, SignedPath, SignedPathError};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tree::Blueprint;

use crate::EXPIRY;
use crate::epochs::{path_with_two_root_epochs, stored};
use crate::support::{Parties, funding, path_of_four, terms};

#[test]
fn a_stored_path_that_is_not_whole_is_refused() {
    let (_, path) = path_with_two_root_epochs();
    let refused = |nodes: Vec<SignedNode>| {
        let result = SignedPath::from_bytes(&stored(&path, nodes), "path");
        assert!(result.is_err(), "{result:?}");
    };
    let whole = path.nodes().to_vec();
    let mut backwards = whole.clone();
    backwards.reverse();
    refused(backwards);
    let mut with_a_stranger = whole.clone();
    let mut stranger = whole[2].clone();
    stranger.kickoff.input[0].previous_output.vout = 9;
    with_a_stranger.push(stranger);
    refused(with_a_stranger);
    assert_eq!(
        SignedPath::from_bytes(&stored(&path, whole.clone()), "path"),
        Ok(path.clone())
    );
    for position in 0..whole.len() {
        let mut missing = whole.clone();
        missing.remove(position);
        refused(missing);
        let mut twice = whole.clone();
        twice.push(whole[position].clone());
        refused(twice);
        let mut of_other_node = whole.clone();
        of_other_node[position].node = NodeId(2);
        refused(of_other_node);
        let mut of_no_epoch = whole.clone();
        of_no_epoch[position].epochs.clear();
        refused(of_no_epoch);
        let mut wrong_epoch = whole.clone();
        let (_, signed) = wrong_epoch[position].epochs.pop_last().unwrap();
        wrong_epoch[position].epochs.insert(2, signed);
        refused(wrong_epoch);
        let mut no_backstop = whole.clone();
        let mut newest = no_backstop[position].epochs.last_entry().unwrap();
        newest.get_mut().distribution = None;
        refused(no_backstop);
        let mut unsigned = whole.clone();
        unsigned[position].kickoff.input[0].witness.clear();
        refused(unsigned);
        let mut two_inputs = whole.clone();
        let input = whole[position].kickoff.input[0].clone();
        two_inputs[position].kickoff.input.push(input);
        refused(two_inputs);
        let mut none = whole.clone();
        none[position].kickoff.output.clear();
        refused(none);
    }
}

#[test]
fn a_path_needs_every_signature_and_each_must_be_valid() {
    let parties = Parties::new(4);
    let terms = terms(
        &parties,
        Shape::two_layers(4),
        TimeoutPolicy::MembersReclaim,
        EXPIRY,
    );
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    let all = parties.sign_all(&tree);
    let new = |signatures: &BTreeMap<_, _>| SignedPath::new(&tree, 3, signatures.clone());
    assert!(new(&all).is_ok());
    for name in tree.signing_order(3) {
        let mut missing = all.clone();
        missing.remove(&name);
        assert_eq!(
            new(&missing),
            Err(SignedPathError::MissingSignature { name })
        );
        for other in tree
            .signing_order(3)
            .into_iter()
            .filter(|other| *other != name)
        {
            let mut swapped = all.clone();
            swapped.insert(name, all[&other]);
            assert_eq!(new(&swapped), Err(SignedPathError::BadSignature { name }));
        }
    }
    let (slot, members) = (4, 4);
    let refused = Err(SignedPathError::NoSuchSlot { slot, members });
    assert_eq!(SignedPath::new(&tree, slot, all), refused);
}

/// States are signed by the same key whichever kickoff of their node they spend: one below the other
/// root's epoch could never be published.
#[test]
fn states_that_spend_another_kickoff_are_refused() {
    let (_, path) = path_with_two_root_epochs();
    let whole = path.nodes().to_vec();
    let last = whole.len() - 1;
    let twin = whole.iter().position(|node| node.node == whole[last].node);
    let twin = twin.filter(|twin| *twin != last).unwrap();
    let mut swapped = whole.clone();
    swapped[twin].epochs = whole[last].epochs.clone();
    swapped[last].epochs = whole[twin].epochs.clone();
    let refused = SignedPath::from_bytes(&stored(&path, swapped), "path");
    assert_eq!(refused, Err(DecodeError::Invalid { field: "path" }));
}

/// A flipped bit is refused, unless it is in a field that no signed transaction of this path
/// depends on (the instance, say): the transactions themselves never differ.
#[test]
fn a_stored_path_with_a_flipped_bit_is_refused_or_differs() {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    let bytes = path.to_bytes();
    assert_eq!(SignedPath::from_bytes(&bytes, "path"), Ok(path.clone()));
    for position in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << (position % 8);
        if let Ok(other) = SignedPath::from_bytes(&flipped, "path") {
            assert_ne!(other, path);
            assert_eq!(other.nodes(), path.nodes(), "byte {position}");
        }
        let cut = SignedPath::from_bytes(&bytes[..position], "path");
        assert!(cut.is_err(), "cut at {position}");
    }
    let mut long = bytes;
    long.push(0);
    let trailing = SignedPath::from_bytes(&long, "path");
    assert_eq!(
        trailing,
        Err(DecodeError::Trailing {
            what: "path",
            count: 1
        })
    );
}
