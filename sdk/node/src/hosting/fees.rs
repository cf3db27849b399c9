//! Fee estimates for LDK: commitment feerates pinned, the rest live.
//!
//! A factory channel's commitment cannot be bumped and its feerate is part of what both sides
//! signed, so it never follows the market: a moving feerate made a member's LDK close its channel
//! over dust exposure. Claims and sweeps do follow it.

use std::sync::Arc;

use lightning::chain::chaininterface::{
    ConfirmationTarget, FEERATE_FLOOR_SATS_PER_KW, FeeEstimator,
};

/// Feerate of every commitment transaction, in satoshi per 1000 weight units (10 sat/vB).
pub const COMMITMENT_FEERATE_SAT_PER_KW: u32 = 2_500;

/// A live fee source.
pub type FeeSource = Arc<dyn FeeEstimator + Send + Sync>;

/// Wraps a live source and pins what concerns commitment transactions.
pub(super) struct PinnedFees {
    live: FeeSource,
}

impl PinnedFees {
    pub(super) fn new(live: FeeSource) -> Self {
        Self { live }
    }
}

impl FeeEstimator for PinnedFees {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        match target {
            ConfirmationTarget::NonAnchorChannelFee => COMMITMENT_FEERATE_SAT_PER_KW,
            ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee => FEERATE_FLOOR_SATS_PER_KW,
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

    struct Rate(u32);
    impl FeeEstimator for Rate {
        fn get_est_sat_per_1000_weight(&self, _: ConfirmationTarget) -> u32 {
            self.0
        }
    }

    #[test]
    fn commitments_ignore_the_market_and_sweeps_follow_it() {
        for market in [1, 1_000, 50_000] {
            let fees = PinnedFees::new(Arc::new(Rate(market)));
            let at = |target| fees.get_est_sat_per_1000_weight(target);
            assert_eq!(at(ConfirmationTarget::NonAnchorChannelFee), 2_500);
            assert_eq!(
                at(ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee),
                253
            );
            assert_eq!(at(ConfirmationTarget::UrgentOnChainSweep), market.max(253));
            assert_eq!(at(ConfirmationTarget::OutputSpendingFee), market.max(253));
        }
    }
}
