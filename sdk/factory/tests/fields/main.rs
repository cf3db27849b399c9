//! Every field of the terms of any factory, changed at random by the LSP for one member: either the
//! member refuses and names the field, or the change concerns others only, and then what the member
//! signs fits nobody else's signatures. No field can be added without a row here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod changes;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use bitcoin::{Amount, Network, OutPoint, TxOut};
use changes::{Meets, change};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use rand::{SeedableRng as _, rngs::StdRng};
use superscalar_factory::codec::Decode as _;
use superscalar_factory::coordinator::FactoryPlan;
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::{Attempt, Message, RefusalCode, TermsMessage};
use superscalar_factory::shape::{Odometer, Shape};
use superscalar_factory::terms::{FeeRules, Header, RecordProof, SlotRecord, TimeoutPolicy};
use superscalar_factory::timing::Timing;
use superscalar_factory::tree::PathFacts;
use world::{Party, World, key, payout};

/// The names of all fields of these structs, which the compiler compares with their declarations.
macro_rules! fields {
    ($($name:ident as $prefix:literal { $($field:ident),* $(,)? })*) => {
        /// Every leaf of the terms, by path.
        fn all_fields() -> Vec<&'static str> {
            $(
                #[allow(unused_variables)]
                fn $name(value: &types::$name) {
                    let types::$name { $($field),* } = value;
                }
                let _ = $name;
            )*
            vec![$($(concat!($prefix, stringify!($field))),*),*]
        }
    };
}

#[allow(
    non_camel_case_types,
    reason = "named as the functions the macro makes of them"
)]
mod types {
    pub(crate) type terms = super::TermsMessage;
    pub(crate) type attempt = super::Attempt;
    pub(crate) type header = super::Header;
    pub(crate) type shape = super::Shape;
    pub(crate) type timing = super::Timing;
    pub(crate) type facts = super::PathFacts;
    pub(crate) type record = super::SlotRecord;
    pub(crate) type proof = super::RecordProof;
    pub(crate) type outpoint = super::OutPoint;
    pub(crate) type output = super::TxOut;
}

fields! {
    terms as "" { attempt, header, facts, funding, nonces }
    attempt as "attempt." { instance, number }
    header as "header." {
        instance, attempt, version, network, lsp_key, lsp_payout, shape, timing, expiry,
        tree_feerate, policy, fee_rules,
    }
    shape as "header.shape." { arity, members_per_leaf }
    timing as "header.timing." {
        states, step, confirm_margin, max_sales, distribution_margin, lsp_to_self_delay,
        member_to_self_delay, stock_csv, min_depth, blocks_early,
    }
    facts as "facts." { keys, slot, record, proof, siblings, leaf_outputs, payouts }
    record as "facts.record." {
        member_key, capacity, push_msat, stock, payout, member_funding_key, lsp_funding_key,
        stock_hash, member_revocation_key,
    }
    proof as "facts.proof." { siblings }
    outpoint as "funding." { txid, vout }
    output as "facts.payouts." { value, script_pubkey }
}

/// Fields whose parts have rows of their own.
const WHOLES: [&str; 10] = [
    "attempt",
    "header",
    "header.shape",
    "header.timing",
    "facts",
    "facts.record",
    "facts.proof",
    "facts.payouts",
    "facts.leaf_outputs",
    "funding",
];
/// Has one value until pools exist: any other does not decode.
const SINGLE_VALUED: &str = "header.fee_rules";
/// Parts of `leaf_outputs`, which are outputs as payouts are.
const LEAF_PARTS: [&str; 2] = [
    "facts.leaf_outputs.value",
    "facts.leaf_outputs.script_pubkey",
];

fn rows() -> Vec<&'static str> {
    let mut rows = all_fields();
    rows.retain(|field| !WHOLES.contains(field) && *field != SINGLE_VALUED);
    rows.extend(LEAF_PARTS);
    rows
}

#[test]
fn every_field_of_the_terms_has_a_row() {
    let (_, honest) = asked(world::plan(4), 1);
    let mut changed = BTreeSet::new();
    for field in rows() {
        for seed in 0..8 {
            let mut terms = honest.clone();
            let meets = change(field, &mut StdRng::seed_from_u64(seed), &mut terms);
            assert!(meets.is_some(), "no row for {field}");
            assert_ne!(terms, honest, "{field} is not changed");
        }
        changed.insert(field);
    }
    // Counted by hand: 2 of the attempt, 9 + 2 + 10 of the header, 3 + 9 + 1 + 4 of the facts,
    // 2 of the funding, the nonces.
    assert_eq!(changed.len(), 43);
    for other in 1..=u8::MAX {
        assert!(FeeRules::from_bytes(&[other], SINGLE_VALUED).is_err());
    }
}

/// No delay an LSP can offer is unbounded: at both ends of its type each is refused by a name that
/// says what was wrong, or is harmless to the member and says so here.
#[test]
fn every_delay_of_an_invitation_has_bounds() {
    let harmless = ["max_sales/least"];
    let mut plan = world::plan(4);
    plan.network = Network::Bitcoin;
    plan.timing = Timing::mainnet(plan.shape.layers());
    plan.expiry = world::TIP + 5_808;
    let mut world = World::with(plan);
    world.start();
    let to_victim = |_, to, m: &Message| to == Party::Member(1) && m.number() == 2;
    let Some(Message::Invite(honest)) = world.deliver_until(to_victim) else {
        panic!("no invitation")
    };
    for field in all_fields() {
        let Some(field) = field.strip_prefix("header.timing.") else {
            continue;
        };
        for end in ["least", "greatest"] {
            let mut invite = honest.clone();
            set(&mut invite.header.timing, field, end == "greatest");
            let joined = Member::join(
                key("node", 0),
                invite,
                &WalletLimits::standard(Network::Bitcoin),
                JoinSecrets {
                    seed: &[1; 32],
                    salt: [2; 32],
                    nonce_randomness: [3; 32],
                },
                payout(1),
                key("member funding", 1),
                world::TIP,
            );
            let named = joined.err().map(|refused| refused.field);
            let row = format!("{field}/{end}");
            // A greater delay may make the whole too slow first.
            let whole = ["timing", "exit_delay", "distribution_margin"];
            match named {
                None => assert!(harmless.contains(&row.as_str()), "{row} is accepted"),
                Some(named) => assert!(named == field || whole.contains(&named), "{row}: {named}"),
            }
        }
    }
}

/// Sets one delay to the end of its type.
fn set(timing: &mut Timing, field: &str, greatest: bool) {
    let byte = if greatest { u8::MAX } else { 0 };
    let word = if greatest { u16::MAX } else { 0 };
    match field {
        "states" => timing.states = byte,
        "step" => timing.step = word,
        "confirm_margin" => timing.confirm_margin = word,
        "max_sales" => timing.max_sales = byte,
        "distribution_margin" => timing.distribution_margin = word,
        "lsp_to_self_delay" => timing.lsp_to_self_delay = word,
        "member_to_self_delay" => timing.member_to_self_delay = word,
        "stock_csv" => timing.stock_csv = word,
        "min_depth" => timing.min_depth = word,
        "blocks_early" => timing.blocks_early = word,
        _ => panic!("no row for {field}"),
    }
    if field != "blocks_early" {
        *timing = timing.clone().with_least_blocks_early(2);
    }
}

/// A world in which this member is about to be told the terms.
fn asked(plan: FactoryPlan, victim: u16) -> (World, TermsMessage) {
    let mut world = World::with(plan);
    world.start();
    let to_victim = |_, to, m: &Message| to == Party::Member(victim) && m.number() == 5;
    match world.deliver_until(to_victim) {
        Some(Message::Terms(terms)) => (world, terms),
        other => panic!("no terms: {other:?}"),
    }
}

const POLICIES: [TimeoutPolicy; 2] = [TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims];

/// Factories of 2 to 9 members on one to three layers of two or three states, under either policy,
/// each member with a place of another size, and which of them is lied to.
fn factories() -> impl Strategy<Value = (FactoryPlan, u16)> {
    let shape = (prop::collection::vec(2u8..=3, 0..=2), 1u8..=3);
    let shape = shape.prop_map(|(arity, most)| Shape {
        // A root that is a leaf holds everyone.
        members_per_leaf: match arity.is_empty() {
            true => most.max(2),
            false => most,
        },
        arity,
    });
    let sized = shape.prop_flat_map(|shape| {
        let leaves: u16 = shape.arity.iter().copied().map(u16::from).product();
        let leaf = u16::from(shape.members_per_leaf);
        let least = match shape.arity.is_empty() {
            true => 2,
            // More than one leaf carries, or the tree would have one layer.
            false => leaf + 1,
        };
        (Just(shape), least..=(leaves * leaf).min(9))
    });
    let drawn = (
        sized,
        2u8..=3,
        prop::sample::select(POLICIES.to_vec()),
        any::<prop::sample::Index>(),
    );
    drawn.prop_map(|((shape, members), states, policy, victim)| {
        let mut plan = world::plan(members);
        let layers = shape.layers();
        plan.timing = Timing {
            states,
            ..Timing::regtest(layers)
        }
        .with_least_blocks_early(layers);
        (plan.shape, plan.policy) = (shape, policy);
        for (seat, more) in plan.seats.iter_mut().zip((0..).step_by(10_000)) {
            seat.capacity += Amount::from_sat(more);
            seat.stock += Amount::from_sat(more);
        }
        let victim = victim.index(plan.seats.len()) as u16;
        (plan, victim)
    })
}

/// The generator is no narrower than it says.
#[test]
fn the_generator_reaches_every_policy_and_shape() {
    let mut runner = TestRunner::deterministic();
    let strategy = factories();
    let (mut shapes, mut odometers) = (BTreeSet::new(), BTreeSet::new());
    let mut sizes = BTreeSet::new();
    for _ in 0..512 {
        let (plan, victim) = strategy.new_tree(&mut runner).unwrap().current();
        let topology = plan.shape.topology(plan.seats.len()).unwrap();
        let path = topology.path(victim);
        let alone = topology.node(path[path.len() - 1]).slots.len() == 1;
        let position = POLICIES.iter().position(|policy| *policy == plan.policy);
        shapes.insert((position.unwrap(), path.len(), alone));
        odometers.insert(Odometer::new(plan.timing.states, path.len() as u8).versions());
        sizes.insert(plan.seats.len());
    }
    // How many layers the victim's path has, and whether it is alone in its leaf: with one layer
    // nobody is.
    let kinds = [(1, false), (2, false), (2, true), (3, false), (3, true)];
    let every =
        (0..POLICIES.len()).flat_map(|policy| kinds.map(|(layers, alone)| (policy, layers, alone)));
    assert_eq!(shapes, every.collect::<BTreeSet<_>>());
    // Two states and three, on one, two and three layers.
    assert_eq!(odometers, BTreeSet::from([2, 4, 8, 3, 9, 27]));
    assert_eq!(sizes, (2..=9).collect::<BTreeSet<_>>());
}

/// Whichever rows and policies are drawn below, each row meets each policy here.
#[test]
fn every_row_is_run_under_either_policy() {
    for policy in POLICIES {
        for (seed, field) in (0..).zip(rows()) {
            let mut plan = world::plan(4);
            plan.policy = policy;
            let run = told_otherwise(field, seed, plan, 1);
            run.unwrap_or_else(|error| panic!("{field} under {policy:?}: {error}"));
        }
    }
}

/// Tells one member terms of which `field` is changed, and checks that it meets what it should.
fn told_otherwise(
    field: &str,
    seed: u64,
    plan: FactoryPlan,
    victim: u16,
) -> Result<(), TestCaseError> {
    let (mut world, honest) = asked(plan, victim);
    let mut terms = honest.clone();
    let meets = change(field, &mut StdRng::seed_from_u64(seed), &mut terms).unwrap();
    let member = world.members.get_mut(&victim).unwrap();
    let effects = member.handle(member::Input::Message(terms.into()));
    let refused = effects.iter().find_map(|effect| match effect {
        Effect::Emit(Event::Refused { code, field, .. }) => Some((*code, field.clone())),
        _ => None,
    });
    let (code, fields) = match &meets {
        Meets::Refusal(code, fields) => (*code, *fields),
        Meets::Both(fields) | Meets::Unused(fields) => (RefusalCode::Terms, *fields),
        Meets::NoSignature => (RefusalCode::Terms, &[][..]),
    };
    match refused {
        Some((met, name)) => {
            prop_assert_eq!(met, code, "{}", name);
            prop_assert!(fields.contains(&name.as_str()), "{} named {}", field, name);
            prop_assert_eq!(member.phase(), "joined");
        }
        None => {
            prop_assert!(
                !matches!(meets, Meets::Refusal(..)),
                "{} is accepted",
                field
            );
            // It signs. The Terms that are still to come are passed over: they are others.
            world.inbox.pop_front();
            world.act(Party::Member(victim), effects);
            world.deliver();
            if matches!(meets, Meets::Unused(_)) {
                prop_assert_eq!(world.broadcast.len(), 1, "{} is used", field);
                return Ok(());
            }
            prop_assert!(world.broadcast.is_empty());
            let lsp = world.lsp.as_ref().unwrap();
            prop_assert_eq!(lsp.ended(), Some(RefusalCode::Signature), "{}", field);
            return Ok(());
        }
    }
    // Nothing was spent on the forgery.
    world.deliver();
    prop_assert_eq!(world.broadcast.len(), 1, "{}", field);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn a_changed_field_is_refused_or_gives_no_signature(
        field in prop::sample::select(rows()),
        seed in any::<u64>(),
        (plan, victim) in factories(),
    ) {
        told_otherwise(field, seed, plan, victim)?;
    }
}
