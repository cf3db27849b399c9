//! The building ceremony in one process: everyone gets a complete path before a coin moves.

mod world;

use bitcoin::secp256k1::schnorr;
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{Input, Member};
use superscalar_factory::message::Message;
use superscalar_factory::signing::verify;
use world::{Party, TIP, World, bytes, key, plan};

#[test]
fn everyone_holds_a_complete_path_before_the_funding_is_published() {
    for members in [2, 3, 4, 8, 16] {
        let mut world = World::new(members);
        world.run();
        assert_eq!(world.broadcast.len(), 1, "{members} members");
        let built = world.lsp.as_ref().unwrap().built().unwrap().clone();
        assert!(built.complete());
        for (slot, member) in &world.members {
            let path = member.path().unwrap();
            let order = path.tree.signing_order(*slot);
            assert_eq!(path.signatures.len(), order.len());
            for (name, signature) in order.iter().zip(&path.signatures) {
                let tx = path.tree.tx(*name).unwrap();
                assert!(verify(&tx.key.output_key(), &tx.sighash, signature));
            }
            assert!(!member.is_active(), "the funding is not buried");
        }
        assert!(world.activated.is_empty());
        world.confirm_funding(TIP + 1);
        assert!(world.members.values().all(Member::is_active));
        assert_eq!(world.activated.len(), 2 * usize::from(members));
    }
}

/// Acceptance "Order": path and commitment are durable before RootPartial.
#[test]
fn the_root_is_signed_last() {
    let mut world = World::new(4);
    world.run();
    for slot in 0..4 {
        let records = &world.journal[&Party::Member(slot)];
        let position = |wanted: fn(&Record) -> bool| records.iter().position(wanted).unwrap();
        let path = position(|r| matches!(r, Record::MemberPath(_)));
        let partial = position(|r| matches!(r, Record::MemberRootPartial(_)));
        let root = position(|r| matches!(r, Record::MemberRootSig(_)));
        assert!(path < partial && partial < root);
    }
    let first = |wanted: fn(&Message) -> bool| {
        let mut log = world.log.iter();
        log.position(|(_, message)| wanted(message)).unwrap()
    };
    let last_partial_sigs = world
        .log
        .iter()
        .rposition(|(_, m)| matches!(m, Message::PartialSigs(_)))
        .unwrap();
    assert!(last_partial_sigs < first(|m| matches!(m, Message::NodeSigs(_))));
    assert!(
        first(|m| matches!(m, Message::NodeSigs(_)))
            < first(|m| matches!(m, Message::RootPartial(_)))
    );
    let last_root_partial = world
        .log
        .iter()
        .rposition(|(_, m)| matches!(m, Message::RootPartial(_)))
        .unwrap();
    assert!(last_root_partial < first(|m| matches!(m, Message::RootSig(_))));
}

/// The same: when everything else is said, the root is signed by those whose channel is held, and by
/// nobody else, whatever happens meanwhile.
#[test]
fn the_root_is_signed_only_when_the_channel_is_held() {
    let mut world = World::new(4);
    world.start();
    while let Some((from, to, message)) = world.inbox.pop_front() {
        world.hand_over(from, to, message);
    }
    let signed = |world: &World| -> Vec<Party> {
        let log = world.log.iter();
        let partials = log.filter(|(_, message)| matches!(message, Message::RootPartial(_)));
        partials.map(|(from, _)| *from).collect()
    };
    assert_eq!(world.opening.len(), 4);
    let mut expected = Vec::new();
    while let Some(slot) = world.opening.pop_front() {
        for input in [Input::Connected, Input::Height(TIP + 1)] {
            let effects = world.members.get_mut(&slot).unwrap().handle(input);
            world.act(Party::Member(slot), effects);
        }
        assert_eq!(signed(&world), expected);
        world.open(slot);
        expected.push(Party::Member(slot));
        assert_eq!(signed(&world), expected);
    }
    world.deliver();
    assert_eq!(world.broadcast.len(), 1);
}

/// Acceptance "Silence": rebuilt after the timeout with the others, no coin locked.
#[test]
fn a_silent_member_is_dropped_and_no_coin_is_locked() {
    let mut world = World::new(4);
    world.tamper = Box::new(|from, message| match (from, &message) {
        (Party::Member(2), Message::PartialSigs(_)) => None,
        _ => Some(message),
    });
    world.run();
    let lsp = world.lsp.as_mut().unwrap();
    assert_eq!(lsp.phase(), "signing");
    let effects = lsp.handle(superscalar_factory::coordinator::Input::TimedOut);
    world.act(Party::Lsp, effects);
    world.deliver();
    assert!(world.broadcast.is_empty());
    assert_eq!(world.released.len(), 1);
    let at_fault = world.events.iter().find_map(|(party, event)| match event {
        Event::Ended { at_fault, .. } if *party == Party::Lsp => Some(at_fault.clone()),
        _ => None,
    });
    assert_eq!(at_fault, Some(vec![2]));
    assert!(world.members.values().all(|m| m.ended().is_some()));
    let retry = world.plan.retry(&[2]).unwrap();
    let mut world = World::with(retry);
    world.run();
    assert_eq!(world.broadcast.len(), 1);
    assert_eq!(world.members.len(), 3);
}

#[test]
fn replaying_the_journal_gives_the_same_state() {
    let mut world = World::new(4);
    world.run();
    let before = world.journal[&Party::Member(0)].clone();
    let (member, _) = Member::replay(&bytes("member seed", 0), &before, TIP).unwrap();
    assert_eq!(member.phase(), world.members[&0].phase());
    world.confirm_funding(TIP + 1);
    for slot in 0..4 {
        let seed = bytes("member seed", u64::from(slot));
        let records = &world.journal[&Party::Member(slot)];
        let (member, _) = Member::replay(&seed, records, TIP + 1).unwrap();
        let (before, after) = (world.members[&slot].path().unwrap(), member.path().unwrap());
        assert_eq!(before.signatures, after.signatures);
        assert_eq!(before.tree.factory_id, after.tree.factory_id);
        assert_eq!(member.phase(), world.members[&slot].phase());
        assert!(!member.is_active(), "until the chain is asked again");
    }
    let records = &world.journal[&Party::Lsp];
    let (lsp, _) = Coordinator::replay(&bytes("lsp seed", 0), records, TIP + 1).unwrap();
    // Every key that was brought in is known again: it may be in no other factory.
    let terms = &lsp.built().unwrap().terms;
    assert!(terms.keys().iter().all(|key| lsp.has_key(key)));
    assert!(lsp.has_key(&terms.header.lsp_key) && !lsp.has_key(&key("nobody", 0)));
    let (before, after) = (
        world.lsp.as_ref().unwrap().built().unwrap(),
        lsp.built().unwrap(),
    );
    assert_eq!(before.signatures, after.signatures);
    assert_eq!(before.terms, after.terms);
}

/// However deep the funding was, an LSP whose chain has lost it publishes it again, also when it
/// was away meanwhile; nobody may receive until it is buried once more.
#[test]
fn a_funding_that_left_the_chain_is_published_again() {
    let mut plan = plan(4);
    plan.timing.min_depth = 3;
    let mut world = World::with(plan);
    world.run();
    let funding = world.broadcast[0].clone();
    // One block deep, and gone.
    world.confirm_funding(TIP + 1);
    assert!(world.activated.is_empty());
    world.reorg_funding();
    assert_eq!(world.broadcast, [funding.clone(), funding.clone()]);
    world.height(TIP + 5);
    assert!(
        world.activated.is_empty(),
        "what is gone does not get deeper"
    );
    assert!(world.members.values().all(|it| it.phase() == "funding"));

    // Buried, and gone all the same.
    world.confirm_funding(TIP + 6);
    world.height(TIP + 8);
    assert_eq!(world.activated.len(), 2 * 4);
    let records = &world.journal[&Party::Lsp];
    let (_, effects) = Coordinator::replay(&bytes("lsp seed", 0), records, TIP + 8).unwrap();
    assert!(effects.contains(&Effect::Broadcast(funding.clone())));
    world.reorg_funding();
    assert!(world.activated.is_empty());
    assert_eq!(world.broadcast.len(), 3);
    world.confirm_funding(TIP + 9);
    world.height(TIP + 10);
    assert!(world.activated.is_empty());
    world.height(TIP + 11);
    assert_eq!(world.activated.len(), 2 * 4);
    assert!(world.members.values().all(Member::is_active));
}

/// Signatures that were damaged on disk are found when the journal is read, not when the path is
/// needed.
#[test]
fn a_journal_with_a_damaged_signature_gives_no_role() {
    let mut world = World::new(4);
    world.run();
    let flipped = |signature: &schnorr::Signature| {
        let mut bytes = signature.serialize();
        bytes[40] ^= 1;
        schnorr::Signature::from_slice(&bytes).unwrap()
    };
    let mut damaged = 0;
    for (party, records) in &world.journal {
        for position in 0..records.len() {
            let mut records = records.clone();
            match &mut records[position] {
                Record::MemberPath(path) => path.signatures[2] = flipped(&path.signatures[2]),
                Record::LspNodes(nodes) => nodes.signatures[5] = flipped(&nodes.signatures[5]),
                Record::MemberRootSig(root) => root.signature = flipped(&root.signature),
                Record::LspRoot(root) => root.signature = flipped(&root.signature),
                _ => continue,
            }
            let read = match party {
                Party::Lsp => Coordinator::replay(&bytes("lsp seed", 0), &records, TIP).map(drop),
                Party::Member(slot) => {
                    let seed = bytes("member seed", u64::from(*slot));
                    Member::replay(&seed, &records, TIP).map(drop)
                }
            };
            let error = read.unwrap_err().to_string();
            assert!(error.contains("signature"), "{party:?}: {error}");
            damaged += 1;
        }
    }
    assert_eq!(damaged, 2 * 5);
}
