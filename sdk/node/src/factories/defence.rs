//! Answers to what somebody else has begun to open.
//!
//! What always holds: every kickoff, whoever published it, is followed by the newest state before a
//! distribution may, and every sale by its transaction before the LSP may take the stock it came
//! from. Nothing is opened here that is closed.

use std::collections::BTreeSet;

use bitcoin::OutPoint;
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::effect::SlotRef;
use superscalar_factory::exit::{self, ChannelStatus, Goal, OnChain, Progress};
use superscalar_factory::member::Member;
use superscalar_factory::stock::StockChain;

use super::bridge;
use super::bumps::Purse;
use super::engine::Engine;
use super::error::EngineError;
use super::exits::BURIED_BLOCKS;
use crate::hosting::SlotId;

/// Whether anything can be left to do for a place.
enum Answered {
    Finally,
    NotYet,
}

impl Engine {
    /// The LSP's duty for every place, before T and after it. A member need not while every epoch
    /// is the first and it has bought nothing: no state and no distribution pays it less than
    /// another. What it has bought, and what it has in a newer epoch, is its own once that is on
    /// chain.
    pub(super) async fn defend(&mut self) -> BTreeSet<String> {
        let mut defended = BTreeSet::new();
        for (place, name) in self.threatened() {
            if self.is_answered(&place) || self.close_if_over(&name) {
                continue;
            }
            match self.defend_path(&name).await {
                Ok(Answered::Finally) => continue,
                Ok(Answered::NotYet) => {}
                Err(error) => tracing::warn!(
                    name,
                    %error,
                    "a kickoff or a sale may be unanswered until the next block"
                ),
            }
            defended.insert(name);
        }
        defended
    }

    /// The places to look after, below roots that are open, and what their ways out are called.
    fn threatened(&self) -> Vec<(SlotRef, String)> {
        let watcher = self.parts.chain.watcher();
        let is_open = |funding: OutPoint| watcher.spend(&funding).is_some();
        let coordinators = self.coordinators.values().filter(|role| {
            let built = role.built().filter(|built| built.complete());
            built.is_some_and(|built| is_open(built.tree.funding))
        });
        let places = coordinators.flat_map(Coordinator::places);
        let places = places.map(|place| (place, bridge::place(&place)));
        let has_more = |role: &&Member| {
            let sold = role.stock_chain().map(StockChain::links);
            sold.is_some_and(|links| !links.is_empty()) || role.newer_trees().next().is_some()
        };
        let members = self.members.values().filter(has_more).filter(|role| {
            let funding = role.tree().map(|tree| tree.funding);
            funding.is_some_and(is_open)
        });
        let members = members.map(|role| (role.slot(), bridge::name(&role.attempt())));
        places.chain(members).collect()
    }

    /// Whether everything of a place is on chain: the leaf, and what was sold below it.
    fn is_answered(&self, place: &SlotRef) -> bool {
        let host = &self.parts.host;
        let channels = self.live_channels(place);
        let there = |id: &SlotId| host.slot(id).is_some_and(|it| it.leaf_height.is_some());
        // Whoever has left has none, and its leaf may have others.
        !channels.is_empty() && channels.iter().all(there)
    }

    async fn defend_path(&mut self, name: &str) -> Result<Answered, EngineError> {
        let path = self.signed_path(name)?;
        let facts = self.facts(&path).await?;
        let planned = exit::plan(&path, Goal::Defend, &facts);
        let planned = planned.map_err(|error| EngineError::Exit(error.to_string()))?;
        // What is lost if it comes too late: all of the place for an LSP, its balance for a member.
        let at_stake = match self.parts.is_lsp {
            true => Goal::Reclaim,
            false => Goal::Leave,
        };
        let purse = Purse {
            exit: name,
            leaving: self.leaving(name, at_stake, &path),
            feerate: None,
        };
        self.act(purse, &path, &planned.actions).await;
        self.close_lost(name, &planned.status.channels);
        let buried = |height: u32| facts.tip >= height + BURIED_BLOCKS;
        let mut channels = planned.status.channels.iter();
        // What was sold and lost keeps no coins: nothing can be done about it any more.
        let over = channels.all(|channel| match channel.on_chain {
            OnChain::Confirmed { height } | OnChain::Lost { height, .. } => buried(height),
            _ => false,
        });
        Ok(match planned.status.progress {
            Progress::LeafConfirmed { height, .. } if over && buried(height) => Answered::Finally,
            _ => Answered::NotYet,
        })
    }

    /// Closes what was sold and whose output somebody else has: whatever is still paid in it would be
    /// lost.
    fn close_lost(&self, name: &str, channels: &[ChannelStatus]) {
        let lost = |it: &&ChannelStatus| matches!(it.on_chain, OnChain::Lost { .. });
        let lost: BTreeSet<OutPoint> = channels.iter().filter(lost).map(|it| it.outpoint).collect();
        let host = &self.parts.host;
        for id in self.open_channels(name) {
            let is_lost = host
                .slot(&id)
                .is_some_and(|it| lost.contains(&it.channel.outpoint));
            if is_lost && let Err(error) = host.force_close(&id) {
                tracing::warn!(name, channel = %id, %error, "not closed before the next block");
            }
        }
    }
}
