//! Money for tests: coinbases owned by a fixed key of the harness, spent by taproot key path.
//!
//! No state is kept: which coins there are is asked of the UTXO set and the mempool each time, so
//! a reorg cannot make this module wrong.

use std::sync::PoisonError;

use bitcoin::absolute::LockTime;
use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::secp256k1::{Message, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::Signature;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::mempool::bitcoin_amount;
use crate::node::RegtestNode;
use crate::rpc::RpcError;

const COINBASE_MATURITY: u32 = 100;
const FEE_SAT_PER_VB: u64 = 5;

impl RegtestNode {
    /// Pays `amount` to `script_pubkey` in a block of its own; the mempool stays as it is.
    ///
    /// # Errors
    /// [`RpcError::OutOfCoins`] beyond what the harness has (400 BTC at the start).
    pub fn fund(&self, script_pubkey: &Script, amount: Amount) -> Result<OutPoint, RpcError> {
        let output = TxOut {
            value: amount,
            script_pubkey: script_pubkey.to_owned(),
        };
        let outpoints = self.fund_many(&[output])?;
        outpoints
            .first()
            .copied()
            .ok_or_else(|| RpcError::unexpected("fund", "no output"))
    }

    /// Pays several outputs in one transaction and one block; the outpoints come in their order.
    ///
    /// # Errors
    /// As [`RegtestNode::fund`].
    pub fn fund_many(&self, outputs: &[TxOut]) -> Result<Vec<OutPoint>, RpcError> {
        let _coins = self.coins.lock().unwrap_or_else(PoisonError::into_inner);
        let payment = self.payment(outputs)?;
        self.mine_with(std::slice::from_ref(&payment))?;
        let txid = payment.compute_txid();
        Ok((0..outputs.len() as u32)
            .map(|vout| OutPoint { txid, vout })
            .collect())
    }

    /// Pays `amount` to `script_pubkey` and leaves the transaction in the mempool.
    ///
    /// # Errors
    /// As [`RegtestNode::fund`], or refused by the mempool.
    pub fn fund_unconfirmed(
        &self,
        script_pubkey: &Script,
        amount: Amount,
    ) -> Result<OutPoint, RpcError> {
        let _coins = self.coins.lock().unwrap_or_else(PoisonError::into_inner);
        let output = TxOut {
            value: amount,
            script_pubkey: script_pubkey.to_owned(),
        };
        let txid = self.submit(&self.payment(&[output])?)?;
        Ok(OutPoint { txid, vout: 0 })
    }

    /// A signed transaction with these outputs first and the change last.
    fn payment(&self, outputs: &[TxOut]) -> Result<Transaction, RpcError> {
        let paid: Amount = outputs.iter().map(|output| output.value).sum();
        let output_bytes: usize = outputs.iter().map(TxOut::size).sum();
        let mut chosen: Vec<(OutPoint, TxOut)> = Vec::new();
        let mut available = Amount::ZERO;
        let mut needed = paid;
        for coin in self.spendable_coins()? {
            available += coin.1.value;
            chosen.push(coin);
            let vbytes = 60 + output_bytes + 58 * chosen.len();
            let fee = Amount::from_sat(FEE_SAT_PER_VB * vbytes as u64);
            needed = paid + fee + Amount::from_sat(1_000);
            if available >= needed {
                let mut outputs = outputs.to_vec();
                outputs.push(TxOut {
                    value: available - paid - fee,
                    script_pubkey: harness_script(),
                });
                return Ok(spend(&chosen, outputs));
            }
        }
        Err(RpcError::OutOfCoins { available, needed })
    }

    /// Mature coins of the harness that no unconfirmed transaction spends, largest first.
    fn spendable_coins(&self) -> Result<Vec<(OutPoint, TxOut)>, RpcError> {
        const METHOD: &str = "scantxoutset";
        #[derive(Deserialize)]
        struct Scan {
            height: u32,
            unspents: Vec<Unspent>,
        }
        #[derive(Deserialize)]
        struct Unspent {
            txid: Txid,
            vout: u32,
            amount: Value,
            coinbase: bool,
            height: u32,
        }
        let descriptor = format!("raw({})", harness_script().to_hex_string());
        let scan: Scan = self.rpc.typed(METHOD, json!(["start", [descriptor]]))?;
        let mut coins = Vec::new();
        for unspent in scan.unspents {
            let mature = !unspent.coinbase || unspent.height + COINBASE_MATURITY <= scan.height + 1;
            let unspent_in_mempool = || -> Result<bool, RpcError> {
                let params = json!([unspent.txid, unspent.vout, true]);
                Ok(!self.rpc.call("gettxout", params)?.is_null())
            };
            if mature && unspent_in_mempool()? {
                let value = bitcoin_amount(&unspent.amount)
                    .ok_or_else(|| RpcError::unexpected(METHOD, "no amount"))?;
                let outpoint = OutPoint {
                    txid: unspent.txid,
                    vout: unspent.vout,
                };
                coins.push((
                    outpoint,
                    TxOut {
                        value,
                        script_pubkey: harness_script(),
                    },
                ));
            }
        }
        coins.sort_by_key(|(outpoint, coin)| (std::cmp::Reverse(coin.value), *outpoint));
        Ok(coins)
    }
}

/// Spends coins of the harness into `outputs`, final and signed.
pub(crate) fn spend(coins: &[(OutPoint, TxOut)], outputs: Vec<TxOut>) -> Transaction {
    let input = |(previous_output, _): &(OutPoint, TxOut)| TxIn {
        previous_output: *previous_output,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: coins.iter().map(input).collect(),
        output: outputs,
    };
    let secp = Secp256k1::new();
    let key = harness_key().tap_tweak(&secp, None).to_keypair();
    let prevouts: Vec<&TxOut> = coins.iter().map(|(_, coin)| coin).collect();
    let witnesses: Vec<Witness> = (0..coins.len())
        .map(|index| {
            #[expect(clippy::expect_used, reason = "one prevout per input, index in range")]
            let sighash = SighashCache::new(&transaction)
                .taproot_key_spend_signature_hash(
                    index,
                    &Prevouts::All(&prevouts),
                    TapSighashType::Default,
                )
                .expect("every input has its prevout");
            let signature = secp.sign_schnorr(&Message::from(sighash), &key);
            Witness::p2tr_key_spend(&Signature {
                signature,
                sighash_type: TapSighashType::Default,
            })
        })
        .collect();
    for (input, witness) in transaction.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    transaction
}

/// Where the harness keeps its money.
pub(crate) fn harness_script() -> ScriptBuf {
    let (internal_key, _) = harness_key().x_only_public_key();
    ScriptBuf::new_p2tr(&Secp256k1::new(), internal_key, None)
}

fn harness_key() -> Keypair {
    #[expect(clippy::expect_used, reason = "a constant below the group order")]
    let secret = SecretKey::from_slice(&[0x5c; 32]).expect("a valid constant");
    Keypair::from_secret_key(&Secp256k1::new(), &secret)
}
