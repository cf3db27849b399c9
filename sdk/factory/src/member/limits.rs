//! What a wallet accepts without asking its user.
//!
//! What always holds: whatever the other side can set is bounded here or by the terms themselves,
//! towards the side that would harm the member; a refusal names the field.

use std::ops::RangeInclusive;

use bitcoin::{Amount, Network};

use super::Refused;
use crate::message::{Invite, RefusalCode};
use crate::terms::{Header, MIN_TREE_FEERATE, PROTOCOL_VERSION, SlotRecord, TimeoutPolicy};
use crate::timing::{DEFAULT_PAYER_CLTV_BLOCKS, MAX_ROUTE_CLTV_BLOCKS};

/// The greatest exit delay that an invoice counts twice within a route of `route_blocks`, beside
/// the specification's 200 blocks for the rest of the route.
const fn most_exit_delay(route_blocks: u32) -> u32 {
    route_blocks.saturating_sub(200) / 2
}

/// The range of offers a member joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalletLimits {
    /// The chain the wallet is on.
    pub network: Network,
    /// Most it pays for a place.
    pub max_price: Amount,
    /// Least capacity worth a place.
    pub min_capacity: Amount,
    /// Feerate of tree transactions in sat/vB: below it an exit without coins may stall, above it
    /// the fees are out of proportion to what they bring on chain.
    pub tree_feerate: RangeInclusive<u32>,
    /// Blocks the factory lives from now on: long enough to be of use and to leave, not so long
    /// that money could be locked for ever.
    pub life_blocks: RangeInclusive<u32>,
    /// Greatest total CLTV a payer of this wallet's invoices needs.
    pub max_route_budget_blocks: u32,
    /// Most seconds the LSP may want to wait for one answer: the wallet waits as long for others.
    pub max_round_seconds: u16,
    /// Whether a factory may end in favour of the LSP.
    pub policies: Vec<TimeoutPolicy>,
    /// The delays of tree and channels.
    pub delays: DelayLimits,
}

/// The range of each delay a member lives with, in blocks unless named otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayLimits {
    /// Confirmations of the funding: too few and the LSP could take it back, too many and the
    /// member waits for nothing.
    pub min_depth: RangeInclusive<u16>,
    /// Least advantage of a newer state over an older one: within it wallet or watchtower must
    /// have answered.
    pub min_step: u16,
    /// Least time budgeted for one transaction to confirm: too little and HTLCs run out on the
    /// way to the chain.
    pub min_confirm_margin: u16,
    /// Most links of a stock chain (a number): every one is a transaction of the exit.
    pub max_sales: u8,
    /// Most that a distribution may be slower than the oldest state: how long the member waits
    /// when the LSP is gone.
    pub max_distribution_margin: u16,
    /// Least time to answer a revoked commitment of the LSP.
    pub min_lsp_to_self_delay: u16,
    /// Most time the member's own balance waits after an exit.
    pub max_member_to_self_delay: u16,
    /// Least time to publish the sale links of a leaf before the LSP may take its stock.
    pub min_stock_csv: u16,
    /// Most time from deciding to leave until the channel's money is certainly reachable.
    pub max_exit_delay: u32,
}

impl WalletLimits {
    /// Limits for everyday use: payable by default senders, at most ten weeks, free of charge.
    ///
    /// On regtest, where a test makes the blocks, the least delays are those a tree can have.
    pub fn standard(network: Network) -> WalletLimits {
        let (least_life, delays) = match network {
            Network::Regtest => (288, DelayLimits::regtest()),
            _ => (1_008, DelayLimits::real()),
        };
        WalletLimits {
            network,
            max_price: Amount::ZERO,
            min_capacity: Amount::from_sat(20_000),
            tree_feerate: MIN_TREE_FEERATE..=200,
            life_blocks: least_life..=10_080,
            max_route_budget_blocks: DEFAULT_PAYER_CLTV_BLOCKS,
            max_round_seconds: 600,
            policies: vec![TimeoutPolicy::MembersReclaim],
            delays,
        }
    }

    /// The same for a wallet that has asked for `capacity`, zero leaving it to the LSP: less is
    /// not accepted, however little was asked for.
    #[must_use]
    pub fn wanting(mut self, capacity: Amount) -> WalletLimits {
        if capacity > Amount::ZERO {
            self.min_capacity = capacity;
        }
        self
    }

    /// The same for a wallet whose payers allow a route `route_blocks` of CLTV in total, of which
    /// no forwarding node accepts more than 2,016.
    #[must_use]
    pub fn payable_within(mut self, route_blocks: u32) -> WalletLimits {
        self.max_route_budget_blocks = route_blocks.min(MAX_ROUTE_CLTV_BLOCKS);
        self.delays.max_exit_delay = most_exit_delay(self.max_route_budget_blocks);
        self
    }

    pub(super) fn check(&self, invite: &Invite, tip: u32) -> Result<(), Refused> {
        let header = &invite.header;
        within(header.version == PROTOCOL_VERSION, "version")?;
        within(header.network == self.network, "network")?;
        let terms = header.validate(usize::from(invite.members));
        terms.map_err(|error| Refused::new(RefusalCode::Terms, error.field()))?;
        within(invite.slot < invite.members, "slot")?;
        within(invite.price <= self.max_price, "price")?;
        within(invite.capacity >= self.min_capacity, "capacity")?;
        let all = invite.capacity.to_sat().saturating_mul(1_000);
        within(invite.push_msat <= all, "push_msat")?;
        let feerate = self.tree_feerate.contains(&header.tree_feerate);
        within(feerate, "tree_feerate")?;
        let life = header.expiry.saturating_sub(tip);
        within(self.life_blocks.contains(&life), "expiry")?;
        // No place to leave again at once.
        let stay = header.leave_by().is_none_or(|height| height > tip);
        within(stay, "expiry")?;
        self.delays.check(header)?;
        let budget = header.timing.route_budget(header.shape.layers());
        within(budget <= self.max_route_budget_blocks, "timing")?;
        let seconds = 1..=self.max_round_seconds;
        within(seconds.contains(&invite.round_seconds), "round_seconds")?;
        within(self.policies.contains(&header.policy), "policy")?;
        SlotRecord::validate_amounts(invite.capacity, invite.push_msat, invite.stock)
            .map_err(|error| Refused::new(RefusalCode::Terms, error.field()))
    }
}

impl DelayLimits {
    /// Where blocks come every ten minutes and coins may be worth something.
    fn real() -> DelayLimits {
        DelayLimits {
            // Three is what Lightning has always asked of a channel.
            min_depth: 3..=12,
            min_step: 48,
            min_confirm_margin: 6,
            max_sales: 16,
            max_distribution_margin: 432,
            min_lsp_to_self_delay: 432,
            max_member_to_self_delay: 288,
            min_stock_csv: 432,
            max_exit_delay: most_exit_delay(DEFAULT_PAYER_CLTV_BLOCKS),
        }
    }

    fn regtest() -> DelayLimits {
        DelayLimits {
            min_depth: 1..=12,
            min_step: 1,
            min_confirm_margin: 1,
            min_lsp_to_self_delay: 144,
            min_stock_csv: 144,
            ..DelayLimits::real()
        }
    }

    fn check(&self, header: &Header) -> Result<(), Refused> {
        let t = &header.timing;
        within(self.min_depth.contains(&t.min_depth), "min_depth")?;
        within(t.step >= self.min_step, "step")?;
        within(
            t.confirm_margin >= self.min_confirm_margin,
            "confirm_margin",
        )?;
        within(t.max_sales <= self.max_sales, "max_sales")?;
        within(
            t.distribution_margin <= self.max_distribution_margin,
            "distribution_margin",
        )?;
        within(
            t.lsp_to_self_delay >= self.min_lsp_to_self_delay,
            "lsp_to_self_delay",
        )?;
        within(
            t.member_to_self_delay <= self.max_member_to_self_delay,
            "member_to_self_delay",
        )?;
        within(t.stock_csv >= self.min_stock_csv, "stock_csv")?;
        let exit_delay = t.exit_delay(header.shape.layers());
        within(exit_delay <= self.max_exit_delay, "exit_delay")
    }
}

fn within(ok: bool, field: &'static str) -> Result<(), Refused> {
    match ok {
        true => Ok(()),
        false => Err(Refused::new(RefusalCode::Limits, field)),
    }
}
