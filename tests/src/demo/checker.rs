//! The independent checker: walks a member's way out of a factory through the blocks of bitcoind,
//! from the funding's own inputs to the coin in the member's wallet, and recomputes every figure
//! the programs published.
//!
//! What always holds: it asks a [`Ledger`] and no program of the demo; no figure of an [`Audit`]
//! is taken from [`Published`]; one satoshi, one byte or one block of difference is an error that
//! names the figure and both values.

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, Txid};
use superscalar_regtest::RpcError;

use super::ledger::Ledger;
use super::published::{PathTx, Published};

/// BIP433's least value; the factory's trees use exactly this.
const ANCHOR: Amount = Amount::from_sat(240);
/// Weight of a commitment without anchors and HTLCs, BOLT3.
const COMMITMENT_WEIGHT: u64 = 724;
/// What each side of a channel keeps in it: a hundredth of the capacity, this much at least.
const MIN_RESERVE: Amount = Amount::from_sat(1_000);

/// What does not agree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Two values that should be one.
    #[error("{figure}: published {published}, on the chain {found}")]
    Differs {
        /// What was compared.
        figure: String,
        /// The programs' word.
        published: String,
        /// The blocks' word.
        found: String,
    },
    /// Something that should be in a block is not.
    #[error("{what} is in no block")]
    Missing {
        /// What.
        what: String,
    },
    /// A transaction is not what it must be.
    #[error("{what}: {problem}")]
    Wrong {
        /// Which.
        what: String,
        /// Why.
        problem: String,
    },
    /// bitcoind did not answer.
    #[error(transparent)]
    Chain(#[from] RpcError),
}

/// Who paid a fee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payer {
    /// The LSP, from its coins, the tree or its side of the channel.
    Lsp,
    /// The member, from what it brought home.
    Member,
}

/// One transaction as found in a block.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is, for people.
    pub name: String,
    /// Its id.
    pub txid: Txid,
    /// Height of its block.
    pub height: u32,
    /// Virtual size.
    pub vsize: u64,
    /// Inputs minus outputs.
    pub fee: Amount,
    /// Value left in its anchor for anybody.
    pub anchor: Amount,
    /// Who paid.
    pub payer: Payer,
}

/// Everything recomputed.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Funding, path, commitment, sweep.
    pub transactions: Vec<Found>,
    /// The channel's amount.
    pub capacity: Amount,
    /// The member's output of the commitment.
    pub member_output: Amount,
    /// The LSP's output of the commitment.
    pub lsp_output: Amount,
    /// What the commitment leaves to the miner.
    pub commitment_fee: Amount,
    /// What the sweep leaves to the miner.
    pub sweep_fee: Amount,
    /// What the sweep brought to the member's addresses.
    pub arrived: Amount,
    /// What the member owned on chain before.
    pub coins_before: Amount,
    /// Part of its balance that the member could not spend in the channel.
    pub reserve_msat: u64,
    /// Tree outputs beside the path: still locked, of others.
    pub beside_path: Amount,
    /// All fees and anchors of the path.
    pub path_cost: Amount,
}

impl Audit {
    /// Fees of one payer; anchors nobody took are counted with them.
    pub fn paid_by(&self, payer: Payer) -> Amount {
        let of = self.transactions.iter().filter(|it| it.payer == payer);
        of.map(|it| it.fee + it.anchor).sum()
    }

    /// Blocks from the first kickoff to the sweep, both included.
    pub fn blocks(&self) -> u32 {
        let heights = self.transactions.iter().skip(1).map(|it| it.height);
        let (first, last) = (heights.clone().min(), heights.max());
        last.unwrap_or(0) + 1 - first.unwrap_or(0)
    }
}

/// Recomputes everything.
///
/// # Errors
/// [`CheckError`] names the first figure that does not agree.
pub fn check(ledger: &impl Ledger, said: &Published) -> Result<Audit, CheckError> {
    let funding = check_funding(ledger, said)?;
    let mut transactions = vec![funding];
    let walked = walk_path(ledger, said)?;
    transactions.extend(walked.found);
    let reserve_msat = reserve_msat(said);
    same("the channel's reserve", said.reserve_msat, reserve_msat)?;
    let commitment = check_commitment(ledger, said, walked.leaf_height)?;
    let sweep = check_sweep(ledger, said, &commitment)?;
    transactions.push(commitment.found);
    transactions.push(sweep.found.clone());
    let path_cost = transactions[1..=said.path.len()]
        .iter()
        .map(|it| it.fee + it.anchor)
        .sum();
    // Conservation over the whole way, from amounts that were each read from another transaction.
    let parts = said.capacity + walked.beside_path + path_cost;
    same("all parts of the funding", said.funding_amount, parts)?;
    let home = sweep.arrived + sweep.found.fee + commitment.lsp_output + commitment.fee;
    same("all parts of the channel", said.capacity, home)?;
    let staying = ledger.unspent_at(&said.staying_scripts)?;
    same("coins of who stays", said.staying_coins, staying)?;
    Ok(Audit {
        transactions,
        capacity: said.capacity,
        member_output: commitment.member_output,
        lsp_output: commitment.lsp_output,
        commitment_fee: commitment.fee,
        sweep_fee: sweep.found.fee,
        arrived: sweep.arrived,
        coins_before: sweep.coins_before,
        reserve_msat,
        beside_path: walked.beside_path,
        path_cost,
    })
}

/// An older state of the member's leaf was outrun: the newest has spent what it could spend, and it is
/// in no block.
///
/// # Errors
/// [`CheckError`] says which of the two is not so.
pub fn check_outrun(ledger: &impl Ledger, old: Txid, said: &Published) -> Result<(), CheckError> {
    let what = "the older state of the leaf";
    let newest = said.path.last().ok_or_else(|| wrong(what, "no path"))?;
    let (tx, _) = confirmed(ledger, newest.txid, &newest.name)?;
    let kickoff = tx.input[0].previous_output;
    let (spender, _) = spending(ledger, kickoff, &newest.name)?;
    same(
        "what spends the leaf's kickoff",
        newest.txid,
        spender.compute_txid(),
    )?;
    if old == newest.txid {
        return Err(wrong(what, "is the newest"));
    }
    match ledger.transaction(old)? {
        Some((_, height)) => Err(wrong(what, &format!("is in block {height}"))),
        None => Ok(()),
    }
}

/// What the rule keeps of the member's balance.
fn reserve_msat(said: &Published) -> u64 {
    let rule = (said.capacity / 100).max(MIN_RESERVE);
    said.member_msat.min(rule.to_sat() * 1_000)
}

/// The funding spends coins of the LSP alone, and all that is not the factory's goes back to it.
fn check_funding(ledger: &impl Ledger, said: &Published) -> Result<Found, CheckError> {
    let name = "funding";
    let (tx, height) = confirmed(ledger, said.funding.txid, name)?;
    let amount = output(&tx, said.funding.vout, name)?;
    same("the factory's amount", said.funding_amount, amount)?;
    let mut inputs = Amount::ZERO;
    for input in &tx.input {
        let (parent, _) = confirmed(ledger, input.previous_output.txid, "a coin of the funding")?;
        let coin = &parent.output[input.previous_output.vout as usize];
        if !said.lsp_scripts.contains(&coin.script_pubkey) {
            return Err(wrong(name, "spends a coin that is not the LSP's"));
        }
        inputs += coin.value;
    }
    for (vout, output) in tx.output.iter().enumerate() {
        let is_factory = vout as u32 == said.funding.vout;
        if !is_factory && !said.lsp_scripts.contains(&output.script_pubkey) {
            return Err(wrong(name, "pays somebody else than factory and LSP"));
        }
    }
    let fee = fee_of(inputs, &tx, name)?;
    let spent = said.lsp_coins_before.checked_sub(said.lsp_coins_after);
    same(
        "what the funding cost the LSP",
        spent.unwrap_or(Amount::ZERO),
        amount + fee,
    )?;
    Ok(found(name, &tx, height, fee, Payer::Lsp))
}

struct Walked {
    found: Vec<Found>,
    beside_path: Amount,
    leaf_height: u32,
}

fn walk_path(ledger: &impl Ledger, said: &Published) -> Result<Walked, CheckError> {
    let mut walked = Walked {
        found: Vec::new(),
        beside_path: Amount::ZERO,
        leaf_height: 0,
    };
    let (_, mut parent_height) = confirmed(ledger, said.funding.txid, "funding")?;
    let (mut input, mut value) = (said.funding, said.funding_amount);
    for step in &said.path {
        let (tx, height) = spending(ledger, input, &step.name)?;
        check_path_tx(step, &tx, said.tree_feerate)?;
        let fee = fee_of(value, &tx, &step.name)?;
        same(&format!("fee of the {}", step.name), step.fee, fee)?;
        let delay = delay_of(&tx);
        same(&format!("delay of the {}", step.name), step.delay, delay)?;
        after_delay(&step.name, height, parent_height, delay)?;
        let last = tx.output.len() - 1;
        for (vout, output) in tx.output[..last].iter().enumerate() {
            if vout as u32 != step.onward {
                walked.beside_path += output.value;
            }
        }
        let anchor = tx.output[last].value;
        walked.found.push(Found {
            anchor,
            ..found(&step.name, &tx, height, fee, Payer::Lsp)
        });
        input = OutPoint::new(tx.compute_txid(), step.onward);
        value = output(&tx, step.onward, &step.name)?;
        parent_height = height;
    }
    same("the channel's output", said.channel, input)?;
    same("the channel's amount", said.capacity, value)?;
    walked.leaf_height = parent_height;
    Ok(walked)
}

fn check_path_tx(step: &PathTx, tx: &Transaction, feerate: u64) -> Result<(), CheckError> {
    let name = &step.name;
    same(&format!("id of the {name}"), step.txid, tx.compute_txid())?;
    let vsize = tx.vsize() as u64;
    same(&format!("size of the {name}"), step.vsize, vsize)?;
    let at_feerate = Amount::from_sat(vsize * feerate);
    same(&format!("feerate of the {name}"), step.fee, at_feerate)?;
    let amounts: Vec<Amount> = tx.output.iter().map(|it| it.value).collect();
    let count = amounts.len();
    same(
        &format!("number of outputs of the {name}"),
        step.outputs.len(),
        count,
    )?;
    for (vout, (published, found)) in step.outputs.iter().zip(amounts).enumerate() {
        same(&format!("output {vout} of the {name}"), *published, found)?;
    }
    if tx.version.0 != 3 || tx.input.len() != 1 {
        return Err(wrong(name, "is not version 3 with one input"));
    }
    let is_anchor =
        |it: &bitcoin::TxOut| it.value == ANCHOR && it.script_pubkey == ScriptBuf::new_p2a();
    match tx.output.split_last() {
        Some((anchor, others)) if is_anchor(anchor) && !others.iter().any(is_anchor) => Ok(()),
        _ => Err(wrong(name, "has not one anchor, at its end")),
    }
}

struct Commitment {
    found: Found,
    member: OutPoint,
    member_output: Amount,
    lsp_output: Amount,
    fee: Amount,
}

fn check_commitment(
    ledger: &impl Ledger,
    said: &Published,
    leaf_height: u32,
) -> Result<Commitment, CheckError> {
    let name = "commitment";
    let (tx, height) = spending(ledger, said.channel, name)?;
    if tx.input.len() != 1 || height < leaf_height {
        return Err(wrong(
            name,
            "does not spend the channel alone, after the leaf",
        ));
    }
    // One output each; what is above two are HTLCs.
    let htlcs = tx.output.len().saturating_sub(2);
    same("pending HTLCs", said.pending_htlcs as usize, htlcs)?;
    if tx.output.len() != 2 {
        return Err(wrong(name, "does not pay exactly member and LSP"));
    }
    // The member's is the one that is swept to the member's addresses.
    let mut member = None;
    for vout in 0..2 {
        let outpoint = OutPoint::new(tx.compute_txid(), vout);
        if let Some(sweep) = ledger.spender(outpoint)?
            && pays_only(&confirmed(ledger, sweep, "sweep")?.0, &said.member_scripts)
        {
            member = Some(outpoint);
        }
    }
    let missing = || CheckError::Missing {
        what: "a sweep that pays nobody but the member".to_owned(),
    };
    let member = member.ok_or_else(missing)?;
    let member_output = output(&tx, member.vout, name)?;
    let lsp_output = output(&tx, 1 - member.vout, name)?;
    let whole_sat = Amount::from_sat(said.member_msat / 1_000);
    same("the member's balance", whole_sat, member_output)?;
    let fee = fee_of(said.capacity, &tx, name)?;
    // Half satoshis of either side are the miner's.
    let split = u64::from(!said.member_msat.is_multiple_of(1_000));
    let weight_fee = COMMITMENT_WEIGHT * said.commitment_feerate / 1_000 + split;
    same("the commitment's fee", Amount::from_sat(weight_fee), fee)?;
    Ok(Commitment {
        found: found(name, &tx, height, fee, Payer::Lsp),
        member,
        member_output,
        lsp_output,
        fee,
    })
}

struct Sweep {
    found: Found,
    arrived: Amount,
    coins_before: Amount,
}

fn check_sweep(
    ledger: &impl Ledger,
    said: &Published,
    commitment: &Commitment,
) -> Result<Sweep, CheckError> {
    let name = "sweep";
    let (tx, height) = spending(ledger, commitment.member, name)?;
    // One input is also the proof that no coin of the member was needed.
    if tx.input.len() != 1 || !pays_only(&tx, &said.member_scripts) {
        return Err(wrong(name, "is not from the channel to the member alone"));
    }
    let delay = delay_of(&tx);
    same("delay of the sweep", said.to_self_delay, delay)?;
    after_delay(name, height, commitment.found.height, delay)?;
    let fee = fee_of(commitment.member_output, &tx, name)?;
    let paid: Amount = tx.output.iter().map(|output| output.value).sum();
    let arrived = ledger.unspent_at(&said.member_scripts)?;
    let spent = || {
        wrong(
            name,
            "is spent already: what it brought cannot be told apart",
        )
    };
    let before = arrived.checked_sub(paid).ok_or_else(spent)?;
    same(
        "coins of the member before",
        said.member_coins_before,
        before,
    )?;
    same(
        "coins of the member after",
        said.member_coins_after,
        arrived,
    )?;
    let found = found(name, &tx, height, fee, Payer::Member);
    Ok(Sweep {
        found,
        arrived: paid,
        coins_before: before,
    })
}

/// Blocks a transaction must wait after the one it spends (BIP68).
fn delay_of(tx: &Transaction) -> u32 {
    let delays = tx.input.iter().filter_map(|input| {
        let delay = input.sequence.to_relative_lock_time();
        delay.map(|delay| delay.to_consensus_u32())
    });
    delays.max().unwrap_or(0)
}

fn after_delay(what: &str, height: u32, parent: u32, delay: u32) -> Result<(), CheckError> {
    match height >= parent + delay {
        true => Ok(()),
        false => {
            let problem = format!("is in block {height}, {delay} must lie after {parent}");
            Err(wrong(what, &problem))
        }
    }
}

fn pays_only(tx: &Transaction, scripts: &[ScriptBuf]) -> bool {
    let is_theirs = |output: &bitcoin::TxOut| scripts.contains(&output.script_pubkey);
    !tx.output.is_empty() && tx.output.iter().all(is_theirs)
}

fn confirmed(
    ledger: &impl Ledger,
    txid: Txid,
    what: &str,
) -> Result<(Transaction, u32), CheckError> {
    let missing = || CheckError::Missing {
        what: format!("{what} {txid}"),
    };
    ledger.transaction(txid)?.ok_or_else(missing)
}

fn spending(
    ledger: &impl Ledger,
    outpoint: OutPoint,
    what: &str,
) -> Result<(Transaction, u32), CheckError> {
    let missing = || CheckError::Missing {
        what: format!("the {what}, which spends {outpoint},"),
    };
    let txid = ledger.spender(outpoint)?.ok_or_else(missing)?;
    confirmed(ledger, txid, what)
}

fn output(tx: &Transaction, vout: u32, what: &str) -> Result<Amount, CheckError> {
    let output = tx.output.get(vout as usize);
    let none = || wrong(what, &format!("has no output {vout}"));
    output.map(|it| it.value).ok_or_else(none)
}

fn fee_of(inputs: Amount, tx: &Transaction, what: &str) -> Result<Amount, CheckError> {
    let outputs: Amount = tx.output.iter().map(|it| it.value).sum();
    let negative = || wrong(what, "pays more than it spends");
    inputs.checked_sub(outputs).ok_or_else(negative)
}

fn found(name: &str, tx: &Transaction, height: u32, fee: Amount, payer: Payer) -> Found {
    Found {
        name: name.to_owned(),
        txid: tx.compute_txid(),
        height,
        vsize: tx.vsize() as u64,
        fee,
        anchor: Amount::ZERO,
        payer,
    }
}

fn same<T: PartialEq + std::fmt::Display>(
    figure: &str,
    published: T,
    found: T,
) -> Result<(), CheckError> {
    match published == found {
        true => Ok(()),
        false => Err(CheckError::Differs {
            figure: figure.to_owned(),
            published: published.to_string(),
            found: found.to_string(),
        }),
    }
}

fn wrong(what: &str, problem: &str) -> CheckError {
    CheckError::Wrong {
        what: what.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests;
