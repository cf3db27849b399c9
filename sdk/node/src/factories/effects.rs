//! What the roles ask for, carried out in order.
//!
//! What always holds: when a record cannot be written, nothing that was to follow it happens.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use lightning::ln::types::ChannelId;
use superscalar_factory::coordinator::{self, Coordinator};
use superscalar_factory::effect::{Effect, Event as CoreEvent};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Attempt, Message};
use superscalar_factory::wire;

use super::bridge;
use super::engine::{Engine, Watched};
use crate::hosting::{ChannelError, FactoryMessage, SlotError, SlotId, SlotPhase};
use crate::onchain::{FundingRequest, OnchainError};
use crate::store::StoreError;

impl Engine {
    /// Carries out everything that is due, and what follows from it. Where the store fails, all
    /// that follows in that attempt waits for the next try, in order.
    pub(super) async fn settle(&mut self) {
        for (attempt, effect) in std::mem::take(&mut self.stalled).into_iter().rev() {
            self.due.push_front((attempt, effect));
        }
        while let Some((attempt, effect)) = self.due.pop_front() {
            if self.stalled.iter().any(|(stalled, _)| *stalled == attempt) {
                // Refusals can wait for nothing, and a peer could cause any number of them.
                if !is_refusal(&effect) {
                    self.stalled.push_back((attempt, effect));
                }
                continue;
            }
            match self.carry_out(attempt, &effect).await {
                Ok(()) => {}
                Err(Failure::Later(error)) if is_refusal(&effect) => {
                    tracing::warn!(factory = bridge::name(&attempt), error, "not told");
                }
                Err(Failure::Later(error)) => {
                    tracing::error!(factory = bridge::name(&attempt), error, "tried again soon");
                    self.stalled.push_back((attempt, effect));
                }
                Err(Failure::Never(error)) => {
                    tracing::error!(factory = bridge::name(&attempt), error, "cannot be done");
                    self.give_up(attempt, &effect);
                }
            }
        }
        self.time_rounds();
        self.time_epochs();
    }

    /// An attempt whose next step is impossible ends as one whose channel was lost; nothing that
    /// was to follow the step happens.
    fn give_up(&mut self, attempt: Attempt, effect: &Effect) {
        self.due.retain(|(other, _)| *other != attempt);
        self.drop_untold(&attempt);
        self.member(attempt, |_| member::Input::ChannelLost);
        if let Effect::Agree(channel) = effect {
            let lost = coordinator::Input::ChannelLost(channel.slot.slot);
            self.coordinator(attempt, lost);
        }
    }

    async fn carry_out(&mut self, attempt: Attempt, effect: &Effect) -> Result<(), Failure> {
        match effect.clone() {
            Effect::Persist(record) => self.persist(attempt, &record)?,
            Effect::Send { to, message } => self.say(to, &message),
            Effect::Fund(output) => self.fund(attempt, output)?,
            Effect::ReleaseFunding(txid) => self.release(attempt, txid),
            Effect::Agree(channel) => {
                let channel = bridge::channel(&channel, self.parts.is_lsp);
                let slot = channel.slot;
                let host = &self.parts.host;
                host.agree_slot(channel)?;
                let phase = host.slot(&slot).map(|slot| slot.phase);
                if phase == Some(SlotPhase::Agreed) {
                    host.allow_signing(&slot)?;
                }
            }
            Effect::Open(slot) => self.open_channel(&bridge::slot_id(&slot)),
            Effect::Activate(slot) => {
                let activated = self.parts.host.activate(&bridge::slot_id(&slot));
                still_possible(activated, "the channel was not activated")?;
            }
            Effect::Suspend(slot) => {
                let frozen = self.parts.host.freeze(&bridge::slot_id(&slot));
                still_possible(frozen, "the channel was not frozen")?;
            }
            Effect::Discard(slot) => self.discard(&bridge::slot_id(&slot))?,
            Effect::Watch(outpoint) => self.watch(attempt, outpoint).await?,
            Effect::Broadcast(tx) => self.publish(tx).await,
            Effect::Emit(event) => self.emit(attempt, event)?,
            effect @ (Effect::Freeze(_)
            | Effect::Thaw(_)
            | Effect::Limbo { .. }
            | Effect::AgreeMoved(_)
            | Effect::OpenMoved(_)
            | Effect::DiscardMoved(_)
            | Effect::ActivateMoved(_)
            | Effect::SuspendMoved(_)
            | Effect::Retire(_)
            | Effect::NeedEpochRandomness(_)) => self.renew(attempt, effect).await?,
            other => self.sell(attempt, other).await?,
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

    fn fund(&mut self, attempt: Attempt, output: TxOut) -> Result<(), Failure> {
        let onchain = &self.parts.onchain;
        let mut request = FundingRequest {
            outputs: vec![(output.script_pubkey, output.value)],
            feerate: self.parts.chain.fees().within(6),
            conflicts_with: self.given_up.get(&attempt.instance).copied(),
        };
        let built = match onchain.build_funding(&request) {
            // Spent meanwhile: what was given up cannot confirm either.
            Err(OnchainError::CoinNotSpendable { .. }) => {
                request.conflicts_with = None;
                onchain.build_funding(&request)
            }
            built => built,
        };
        let input = match built {
            Ok(tx) => coordinator::Input::Funded { tx, vout: 0 },
            // A full disk may have room again; what is damaged stays so.
            Err(OnchainError::Store(error)) if !matches!(error, StoreError::Corrupt { .. }) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "the factory cannot be funded");
                coordinator::Input::FundingFailed
            }
        };
        self.given_up.remove(&attempt.instance);
        self.coordinator(attempt, input);
        Ok(())
    }

    fn release(&mut self, attempt: Attempt, txid: Txid) {
        let onchain = &self.parts.onchain;
        let reserved = onchain.reserved().map(|all| {
            let mut all = all.into_iter();
            all.find(|tx| tx.compute_txid() == txid)
        });
        match reserved.and_then(|tx| onchain.release(txid).map(|()| tx)) {
            Ok(tx) => {
                let coin = tx.and_then(|tx| Some(tx.input.first()?.previous_output));
                self.given_up
                    .extend(coin.map(|coin| (attempt.instance, coin)));
            }
            Err(error) => {
                tracing::warn!(%txid, %error, "the funding's coins were not released");
            }
        }
    }

    pub(super) fn open_channel(&self, id: &SlotId) {
        let host = &self.parts.host;
        if host.channel_state(id).is_some() {
            // Already under way.
            return;
        }
        if let Err(error) = host.open_slot(id) {
            tracing::info!(slot = %id, %error, "the channel could not be opened yet");
        }
    }

    pub(super) fn discard(&self, id: &SlotId) -> Result<(), Failure> {
        let host = &self.parts.host;
        if host.slot(id).is_none() {
            return Ok(());
        }
        match host.retire(id) {
            Err(ChannelError::Slot(error)) => still_possible(Err(error), "the slot stays"),
            Err(error) => {
                tracing::info!(slot = %id, %error, "the channel was not closed");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn watch(&mut self, attempt: Attempt, outpoint: OutPoint) -> Result<(), Failure> {
        let txid = outpoint.txid;
        let watcher = self.parts.chain.watcher();
        watcher.watch_txs(&[txid])?;
        // Before the funding can be on chain: nobody can open the tree unseen, and no exit has to
        // search old blocks.
        let member = self.members.get(&attempt).and_then(Member::tree);
        let coordinator = self.coordinators.get(&attempt);
        let built = coordinator.and_then(Coordinator::built);
        if let Some(tree) = member.or(built.map(|built| &built.tree)) {
            let outpoints: Vec<OutPoint> = tree.outpoints().into_iter().collect();
            watcher.watch_outpoints(&outpoints)?;
            self.watch_sales(&attempt)?;
        }
        self.watched
            .entry(attempt)
            .or_insert(Watched { txid, told: None });
        self.look_at_fundings().await;
        Ok(())
    }

    async fn publish(&mut self, tx: Transaction) {
        let txid = tx.compute_txid();
        if self.parts.chain.watcher().confirmation(&txid).is_some() {
            // Should it leave the chain, its role asks again.
            return;
        }
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
        // What else of ours is on its way: sent coins, fundings of ordinary channels.
        if let Err(error) = self.parts.onchain.republish().await {
            tracing::warn!(%error, "own transactions were not published again");
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
}

fn is_refusal(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            message: Message::Refusal(_),
            ..
        } | Effect::Emit(CoreEvent::Refused { .. })
    )
}

/// Why an effect was not carried out.
pub(super) enum Failure {
    /// The store cannot write now: a full disk may have room again.
    Later(String),
    /// It contradicts what is already agreed, and always will.
    Never(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Later(error.to_string())
    }
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Store(error) => Failure::Later(error.to_string()),
            other => Failure::Never(other.to_string()),
        }
    }
}

/// For steps a slot may have left behind: only a failing store keeps them from being over.
pub(super) fn still_possible(done: Result<(), SlotError>, what: &str) -> Result<(), Failure> {
    match done.map_err(Failure::from) {
        Err(Failure::Never(error)) => {
            tracing::warn!(error, "{what}");
            Ok(())
        }
        other => other,
    }
}
