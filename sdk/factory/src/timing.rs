//! How long things take, in blocks: the delays of a tree and every number derived from them.
//!
//! One function computes each number. Everything here is constant for a factory's life, because
//! invoices already issued must stay payable whatever epoch the tree is in.

use crate::codec::fields;

/// The number LDK adds to a final hop by itself: `HTLC_FAIL_BACK_BUFFER` (39) plus 3 blocks.
pub const LDK_BASE_FINAL_DELTA_BLOCKS: u16 = 42;
/// Blocks between broadcasting a channel's commitment and LDK needing it confirmed.
pub const CLAIM_BUFFER_BLOCKS: u32 = 36;
/// What the LSP adds to `exit_delay` before it dares to forward (LDK acts on its own HTLCs some
/// 36 + 3 blocks around their expiry; the rest is margin).
pub const FORWARD_MARGIN_BLOCKS: u32 = 48;
/// No forwarding node accepts an HTLC that expires further away (BOLT4, LDK `CLTV_FAR_FAR_AWAY`).
pub const MAX_ROUTE_CLTV_BLOCKS: u32 = 2016;
/// Blocks after which a funding that has not confirmed is reported.
pub const UNFUNDED_AFTER_BLOCKS: u32 = 144;
/// What a wallet keeps free before a deadline, in steps: within one of them somebody has to have
/// looked at the chain anyway.
const SAFETY_STEPS: u32 = 6;
/// LDK payers limit a route's total CLTV to this unless told otherwise.
pub const DEFAULT_PAYER_CLTV_BLOCKS: u32 = 1008;

/// The delays every party of a factory agrees on, in blocks unless named otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Epochs each state node can have; the newest has relative delay 0.
    pub states: u8,
    /// Difference in relative delay between two neighbouring epochs.
    pub step: u16,
    /// Blocks budgeted for confirming one transaction of the exit path.
    pub confirm_margin: u16,
    /// Most sale links a stock output may carry in one epoch.
    pub max_sales: u8,
    /// How much slower than the oldest state a distribution is.
    pub distribution_margin: u16,
    /// `to_self_delay` on the LSP's own balance in a channel.
    pub lsp_to_self_delay: u16,
    /// `to_self_delay` on the member's own balance in a channel.
    pub member_to_self_delay: u16,
    /// Relative delay after which the LSP alone may take an unsold stock output.
    pub stock_csv: u16,
    /// Confirmations the funding needs before the factory exists for anyone.
    pub min_depth: u16,
    /// Blocks before an HTLC's expiry (or the factory's) by which a channel must be able to reach
    /// the chain; never below [`Timing::exit_delay`]. Part of the factory's identity (bLIP-56).
    pub blocks_early: u16,
}

fields!(Timing {
    states,
    step,
    confirm_margin,
    max_sales,
    distribution_margin,
    lsp_to_self_delay,
    member_to_self_delay,
    stock_csv,
    min_depth,
    blocks_early,
});

impl Timing {
    /// Mainnet defaults for trees of `layers` state layers: two states of 96 blocks.
    pub fn mainnet(layers: u32) -> Timing {
        Timing {
            states: 2,
            step: 96,
            confirm_margin: 12,
            max_sales: 4,
            distribution_margin: 144,
            lsp_to_self_delay: 720,
            member_to_self_delay: 144,
            stock_csv: 720,
            min_depth: 6,
            blocks_early: 0,
        }
        .with_least_blocks_early(layers)
    }

    /// Three states of 144 blocks: more versions and a longer race, but not payable by LDK
    /// senders under their default route limit.
    pub fn conservative(layers: u32) -> Timing {
        Timing {
            states: 3,
            step: 144,
            ..Timing::mainnet(layers)
        }
        .with_least_blocks_early(layers)
    }

    /// Short delays for a regtest chain, where blocks are free.
    pub fn regtest(layers: u32) -> Timing {
        Timing {
            states: 2,
            step: 6,
            confirm_margin: 2,
            distribution_margin: 12,
            lsp_to_self_delay: 144,
            stock_csv: 144,
            min_depth: 1,
            ..Timing::mainnet(layers)
        }
        .with_least_blocks_early(layers)
    }

    /// Sets `blocks_early` to the least value these delays allow, saturating at `u16::MAX`
    /// (which validation of the terms then refuses).
    #[must_use]
    pub fn with_least_blocks_early(mut self, layers: u32) -> Timing {
        self.blocks_early = u16::try_from(self.exit_delay(layers)).unwrap_or(u16::MAX);
        self
    }

    /// Blocks from deciding to leave until a channel's commitment is certainly spendable by its
    /// holder, when every race is run from the oldest state: the number every HTLC must outlive.
    ///
    /// `layers·(states−1)·step + confirm_margin·(tree transactions + max_sales) + 36`.
    pub fn exit_delay(&self, layers: u32) -> u32 {
        let races = layers * (u32::from(self.states).saturating_sub(1)) * u32::from(self.step);
        let confirmations =
            u32::from(self.confirm_margin) * (2 * layers + u32::from(self.max_sales));
        races + confirmations + CLAIM_BUFFER_BLOCKS
    }

    /// What a wallet keeps between its slowest exit and a deadline: time to notice that it has to
    /// leave. 576 blocks, four days, under mainnet's delays.
    pub fn safety(&self) -> u32 {
        SAFETY_STEPS * u32::from(self.step)
    }

    /// The relative delay of a state transaction at `epoch`: newer epochs are faster.
    ///
    /// `None` when the node has no such epoch.
    pub fn state_delay(&self, epoch: u8) -> Option<u16> {
        let older = self.states.checked_sub(1)?.checked_sub(epoch)?;
        u16::from(older).checked_mul(self.step)
    }

    /// The relative delay of a distribution: slower than every state of the same node.
    pub fn distribution_delay(&self) -> u32 {
        u32::from(self.states.saturating_sub(1)) * u32::from(self.step)
            + u32::from(self.distribution_margin)
    }

    /// `min_final_cltv_expiry_delta` of a member's invoices.
    pub fn invoice_min_final(&self) -> u16 {
        self.blocks_early
            .saturating_add(LDK_BASE_FINAL_DELTA_BLOCKS)
    }

    /// `cltv_expiry_delta` the LSP asks on members' channels.
    pub fn forward_delta(&self, layers: u32) -> u32 {
        self.exit_delay(layers) + FORWARD_MARGIN_BLOCKS
    }

    /// What an HTLC to a member needs of a sender's route limit: the LSP's delta, the member's
    /// final delta as LDK rounds it, and their sum's margin of the specification (200 blocks).
    ///
    /// `exit_delay + blocks_early + 200`, where `blocks_early` is at least `exit_delay`.
    pub fn route_budget(&self, layers: u32) -> u32 {
        let exit_delay = self.exit_delay(layers);
        exit_delay + exit_delay.max(u32::from(self.blocks_early)) + 200
    }

    /// The highest absolute expiry an HTLC may have in a factory that expires at `factory_expiry`:
    /// it must be over `blocks_early` blocks before the factory is.
    pub fn last_htlc_expiry(&self, factory_expiry: u32) -> u32 {
        factory_expiry.saturating_sub(u32::from(self.blocks_early))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_payable_by_default_senders() {
        let timing = Timing::mainnet(2);
        assert_eq!(timing.exit_delay(2), 324);
        assert_eq!(timing.route_budget(2), 848);
        assert!(timing.route_budget(2) <= DEFAULT_PAYER_CLTV_BLOCKS);
        assert_eq!(timing.invoice_min_final(), 366);
        let late = Timing {
            blocks_early: 1_000,
            ..timing.clone()
        };
        assert_eq!(late.route_budget(2), 324 + 1_000 + 200);
        assert_eq!(timing.forward_delta(2), 372);
        assert_eq!(timing.distribution_delay(), 96 + 144);
        assert_eq!(timing.safety(), 576);
    }

    #[test]
    fn conservative_needs_a_raised_route_limit() {
        let timing = Timing::conservative(2);
        assert_eq!(timing.exit_delay(2), 708);
        assert_eq!(timing.route_budget(2), 1616);
        assert!(timing.route_budget(2) > DEFAULT_PAYER_CLTV_BLOCKS);
        assert_eq!(timing.distribution_delay(), 432);
    }

    /// Acceptance "blocks_early": exit delay 124, `blocks_early` 144.
    #[test]
    fn blocks_early_is_added_to_invoices_and_kept_before_expiry() {
        let timing = Timing {
            step: 6,
            confirm_margin: 2,
            blocks_early: 144,
            ..Timing::mainnet(8)
        };
        assert_eq!(timing.exit_delay(8), 124);
        assert_eq!(timing.invoice_min_final(), 42 + 144);
        assert_eq!(timing.last_htlc_expiry(10_000), 10_000 - 144);
    }

    #[test]
    fn newer_epochs_are_faster() {
        let timing = Timing {
            states: 4,
            ..Timing::mainnet(2)
        };
        let delays: Vec<_> = (0..5).map(|epoch| timing.state_delay(epoch)).collect();
        assert_eq!(delays, [Some(288), Some(192), Some(96), Some(0), None]);
    }
}
