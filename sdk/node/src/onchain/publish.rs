//! Handing own transactions to the network, until they confirm.

use bitcoin::{Transaction, Txid};
use tracing::warn;

use super::{OnchainError, OnchainWallet};
use crate::chain::BroadcastError;

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

    /// Publishes every own unconfirmed transaction again: at start-up, and after each block. One
    /// that is refused is kept: it was accepted before, and after a reorganisation its parents may
    /// only be on their way back. What a confirmed transaction contradicts is no longer ours.
    pub async fn republish(&self) -> Result<(), OnchainError> {
        for tx in self.unconfirmed() {
            match self.source.broadcast(&tx).await {
                Ok(_) => {}
                Err(BroadcastError::Source(error)) => {
                    return Err(BroadcastError::from(error).into());
                }
                Err(refused) => warn!(%refused, "an own transaction was not accepted again"),
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

    /// Publishes a transaction for the first time. What is refused is forgotten, so that nothing is
    /// paid later that the caller was told has failed; what could not be handed over is kept.
    pub(super) async fn hand_over(&self, tx: &Transaction) -> Result<(), OnchainError> {
        match self.source.broadcast(tx).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, BroadcastError::Rejected { .. }) {
                    self.forget(tx.compute_txid())?;
                }
                Err(error.into())
            }
        }
    }

    /// The network will not have it: its coins are free again, unless reserved.
    pub(crate) fn forget(&self, txid: Txid) -> Result<(), OnchainError> {
        let mut state = self.state();
        let moment = state.moment();
        state.wallet.apply_evicted_txs([(txid, moment)]);
        Ok(self.save(&mut state)?)
    }
}
