//! Every block distance the hosting uses, computed in one place each.
//!
//! What always holds: an HTLC we received can be claimed on chain before it expires, although the
//! leaf below its channel is not on chain yet; and one we forwarded can be timed out before the
//! one we received for it expires.

use superscalar_factory::timing::{
    CLAIM_BUFFER_BLOCKS, FORWARD_MARGIN_BLOCKS, LDK_BASE_FINAL_DELTA_BLOCKS, MAX_ROUTE_CLTV_BLOCKS,
};

/// LDK gives a peer this long after expiry to fail an HTLC before it closes the channel.
pub(super) const HTLC_TIMEOUT_GRACE_BLOCKS: u32 = 3;
/// LDK fails a payment to us back this long before its expiry.
pub(super) const LDK_FAIL_BACK_BLOCKS: u32 = 39;
/// Forwarders refuse an HTLC which expires further away than this.
pub(super) const MAX_CLTV_AWAY_BLOCKS: u32 = MAX_ROUTE_CLTV_BLOCKS;

/// The `min_final_cltv_expiry_delta` given to LDK for an invoice payable over a factory channel
/// (LDK writes three more into the invoice).
pub fn min_final_cltv_expiry_blocks(blocks_early: u16) -> u16 {
    LDK_BASE_FINAL_DELTA_BLOCKS.saturating_add(blocks_early)
}

/// What the LSP needs between the incoming and the outgoing expiry of every forward from or to a
/// factory channel, announced as `cltv_expiry_delta` towards the member.
pub fn forward_delta_blocks(exit_delay_blocks: u16) -> u16 {
    exit_delay_blocks.saturating_add(FORWARD_MARGIN_BLOCKS as u16)
}

/// How far away the expiry of an HTLC the LSP sends to a member must be.
pub fn outgoing_expiry_blocks(exit_delay_blocks: u16) -> u16 {
    exit_delay_blocks.saturating_add(CLAIM_BUFFER_BLOCKS as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_figures_fit_default_payers() {
        let exit_delay = 324;
        assert_eq!(min_final_cltv_expiry_blocks(exit_delay), 366);
        assert_eq!(forward_delta_blocks(exit_delay), 372);
        assert_eq!(outgoing_expiry_blocks(exit_delay), 360);
        // LDK adds 3 to the invoice's figure; LDK payers cap the route at 1008.
        assert_eq!(366 + 3 + 372, 741);
    }
}
