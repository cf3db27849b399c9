//! Whether a member's money comes home when it acts alone: its path, commitment and sweeps carried
//! out on a copy of the chain on which nobody else does anything.
//!
//! Every transaction of the way is judged by Bitcoin Core's script check and by the locks; the
//! copy's blocks hold nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use superscalar_factory::exit::stale::{self, StaleSweep};
use superscalar_factory::exit::{
    Action, ChainFacts, Goal, Progress, SignedPath, Spend, Waiting, Worth, plan, timelock,
};

use crate::chain::Chain;
use crate::channel::{Balances, Channel, Toward};
use crate::money::{self, ChannelKeys, Commitment};

/// A copy of the chain with what one party does on it.
struct Fork<'a> {
    chain: &'a Chain,
    tip: u32,
    confirmed: BTreeMap<Txid, (u32, Transaction)>,
    spends: BTreeMap<OutPoint, (Txid, u32)>,
}

impl<'a> Fork<'a> {
    fn new(chain: &'a Chain) -> Fork<'a> {
        Fork {
            chain,
            tip: chain.tip(),
            confirmed: BTreeMap::new(),
            spends: BTreeMap::new(),
        }
    }

    fn coin(&self, outpoint: &OutPoint) -> Option<(TxOut, u32)> {
        if self.spends.contains_key(outpoint) {
            return None;
        }
        if let Some((height, tx)) = self.confirmed.get(&outpoint.txid) {
            return Some((tx.output.get(outpoint.vout as usize)?.clone(), *height));
        }
        let (output, height) = self.chain.coin(outpoint)?;
        Some((output.clone(), height))
    }

    /// A block with this transaction.
    fn confirm(&mut self, tx: &Transaction) -> Result<(), String> {
        let txid = tx.compute_txid();
        let mut outputs = Vec::new();
        let mut heights = Vec::new();
        for input in &tx.input {
            let outpoint = input.previous_output;
            let coin = self.coin(&outpoint);
            let (output, height) = coin.ok_or_else(|| format!("{outpoint} is missing or spent"))?;
            outputs.push(output);
            heights.push(height);
        }
        let height = self.tip + 1;
        timelock::check(tx, &heights, height).map_err(|error| error.to_string())?;
        self.chain.scripts.check(tx, &outputs)?;
        let given: Amount = outputs.iter().map(|output| output.value).sum();
        let paid: Amount = tx.output.iter().map(|output| output.value).sum();
        if paid > given {
            return Err(format!("{txid} pays {paid} out of {given}"));
        }
        for input in &tx.input {
            self.spends.insert(input.previous_output, (txid, height));
        }
        self.confirmed.insert(txid, (height, tx.clone()));
        self.tip = height;
        Ok(())
    }

    /// Whether the transaction of an output is confirmed.
    fn has(&self, outpoint: &OutPoint) -> bool {
        let txid = &outpoint.txid;
        self.confirmed.contains_key(txid) || self.chain.height_of(txid).is_some()
    }

    fn facts(&self, path: &SignedPath, watched: &[OutPoint]) -> ChainFacts {
        let mut facts = self.chain.facts(&path.funding(), watched);
        facts.tip = self.tip;
        if let Some((height, _)) = self.confirmed.get(&path.funding().txid) {
            facts.funding_height = Some(*height);
        }
        // What others have in the mempool is not mined on this copy.
        facts.spends.retain(|_, spend| spend.height.is_some());
        for outpoint in watched {
            if let Some((txid, height)) = self.spends.get(outpoint) {
                let (txid, height) = (*txid, Some(*height));
                facts.spends.insert(*outpoint, Spend { txid, height });
            }
        }
        facts
    }
}

/// What a member holds that is worth something.
pub(crate) struct Holding<'a> {
    pub(crate) path: &'a SignedPath,
    pub(crate) watched: &'a [OutPoint],
    /// Spends of stock of older epochs.
    pub(crate) sweeps: &'a [StaleSweep],
    /// Channels whose commitment was ever durable, in whatever epoch.
    pub(crate) channels: Vec<(&'a Channel, Arc<ChannelKeys>)>,
    pub(crate) payout: &'a ScriptBuf,
}

/// The way home and what arrives.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Tip when the commitment, or the payout of a distribution, was confirmed.
    pub(crate) settled_at: u32,
    /// The same for each channel that was settled.
    pub(crate) settled: BTreeMap<OutPoint, u32>,
    /// The member's balance that arrived; HTLCs are beside it.
    pub(crate) balance: Amount,
    pub(crate) way: Way,
}

/// Which transaction brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Channel,
    /// The channels of an older epoch, which somebody has put on chain.
    Stale,
    Distribution,
}

/// Lets the member act alone. `fundings` are the funding transaction and what it spends, as far as
/// they are not in the chain yet, parents first.
pub(crate) fn alone(
    chain: &Chain,
    fundings: &[&Transaction],
    holding: &Holding<'_>,
    goal: Goal,
) -> Result<Recovered, String> {
    let mut fork = Fork::new(chain);
    for tx in fundings {
        fork.confirm(tx)?;
    }
    let outpoint = loop {
        let facts = fork.facts(holding.path, holding.watched);
        let planned = plan(holding.path, goal, &facts).map_err(|error| error.to_string())?;
        match planned.status.progress {
            Progress::Underway {
                waiting: Waiting::Confirmation,
                ..
            } => {
                for action in planned.actions {
                    let Action::Publish { transaction, .. } = action else {
                        return Err("an action nobody knows".to_owned());
                    };
                    fork.confirm(&transaction)?;
                }
            }
            Progress::Underway {
                waiting: Waiting::Delay { blocks, .. } | Waiting::Expiry { blocks, .. },
                ..
            } => fork.tip += blocks,
            Progress::Underway { waiting, .. } => return Err(format!("{waiting:?}")),
            Progress::LeafConfirmed { outpoint, .. } => break outpoint,
            Progress::PaidOut { amount, .. } => {
                return Ok(Recovered {
                    settled_at: fork.tip,
                    settled: BTreeMap::new(),
                    balance: amount,
                    way: Way::Distribution,
                });
            }
            other => return Err(format!("{other:?}")),
        }
    };
    let way = match outpoint == holding.path.channel_outpoint() {
        true => Way::Channel,
        false => Way::Stale,
    };
    let mut recovered = Recovered {
        settled_at: fork.tip,
        settled: BTreeMap::new(),
        balance: Amount::ZERO,
        way,
    };
    let facts = fork.facts(holding.path, holding.watched);
    for sweep in stale::due(holding.sweeps, &facts) {
        let cheapest = sweep.transactions.first();
        cheapest.map_or(Ok(()), |tx| fork.confirm(tx))?;
    }
    // All commitments first: what they carry runs out.
    let mut there = Vec::new();
    for (channel, keys) in &holding.channels {
        let agreed = &channel.agreed;
        if !fork.has(&agreed.outpoint) {
            continue;
        }
        let commitment = money::commitment(keys, channel);
        if fork
            .chain
            .height_of(&commitment.tx.compute_txid())
            .is_none()
        {
            fork.confirm(&commitment.tx)?;
        }
        recovered.settled_at = recovered.settled_at.max(fork.tip);
        recovered.settled.insert(agreed.outpoint, fork.tip);
        there.push((*channel, &**keys, commitment));
    }
    for (channel, keys, commitment) in &there {
        recovered.balance += settle(&mut fork, holding, channel, keys, commitment)?;
    }
    Ok(recovered)
}

/// Claims and sweep of one commitment; gives what arrives of the balance.
fn settle(
    fork: &mut Fork<'_>,
    holding: &Holding<'_>,
    channel: &Channel,
    keys: &ChannelKeys,
    commitment: &Commitment,
) -> Result<Amount, String> {
    let payout = holding.payout;
    let delay = channel.agreed.timing.member_to_self_delay;
    let feerate = tree_feerate(holding.path);
    let unspent = |fork: &Fork<'_>, tx: &Transaction| {
        let outpoint = tx.input[0].previous_output;
        fork.chain
            .spender(&outpoint)
            .is_none_or(|spend| spend.height.is_none())
    };
    for htlc in &channel.balances.htlcs {
        let known = channel.preimages.get(&htlc.hash);
        let claim = commitment.claim(keys, &htlc.hash, known, payout, feerate);
        let Some(claim) = claim.filter(|claim| unspent(fork, claim)) else {
            continue;
        };
        if htlc.toward == Toward::Lsp {
            fork.tip = fork.tip.max(htlc.expiry);
        }
        fork.confirm(&claim)?;
    }
    let Some(sweep) = commitment.sweep(keys, payout, feerate) else {
        return Ok(Amount::ZERO);
    };
    if unspent(fork, &sweep) {
        let created = fork.coin(&sweep.input[0].previous_output);
        let (_, height) = created.ok_or("the balance is gone")?;
        fork.tip = fork.tip.max(height + u32::from(delay) - 1);
        fork.confirm(&sweep)?;
    }
    Ok(sweep.output[0].value)
}

/// What must arrive of balances: all but the published fee of each sweep.
pub(crate) fn due<'a>(
    balances: impl Iterator<Item = &'a Balances>,
    tree_feerate_sat_per_vb: u32,
) -> Amount {
    balances
        .map(|balances| due_at(balances, tree_feerate_sat_per_vb))
        .sum()
}

pub(crate) fn due_at(balances: &Balances, tree_feerate_sat_per_vb: u32) -> Amount {
    let balance = Amount::from_sat(balances.member_msat / 1_000);
    match Worth::of(balance, feerate(tree_feerate_sat_per_vb)) {
        Worth::Yes { net } => net,
        Worth::No { .. } => Amount::ZERO,
    }
}

pub(crate) fn tree_feerate(path: &SignedPath) -> FeeRate {
    feerate(path.header().tree_feerate)
}

fn feerate(sat_per_vb: u32) -> FeeRate {
    FeeRate::from_sat_per_vb(sat_per_vb.into()).unwrap_or(FeeRate::BROADCAST_MIN)
}
