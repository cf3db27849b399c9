//! Fee estimates for LDK: commitment feerates pinned, the rest live.
//!
//! A factory channel's commitment cannot be bumped and its feerate is part of what both sides
//! signed, so it never follows the market: a moving feerate made a member's LDK close its channel
//! over dust exposure. Claims and sweeps do follow it. A member's LDK closes a channel whose
//! commitments its LSP wants to pay less: they might never be relayed.

use std::sync::Arc;

use lightning::chain::chaininterface::{
    ConfirmationTarget, FEERATE_FLOOR_SATS_PER_KW, FeeEstimator,
};

use super::config::Role;

/// Feerate of every commitment transaction, in satoshi per 1000 weight units (10 sat/vB).
pub const COMMITMENT_FEERATE_SAT_PER_KW: u32 = 2_500;

/// BOLT3: the dust limit of a P2WPKH-sized output is 294 sat, of the largest witness program 354,
/// which LDK uses.
pub(super) const DUST_LIMIT_SAT: u64 = 354;
/// Weight of a commitment (BOLT3, `static_remotekey`), and of each HTLC in it.
pub(super) const COMMITMENT_WEIGHT: u64 = 724;
pub(super) const COMMITMENT_HTLC_WEIGHT: u64 = 172;
/// Pending HTLCs of a channel: LDK's `max_accepted_htlcs` of 50 for each side.
pub(super) const MAX_HTLCS: u64 = 2 * 50;

/// A live fee source.
pub type FeeSource = Arc<dyn FeeEstimator + Send + Sync>;

/// Wraps a live source and pins what concerns commitment transactions.
pub(super) struct PinnedFees {
    live: FeeSource,
    least_remote: u32,
}

impl PinnedFees {
    pub(super) fn new(live: FeeSource, role: &Role) -> Self {
        let least_remote = match role {
            // All its channels are opened by the LSP.
            Role::Member => COMMITMENT_FEERATE_SAT_PER_KW,
            // Peers open only ordinary channels to it, at feerates of their own.
            Role::Lsp(_) => FEERATE_FLOOR_SATS_PER_KW,
        };
        Self { live, least_remote }
    }
}

impl FeeEstimator for PinnedFees {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        match target {
            ConfirmationTarget::NonAnchorChannelFee => COMMITMENT_FEERATE_SAT_PER_KW,
            ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee => self.least_remote,
            // LDK judges a peer's feerate by it: never below what we ourselves use.
            ConfirmationTarget::MaximumFeeEstimate => {
                let live = self.live.get_est_sat_per_1000_weight(target);
                live.max(4 * COMMITMENT_FEERATE_SAT_PER_KW)
            }
            _ => self
                .live
                .get_est_sat_per_1000_weight(target)
                .max(FEERATE_FLOOR_SATS_PER_KW),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::config::LspPolicy;

    struct Rate(u32);
    impl FeeEstimator for Rate {
        fn get_est_sat_per_1000_weight(&self, _: ConfirmationTarget) -> u32 {
            self.0
        }
    }

    #[test]
    fn commitments_ignore_the_market_and_sweeps_follow_it() {
        use ConfirmationTarget as Target;
        let lsp = Role::Lsp(LspPolicy::default());
        for (role, least) in [(Role::Member, 2_500), (lsp, 253)] {
            for market in [1, 1_000, 50_000] {
                let fees = PinnedFees::new(Arc::new(Rate(market)), &role);
                let at = |target| fees.get_est_sat_per_1000_weight(target);
                assert_eq!(at(Target::NonAnchorChannelFee), 2_500);
                assert_eq!(at(Target::MinAllowedNonAnchorChannelRemoteFee), least);
                assert_eq!(at(Target::UrgentOnChainSweep), market.max(253));
                assert_eq!(at(Target::OutputSpendingFee), market.max(253));
            }
        }
    }
}
