//! What can go wrong between us and the chain.

use std::io;
use std::path::PathBuf;

use bitcoin::{Network, Txid};
use lightning_block_sync::BlockSourceError;
use thiserror::Error;

use crate::store::StoreError;

/// The chain source, or our record of the chain, failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No answer: the source is down, still starting, or the network is. Try again later.
    #[error("the chain source does not answer: {detail}")]
    Unreachable {
        /// What the connection said.
        detail: String,
    },
    /// The source refuses our credentials.
    #[error("the chain source refuses the RPC credentials")]
    Unauthorized,
    /// The cookie file with the RPC credentials cannot be read.
    #[error("cannot read the cookie file {}: {source}", path.display())]
    Cookie {
        /// Where it was looked for.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The source follows another network.
    #[error("the chain source is on network {found}, not {expected}")]
    WrongNetwork {
        /// Core's name of its network.
        found: String,
        /// Ours.
        expected: Network,
    },
    /// The source answered a call with an error.
    #[error("{method} failed with code {code}: {message}")]
    Rpc {
        /// The RPC method.
        method: &'static str,
        /// Bitcoin Core's error code.
        code: i64,
        /// Its message.
        message: String,
    },
    /// The source's answer makes no sense: wrong type, bad proof of work, a block that does not
    /// link.
    #[error("the chain source's answer cannot be used: {detail}")]
    Unexpected {
        /// What was wrong with it.
        detail: String,
    },
    /// The follower has been stopped.
    #[error("the chain is no longer followed")]
    Stopped,
    /// Our own record of the chain failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChainError {
    pub(super) fn unexpected(detail: impl ToString) -> Self {
        Self::Unexpected {
            detail: detail.to_string(),
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Rpc { .. })
    }
}

impl From<BlockSourceError> for ChainError {
    fn from(error: BlockSourceError) -> Self {
        match error.into_inner().downcast::<ChainError>() {
            Ok(ours) => *ours,
            Err(other) => Self::unexpected(other),
        }
    }
}

impl From<ChainError> for BlockSourceError {
    fn from(error: ChainError) -> Self {
        if error.is_transient() {
            Self::transient(error)
        } else {
            Self::persistent(error)
        }
    }
}

/// A transaction was not accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The source looked at it and refused.
    #[error("transaction {txid} was refused: {rejection} ({detail})")]
    Rejected {
        /// The transaction; in a package, the one that was at fault.
        txid: Txid,
        /// Why, in kind.
        rejection: Rejection,
        /// Why, in the source's words.
        detail: String,
    },
    /// The source could not be asked.
    #[error(transparent)]
    Source(#[from] ChainError),
}

/// Why a transaction was refused, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Rejection {
    /// An input is spent or its transaction is unknown: it conflicts with the chain, or a parent
    /// has to go first.
    #[error("an input is missing or spent")]
    MissingInputs,
    /// Its absolute lock time lies ahead: wait for the height.
    #[error("its lock time lies ahead")]
    NotFinal,
    /// A relative lock time of an input is not over: wait for the input's depth.
    #[error("a relative lock time is not over")]
    NotBip68Final,
    /// It pays less than the mempool asks: add a child, or wait.
    #[error("its fee is too low")]
    FeeTooLow,
    /// It spends what an unconfirmed transaction spends and does not pay enough to replace that.
    #[error("it conflicts with an unconfirmed transaction")]
    Conflict,
    /// It breaks the topology rules of version 3 transactions (BIP431): wait for the parent.
    #[error("it breaks the rules of version 3 transactions")]
    Truc,
    /// Relay policy forbids it: dust, size, chain length, non-standard script.
    #[error("relay policy forbids it")]
    Policy,
    /// Consensus forbids it, with these inputs, for ever.
    #[error("it is invalid")]
    Invalid,
}

impl Rejection {
    /// Reads Bitcoin Core's reject reason (`validation.cpp`, `policy/policy.cpp`): a code, then
    /// possibly a comma and details.
    pub(super) fn from_core(reason: &str) -> Self {
        let code = reason
            .split(&[',', '('][..])
            .next()
            .unwrap_or(reason)
            .trim();
        match code {
            "bad-txns-inputs-missingorspent" | "missing-inputs" => Self::MissingInputs,
            "non-final" => Self::NotFinal,
            "non-BIP68-final" => Self::NotBip68Final,
            "min relay fee not met" | "mempool min fee not met" | "mempool full" => Self::FeeTooLow,
            "insufficient fee"
            | "replacement-failed"
            | "too many potential replacements"
            | "txn-mempool-conflict"
            | "txn-same-nonwitness-data-in-mempool"
            | "bip125-replacement-disallowed"
            | "bad-txns-spends-conflicting-tx" => Self::Conflict,
            "TRUC-violation" => Self::Truc,
            "dust"
            | "version"
            | "tx-size"
            | "tx-size-small"
            | "scriptpubkey"
            | "scriptsig-size"
            | "scriptsig-not-pushonly"
            | "bare-multisig"
            | "datacarrier"
            | "multi-op-return"
            | "too-large-cluster"
            | "too-long-mempool-chain"
            | "max feerate exceeded"
            | "package-mempool-limits"
            | "mempool-script-verify-flag-failed"
            | "non-mandatory-script-verify-flag"
            | "bad-txns-nonstandard-inputs"
            | "bad-txns-too-many-sigops"
            | "bad-witness-nonstandard" => Self::Policy,
            _ => Self::Invalid,
        }
    }
}
