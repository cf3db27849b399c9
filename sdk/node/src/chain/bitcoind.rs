//! A Bitcoin Core node as chain source, over its JSON-RPC.
//!
//! No wallet RPC is used. Every call is safe to repeat, so one that fails on the connection is
//! repeated once on a new one with the credentials read again: a restarted bitcoind has a new
//! cookie and has closed our old connections.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Amount, Block, BlockHash, FeeRate, Network, OutPoint, Transaction, Txid};
use lightning_block_sync::http::{HttpClientError, JsonResponse};
use lightning_block_sync::rpc::{RpcClient, RpcClientError};
use lightning_block_sync::{BlockData, BlockHeaderData};
use serde_json::{Value, json};

use super::error::{BroadcastError, ChainError, Rejection};
use super::{Accepted, ChainSource, MempoolEntry, SourceFuture};

/// `RPC_INVALID_ADDRESS_OR_KEY`: what is asked for does not exist.
const RPC_NOT_FOUND: i64 = -5;
/// `RPC_VERIFY_ALREADY_IN_UTXO_SET`: the transaction is in a block.
const RPC_ALREADY_CONFIRMED: i64 = -27;
/// `RPC_VERIFY_ERROR` and `RPC_VERIFY_REJECTED`.
const RPC_REFUSED: [i64; 2] = [-25, -26];
/// `RPC_IN_WARMUP`.
const RPC_WARMUP: i64 = -28;

/// How to log in to bitcoind.
#[derive(Clone, PartialEq, Eq)]
pub enum BitcoindAuth {
    /// The file bitcoind writes at every start, `.cookie` in its (network) data directory.
    CookieFile(PathBuf),
    /// `rpcauth` or `rpcuser`/`rpcpassword`.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for BitcoindAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CookieFile(path) => f.debug_tuple("CookieFile").field(path).finish(),
            Self::UserPassword { user, .. } => f
                .debug_struct("UserPassword")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// Where a bitcoind listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitcoindConfig {
    /// Host and RPC port, such as `127.0.0.1:8332`. The connection is not encrypted: use it on one
    /// machine or through a tunnel.
    pub address: String,
    /// How to log in.
    pub auth: BitcoindAuth,
}

/// A bitcoind, version 28 or newer (packages, version 3 transactions, pay-to-anchor).
pub struct BitcoindSource {
    config: BitcoindConfig,
    client: RwLock<Option<Arc<RpcClient>>>,
}

impl BitcoindSource {
    /// A source that connects when it is first used.
    pub fn new(config: BitcoindConfig) -> Self {
        Self {
            config,
            client: RwLock::new(None),
        }
    }

    /// Checks that bitcoind answers and follows `network`.
    pub async fn check_network(&self, network: Network) -> Result<(), ChainError> {
        let info = self.call("getblockchaininfo", &[]).await?;
        let found = string(&info["chain"])?;
        if found == network.to_core_arg() {
            Ok(())
        } else {
            Err(ChainError::WrongNetwork {
                found: found.to_owned(),
                expected: network,
            })
        }
    }

    async fn call(&self, method: &'static str, params: &[Value]) -> Result<Value, ChainError> {
        let client = self.client()?;
        let first = client.call_method::<Value>(method, params).await;
        let answer = match &first {
            Err(RpcClientError::Http(HttpClientError::Transport(_))) => None,
            Err(RpcClientError::Http(HttpClientError::Http(error))) if error.status_code == 401 => {
                None
            }
            _ => Some(first),
        };
        let answer = match answer {
            Some(answer) => answer,
            None => {
                self.forget(&client);
                self.client()?.call_method(method, params).await
            }
        };
        answer.map_err(|error| describe(method, error))
    }

    fn client(&self) -> Result<Arc<RpcClient>, ChainError> {
        let current = self.client.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*current {
            return Ok(Arc::clone(client));
        }
        drop(current);
        let credentials = match &self.config.auth {
            BitcoindAuth::CookieFile(path) => {
                let cookie =
                    std::fs::read_to_string(path).map_err(|source| ChainError::Cookie {
                        path: path.clone(),
                        source,
                    })?;
                STANDARD.encode(cookie.trim())
            }
            BitcoindAuth::UserPassword { user, password } => {
                STANDARD.encode(format!("{user}:{password}"))
            }
        };
        let address = format!("http://{}", self.config.address);
        let client = Arc::new(RpcClient::new(&credentials, address));
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Drops `stale` unless another call has replaced it already.
    fn forget(&self, stale: &Arc<RpcClient>) {
        let mut current = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|it| Arc::ptr_eq(it, stale)) {
            *current = None;
        }
    }

    async fn send(&self, tx: &Transaction) -> Result<Accepted, BroadcastError> {
        // 0: no upper limit on the feerate; what to pay is decided before the signature.
        let params = [json!(serialize_hex(tx)), json!(0)];
        match self.call("sendrawtransaction", &params).await {
            Ok(_) => Ok(Accepted::Mempool),
            Err(ChainError::Rpc {
                code: RPC_ALREADY_CONFIRMED,
                ..
            }) => Ok(Accepted::Confirmed),
            Err(ChainError::Rpc { code, message, .. }) if RPC_REFUSED.contains(&code) => {
                Err(BroadcastError::Rejected {
                    txid: tx.compute_txid(),
                    rejection: Rejection::from_core(&message),
                    detail: message,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send_package(&self, package: &[Transaction]) -> Result<Accepted, BroadcastError> {
        if let [single] = package {
            return self.send(single).await;
        }
        let raw: Vec<String> = package.iter().map(serialize_hex).collect();
        let result = match self.call("submitpackage", &[json!(raw), json!(0)]).await {
            Ok(result) => result,
            Err(ChainError::Rpc { code, message, .. }) if RPC_REFUSED.contains(&code) => {
                return Err(blame_last(package, &message)?);
            }
            Err(error) => return Err(error.into()),
        };
        let message = string(&result["package_msg"])?;
        if message == "success" {
            return Ok(Accepted::Mempool);
        }
        let errors = package.iter().filter_map(|tx| {
            let entry = &result["tx-results"][tx.compute_wtxid().to_string()];
            Some((tx.compute_txid(), entry["error"].as_str()?))
        });
        // A child is "missing inputs" when its parent was refused: the parent's own reason is the
        // one to act on, and parents come first.
        match errors
            .into_iter()
            .find(|(_, error)| *error != "package-not-validated")
        {
            Some((txid, error)) => Err(BroadcastError::Rejected {
                txid,
                rejection: Rejection::from_core(error),
                detail: error.to_owned(),
            }),
            None => Err(blame_last(package, message)?),
        }
    }
}

impl fmt::Debug for BitcoindSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BitcoindSource").field(&self.config).finish()
    }
}

impl ChainSource for BitcoindSource {
    fn best_block(&self) -> SourceFuture<'_, (BlockHash, Option<u32>)> {
        Box::pin(async move {
            let info = self.call("getblockchaininfo", &[]).await?;
            let height = u32::try_from(unsigned(&info["blocks"])?)
                .map_err(|_| ChainError::unexpected("a height beyond 32 bits"))?;
            Ok((parse(&info["bestblockhash"])?, Some(height)))
        })
    }

    fn header(&self, hash: BlockHash, _: Option<u32>) -> SourceFuture<'_, BlockHeaderData> {
        Box::pin(async move {
            let header = self.call("getblockheader", &[json!(hash)]).await?;
            JsonResponse(header)
                .try_into()
                .map_err(|detail: &str| ChainError::unexpected(detail))
        })
    }

    fn block(&self, hash: BlockHash) -> SourceFuture<'_, BlockData> {
        Box::pin(async move {
            let hex = self.call("getblock", &[json!(hash), json!(0)]).await?;
            let block: Block = JsonResponse(hex)
                .try_into()
                .map_err(|detail: &str| ChainError::unexpected(detail))?;
            Ok(BlockData::FullBlock(block))
        })
    }

    fn block_hash(&self, height: u32) -> SourceFuture<'_, BlockHash> {
        Box::pin(async move { parse(&self.call("getblockhash", &[json!(height)]).await?) })
    }

    fn broadcast<'a>(&'a self, tx: &'a Transaction) -> SourceFuture<'a, Accepted, BroadcastError> {
        Box::pin(self.send(tx))
    }

    fn broadcast_package<'a>(
        &'a self,
        package: &'a [Transaction],
    ) -> SourceFuture<'a, Accepted, BroadcastError> {
        Box::pin(self.send_package(package))
    }

    fn estimate_feerate(&self, target_blocks: u16) -> SourceFuture<'_, Option<FeeRate>> {
        Box::pin(async move {
            let params = [json!(target_blocks)];
            let estimate = self.call("estimatesmartfee", &params).await?;
            match &estimate["feerate"] {
                Value::Null => Ok(None),
                feerate => feerate_from_btc_per_kvb(feerate).map(Some),
            }
        })
    }

    fn mempool_minimum(&self) -> SourceFuture<'_, FeeRate> {
        Box::pin(async move {
            let info = self.call("getmempoolinfo", &[]).await?;
            // The higher of the two is what a new transaction has to pay.
            let evicting = feerate_from_btc_per_kvb(&info["mempoolminfee"])?;
            let relay = feerate_from_btc_per_kvb(&info["minrelaytxfee"])?;
            Ok(evicting.max(relay))
        })
    }

    fn mempool_entry(&self, txid: Txid) -> SourceFuture<'_, Option<MempoolEntry>> {
        Box::pin(async move {
            let entry = match self.call("getmempoolentry", &[json!(txid)]).await {
                Err(ChainError::Rpc {
                    code: RPC_NOT_FOUND,
                    ..
                }) => return Ok(None),
                answer => answer?,
            };
            Ok(Some(MempoolEntry {
                vsize: unsigned(&entry["vsize"])?,
                fee_sat: amount(&entry["fees"]["base"])?.to_sat(),
                ancestor_fee_sat: amount(&entry["fees"]["ancestor"])?.to_sat(),
                ancestor_vsize: unsigned(&entry["ancestorsize"])?,
                spent_by: entry["spentby"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(parse)
                    .collect::<Result<_, _>>()?,
            }))
        })
    }

    fn mempool_spender(&self, outpoint: OutPoint) -> SourceFuture<'_, Option<Txid>> {
        Box::pin(async move {
            let asked = json!([{ "txid": outpoint.txid, "vout": outpoint.vout }]);
            let answer = self.call("gettxspendingprevout", &[asked]).await?;
            match &answer[0]["spendingtxid"] {
                Value::Null => Ok(None),
                txid => parse(txid).map(Some),
            }
        })
    }
}

fn describe(method: &'static str, error: RpcClientError) -> ChainError {
    match error {
        RpcClientError::Rpc(error) if error.code == RPC_WARMUP => ChainError::Unreachable {
            detail: error.message,
        },
        RpcClientError::Rpc(error) => ChainError::Rpc {
            method,
            code: error.code,
            message: error.message,
        },
        RpcClientError::Http(HttpClientError::Transport(error)) => ChainError::Unreachable {
            detail: error.to_string(),
        },
        RpcClientError::Http(HttpClientError::Http(error)) => match error.status_code {
            401 | 403 => ChainError::Unauthorized,
            500..600 => ChainError::Unreachable {
                detail: error.to_string(),
            },
            _ => ChainError::unexpected(error),
        },
        RpcClientError::Http(HttpClientError::Parse(detail))
        | RpcClientError::InvalidData(detail) => {
            ChainError::unexpected(format!("{method}: {detail}"))
        }
    }
}

/// A package refused as a whole, with nobody named: the child asked for it.
fn blame_last(package: &[Transaction], message: &str) -> Result<BroadcastError, ChainError> {
    let child = package
        .last()
        .ok_or_else(|| ChainError::unexpected("an empty package"))?;
    Ok(BroadcastError::Rejected {
        txid: child.compute_txid(),
        rejection: Rejection::from_core(message),
        detail: message.to_owned(),
    })
}

fn string(value: &Value) -> Result<&str, ChainError> {
    value
        .as_str()
        .ok_or_else(|| ChainError::unexpected(format!("expected a string, got {value}")))
}

fn unsigned(value: &Value) -> Result<u64, ChainError> {
    value
        .as_u64()
        .ok_or_else(|| ChainError::unexpected(format!("expected a count, got {value}")))
}

fn parse<T: FromStr>(value: &Value) -> Result<T, ChainError> {
    let text = string(value)?;
    text.parse()
        .map_err(|_| ChainError::unexpected(format!("cannot read {text:?}")))
}

fn amount(value: &Value) -> Result<Amount, ChainError> {
    value
        .as_f64()
        .and_then(|btc| Amount::from_btc(btc).ok())
        .ok_or_else(|| ChainError::unexpected(format!("expected an amount, got {value}")))
}

/// Core speaks of BTC per 1,000 vbytes. Rounded up: a feerate a hair below the minimum is refused.
fn feerate_from_btc_per_kvb(value: &Value) -> Result<FeeRate, ChainError> {
    let sat_per_kvb = amount(value)?.to_sat();
    Ok(FeeRate::from_sat_per_kwu(sat_per_kvb.div_ceil(4)))
}
