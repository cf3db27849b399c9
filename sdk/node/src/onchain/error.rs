//! What can go wrong with on-chain money.

use bdk_wallet::error::CreateTxError;
use bitcoin::{Amount, OutPoint, Txid};
use thiserror::Error;

use crate::chain::BroadcastError;
use crate::keys::KeysError;
use crate::store::StoreError;

/// A failed call on [`OnchainWallet`](super::OnchainWallet).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnchainError {
    /// The coins allowed for this are worth too little.
    #[error("{available} available of {needed} needed")]
    InsufficientFunds {
        /// Amounts and fee together.
        needed: Amount,
        /// What the coins allowed for this are worth.
        available: Amount,
    },
    /// An output is worth less than it costs to spend, and would not be relayed.
    #[error("output {index} is below the dust limit")]
    OutputBelowDust {
        /// Its place in the request, from 0.
        index: usize,
    },
    /// There is nothing to pay.
    #[error("a transaction needs at least one output")]
    NoOutputs,
    /// A coin that was asked for is not ours, not confirmed or spent.
    #[error("coin {outpoint} cannot be spent")]
    CoinNotSpendable {
        /// The coin.
        outpoint: OutPoint,
    },
    /// No coins are reserved for this transaction.
    #[error("nothing is reserved for {txid}")]
    NotReserved {
        /// The transaction.
        txid: Txid,
    },
    /// The transaction has been handed to the network: only the chain can settle its coins now.
    #[error("{txid} is published already")]
    AlreadyPublished {
        /// The transaction.
        txid: Txid,
    },
    /// The transaction has no unconfirmed output of ours a child could spend.
    #[error("{txid} has no unconfirmed output of ours to bump it with")]
    NothingToBump {
        /// The transaction.
        txid: Txid,
    },
    /// The transaction pays the feerate asked for already.
    #[error("{txid} pays that feerate already")]
    FeerateReached {
        /// The transaction.
        txid: Txid,
    },
    /// The transaction was refused, or could not be handed over.
    #[error(transparent)]
    Broadcast(#[from] BroadcastError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The seed cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The wallet library refused for a reason that no input of ours should cause.
    #[error("the wallet failed: {detail}")]
    Wallet {
        /// Its words.
        detail: String,
    },
}

impl OnchainError {
    pub(super) fn wallet(detail: impl ToString) -> Self {
        Self::Wallet {
            detail: detail.to_string(),
        }
    }
}

impl From<CreateTxError> for OnchainError {
    fn from(error: CreateTxError) -> Self {
        match error {
            CreateTxError::CoinSelection(error) => Self::InsufficientFunds {
                needed: error.needed,
                available: error.available,
            },
            CreateTxError::OutputBelowDustLimit(index) => Self::OutputBelowDust { index },
            CreateTxError::NoRecipients => Self::NoOutputs,
            other => Self::wallet(other),
        }
    }
}
