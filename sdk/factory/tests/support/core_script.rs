//! Bitcoin Core's own script check, from its consensus library. It needs no set-up: Core keeps one
//! verification context per process.

use bitcoin::consensus::serialize;
use bitcoin::{Amount, Transaction, TxOut};
use bitcoinkernel::{KernelError, PrecomputedTransactionData, ScriptPubkey, VERIFY_ALL};

/// Whether the only input of `tx` may spend `output` under all rules of consensus but timelocks,
/// which depend on heights.
pub fn check(tx: &Transaction, output: &TxOut) -> Result<(), KernelError> {
    let script = ScriptPubkey::new(output.script_pubkey.as_bytes())?;
    let amount = output.value.to_sat() as i64;
    let spent = bitcoinkernel::TxOut::new(&script, amount);
    let tx = bitcoinkernel::Transaction::new(&serialize(tx))?;
    let data = PrecomputedTransactionData::new(&tx, &[spent])?;
    bitcoinkernel::verify(&script, Some(amount), &tx, 0, Some(VERIFY_ALL), &data)
}

/// Checks that `tx` may spend `output`, and that it may not with another amount or signature.
pub fn accepts_only(tx: &Transaction, output: &TxOut) {
    check(tx, output).expect("Core accepts what everyone signed");
    let more = TxOut {
        value: output.value + Amount::ONE_SAT,
        ..output.clone()
    };
    check(tx, &more).expect_err("the signature commits to the amount");
    let mut forged = tx.clone();
    let mut signature = tx.input[0].witness[0].to_vec();
    signature[40] ^= 1;
    forged.input[0].witness = bitcoin::Witness::from_slice(&[signature]);
    check(&forged, output).expect_err("another signature");
    let mut redirected = tx.clone();
    redirected.output[0].value -= Amount::ONE_SAT;
    check(&redirected, output).expect_err("the signature commits to the outputs");
}
