//! JSON-RPC to one bitcoind over loopback HTTP: blocking, a connection per call.
//!
//! Blocking on purpose: it works the same from plain tests, from tokio workers and from `Drop`.

use base64::Engine;
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Calls that mine hundreds of blocks take seconds on a busy machine.
const TIMEOUT_SECONDS: u64 = 180;

/// Why a call to bitcoind gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// bitcoind answered with an error.
    #[error("{method}: {message} (code {code})")]
    Refused {
        /// The RPC called.
        method: String,
        /// Bitcoin Core's code, see its `src/rpc/protocol.h`.
        code: i64,
        /// Bitcoin Core's words, for a transaction its reject reason.
        message: String,
    },
    /// No answer: not running, not listening, or the wrong password.
    #[error("{method}: {reason}")]
    Transport {
        /// The RPC called.
        method: String,
        /// What failed.
        reason: String,
    },
    /// An answer that is not what this RPC is documented to give.
    #[error("{method}: unexpected answer: {detail}")]
    Unexpected {
        /// The RPC called.
        method: String,
        /// What was wrong with it.
        detail: String,
    },
    /// The harness has too little mature money for what was asked.
    #[error("the harness owns {available}, {needed} needed")]
    OutOfCoins {
        /// Spendable now.
        available: bitcoin::Amount,
        /// Outputs and fee.
        needed: bitcoin::Amount,
    },
}

impl RpcError {
    /// True when bitcoind refused with these words in its message.
    pub fn refused_with(&self, words: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(words))
    }

    pub(crate) fn unexpected(method: &str, detail: impl std::fmt::Display) -> Self {
        Self::Unexpected {
            method: method.to_owned(),
            detail: detail.to_string(),
        }
    }
}

/// Where bitcoind listens and how to be let in.
#[derive(Debug, Clone)]
pub(crate) struct RpcClient {
    url: String,
    authorization: String,
}

impl RpcClient {
    pub(crate) fn new(port: u16, user: &str, password: &str) -> Self {
        let credentials =
            base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Self {
            url: format!("http://127.0.0.1:{port}/"),
            authorization: format!("Basic {credentials}"),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.call_within(TIMEOUT_SECONDS, method, params)
    }

    /// True when our bitcoind answers. Asks for seconds only: a stranger who took the port
    /// between our choosing it and bitcoind's start may accept connections and stay silent.
    pub(crate) fn answers(&self) -> bool {
        self.call_within(2, "getblockcount", json!([])).is_ok()
    }

    fn call_within(
        &self,
        timeout_seconds: u64,
        method: &str,
        params: Value,
    ) -> Result<Value, RpcError> {
        let transport = |reason: String| RpcError::Transport {
            method: method.to_owned(),
            reason,
        };
        let request = json!({"jsonrpc": "2.0", "id": 0, "method": method, "params": params});
        let response = bitreq::post(&self.url)
            .with_header("Authorization", &self.authorization)
            .with_header("Content-Type", "application/json")
            .with_header("Connection", "close")
            .with_timeout(timeout_seconds)
            .with_body(request.to_string())
            .send()
            .map_err(|e| transport(e.to_string()))?;
        if response.status_code != 200 {
            let text = String::from_utf8_lossy(response.as_bytes()).into_owned();
            return Err(transport(format!(
                "HTTP {}: {text:.200}",
                response.status_code
            )));
        }
        let mut answer: Value = serde_json::from_slice(response.as_bytes())
            .map_err(|e| RpcError::unexpected(method, e))?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err(RpcError::Refused {
                method: method.to_owned(),
                code: error["code"].as_i64().unwrap_or_default(),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            });
        }
        Ok(answer["result"].take())
    }

    /// A call whose answer has the shape of `T`.
    pub(crate) fn typed<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, RpcError> {
        let answer = self.call(method, params)?;
        serde_json::from_value(answer).map_err(|e| RpcError::unexpected(method, e))
    }

    /// A call that answers with a consensus-encoded object in hex.
    pub(crate) fn decoded<T: bitcoin::consensus::Decodable>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, RpcError> {
        let hex: String = self.typed(method, params)?;
        deserialize_hex(&hex).map_err(|e| RpcError::unexpected(method, e))
    }
}

/// Transactions as the hex strings RPCs take.
pub(crate) fn to_hex(transactions: &[bitcoin::Transaction]) -> Vec<String> {
    transactions.iter().map(serialize_hex).collect()
}
