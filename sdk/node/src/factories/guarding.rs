//! Factories in the hands of towers: a member's place, and every place of an LSP's.
//!
//! What always holds: what a tower is to look after is what the node itself would answer with; what a
//! role waits for is told to it when a tower has acknowledged exactly that, and a wallet without
//! towers waits for nobody.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{FeeRate, OutPoint};
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::effect::{ChannelRef, SlotRef};
use superscalar_factory::exit::{self, ChannelStatus, Goal, OnChain, Progress, SignedPath};
use superscalar_factory::journal::Guard;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;
use superscalar_factory::stock::StockChain;
use superscalar_factory::tower::{Appointment, AppointmentKey, Claim, Digest};
use superscalar_factory::tree::Tree;

use super::engine::Engine;
use super::error::EngineError;
use super::exits::BURIED_BLOCKS;
use crate::event::Event;
use crate::store::StoreError;

/// What stock of older epochs is claimed at: 2, 20 and 200 sat/vB.
pub(super) const CLAIM_FEERATES: [FeeRate; 3] = [
    FeeRate::from_sat_per_kwu(500),
    FeeRate::from_sat_per_kwu(5_000),
    FeeRate::from_sat_per_kwu(50_000),
];

/// After so many blocks nothing can be claimed from a channel that was closed: the longest delay
/// LDK takes.
const SETTLED_BLOCKS: u32 = 2_016;

/// What of a role an appointment is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand {
    version: u32,
    /// How many epochs are signed, those included that only the chain has told of.
    epochs: usize,
    /// How many channels were bought in this version.
    sold: usize,
    /// How many stock chains can be taken.
    revoked: usize,
}

impl Stand {
    fn of(role: &Member) -> Stand {
        let sold = role.stock_chain().map(StockChain::links);
        let retired = role.retired_stock();
        let revoked = retired.iter().filter(|(_, known)| !known.is_empty());
        Stand {
            version: role.version(),
            epochs: role.signed_epochs(),
            sold: sold.map_or(0, <[_]>::len),
            revoked: revoked.count(),
        }
    }

    /// Of an LSP's place. What it revokes is its members' to take.
    fn of_place(role: &Coordinator, slot: u16) -> Stand {
        Stand {
            version: role.version(slot),
            epochs: 0,
            sold: role.sold(slot),
            revoked: 0,
        }
    }
}

/// What was given to the towers of one place.
#[derive(Debug)]
struct Given {
    stand: Stand,
    key: AppointmentKey,
    digest: Digest,
}

/// What was given to the towers since the start, and who has looked.
#[derive(Debug, Default)]
pub(super) struct Guarding {
    given: BTreeMap<SlotRef, Given>,
    /// Places of which nothing was left to look after at the last block.
    over: BTreeSet<SlotRef>,
    /// The last block this wallet has looked at.
    looked: u32,
    /// Blocks it has not looked at in time, where it is not known yet whether a tower has.
    gap: Option<(u32, u32)>,
}

impl Guarding {
    /// Of a wallet that had looked until this block when it was stopped.
    pub(super) fn since(looked: u32) -> Guarding {
        Guarding {
            looked,
            ..Guarding::default()
        }
    }
}

/// What a tower is still needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The path: something may have to be published.
    Path,
    /// The channels, which are on chain.
    Channels,
    /// Nothing: the channels can never be on chain.
    Nothing,
}

impl Engine {
    /// Who has to have acknowledged a sale before it counts.
    pub(super) fn guard(&self) -> Guard {
        match self.parts.towers {
            Some(_) => Guard::Watchtower,
            None => Guard::Member,
        }
    }

    /// Gives the towers what is new, and tells the roles what they keep.
    pub(super) async fn see_towers(&mut self) {
        if self.parts.is_lsp && self.parts.towers.is_none() {
            return;
        }
        let members = self.members.values().map(Member::slot);
        let lsps = self.coordinators.values().flat_map(Coordinator::places);
        let mut any = false;
        for place in members.chain(lsps).collect::<Vec<_>>() {
            if let Err(error) = self.give(place) {
                let place = self.exit_name(&place);
                tracing::warn!(place, %error, "not given to the towers yet");
            }
            if self.is_guarded(place) {
                self.tell_guarded(place.attempt);
                any = true;
            }
        }
        if any {
            self.settle().await;
        }
    }

    fn stand(&self, place: &SlotRef) -> Option<Stand> {
        if let Some(role) = self.members.get(&place.attempt) {
            return Some(Stand::of(role));
        }
        let role = self.coordinators.get(&place.attempt)?;
        let complete = role.built().is_some_and(|built| built.complete());
        complete.then(|| Stand::of_place(role, place.slot))
    }

    fn give(&mut self, place: SlotRef) -> Result<(), EngineError> {
        let (Some(towers), Some(stand)) = (&self.parts.towers, self.stand(&place)) else {
            return Ok(());
        };
        let given = self.guarding.given.get(&place);
        let is_given = given.is_some_and(|given| given.stand == stand);
        if is_given || self.guarding.over.contains(&place) {
            return Ok(());
        }
        let path = match self.signed_path(&self.exit_name(&place)) {
            Ok(path) => path,
            Err(EngineError::NoPath { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.left(&path) != Left::Path {
            self.guarding.over.insert(place);
            return Ok(());
        }
        let role = self.members.get(&place.attempt);
        let trees = role.into_iter().flat_map(Member::newer_trees);
        let mut beside: BTreeSet<OutPoint> = trees.flat_map(Tree::outpoints).collect();
        for known in path.watched() {
            beside.remove(&known);
        }
        let appointment = Appointment::Path {
            stale: role.map_or_else(Vec::new, |role| self.stale_claims(role)),
            beside: beside.into_iter().collect(),
            path: Box::new(path),
        };
        towers.keep(self.tip, &appointment)?;
        let given = Given {
            stand,
            key: appointment.key(),
            digest: appointment.digest(),
        };
        self.guarding.given.insert(place, given);
        Ok(())
    }

    fn stale_claims(&self, role: &Member) -> Vec<Claim> {
        let Some(path) = role.path() else {
            return Vec::new();
        };
        let to = &path.terms().facts.record.payout;
        let seed = self.parts.factory_seed.expose();
        let sweeps = role.stale_sweeps(seed, to, &CLAIM_FEERATES);
        let claims = sweeps.iter();
        claims
            .filter_map(|sweep| Claim::of_stale(sweep, &CLAIM_FEERATES))
            .collect()
    }

    /// Whether a tower keeps what the role stands at, and the role waits for that.
    fn is_guarded(&self, place: SlotRef) -> bool {
        let role = self.members.get(&place.attempt);
        let Some(role) = role.filter(|role| role.awaits_tower()) else {
            return false;
        };
        let Some(towers) = &self.parts.towers else {
            // Towers that were taken out of the configuration are waited for no longer.
            return true;
        };
        let given = self.guarding.given.get(&place);
        let given = given.filter(|given| given.stand == Stand::of(role));
        given.is_some_and(|given| towers.is_kept(given.key, given.digest))
    }

    fn tell_guarded(&mut self, attempt: Attempt) {
        let Some(role) = self.members.get(&attempt) else {
            return;
        };
        let (slot, version) = (role.slot(), role.version());
        let sold = role.stock_chain().map(StockChain::links);
        let newest = sold.and_then(<[_]>::last).map(|sold| sold.place());
        if let Some(place) = newest {
            let bought = ChannelRef::sold(slot, version, place);
            self.member(attempt, |_| member::Input::BoughtGuarded(bought));
        }
        self.member(attempt, |_| member::Input::MovedGuarded { version });
    }

    /// Nothing is bought, and no new epoch begun, while no tower could take it: until one has,
    /// payments that the LSP puts into the new channel would fail, and the old ones would rest.
    pub(super) fn check_towers(&self) -> Result<(), EngineError> {
        match &self.parts.towers {
            Some(towers) if !towers.have_room() => Err(EngineError::NoTower),
            _ => Ok(()),
        }
    }

    /// With every block: what is over is looked after no longer.
    pub(super) fn release_towers(&mut self) {
        self.guarding.over.clear();
        let Some(towers) = &self.parts.towers else {
            return;
        };
        let mut over = BTreeSet::new();
        for (place, given) in &self.guarding.given {
            let Ok(path) = self.signed_path(&self.exit_name(place)) else {
                continue;
            };
            if self.is_stock_open(&place.attempt, &path) {
                continue;
            }
            let left = self.left(&path);
            if left != Left::Path
                && let Err(error) = towers.forget(given.key)
            {
                tracing::warn!(%error, "a tower looks after what is over");
            }
            if left == Left::Nothing {
                over.extend(path.watched());
            }
        }
        let watcher = self.parts.chain.watcher();
        for channel in towers.channels() {
            let spend = watcher.spend(&channel);
            let deep = spend.map(|it| it.confirmation.height + SETTLED_BLOCKS);
            let settled = over.contains(&channel) || deep.is_some_and(|it| self.tip >= it);
            if settled && let Err(error) = towers.forget_channel(&channel) {
                tracing::warn!(%error, "a tower looks after a channel that is over");
            }
        }
    }

    /// Whether stock that was revoked is on chain, and nobody's for good yet.
    fn is_stock_open(&self, attempt: &Attempt, path: &SignedPath) -> bool {
        let role = self.members.get(attempt).into_iter();
        let chains = role.clone().flat_map(Member::retired_stock);
        let stock: Vec<OutPoint> = chains
            .flat_map(|(chain, _)| chain.stocks().map(|it| it.outpoint()))
            .collect();
        let trees = role.flat_map(Member::newer_trees).flat_map(Tree::outpoints);
        let watched = path.watched().into_iter().chain(trees);
        let facts = self.confirmed_spends(path.funding(), watched.chain(stock.clone()));
        let is_there = |it: &&OutPoint| facts.spends.values().any(|spend| spend.txid == it.txid);
        stock.iter().filter(is_there).any(|it| {
            let spend = facts.confirmed_spend(it);
            spend.is_none_or(|(_, height)| self.tip < height + BURIED_BLOCKS)
        })
    }

    /// What of a path can have to be published or claimed any more.
    fn left(&self, path: &SignedPath) -> Left {
        if self.parts.chain.watcher().spend(&path.funding()).is_none() {
            return Left::Path;
        }
        let facts = self.confirmed_spends(path.funding(), path.watched());
        let Ok(planned) = exit::plan(path, Goal::Defend, &facts) else {
            return Left::Path;
        };
        let buried = |height: u32| facts.tip >= height + BURIED_BLOCKS;
        let is_settled = |channel: &ChannelStatus| match channel.on_chain {
            OnChain::Confirmed { height } | OnChain::Lost { height, .. } => buried(height),
            _ => false,
        };
        match planned.status.progress {
            Progress::PaidOut { height, .. } | Progress::Superseded { height, .. }
                if buried(height) =>
            {
                Left::Nothing
            }
            Progress::LeafConfirmed { height, .. }
                if buried(height) && planned.status.channels.iter().all(is_settled) =>
            {
                Left::Channels
            }
            _ => Left::Path,
        }
    }

    /// With every block: whether somebody has looked often enough at what may be opened. A tower
    /// that is there now is taken to have looked; one that cannot be reached until the next block
    /// is not.
    pub(super) fn judge_attention(&mut self) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.guarding.looked, self.tip);
        // Where a member has bought nothing and every epoch is the first, it can miss nothing.
        let is_at_stake = |stand: Stand| stand.version > 0 || stand.sold > 0;
        let mut roles: Vec<&Member> = self.members.values().collect();
        roles.retain(|role| role.is_active() && is_at_stake(Stand::of(role)));
        let trees = roles.into_iter().filter_map(Member::tree);
        let lsps = self.coordinators.values().filter(|role| role.is_active());
        let trees = trees.chain(lsps.filter_map(Coordinator::newest_tree));
        let steps = trees.map(|tree| tree.header.timing.step);
        let Some(step) = steps.min() else {
            return Ok(());
        };
        let may_be_missed = u32::from(step) / 2;
        let missed = self.tip.saturating_sub(before);
        let gap = std::mem::take(&mut self.guarding.gap);
        let towers = self.parts.towers.as_ref();
        let seen = towers.and_then(|towers| towers.seen_height());
        if let Some((from_height, blocks)) = gap
            && seen.is_none_or(|seen| seen < from_height + blocks - may_be_missed.min(blocks))
        {
            let event = Event::Unattended {
                from_height,
                blocks,
            };
            self.parts.events.append(&event)?;
        }
        if missed > may_be_missed {
            self.guarding.gap = Some((before, missed));
            if towers.is_none() {
                return self.judge_attention();
            }
        }
        Ok(())
    }
}
