//! The three kinds of transactions, their sizes and fees.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut, Witness,
};

use super::{Role, TreeTx, TxName};
use crate::scripts::{self, MIN_OUTPUT};
use crate::shape::NodeId;
use crate::signing::TweakedKey;
use crate::terms::Header;

/// No transaction of a tree may be larger: version 3 packages are limited to 10,000 vB (BIP431).
pub const MAX_NODE_VSIZE: usize = 10_000;

/// Kickoff: its only output is the state's input.
pub(super) fn kickoff_outputs(state_input: TxOut) -> Vec<TxOut> {
    vec![state_input, scripts::anchor()]
}

/// State: children or channels and stock, then the anchor.
pub(super) fn state_outputs(mut outputs: Vec<TxOut>) -> Vec<TxOut> {
    outputs.push(scripts::anchor());
    outputs
}

/// Distribution: each member below is paid; what tree fees are left goes back to the LSP, or to
/// the miner when it is too little to be an output. `None` if `input` cannot pay for it.
pub(super) fn distribution_outputs(
    header: &Header,
    input: Amount,
    payouts: &[TxOut],
) -> Option<Vec<TxOut>> {
    let mut outputs = payouts.to_vec();
    outputs.push(scripts::anchor());
    let spent = |outputs: &[TxOut]| -> Option<Amount> {
        let paid = sum(outputs)?;
        paid.checked_add(fee(header.tree_feerate, outputs))
    };
    if spent(&outputs)? > input {
        return None;
    }
    let mut with_change = outputs.clone();
    with_change.insert(
        payouts.len(),
        TxOut {
            value: Amount::ZERO,
            script_pubkey: header.lsp_payout.clone(),
        },
    );
    match input.checked_sub(spent(&with_change)?) {
        Some(change) if change >= MIN_OUTPUT => {
            with_change[payouts.len()].value = change;
            Some(with_change)
        }
        _ => Some(outputs),
    }
}

/// What the spender of an output needs to hold for these outputs and its own fee.
pub(super) fn required_input(header: &Header, outputs: &[TxOut]) -> Option<Amount> {
    sum(outputs)?.checked_add(fee(header.tree_feerate, outputs))
}

fn sum(outputs: &[TxOut]) -> Option<Amount> {
    outputs
        .iter()
        .try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))
        .filter(|sum| *sum <= Amount::MAX_MONEY)
}

/// Endogenous fee of a transaction with these outputs, at `feerate` sat/vB.
pub(crate) fn fee(feerate: u32, outputs: &[TxOut]) -> Amount {
    let tx = transaction(
        OutPoint::null(),
        Sequence::ZERO,
        LockTime::ZERO,
        outputs.to_vec(),
    );
    Amount::from_sat(signed_vsize(&tx) as u64 * u64::from(feerate))
}

/// Virtual size once the input carries its 64-byte signature.
pub(super) fn signed_vsize(tx: &Transaction) -> usize {
    let mut tx = tx.clone();
    tx.input[0].witness = Witness::from_slice(&[[0u8; 64]]);
    tx.vsize()
}

pub(crate) fn transaction(
    input: OutPoint,
    sequence: Sequence,
    lock_time: LockTime,
    output: Vec<TxOut>,
) -> Transaction {
    Transaction {
        version: Version(3),
        lock_time,
        input: vec![TxIn {
            previous_output: input,
            script_sig: ScriptBuf::new(),
            sequence,
            witness: Witness::new(),
        }],
        output,
    }
}

/// Puts a transaction together with its sighash.
pub(crate) fn tree_tx(
    node: NodeId,
    role: Role,
    tx: Transaction,
    prevout: TxOut,
    key: TweakedKey,
) -> TreeTx {
    let sighash = SighashCache::new(&tx)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[&prevout]), TapSighashType::Default)
        .map(|hash| hash.to_byte_array());
    #[expect(clippy::expect_used, reason = "one input, one prevout, no annex")]
    let sighash = sighash.expect("input 0 exists and its prevout is given");
    TreeTx {
        name: TxName { node, role },
        tx,
        prevout,
        sighash,
        key,
    }
}
