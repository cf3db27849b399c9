//! A small chain in memory on which everything agrees, and every figure changed by one.

use std::collections::HashMap;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Sequence, TxIn, TxOut, Witness};

use super::*;

#[derive(Default, Clone)]
struct Blocks(HashMap<Txid, (Transaction, u32)>);

impl Blocks {
    fn add(&mut self, tx: Transaction, height: u32) -> Txid {
        let txid = tx.compute_txid();
        self.0.insert(txid, (tx, height));
        txid
    }
}

impl Ledger for Blocks {
    fn transaction(&self, txid: Txid) -> Result<Option<(Transaction, u32)>, RpcError> {
        Ok(self.0.get(&txid).cloned())
    }
    fn spender(&self, outpoint: OutPoint) -> Result<Option<Txid>, RpcError> {
        let spends = |tx: &Transaction| tx.input.iter().any(|it| it.previous_output == outpoint);
        let found = self.0.iter().find(|(_, (tx, _))| spends(tx));
        Ok(found.map(|(txid, _)| *txid))
    }
    fn unspent_at(&self, scripts: &[ScriptBuf]) -> Result<Amount, RpcError> {
        let mut total = Amount::ZERO;
        for (txid, (tx, _)) in &self.0 {
            for (vout, output) in tx.output.iter().enumerate() {
                let outpoint = OutPoint::new(*txid, vout as u32);
                if scripts.contains(&output.script_pubkey) && self.spender(outpoint)?.is_none() {
                    total += output.value;
                }
            }
        }
        Ok(total)
    }
}

const LSP: u8 = 1;
const MEMBER: u8 = 2;
const FACTORY: u8 = 3;
const STAYING: u8 = 4;

fn script(owner: u8) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::from_byte_array([owner; 32]))
}

fn pays(value: u64, owner: u8) -> TxOut {
    TxOut {
        value: Amount::from_sat(value),
        script_pubkey: script(owner),
    }
}

fn spend(outpoint: OutPoint, output: Vec<TxOut>) -> Transaction {
    spend_after(Sequence::MAX, outpoint, output)
}

fn spend_after(sequence: Sequence, outpoint: OutPoint, output: Vec<TxOut>) -> Transaction {
    Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            sequence,
            witness: Witness::from_slice(&[[0u8; 64]]),
            ..TxIn::default()
        }],
        output,
    }
}

/// A tree transaction with outputs of these values and an anchor, and the input it needs.
fn tree(outpoint: OutPoint, values: &[u64]) -> (Transaction, u64) {
    let mut outputs: Vec<TxOut> = values.iter().map(|value| pays(*value, FACTORY)).collect();
    outputs.push(TxOut {
        value: ANCHOR,
        script_pubkey: ScriptBuf::new_p2a(),
    });
    let tx = spend(outpoint, outputs);
    let needs = values.iter().sum::<u64>() + 240 + tx.vsize() as u64 * 10;
    (tx, needs)
}

/// Funding 100, kickoff 101, leaf 107, commitment 108, sweep 252. The channel holds 500,000 sat,
/// 150,000.7 of them the member's; beside it 100,000 sat of stock.
fn exit() -> (Blocks, Published) {
    let mut blocks = Blocks::default();
    let coin = blocks.add(spend(OutPoint::null(), vec![pays(2_000_000, LSP)]), 90);
    let values = [500_000, 100_000];
    let (_, kickoff_value) = tree(OutPoint::null(), &values);
    let (_, amount) = tree(OutPoint::null(), &[kickoff_value]);
    let funding = vec![pays(2_000_000 - amount - 300, LSP), pays(amount, FACTORY)];
    let funding = blocks.add(spend(OutPoint::new(coin, 0), funding), 100);
    let funding = OutPoint::new(funding, 1);
    let (kickoff, _) = tree(funding, &[kickoff_value]);
    let kickoff = blocks.add(kickoff, 101);
    let (mut leaf, _) = tree(OutPoint::new(kickoff, 0), &values);
    leaf.input[0].sequence = Sequence::from_height(6);
    let leaf = blocks.add(leaf, 107);
    let channel = OutPoint::new(leaf, 0);
    let lsp_output = 500_000 - 150_000 - 1_811;
    let split = vec![pays(lsp_output, LSP), pays(150_000, FACTORY)];
    let commitment = blocks.add(spend(channel, split), 108);
    let home = vec![pays(149_400, MEMBER)];
    let own = OutPoint::new(commitment, 1);
    blocks.add(spend_after(Sequence::from_height(144), own, home), 252);
    let step = |name: &str, txid: Txid, delay| {
        let (tx, _) = &blocks.0[&txid];
        let vsize = tx.vsize() as u64;
        PathTx {
            name: name.to_owned(),
            txid,
            vsize,
            fee: Amount::from_sat(vsize * 10),
            delay,
            outputs: tx.output.iter().map(|it| it.value).collect(),
            onward: 0,
        }
    };
    let published = Published {
        funding,
        funding_amount: Amount::from_sat(amount),
        lsp_coins_before: Amount::from_sat(2_000_000),
        lsp_coins_after: Amount::from_sat(2_000_000 - amount - 300),
        lsp_scripts: vec![script(LSP)],
        tree_feerate: 10,
        path: vec![step("kickoff", kickoff, 0), step("leaf", leaf, 6)],
        channel,
        capacity: Amount::from_sat(500_000),
        member_msat: 150_000_700,
        reserve_msat: 5_000_000,
        pending_htlcs: 0,
        commitment_feerate: 2_500,
        to_self_delay: 144,
        member_scripts: vec![script(MEMBER)],
        member_coins_before: Amount::ZERO,
        member_coins_after: Amount::from_sat(149_400),
        staying_scripts: vec![script(STAYING)],
        staying_coins: Amount::ZERO,
    };
    (blocks, published)
}

#[test]
fn an_honest_exit_is_recomputed() {
    let (blocks, published) = exit();
    let audit = check(&blocks, &published).unwrap();
    assert_eq!(audit.arrived, Amount::from_sat(149_400));
    assert_eq!(audit.sweep_fee, Amount::from_sat(600));
    assert_eq!(audit.paid_by(Payer::Member), Amount::from_sat(600));
    assert_eq!(audit.commitment_fee, Amount::from_sat(1_811));
    assert_eq!(audit.beside_path, Amount::from_sat(100_000));
    assert_eq!(audit.blocks(), 252 - 101 + 1);
    let names: Vec<&str> = audit.transactions.iter().map(|it| &*it.name).collect();
    let expected = ["funding", "kickoff", "leaf", "commitment", "sweep"];
    assert_eq!(names, expected);
}

#[test]
fn one_unit_of_difference_in_any_figure_is_named() {
    const SAT: Amount = Amount::ONE_SAT;
    type Change = fn(&mut Published);
    let changes: &[(&str, Change)] = &[
        ("the factory's amount", |it| it.funding_amount += SAT),
        ("the factory's amount", |it| it.funding_amount -= SAT),
        ("cost the LSP", |it| it.lsp_coins_before += SAT),
        ("cost the LSP", |it| it.lsp_coins_after += SAT),
        ("not the LSP's", |it| it.lsp_scripts = vec![script(MEMBER)]),
        ("feerate of the kickoff", |it| it.tree_feerate += 1),
        ("id of the leaf", |it| it.path[1].txid = it.path[0].txid),
        ("size of the leaf", |it| it.path[1].vsize += 1),
        ("feerate of the kickoff", |it| it.path[0].fee += SAT),
        ("delay of the kickoff", |it| it.path[0].delay += 1),
        ("delay of the leaf", |it| it.path[1].delay += 1),
        ("delay of the leaf", |it| it.path[1].delay -= 1),
        ("output 0 of the kickoff", |it| it.path[0].outputs[0] -= SAT),
        ("output 1 of the leaf", |it| it.path[1].outputs[1] += SAT),
        ("output 2 of the leaf", |it| it.path[1].outputs[2] += SAT),
        ("outputs of the leaf", |it| it.path[1].outputs.truncate(2)),
        ("the channel's output", |it| it.path[1].onward = 1),
        ("the channel's amount", |it| it.capacity -= SAT),
        ("the member's balance", |it| it.member_msat += 1_000),
        ("the commitment's fee", |it| it.member_msat -= 700),
        ("pending HTLCs", |it| it.pending_htlcs = 1),
        ("the commitment's fee", |it| it.commitment_feerate += 2),
        ("delay of the sweep", |it| it.to_self_delay += 1),
        ("delay of the sweep", |it| it.to_self_delay -= 1),
        ("the channel's reserve", |it| it.reserve_msat += 1),
        ("the channel's reserve", |it| it.reserve_msat -= 1),
        ("pays nobody but the member", |it| {
            it.member_scripts = vec![script(FACTORY)];
        }),
        ("member before", |it| it.member_coins_before += SAT),
        ("member after", |it| it.member_coins_after += SAT),
        ("member after", |it| it.member_coins_after -= SAT),
        ("coins of who stays", |it| it.staying_coins += SAT),
        ("coins of who stays", |it| {
            it.staying_scripts = vec![script(MEMBER)];
        }),
    ];
    for (named, change) in changes {
        let (blocks, mut published) = exit();
        change(&mut published);
        let error = check(&blocks, &published).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn one_satoshi_that_moved_on_the_chain_is_found() {
    let (blocks, published) = exit();
    let ids: Vec<Txid> = blocks.0.keys().copied().collect();
    for id in ids {
        for vout in 0..blocks.0[&id].0.output.len() {
            let mut blocks = blocks.clone();
            // Under the old id, as if the transaction had always been so.
            blocks.0.get_mut(&id).unwrap().0.output[vout].value -= Amount::ONE_SAT;
            assert!(check(&blocks, &published).is_err(), "{id}:{vout}");
        }
    }
}

#[test]
fn a_block_before_its_time_is_found() {
    for (name, height) in [("leaf", 107), ("sweep", 252)] {
        let (mut blocks, published) = exit();
        let mut all = blocks.0.values_mut();
        let (_, early) = all.find(|(_, it)| *it == height).unwrap();
        *early -= 1;
        let error = check(&blocks, &published).unwrap_err().to_string();
        let expected = format!("{name}: is in block {}", height - 1);
        assert!(error.starts_with(&expected), "{error}");
    }
}

/// Of a balance below it everything is reserve; small channels have a least one.
#[test]
fn the_reserve_follows_its_rule() {
    let (_, mut published) = exit();
    assert_eq!(reserve_msat(&published), 5_000_000);
    published.capacity = Amount::from_sat(99_999);
    assert_eq!(reserve_msat(&published), 1_000_000);
    published.member_msat = 999_999;
    assert_eq!(reserve_msat(&published), 999_999);
}

#[test]
fn what_is_in_no_block_is_missing() {
    let (blocks, published) = exit();
    for id in blocks.0.keys() {
        let mut blocks = blocks.clone();
        blocks.0.remove(id);
        let error = check(&blocks, &published).unwrap_err().to_string();
        assert!(error.contains("in no block"), "{error}");
    }
}

#[test]
fn a_sweep_to_somebody_else_too_is_refused() {
    let (mut blocks, published) = exit();
    let (sweep, _) = blocks
        .0
        .values_mut()
        .find(|(_, height)| *height == 252)
        .unwrap();
    sweep.output.push(pays(100, LSP));
    assert!(check(&blocks, &published).is_err());
}
