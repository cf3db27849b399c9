//! Slots and ordinary channels: agreeing, opening, gating, closing.

use bitcoin::Transaction;
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;
use lightning::sign::EntropySource;
use lightning::util::errors::APIError;

use super::config::slot_config;
use super::host::Host;
use super::slot::{SlotChannel, SlotId, SlotRole};
use super::slots::{Slot, SlotError, SlotPhase};

/// Why something could not be done with a channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The register refused.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The other side opens this slot.
    #[error("slot {0} is opened by the other side")]
    NotFunder(SlotId),
    /// LDK has no channel for it.
    #[error("no channel for {0}")]
    NoChannel(String),
    /// An HTLC is pending.
    #[error("slot {slot} has {pending} pending HTLCs")]
    HtlcsPending {
        /// The slot.
        slot: SlotId,
        /// How many.
        pending: usize,
    },
    /// Its other side is away, or its newest state is being written.
    #[error("the channel cannot be closed now: its other side is away, or it is being written")]
    Busy,
    /// LDK refused.
    #[error("refused by LDK: {0}")]
    Ldk(String),
}

/// A channel as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelState {
    /// LDK's id.
    pub channel: ChannelId,
    /// The other side.
    pub peer: PublicKey,
    /// The slot, if it is a factory channel.
    pub slot: Option<SlotId>,
    /// The slot's phase.
    pub phase: Option<SlotPhase>,
    /// What the peer's invoices call it.
    pub(super) alias: Option<u64>,
    /// Value of the funding output.
    pub capacity_sat: u64,
    /// What is ours, the reserve included and pending HTLCs not.
    pub balance_msat: u64,
    /// The part of it that can be sent now.
    pub outbound_capacity_msat: u64,
    /// What can be received now.
    pub inbound_capacity_msat: u64,
    /// What must stay on our side so that cheating has a price.
    pub reserve_sat: u64,
    /// Whether the peer is connected and the channel operational.
    pub is_usable: bool,
    /// HTLCs towards us that are not settled.
    pub inbound_htlcs: usize,
    /// HTLCs from us that are not settled.
    pub outbound_htlcs: usize,
}

impl Host {
    /// Our funding key for a slot, known before any channel exists.
    pub fn funding_pubkey(&self, slot: &SlotId) -> PublicKey {
        self.parts.keys.funding_pubkey(slot)
    }

    /// Registers what a slot's channel must look like. LDK is held to it from now on.
    pub fn agree_slot(&self, channel: SlotChannel) -> Result<(), SlotError> {
        self.parts.slots.agree(channel)
    }

    /// Says that the path's final signatures are stored: the slot's channel may be opened.
    pub fn allow_signing(&self, slot: &SlotId) -> Result<(), SlotError> {
        self.parts.slots.set_phase(slot, SlotPhase::Signable)
    }

    /// Opens the slot's channel. [`HostEvent::ChannelHeld`](super::HostEvent::ChannelHeld)
    /// follows, or [`HostEvent::OpenFailed`](super::HostEvent::OpenFailed), after which it may be
    /// tried again.
    pub fn open_slot(&self, slot: &SlotId) -> Result<(), ChannelError> {
        let entry = self.slot(slot).ok_or(SlotError::Unknown(*slot))?;
        if entry.phase != SlotPhase::Signable {
            let wanted = SlotPhase::Committed;
            return Err(SlotError::WrongPhase {
                slot: *slot,
                now: entry.phase,
                wanted,
            }
            .into());
        }
        let agreed = &entry.channel;
        if agreed.role != SlotRole::Funder {
            return Err(ChannelError::NotFunder(*slot));
        }
        if self.channel_state(slot).is_some() {
            // LDK repeats an open by itself after a disconnect.
            return Ok(());
        }
        let channels = &self.parts.channels;
        channels
            .create_channel(
                agreed.peer,
                agreed.capacity_sat,
                agreed.push_msat,
                slot.user_channel_id(),
                Some(slot.temporary_channel_id()),
                Some(slot_config(&channels.get_current_config(), agreed)),
            )
            .map_err(refused)?;
        self.parts.peers.process_events();
        Ok(())
    }

    /// Lets payments pass. The factory exists: its path is complete, stored and buried.
    pub fn activate(&self, slot: &SlotId) -> Result<(), SlotError> {
        self.parts.slots.set_phase(slot, SlotPhase::Active)
    }

    /// Lets no further payment begin over this slot.
    pub fn freeze(&self, slot: &SlotId) -> Result<(), SlotError> {
        self.parts.slots.set_phase(slot, SlotPhase::Frozen)
    }

    /// Ends a channel that a newer one has replaced, or of which nothing came. Its commitment is
    /// not broadcast, unless the leaf appears on chain.
    pub fn retire(&self, slot: &SlotId) -> Result<(), ChannelError> {
        let state = self.channel_state(slot);
        let pending = state
            .as_ref()
            .map_or(0, |state| state.inbound_htlcs + state.outbound_htlcs);
        if pending > 0 {
            return Err(ChannelError::HtlcsPending {
                slot: *slot,
                pending,
            });
        }
        let last_msat = state.as_ref().map(|state| state.balance_msat);
        let alias = state.as_ref().and_then(|state| state.alias);
        self.parts.slots.supersede(slot, last_msat, alias)?;
        match state {
            Some(state) => self.close_channel(&state, "replaced by a newer channel"),
            None => Ok(()),
        }
    }

    /// Closes a slot's channel alone. Its commitment is held until the leaf is on chain.
    pub fn force_close(&self, slot: &SlotId) -> Result<(), ChannelError> {
        let state = self
            .channel_state(slot)
            .ok_or_else(|| ChannelError::NoChannel(slot.to_string()))?;
        self.close_channel(&state, "leaving the factory alone")
    }

    /// The transactions held back until a slot's leaf is on chain, the commitment first.
    pub fn held_transactions(&self, slot: &SlotId) -> Vec<Transaction> {
        self.parts.gate.held_for(slot)
    }

    /// Has LDK hand out again what it has not seen confirmed; use it after a tree transaction
    /// confirms.
    pub fn rebroadcast_claims(&self) {
        self.parts.monitors.rebroadcast_pending_claims();
    }

    /// An agreed slot and its phase.
    pub fn slot(&self, slot: &SlotId) -> Option<Slot> {
        self.parts.slots.get(slot)
    }

    /// All agreed slots.
    pub fn slots(&self) -> Vec<Slot> {
        self.parts.slots.matching(|_| true)
    }

    /// The channel of a slot, if LDK has one.
    pub fn channel_state(&self, slot: &SlotId) -> Option<ChannelState> {
        self.channel_states()
            .into_iter()
            .find(|state| state.slot.as_ref() == Some(slot))
    }

    /// All channels.
    pub fn channel_states(&self) -> Vec<ChannelState> {
        let state = |channel: ChannelDetails| {
            let slot = self.parts.slots.by_user_channel_id(channel.user_channel_id);
            ChannelState {
                channel: channel.channel_id,
                peer: channel.counterparty.node_id,
                slot: slot.as_ref().map(|slot| slot.channel.slot),
                phase: slot.as_ref().map(|slot| slot.phase),
                alias: channel.outbound_scid_alias,
                capacity_sat: channel.channel_value_satoshis,
                balance_msat: balance_msat(&channel),
                outbound_capacity_msat: channel.outbound_capacity_msat,
                inbound_capacity_msat: channel.inbound_capacity_msat,
                reserve_sat: channel.unspendable_punishment_reserve.unwrap_or(0),
                is_usable: channel.is_usable,
                inbound_htlcs: channel.pending_inbound_htlcs.len(),
                outbound_htlcs: channel.pending_outbound_htlcs.len(),
            }
        };
        let all = self.parts.channels.list_channels().into_iter();
        let mut states = all.map(state).collect::<Vec<_>>();
        self.limit_inbound(&mut states);
        states
    }

    /// Opens an ordinary channel from an own coin;
    /// [`HostEvent::OrdinaryFundingNeeded`](super::HostEvent::OrdinaryFundingNeeded) follows.
    pub fn open_ordinary_channel(
        &self,
        peer: PublicKey,
        capacity_sat: u64,
        push_msat: u64,
    ) -> Result<ChannelId, ChannelError> {
        let id = self.fresh_user_channel_id();
        let channels = &self.parts.channels;
        let opened = channels.create_channel(peer, capacity_sat, push_msat, id, None, None);
        let channel = opened.map_err(refused)?;
        self.parts.peers.process_events();
        Ok(channel)
    }

    /// Gives an ordinary channel its signed funding transaction, which LDK publishes.
    pub fn fund_ordinary_channel(
        &self,
        channel: ChannelId,
        peer: PublicKey,
        funding: Transaction,
    ) -> Result<(), ChannelError> {
        let channels = &self.parts.channels;
        channels
            .funding_transaction_generated(channel, peer, funding)
            .map_err(refused)?;
        self.parts.peers.process_events();
        Ok(())
    }

    /// Closes an ordinary channel together with the peer.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Busy`] where that can be tried again.
    pub fn close_ordinary_channel(
        &self,
        channel: ChannelId,
        peer: PublicKey,
    ) -> Result<(), ChannelError> {
        let closed = self.parts.channels.close_channel(&channel, &peer);
        closed.map_err(|error| match error {
            // Of a channel that there is, LDK says this of nothing else.
            APIError::ChannelUnavailable { .. } => ChannelError::Busy,
            error => refused(error),
        })?;
        self.parts.peers.process_events();
        Ok(())
    }

    /// Closes an ordinary channel alone: its latest commitment goes on chain.
    pub fn force_close_ordinary_channel(
        &self,
        channel: ChannelId,
        peer: PublicKey,
    ) -> Result<(), ChannelError> {
        let reason = "closed by its owner".into();
        let channels = &self.parts.channels;
        channels
            .force_close_broadcasting_latest_txn(&channel, &peer, reason)
            .map_err(refused)
    }

    /// An id that is no slot's; LDK uses 0 for channels it refused.
    pub(super) fn fresh_user_channel_id(&self) -> u128 {
        let bytes = self.parts.keys.get_secure_random_bytes();
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        u128::from_be_bytes(id).max(1)
    }

    pub(super) fn close_channel(
        &self,
        state: &ChannelState,
        message: &str,
    ) -> Result<(), ChannelError> {
        self.parts
            .channels
            .force_close_broadcasting_latest_txn(&state.channel, &state.peer, message.into())
            .map_err(refused)
    }
}

/// What is ours without the HTLCs we sent. LDK tells each side's balance only above that side's
/// reserve; below it ours is what the other side does not have.
pub(super) fn balance_msat(channel: &ChannelDetails) -> u64 {
    if channel.outbound_capacity_msat > 0 {
        let reserve_sat = channel.unspendable_punishment_reserve.unwrap_or(0);
        return channel.outbound_capacity_msat + reserve_sat * 1_000;
    }
    let received: u64 = channel
        .pending_inbound_htlcs
        .iter()
        .map(|htlc| htlc.amount_msat)
        .sum();
    let sent: u64 = channel
        .pending_outbound_htlcs
        .iter()
        .map(|htlc| htlc.amount_msat)
        .sum();
    let theirs_msat =
        channel.inbound_capacity_msat + channel.counterparty.unspendable_punishment_reserve * 1_000;
    (channel.channel_value_satoshis * 1_000).saturating_sub(theirs_msat + received + sent)
}

fn refused(error: APIError) -> ChannelError {
    ChannelError::Ldk(format!("{error:?}"))
}
