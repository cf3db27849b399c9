//! Ends that come with a height: a wallet leaves in time, an LSP takes what is left to it alone,
//! and a channel whose output can never be on chain is closed.
//!
//! What always holds: the LSP takes no branch that somebody has begun to open; everything here is
//! a function of the chain and of what is on disk, tried again with every block.

use bitcoin::{FeeRate, OutPoint, Transaction};
use superscalar_factory::coordinator::{Built, Coordinator};
use superscalar_factory::exit::{self, ChainFacts, Goal, Progress, Spend, Worth};
use superscalar_factory::member::Member;
use superscalar_factory::terms::TimeoutPolicy;

use super::bridge;
use super::bumps::TARGET_BLOCKS;
use super::engine::Engine;
use super::error::EngineError;
use super::exits::BURIED_BLOCKS;
use super::info::ExitMode;
use crate::chain::OutPointStatus;

impl Engine {
    /// A wallet's: from the deadline on whoever has something in a factory that the LSP reclaims
    /// leaves it.
    pub(super) async fn leave_in_time(&mut self) {
        if self.parts.host.is_unconfirmed() {
            return;
        }
        let due = |role: &Member| {
            let header = &role.invite().header;
            let complete = role.path().is_some() && role.is_funded();
            let due = header.leave_by().is_some_and(|height| self.tip >= height);
            (complete && due).then_some(header.expiry)
        };
        let members = self.members.iter();
        let due: Vec<(String, u32)> = members
            .filter_map(|(attempt, role)| Some((bridge::name(attempt), due(role)?)))
            .collect();
        for (factory, expiry) in due {
            if let Err(error) = self.leave_if_worth(&factory, expiry).await {
                tracing::warn!(factory, %error, "the exit that is due could not be started");
            }
        }
    }

    async fn leave_if_worth(&mut self, factory: &str, expiry: u32) -> Result<(), EngineError> {
        let path = self.signed_path(factory)?;
        let leaving = self.leaving(factory, Goal::Leave, &path);
        // What no feerate brings home is no reason to open the tree.
        match Worth::of(leaving, self.parts.chain.fees().mempool_minimum()) {
            Worth::Yes { .. } => {
                let reason = format!("the LSP may take what is not on chain at height {expiry}");
                self.start_exit(factory, &reason, ExitMode::Leave).await
            }
            _ => Ok(()),
        }
    }

    /// A wallet's: closes what can never be on chain any more, so that it is not counted.
    pub(super) async fn close_what_is_over(&mut self) {
        let watcher = self.parts.chain.watcher();
        let opened = |role: &Member| {
            let funding = role.tree().map(|tree| tree.funding);
            funding.is_some_and(|funding| watcher.spend(&funding).is_some())
        };
        let members = self.members.iter().filter(|(_, role)| opened(role));
        let opened: Vec<String> = members.map(|(attempt, _)| bridge::name(attempt)).collect();
        for factory in opened {
            if !self.open_channels(&factory).is_empty() {
                self.close_if_over(&factory);
            }
        }
    }

    /// Whether something else than its leaf is buried on a place's path: its channel is closed then.
    pub(super) fn close_if_over(&self, place: &str) -> bool {
        let Ok(path) = self.signed_path(place) else {
            return false;
        };
        let facts = self.confirmed_spends(path.funding(), path.watched());
        let planned = exit::plan(&path, Goal::Defend, &facts);
        let height = match planned.map(|plan| plan.status.progress) {
            Ok(Progress::PaidOut { height, .. } | Progress::Superseded { height, .. }) => height,
            _ => return false,
        };
        if facts.tip < height + BURIED_BLOCKS {
            return false;
        }
        self.close_channels(place);
        true
    }

    /// The LSP's: takes what is its own alone, as soon as a block may hold it.
    pub(super) async fn reclaim(&mut self) {
        let mut due = Vec::new();
        for (attempt, role) in &self.coordinators {
            let Some(built) = role.built().filter(|built| built.complete()) else {
                continue;
            };
            match self.reclaims(role, built).await {
                Ok(txs) => due.extend(txs.into_iter().map(|tx| (*attempt, tx))),
                Err(error) => {
                    let factory = bridge::name(attempt);
                    tracing::warn!(factory, %error, "nothing was reclaimed in this block");
                }
            }
        }
        for (attempt, tx) in due {
            self.note_ours(&attempt, &tx).await;
            self.payer().publish_alone(&tx).await;
        }
    }

    async fn reclaims(
        &self,
        role: &Coordinator,
        built: &Built,
    ) -> Result<Vec<Transaction>, EngineError> {
        let tree = &built.tree;
        let opened = self.parts.chain.watcher().spend(&tree.funding).is_some();
        let over =
            tree.header.policy == TimeoutPolicy::LspReclaims && self.tip >= tree.header.expiry;
        if !(opened || over) {
            return Ok(Vec::new());
        }
        let mut facts = self.confirmed_spends(tree.funding, role.outpoints());
        let due = |facts: &ChainFacts| {
            let mut found = role.reclaims(facts);
            found.retain(|reclaim| reclaim.is_due(facts));
            found
        };
        // Of what is due the mempool may know more.
        for reclaim in due(&facts) {
            let status = self.parts.chain.outpoint_status(reclaim.outpoint).await?;
            if let OutPointStatus::SpentInMempool(txid) = status {
                let spend = Spend { txid, height: None };
                facts.spends.insert(reclaim.outpoint, spend);
            }
        }
        let due = due(&facts);
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let feerate = self.reclaim_feerate().await;
        // What is too dear now waits for other times.
        let caps = &self.parts.fee_caps;
        let spends = due.iter();
        let spends = spends.filter_map(|it| it.spend_within(role.key(), feerate, caps));
        Ok(spends.collect())
    }

    /// Nobody races for it: what the next dozen blocks take.
    pub(super) async fn reclaim_feerate(&self) -> FeeRate {
        let chain = &self.parts.chain;
        let source = chain.source();
        if let Err(error) = chain.fees().refresh(&**source).await {
            tracing::debug!(%error, "feerates were not refreshed");
        }
        chain.fees().within(TARGET_BLOCKS)
    }

    /// What blocks say of `outpoints`.
    pub(super) fn confirmed_spends(
        &self,
        funding: OutPoint,
        outpoints: impl IntoIterator<Item = OutPoint>,
    ) -> ChainFacts {
        let watcher = self.parts.chain.watcher();
        let spends = outpoints.into_iter().filter_map(|outpoint| {
            let spend = watcher.spend(&outpoint)?;
            let txid = spend.spender.compute_txid();
            let height = Some(spend.confirmation.height);
            Some((outpoint, Spend { txid, height }))
        });
        ChainFacts {
            tip: watcher.tip().map_or(self.tip, |tip| tip.height),
            funding_height: watcher.confirmation(&funding.txid).map(|at| at.height),
            spends: spends.collect(),
        }
    }
}
