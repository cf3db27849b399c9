//! What is on chain of epochs that are not the newest, or that only the LSP could complete.
//!
//! What always holds: a member whose place is on chain in an older epoch takes all stock that the LSP
//! has revoked, and leaves with the channels of that epoch; a state that only the LSP could complete
//! is learned from the chain with its signature. Everything here is a function of the chain and of
//! what is on disk, tried again with every block.

use bitcoin::{FeeRate, OutPoint};
use superscalar_factory::effect::SlotRef;
use superscalar_factory::epoch::EpochStage;
use superscalar_factory::exit::stale::{self, StaleSweep};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;
use superscalar_factory::tree::Tree;

use super::bridge::{self, ChannelKind};
use super::bumps::publish_cheapest;
use super::engine::Engine;
use super::error::EngineError;
use super::guarding::CLAIM_FEERATES;
use super::info::ExitMode;
use crate::hosting::SlotId;

impl Engine {
    /// A member's: tells roles of states that complete what they have signed.
    pub(super) fn look_for_states(&mut self) {
        let watcher = self.parts.chain.watcher();
        let mut seen = Vec::new();
        for (attempt, role) in &self.members {
            let outpoints = role.newer_trees().flat_map(|tree| tree.outpoints());
            for outpoint in outpoints {
                let spend = watcher.spend(&outpoint);
                seen.extend(spend.map(|spend| (*attempt, spend.spender)));
            }
        }
        for (attempt, tx) in seen {
            self.member(attempt, |_| member::Input::StateSeen(tx));
        }
    }

    /// A member's: takes what is its own of older epochs.
    pub(super) async fn take_stale(&mut self) {
        let watcher = self.parts.chain.watcher();
        let moved = self.members.iter().filter(|(_, role)| {
            let opened = |role: &Member| {
                let funding = role.tree().map(|tree| tree.funding);
                funding.is_some_and(|funding| watcher.spend(&funding).is_some())
            };
            role.newer_trees().next().is_some() && opened(role)
        });
        let moved: Vec<Attempt> = moved.map(|(attempt, _)| *attempt).collect();
        for attempt in moved {
            if let Err(error) = self.take_stale_of(&attempt).await {
                let factory = bridge::name(&attempt);
                tracing::warn!(factory, %error, "an older epoch waits until the next block");
            }
        }
    }

    async fn take_stale_of(&mut self, attempt: &Attempt) -> Result<(), EngineError> {
        let name = bridge::name(attempt);
        let Some(role) = self.members.get(attempt) else {
            return Ok(());
        };
        let place = role.slot();
        let reason = if !self.stale_channels(&place).is_empty() {
            Some("another epoch of the tree than the newest is on chain")
        } else if matches!(
            role.epoch_stage(),
            Some(EpochStage::Switching | EpochStage::Guarding)
        ) {
            // Which of its channels will be there only the chain says: none carries payments again.
            Some("the factory was opened during a switch to a new epoch")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.start_exit(&name, reason, ExitMode::Leave).await?;
        }
        let path = self.signed_path(&name)?;
        // Somebody else's spend may be in the mempool, of a sale of then.
        let market = self.reclaim_feerate().await;
        let dearer = CLAIM_FEERATES.into_iter().filter(|it| *it > market);
        let feerates: Vec<FeeRate> = std::iter::once(market).chain(dearer).collect();
        let role = self.members.get(attempt);
        let Some(record) = role.and_then(|role| Some(&role.path()?.terms().facts.record)) else {
            return Ok(());
        };
        let seed = self.parts.factory_seed.expose();
        let sweeps = role.map_or_else(Vec::new, |role| {
            role.stale_sweeps(seed, &record.payout, &feerates)
        });
        let stock = sweeps.iter().map(|sweep| sweep.outpoint);
        let newer = self.members.get(attempt).into_iter();
        let newer = newer
            .flat_map(Member::newer_trees)
            .flat_map(Tree::outpoints);
        let outpoints = path.watched().into_iter().chain(stock).chain(newer);
        let facts = self.confirmed_spends(path.funding(), outpoints);
        for StaleSweep { transactions, .. } in stale::due(&sweeps, &facts) {
            for tx in transactions {
                self.note_ours(attempt, tx).await;
            }
            publish_cheapest(&self.parts.chain, transactions).await;
        }
        Ok(())
    }

    /// Whether all of an output is a member's, because the LSP has revoked it: what a sale of then
    /// would divide.
    pub(super) fn is_revoked(&self, factory: &str, output: &OutPoint) -> bool {
        let role = bridge::attempt(factory).and_then(|attempt| self.members.get(&attempt));
        let chains = role.into_iter().flat_map(Member::retired_stock);
        let mut revoked = chains.filter(|(_, known)| !known.is_empty());
        revoked.any(|(chain, _)| chain.stocks().any(|stock| stock.outpoint() == *output))
    }

    /// Channels of a place whose leaf is on chain and is not its newest: of an older epoch, or of one
    /// that the LSP completed when it had said that it never would.
    pub(super) fn stale_channels(&self, place: &SlotRef) -> Vec<SlotId> {
        let slots = self.parts.host.slots().into_iter();
        let there = slots.filter(|entry| entry.leaf_height.is_some());
        let ids = there.map(|entry| entry.channel.slot);
        ids.filter(|slot| {
            let id = bridge::channel_ref(slot).filter(|id| id.slot == *place);
            id.is_some_and(|id| match bridge::kind(&id) {
                // Of one that was sold and not delivered nothing is anybody's but the LSP's.
                ChannelKind::Bought => self.version_of(place) > Some(id.version),
                _ => !self.is_live(&id),
            })
        })
        .collect()
    }
}
