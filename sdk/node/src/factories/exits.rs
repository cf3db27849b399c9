//! Leaving alone: durable jobs that follow the core's planner block by block.
//!
//! What always holds: a job is on disk before its first transaction is published; every
//! transaction it publishes has been on disk, signed, since the factory was built. A job is a
//! function of the chain, so restarts and reorgs need no handling of their own; it ends only when
//! the money is in the wallet or provably somebody else's.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, FeeRate, OutPoint};
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::{
    self, Action, ChainFacts, ChannelStatus, Goal, OnChain, Progress, SignedPath, Waiting, Worth,
};

use super::bridge::{self, ChannelKind};
use super::bumps::{Purse, TARGET_BLOCKS};
use super::engine::Engine;
use super::error::EngineError;
use super::info::{ExitInfo, ExitMode, ExitPlan, SpeedUp};
use crate::event::Event;
use crate::hosting::Closing;
use crate::store::{Store, StoreError};
use superscalar_factory::effect::{ChannelRef, SlotRef};

const SETTING: &str = "exits";
/// Weight of a `static_remotekey` commitment without HTLCs, in virtual bytes (BOLT3: 724 weight).
const COMMITMENT_VSIZE: u64 = 181;
/// An exit's coins are free when its last transaction is this deep.
pub(super) const BURIED_BLOCKS: u32 = 6;

/// Whether a job may still need coins.
enum Stage {
    Running,
    Over,
}

/// One job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    reason: String,
    mode: ExitMode,
    /// Whether the application was told that the leaf is on chain, and at which height.
    leaf_told: Option<u32>,
    /// Whether the application was told of a payout.
    payout_told: bool,
    /// Whether everything that came of the channel is in the wallet: LDK forgets after a month.
    #[serde(default)]
    pub(super) done: bool,
    /// The feerate asked for, in sat per 1000 weight units; the market's where that is more.
    #[serde(default)]
    feerate_sat_per_kwu: Option<u64>,
    /// What was leaving when the job began: of a channel that is just closing nothing is known.
    #[serde(default)]
    leaving_sat: u64,
}

impl Job {
    fn feerate(&self) -> Option<FeeRate> {
        self.feerate_sat_per_kwu.map(FeeRate::from_sat_per_kwu)
    }
}

/// All jobs, by factory name.
#[derive(Debug, Default)]
pub(super) struct Exits {
    pub(super) jobs: BTreeMap<String, Job>,
    /// What own coins do for each, as of the last block.
    sped: BTreeMap<String, SpeedUp>,
}

impl Exits {
    /// A wallet whose jobs cannot be read does not start: it would pay and be paid in what it leaves.
    pub(super) fn load(store: &Store) -> Result<Exits, StoreError> {
        let jobs = store.json_setting(SETTING)?.unwrap_or_default();
        let sped = BTreeMap::new();
        Ok(Exits { jobs, sped })
    }

    fn put(&mut self, store: &Store, factory: &str, job: Job) -> Result<(), StoreError> {
        let mut jobs = self.jobs.clone();
        jobs.insert(factory.to_owned(), job);
        let bytes = serde_json::to_vec(&jobs).map_err(StoreError::corrupt)?;
        store.set_setting(SETTING, &bytes)?;
        self.jobs = jobs;
        Ok(())
    }
}

impl Engine {
    /// A channel was closed that we did not close. With a bought one that was not delivered nothing
    /// is lost, nor with one of an older or undecided epoch; with one that was, the place is left as
    /// with the leaf's own.
    pub(super) async fn channel_closed(
        &mut self,
        id: &ChannelRef,
        reason: &str,
        at_stake_msat: u64,
    ) {
        let live = self.is_live(id);
        match bridge::kind(id) {
            ChannelKind::First if live => self.slot_closed(id.slot, reason, at_stake_msat).await,
            ChannelKind::Moved => {
                self.moved_lost(*id);
                if live {
                    self.leave_closed(&id.slot, reason, at_stake_msat).await;
                }
            }
            _ if live => self.leave_closed(&id.slot, reason, at_stake_msat).await,
            ChannelKind::Bought => self.bought_lost(*id),
            _ => {
                let place = bridge::place(&id.slot);
                tracing::debug!(place, reason, "a retired channel is closed");
            }
        }
    }

    /// While building the attempt ends; afterwards the member leaves.
    async fn slot_closed(&mut self, slot: SlotRef, reason: &str, at_stake_msat: u64) {
        use superscalar_factory::{coordinator, member};
        self.member(slot.attempt, |_| member::Input::ChannelLost);
        self.coordinator(slot.attempt, coordinator::Input::ChannelLost(slot.slot));
        self.leave_closed(&slot, reason, at_stake_msat).await;
    }

    /// A member leaves with its balance. An LSP whose member left waits for what the member
    /// publishes: opening the tree costs more than a balance that only waits. HTLCs do not wait:
    /// nobody can settle them in a closed channel, and what was received for them expires.
    pub(super) async fn leave_closed(&mut self, slot: &SlotRef, reason: &str, at_stake_msat: u64) {
        // Nothing is to be left before the funding is on chain; it begins then. Nor once something
        // else than the leaf was paid out.
        if !self.parts.is_lsp && self.close_if_over(&bridge::name(&slot.attempt)) {
            return;
        }
        if self.can_be_left(slot) || (self.parts.is_lsp && at_stake_msat > 0) {
            self.begin_exit(slot, reason, at_stake_msat).await;
        }
    }

    /// Starts leaving, unless that is under way. An LSP forgoes HTLCs worth less than the
    /// transactions that bring them on chain.
    pub(super) async fn begin_exit(&mut self, slot: &SlotRef, reason: &str, at_stake_msat: u64) {
        let factory = self.exit_name(slot);
        if !self.may_begin(&factory, reason) {
            return;
        }
        let begun = self
            .begin_leaving(&factory, reason, at_stake_msat / 1_000)
            .await;
        if let Err(error) = begun {
            tracing::warn!(factory, %error, "the exit could not be started");
        }
    }

    async fn begin_leaving(
        &mut self,
        factory: &str,
        reason: &str,
        at_stake_sat: u64,
    ) -> Result<(), EngineError> {
        let job = self.exits.jobs.get(factory).map(|job| job.mode);
        if job == Some(ExitMode::Leave) {
            return Ok(());
        }
        let path = self.signed_path(factory)?;
        // From T on a member that waited for it has closed its channel itself.
        if job.is_some() && self.tip >= path.header().expiry {
            return Ok(());
        }
        if self.parts.is_lsp {
            let facts = self.facts(&path).await?;
            let planned = exit::plan(&path, Goal::Leave, &facts);
            let planned = planned.map_err(|error| EngineError::Exit(error.to_string()))?;
            // What somebody else has opened costs nothing any more.
            let cost_sat = planned.status.figures.fees.to_sat();
            if at_stake_sat <= cost_sat {
                tracing::debug!(factory, at_stake_sat, cost_sat, "HTLCs not worth the tree");
                return Ok(());
            }
        }
        self.start_exit(factory, reason, ExitMode::Leave).await
    }

    pub(super) async fn start_exit(
        &mut self,
        factory: &str,
        reason: &str,
        mode: ExitMode,
    ) -> Result<(), EngineError> {
        let path = self.signed_path(factory)?;
        // Whether there is such a way at all does not depend on the chain.
        exit::plan(&path, mode.goal(), &ChainFacts::default())
            .map_err(|error| EngineError::unplannable(factory, path.header().expiry, &error))?;
        let known = self.exits.jobs.get(factory).map(|job| job.mode);
        // Waiting for T does not keep anybody from leaving now; leaving is not undone.
        if known == Some(mode) || known == Some(ExitMode::Leave) {
            return Ok(());
        }
        let job = Job {
            reason: reason.to_owned(),
            mode,
            leaf_told: None,
            payout_told: false,
            done: false,
            feerate_sat_per_kwu: None,
            leaving_sat: self.leaving(factory, mode.goal(), &path).to_sat(),
        };
        // The job is on disk before anybody is asked: whatever fails from here on is tried again
        // with the next block.
        self.exits.put(&self.parts.store, factory, job)?;
        let started = Event::ExitStarted {
            factory: factory.to_owned(),
            reason: reason.to_owned(),
        };
        if let Err(error) = self.tell(&started) {
            tracing::warn!(factory, %error, "the application was not told of an exit");
        }
        if let Err(error) = self.step_exit(factory).await {
            tracing::warn!(factory, %error, "the exit begins with the next block");
        }
        Ok(())
    }

    /// Wants at least this feerate for what an exit publishes from now on, within the caps.
    pub(super) async fn speed_up(
        &mut self,
        factory: &str,
        feerate: FeeRate,
    ) -> Result<(), EngineError> {
        let highest = self.parts.fee_caps.feerate();
        if feerate > highest {
            return Err(EngineError::FeerateAboveCap {
                asked_sat_per_vb: feerate.to_sat_per_vb_ceil(),
                cap_sat_per_vb: highest.to_sat_per_vb_floor(),
            });
        }
        let job = self.exits.jobs.get(factory).cloned();
        let job = job.ok_or_else(|| EngineError::NoExit {
            factory: factory.to_owned(),
        })?;
        let job = Job {
            feerate_sat_per_kwu: Some(feerate.to_sat_per_kwu()),
            ..job
        };
        self.exits.put(&self.parts.store, factory, job)?;
        self.step_exit(factory).await.map(drop)
    }

    /// Does what each job can do at this tip; gives those that are not over.
    pub(super) async fn step_exits(&mut self) -> BTreeSet<String> {
        let mut running = BTreeSet::new();
        for factory in self.exits.jobs.keys().cloned().collect::<Vec<_>>() {
            match self.step_exit(&factory).await {
                Ok(Stage::Over) => continue,
                Ok(Stage::Running) => {}
                Err(error) => {
                    tracing::warn!(factory, %error, "this block brought the exit no further");
                }
            }
            running.insert(factory);
        }
        running
    }

    async fn step_exit(&mut self, factory: &str) -> Result<Stage, EngineError> {
        let path = self.signed_path(factory)?;
        let Some(job) = self.exits.jobs.get(factory).cloned() else {
            return Ok(Stage::Over);
        };
        let goal = job.mode.goal();
        // Nothing moves in this channel any more; its commitment is held until the leaf is there.
        // Who waits for T goes on paying and being paid till then.
        let now = job.mode == ExitMode::Leave || self.tip >= path.header().expiry;
        if now {
            self.close_channels(factory);
        }
        let facts = self.facts(&path).await?;
        let planned = exit::plan(&path, goal, &facts);
        let planned = planned.map_err(|error| EngineError::Exit(error.to_string()))?;
        let purse = Purse {
            exit: factory,
            leaving: self
                .leaving(factory, goal, &path)
                .max(Amount::from_sat(job.leaving_sat)),
            feerate: job.feerate(),
        };
        self.ready_coins(purse, &path, &planned.status.progress)
            .await;
        let sped = self.act(purse, &path, &planned.actions).await;
        self.exits.sped.insert(factory.to_owned(), sped);
        let progress = planned.status.progress;
        match progress {
            Progress::LeafConfirmed { height, .. } => {
                let channels = confirmed(&planned.status.channels);
                self.leaf_confirmed(factory, height, &channels)?;
            }
            Progress::PaidOut {
                outpoint, amount, ..
            } => self.paid_out(factory, outpoint, amount)?,
            _ => {}
        }
        Ok(match progress {
            Progress::LeafConfirmed { height, .. }
            | Progress::PaidOut { height, .. }
            | Progress::Superseded { height, .. }
                if facts.tip >= height + BURIED_BLOCKS =>
            {
                Stage::Over
            }
            _ => Stage::Running,
        })
    }

    /// Carries the planner's actions out; what own coins do for the last of them.
    pub(super) async fn act(
        &mut self,
        purse: Purse<'_>,
        path: &SignedPath,
        actions: &[Action],
    ) -> SpeedUp {
        let mut sped = SpeedUp::NotNeeded;
        for action in actions {
            let Action::Publish {
                name, transaction, ..
            } = action
            else {
                continue;
            };
            if self.is_revoked(purse.exit, &transaction.input[0].previous_output) {
                continue;
            }
            if let Some(place) = self.exit_slot(purse.exit) {
                self.note_ours(&place.attempt, transaction).await;
            }
            match self.payer().publish_due(purse, path, transaction).await {
                Ok(told) => sped = told,
                Err(error) => {
                    // Whatever keeps coins from helping does not keep the transaction from going.
                    tracing::warn!(%name, %error, "published alone");
                    self.payer().publish_alone(transaction).await;
                }
            }
        }
        sped
    }

    fn leaf_confirmed(
        &mut self,
        factory: &str,
        height: u32,
        channels: &[OutPoint],
    ) -> Result<(), EngineError> {
        let Some(job) = self.exits.jobs.get(factory).cloned() else {
            return Ok(());
        };
        self.parts.host.rebroadcast_claims();
        let known = job.done && job.leaf_told == Some(height);
        let done = known || channels.iter().all(|channel| self.is_settled(*channel));
        if job.leaf_told == Some(height) && job.done == done {
            return Ok(());
        }
        if job.leaf_told != Some(height) {
            let told = Event::ExitLeafConfirmed {
                factory: factory.to_owned(),
                height,
            };
            self.tell(&told)?;
        }
        let job = Job {
            leaf_told: Some(height),
            done,
            ..job
        };
        Ok(self.exits.put(&self.parts.store, factory, job)?)
    }

    /// Whether the channel is closed on chain and nothing of it is still to come.
    fn is_settled(&self, channel: OutPoint) -> bool {
        // Of a channel in which nothing is ours LDK has nothing to say: the chain does.
        let closed = self.parts.chain.watcher().spend(&channel).is_some();
        closed && self.parts.host.closing(channel).is_settled()
    }

    fn paid_out(
        &mut self,
        factory: &str,
        outpoint: OutPoint,
        amount: Amount,
    ) -> Result<(), EngineError> {
        let Some(job) = self.exits.jobs.get(factory).cloned() else {
            return Ok(());
        };
        if job.payout_told {
            return Ok(());
        }
        let told = Event::ExitPaidOut {
            factory: factory.to_owned(),
            outpoint: outpoint.to_string(),
            amount_sat: amount.to_sat(),
        };
        self.tell(&told)?;
        let job = Job {
            payout_told: true,
            ..job
        };
        Ok(self.exits.put(&self.parts.store, factory, job)?)
    }

    pub(super) async fn plan_exit(&mut self, factory: &str) -> Result<ExitPlan, EngineError> {
        let path = self.signed_path(factory)?;
        let facts = self.facts(&path).await?;
        let planned = exit::plan(&path, Goal::Leave, &facts);
        let planned = planned.map_err(|error| EngineError::Exit(error.to_string()))?;
        let (best, worst) = match planned.status.progress {
            Progress::Underway { blocks_left, .. } => (blocks_left.best, blocks_left.worst),
            _ => (0, 0),
        };
        let figures = planned.status.figures;
        let fees = self.parts.chain.fees();
        let feerate = fees.within(TARGET_BLOCKS);
        let market = fees.known_within(TARGET_BLOCKS);
        let balance = self.leaving(factory, Goal::Leave, &path);
        let worth = Worth::of(balance, feerate);
        let arriving = match worth {
            Worth::Yes { net } => net,
            _ => Amount::ZERO,
        };
        let own_fees = figures.own_fees(market);
        let coins_needed = figures.coins_needed(market);
        let (available, reserved) = self.coins_at_hand(factory)?;
        Ok(ExitPlan {
            factory: factory.to_owned(),
            transactions: figures.transactions,
            vsize: figures.vsize_vb + COMMITMENT_VSIZE,
            fees_sat: figures.fees.to_sat(),
            blocks_best: best,
            blocks_worst: worst,
            then_blocks: 1 + u32::from(path.header().timing.member_to_self_delay),
            balance_sat: balance.to_sat(),
            arriving_sat: arriving.to_sat(),
            sweep_fee_sat: (balance - arriving).to_sat(),
            own_fees_sat: own_fees.to_sat(),
            coins_needed_sat: coins_needed.to_sat(),
            coins_available_sat: available.to_sat(),
            coins_reserved_sat: reserved.to_sat(),
            affordable: available + reserved >= coins_needed,
            worth_it: arriving > own_fees,
        })
    }

    pub(super) async fn exit_infos(&mut self) -> Result<Vec<ExitInfo>, EngineError> {
        let mut infos = Vec::new();
        for (factory, job) in self.exits.jobs.clone() {
            // One that cannot be judged now does not hide the others.
            match self.exit_info(&factory, &job).await {
                Ok(info) => infos.push(info),
                Err(error) => infos.push(ExitInfo::unknown(factory, job.reason, &error)),
            }
        }
        Ok(infos)
    }

    async fn exit_info(&self, factory: &str, job: &Job) -> Result<ExitInfo, EngineError> {
        let path = self.signed_path(factory)?;
        let facts = self.facts(&path).await?;
        let planned = exit::plan(&path, job.mode.goal(), &facts);
        let planned = planned.map_err(|error| EngineError::Exit(error.to_string()))?;
        let mut info = ExitInfo {
            factory: factory.to_owned(),
            reason: job.reason.clone(),
            stage: "tree".to_owned(),
            step: 0,
            of: 0,
            waiting: String::new(),
            blocks_left_best: None,
            blocks_left_worst: None,
            pending_sat: 0,
            leaf_height: None,
            own_fees_sat: self.paid(factory, &path).await?.to_sat(),
            speed_up: self.exits.sped.get(factory).cloned().unwrap_or_default(),
        };
        match planned.status.progress {
            Progress::Underway {
                step,
                of,
                next,
                waiting,
                blocks_left,
            } => {
                info.step = step;
                info.of = of;
                info.waiting = match waiting {
                    Waiting::Funding => "the funding to confirm".to_owned(),
                    Waiting::Confirmation => format!("{next} to confirm"),
                    Waiting::Delay { blocks, .. } => {
                        format!("{blocks} blocks until {next} may confirm")
                    }
                    Waiting::Expiry { blocks, .. } => {
                        format!("{blocks} blocks until the factory expires")
                    }
                    _ => next.to_string(),
                };
                info.blocks_left_best = Some(blocks_left.best);
                info.blocks_left_worst = Some(blocks_left.worst);
            }
            Progress::LeafConfirmed { height, .. } => {
                let channels = confirmed(&planned.status.channels);
                let watcher = self.parts.chain.watcher();
                let closings = channels.iter().map(|it| self.parts.host.closing(*it));
                let closings: Vec<_> = closings.collect();
                let pending_sat = closings.iter().map(|it| it.pending_sat).sum();
                let ready = closings.iter().filter_map(|it| it.ready_height).max();
                let closed = channels.iter().all(|it| watcher.spend(it).is_some());
                info.leaf_height = Some(height);
                info.pending_sat = if job.done { 0 } else { pending_sat };
                info.blocks_left_best = ready.map(|ready| ready.saturating_sub(facts.tip));
                let settled = closings.iter().all(Closing::is_settled);
                let done = job.done || (closed && settled);
                info.stage = if done { "done" } else { "closing" }.to_owned();
                info.waiting = match (done, closed, pending_sat) {
                    (true, ..) => "",
                    (_, false, _) => "the channel's commitment to confirm",
                    (_, true, 0) => "a payment under way to be taken or to time out",
                    (_, true, _) => "the delay on our balance, then the sweep",
                }
                .to_owned();
            }
            Progress::PaidOut { .. } => info.stage = "paid_out".to_owned(),
            Progress::Superseded { by, .. } => {
                info.stage = "superseded".to_owned();
                info.waiting = format!("{by} has spent the path");
            }
            _ => {}
        }
        Ok(info)
    }
}

/// The outputs of a place's channels that are on chain.
fn confirmed(channels: &[ChannelStatus]) -> Vec<OutPoint> {
    let there = |it: &&ChannelStatus| matches!(it.on_chain, OnChain::Confirmed { .. });
    channels
        .iter()
        .filter(there)
        .map(|it| it.outpoint)
        .collect()
}
