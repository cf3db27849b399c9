//! Children on anchors: what [`decide`] asks for under any market, coins, caps and siblings.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, FeeRate, OutPoint, Txid};
use proptest::prelude::*;
use superscalar_factory::exit::bump::{
    Allowance, Bump, BumpFacts, Child, Coin, FeeCaps, LEAST_CHANGE, MAX_CHILD_VSIZE_VB, Parent,
    Shortfall, Sibling, child_vsize_vb, decide, own_cost,
};

const ANCHOR_SAT: u64 = 240;

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

fn rate(sat_per_vb: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
}

fn coins(values: &[u64]) -> Vec<Coin> {
    let coin = |(vout, value): (usize, &u64)| Coin {
        outpoint: OutPoint::new(Txid::from_byte_array([3; 32]), vout as u32),
        value: sat(*value),
    };
    values.iter().enumerate().map(coin).collect()
}

/// A kickoff at 10 sat/vB that should pay 30 where the mempool takes 20.
fn facts(coins: &[Coin]) -> BumpFacts<'_> {
    BumpFacts {
        parent: Parent {
            fee: sat(1_240),
            vsize_vb: 124,
        },
        target: rate(30),
        minimum: rate(20),
        own: None,
        rival: None,
        coins,
        allowance: Allowance {
            feerate: rate(500),
            amount: sat(50_000),
        },
    }
}

fn made(bump: Bump) -> (Child, Option<Shortfall>) {
    match bump {
        Bump::Make(child, short) => (child, short),
        other => panic!("no child is made: {other:?}"),
    }
}

#[test]
fn a_transaction_that_pays_enough_goes_alone() {
    let owned = coins(&[100_000]);
    let facts = BumpFacts {
        target: rate(10),
        minimum: rate(10),
        ..facts(&owned)
    };
    assert_eq!(decide(&facts), Bump::NotNeeded);
    assert_eq!(own_cost(facts.parent, rate(10)), Amount::ZERO);
}

#[test]
fn one_coin_that_suffices_is_taken_and_the_smallest_of_those() {
    let owned = coins(&[90_000, 500, 20_000, 40_000]);
    let (child, short) = made(decide(&facts(&owned)));
    let fee = (124 + 153) * 30 - 1_240;
    assert_eq!(child.coins, [owned[2].outpoint]);
    assert_eq!(child.fee, sat(fee));
    assert_eq!(child.change, sat(20_000 + ANCHOR_SAT - fee));
    assert_eq!(short, None);
    assert_eq!(own_cost(facts(&[]).parent, rate(30)), sat(fee - ANCHOR_SAT));
}

#[test]
fn small_coins_are_put_together_the_largest_first() {
    let owned = coins(&[2_500, 4_000, 3_000, 2_000, 4_500]);
    let (child, short) = made(decide(&facts(&owned)));
    let vsize = child_vsize_vb(3);
    assert_eq!(
        child.coins,
        [owned[4].outpoint, owned[1].outpoint, owned[2].outpoint]
    );
    assert_eq!(child.fee, sat((124 + vsize) * 30 - 1_240));
    assert_eq!(short, None);
}

#[test]
fn coins_that_pay_the_minimum_but_not_the_market_are_used_for_what_they_can() {
    let owned = coins(&[5_500]);
    let (child, short) = made(decide(&facts(&owned)));
    assert_eq!(child.change, LEAST_CHANGE);
    let needed = sat((124 + 153) * 30 - 1_240 - ANCHOR_SAT) + LEAST_CHANGE;
    assert_eq!(short, Some(Shortfall::Coins { needed }));
    let poor = coins(&[4_000]);
    let short = Shortfall::Coins { needed };
    assert_eq!(decide(&facts(&poor)), Bump::Alone(short));
    assert_eq!(decide(&facts(&[])), Bump::Alone(short));
}

#[test]
fn a_cap_is_never_exceeded_and_is_named() {
    let owned = coins(&[100_000]);
    let needed = sat((124 + 153) * 30 - 1_240 - ANCHOR_SAT);
    let capped = |amount: u64| BumpFacts {
        allowance: Allowance {
            feerate: rate(500),
            amount: sat(amount),
        },
        ..facts(&owned)
    };
    let allowed = sat(5_000);
    let (child, short) = made(decide(&capped(5_000)));
    assert_eq!(child.fee, sat(5_000 + ANCHOR_SAT));
    assert_eq!(short, Some(Shortfall::Cap { needed, allowed }));
    let allowed = sat(3_000);
    let short = Shortfall::Cap { needed, allowed };
    assert_eq!(decide(&capped(3_000)), Bump::Alone(short));
    // The same by feerate.
    let by_rate = BumpFacts {
        allowance: Allowance {
            feerate: rate(25),
            amount: sat(50_000),
        },
        ..facts(&owned)
    };
    let (child, _) = made(decide(&by_rate));
    assert_eq!(child.fee, sat((124 + 153) * 25 - 1_240));
}

#[test]
fn siblings_stay_when_they_pay_enough_and_are_outbid_when_not() {
    let owned = coins(&[100_000]);
    let enough = Sibling {
        fee: sat((124 + 300) * 30),
        vsize_vb: 300,
    };
    let stingy = Sibling {
        fee: sat(9_000),
        vsize_vb: 900,
    };
    let with = |own, rival| BumpFacts {
        own,
        rival,
        ..facts(&owned)
    };
    assert_eq!(decide(&with(Some(enough), None)), Bump::KeepOwn(None));
    let rival = Some(enough);
    assert_eq!(decide(&with(None, rival)), Bump::LiveWithRival(None));
    assert_eq!(
        decide(&with(Some(stingy), rival)),
        Bump::LiveWithRival(None)
    );
    for (own, rival) in [(Some(stingy), None), (None, Some(stingy))] {
        let (child, short) = made(decide(&with(own, rival)));
        assert_eq!((child.fee, short), (sat(9_000 + 153), None));
    }
    // Where the cap forbids it one lives with what is there.
    let poor = |own, rival| BumpFacts {
        allowance: Allowance {
            feerate: rate(500),
            amount: sat(8_000),
        },
        ..with(own, rival)
    };
    let short = Some(Shortfall::Cap {
        needed: sat(9_000 + 153 - ANCHOR_SAT),
        allowed: sat(8_000),
    });
    assert_eq!(decide(&poor(Some(stingy), None)), Bump::KeepOwn(short));
    assert_eq!(
        decide(&poor(None, Some(stingy))),
        Bump::LiveWithRival(short)
    );
}

#[test]
fn the_caps_shrink_with_what_was_spent_and_never_exceed_what_leaves() {
    let caps = FeeCaps::default();
    assert_eq!(caps.allowance(sat(100_000), sat(0)).amount, sat(10_000));
    assert_eq!(caps.allowance(sat(100_000), sat(20_000)).amount, sat(5_000));
    assert_eq!(caps.allowance(sat(100_000), sat(26_000)).amount, sat(0));
    assert_eq!(caps.feerate(), rate(500));
    let greedy = FeeCaps {
        percent_per_exit: 255,
        percent_per_transaction: 255,
        ..caps
    };
    assert_eq!(greedy.allowance(sat(777), sat(0)).amount, sat(777));
}

fn sibling() -> impl Strategy<Value = Option<Sibling>> {
    prop::option::of(
        (0u64..100_000, 65u64..=1_000).prop_map(|(fee, vsize_vb)| Sibling {
            fee: sat(fee),
            vsize_vb,
        }),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn whatever_is_asked_for_keeps_every_rule(
        (vsize_vb, tree_rate) in (100u64..=10_000, 1u64..50),
        (minimum, above) in (250u64..100_000, 0u64..100_000),
        own in sibling(),
        rival in sibling(),
        values in prop::collection::vec(1u64..200_000, 0..24),
        (max_rate, amount) in (250u64..200_000, 0u64..300_000),
    ) {
        let owned = coins(&values);
        let facts = BumpFacts {
            parent: Parent { fee: sat(vsize_vb * tree_rate), vsize_vb },
            target: FeeRate::from_sat_per_kwu(minimum + above),
            minimum: FeeRate::from_sat_per_kwu(minimum),
            own,
            rival,
            coins: &owned,
            allowance: Allowance {
                feerate: FeeRate::from_sat_per_kwu(max_rate),
                amount: sat(amount),
            },
        };
        let bump = decide(&facts);
        prop_assert_eq!(&bump, &decide(&facts));
        let together = |child_fee: Amount, child_vsize: u64, rate: FeeRate| {
            facts.parent.fee + child_fee >= rate.fee_vb(vsize_vb + child_vsize).unwrap()
        };
        match bump {
            Bump::Make(child, short) => {
                let spent: Vec<&Coin> =
                    owned.iter().filter(|it| child.coins.contains(&it.outpoint)).collect();
                prop_assert!(!spent.is_empty() && spent.len() == child.coins.len());
                let vsize = child_vsize_vb(spent.len());
                prop_assert!(vsize <= MAX_CHILD_VSIZE_VB);
                let sum: Amount = spent.iter().map(|it| it.value).sum();
                prop_assert_eq!(sum + sat(ANCHOR_SAT), child.change + child.fee);
                prop_assert!(child.change >= LEAST_CHANGE);
                prop_assert!(sum <= child.change + sat(amount), "the cap");
                let most = u128::from(max_rate) * u128::from(vsize_vb + vsize) * 4 / 1_000;
                prop_assert!(u128::from((facts.parent.fee + child.fee).to_sat()) <= most);
                prop_assert!(together(child.fee, vsize, facts.minimum), "the mempool's minimum");
                prop_assert_eq!(together(child.fee, vsize, facts.target), short.is_none());
                for sibling in own.iter().chain(&rival) {
                    prop_assert!(child.fee >= sibling.fee + rate(1).fee_vb(vsize).unwrap());
                    let per_byte = child.fee.to_sat() * sibling.vsize_vb;
                    prop_assert!(per_byte > sibling.fee.to_sat() * vsize);
                }
            }
            Bump::NotNeeded => {
                prop_assert!(facts.target.fee_vb(vsize_vb).unwrap() <= facts.parent.fee);
            }
            Bump::KeepOwn(short) => {
                let own = own.unwrap();
                prop_assert_eq!(together(own.fee, own.vsize_vb, facts.target), short.is_none());
            }
            Bump::LiveWithRival(short) => {
                let rival = rival.unwrap();
                prop_assert_eq!(together(rival.fee, rival.vsize_vb, facts.target), short.is_none());
            }
            Bump::Alone(_) => prop_assert!(own.is_none() && rival.is_none()),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
