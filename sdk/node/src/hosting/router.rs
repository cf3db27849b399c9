//! Routes for our own payments.
//!
//! What always holds: the first hop out of a factory channel leaves the LSP at least
//! `exit_delay + 48` blocks between what it receives from us and what it sends on, or the LSP
//! would have to refuse (its own rule, see `htlc`).

use std::sync::Arc;

use bitcoin::secp256k1::{self, PublicKey, Secp256k1};
use lightning::blinded_path::payment::{BlindedPaymentPath, ReceiveTlvs};
use lightning::ln::channel_state::ChannelDetails;
use lightning::routing::router::{InFlightHtlcs, Path, Route, RouteParameters, Router};
use lightning::sign::ReceiveAuthKey;

use super::delays::{MAX_CLTV_AWAY_BLOCKS, forward_delta_blocks};
use super::ldk::GraphRouter;
use super::slots::{SharedSlots, Slots};

pub(super) struct FactoryRouter {
    inner: GraphRouter,
    slots: SharedSlots,
}

impl FactoryRouter {
    pub(super) fn new(inner: GraphRouter, slots: SharedSlots) -> Self {
        Self {
            inner,
            slots: Arc::clone(&slots),
        }
    }
}

impl Router for FactoryRouter {
    fn find_route(
        &self,
        payer: &PublicKey,
        params: &RouteParameters,
        first_hops: Option<&[&ChannelDetails]>,
        inflight: InFlightHtlcs,
    ) -> Result<Route, &'static str> {
        // Channels that must not be used are not offered to the route finder.
        let usable: Option<Vec<&ChannelDetails>> = first_hops.map(|hops| {
            hops.iter()
                .copied()
                .filter(|channel| may_send(&self.slots, channel))
                .collect()
        });
        let mut route = self
            .inner
            .find_route(payer, params, usable.as_deref(), inflight)?;
        for path in &mut route.paths {
            leave_time_for_exit(path, usable.as_deref().unwrap_or_default(), &self.slots)?;
        }
        Ok(route)
    }

    fn create_blinded_payment_paths<T: secp256k1::Signing + secp256k1::Verification>(
        &self,
        recipient: PublicKey,
        local_node_receive_key: ReceiveAuthKey,
        first_hops: Vec<ChannelDetails>,
        tlvs: ReceiveTlvs,
        amount_msats: Option<u64>,
        secp_ctx: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        self.inner.create_blinded_payment_paths(
            recipient,
            local_node_receive_key,
            first_hops,
            tlvs,
            amount_msats,
            secp_ctx,
        )
    }
}

fn may_send(slots: &Slots, channel: &ChannelDetails) -> bool {
    slots
        .by_user_channel_id(channel.user_channel_id)
        .is_none_or(|slot| slot.phase == super::SlotPhase::Active)
}

/// Raises what the first hop keeps between its two expiries.
fn leave_time_for_exit(
    path: &mut Path,
    first_hops: &[&ChannelDetails],
    slots: &Slots,
) -> Result<(), &'static str> {
    let forwards = path.hops.len() > 1 || path.blinded_tail.is_some();
    let Some(first) = path.hops.first_mut().filter(|_| forwards) else {
        return Ok(());
    };
    let slot = first_hops
        .iter()
        .find(|channel| channel.get_outbound_payment_scid() == Some(first.short_channel_id))
        .and_then(|channel| slots.by_user_channel_id(channel.user_channel_id));
    let Some(slot) = slot else { return Ok(()) };
    let needed = u32::from(forward_delta_blocks(slot.channel.exit_delay_blocks));
    first.cltv_expiry_delta = first.cltv_expiry_delta.max(needed);
    let total: u32 = path.hops.iter().map(|hop| hop.cltv_expiry_delta).sum();
    if total >= MAX_CLTV_AWAY_BLOCKS {
        return Err("the route's expiry is too far away for the exit delay");
    }
    Ok(())
}
