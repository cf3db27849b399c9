//! What happens, turned into inputs of the roles.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, FeeRate, Transaction};
use lightning_block_sync::BlockData;
use superscalar_factory::coordinator;
use superscalar_factory::effect::{Effect, SlotRef};
use superscalar_factory::member::{self, JoinSecrets, Member, Refused};
use superscalar_factory::message::{Attempt, Invite, Message, Refusal, RefusalCode, Seek};
use superscalar_factory::wire::{Frame, WireError};
use tokio::time::{Duration, Instant};

use super::bridge;
use super::engine::{Command, Engine, Seeking};
use crate::chain::{Confirmation, Tip};
use crate::event::Event;
use crate::hosting::{COMMITMENT_FEERATE_SAT_PER_KW, HostEvent, Paused, SlotPhase};

/// A member waits this many of the LSP's rounds: the LSP waits for everyone's answer first.
pub(super) const MEMBER_PATIENCE_ROUNDS: u64 = 4;

impl Engine {
    pub(super) async fn host_event(&mut self, event: HostEvent) {
        match event {
            HostEvent::Message { peer, message, .. } => {
                let frame = Frame {
                    submessage: message.submessage,
                    payload: message.payload,
                };
                match self.assemblers.entry(peer).or_default().receive(&frame) {
                    Ok(None) => {}
                    Ok(Some(message)) => self.message(peer, message),
                    Err(error) => self.unreadable(peer, &frame, &error),
                }
            }
            HostEvent::PeerConnected {
                peer,
                speaks_factory,
            } => {
                self.assemblers.remove(&peer);
                if speaks_factory {
                    self.connected(peer);
                }
            }
            HostEvent::PeerDisconnected { peer } => {
                self.assemblers.remove(&peer);
                self.waiting.remove(&peer);
            }
            HostEvent::ChannelHeld { slot } => {
                if let Some(id) = bridge::channel_ref(&slot) {
                    self.channel_held(id).await;
                }
            }
            HostEvent::OpenFailed { slot, reason } => {
                tracing::info!(%slot, reason, "the channel did not open, waiting for the next try");
            }
            HostEvent::SlotClosed {
                slot,
                reason,
                at_stake_msat,
                ..
            } => {
                if let Some(id) = bridge::channel_ref(&slot) {
                    self.channel_closed(&id, &reason, at_stake_msat).await;
                }
            }
            HostEvent::ExitNeeded {
                slot,
                reason,
                at_stake_msat,
            } => {
                if let Some(slot) = bridge::slot_ref(&slot) {
                    let reason = format!("{reason:?}");
                    self.begin_exit(&slot, &reason, at_stake_msat).await;
                }
            }
            HostEvent::LeafConfirmed { slot, height } => {
                tracing::info!(%slot, height, "the leaf is on chain");
            }
            HostEvent::OrdinaryFundingNeeded {
                channel,
                peer,
                amount_sat,
                script,
            } => self.fund_ordinary(channel, peer, script, Amount::from_sat(amount_sat)),
            HostEvent::SoldFundingNeeded {
                sale,
                channel,
                amount_sat,
                script,
            } => self.fund_sold(sale, channel, script, Amount::from_sat(amount_sat)),
            HostEvent::SoldFundingDue => self.publish_sold().await,
            HostEvent::SoldFundingFree { txid } => self.free_sold(txid),
            HostEvent::PaymentReceived { payment_hash, .. } => self.paid_to_us(payment_hash),
            HostEvent::PaymentSent { .. } => self.pay_bills().await,
            HostEvent::PaymentFailed { payment_hash, .. } => self.not_paid(payment_hash),
            other => tracing::debug!(?other, "nothing to do with factories"),
        }
        self.settle().await;
    }

    pub(super) async fn command(&mut self, command: Command) {
        // A dropped answer means that nobody waits for it any more.
        match command {
            Command::Seek {
                lsp,
                capacity,
                limits,
                answer,
            } => {
                self.seeking = Some(Seeking {
                    lsp,
                    capacity,
                    limits: *limits,
                    seated: None,
                });
                self.seek();
                let _ = answer.send(Ok(()));
            }
            Command::Build { request, answer } => {
                let started = self.build(request);
                let _ = answer.send(started);
            }
            Command::AskPrice {
                factory,
                amount,
                max_price_msat,
                answer,
            } => {
                self.ask_price(&factory, amount, max_price_msat, answer)
                    .await;
            }
            Command::Buy {
                factory,
                quote,
                answer,
            } => {
                let bought = self.buy(&factory, &quote).await;
                let _ = answer.send(bought);
            }
            Command::Waiting(answer) => {
                let _ = answer.send(self.waiting.keys().copied().collect());
            }
            Command::List(answer) => {
                let _ = answer.send(self.list());
            }
            Command::Tree { factory, answer } => {
                let _ = answer.send(self.tree(&factory));
            }
            Command::PlanExit { factory, answer } => {
                let planned = self.plan_exit(&factory).await;
                let _ = answer.send(planned);
            }
            Command::StartExit {
                factory,
                reason,
                mode,
                answer,
            } => {
                let started = match self.may_leave(&factory, mode) {
                    Ok(()) => self.start_exit(&factory, &reason, mode).await,
                    Err(error) => Err(error),
                };
                let _ = answer.send(started);
            }
            Command::Epoch(command) => self.epoch_command(command).await,
            Command::AcceptState(answer) => {
                let _ = answer.send(self.accept_state());
            }
            Command::ExportPaths(answer) => {
                let _ = answer.send(self.export_paths());
            }
            Command::SpeedUpExit {
                factory,
                feerate,
                answer,
            } => {
                let asked = self.speed_up(&factory, feerate).await;
                let _ = answer.send(asked);
            }
            Command::Exits(answer) => {
                let infos = self.exit_infos().await;
                let _ = answer.send(infos);
            }
        }
        self.settle().await;
    }

    /// Tells every role of fundings that confirmed or left the chain, and of a new tip.
    pub(super) async fn block(&mut self, tip: Tip) {
        self.tip = tip.height;
        // Fundings first: told of the height alone, a role would count the depth of a funding whose
        // block a reorg has just taken away, and open its channel, or take one in several new
        // blocks for missing.
        self.look_for_openings();
        self.look_for_states();
        self.look_at_fundings().await;
        self.look_for_others().await;
        for attempt in self.attempts() {
            self.member(attempt, |_| member::Input::Height(tip.height));
            self.coordinator(attempt, coordinator::Input::Height(tip.height));
        }
        self.settle().await;
        self.republish().await;
        self.publish_sold().await;
        self.judge_fees();
        self.pay_bills().await;
        self.judge_state();
        self.begin_missed_exits().await;
        self.leave_in_time().await;
        self.settle().await;
        let mut running = self.step_exits().await;
        running.extend(self.defend().await);
        self.take_stale().await;
        self.release_coins(&running);
        self.reclaim().await;
        self.close_what_is_over().await;
        self.release_towers();
        if let Err(error) = self.judge_attention() {
            tracing::warn!(%error, "a warning is not written");
        }
        self.settle().await;
        self.tell_the_rest();
    }

    /// Nothing is received that only an exit could enforce while that exit could not be paid for:
    /// by the fees fixed in the tree, or by coins, at twice what the mempool asks. Nothing pays for
    /// the commitment but what it carries, so above its feerate coins do not help.
    fn judge_fees(&self) {
        let active = self.members.iter().filter(|(_, role)| role.is_active());
        let active: Vec<String> = active.map(|(attempt, _)| bridge::name(attempt)).collect();
        if active.is_empty() {
            return;
        }
        let minimum = self.parts.chain.fees().mempool_minimum().to_sat_per_kwu();
        let commitment = u64::from(COMMITMENT_FEERATE_SAT_PER_KW);
        let twice = FeeRate::from_sat_per_kwu(minimum.saturating_mul(2));
        let unpayable = minimum > commitment || !self.can_pay_exits(&active, twice);
        self.parts.host.pause_receiving(match unpayable {
            true => Paused::Yes,
            false => Paused::No,
        });
    }

    /// A funding may be confirmed before it is watched for the first time, so this also runs after
    /// a new watch.
    pub(super) async fn look_at_fundings(&mut self) {
        for (attempt, watched) in self.watched.clone() {
            let found = self.parts.chain.watcher().confirmation(&watched.txid);
            if found.map(|at| at.height) == watched.told {
                continue;
            }
            if watched.told.is_some() {
                self.member(attempt, |_| member::Input::FundingReorged);
                self.coordinator(attempt, coordinator::Input::FundingReorged);
                self.told(attempt, None);
            }
            let Some(at) = found else { continue };
            let height = at.height;
            let confirmed = match self.members.get(&attempt) {
                Some(role) if !role.knows_funding() => {
                    let Some(tx) = self.confirmed_tx(&watched.txid, at).await else {
                        continue;
                    };
                    member::Input::FundingConfirmed { tx, height }
                }
                _ => member::Input::KnownFundingConfirmed { height },
            };
            self.member(attempt, |_| confirmed);
            self.coordinator(attempt, coordinator::Input::FundingConfirmed { height });
            self.told(attempt, Some(height));
            self.leave_if_closed(attempt).await;
        }
    }

    /// An LSP that has given an attempt up has closed its channels. If it publishes the factory all
    /// the same, what is ours in the channel is brought on chain.
    async fn leave_if_closed(&mut self, attempt: Attempt) {
        let Some(slot) = self.members.get(&attempt).map(Member::slot) else {
            return;
        };
        let entry = self.parts.host.slot(&bridge::slot_id(&slot));
        if let Some(entry) = entry.filter(|entry| entry.phase == SlotPhase::Closed) {
            let reason = "the channel was closed before the factory was funded";
            self.leave_closed(&slot, reason, entry.at_stake_msat).await;
        }
    }

    /// Ends the rounds that have lasted too long.
    pub(super) async fn rounds_over(&mut self) {
        let now = Instant::now();
        let over: Vec<Attempt> = self
            .rounds
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(attempt, _)| *attempt)
            .collect();
        for attempt in over {
            self.rounds.remove(&attempt);
            self.member(attempt, |_| member::Input::TimedOut);
            self.coordinator(attempt, coordinator::Input::TimedOut);
        }
        self.epochs_over(now).await;
        self.bills_over(now).await;
        self.settle().await;
    }

    pub(super) fn member(
        &mut self,
        attempt: Attempt,
        input: impl FnOnce(&Member) -> member::Input,
    ) {
        if let Some(role) = self.members.get_mut(&attempt) {
            let input = input(role);
            let effects = role.handle(input);
            self.queue(attempt, effects);
        }
    }

    pub(super) fn coordinator(&mut self, attempt: Attempt, input: coordinator::Input) {
        if let Some(role) = self.coordinators.get_mut(&attempt) {
            let effects = role.handle(input);
            self.queue(attempt, effects);
        }
    }

    /// Sets or ends the clock of the round an attempt is in.
    pub(super) fn time_rounds(&mut self) {
        for attempt in self.attempts() {
            let (phase, waits, seconds) = if let Some(role) = self.coordinators.get(&attempt) {
                let seconds = role.invites().first().map_or(30, |it| it.round_seconds);
                (role.phase(), role.awaits_members(), u64::from(seconds))
            } else if let Some(role) = self.members.get(&attempt) {
                let seconds = u64::from(role.invite().round_seconds) * MEMBER_PATIENCE_ROUNDS;
                let phase = role.phase();
                (
                    phase,
                    matches!(phase, "joined" | "signed" | "opening"),
                    seconds,
                )
            } else {
                continue;
            };
            match self.rounds.get(&attempt) {
                Some((running, _)) if *running == phase && waits => {}
                _ if waits => {
                    let until = Instant::now() + Duration::from_secs(seconds);
                    self.rounds.insert(attempt, (phase, until));
                }
                _ => {
                    self.rounds.remove(&attempt);
                }
            }
        }
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        let members = self.members.keys();
        members.chain(self.coordinators.keys()).copied().collect()
    }

    fn message(&mut self, peer: PublicKey, message: Message) {
        let attempt = match (&message, message.attempt()) {
            (Message::Seek(seek), _) => return self.seek_received(peer, seek),
            (_, None) => return,
            (_, Some(attempt)) => attempt,
        };
        if self.damaged.contains_key(&attempt) {
            // A new role would write into the journal of the old one.
            return match message {
                Message::Refusal(_) => {}
                _ => self.refuse(peer, attempt, RefusalCode::Unknown, ""),
            };
        }
        if self.coordinators.contains_key(&attempt) {
            let from = peer;
            let input = match &message {
                Message::Join(join) if self.is_of_another(&attempt, &join.member_key) => {
                    coordinator::Input::RepeatedKey { from }
                }
                _ => coordinator::Input::Message { from, message },
            };
            return self.coordinator(attempt, input);
        }
        match (self.members.get(&attempt), message) {
            (Some(role), message) if role.lsp() == peer => {
                if let Message::EpochPropose(_) = message {
                    self.set_epoch_limits(&attempt);
                }
                self.member(attempt, |_| member::Input::Message(message));
            }
            (None, Message::Invite(invite)) => self.invited(peer, invite),
            (None, Message::Refusal(_)) => {}
            _ => self.refuse(peer, attempt, RefusalCode::Unknown, ""),
        }
    }

    /// Whether the other side brought this factory key into another attempt already: none is in two.
    fn is_of_another(&self, attempt: &Attempt, key: &PublicKey) -> bool {
        let mut led = self.coordinators.iter().filter(|(of, _)| *of != attempt);
        let mut joined = self.members.iter().filter(|(of, _)| *of != attempt);
        let x_only = |key: &PublicKey| key.x_only_public_key().0;
        let is_lsps = |role: &Member| x_only(&role.invite().header.lsp_key) == x_only(key);
        led.any(|(_, role)| role.has_key(key)) || joined.any(|(_, role)| is_lsps(role))
    }

    fn invited(&mut self, peer: PublicKey, invite: Invite) {
        let attempt = invite.header.attempt();
        let repeated = self.is_of_another(&attempt, &invite.header.lsp_key);
        let wanted = self
            .seeking
            .as_mut()
            .filter(|seeking| seeking.lsp == peer && seeking.seated.is_none());
        let Some(seeking) = wanted else {
            return self.refuse(peer, attempt, RefusalCode::Unexpected, "invite");
        };
        if invite.slot >= invite.members {
            return self.refuse(peer, attempt, RefusalCode::Limits, "slot");
        }
        let slot = SlotRef {
            attempt,
            slot: invite.slot,
        };
        let Ok(address) = self.parts.onchain.address() else {
            return self.refuse(peer, attempt, RefusalCode::Other, "payout");
        };
        let funding_key = self.parts.host.funding_pubkey(&bridge::slot_id(&slot));
        let secrets = JoinSecrets {
            seed: self.parts.factory_seed.expose(),
            salt: self.parts.host.random_bytes(),
            nonce_randomness: self.parts.host.random_bytes(),
        };
        let joined = match repeated {
            true => Err(Refused {
                code: RefusalCode::Key,
                field: "lsp_key",
            }),
            false => Member::join(
                peer,
                invite,
                &seeking.limits,
                secrets,
                address.script_pubkey(),
                funding_key,
                self.tip,
            ),
        };
        match joined {
            Ok((role, effects)) => {
                seeking.seated = Some(attempt);
                self.members.insert(attempt, role);
                self.queue(attempt, effects);
            }
            Err(refused) => {
                self.refuse(peer, attempt, refused.code, refused.field);
                let told = self.tell(&Event::FactoryRefused {
                    factory: bridge::name(&attempt),
                    peer: peer.to_string(),
                    reason: refused.code.to_string(),
                    field: refused.field.to_owned(),
                });
                if let Err(error) = told {
                    tracing::warn!(%error, "the application was not told of a refused offer");
                }
            }
        }
    }

    fn seek_received(&mut self, peer: PublicKey, seek: &Seek) {
        if self.parts.is_lsp {
            self.waiting.insert(peer, seek.capacity);
        }
    }

    fn connected(&mut self, peer: PublicKey) {
        for attempt in self.attempts() {
            if self
                .members
                .get(&attempt)
                .is_some_and(|it| it.lsp() == peer)
            {
                self.member(attempt, |_| member::Input::Connected);
            }
            self.coordinator(attempt, coordinator::Input::Connected(peer));
        }
        if self.seeking.as_ref().is_some_and(|it| it.lsp == peer) {
            self.seek();
        }
    }

    /// Asks the LSP for a place, if the wallet wants one and has none yet.
    pub(super) fn seek(&mut self) {
        let seeking = self.seeking.as_ref();
        if let Some(seeking) = seeking.filter(|seeking| seeking.seated.is_none()) {
            let (to, capacity) = (seeking.lsp, seeking.capacity);
            self.say(to, &Seek { capacity }.into());
        }
    }

    fn unreadable(&mut self, peer: PublicKey, frame: &Frame, error: &WireError) {
        tracing::info!(%peer, %error, "a message could not be read");
        if self.bears_with(peer)
            && let Some(refusal) = frame.refused(error)
        {
            self.say(peer, &refusal);
        }
    }

    /// Whether the peer may be told of another refusal; else it is hung up on.
    pub(super) fn bears_with(&mut self, peer: PublicKey) -> bool {
        let exhausted = self.patience.is_exhausted_by(peer, Instant::now());
        if exhausted {
            tracing::warn!(%peer, "too many wrong messages: disconnecting");
            self.parts.host.disconnect(&peer);
        }
        !exhausted
    }

    fn refuse(&mut self, peer: PublicKey, attempt: Attempt, code: RefusalCode, field: &str) {
        tracing::info!(%peer, %code, field, "refused");
        if !self.bears_with(peer) {
            return;
        }
        let field = field.to_owned();
        let refusal = Refusal {
            attempt,
            code,
            field,
        };
        self.say(peer, &refusal.into());
    }

    pub(super) fn queue(&mut self, attempt: Attempt, effects: Vec<Effect>) {
        self.due
            .extend(effects.into_iter().map(|effect| (attempt, effect)));
    }

    fn told(&mut self, attempt: Attempt, height: Option<u32>) {
        if let Some(watched) = self.watched.get_mut(&attempt) {
            watched.told = height;
        }
    }

    /// The transaction itself, from its block: what the member checks its output by.
    async fn confirmed_tx(&self, txid: &bitcoin::Txid, at: Confirmation) -> Option<Transaction> {
        let block = self.parts.chain.source().block(at.block).await;
        let block = match block {
            Ok(BlockData::FullBlock(block)) => block,
            Ok(BlockData::HeaderOnly(_)) => return None,
            Err(error) => {
                tracing::warn!(%error, "a block could not be fetched");
                return None;
            }
        };
        // The source is not trusted with the block's content.
        let intact = block.block_hash() == at.block && block.check_merkle_root();
        let mut txs = block.txdata.into_iter().filter(|_| intact);
        txs.find(|tx| tx.compute_txid() == *txid)
    }
}
