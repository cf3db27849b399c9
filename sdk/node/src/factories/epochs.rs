//! New epochs, as a node carries them out: channels put to rest, prepared, switched to and retired.
//!
//! What always holds: a role is told that a place's channels rest when nothing is pending in any of
//! them, and once more before it may sign; a place wakes only when its role says so; no channel of a
//! new epoch is opened, and nothing signed, in a factory whose kickoff is in mempool or chain.

use std::collections::{BTreeMap, BTreeSet};

use superscalar_factory::coordinator::{self, Coordinator};
use superscalar_factory::effect::{ChannelRef, Effect, SlotRef};
use superscalar_factory::epoch::{EpochError, EpochPlan, EpochStage, PlacePlan, UnderWay, Wish};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;
use superscalar_factory::tree::Cut;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::bridge::{self, ChannelKind};
use super::effects::{Failure, still_possible};
use super::engine::Engine;
use super::error::EngineError;
use super::inputs::MEMBER_PATIENCE_ROUNDS;
use super::wishes::{EpochConsent, EpochRequest};
use crate::hosting::{ChannelError, SlotId, SlotPhase};

/// LDK does not say when the last HTLC of a channel is gone: it is asked this often.
const LOOK_AFTER: Duration = Duration::from_millis(25);

/// What the application asks for.
#[cfg_attr(
    not(feature = "lsp"),
    allow(dead_code, reason = "some only an LSP asks for")
)]
pub(crate) enum EpochCommand {
    Begin {
        factory: String,
        request: EpochRequest,
        answer: oneshot::Sender<Result<String, EngineError>>,
    },
    Abandon {
        factory: String,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    Consent {
        factory: String,
        consent: EpochConsent,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
}

/// How far an epoch is, as far as waiting for others goes.
#[derive(Clone, PartialEq, Eq)]
enum Step {
    Member(EpochStage),
    Lsp(Box<UnderWay>),
}

/// What a node remembers of new epochs beside what its roles do.
#[derive(Default)]
pub(super) struct Epochs {
    /// Places whose role waits until nothing is pending in their channels.
    resting: BTreeSet<SlotRef>,
    /// Attempts whose role waits for randomness.
    wanted: BTreeSet<Attempt>,
    look_at: Option<Instant>,
    /// Until when each step may last; `None` once that was told.
    rounds: BTreeMap<Attempt, (Step, Option<Instant>)>,
    /// What the roles named when they came back.
    named: BTreeSet<ChannelRef>,
}

impl Epochs {
    /// A role is back and wants these things done.
    pub(super) fn named(&mut self, effects: &[Effect]) {
        let named = effects.iter().filter_map(|effect| match effect {
            Effect::AgreeMoved(moved) => Some(moved.id),
            Effect::Retire(id) => Some(*id),
            _ => None,
        });
        self.named.extend(named);
    }

    /// When something of this is to be looked at again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let rounds = self.rounds.values().filter_map(|(_, until)| *until);
        rounds.chain(self.look_at).min()
    }
}

impl Engine {
    pub(super) async fn epoch_command(&mut self, command: EpochCommand) {
        // A dropped answer means that nobody waits for it any more.
        match command {
            EpochCommand::Begin {
                factory,
                request,
                answer,
            } => {
                let begun = self.begin_epoch(&factory, &request).await;
                let _ = answer.send(begun);
            }
            EpochCommand::Abandon { factory, answer } => {
                let _ = answer.send(self.abandon_epoch(&factory));
            }
            EpochCommand::Consent {
                factory,
                consent,
                answer,
            } => {
                let _ = answer.send(self.set_consent(&factory, consent));
            }
        }
    }

    /// An LSP's: begins a new epoch; gives its name.
    async fn begin_epoch(
        &mut self,
        factory: &str,
        request: &EpochRequest,
    ) -> Result<String, EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        if !self.coordinators.contains_key(&attempt) {
            return Err(unknown());
        }
        self.look_whether_opened(attempt).await;
        let host = &self.parts.host;
        let randomness = host.random_bytes();
        let role = self.coordinators.get_mut(&attempt);
        let role = role.ok_or(EngineError::Stopped)?;
        let next = role.next_epoch(request.slot)?;
        let meant = |slot: u16| next.channels.iter().any(|id| id.slot.slot == slot);
        if let Some(stray) = request.places.iter().find(|it| !meant(it.slot)) {
            return Err(EpochError::NoSuchSlot { slot: stray.slot }.into());
        }
        let away = next.channels.iter().find_map(|id| {
            let peer = role.peers().get(usize::from(id.slot.slot))?;
            (!host.is_connected(peer)).then_some(*peer)
        });
        if let Some(peer) = away {
            return Err(EngineError::NotConnected { peer });
        }
        let places = next.channels.iter().map(|id| {
            let slot = id.slot.slot;
            let asked = request.places.iter().find(|it| it.slot == slot);
            let wish = match (asked, role.cut(slot)) {
                (Some(asked), _) => asked.wish.into(),
                (None, Some(Cut::Departed)) => Wish::Depart,
                _ => Wish::Merge,
            };
            let funding_key = host.funding_pubkey(&bridge::channel_id(id));
            PlacePlan { wish, funding_key }
        });
        let places = places.collect();
        let slots: Vec<u16> = next.channels.iter().map(|id| id.slot.slot).collect();
        let plan = EpochPlan {
            slot: request.slot,
            places,
            waves: vec![self.first_wave(&attempt, &slots)],
        };
        let role = self.coordinators.get_mut(&attempt);
        let role = role.ok_or(EngineError::Stopped)?;
        let effects = role.begin_epoch(&plan, randomness)?;
        self.queue(attempt, effects);
        Ok(next.epoch.to_string())
    }

    fn abandon_epoch(&mut self, factory: &str) -> Result<(), EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        if !self.coordinators.contains_key(&attempt) {
            return Err(unknown());
        }
        let role = self.coordinators.get_mut(&attempt);
        let role = role.ok_or(EngineError::Stopped)?;
        if role.epoch_under_way().is_none() {
            let factory = factory.to_owned();
            return Err(EngineError::NoEpoch { factory });
        }
        let effects = role.abandon_epoch();
        self.queue(attempt, effects);
        Ok(())
    }

    /// Carries out what a new epoch asks for.
    pub(super) async fn renew(&mut self, attempt: Attempt, effect: Effect) -> Result<(), Failure> {
        let host = &self.parts.host;
        match effect {
            Effect::Freeze(place) => {
                host.rest(&bridge::slot_id(&place));
                self.epochs.resting.insert(place);
                self.look_at_rest().await;
            }
            Effect::Thaw(place) => {
                self.epochs.resting.remove(&place);
                host.wake(&bridge::slot_id(&place));
                if self.parts.is_lsp {
                    self.drop_prepared(&place)?;
                }
            }
            Effect::Limbo { slot, frozen_msat } => {
                self.epochs.resting.remove(&slot);
                host.cap(&bridge::slot_id(&slot), frozen_msat);
            }
            Effect::AgreeMoved(moved) => {
                let channel = bridge::moved(&moved, self.parts.is_lsp);
                let slot = channel.slot;
                still_possible(
                    host.agree_slot(channel),
                    "a new epoch's channel was refused",
                )?;
                if host.slot(&slot).map(|entry| entry.phase) == Some(SlotPhase::Agreed) {
                    still_possible(host.allow_signing(&slot), "the new channel cannot open")?;
                }
            }
            Effect::OpenMoved(id) => self.open_moved(id).await,
            Effect::DiscardMoved(id) => self.discard(&bridge::channel_id(&id))?,
            Effect::ActivateMoved(id) => {
                let activated = host.activate(&bridge::channel_id(&id));
                still_possible(activated, "the new channel was not activated")?;
                self.wake_if_settled(&id.slot);
            }
            Effect::SuspendMoved(id) => {
                let frozen = host.freeze(&bridge::channel_id(&id));
                still_possible(frozen, "the new channel was not frozen")?;
            }
            Effect::Retire(id) => self.retire(&id)?,
            Effect::NeedEpochRandomness(_) => {
                self.epochs.wanted.insert(attempt);
                self.look_at_rest().await;
            }
            other => {
                let error = format!("no effect of a new epoch: {other:?}");
                return Err(Failure::Never(error));
            }
        }
        Ok(())
    }

    /// An LSP's, which never completes what it has abandoned: LDK could put a payment there.
    fn drop_prepared(&self, place: &SlotRef) -> Result<(), Failure> {
        for entry in self.parts.host.slots() {
            let id = bridge::channel_ref(&entry.channel.slot).filter(|id| id.slot == *place);
            let prepared = id.filter(|id| {
                entry.phase == SlotPhase::Held && bridge::kind(id) == ChannelKind::Moved
            });
            if let Some(id) = prepared.filter(|id| !self.is_live(id)) {
                self.retire(&id)?;
            }
        }
        Ok(())
    }

    async fn open_moved(&mut self, id: ChannelRef) {
        let attempt = id.slot.attempt;
        self.look_whether_opened(attempt).await;
        let slot = bridge::channel_id(&id);
        let host = &self.parts.host;
        if self.is_opened(&attempt) || host.channel_state(&slot).is_some() {
            return;
        }
        match host.open_slot(&slot) {
            Ok(()) => {}
            // What LDK never opens with a peer that is there is not waited for.
            Err(ChannelError::Ldk(error)) if self.is_peer_there(&slot) => {
                tracing::warn!(%slot, error, "the new channel cannot be opened");
                self.moved_lost(id);
            }
            Err(error) => tracing::info!(%slot, %error, "the new channel is not opened yet"),
        }
    }

    fn is_peer_there(&self, slot: &SlotId) -> bool {
        let host = &self.parts.host;
        let peer = host.slot(slot).map(|entry| entry.channel.peer);
        peer.is_some_and(|peer| host.is_connected(&peer))
    }

    fn retire(&self, id: &ChannelRef) -> Result<(), Failure> {
        let slot = bridge::channel_id(id);
        match self.parts.host.supersede(&slot) {
            Ok(()) => Ok(()),
            Err(ChannelError::Slot(error)) => still_possible(Err(error), "not retired"),
            Err(error) => {
                tracing::warn!(%slot, %error, "a retired channel is closed with the next start");
                Ok(())
            }
        }
    }

    /// A place's newest channel is in use: unless the next epoch has begun, it wakes.
    fn wake_if_settled(&mut self, place: &SlotRef) {
        let id = bridge::slot_id(place);
        let host = &self.parts.host;
        if let Some(role) = self.members.get(&place.attempt) {
            match (role.epoch_stage(), role.limbo_msat()) {
                (Some(_), _) => {}
                (None, Some(msat)) => host.cap(&id, msat),
                (None, None) => host.wake(&id),
            }
        } else if let Some(role) = self.coordinators.get(&place.attempt)
            && !role.is_moving(place.slot)
        {
            host.wake(&id);
        }
    }

    /// Tells roles of channels that rest now, and gives randomness where all still do.
    pub(super) async fn look_at_rest(&mut self) {
        for place in self.epochs.resting.clone() {
            if let Some(balances) = self.at_rest(&place) {
                self.epochs.resting.remove(&place);
                self.tell_rest(place, balances);
            }
        }
        for attempt in self.epochs.wanted.clone() {
            self.look_whether_opened(attempt).await;
            let places = self.moving_places(&attempt);
            let at_rest = places
                .iter()
                .map(|place| Some((*place, self.at_rest(place)?)));
            let Some(at_rest) = at_rest.collect::<Option<Vec<_>>>() else {
                continue;
            };
            self.epochs.wanted.remove(&attempt);
            // Should anything have moved, there is nothing left to sign after this.
            for (place, balances) in at_rest {
                self.tell_rest(place, balances);
            }
            let randomness = self.parts.host.random_bytes();
            self.member(attempt, |_| member::Input::EpochRandomness(randomness));
            self.coordinator(attempt, coordinator::Input::EpochRandomness(randomness));
        }
        let waits = !(self.epochs.resting.is_empty() && self.epochs.wanted.is_empty());
        self.epochs.look_at = waits.then(|| Instant::now() + LOOK_AFTER);
    }

    /// The places of the epoch under way, our own one on a member's side.
    fn moving_places(&self, attempt: &Attempt) -> Vec<SlotRef> {
        if let Some(role) = self.members.get(attempt) {
            return vec![role.slot()];
        }
        let role = self.coordinators.get(attempt);
        let under_way = role.and_then(Coordinator::epoch_under_way);
        let slots = under_way.into_iter().flat_map(|it| it.slots);
        let attempt = *attempt;
        slots.map(|slot| SlotRef { attempt, slot }).collect()
    }

    fn at_rest(&self, place: &SlotRef) -> Option<Vec<(ChannelRef, u64)>> {
        let channels = self.live_channels(place);
        let found = self.parts.host.at_rest(&channels)?.into_iter();
        let named = found.map(|(id, msat)| Some((bridge::channel_ref(&id)?, msat)));
        named.collect()
    }

    fn tell_rest(&mut self, place: SlotRef, balances: Vec<(ChannelRef, u64)>) {
        let host = &self.parts.host;
        let moved = self.members.get(&place.attempt);
        let moved = moved.and_then(Member::moved_channel);
        // Any key where no channel is made.
        let id = moved.map_or_else(|| bridge::slot_id(&place), |id| bridge::channel_id(&id));
        let funding_key = host.funding_pubkey(&id);
        let randomness = host.random_bytes();
        let (slot, ours) = (place.slot, balances.clone());
        self.member(place.attempt, |_| member::Input::Frozen {
            balances: ours,
            funding_key,
            randomness,
        });
        self.coordinator(place.attempt, coordinator::Input::Frozen { slot, balances });
    }

    /// A channel is there for both sides.
    pub(super) async fn channel_held(&mut self, id: ChannelRef) {
        let SlotRef { attempt, slot } = id.slot;
        match bridge::kind(&id) {
            ChannelKind::First => {
                self.member(attempt, |_| member::Input::ChannelHeld);
                self.coordinator(attempt, coordinator::Input::ChannelHeld(slot));
            }
            ChannelKind::Moved => {
                self.member(attempt, |_| member::Input::MovedHeld(id));
                self.coordinator(attempt, coordinator::Input::MovedHeld(id));
            }
            ChannelKind::Bought => self.bought_held(id).await,
        }
    }

    /// A channel of a new epoch is closed, or never comes about.
    pub(super) fn moved_lost(&mut self, id: ChannelRef) {
        let attempt = id.slot.attempt;
        self.member(attempt, |_| member::Input::MovedLost(id));
        self.coordinator(attempt, coordinator::Input::MovedLost(id));
    }

    /// After a start: channels of epochs that came to nothing. What their roles do not name any more
    /// is closed.
    pub(super) fn drop_unnamed_channels(&mut self) {
        let named = std::mem::take(&mut self.epochs.named);
        for entry in self.parts.host.slots() {
            let over = matches!(entry.phase, SlotPhase::Retired | SlotPhase::Closed);
            let Some(id) = bridge::channel_ref(&entry.channel.slot).filter(|_| !over) else {
                continue;
            };
            let has_role = self.version_of(&id.slot).is_some();
            if has_role && bridge::kind(&id) == ChannelKind::Moved && !named.contains(&id) {
                tracing::info!(channel = %entry.channel.slot, "nothing came of this channel");
                if let Err(Failure::Later(error) | Failure::Never(error)) =
                    self.discard(&entry.channel.slot)
                {
                    tracing::warn!(error, "it stays until the next start");
                }
            }
        }
    }

    /// After a start: what may have happened to channels without being written into a journal.
    pub(super) async fn resume_channels(&mut self) {
        for entry in self.parts.host.slots() {
            let Some(id) = bridge::channel_ref(&entry.channel.slot) else {
                continue;
            };
            match (bridge::kind(&id), entry.phase) {
                (ChannelKind::First, _) => {}
                (_, SlotPhase::Held | SlotPhase::Active | SlotPhase::Frozen) => {
                    self.channel_held(id).await;
                }
                (ChannelKind::Moved, SlotPhase::Closed) => self.moved_lost(id),
                (ChannelKind::Bought, SlotPhase::Closed) => self.bought_lost(id),
                _ => {}
            }
        }
    }

    /// The version of a place's path; `None` where there is no role for it.
    pub(super) fn version_of(&self, place: &SlotRef) -> Option<u32> {
        let member = self.members.get(&place.attempt).map(Member::version);
        let lsp = || Some(self.coordinators.get(&place.attempt)?.version(place.slot));
        member.or_else(lsp)
    }

    /// The channels of a place in its newest epoch, as far as LDK was ever told of them, the leaf's
    /// own first. Without a role all that were ever known.
    pub(super) fn live_channels(&self, place: &SlotRef) -> Vec<SlotId> {
        let slots = self.parts.host.slots().into_iter();
        let channels = slots.map(|entry| entry.channel.slot);
        let mut all: Vec<SlotId> = channels
            .filter(|slot| {
                let id = bridge::channel_ref(slot).filter(|id| id.slot == *place);
                id.is_some_and(|id| self.is_live(&id))
            })
            .collect();
        all.sort_by_key(|slot| (slot.epoch, slot.place_in_leaf()));
        all
    }

    /// Whether a channel is a part of what its place holds now.
    pub(super) fn is_live(&self, id: &ChannelRef) -> bool {
        if self.version_of(&id.slot).is_none() {
            return true;
        }
        match bridge::kind(id) {
            ChannelKind::Bought => self.is_delivered(id),
            _ => {
                let attempt = &id.slot.attempt;
                let member = self.members.get(attempt);
                let lsp = || self.coordinators.get(attempt)?.newest_channel(id.slot.slot);
                let newest = member.map_or_else(lsp, Member::newest_channel);
                newest == Some(*id)
            }
        }
    }

    /// Sets or ends the clock of the step each new epoch is in, and looks at what it has added.
    pub(super) fn time_epochs(&mut self) {
        for attempt in self.attempts() {
            let (step, seconds) = if let Some(role) = self.coordinators.get(&attempt) {
                let seconds = role.invites().first().map_or(30, |it| it.round_seconds);
                let under_way = role.epoch_under_way();
                let step = under_way.map(|it| Step::Lsp(Box::new(it)));
                (step, u64::from(seconds))
            } else if let Some(role) = self.members.get(&attempt) {
                let seconds = u64::from(role.invite().round_seconds) * MEMBER_PATIENCE_ROUNDS;
                (role.epoch_stage().map(Step::Member), seconds)
            } else {
                continue;
            };
            let known = self.epochs.rounds.get(&attempt).map(|(known, _)| known);
            if known == step.as_ref() {
                continue;
            }
            // Trees are added when a member has signed, and when all have.
            let adds = !matches!(step, Some(Step::Lsp(_)));
            match step {
                Some(step) => {
                    let until = Instant::now() + Duration::from_secs(seconds);
                    self.epochs.rounds.insert(attempt, (step, Some(until)));
                }
                None => {
                    self.epochs.rounds.remove(&attempt);
                    self.epochs.wanted.remove(&attempt);
                }
            }
            if adds && let Err(error) = self.watch_sales(&attempt) {
                tracing::warn!(%error, "a new epoch is not looked for before the next start");
            }
        }
    }

    /// Ends steps that have lasted too long, and looks at channels that come to rest.
    pub(super) async fn epochs_over(&mut self, now: Instant) {
        let mut over = Vec::new();
        for (attempt, (_, until)) in &mut self.epochs.rounds {
            if until.is_some_and(|until| until <= now) {
                *until = None;
                over.push(*attempt);
            }
        }
        for attempt in over {
            self.member(attempt, |_| member::Input::EpochTimedOut);
            self.coordinator(attempt, coordinator::Input::EpochTimedOut);
        }
        if self.epochs.look_at.is_some_and(|at| at <= now) {
            self.look_at_rest().await;
        }
    }
}
