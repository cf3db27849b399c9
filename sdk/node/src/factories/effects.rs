//! What the roles ask for, carried out in order.
//!
//! What always holds: when a record cannot be written, nothing that was to follow it happens.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};
use lightning::ln::types::ChannelId;
use superscalar_factory::codec::Encode as _;
use superscalar_factory::coordinator;
use superscalar_factory::effect::{Effect, Event as CoreEvent, SlotRef};
use superscalar_factory::message::{Attempt, Message};
use superscalar_factory::wire;

use super::bridge;
use super::engine::{Engine, Watched};
use crate::event::Event;
use crate::hosting::{FactoryMessage, SlotPhase};
use crate::onchain::FundingRequest;

impl Engine {
    /// Carries out everything that is due, and what follows from it.
    pub(super) async fn settle(&mut self) {
        while let Some((attempt, effect)) = self.due.pop_front() {
            if let Err(error) = self.carry_out(attempt, effect).await {
                // Nothing of this attempt may happen on top of a failed step: a restart replays
                // the journal up to it.
                tracing::error!(factory = bridge::name(&attempt), error, "an effect failed");
                self.due.retain(|(other, _)| *other != attempt);
                self.members.remove(&attempt);
                self.coordinators.remove(&attempt);
            }
        }
        self.time_rounds();
    }

    async fn carry_out(&mut self, attempt: Attempt, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Persist(record) => {
                let stream = bridge::stream(&attempt, self.parts.is_lsp);
                let appended = self.parts.store.append(&stream, &record.to_bytes());
                appended.map_err(|error| error.to_string())?;
            }
            Effect::Send { to, message } => self.say(to, &message),
            Effect::Fund(output) => self.fund(attempt, output),
            Effect::ReleaseFunding(txid) => {
                if let Err(error) = self.parts.onchain.release(txid) {
                    tracing::warn!(%txid, %error, "the funding's coins were not released");
                }
            }
            Effect::Agree(channel) => {
                let channel = bridge::channel(&channel, self.parts.is_lsp);
                let slot = channel.slot;
                let host = &self.parts.host;
                host.agree_slot(channel)
                    .map_err(|error| error.to_string())?;
                let phase = host.slot(&slot).map(|slot| slot.phase);
                if phase == Some(SlotPhase::Agreed) {
                    host.allow_signing(&slot)
                        .map_err(|error| error.to_string())?;
                }
            }
            Effect::Open(slot) => self.open(&slot),
            Effect::Activate(slot) => {
                if let Err(error) = self.parts.host.activate(&bridge::slot_id(&slot)) {
                    tracing::warn!(%error, "the channel was not activated");
                }
            }
            Effect::Suspend(slot) => {
                if let Err(error) = self.parts.host.freeze(&bridge::slot_id(&slot)) {
                    tracing::warn!(%error, "the channel was not frozen");
                }
            }
            Effect::Discard(slot) => self.discard(&slot),
            Effect::Watch(outpoint) => self.watch(attempt, outpoint).await?,
            Effect::Broadcast(tx) => self.publish(tx).await,
            Effect::Emit(event) => self.emit(attempt, event)?,
            other => return Err(format!("an effect this node does not know: {other:?}")),
        }
        Ok(())
    }

    /// Sends if the peer is there; roles repeat themselves when it comes back.
    pub(super) fn say(&self, to: PublicKey, message: &Message) {
        for frame in wire::frames(message) {
            let message = FactoryMessage {
                submessage: frame.submessage,
                payload: frame.payload,
            };
            if let Err(error) = self.parts.host.send_message(to, message) {
                tracing::debug!(%to, %error, "not sent");
                return;
            }
        }
    }

    fn fund(&mut self, attempt: Attempt, output: TxOut) {
        let request = FundingRequest {
            outputs: vec![(output.script_pubkey, output.value)],
            feerate: self.parts.chain.fees().within(6),
            conflicts_with: None,
        };
        let input = match self.parts.onchain.build_funding(&request) {
            Ok(tx) => coordinator::Input::Funded { tx, vout: 0 },
            Err(error) => {
                tracing::warn!(%error, "the factory cannot be funded");
                coordinator::Input::FundingFailed
            }
        };
        self.coordinator(attempt, input);
    }

    fn open(&self, slot: &SlotRef) {
        let id = bridge::slot_id(slot);
        let host = &self.parts.host;
        if host.channel_state(&id).is_some() {
            // Already under way.
            return;
        }
        if let Err(error) = host.open_slot(&id) {
            tracing::info!(slot = %id, %error, "the channel could not be opened yet");
        }
    }

    fn discard(&self, slot: &SlotRef) {
        let id = bridge::slot_id(slot);
        let host = &self.parts.host;
        if host.slot(&id).is_none() {
            return;
        }
        if let Err(error) = host.retire(&id) {
            tracing::info!(slot = %id, %error, "the slot was not retired");
        }
    }

    async fn watch(&mut self, attempt: Attempt, outpoint: OutPoint) -> Result<(), String> {
        let txid = outpoint.txid;
        let watching = self.parts.chain.watcher().watch_txs(&[txid]);
        watching.map_err(|error| error.to_string())?;
        self.watched
            .entry(attempt)
            .or_insert(Watched { txid, told: None });
        self.look_at_fundings().await;
        Ok(())
    }

    async fn publish(&mut self, tx: Transaction) {
        let txid = tx.compute_txid();
        match self.parts.onchain.publish(&tx).await {
            Ok(()) => tracing::info!(%txid, "published"),
            Err(error) => tracing::warn!(%txid, %error, "not published yet"),
        }
        if !self
            .publishing
            .iter()
            .any(|known| known.compute_txid() == txid)
        {
            self.publishing.push(tx);
        }
    }

    /// Publishes again what is not confirmed.
    pub(super) async fn republish(&mut self) {
        let watcher = self.parts.chain.watcher();
        self.publishing
            .retain(|tx| watcher.confirmation(&tx.compute_txid()).is_none());
        for tx in self.publishing.clone() {
            self.publish(tx).await;
        }
    }

    pub(super) fn fund_ordinary(
        &self,
        channel: ChannelId,
        peer: PublicKey,
        script: ScriptBuf,
        amount: Amount,
    ) {
        let request = FundingRequest {
            outputs: vec![(script, amount)],
            feerate: self.parts.chain.fees().within(6),
            conflicts_with: None,
        };
        let built = self.parts.onchain.build_funding(&request);
        let funded = built.map_err(|error| error.to_string()).and_then(|tx| {
            let funded = self.parts.host.fund_ordinary_channel(channel, peer, tx);
            funded.map_err(|error| error.to_string())
        });
        if let Err(error) = funded {
            tracing::warn!(error, "an ordinary channel could not be funded");
        }
    }

    fn emit(&mut self, attempt: Attempt, event: CoreEvent) -> Result<(), String> {
        let factory = bridge::name(&attempt);
        let told = match event {
            CoreEvent::Joined(slot) => Event::FactoryJoined {
                factory,
                slot: slot.slot,
            },
            CoreEvent::Signing(_) => Event::FactorySigning { factory },
            CoreEvent::Complete(_) => Event::FactoryComplete { factory },
            CoreEvent::Published { funding, .. } => {
                self.plans.remove(&attempt);
                let funding = funding.to_string();
                Event::FactoryPublished { factory, funding }
            }
            CoreEvent::Active { height, .. } => {
                if !self.parts.is_lsp {
                    self.seeking = None;
                }
                Event::FactoryActive { factory, height }
            }
            CoreEvent::Reorged(_) => Event::FactoryReorged { factory },
            CoreEvent::Refused {
                peer, code, field, ..
            } => Event::FactoryRefused {
                factory,
                peer: peer.to_string(),
                reason: code.to_string(),
                field,
            },
            CoreEvent::Ended { code, at_fault, .. } => {
                if let Some(seeking) = &mut self.seeking {
                    seeking.seated = false;
                }
                self.retry(attempt, &at_fault);
                Event::FactoryEnded {
                    factory,
                    reason: code.to_string(),
                    at_fault,
                }
            }
            _ => return Ok(()),
        };
        self.tell(&told)
    }

    pub(super) fn tell(&self, event: &Event) -> Result<(), String> {
        let appended = self.parts.events.append(event);
        appended.map_err(|error| error.to_string())
    }
}
