//! Every field of the terms of any factory, changed at random by the LSP for one member: either the
//! member refuses and names the field, or the change concerns others only, and then what the member
//! signs fits nobody else's signatures. No field can be added without a row here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use std::collections::BTreeSet;

use bitcoin::{Amount, Network, OutPoint, TxOut};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use superscalar_factory::codec::Decode as _;
use superscalar_factory::coordinator::FactoryPlan;
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::{Attempt, Message, RefusalCode, TermsMessage};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::{
    FeeRules, Header, Instance, RecordProof, SlotRecord, TimeoutPolicy,
};
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

/// What a member does about a change.
#[derive(Debug, Clone, PartialEq)]
enum Meets {
    /// A refusal with one of these fields.
    Refusal(RefusalCode, &'static [&'static str]),
    /// Only others can see it: signatures that fit nobody's.
    NoSignature,
    /// Either, as the value may be impossible in itself.
    Both(&'static [&'static str]),
    /// What others are paid by distributions, of which there are none: only the impossible is
    /// noticed.
    Unused(&'static [&'static str]),
}

fn rows() -> Vec<&'static str> {
    let mut rows = all_fields();
    rows.retain(|field| !WHOLES.contains(field) && *field != SINGLE_VALUED);
    rows.extend(LEAF_PARTS);
    rows
}

/// Any other number of the same type.
macro_rules! other {
    ($rng:expr, $place:expr) => {{
        let old = $place.clone();
        while $place == old {
            $place = $rng.r#gen();
        }
    }};
}

/// Changes `field` to some other value. A row that is missing fails the test that counts them.
fn change(field: &str, rng: &mut StdRng, t: &mut TermsMessage) -> Option<Meets> {
    use Meets::{Both, NoSignature, Refusal, Unused};
    use RefusalCode::{Nonce, Terms, Unknown};
    let own = usize::from(t.facts.slot);
    let own_outputs = own_outputs(t);
    let (header, facts) = (&mut t.header, &mut t.facts);
    let timing = Refusal(Terms, &["timing"]);
    let someone = key("someone", rng.r#gen());
    Some(match field {
        "attempt.instance" => {
            t.attempt.instance = Instance(rng.r#gen());
            Refusal(Unknown, &["attempt"])
        }
        "attempt.number" => {
            other!(rng, t.attempt.number);
            Refusal(Unknown, &["attempt"])
        }
        "header.instance" => {
            header.instance = Instance(rng.r#gen());
            Refusal(Terms, &["instance"])
        }
        "header.attempt" => {
            other!(rng, header.attempt);
            Refusal(Terms, &["attempt"])
        }
        "header.version" => {
            other!(rng, header.version);
            Refusal(Terms, &["version"])
        }
        "header.network" => {
            let others = [Network::Bitcoin, Network::Testnet4, Network::Signet];
            header.network = others[rng.gen_range(0..3)];
            Refusal(Terms, &["network"])
        }
        "header.lsp_key" => {
            header.lsp_key = someone;
            Refusal(Terms, &["lsp_key"])
        }
        "header.lsp_payout" => {
            header.lsp_payout = payout(rng.gen_range(100..u64::MAX));
            Refusal(Terms, &["lsp_payout"])
        }
        "header.shape.arity" => {
            other!(rng, header.shape.arity[0]);
            Refusal(Terms, &["shape"])
        }
        "header.shape.members_per_leaf" => {
            other!(rng, header.shape.members_per_leaf);
            Refusal(Terms, &["shape"])
        }
        "header.timing.states" => {
            other!(rng, header.timing.states);
            timing
        }
        "header.timing.step" => {
            other!(rng, header.timing.step);
            timing
        }
        "header.timing.confirm_margin" => {
            other!(rng, header.timing.confirm_margin);
            timing
        }
        "header.timing.max_sales" => {
            other!(rng, header.timing.max_sales);
            timing
        }
        "header.timing.distribution_margin" => {
            other!(rng, header.timing.distribution_margin);
            timing
        }
        "header.timing.lsp_to_self_delay" => {
            other!(rng, header.timing.lsp_to_self_delay);
            timing
        }
        "header.timing.member_to_self_delay" => {
            other!(rng, header.timing.member_to_self_delay);
            timing
        }
        "header.timing.stock_csv" => {
            other!(rng, header.timing.stock_csv);
            timing
        }
        "header.timing.min_depth" => {
            other!(rng, header.timing.min_depth);
            timing
        }
        "header.timing.blocks_early" => {
            other!(rng, header.timing.blocks_early);
            timing
        }
        "header.expiry" => {
            other!(rng, header.expiry);
            Refusal(Terms, &["expiry"])
        }
        "header.tree_feerate" => {
            other!(rng, header.tree_feerate);
            Refusal(Terms, &["tree_feerate"])
        }
        "header.policy" => {
            header.policy = match header.policy {
                TimeoutPolicy::LspReclaims => TimeoutPolicy::MembersReclaim,
                _ => TimeoutPolicy::LspReclaims,
            };
            Refusal(Terms, &["policy"])
        }
        "facts.keys" => {
            let slot = rng.gen_range(0..facts.keys.len());
            match rng.gen_range(0..4) {
                0 => {
                    facts.keys.remove(slot);
                    Refusal(Terms, &["keys"])
                }
                1 => {
                    facts.keys.insert(slot, someone);
                    Refusal(Terms, &["keys"])
                }
                2 => {
                    let from = (slot + 1) % facts.keys.len();
                    facts.keys[slot] = facts.keys[from];
                    Refusal(Terms, &["member_key", "keys"])
                }
                _ => {
                    facts.keys[slot] = someone;
                    match slot == own {
                        true => Refusal(Terms, &["keys"]),
                        false => NoSignature,
                    }
                }
            }
        }
        "facts.slot" => {
            other!(rng, facts.slot);
            Refusal(Terms, &["slot"])
        }
        "facts.record.member_key" => {
            facts.record.member_key = someone;
            Refusal(Terms, &["member_key"])
        }
        "facts.record.capacity" => {
            let old = facts.record.capacity;
            while facts.record.capacity == old {
                facts.record.capacity = amount(rng);
            }
            Refusal(Terms, &["capacity"])
        }
        "facts.record.push_msat" => {
            other!(rng, facts.record.push_msat);
            Refusal(Terms, &["push_msat"])
        }
        "facts.record.stock" => {
            facts.record.stock = amount(rng);
            Refusal(Terms, &["stock"])
        }
        "facts.record.payout" => {
            facts.record.payout = payout(rng.gen_range(100..u64::MAX));
            Refusal(Terms, &["payout"])
        }
        "facts.record.member_funding_key" => {
            facts.record.member_funding_key = someone;
            Refusal(Terms, &["member_funding_key"])
        }
        // These two are the LSP's to choose; what follows from them is the own leaf output.
        "facts.record.lsp_funding_key" => {
            facts.record.lsp_funding_key = someone;
            Refusal(Terms, &["leaf_outputs"])
        }
        "facts.record.stock_hash" => {
            other!(rng, facts.record.stock_hash);
            Refusal(Terms, &["leaf_outputs"])
        }
        "facts.record.member_revocation_key" => {
            facts.record.member_revocation_key = someone.x_only_public_key().0;
            Refusal(Terms, &["member_revocation_key"])
        }
        "facts.proof.siblings" => {
            let siblings = &mut facts.proof.siblings;
            let at = rng.gen_range(0..siblings.len());
            match rng.gen_range(0..3) {
                0 => {
                    siblings.remove(at);
                    Refusal(Terms, &["proof"])
                }
                1 => {
                    siblings.insert(at, rng.r#gen());
                    Refusal(Terms, &["proof"])
                }
                _ => {
                    other!(rng, siblings[at]);
                    NoSignature
                }
            }
        }
        "facts.siblings" => match rng.gen_range(0..4) {
            0 => {
                facts.siblings.clear();
                Refusal(Terms, &["siblings"])
            }
            1 => {
                facts.siblings.push((NodeId(rng.r#gen()), amount(rng)));
                Refusal(Terms, &["siblings"])
            }
            2 => {
                other!(rng, facts.siblings[0].0.0);
                Refusal(Terms, &["siblings"])
            }
            _ => {
                facts.siblings[0].1 = amount(rng);
                Both(&["siblings", "payouts"])
            }
        },
        "facts.leaf_outputs.value" => {
            let at = rng.gen_range(0..facts.leaf_outputs.len());
            facts.leaf_outputs[at].value = amount(rng);
            match own_outputs.contains(&at) {
                true => Refusal(Terms, &["leaf_outputs"]),
                false => Both(&["leaf_outputs", "payouts", "siblings"]),
            }
        }
        "facts.leaf_outputs.script_pubkey" => {
            let at = rng.gen_range(0..facts.leaf_outputs.len());
            facts.leaf_outputs[at].script_pubkey = payout(rng.gen_range(100..u64::MAX));
            match own_outputs.contains(&at) {
                true => Refusal(Terms, &["leaf_outputs"]),
                false => NoSignature,
            }
        }
        "facts.payouts.value" => {
            let at = rng.gen_range(0..facts.payouts.len());
            facts.payouts[at].value = amount(rng);
            match (at == own, header.policy) {
                (true, _) => Refusal(Terms, &["payouts"]),
                (_, TimeoutPolicy::LspReclaims) => Unused(&["payouts"]),
                _ => Both(&["payouts"]),
            }
        }
        "facts.payouts.script_pubkey" => {
            let at = rng.gen_range(0..facts.payouts.len());
            facts.payouts[at].script_pubkey = payout(rng.gen_range(100..u64::MAX));
            match (at == own, header.policy) {
                (true, _) => Refusal(Terms, &["payouts"]),
                (_, TimeoutPolicy::LspReclaims) => Unused(&[]),
                _ => NoSignature,
            }
        }
        "funding.txid" => {
            t.funding.txid = bitcoin::hashes::Hash::from_byte_array(rng.r#gen());
            NoSignature
        }
        "funding.vout" => {
            other!(rng, t.funding.vout);
            NoSignature
        }
        "nonces" => {
            let at = rng.gen_range(0..t.nonces.len());
            match rng.gen_range(0..3) {
                0 => {
                    t.nonces.remove(at);
                    Refusal(Nonce, &["nonces"])
                }
                1 => {
                    // Not the prefix of a point.
                    t.nonces[at][33] = rng.gen_range(4..=255);
                    Refusal(Nonce, &["nonces"])
                }
                _ => {
                    // The root kickoff's, last, is used later.
                    t.nonces.swap(0, 1);
                    NoSignature
                }
            }
        }
        _ => return None,
    })
}

/// Which outputs of the leaf are the member's: its channel and its stock.
fn own_outputs(t: &TermsMessage) -> [usize; 2] {
    let topology = t.header.shape.topology(t.facts.keys.len()).unwrap();
    let leaf = topology.path(t.facts.slot).pop().unwrap();
    let slots = &topology.node(leaf).slots;
    let channel = usize::from(t.facts.slot - slots.start);
    [channel, slots.len() + channel]
}

/// Any amount of any size, never the ones of the plan.
fn amount(rng: &mut StdRng) -> Amount {
    let bits = rng.gen_range(1..51);
    let sat = rng.gen_range(0..Amount::MAX_MONEY.to_sat()) >> (51 - bits);
    Amount::from_sat(if sat % 1_000 == 0 { sat + 1 } else { sat })
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

/// Factories of 2 to 9 members on two or three layers, under either policy, each member with a
/// place of another size, and which of them is lied to.
fn factories() -> impl Strategy<Value = (FactoryPlan, u16)> {
    let shape = (prop::collection::vec(2u8..=3, 1..=2), 1u8..=3);
    let shape = shape.prop_map(|(arity, members_per_leaf)| Shape {
        arity,
        members_per_leaf,
    });
    let sized = shape.prop_flat_map(|shape| {
        let leaves: u16 = shape.arity.iter().copied().map(u16::from).product();
        let leaf = u16::from(shape.members_per_leaf);
        // More than one leaf carries, or the tree would have one layer.
        let members = (leaf + 1).max(2)..=(leaves * leaf).min(9);
        (Just(shape), members)
    });
    let policies = [TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims];
    let policy = prop::sample::select(policies.to_vec());
    (sized, policy, any::<prop::sample::Index>()).prop_map(|((shape, members), policy, victim)| {
        let mut plan = world::plan(members);
        plan.timing = Timing::regtest(shape.layers());
        (plan.shape, plan.policy) = (shape, policy);
        for (seat, more) in plan.seats.iter_mut().zip((0..).step_by(10_000)) {
            seat.capacity += Amount::from_sat(more);
            seat.stock += Amount::from_sat(more);
        }
        let victim = victim.index(plan.seats.len()) as u16;
        (plan, victim)
    })
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
                prop_assert!(!matches!(meets, Meets::Refusal(..)), "{} is accepted", field);
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
    }
}
