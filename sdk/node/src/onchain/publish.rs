//! Handing own transactions to the network, until they confirm.

use bitcoin::{Transaction, Txid};
use tracing::{info, warn};

use super::{OnchainError, OnchainWallet};
use crate::chain::{BroadcastError, Rejection};

impl OnchainWallet {
    /// Publishes a transaction built by [`build_funding`](Self::build_funding). From now on the
    /// wallet counts it as its own unconfirmed transaction and publishes it again until it
    /// confirms.
    ///
    /// # Errors
    /// [`OnchainError::Broadcast`] when it was refused: the wallet does not count it any more, but
    /// its coins stay reserved until it is published again or released.
    pub async fn publish(&self, tx: &Transaction) -> Result<(), OnchainError> {
        self.note_unconfirmed(std::slice::from_ref(tx))?;
        self.hand_over(tx).await
    }

    /// Tells the wallet of unconfirmed transactions of others, such as a sweep of a closed channel
    /// to one of its addresses. Those without a coin of ours are ignored.
    pub fn note_unconfirmed(&self, txs: &[Transaction]) -> Result<(), OnchainError> {
        let mut state = self.state();
        for tx in txs {
            self.remember(&mut state, tx)?;
        }
        Ok(())
    }

    /// Publishes every own unconfirmed transaction again: at start-up, and now and then. What the
    /// network refuses for good stops being counted; the rest is tried again next time.
    pub async fn republish(&self) -> Result<(), OnchainError> {
        for tx in self.unconfirmed() {
            match self.hand_over(&tx).await {
                Err(OnchainError::Broadcast(error)) => {
                    info!(txid = %tx.compute_txid(), %error, "not published again");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Own transactions that are not in a block, parents before children.
    pub fn unconfirmed(&self) -> Vec<Transaction> {
        let state = self.state();
        let own = state.wallet.transactions().filter(|tx| {
            let (sent, _) = state.wallet.sent_and_received(&tx.tx_node.tx);
            !tx.chain_position.is_confirmed() && sent > bitcoin::Amount::ZERO
        });
        let mut waiting: Vec<Transaction> = own.map(|tx| (*tx.tx_node.tx).clone()).collect();
        let mut ordered = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let open: Vec<Txid> = waiting.iter().map(Transaction::compute_txid).collect();
            let (later, now): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|tx| {
                tx.input
                    .iter()
                    .any(|input| open.contains(&input.previous_output.txid))
            });
            ordered.extend(now);
            waiting = later;
        }
        ordered
    }

    pub(super) async fn hand_over(&self, tx: &Transaction) -> Result<(), OnchainError> {
        match self.source.broadcast(tx).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if is_final(&error) {
                    self.forget(tx.compute_txid())?;
                }
                Err(error.into())
            }
        }
    }

    /// The network will not have it: its coins are free again, unless reserved.
    fn forget(&self, txid: Txid) -> Result<(), OnchainError> {
        let mut state = self.state();
        let moment = state.moment();
        state.wallet.apply_evicted_txs([(txid, moment)]);
        warn!(%txid, "an own transaction was refused");
        Ok(self.save(&mut state)?)
    }
}

/// Whether publishing the same bytes later cannot help without the chain taking something back.
fn is_final(error: &BroadcastError) -> bool {
    match error {
        BroadcastError::Source(_) => false,
        BroadcastError::Rejected { rejection, .. } => !matches!(
            rejection,
            Rejection::FeeTooLow | Rejection::NotFinal | Rejection::NotBip68Final
        ),
    }
}
