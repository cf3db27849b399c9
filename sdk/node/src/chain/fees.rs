//! The last known feerates, readable without waiting, as LDK's fee estimator needs them.
//!
//! A rate given out is never below what the source's mempool takes, and there always is one: before
//! the first refresh, and where a source cannot estimate (regtest), the fallback. It is a little
//! above, because whoever pays by it counts weight and rounds down, where the mempool counts whole
//! virtual bytes and rounds up: a sweep at the bare minimum was refused for five satoshi.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use bitcoin::FeeRate;

use super::{ChainError, ChainSource};

/// The confirmation targets asked for, in blocks: next, one hour, half a day, a day, a week.
const TARGETS: [u16; 5] = [2, 6, 72, 144, 1008];

/// Cached feerates.
#[derive(Debug)]
pub struct FeeRates {
    fallback: FeeRate,
    known: RwLock<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    /// By target in blocks.
    estimates: BTreeMap<u16, FeeRate>,
    mempool_minimum: FeeRate,
}

impl Known {
    /// The estimate for the longest target that is not slower than asked, else the fastest.
    fn estimate(&self, target_blocks: u16) -> Option<FeeRate> {
        let estimate = self.estimates.range(..=target_blocks).next_back();
        let estimate = estimate.or_else(|| self.estimates.first_key_value());
        estimate.map(|(_, feerate)| *feerate)
    }
}

impl FeeRates {
    /// Nothing known yet: every answer is `fallback`.
    pub fn new(fallback: FeeRate) -> Self {
        let known = Known {
            estimates: BTreeMap::new(),
            mempool_minimum: FeeRate::BROADCAST_MIN,
        };
        Self {
            fallback,
            known: RwLock::new(known),
        }
    }

    /// The feerate that should confirm within `target_blocks`.
    pub fn within(&self, target_blocks: u16) -> FeeRate {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let estimate = known.estimate(target_blocks).unwrap_or(self.fallback);
        let minimum = known.mempool_minimum.to_sat_per_kwu();
        let above = minimum.saturating_add(minimum.div_ceil(100));
        estimate.max(FeeRate::from_sat_per_kwu(above))
    }

    /// What is known to be needed to confirm within `target_blocks`: the estimate where there is
    /// one, else what the mempool takes. For decisions to pay more, which no guess may cause.
    pub fn known_within(&self, target_blocks: u16) -> FeeRate {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let estimate = known.estimate(target_blocks);
        estimate.map_or(known.mempool_minimum, |it| it.max(known.mempool_minimum))
    }

    /// The feerate below which the source's mempool took nothing when last asked.
    pub fn mempool_minimum(&self) -> FeeRate {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .mempool_minimum
    }

    /// Asks the source again. On an error everything stays as it was.
    pub async fn refresh(&self, source: &dyn ChainSource) -> Result<(), ChainError> {
        let mempool_minimum = source.mempool_minimum().await?;
        let mut estimates = BTreeMap::new();
        for target in TARGETS {
            if let Some(feerate) = source.estimate_feerate(target).await? {
                estimates.insert(target, feerate);
            }
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known {
            estimates,
            mempool_minimum,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_estimate_that_is_fast_enough_is_given_and_never_too_little() {
        let rate = |sat_per_vb| FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
        let fees = FeeRates::new(rate(9));
        assert_eq!(fees.within(6), rate(9));
        assert_eq!(fees.known_within(6), FeeRate::BROADCAST_MIN);
        *fees.known.write().unwrap() = Known {
            estimates: [(2, rate(50)), (6, rate(20)), (144, rate(2))].into(),
            mempool_minimum: rate(4),
        };
        for (target, expected) in [(1, 50), (2, 50), (5, 50), (6, 20), (143, 20), (1008, 4)] {
            let least = FeeRate::from_sat_per_kwu(1_010);
            assert_eq!(
                fees.within(target),
                rate(expected).max(least),
                "{target} blocks"
            );
            assert_eq!(fees.known_within(target), rate(expected), "{target} blocks");
        }
    }
}
