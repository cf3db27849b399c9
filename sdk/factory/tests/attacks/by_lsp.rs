//! What a hostile LSP tries on one member.

use bitcoin::secp256k1::schnorr;
use bitcoin::{Amount, Network};
use superscalar_factory::coordinator::FactoryPlan;
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::*;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::timing::Timing;

use crate::world::{Party, TIP, World, bytes, key, payout, plan};
use crate::{
    IDENTITY, NODE_SIGS, ROOT_SIG, TERMS, VICTIM, at_fault, completes, refusal, tables,
    world_before,
};

#[test]
fn a_member_refuses_terms_that_are_not_the_agreed_ones() {
    let rows = tables::terms();
    let (mut world, honest) = world_before(Party::Lsp, Party::Member(VICTIM), TERMS);
    for (name, forge, code, field) in rows {
        let Message::Terms(mut terms) = honest.clone() else {
            unreachable!()
        };
        forge(&mut terms);
        assert_ne!(
            Message::from(terms.clone()),
            honest,
            "{name} changes nothing"
        );
        member_refuses(name, &mut world, terms.into(), code, field);
    }
    completes("terms", world);
}

/// What the victim is offered under this plan.
fn invitation(plan: FactoryPlan) -> Invite {
    let mut world = World::with(plan);
    world.start();
    match world.deliver_until(|_, to, _| to == Party::Member(VICTIM)) {
        Some(Message::Invite(honest)) => honest,
        other => panic!("members are invited first, not {other:?}"),
    }
}

/// The refusal an offer meets in a wallet with the standard limits, if it does.
fn refused_by(limits: &WalletLimits, invite: Invite) -> Option<(RefusalCode, &'static str)> {
    let joined = Member::join(
        key("node", 0),
        invite,
        limits,
        JoinSecrets {
            seed: &bytes("member seed", 1),
            salt: [1; 32],
            nonce_randomness: [2; 32],
        },
        payout(1),
        key("member funding", 1),
        TIP,
    );
    joined.err().map(|refused| (refused.code, refused.field))
}

#[test]
fn a_member_refuses_offers_outside_its_limits() {
    let limits = WalletLimits::standard(Network::Regtest);
    let honest = invitation(plan(4));
    assert_eq!(refused_by(&limits, honest.clone()), None);
    for (name, forge, code, field) in tables::invites() {
        let mut invite = honest.clone();
        forge(&mut invite);
        assert_eq!(refused_by(&limits, invite), Some((code, field)), "{name}");
    }
}

/// What a wallet asked for is the least it takes.
#[test]
fn a_member_refuses_less_capacity_than_it_asked_for() {
    let standard = WalletLimits::standard(Network::Regtest);
    let honest = invitation(plan(4));
    let limits = standard.clone().wanting(honest.capacity);
    assert_eq!(refused_by(&limits, honest.clone()), None);
    let mut less = honest;
    less.capacity -= Amount::ONE_SAT;
    let refused = Some((RefusalCode::Limits, "capacity"));
    assert_eq!(refused_by(&limits, less.clone()), refused);
    // Who leaves it to the LSP takes it.
    assert_eq!(refused_by(&standard.wanting(Amount::ZERO), less), None);
}

/// Longer delays and an end in the LSP's favour are taken by whoever said so, and a place in which
/// the way out would begin at once by nobody.
#[test]
fn a_member_accepts_what_it_was_told_to_and_stays_for_a_while() {
    let standard = WalletLimits::standard(Network::Bitcoin);
    let raised = standard.clone().payable_within(2_016);
    let mut long = invitation(FactoryPlan {
        network: Network::Bitcoin,
        timing: Timing::mainnet(2),
        expiry: TIP + 5_808,
        ..plan(4)
    });
    long.header.timing = Timing::conservative(2);
    let too_long = Some((RefusalCode::Limits, "exit_delay"));
    assert_eq!(refused_by(&standard, long.clone()), too_long);
    // The budget is 1,616 blocks.
    let short = standard.payable_within(1_615);
    assert_eq!(refused_by(&short, long.clone()), too_long);
    assert_eq!(
        refused_by(&raised.clone().payable_within(1_616), long.clone()),
        None
    );
    assert_eq!(
        raised.clone().payable_within(u32::MAX),
        raised,
        "no route is longer"
    );

    let mut reclaimed = long;
    reclaimed.header.policy = TimeoutPolicy::LspReclaims;
    let refused = Some((RefusalCode::Limits, "policy"));
    assert_eq!(refused_by(&raised, reclaimed.clone()), refused);
    let both = WalletLimits {
        policies: vec![TimeoutPolicy::LspReclaims],
        ..raised
    };
    assert_eq!(refused_by(&both, reclaimed.clone()), None);
    // 708 blocks to leave, six steps of 144 to notice.
    reclaimed.header.expiry = TIP + 708 + 864;
    let refused = Some((RefusalCode::Limits, "expiry"));
    assert_eq!(refused_by(&both, reclaimed.clone()), refused);
    reclaimed.header.expiry += 1;
    assert_eq!(refused_by(&both, reclaimed), None);
}

/// On every chain where coins may be worth something the least delays are real ones.
#[test]
fn a_member_refuses_delays_too_short_for_a_real_chain() {
    let on = |network, timing: Timing| FactoryPlan {
        network,
        timing,
        expiry: TIP + 5_808,
        ..plan(4)
    };
    let real = [
        Network::Bitcoin,
        Network::Testnet,
        Network::Testnet4,
        Network::Signet,
    ];
    for network in real {
        let limits = WalletLimits::standard(network);
        let honest = invitation(on(network, Timing::mainnet(2)));
        assert_eq!(refused_by(&limits, honest.clone()), None, "{network}");
        for (name, forge, code, field) in tables::real_invites() {
            let mut invite = honest.clone();
            forge(&mut invite);
            let met = refused_by(&limits, invite);
            assert_eq!(met, Some((code, field)), "{network}: {name}");
        }
        let mut regtest = honest;
        regtest.header.timing = Timing::regtest(2);
        assert!(refused_by(&limits, regtest).is_some(), "{network}");
    }
    let limits = WalletLimits::standard(Network::Regtest);
    let honest = invitation(on(Network::Regtest, Timing::mainnet(2)));
    for (name, forge, ..) in tables::real_invites() {
        let mut invite = honest.clone();
        forge(&mut invite);
        assert_eq!(refused_by(&limits, invite), None, "{name}");
    }
}

#[test]
fn a_member_refuses_signatures_and_identities_that_are_not_its_own() {
    use RefusalCode::{Signature, Unexpected};
    let rows = tables::node_sigs();
    let (mut world, honest) = world_before(Party::Lsp, Party::Member(VICTIM), NODE_SIGS);
    for (name, forge, code, field) in rows {
        let Message::NodeSigs(mut sigs) = honest.clone() else {
            unreachable!()
        };
        forge(&mut sigs);
        member_refuses(name, &mut world, sigs.into(), code, field);
    }
    let attempt = world.plan.attempt;
    let identity = Identity {
        attempt,
        protocol: member::PROTOCOL,
        slot: VICTIM,
        blocks_early: world.plan.timing.blocks_early,
    };
    let early = ("identity before signatures", "factory_instance");
    member_refuses(early.0, &mut world, identity.into(), Unexpected, early.1);
    let signature = match &honest {
        Message::NodeSigs(sigs) => sigs.signatures[0],
        _ => unreachable!(),
    };
    let early = RootSig { attempt, signature };
    member_refuses(
        "root before all",
        &mut world,
        early.into(),
        Unexpected,
        "signature",
    );
    completes("node signatures", world);

    let rows = tables::identities();
    let (mut world, honest) = world_before(Party::Lsp, Party::Member(VICTIM), IDENTITY);
    for (name, forge, code, field) in rows {
        let Message::Identity(mut identity) = honest.clone() else {
            unreachable!()
        };
        forge(&mut identity);
        member_refuses(name, &mut world, identity.into(), code, field);
    }
    completes("identity", world);

    let rows = tables::root_sigs();
    let (mut world, honest) = world_before(Party::Lsp, Party::Member(VICTIM), ROOT_SIG);
    for (name, forge, code, field) in rows {
        let Message::RootSig(mut sig) = honest.clone() else {
            unreachable!()
        };
        forge(&mut sig);
        member_refuses(name, &mut world, sig.into(), code, field);
    }
    // A valid signature, but of another transaction of the same path.
    let signature = world.lsp.as_ref().unwrap().built().unwrap().signatures[0];
    let other = RootSig { attempt, signature };
    member_refuses(
        "of the root state",
        &mut world,
        other.into(),
        Signature,
        "signature",
    );
    completes("root signature", world);
}

/// Once a member has signed, other terms cannot make its nonces sign again; the same terms are
/// answered with the same bytes.
#[test]
fn nonces_sign_one_set_of_terms() {
    let (mut world, honest) = world_before(Party::Lsp, Party::Member(VICTIM), TERMS);
    let member = world.members.get_mut(&VICTIM).unwrap();
    let first = member.handle(member::Input::Message(honest.clone()));
    let Some(Effect::Send { message, .. }) = first.get(1) else {
        panic!("the partial signatures leave after the record: {first:?}")
    };
    let again = member.handle(member::Input::Message(honest.clone()));
    assert!(matches!(&again[..], [Effect::Send { message: m, .. }] if m == message));
    let Message::Terms(mut other) = honest else {
        unreachable!()
    };
    other.funding.vout += 1;
    let code = RefusalCode::Unexpected;
    member_refuses(
        "other terms",
        &mut world,
        other.clone().into(),
        code,
        "terms",
    );
    other.funding.vout -= 1;
    other.nonces.reverse();
    member_refuses("other nonces", &mut world, other.into(), code, "terms");
    world.act(Party::Member(VICTIM), first);
    // The Terms still on their way are the same ones.
    completes("nonces", world);
}

/// What one member cannot see because it concerns others: it signs, but nothing comes of it. The
/// sighash or the tweak differs, so its partial signatures do not fit the others'.
#[test]
fn different_terms_for_different_members_never_aggregate() {
    let rows = tables::unseen_terms();
    for (name, forge) in rows {
        let mut world = World::new(4);
        world.tamper = Box::new(move |_, message| match message {
            Message::Terms(mut terms) if terms.facts.slot == VICTIM => {
                forge(&mut terms);
                Some(terms.into())
            }
            other => Some(other),
        });
        world.run();
        assert!(world.broadcast.is_empty(), "{name}");
        assert_eq!(at_fault(&world), Some(vec![VICTIM]), "{name}");
        assert!(world.agreed.is_empty(), "{name}: no channel was agreed to");
        assert!(
            world.members.values().all(|m| m.ended().is_some()),
            "{name}"
        );
        assert_eq!(world.released.len(), 1, "{name}");
    }
}

#[test]
fn without_the_root_signature_there_is_no_factory() {
    let mut world = World::new(4);
    world.tamper = Box::new(|_, message| match message {
        Message::RootSig(_) => None,
        other => Some(other),
    });
    world.run();
    // The LSP publishes the funding all the same, and it is buried.
    let funding = world.lsp.as_ref().unwrap().built().unwrap().funding.clone();
    world.broadcast.push(funding);
    world.confirm_funding(TIP + 1);
    for member in world.members.values_mut() {
        assert_eq!(member.phase(), "committed");
        assert!(member.path().is_none() && !member.is_active());
        // A round too long changes nothing: the LSP may still complete.
        assert_eq!(member.handle(member::Input::TimedOut), []);
    }
    assert!(world.activated.is_empty());
    // Nor does a refusal: `dormant.rs` says what is kept then.
    let refused = Refusal {
        attempt: world.plan.attempt,
        code: RefusalCode::Silence,
        field: String::new(),
    };
    for member in world.members.values_mut() {
        let effects = member.handle(member::Input::Message(refused.clone().into()));
        assert!(matches!(
            effects[..],
            [
                Effect::Persist(Record::Dormant(_)),
                Effect::Emit(Event::Dormant { .. })
            ]
        ));
        assert!(member.ended().is_none() && member.tree().is_some());
    }
}

/// Lets the LSP send `forged` to the victim, expects this refusal and nothing else to happen.
fn member_refuses(
    name: &str,
    world: &mut World,
    forged: Message,
    code: RefusalCode,
    field: &'static str,
) {
    let member = world.members.get_mut(&VICTIM).unwrap();
    let phase = member.phase();
    let effects = member.handle(member::Input::Message(forged));
    let met = refusal(&effects).map(|(_, code, field)| (code, field));
    assert_eq!(met, Some((code, field)), "{name}: {effects:?}");
    assert_eq!(member.phase(), phase, "{name}");
}

/// Flips one bit, so that the bytes are still of the right length.
pub(crate) fn flip(signature: &schnorr::Signature) -> schnorr::Signature {
    let mut bytes = signature.serialize();
    bytes[40] ^= 1;
    schnorr::Signature::from_slice(&bytes).unwrap()
}

/// After a reconnect the LSP repeats what it thinks was lost: heard twice, it changes nothing.
#[test]
fn what_is_said_again_changes_nothing() {
    let (mut world, _) = world_before(Party::Lsp, Party::Member(VICTIM), ROOT_SIG);
    let mut said: Vec<Message> = Vec::new();
    let mut whole = World::new(4);
    whole.run();
    let own = |message: &Message| match message {
        Message::Invite(invite) => invite.slot == VICTIM,
        Message::Terms(terms) => terms.facts.slot == VICTIM,
        Message::Identity(identity) => identity.slot == VICTIM,
        _ => false,
    };
    for (from, message) in &whole.log {
        if *from == Party::Lsp && own(message) {
            said.push(message.clone());
        }
    }
    let attempt = world.plan.attempt;
    let path = whole.members[&VICTIM].path().unwrap();
    let (root, rest) = path.signatures.split_last().unwrap();
    let (signature, signatures) = (*root, rest.to_vec());
    said.push(
        NodeSigs {
            attempt,
            signatures,
        }
        .into(),
    );
    assert_eq!(said.len(), 4);
    for phase in ["committed", "funding"] {
        let member = world.members.get_mut(&VICTIM).unwrap();
        assert_eq!(member.phase(), phase);
        for message in &said {
            let effects = member.handle(member::Input::Message(message.clone()));
            assert_eq!(effects, [], "{phase}: {message:?}");
        }
        assert_eq!(member.phase(), phase);
        world.deliver();
    }
    let member = world.members.get_mut(&VICTIM).unwrap();
    let root = RootSig { attempt, signature };
    let effects = member.handle(member::Input::Message(root.into()));
    let ack = Message::from(RootAck { attempt });
    assert!(matches!(&effects[..], [Effect::Send { message, .. }] if *message == ack));
    completes("said again", world);
}
