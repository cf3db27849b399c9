//! Ordinary payments, and children that speed a slow transaction up.

use bdk_wallet::coin_selection::LargestFirstCoinSelection;
use bdk_wallet::{KeychainKind, LocalOutput};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};

use super::{OnchainError, OnchainWallet, State};

impl OnchainWallet {
    /// Pays `amount` to `script` from confirmed coins and own change, and publishes it.
    ///
    /// # Errors
    /// With [`BroadcastError::Rejected`](crate::chain::BroadcastError::Rejected) the transaction is
    /// forgotten and its coins are free. With
    /// [`BroadcastError::Source`](crate::chain::BroadcastError::Source) nobody knows whether it
    /// arrived: it counts as sent and is published again by [`republish`](Self::republish).
    pub async fn send(
        &self,
        script: ScriptBuf,
        amount: Amount,
        feerate: FeeRate,
    ) -> Result<Transaction, OnchainError> {
        let tx = self.build_payment(script, amount, feerate)?;
        self.hand_over(&tx).await?;
        Ok(tx)
    }

    fn build_payment(
        &self,
        script: ScriptBuf,
        amount: Amount,
        feerate: FeeRate,
    ) -> Result<Transaction, OnchainError> {
        let mut state = self.state();
        let excluded = state.excluded(|own, confirmed| own || confirmed);
        let mut builder = state.wallet.build_tx();
        builder
            .add_recipient(script, amount)
            .fee_rate(feerate)
            .unspendable(excluded);
        let psbt = builder.finish()?;
        let tx = self.sign(&state.wallet, psbt)?;
        self.remember(&mut state, &tx)?;
        Ok(tx)
    }

    /// Publishes a child that spends an unconfirmed output of ours in `parent`, so that both
    /// together pay `feerate`. Confirmed coins are added when that output is worth too little.
    pub async fn bump_by_cpfp(
        &self,
        parent: Txid,
        feerate: FeeRate,
    ) -> Result<Transaction, OnchainError> {
        let child = self.build_child(parent, feerate)?;
        self.hand_over(&child).await?;
        Ok(child)
    }

    fn build_child(&self, parent: Txid, feerate: FeeRate) -> Result<Transaction, OnchainError> {
        let mut state = self.state();
        let nothing = || OnchainError::NothingToBump { txid: parent };
        let coin = state
            .wallet
            .list_unspent()
            .filter(|coin| coin.outpoint.txid == parent && state.confirmed_at(coin).is_none())
            .max_by_key(|coin| coin.txout.value)
            .ok_or_else(nothing)?
            .outpoint;
        let tx = state.wallet.get_tx(parent).ok_or_else(nothing)?.tx_node.tx;
        let parent_fee = state.wallet.calculate_fee(&tx).map_err(|_| nothing())?;
        // In whole vbytes of each, as the mempool counts.
        let wanted = |vbytes: usize| feerate.fee_vb(vbytes as u64).unwrap_or(Amount::MAX_MONEY);
        if parent_fee >= wanted(tx.vsize()) {
            return Err(OnchainError::FeerateReached { txid: parent });
        }
        // The child's size depends on the coins it needs, these on the fee, the fee on the
        // size: begin with the parent's shortfall and add the child's own share until it holds.
        let mut fee = wanted(tx.vsize()) - parent_fee;
        let child = loop {
            let psbt = state.child(coin, tx.version.0, fee)?;
            let child = self.sign(&state.wallet, psbt)?;
            let needed = wanted(tx.vsize() + child.vsize()) - parent_fee;
            if fee >= needed {
                break child;
            }
            fee = needed;
        };
        self.remember(&mut state, &child)?;
        Ok(child)
    }

    /// Takes an own transaction into the wallet as unconfirmed, durably, before it is published.
    pub(super) fn remember(&self, state: &mut State, tx: &Transaction) -> Result<(), OnchainError> {
        let moment = state.moment();
        state.wallet.apply_unconfirmed_txs([(tx.clone(), moment)]);
        Ok(self.save(state)?)
    }
}

impl State {
    /// Coins that may not be used, by `allowed(own_change, confirmed)`.
    pub(super) fn excluded(&self, allowed: impl Fn(bool, bool) -> bool) -> Vec<OutPoint> {
        self.wallet
            .list_unspent()
            .filter(|coin| {
                let own = coin.keychain == KeychainKind::Internal;
                let confirmed = self.confirmed_at(coin).is_some();
                // Unconfirmed version 3 outputs cannot be spent by the version 2 made here.
                !allowed(own, confirmed) || (!confirmed && self.is_version_3(coin))
            })
            .map(|coin| coin.outpoint)
            .collect()
    }

    fn is_version_3(&self, coin: &LocalOutput) -> bool {
        let tx = self.wallet.get_tx(coin.outpoint.txid);
        tx.is_some_and(|tx| tx.tx_node.tx.version.0 == 3)
    }

    /// One input, all of it back to us less `fee`; with more confirmed coins only if it must be.
    fn child(
        &mut self,
        coin: OutPoint,
        version: i32,
        fee: Amount,
    ) -> Result<bitcoin::Psbt, OnchainError> {
        let change = self
            .wallet
            .next_unused_address(KeychainKind::Internal)
            .script_pubkey();
        let not_ours = |_| OnchainError::CoinNotSpendable { outpoint: coin };
        let mut alone = self.wallet.build_tx();
        alone.add_utxo(coin).map_err(not_ours)?;
        alone
            .manually_selected_only()
            .version(version)
            .drain_to(change.clone())
            .fee_absolute(fee);
        if let Ok(psbt) = alone.finish() {
            return Ok(psbt);
        }
        let excluded = self.excluded(|_, confirmed| confirmed);
        // Largest first: no more coins than needed, and the same ones for the same fee, without
        // which the search for the fee might not settle.
        let mut helped = self
            .wallet
            .build_tx()
            .coin_selection(LargestFirstCoinSelection);
        helped.add_utxo(coin).map_err(not_ours)?;
        helped
            .unspendable(excluded)
            .version(version)
            .drain_to(change)
            .fee_absolute(fee);
        Ok(helped.finish()?)
    }
}
