//! What a member takes when somebody publishes a leaf of an older epoch: the stock that is on chain
//! again, sold or not.
//!
//! What always holds: every spend carries the preimage that the LSP revealed when that epoch was
//! retired and a signature of the member's revocation key, so nobody else can make it and the LSP
//! has to wait longer than the member; a spend is a function of the output and a feerate, and what
//! is to be published one of the chain.

use bitcoin::absolute::LockTime;
use bitcoin::taproot::{LeafVersion, TapLeafHash};
use bitcoin::{FeeRate, OutPoint, Script, Sequence, Transaction};

use super::ChainFacts;
use super::reclaim::{Reclaim, control};
use crate::signing::FactoryKey;
use crate::stock::StockChain;
use crate::terms::stock_hash;

/// Every stock output of older epochs that the member can take to `to`; `retired` is
/// [`Member::retired_stock`](crate::member::Member::retired_stock).
pub fn stale_stock(retired: &[(&StockChain, &[[u8; 32]])], to: &Script) -> Vec<Reclaim> {
    let each = retired.iter().flat_map(|(chain, preimages)| {
        chain.stocks().filter_map(move |stock| {
            let mut known = preimages.iter();
            let preimage = known.find(|it| stock_hash(it) == stock.hash())?;
            let [own, reclaim] = stock.leaf_scripts();
            let beside = TapLeafHash::from_script(&reclaim, LeafVersion::TapScript);
            Some(Reclaim {
                outpoint: stock.outpoint(),
                output: stock.output(),
                allowed: 0,
                lock_time: LockTime::ZERO,
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                script: own,
                preimage: Some(*preimage),
                control: control(stock.key(), beside.into()),
                payout: to.to_owned(),
            })
        })
    });
    each.collect()
}

/// Signed spends of one stock output, the cheapest first: any one of them may confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleSweep {
    /// The output.
    pub outpoint: OutPoint,
    /// One for each feerate that leaves enough to be paid out.
    pub transactions: Vec<Transaction>,
}

/// Ready-made spends of everything in [`stale_stock`], for whoever watches. `key` is the member's
/// [`revocation_key`](crate::member::revocation_key).
pub fn stale_stock_sweeps(
    retired: &[(&StockChain, &[[u8; 32]])],
    key: &FactoryKey,
    to: &Script,
    feerates: &[FeeRate],
) -> Vec<StaleSweep> {
    let mut feerates = feerates.to_vec();
    feerates.sort_unstable();
    let each = stale_stock(retired, to)
        .into_iter()
        .map(|stock| StaleSweep {
            outpoint: stock.outpoint,
            transactions: feerates
                .iter()
                .filter_map(|feerate| stock.spend(key, *feerate))
                .collect(),
        });
    each.collect()
}

/// The sweeps to publish now: their outputs are on chain and unspent there. What has to be known are
/// the spends of [`SignedPath::watched`](super::SignedPath::watched) and of the sweeps' outpoints.
///
/// Where a sale below is waiting in the mempool the sweep competes with it: its output holds
/// everything that was sold out of it.
pub fn due<'a>(sweeps: &'a [StaleSweep], facts: &ChainFacts) -> Vec<&'a StaleSweep> {
    let is_on_chain = |outpoint: &OutPoint| {
        let mut confirmed = facts.spends.values().filter(|spend| spend.height.is_some());
        confirmed.any(|spend| spend.txid == outpoint.txid)
    };
    let due = sweeps.iter().filter(|sweep| {
        is_on_chain(&sweep.outpoint) && facts.confirmed_spend(&sweep.outpoint).is_none()
    });
    due.collect()
}
