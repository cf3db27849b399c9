//! Own coins that speed exits up: gathers the facts for the core's decision and carries it out.
//!
//! What always holds: a child is on disk before it is handed over, and the same one is handed over
//! again with every block until its parent confirms; without a coin a transaction goes out alone.

use std::collections::BTreeSet;

use bitcoin::{Amount, FeeRate, Transaction, Txid};
use superscalar_factory::exit::bump::{
    Bump, BumpFacts, FeeCaps, LEAST_CHANGE, MAX_CHILD_VSIZE_VB, Shortfall, Sibling, decide,
};
use superscalar_factory::exit::{Goal, Progress, SignedPath, Waiting};

use super::engine::Engine;
use super::error::EngineError;
use super::info::{SpeedUp, SpeedUpLimit};
use crate::chain::Chain;
use crate::onchain::{AnchorChild, OnchainWallet};

/// A transaction of an exit should confirm within so many blocks: the terms budget twelve.
pub(crate) const TARGET_BLOCKS: u16 = 12;

/// What an exit may do with own coins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purse<'a> {
    /// Whose coins: the exit's name.
    pub(crate) exit: &'a str,
    /// The amount leaving, of which the caps are shares.
    pub(crate) leaving: Amount,
    /// The feerate asked for, if one was.
    pub(crate) feerate: Option<FeeRate>,
}

/// What speeds transactions of a tree up: the chain they go to, the coins, and how much of them.
#[derive(Clone, Copy)]
pub(crate) struct Payer<'a> {
    /// Where they are published.
    pub(crate) chain: &'a Chain,
    /// Whose coins.
    pub(crate) onchain: &'a OnchainWallet,
    /// How much of them.
    pub(crate) caps: FeeCaps,
}

impl Payer<'_> {
    /// Publishes a transaction that is due, with a child where one is wanted and can be had.
    pub(crate) async fn publish_due(
        &self,
        purse: Purse<'_>,
        path: &SignedPath,
        tx: &Transaction,
    ) -> Result<SpeedUp, EngineError> {
        let (bump, own, rival) = self.judge(purse, path, tx).await?;
        let own = own.filter(|child| child.stands);
        let (child, told) = match bump {
            Bump::Make(plan, short) => {
                let anchor = SignedPath::anchor(tx);
                let anchor = anchor.ok_or_else(|| EngineError::Exit("no anchor".to_owned()))?;
                let onchain = self.onchain;
                let child = onchain.build_anchor_child(purse.exit, anchor, &plan)?;
                let cost = own_cost(plan.fee);
                let told = own_child(&child, cost, short);
                (Some(child), told)
            }
            Bump::KeepOwn(short) => match own {
                Some(child) => {
                    let told = own_child(&child.tx, child.cost, short);
                    (Some(child.tx), told)
                }
                None => (None, SpeedUp::NotNeeded),
            },
            Bump::LiveWithRival(short) => {
                let told = SpeedUp::OthersChild {
                    txid: rival.map(|txid| txid.to_string()).unwrap_or_default(),
                    limit: short.map(limit),
                };
                (None, told)
            }
            Bump::Alone(short) => (
                None,
                SpeedUp::Limited {
                    limit: limit(short),
                },
            ),
            _ => (None, SpeedUp::NotNeeded),
        };
        self.hand_over(tx, child).await;
        Ok(told)
    }

    pub(crate) async fn publish_alone(&self, tx: &Transaction) {
        self.hand_over(tx, None).await;
    }

    /// What the core decides on the facts of this moment, with our newest child and somebody
    /// else's.
    async fn judge(
        &self,
        purse: Purse<'_>,
        path: &SignedPath,
        tx: &Transaction,
    ) -> Result<(Bump, Option<AnchorChild>, Option<Txid>), EngineError> {
        let (chain, onchain) = (self.chain, self.onchain);
        let source = chain.source();
        if let Err(error) = chain.fees().refresh(&**source).await {
            tracing::debug!(%error, "feerates were not refreshed");
        }
        let parent = path.parent(tx);
        let txid = tx.compute_txid();
        let target = self.target(purse.feerate);
        let suffices = target.fee_vb(parent.vsize_vb);
        if SignedPath::anchor(tx).is_none() || suffices.is_some_and(|fee| fee <= parent.fee) {
            return Ok((Bump::NotNeeded, None, None));
        }
        let own = onchain.anchor_child(txid)?;
        let own_txid = own.as_ref().map(|child| child.tx.compute_txid());
        let entry = source.mempool_entry(txid).await?;
        let children = entry.map_or_else(Vec::new, |entry| entry.spent_by);
        // Beside ours there is none, but for what a reorg has left there for a moment.
        let is_ours = own_txid.is_some_and(|own| children.contains(&own));
        let rival = children.into_iter().find(|_| !is_ours);
        let rival_entry = match rival {
            Some(rival) => source.mempool_entry(rival).await?,
            None => None,
        };
        let (busy, pending) = self.busy(purse.exit, txid).await?;
        let spent = onchain.paid_through(&path.anchors()) + pending;
        let coins = onchain.coins_for_exit(purse.exit, txid, &busy)?;
        let stands = own.as_ref().filter(|child| child.stands);
        let bump = decide(&BumpFacts {
            parent,
            target,
            minimum: chain.fees().mempool_minimum(),
            own: stands.map(|child| Sibling {
                fee: child.fee,
                vsize_vb: child.tx.vsize() as u64,
            }),
            rival: rival_entry.map(|entry| Sibling {
                fee: Amount::from_sat(entry.fee_sat),
                vsize_vb: entry.vsize.min(MAX_CHILD_VSIZE_VB),
            }),
            coins: &coins,
            allowance: self.caps.allowance(purse.leaving, spent),
        });
        Ok((bump, own, rival))
    }

    /// The feerate a due transaction should have: the market's, or more where that was asked for.
    fn target(&self, asked: Option<FeeRate>) -> FeeRate {
        let market = self.chain.fees().known_within(TARGET_BLOCKS);
        asked.map_or(market, |asked| asked.max(market))
    }

    /// Children on other transactions of an exit that are in the mempool, and what they cost. One
    /// whose parent confirmed without it, and that nobody has any more, blocks no coins.
    async fn busy(&self, exit: &str, parent: Txid) -> Result<(Vec<Txid>, Amount), EngineError> {
        let mut busy = (Vec::new(), Amount::ZERO);
        for child in self.onchain.anchor_children(exit)? {
            let txid = child.tx.compute_txid();
            let source = self.chain.source();
            if child.parent != parent && source.mempool_entry(txid).await?.is_some() {
                busy.0.push(txid);
                busy.1 += child.cost;
            }
        }
        Ok(busy)
    }

    /// After a reorg: a child that is neither in a block nor in the mempool takes no coins. Its
    /// anchor may have gone to somebody else's for good; if not it is published again.
    pub(crate) async fn forget_displaced(&self, exit: &str) -> Result<(), EngineError> {
        let onchain = self.onchain;
        for txid in onchain.displaced_children(exit)? {
            let entry = self.chain.source().mempool_entry(txid).await?;
            if entry.is_none() {
                onchain.forget(txid)?;
            }
        }
        Ok(())
    }

    async fn hand_over(&self, tx: &Transaction, child: Option<Transaction>) {
        let source = self.chain.source();
        let txid = tx.compute_txid();
        let handed = match child {
            None => source.broadcast(tx).await,
            Some(child) => source.broadcast_package(&[tx.clone(), child]).await,
        };
        match handed {
            Ok(_) => tracing::info!(%txid, "published"),
            Err(error) => tracing::info!(%txid, %error, "not published yet"),
        }
    }
}

/// Publishes the first of these, which spend the same output and pay ever more, that the mempool
/// takes: what somebody else spends it with may have to be replaced.
pub(crate) async fn publish_cheapest(
    chain: &Chain,
    txs: impl IntoIterator<Item = &Transaction>,
) -> Option<Txid> {
    for tx in txs {
        let txid = tx.compute_txid();
        match chain.source().broadcast(tx).await {
            Ok(_) => {
                tracing::info!(%txid, "claimed");
                return Some(txid);
            }
            Err(error) => tracing::info!(%txid, %error, "not taken at this feerate"),
        }
    }
    None
}

impl Engine {
    pub(super) fn payer(&self) -> Payer<'_> {
        Payer {
            chain: &self.parts.chain,
            onchain: &self.parts.onchain,
            caps: self.parts.fee_caps,
        }
    }

    /// Gets an exit's coins ready. Whatever keeps them from helping is told and goes no further: the
    /// tree is published all the same.
    pub(super) async fn ready_coins(
        &self,
        purse: Purse<'_>,
        path: &SignedPath,
        progress: &Progress,
    ) {
        let displaced = self.payer().forget_displaced(purse.exit).await;
        if let Err(error) = displaced.and_then(|()| self.keep_coins(purse, path, progress)) {
            tracing::warn!(exit = purse.exit, %error, "coins are not ready for an exit");
        }
    }

    /// Keeps coins for an exit that is under way: what it may still spend. An LSP keeps none before
    /// a child spends them: no member may tie up the coin that it funds factories from.
    fn keep_coins(
        &self,
        purse: Purse<'_>,
        path: &SignedPath,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let Progress::Underway { waiting, .. } = progress else {
            return Ok(());
        };
        if self.parts.is_lsp {
            return Ok(());
        }
        // Who waits for T goes on living with its coins till then.
        if matches!(waiting, Waiting::Expiry { .. }) {
            return Ok(());
        }
        let spent = self.parts.onchain.paid_through(&path.anchors());
        let left = self.parts.fee_caps.left(purse.leaving, spent);
        if left > Amount::ZERO {
            let amount = left + LEAST_CHANGE;
            self.parts.onchain.keep_for_exit(purse.exit, amount)?;
        }
        Ok(())
    }

    /// Frees the coins of every exit but those.
    pub(super) fn release_coins(&self, running: &BTreeSet<String>) {
        let onchain = &self.parts.onchain;
        let released = onchain.exits_with_coins().and_then(|exits| {
            let over = exits.iter().filter(|exit| !running.contains(*exit));
            over.into_iter().try_for_each(|it| onchain.release_exit(it))
        });
        if let Err(error) = released {
            tracing::warn!(%error, "coins of an exit stay reserved until the next block");
        }
    }

    /// What own coins have paid for an exit: confirmed children, and those on their way.
    pub(super) async fn paid(&self, exit: &str, path: &SignedPath) -> Result<Amount, EngineError> {
        let (_, pending) = self.payer().busy(exit, path.funding().txid).await?;
        Ok(self.parts.onchain.paid_through(&path.anchors()) + pending)
    }

    /// The amount that leaves: what a distribution pays, or what is ours in all channels,
    /// HTLCs that only the chain settles included.
    pub(super) fn leaving(&self, exit: &str, goal: Goal, path: &SignedPath) -> Amount {
        if goal != Goal::Leave {
            let planned = superscalar_factory::exit::plan(path, goal, &Default::default());
            return planned.map_or(Amount::ZERO, |plan| plan.status.figures.arriving);
        }
        let host = &self.parts.host;
        let each = self.channels_of_exit(exit).into_iter().map(|id| {
            let msat = match (host.channel_state(&id), host.slot(&id)) {
                (Some(state), _) => state.balance_msat,
                (None, Some(slot)) => slot.last_balance_msat + slot.at_stake_msat,
                (None, None) => 0,
            };
            Amount::from_sat(msat / 1_000)
        });
        each.sum()
    }

    /// Whether the coins there are would speed the exits of all these factories up to `feerate`.
    pub(super) fn can_pay_exits(&self, factories: &[String], feerate: FeeRate) -> bool {
        let mut needed = Amount::ZERO;
        let mut at_hand = self.parts.onchain.balance().spendable;
        for factory in factories {
            let planned = self.signed_path(factory).ok().and_then(|path| {
                superscalar_factory::exit::plan(&path, Goal::Leave, &Default::default()).ok()
            });
            // Without a path nothing is active.
            let Some(planned) = planned else { continue };
            needed += planned.status.figures.coins_needed(feerate);
            let kept = self.parts.onchain.kept_for_exit(factory);
            at_hand += kept.unwrap_or(Amount::ZERO);
        }
        at_hand >= needed
    }

    /// The coins an exit could use now: free ones, and those kept for it.
    pub(super) fn coins_at_hand(&self, exit: &str) -> Result<(Amount, Amount), EngineError> {
        let onchain = &self.parts.onchain;
        Ok((onchain.balance().spendable, onchain.kept_for_exit(exit)?))
    }
}

fn own_cost(fee: Amount) -> Amount {
    let anchor = superscalar_factory::scripts::ANCHOR_VALUE;
    fee.checked_sub(anchor).unwrap_or(Amount::ZERO)
}

fn own_child(child: &Transaction, cost: Amount, short: Option<Shortfall>) -> SpeedUp {
    SpeedUp::OwnChild {
        txid: child.compute_txid().to_string(),
        cost_sat: cost.to_sat(),
        limit: short.map(limit),
    }
}

fn limit(short: Shortfall) -> SpeedUpLimit {
    match short {
        Shortfall::Cap { needed, allowed } => SpeedUpLimit::Cap {
            needed_sat: needed.to_sat(),
            allowed_sat: allowed.to_sat(),
        },
        Shortfall::Coins { needed } => SpeedUpLimit::Coins {
            needed_sat: needed.to_sat(),
        },
        _ => SpeedUpLimit::Coins { needed_sat: 0 },
    }
}
