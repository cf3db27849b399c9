//! How a host is set up, and LDK's configuration that follows from it.

use std::net::SocketAddr;
use std::sync::Arc;

use bitcoin::Network;
use lightning::chain::BlockLocator;
use lightning::sign::ChangeDestinationSourceSync;
use lightning::util::config::{
    ChannelConfigOverrides, ChannelConfigUpdate, ChannelHandshakeConfigUpdate,
    HTLCInterceptionFlags, MaxDustHTLCExposure, UserConfig,
};

use super::Store;
use super::broadcast::Broadcaster;
use super::delays::forward_delta_blocks;
use super::events::EventSink;
use super::fees::{
    COMMITMENT_FEERATE_SAT_PER_KW, COMMITMENT_HTLC_WEIGHT, DUST_LIMIT_SAT, FeeSource, MAX_HTLCS,
};
use super::jit::JitPolicy;
use super::revoked::Guards;
use super::slot::SlotChannel;

/// Where coins from closed channels go.
pub type Destination = Arc<dyn ChangeDestinationSourceSync + Send + Sync>;

/// Weight of an HTLC in a commitment and of the second stage that claims it (BOLT3).
const HTLC_WEIGHT: u64 = COMMITMENT_HTLC_WEIGHT + 703;
/// LDK judges a change by the feerate the channel might have next, this much above the present.
const DUST_BUFFER_SAT_PER_KW: u64 = 2_530;

/// What LDK counts as exposure when every HTLC there may be is pending, none more: each as dust,
/// and the fees of each, all of which a low market makes "excess" because ours are pinned. Less
/// fails payments (100,000 sat did at 90 HTLCs) or closes channels. It is more than most channels
/// hold, so what keeps an LSP from raising the feerate is the signer, not this.
const MAX_DUST_EXPOSURE_MSAT: u64 = {
    let feerate = COMMITMENT_FEERATE_SAT_PER_KW as u64 + DUST_BUFFER_SAT_PER_KW;
    let each_sat = DUST_LIMIT_SAT + 2 * HTLC_WEIGHT * feerate / 1_000;
    MAX_HTLCS * each_sat * 1_000
};

/// Which part this node plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A wallet: never forwards.
    Member,
    /// The service provider: forwards, and opens the members' channels.
    Lsp(LspPolicy),
}

/// An LSP's terms towards everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LspPolicy {
    /// Who may open ordinary channels to us.
    pub ordinary_opens: OrdinaryOpens,
    /// Fixed part of the fee for a forward.
    pub fee_base_msat: u32,
    /// Proportional part, in millionths of the amount.
    pub fee_ppm: u32,
    /// `cltv_expiry_delta` of ordinary channels.
    pub ordinary_delta_blocks: u16,
    /// What a channel opened for a payment costs; `None` sells none.
    pub jit: Option<JitPolicy>,
}

impl Default for LspPolicy {
    fn default() -> Self {
        Self {
            ordinary_opens: OrdinaryOpens::Accept,
            fee_base_msat: 1_000,
            fee_ppm: 100,
            ordinary_delta_blocks: 72,
            jit: None,
        }
    }
}

/// What happens to an `open_channel` that belongs to no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrdinaryOpens {
    /// Accepted as an ordinary channel.
    Accept,
    /// Refused.
    Refuse,
}

/// Everything a host is made from.
pub struct HostConfig {
    /// The chain.
    pub network: Network,
    /// Our part.
    pub role: Role,
    /// Seed of node key and channel keys; backed up by the caller.
    pub node_seed: [u8; 32],
    /// Where to accept connections.
    pub listen: Option<SocketAddr>,
    /// Where state lives. One host per store.
    pub store: Store,
    /// Where a node without state starts to follow the chain.
    pub start_block: BlockLocator,
    /// Live feerates.
    pub fees: FeeSource,
    /// Publishes transactions.
    pub broadcaster: Broadcaster,
    /// Where coins from closed channels go.
    pub destination: Destination,
    /// Takes events.
    pub events: Arc<dyn EventSink>,
    /// Takes what peers could cheat with; `None` where nobody does.
    pub guards: Option<Arc<dyn Guards>>,
}

/// The `UserConfig` every channel starts from.
pub(super) fn user_config(role: &Role) -> UserConfig {
    let mut config = UserConfig::default();
    // `static_remotekey`: a member without coins cannot bump an anchor.
    config
        .channel_handshake_config
        .negotiate_anchors_zero_fee_htlc_tx = false;
    config
        .channel_handshake_config
        .negotiate_anchor_zero_fee_commitments = false;
    config.channel_handshake_config.announce_for_forwarding = false;
    config
        .channel_handshake_config
        .unannounced_channel_max_inbound_htlc_value_in_flight_percentage = 100;
    config
        .channel_handshake_limits
        .force_announced_channel_preference = false;
    config.channel_config.max_dust_htlc_exposure =
        MaxDustHTLCExposure::FixedLimitMsat(MAX_DUST_EXPOSURE_MSAT);
    config.reject_inbound_splices = true;
    match role {
        Role::Member => {
            config.accept_forwards_to_priv_channels = false;
            config.htlc_interception_flags = 0;
        }
        Role::Lsp(policy) => {
            config.accept_forwards_to_priv_channels = true;
            config.channel_config.forwarding_fee_base_msat = policy.fee_base_msat;
            config.channel_config.forwarding_fee_proportional_millionths = policy.fee_ppm;
            config.channel_config.cltv_expiry_delta = policy.ordinary_delta_blocks;
            // Every forward: LDK may put one that names a peer's announced channel into its
            // factory channel.
            config.htlc_interception_flags = HTLCInterceptionFlags::FromPrivateChannels as u8
                | HTLCInterceptionFlags::ToOnlinePrivateChannels as u8
                | HTLCInterceptionFlags::ToOfflinePrivateChannels as u8
                | HTLCInterceptionFlags::ToPublicChannels as u8
                | HTLCInterceptionFlags::ToInterceptSCIDs as u8
                // By an older epoch's channel.
                | HTLCInterceptionFlags::ToUnknownSCIDs as u8;
        }
    }
    config
}

/// What differs for a slot's channel, for the side that opens it.
pub(super) fn slot_config(base: &UserConfig, channel: &SlotChannel) -> UserConfig {
    let mut config = base.clone();
    config.apply(&slot_overrides(channel));
    config.channel_handshake_limits.their_to_self_delay = channel.delay_on_us_blocks;
    config.channel_handshake_config.announce_for_forwarding = false;
    config
}

/// What differs for a slot's channel, for the side that accepts it.
pub(super) fn slot_overrides(channel: &SlotChannel) -> ChannelConfigOverrides {
    ChannelConfigOverrides {
        handshake_overrides: Some(ChannelHandshakeConfigUpdate {
            announced_channel_max_inbound_htlc_value_in_flight_percentage: None,
            unannounced_channel_max_inbound_htlc_value_in_flight_percentage: Some(100),
            htlc_minimum_msat: None,
            minimum_depth: None,
            to_self_delay: Some(channel.delay_on_peer_blocks),
            max_accepted_htlcs: None,
            channel_reserve_proportional_millionths: None,
        }),
        update_overrides: Some(ChannelConfigUpdate {
            cltv_expiry_delta: Some(forward_delta_blocks(channel.exit_delay_blocks)),
            ..ChannelConfigUpdate {
                forwarding_fee_proportional_millionths: None,
                forwarding_fee_base_msat: None,
                cltv_expiry_delta: None,
                max_dust_htlc_exposure_msat: None,
                force_close_avoidance_max_fee_satoshis: None,
                accept_underpaying_htlcs: None,
            }
        }),
    }
}

/// What differs for a channel we bought for a payment and accept.
pub(super) fn bought_overrides(max_delay_on_lsp_blocks: u16) -> ChannelConfigOverrides {
    let usual = UserConfig::default()
        .channel_handshake_config
        .our_to_self_delay;
    ChannelConfigOverrides {
        handshake_overrides: Some(ChannelHandshakeConfigUpdate {
            announced_channel_max_inbound_htlc_value_in_flight_percentage: None,
            unannounced_channel_max_inbound_htlc_value_in_flight_percentage: Some(100),
            htlc_minimum_msat: None,
            minimum_depth: None,
            to_self_delay: Some(usual.min(max_delay_on_lsp_blocks)),
            max_accepted_htlcs: None,
            channel_reserve_proportional_millionths: None,
        }),
        update_overrides: Some(ChannelConfigUpdate {
            forwarding_fee_proportional_millionths: None,
            forwarding_fee_base_msat: None,
            cltv_expiry_delta: None,
            max_dust_htlc_exposure_msat: None,
            force_close_avoidance_max_fee_satoshis: None,
            // Checked against the agreed fee before a payment is claimed.
            accept_underpaying_htlcs: Some(true),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A forward that is not intercepted is not judged by the LSP's own rule, and LDK chooses
    /// among all channels of the next node, announced or not.
    #[test]
    fn an_lsp_judges_every_forward_to_a_channel_and_a_member_forwards_none() {
        let lsp = user_config(&Role::Lsp(LspPolicy::default())).htlc_interception_flags;
        for flag in [
            HTLCInterceptionFlags::FromPrivateChannels,
            HTLCInterceptionFlags::ToOnlinePrivateChannels,
            HTLCInterceptionFlags::ToOfflinePrivateChannels,
            HTLCInterceptionFlags::ToPublicChannels,
        ] {
            assert_ne!(lsp & flag as u8, 0);
        }
        let member = user_config(&Role::Member);
        assert!(!member.accept_forwards_to_priv_channels);
    }
}
