//! Strategies for valid terms: every policy, 2 to 128 members, 1 to 8 state layers, with and
//! without stock. Small factories come more often, because they are signed as a whole.

use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, Network, ScriptBuf, WPubkeyHash, WScriptHash};
use proptest::prelude::*;
use superscalar_factory::scripts;
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::{
    FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy,
};
use superscalar_factory::timing::Timing;

use super::{Parties, point, record};

/// Most members of one leaf with stock: channel and stock outputs of more exceed 10,000 vB.
const MAX_STOCK_LEAF: u8 = 112;
/// `2·exit_delay + 200 ≤ 2016`.
const MAX_EXIT_DELAY: u32 = 908;

pub fn members() -> impl Strategy<Value = usize> {
    prop_oneof![
        60 => 2usize..=8,
        25 => 9usize..=32,
        10 => 33usize..=127,
        5 => Just(128usize),
    ]
}

/// A shape that carries `members`.
pub fn shape(members: usize) -> impl Strategy<Value = Shape> {
    let any_arity = prop::collection::vec(2u8..=12, 0..=7).prop_flat_map(move |arity| {
        let leaves: usize = arity.iter().map(|a| usize::from(*a)).product();
        let least = members.div_ceil(leaves);
        (Just(arity), least..=(least + 4).min(255))
    });
    prop_oneof![
        2 => Just(Shape::two_layers(members)),
        2 => Just(Shape::binary(members)),
        1 => Just(Shape { arity: Vec::new(), members_per_leaf: members as u8 }),
        1 => (2u8..=4).prop_map(move |arity| deepest(members, arity)),
        4 => any_arity.prop_map(|(arity, leaf)| Shape { arity, members_per_leaf: leaf as u8 }),
    ]
}

/// Seven inner levels, whether the members fill them or not.
fn deepest(members: usize, arity: u8) -> Shape {
    let leaves = usize::from(arity).pow(7);
    Shape {
        arity: vec![arity; 7],
        members_per_leaf: members.div_ceil(leaves) as u8,
    }
}

/// Delays that stay within the budget of a route.
pub fn timing(layers: u32) -> impl Strategy<Value = Timing> {
    (
        (1u8..=5, 1u16..=200, 0u16..=12, 0u8..=4),
        (1u16..=400, 144u16..=2016, 144u16..=2016, 144u16..=2016),
        (1u16..=144, 0u16..=60),
    )
        .prop_map(move |(race, csv, (min_depth, early))| {
            let (states, step, confirm_margin, max_sales) = race;
            let mut timing = Timing {
                states,
                step: 0,
                confirm_margin,
                max_sales,
                distribution_margin: csv.0,
                lsp_to_self_delay: csv.1,
                member_to_self_delay: csv.2,
                stock_csv: csv.3,
                min_depth,
                blocks_early: 0,
            };
            let races = layers * (u32::from(states) - 1);
            let most = (MAX_EXIT_DELAY - timing.exit_delay(layers)) / races.max(1);
            timing.step = step.min(most as u16).max(1);
            // Earlier than the least there is, as far as the budget leaves room for it.
            let room = 2 * (MAX_EXIT_DELAY - timing.exit_delay(layers));
            let early = early.min(room as u16);
            timing.blocks_early = timing.exit_delay(layers) as u16 + early;
            timing
        })
}

pub fn payout_script() -> impl Strategy<Value = ScriptBuf> {
    prop_oneof![
        any::<[u8; 20]>().prop_map(|h| ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array(h))),
        any::<[u8; 32]>().prop_map(|h| ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array(h))),
        any::<u64>().prop_map(|i| scripts::p2tr(point("payout", i).x_only_public_key().0)),
    ]
}

pub fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![
        1 => Just(1_000u64),
        6 => 1_000u64..=10_000_000,
        2 => 1_000u64..=100_000_000_000,
    ]
    .prop_map(Amount::from_sat)
}

/// What one member brings: capacity, pushed share in ppm, stock, payout, stock hash.
fn slot() -> impl Strategy<Value = (Amount, u64, Amount, ScriptBuf, [u8; 32])> {
    let stock = prop_oneof![1 => Just(Amount::ZERO), 1 => amount()];
    (
        amount(),
        0u64..=1_000_000,
        stock,
        payout_script(),
        any::<[u8; 32]>(),
    )
}

pub fn policy() -> impl Strategy<Value = TimeoutPolicy> {
    prop_oneof![
        Just(TimeoutPolicy::MembersReclaim),
        Just(TimeoutPolicy::LspReclaims)
    ]
}

/// Valid terms, and the keys that sign under them.
pub fn terms() -> impl Strategy<Value = Terms> {
    members().prop_flat_map(terms_of)
}

/// Valid terms of a factory with so many members.
pub fn terms_of(members: usize) -> impl Strategy<Value = Terms> {
    shape(members).prop_flat_map(move |shape| {
        (
            (Just(shape.clone()), timing(shape.layers()), policy()),
            (any::<[u8; 32]>(), any::<u16>(), payout_script(), network()),
            (1u32..1_000_000, feerate()),
            prop::collection::vec(slot(), members),
        )
            .prop_map(assemble)
    })
}

fn network() -> impl Strategy<Value = Network> {
    prop::sample::select(vec![Network::Bitcoin, Network::Signet, Network::Regtest])
}

fn feerate() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 5u32..=50, 1 => 5u32..=1_000]
}

type Header1 = (Shape, Timing, TimeoutPolicy);
type Header2 = ([u8; 32], u16, ScriptBuf, Network);
type Slot = (Amount, u64, Amount, ScriptBuf, [u8; 32]);

fn assemble(
    ((shape, timing, policy), (instance, attempt, lsp_payout, network), (expiry, feerate), slots): (
        Header1,
        Header2,
        (u32, u32),
        Vec<Slot>,
    ),
) -> Terms {
    let parties = Parties::new(slots.len());
    let stock_fits = shape.members_per_leaf <= MAX_STOCK_LEAF || slots.len() <= 64;
    let slots = slots.into_iter().enumerate();
    let slots = slots.map(
        |(slot, (capacity, ppm, stock, payout, stock_hash))| SlotRecord {
            capacity,
            push_msat: capacity.to_sat() * ppm / 1_000,
            stock: if stock_fits { stock } else { Amount::ZERO },
            payout,
            stock_hash,
            ..record(&parties, slot)
        },
    );
    let slots: Vec<SlotRecord> = slots.collect();
    Terms {
        header: Header {
            instance: Instance(instance),
            attempt,
            version: PROTOCOL_VERSION,
            network,
            lsp_key: parties.lsp_key(),
            lsp_payout,
            shape,
            timing,
            expiry,
            tree_feerate: feerate,
            policy,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots,
    }
}
