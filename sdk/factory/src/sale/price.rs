//! What a channel costs, and what an LSP sells at all.

use bitcoin::Amount;

/// Blocks of a month: what [`SalePolicy::ppm_per_month`] is for.
const MONTH_BLOCKS: u128 = 4_320;

/// An LSP's conditions, given by whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SalePolicy {
    /// Part of every price, in millisatoshi.
    pub base_msat: u64,
    /// Parts per million of the capacity for each 4,320 blocks that the factory still lives.
    pub ppm_per_month: u32,
    /// Smallest channel sold.
    pub min_amount: Amount,
    /// Blocks a quote is valid, at most 144.
    pub valid_blocks: u16,
    /// Fewest blocks before the factory's expiry at which anything is quoted.
    pub min_life_blocks: u32,
}

impl Default for SalePolicy {
    /// A satoshi and a quarter of a percent a month, from 20,000 sat on, for at least a week.
    fn default() -> SalePolicy {
        SalePolicy {
            base_msat: 1_000,
            ppm_per_month: 2_500,
            min_amount: Amount::from_sat(20_000),
            valid_blocks: 6,
            min_life_blocks: 1_008,
        }
    }
}

impl SalePolicy {
    /// The price in millisatoshi of a channel of `amount` in a factory that lives `life_blocks`
    /// more: `base + amount · ppm/10⁶ · life/4,320`, rounded up to the millisatoshi. `None` where
    /// that is more than can be written down.
    pub fn price_msat(&self, amount: Amount, life_blocks: u32) -> Option<u64> {
        // Below 2^51 · 10^3 · 2^32 · 2^32: no product overflows.
        let parts = u128::from(amount.to_sat())
            .checked_mul(1_000)?
            .checked_mul(u128::from(self.ppm_per_month))?
            .checked_mul(u128::from(life_blocks))?;
        let share = parts.div_ceil(1_000_000 * MONTH_BLOCKS);
        self.base_msat.checked_add(u64::try_from(share).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(base_msat: u64, ppm_per_month: u32) -> SalePolicy {
        SalePolicy {
            base_msat,
            ppm_per_month,
            min_amount: Amount::from_sat(20_000),
            valid_blocks: 6,
            min_life_blocks: 432,
        }
    }

    #[test]
    fn a_price_worked_out_by_hand() {
        // 1,000,000 sat at 0.25 % a month, for two months and a block.
        let price = policy(1_000, 2_500).price_msat(Amount::from_sat(1_000_000), 8_641);
        assert_eq!(price, Some(1_000 + 5_000_000 + 579));
        assert_eq!(
            policy(7, 0).price_msat(Amount::MAX_MONEY, u32::MAX),
            Some(7)
        );
        assert_eq!(policy(0, 1).price_msat(Amount::ONE_SAT, 1), Some(1));
        assert_eq!(policy(u64::MAX, 1).price_msat(Amount::ONE_SAT, 1), None);
        let most = policy(0, u32::MAX).price_msat(Amount::MAX_MONEY, u32::MAX);
        assert_eq!(most, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

        /// Never less than the exact price, and less than a millisatoshi more.
        #[test]
        fn prices_are_rounded_up_once(
            base in 0u64..1 << 40,
            ppm in 0u32..=1_000_000,
            sat in 0u64..=100_000_000_000,
            life in 0u32..=20_000,
        ) {
            let price = policy(base, ppm).price_msat(Amount::from_sat(sat), life).unwrap();
            let unit = 4_320_000_000u128;
            let exact = u128::from(base) * unit
                + u128::from(sat) * 1_000 * u128::from(ppm) * u128::from(life);
            let charged = u128::from(price) * unit;
            prop_assert!(charged >= exact && charged - exact < unit);
        }

        /// A factory that lives longer, a larger channel or a dearer LSP never costs less: an old
        /// quote is never below today's price of the same LSP.
        #[test]
        fn prices_grow_with_everything(
            ppm in 0u32..=1_000_000,
            sat in 0u64..=100_000_000_000,
            life in 0u32..=20_000,
            more in 1u32..=1_000,
        ) {
            let price = |ppm, sat, life| policy(9, ppm).price_msat(Amount::from_sat(sat), life).unwrap();
            let least = price(ppm, sat, life);
            prop_assert!(price(ppm + more, sat, life) >= least);
            prop_assert!(price(ppm, sat + u64::from(more), life) >= least);
            prop_assert!(price(ppm, sat, life + more) >= least);
        }
    }
}
