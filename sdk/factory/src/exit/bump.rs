//! Speeding an exit up with own coins: which child to put on a tree transaction's anchor.
//!
//! [`decide`] is a pure function of what the market asks, what the transaction pays by itself,
//! which children of it are known, and which coins may be spent. What always holds of a child it
//! asks for: it is version 3 size, it costs no more than the [`Allowance`], it pays enough more
//! than every child it replaces, parent and child together pay at least what the mempool takes,
//! and its change is no dust. Where that cannot be had nothing is spent.
//!
//! A member without coins is not worse off for any of this: its transactions go out alone.

use bitcoin::{Amount, FeeRate, OutPoint, Weight};

use crate::scripts::ANCHOR_VALUE;

/// Least change of a child: below it a P2TR output is not relayed.
pub const LEAST_CHANGE: Amount = Amount::from_sat(330);
/// Most virtual bytes of a child of a version 3 transaction.
pub const MAX_CHILD_VSIZE_VB: u64 = 1_000;
/// What a replacement pays for its own relay, on top of what it replaces.
const INCREMENTAL: FeeRate = FeeRate::from_sat_per_kwu(250);

/// Version, lock time, counts, the anchor's input and one P2TR output.
const CHILD_BASE: Weight = Weight::from_wu(42 + 165 + 172);
/// One P2TR coin, spent by its key.
const CHILD_COIN: Weight = Weight::from_wu(230);

/// A signed transaction of the tree, as the fee market sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// What it pays by itself.
    pub fee: Amount,
    /// Its virtual size.
    pub vsize_vb: u64,
}

/// A transaction that spends an output of the parent and is unconfirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sibling {
    /// What it pays.
    pub fee: Amount,
    /// Its virtual size.
    pub vsize_vb: u64,
}

/// A confirmed coin of the wallet, P2TR spent by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is worth.
    pub value: Amount,
}

/// What own coins may be spent on one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The most a package may pay per weight.
    pub feerate: FeeRate,
    /// The most that own coins may lose.
    pub amount: Amount,
}

/// How much of what leaves an exit may spend on being faster. The defaults are meant for a member
/// that would rather wait than lose a quarter of its balance to fees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeCaps {
    /// Highest feerate of a package, in sat/vB. Default 500.
    pub max_sat_per_vb: u32,
    /// Most that one transaction may cost, in percent of the amount leaving. Default 10.
    pub percent_per_transaction: u8,
    /// Most that all transactions of one exit may cost together, in percent of the amount leaving.
    /// Default 25.
    pub percent_per_exit: u8,
}

impl Default for FeeCaps {
    fn default() -> FeeCaps {
        FeeCaps {
            max_sat_per_vb: 500,
            percent_per_transaction: 10,
            percent_per_exit: 25,
        }
    }
}

impl FeeCaps {
    /// The highest feerate a package may pay.
    pub fn feerate(&self) -> FeeRate {
        FeeRate::from_sat_per_kwu(u64::from(self.max_sat_per_vb) * 250)
    }

    /// What is left of the whole exit's share when `spent` of it is gone.
    pub fn left(&self, leaving: Amount, spent: Amount) -> Amount {
        let cap = percent(leaving, self.percent_per_exit);
        cap.checked_sub(spent).unwrap_or(Amount::ZERO)
    }

    /// What the next transaction may cost when `spent` was paid for others of the same exit.
    pub fn allowance(&self, leaving: Amount, spent: Amount) -> Allowance {
        let once = percent(leaving, self.percent_per_transaction);
        Allowance {
            feerate: self.feerate(),
            amount: once.min(self.left(leaving, spent)),
        }
    }
}

fn percent(amount: Amount, percent: u8) -> Amount {
    // Never more than all of it, whatever was configured.
    let percent = u64::from(percent.min(100));
    Amount::from_sat((u128::from(amount.to_sat()) * u128::from(percent) / 100) as u64)
}

/// Everything a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct BumpFacts<'a> {
    /// The transaction that is due.
    pub parent: Parent,
    /// The feerate wanted.
    pub target: FeeRate,
    /// The feerate below which the mempool takes nothing.
    pub minimum: FeeRate,
    /// The newest child we made, in the mempool or not: other nodes may hold it.
    pub own: Option<Sibling>,
    /// Somebody else's unconfirmed child: a version 3 transaction has room for one.
    pub rival: Option<Sibling>,
    /// What may be spent, those of the own child included.
    pub coins: &'a [Coin],
    /// How much of it.
    pub allowance: Allowance,
}

/// A child to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The coins to spend beside the anchor.
    pub coins: Vec<OutPoint>,
    /// What comes back.
    pub change: Amount,
    /// What it pays: coins and anchor minus change.
    pub fee: Amount,
}

/// What to do about a transaction that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bump {
    /// It pays what is wanted by itself: publish it alone.
    NotNeeded,
    /// Publish it with the child made before.
    KeepOwn(Option<Shortfall>),
    /// Somebody else's child stays: publish it alone.
    LiveWithRival(Option<Shortfall>),
    /// Make this child, keep it durably, publish both.
    Make(Child, Option<Shortfall>),
    /// No child can be had: publish it alone, and look again at the next block.
    Alone(Shortfall),
}

/// Why less is paid than wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shortfall {
    /// The coins are worth too little.
    Coins {
        /// What they would have to be worth.
        needed: Amount,
    },
    /// The cap forbids it.
    Cap {
        /// What it would cost.
        needed: Amount,
        /// What it may cost.
        allowed: Amount,
    },
}

/// Says what to do about a transaction that is due.
pub fn decide(facts: &BumpFacts<'_>) -> Bump {
    if fee_vb(facts.target, facts.parent.vsize_vb) <= facts.parent.fee {
        return Bump::NotNeeded;
    }
    let enough = |child: &Sibling| facts.pays(child.fee, child.vsize_vb, facts.target);
    if facts.rival.as_ref().is_some_and(enough) {
        return Bump::LiveWithRival(None);
    }
    let replaces = |own: &Sibling, rival: &Sibling| own.fee >= replacing(rival, own.vsize_vb);
    let own_stands = facts
        .own
        .filter(|own| facts.rival.is_none_or(|rival| replaces(own, &rival)));
    if own_stands.as_ref().is_some_and(enough) {
        return Bump::KeepOwn(None);
    }
    let (made, short) = facts.best();
    match made {
        Some(child) => Bump::Make(child, short),
        None => {
            let short = short.unwrap_or(Shortfall::Coins {
                needed: facts.cost_with_one_coin() + LEAST_CHANGE,
            });
            match (own_stands, facts.rival) {
                (Some(_), _) => Bump::KeepOwn(Some(short)),
                (None, Some(_)) => Bump::LiveWithRival(Some(short)),
                (None, None) => Bump::Alone(short),
            }
        }
    }
}

/// What own coins lose when `parent` is brought to `feerate` by a child with one coin.
pub fn own_cost(parent: Parent, feerate: FeeRate) -> Amount {
    if fee_vb(feerate, parent.vsize_vb) <= parent.fee {
        return Amount::ZERO;
    }
    less(missing(parent, feerate, child_vsize_vb(1)), ANCHOR_VALUE)
}

/// Virtual size of a child with so many coins.
pub fn child_vsize_vb(coins: usize) -> u64 {
    (CHILD_BASE + CHILD_COIN * coins as u64).to_vbytes_ceil()
}

/// A way to pay: coins, the child's size with them, and the most it can pay.
struct Funding {
    coins: Vec<OutPoint>,
    sum: Amount,
    vsize_vb: u64,
}

impl BumpFacts<'_> {
    /// Whether parent and a child pay `feerate` together.
    fn pays(&self, fee: Amount, vsize_vb: u64, feerate: FeeRate) -> bool {
        let together = self.parent.vsize_vb.saturating_add(vsize_vb);
        plus(self.parent.fee, fee) >= fee_vb(feerate, together)
    }

    /// The least fee with which a child of this size brings the package to `feerate` and replaces
    /// what is there.
    fn required(&self, feerate: FeeRate, vsize_vb: u64) -> Amount {
        let siblings = self.own.iter().chain(&self.rival);
        let replacing = siblings.map(|sibling| replacing(sibling, vsize_vb)).max();
        missing(self.parent, feerate, vsize_vb).max(replacing.unwrap_or(Amount::ZERO))
    }

    /// The most a child of this size may pay.
    fn allowed(&self, vsize_vb: u64) -> Amount {
        let together = self.parent.vsize_vb.saturating_add(vsize_vb);
        let per_weight = u128::from(self.allowance.feerate.to_sat_per_kwu());
        let fee = per_weight * u128::from(together) * 4 / 1_000;
        let fee = Amount::from_sat(u64::try_from(fee).unwrap_or(u64::MAX));
        less(fee, self.parent.fee).min(plus(self.allowance.amount, ANCHOR_VALUE))
    }

    fn cost_with_one_coin(&self) -> Amount {
        less(self.required(self.target, child_vsize_vb(1)), ANCHOR_VALUE)
    }

    /// The child that pays what is wanted; else the one that pays the most, if the mempool takes
    /// it; and why it pays less.
    fn best(&self) -> (Option<Child>, Option<Shortfall>) {
        let fundings = self.fundings();
        let full = fundings.iter().find_map(|funding| {
            let fee = self.required(self.target, funding.vsize_vb);
            (fee <= self.payable(funding)).then(|| funding.child(fee))
        });
        if full.is_some() {
            return (full, None);
        }
        let needed = self.cost_with_one_coin();
        let short = match less(self.allowed(child_vsize_vb(1)), ANCHOR_VALUE) {
            allowed if allowed < needed => Shortfall::Cap { needed, allowed },
            _ => Shortfall::Coins {
                needed: needed + LEAST_CHANGE,
            },
        };
        let partial = fundings.iter().filter_map(|funding| {
            let fee = self.payable(funding);
            (fee >= self.required(self.minimum, funding.vsize_vb)).then_some((funding, fee))
        });
        let rate = |funding: &Funding, fee: Amount| {
            let together = u128::from(self.parent.vsize_vb + funding.vsize_vb);
            u128::from(plus(self.parent.fee, fee).to_sat()) * 1_000_000 / together
        };
        let partial = partial.max_by_key(|(funding, fee)| rate(funding, *fee));
        // One that improves nothing is not worth its coins.
        let alone = u128::from(self.parent.fee.to_sat()) * 1_000_000;
        let alone = alone / u128::from(self.parent.vsize_vb.max(1));
        let partial = partial.filter(|(funding, fee)| rate(funding, *fee) > alone);
        (
            partial.map(|(funding, fee)| funding.child(fee)),
            Some(short),
        )
    }

    fn payable(&self, funding: &Funding) -> Amount {
        let owned = less(plus(funding.sum, ANCHOR_VALUE), LEAST_CHANGE);
        owned.min(self.allowed(funding.vsize_vb))
    }

    /// Ways to pay, in order of preference: one coin, the smallest first, then several, the
    /// largest first.
    fn fundings(&self) -> Vec<Funding> {
        let of = |coins: &[&Coin]| Funding {
            coins: coins.iter().map(|coin| coin.outpoint).collect(),
            sum: coins
                .iter()
                .fold(Amount::ZERO, |sum, coin| plus(sum, coin.value)),
            vsize_vb: child_vsize_vb(coins.len()),
        };
        let mut coins: Vec<&Coin> = self.coins.iter().collect();
        coins.sort_by_key(|coin| (coin.value, coin.outpoint));
        let mut fundings: Vec<Funding> = coins.iter().map(|coin| of(&[coin])).collect();
        coins.reverse();
        let counts = 2..=coins.len();
        let fits = |count: &usize| child_vsize_vb(*count) <= MAX_CHILD_VSIZE_VB;
        fundings.extend(counts.take_while(fits).map(|count| of(&coins[..count])));
        fundings
    }
}

impl Funding {
    fn child(&self, fee: Amount) -> Child {
        Child {
            coins: self.coins.clone(),
            change: less(plus(self.sum, ANCHOR_VALUE), fee),
            fee,
        }
    }
}

/// The least fee of a transaction of this size that replaces `sibling`: more in all by its own
/// relay, and more per byte.
fn replacing(sibling: &Sibling, vsize_vb: u64) -> Amount {
    let more = plus(sibling.fee, fee_vb(INCREMENTAL, vsize_vb));
    let rate = u128::from(sibling.fee.to_sat()) * u128::from(vsize_vb);
    let rate = rate / u128::from(sibling.vsize_vb.max(1)) + 1;
    more.max(Amount::from_sat(u64::try_from(rate).unwrap_or(u64::MAX)))
}

/// What a child of this size has to pay for both.
fn missing(parent: Parent, feerate: FeeRate, vsize_vb: u64) -> Amount {
    let together = parent.vsize_vb.saturating_add(vsize_vb);
    less(fee_vb(feerate, together), parent.fee)
}

fn fee_vb(feerate: FeeRate, vsize_vb: u64) -> Amount {
    feerate.fee_vb(vsize_vb).unwrap_or(Amount::MAX_MONEY)
}

fn plus(a: Amount, b: Amount) -> Amount {
    a.checked_add(b).unwrap_or(Amount::MAX)
}

fn less(a: Amount, b: Amount) -> Amount {
    a.checked_sub(b).unwrap_or(Amount::ZERO)
}
