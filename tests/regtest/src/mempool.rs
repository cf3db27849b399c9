//! What the node relays: submitting, asking beforehand, packages, and a mempool under pressure.

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction, TxOut, Txid};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::coins::harness_script;
use crate::node::RegtestNode;
use crate::rpc::{RpcError, to_hex};

/// Verdict of `testmempoolaccept` on one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acceptance {
    /// The mempool would take it.
    Accepted {
        /// Virtual size in vB, sigop cost included.
        vsize_vb: u64,
        /// What it pays by itself.
        fee: Amount,
    },
    /// The mempool would not.
    Refused {
        /// Bitcoin Core's reject reason, e.g. `non-BIP68-final`.
        reason: String,
    },
}

/// What `submitpackage` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageOutcome {
    /// `success`, or what was wrong with the package as a whole.
    pub message: String,
    /// One entry per transaction, in no particular order.
    pub transactions: Vec<PackageTransaction>,
}

/// One transaction of a submitted package.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageTransaction {
    /// Its id.
    pub txid: Txid,
    /// Why it was refused.
    pub error: Option<String>,
}

impl PackageOutcome {
    /// True when every transaction is in the mempool now.
    pub fn accepted(&self) -> bool {
        self.message == "success" && self.transactions.iter().all(|tx| tx.error.is_none())
    }
}

impl RegtestNode {
    /// Hands a transaction to the mempool, whatever its fee.
    ///
    /// # Errors
    /// Refused with the reject reason, see [`RpcError::refused_with`].
    pub fn submit(&self, transaction: &Transaction) -> Result<Txid, RpcError> {
        self.rpc
            .typed("sendrawtransaction", json!([serialize_hex(transaction), 0]))
    }

    /// Hands parents and their child to the mempool as one package, the child last.
    ///
    /// # Errors
    /// Refused when they are no such package; a transaction refused by policy is no error but
    /// stands in the outcome.
    pub fn submit_package(&self, package: &[Transaction]) -> Result<PackageOutcome, RpcError> {
        const METHOD: &str = "submitpackage";
        #[derive(Deserialize)]
        struct Entry {
            txid: Txid,
            error: Option<String>,
        }
        let mut answer = self.rpc.call(METHOD, json!([to_hex(package), 0]))?;
        let entries: std::collections::BTreeMap<String, Entry> =
            serde_json::from_value(answer["tx-results"].take())
                .map_err(|e| RpcError::unexpected(METHOD, e))?;
        Ok(PackageOutcome {
            message: answer["package_msg"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            transactions: entries
                .into_values()
                .map(|entry| PackageTransaction {
                    txid: entry.txid,
                    error: entry.error,
                })
                .collect(),
        })
    }

    /// What [`RegtestNode::submit`] would say, without doing it.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn test_accept(&self, transaction: &Transaction) -> Result<Acceptance, RpcError> {
        const METHOD: &str = "testmempoolaccept";
        #[derive(Deserialize)]
        struct Verdict {
            allowed: bool,
            vsize: Option<u64>,
            fees: Option<Value>,
            #[serde(rename = "reject-reason")]
            reject_reason: Option<String>,
        }
        let params = json!([[serialize_hex(transaction)], 0]);
        let [verdict]: [Verdict; 1] = self.rpc.typed(METHOD, params)?;
        if !verdict.allowed {
            return Ok(Acceptance::Refused {
                reason: verdict.reject_reason.unwrap_or_default(),
            });
        }
        let fee = verdict
            .fees
            .as_ref()
            .and_then(|fees| bitcoin_amount(&fees["base"]));
        match (verdict.vsize, fee) {
            (Some(vsize_vb), Some(fee)) => Ok(Acceptance::Accepted { vsize_vb, fee }),
            _ => Err(RpcError::unexpected(METHOD, "allowed without size or fee")),
        }
    }

    /// Ids of the unconfirmed transactions.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mempool(&self) -> Result<Vec<Txid>, RpcError> {
        self.rpc.typed("getrawmempool", json!([]))
    }

    /// Lowest feerate the mempool takes now, rounded up to whole sat/kvB by bitcoind.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mempool_minimum(&self) -> Result<FeeRate, RpcError> {
        const METHOD: &str = "getmempoolinfo";
        let answer = self.rpc.call(METHOD, json!([]))?;
        let per_kvb = bitcoin_amount(&answer["mempoolminfee"])
            .ok_or_else(|| RpcError::unexpected(METHOD, "no mempoolminfee"))?;
        Ok(FeeRate::from_sat_per_kwu(per_kvb.to_sat().div_ceil(4)))
    }

    /// Fills the mempool with large transactions until it takes nothing below `minimum`, as in a
    /// rush of fees. Needs a node started with `-maxmempool=5`, the smallest bitcoind allows.
    ///
    /// # Errors
    /// When the mempool is too large to fill.
    pub fn congest(&self, minimum: FeeRate) -> Result<(), RpcError> {
        const COINS: usize = 96;
        const PAYLOAD_BYTES: usize = 98_000;
        let filler_feerate = FeeRate::from_sat_per_kwu(minimum.to_sat_per_kwu() * 3 / 2);
        let fee = filler_feerate
            .fee_vb(PAYLOAD_BYTES as u64 + 200)
            .ok_or_else(|| RpcError::unexpected("congest", "feerate out of range"))?;
        let coin = TxOut {
            value: fee,
            script_pubkey: harness_script(),
        };
        let coins = self.fund_many(&vec![coin.clone(); COINS])?;
        let payload = vec![0; PAYLOAD_BYTES];
        let payload = bitcoin::script::PushBytesBuf::try_from(payload)
            .map_err(|e| RpcError::unexpected("congest", e))?;
        let nothing = TxOut {
            value: Amount::ZERO,
            script_pubkey: ScriptBuf::new_op_return(payload),
        };
        for outpoint in coins {
            if self.mempool_minimum()? >= minimum {
                return Ok(());
            }
            let filler = crate::coins::spend(&[(outpoint, coin.clone())], vec![nothing.clone()]);
            match self.submit(&filler) {
                // The one that does not fit any more has raised the minimum.
                Err(error) if !error.refused_with("mempool full") => return Err(error),
                _ => {}
            }
        }
        if self.mempool_minimum()? >= minimum {
            return Ok(());
        }
        Err(RpcError::unexpected(
            "congest",
            "the mempool is still not full; start the node with -maxmempool=5",
        ))
    }

    /// The end of a rush: what waits is mined, days go by, and the mempool takes the least there is
    /// again.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn calm(&self) -> Result<(), RpcError> {
        const METHOD: &str = "getblockheader";
        const DAYS_SECONDS: u64 = 4 * 86_400;
        self.mine(8)?;
        let best = self.rpc.call(METHOD, json!([self.tip()?]))?;
        let time = best["time"]
            .as_u64()
            .ok_or_else(|| RpcError::unexpected(METHOD, "no time"))?;
        self.rpc.call("setmocktime", json!([time + DAYS_SECONDS]))?;
        // The minimum falls when somebody asks for it, and not across a block.
        self.rpc.call("getmempoolinfo", json!([]))?;
        self.mine(1)?;
        Ok(())
    }
}

/// Bitcoin Core writes amounts as decimal bitcoins.
pub(crate) fn bitcoin_amount(value: &Value) -> Option<Amount> {
    Amount::from_btc(value.as_f64()?).ok()
}
