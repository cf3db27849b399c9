//! One sale: what it is of, what it leaves, and its transaction.
//!
//! The transaction is `[channel, next stock, anchor]`, or `[channel, anchor]` when the channel takes
//! exactly everything. What would be left and be no output is never given to a miner: such an amount
//! is refused.

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, TxOut};

use super::Stock;
use crate::codec::fields;
use crate::scripts::{self, ANCHOR_VALUE, MIN_OUTPUT};
use crate::tree::{Role, TreeTx, fee, transaction, tree_tx};

/// What one sale is a function of, beside the output it spends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTerms {
    /// Capacity of the new channel.
    pub amount: Amount,
    /// The member's key in the channel's 2-of-2.
    pub member_funding_key: PublicKey,
    /// The LSP's key in the channel's 2-of-2.
    pub lsp_funding_key: PublicKey,
    /// SHA256 of the preimage that revokes the next stock output; none when everything is sold.
    pub next_hash: Option<[u8; 32]>,
}

fields!(LinkTerms {
    amount,
    member_funding_key,
    lsp_funding_key,
    next_hash,
});

impl LinkTerms {
    /// The new channel's output.
    pub fn channel_output(&self) -> TxOut {
        let script =
            scripts::channel_witness_script(&self.member_funding_key, &self.lsp_funding_key);
        TxOut {
            value: self.amount,
            script_pubkey: script.to_p2wsh(),
        }
    }
}

/// What can be sold out of one stock output: any amount from [`MIN_OUTPUT`] up to `up_to`, or
/// exactly `whole`. Zero stands for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sellable {
    /// The most that leaves another stock output.
    pub up_to: Amount,
    /// The amount that leaves none.
    pub whole: Amount,
}

impl Sellable {
    /// Whether a channel of `amount` can be sold.
    pub fn allows(&self, amount: Amount) -> bool {
        amount >= MIN_OUTPUT && (amount <= self.up_to || amount == self.whole)
    }
}

/// A sale as values.
#[derive(Debug, Clone)]
pub struct Link {
    /// The unsigned transaction.
    pub tx: TreeTx,
    /// The new channel's outpoint.
    pub channel: OutPoint,
    /// What is left; `None` after a sale of everything.
    pub next: Option<Stock>,
}

/// Why there is no such sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StockError {
    /// The amount is too small, or leaves what is no output, or is not there.
    #[error(
        "amount: up to {} sat or exactly {} sat can be sold",
        sellable.up_to.to_sat(),
        sellable.whole.to_sat()
    )]
    Amount {
        /// What can be sold.
        sellable: Sellable,
    },
    /// As many sales as the terms allow.
    #[error("max_sales: all {max_sales} sales of this stock have been made")]
    UsedUp {
        /// How many.
        max_sales: u8,
    },
    /// A hash for a next stock output that is not there, or none for one that is.
    #[error("next_hash: one is needed exactly when something is left")]
    NextHash,
    /// Both keys of the channel are the same.
    #[error("lsp_funding_key: it is the member's")]
    FundingKey,
    /// The final signature is invalid.
    #[error("signature: it is not both parties' for this sale")]
    Signature,
    /// The chain does not begin with such an output.
    #[error("origin: the first output is not locked as it says")]
    Origin,
}

impl StockError {
    /// What was wrong.
    pub fn field(&self) -> &'static str {
        match self {
            StockError::Amount { .. } => "amount",
            StockError::UsedUp { .. } => "link",
            StockError::NextHash => "next_hash",
            StockError::FundingKey => "lsp_funding_key",
            StockError::Signature => "signature",
            StockError::Origin => "origin",
        }
    }
}

impl Stock {
    /// Whether the terms allow another sale after those before this output.
    pub(super) fn may_be_sold(&self) -> bool {
        self.link < self.rules.max_sales
    }

    /// What can be sold out of this output.
    pub fn sellable(&self) -> Sellable {
        let without = |outputs: &[TxOut]| {
            let cost = fee(self.rules.tree_feerate, outputs) + ANCHOR_VALUE;
            self.value.checked_sub(cost).unwrap_or(Amount::ZERO)
        };
        let at_least = |amount: Amount| match amount >= MIN_OUTPUT {
            true => amount,
            false => Amount::ZERO,
        };
        let channel = shaped(scripts::P2WSH_SIZE);
        let stock = shaped(scripts::P2TR_SIZE);
        let with_next = without(&[channel.clone(), stock, scripts::anchor()]);
        let up_to = with_next.checked_sub(MIN_OUTPUT).unwrap_or(Amount::ZERO);
        Sellable {
            up_to: at_least(up_to),
            whole: at_least(without(&[channel, scripts::anchor()])),
        }
    }

    /// The sale of a channel out of this output.
    ///
    /// # Errors
    /// See [`StockError`].
    pub fn sell(&self, terms: &LinkTerms) -> Result<Link, StockError> {
        if !self.may_be_sold() {
            let max_sales = self.rules.max_sales;
            return Err(StockError::UsedUp { max_sales });
        }
        let sellable = self.sellable();
        if !sellable.allows(terms.amount) {
            return Err(StockError::Amount { sellable });
        }
        if terms.member_funding_key == terms.lsp_funding_key {
            return Err(StockError::FundingKey);
        }
        let everything = terms.amount == sellable.whole;
        let next = match (terms.next_hash, everything) {
            (None, true) => None,
            // More than the least output is left: `up_to` allows no less.
            (Some(hash), false) => Some((
                hash,
                sellable.up_to - terms.amount + MIN_OUTPUT,
                self.rules.key(hash),
            )),
            _ => return Err(StockError::NextHash),
        };
        let mut outputs = vec![terms.channel_output()];
        outputs.extend(next.as_ref().map(|(_, value, key)| TxOut {
            value: *value,
            script_pubkey: key.script_pubkey(),
        }));
        outputs.push(scripts::anchor());
        let tx = tree_tx(
            self.rules.node,
            Role::Sale(self.link),
            transaction(
                self.outpoint,
                Sequence::ENABLE_RBF_NO_LOCKTIME,
                LockTime::ZERO,
                outputs,
            ),
            self.output(),
            self.key.clone(),
        );
        let txid = tx.txid();
        Ok(Link {
            tx,
            channel: OutPoint::new(txid, 0),
            next: next.map(|(hash, value, key)| Stock {
                link: self.link + 1,
                outpoint: OutPoint::new(txid, 1),
                value,
                hash,
                key,
                rules: self.rules.clone(),
            }),
        })
    }
}

/// An output of a script that long: amounts are computed before keys are.
fn shaped(script_bytes: usize) -> TxOut {
    TxOut {
        value: Amount::ZERO,
        script_pubkey: ScriptBuf::from_bytes(vec![0; script_bytes]),
    }
}
