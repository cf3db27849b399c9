//! Bitcoin Core's own script check, from its consensus library. What was once accepted is not
//! checked again: a wtxid fixes the transaction, its witness and what it spends.

use std::cell::RefCell;
use std::collections::HashSet;

use bitcoin::consensus::serialize;
use bitcoin::{Transaction, TxOut, Wtxid};
use bitcoinkernel::{KernelError, PrecomputedTransactionData, ScriptPubkey, VERIFY_ALL};

/// The check, and what it has accepted so far.
#[derive(Debug, Default)]
pub(crate) struct Scripts {
    accepted: RefCell<HashSet<Wtxid>>,
}

impl Scripts {
    /// Whether `tx` may spend `outputs`, one for each input, under all rules but timelocks.
    pub(crate) fn check(&self, tx: &Transaction, outputs: &[TxOut]) -> Result<(), String> {
        let wtxid = tx.compute_wtxid();
        if self.accepted.borrow().contains(&wtxid) {
            return Ok(());
        }
        verify(tx, outputs).map_err(|error| format!("{error:?}"))?;
        self.accepted.borrow_mut().insert(wtxid);
        Ok(())
    }
}

fn verify(tx: &Transaction, outputs: &[TxOut]) -> Result<(), KernelError> {
    let scripts: Vec<ScriptPubkey> = outputs
        .iter()
        .map(|output| ScriptPubkey::new(output.script_pubkey.as_bytes()))
        .collect::<Result<_, _>>()?;
    let spent: Vec<bitcoinkernel::TxOut> = outputs
        .iter()
        .zip(&scripts)
        .map(|(output, script)| bitcoinkernel::TxOut::new(script, output.value.to_sat() as i64))
        .collect();
    let tx = bitcoinkernel::Transaction::new(&serialize(tx))?;
    let data = PrecomputedTransactionData::new(&tx, &spent)?;
    for (index, (output, script)) in outputs.iter().zip(&scripts).enumerate() {
        let amount = Some(output.value.to_sat() as i64);
        bitcoinkernel::verify(script, amount, &tx, index, Some(VERIFY_ALL), &data)?;
    }
    Ok(())
}
