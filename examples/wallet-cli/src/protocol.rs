//! What the commands and the daemon say to each other: one JSON object a line, a [`Request`] one
//! way and a [`Response`] the other.
//!
//! What always holds: a line is at most [`MAX_REQUEST_BYTES`] or [`MAX_RESPONSE_BYTES`] long, and
//! an unknown call or key is an error, not ignored.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use superscalar_sdk::{Closing, EpochConsent, ExitMode, InboundQuote, JoinRequest, WalletError};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::export::Passphrase;

/// The longest request is one with an invoice.
pub(crate) const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// The longest response is a list of payments.
pub(crate) const MAX_RESPONSE_BYTES: u64 = 64 * 1024 * 1024;

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    Status {},
    Join(JoinRequest),
    Receive {
        amount_msat: Option<u64>,
        description: String,
        expiry_secs: u32,
    },
    ReceiveJit {
        amount_msat: u64,
        description: String,
        expiry_secs: u32,
        max_fee_msat: u64,
    },
    QuoteJit {
        amount_msat: u64,
    },
    Channels {},
    CloseChannel {
        channel: String,
        how: Closing,
    },
    Send {
        invoice: String,
        amount_msat: Option<u64>,
    },
    Payment {
        payment_hash: String,
    },
    Payments {},
    Balance {},
    Factories {},
    Tree {
        factory: String,
    },
    InboundQuote {
        factory: String,
        capacity_sat: u64,
        max_price_msat: u64,
    },
    InboundBuy(InboundQuote),
    Consent {
        factory: String,
        consent: EpochConsent,
    },
    ExitPlan {
        factory: String,
    },
    ExitStart {
        factory: String,
        mode: ExitMode,
        #[serde(default)]
        accept_restored_state: bool,
    },
    ExitStatus {},
    ExitSpeedUp {
        factory: String,
        feerate_sat_per_vb: u64,
    },
    ExitExport {
        passphrase: Passphrase,
    },
    Address {},
    Towers {},
    TowerId {
        tower: String,
    },
    Coins {},
    SendCoins {
        address: String,
        amount_sat: u64,
        feerate_sat_per_vb: Option<u64>,
    },
    Events {
        after: u64,
        limit: u32,
        /// How long to wait for the first one.
        wait_ms: u64,
    },
    Connect {},
    Sync {},
    Stop {},
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    /// It is done; what came of it.
    Done(Value),
    /// It is not done.
    Failed(Failure),
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// Stable, for programs.
    pub(crate) code: String,
    /// For people.
    pub(crate) message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Whether the same call may succeed later.
    pub(crate) retryable: bool,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl ToString) -> Failure {
        Failure {
            code: code.to_owned(),
            message: message.to_string(),
            hint: None,
            retryable: false,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl From<WalletError> for Failure {
    fn from(error: WalletError) -> Failure {
        let hint = match error.code() {
            "no_active_channel" => {
                Some("join a factory first; `factories` shows when it is active")
            }
            "unknown_factory" => Some("`factories` lists the names"),
            "chain_unreachable" | "chain_unauthorized" | "chain_failed" => {
                Some("is bitcoind running, and are address and credentials right?")
            }
            "already_paid" => Some("`payments` shows it"),
            "factory_damaged" => Some("the other factories run; restore the wallet's directory"),
            "no_distributions" => Some("leave without --reclaim, before the factory ends"),
            "nothing_to_export" => Some("`factories` shows when one is complete"),
            "no_exit" => Some("`exit start` begins one"),
            "unconfirmed_state" => Some("`exit start --accept-restored-state` takes it as it is"),
            "no_path" => Some("the factory does not exist yet: there is nothing to leave"),
            _ => None,
        };
        Failure {
            code: error.code().to_owned(),
            message: error.to_string(),
            hint: hint.map(str::to_owned),
            retryable: error.retryable(),
        }
    }
}

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LineError {
    /// The other side is gone or the line broke.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Longer than allowed.
    #[error("a line is longer than {limit} bytes")]
    TooLong { limit: u64 },
    /// The connection ended inside a line.
    #[error("the connection ended inside a line")]
    Cut,
    /// No JSON, or none of ours.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// Reads one line; `None` when the other side has closed.
pub(crate) async fn read<T: for<'de> Deserialize<'de>>(
    from: &mut (impl AsyncBufRead + Unpin),
    limit: u64,
) -> Result<Option<T>, LineError> {
    let mut line = Vec::new();
    from.take(limit).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) if line.len() as u64 == limit => Err(LineError::TooLong { limit }),
        Some(_) => Err(LineError::Cut),
    }
}

/// Writes one line.
pub(crate) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), LineError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    Ok(to.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Option<Request>, LineError> {
        read(&mut tokio::io::BufReader::new(bytes), 100).await
    }

    #[tokio::test]
    async fn requests_and_responses_come_out_as_they_went_in() {
        let requests = [
            Request::Status {},
            Request::Join(JoinRequest::standard(1)),
            Request::ExitStart {
                factory: "ab".to_owned(),
                mode: ExitMode::Reclaim,
                accept_restored_state: true,
            },
            Request::Receive {
                amount_msat: None,
                description: "zwei Kaffee\nund Kuchen".to_owned(),
                expiry_secs: 60,
            },
        ];
        let mut bytes = Vec::new();
        for request in &requests {
            write(&mut bytes, request).await.unwrap();
        }
        let mut from = tokio::io::BufReader::new(&bytes[..]);
        for request in requests {
            let came: Option<Request> = read(&mut from, 1_000).await.unwrap();
            assert_eq!(came, Some(request));
        }
        assert!(read::<Request>(&mut from, 1_000).await.unwrap().is_none());

        let failure = Failure::new("code", "message").hint("hint");
        for response in [
            Response::Done(serde_json::json!({"height": 1})),
            Response::Failed(failure),
        ] {
            let mut bytes = Vec::new();
            write(&mut bytes, &response).await.unwrap();
            let came: Option<Response> = read(&mut &bytes[..], 1_000).await.unwrap();
            assert_eq!(came, Some(response));
        }
    }

    #[tokio::test]
    async fn a_place_is_asked_for_under_the_standard_limits_unless_others_are_named() {
        let plain = read_all(b"{\"call\":\"join\",\"capacity_sat\":1}\n").await;
        assert_eq!(
            plain.unwrap(),
            Some(Request::Join(JoinRequest::standard(1)))
        );
        let policies = "\"policies\":[\"lsp_reclaims\"]";
        let line = format!("{{\"call\":\"join\",\"capacity_sat\":1,{policies}}}\n");
        let named = JoinRequest {
            policies: vec![superscalar_sdk::Policy::LspReclaims],
            ..JoinRequest::standard(1)
        };
        let came = read_all(line.as_bytes()).await.unwrap();
        assert_eq!(came, Some(Request::Join(named)));
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let long = format!("{{\"call\":\"{}\"}}\n", "x".repeat(200));
        for (line, problem) in [
            ("\n", "EOF while parsing"),
            ("status\n", "expected value"),
            ("{}\n", "missing field `call`"),
            ("{\"call\":\"fly\"}\n", "unknown variant `fly`"),
            ("{\"call\":\"join\"}\n", "missing field `capacity_sat`"),
            ("{\"call\":\"join\",\"capacity_sat\":-1}\n", "-1"),
            (
                "{\"call\":\"join\",\"capacity_sat\":1,\"x\":2}\n",
                "unknown field `x`",
            ),
            ("{\"call\":\"status\"}", "ended inside a line"),
            (&long, "longer than 100 bytes"),
        ] {
            let error = read_all(line.as_bytes()).await.unwrap_err().to_string();
            assert!(error.contains(problem), "{line}: {error}");
        }
    }
}
