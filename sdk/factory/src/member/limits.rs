//! What a wallet accepts without asking its user.

use bitcoin::{Amount, Network};

use super::Refused;
use crate::message::{Invite, RefusalCode};
use crate::terms::{PROTOCOL_VERSION, SlotRecord, TimeoutPolicy};
use crate::timing::DEFAULT_PAYER_CLTV_BLOCKS;

/// The range of offers a member joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalletLimits {
    /// The chain the wallet is on.
    pub network: Network,
    /// Most it pays for a place.
    pub max_price: Amount,
    /// Least capacity worth a place.
    pub min_capacity: Amount,
    /// Least feerate of tree transactions, in sat/vB: below it an exit without coins may stall.
    pub min_tree_feerate: u32,
    /// Least blocks the factory must live from now on.
    pub min_life_blocks: u32,
    /// Most blocks it may live: a height far away could lock money for ever.
    pub max_life_blocks: u32,
    /// Greatest total CLTV a payer of this wallet's invoices needs.
    pub max_route_budget_blocks: u32,
    /// Most confirmations to wait for.
    pub max_min_depth: u16,
    /// Whether a factory may end in favour of the LSP.
    pub policies: Vec<TimeoutPolicy>,
}

impl WalletLimits {
    /// Limits for everyday use: payable by default senders, at most ten weeks, free of charge.
    pub fn standard(network: Network) -> WalletLimits {
        WalletLimits {
            network,
            max_price: Amount::ZERO,
            min_capacity: Amount::from_sat(20_000),
            min_tree_feerate: crate::terms::MIN_TREE_FEERATE,
            min_life_blocks: 288,
            max_life_blocks: 10_080,
            max_route_budget_blocks: DEFAULT_PAYER_CLTV_BLOCKS,
            max_min_depth: 12,
            policies: vec![TimeoutPolicy::MembersReclaim],
        }
    }

    pub(super) fn check(&self, invite: &Invite, tip: u32) -> Result<(), Refused> {
        let header = &invite.header;
        let within = |ok: bool, field| match ok {
            true => Ok(()),
            false => Err(Refused::new(RefusalCode::Limits, field)),
        };
        within(header.version == PROTOCOL_VERSION, "version")?;
        within(header.network == self.network, "network")?;
        let terms = header.validate(usize::from(invite.members));
        terms.map_err(|error| Refused::new(RefusalCode::Terms, error.field()))?;
        within(invite.slot < invite.members, "slot")?;
        within(invite.price <= self.max_price, "price")?;
        within(invite.capacity >= self.min_capacity, "capacity")?;
        let all = invite.capacity.to_sat().saturating_mul(1_000);
        within(invite.push_msat <= all, "push_msat")?;
        within(header.tree_feerate >= self.min_tree_feerate, "tree_feerate")?;
        let life = header.expiry.saturating_sub(tip);
        let span = self.min_life_blocks..=self.max_life_blocks;
        within(span.contains(&life), "expiry")?;
        let budget = header.timing.route_budget(header.shape.layers());
        within(budget <= self.max_route_budget_blocks, "timing")?;
        within(header.timing.min_depth <= self.max_min_depth, "min_depth")?;
        within(self.policies.contains(&header.policy), "policy")?;
        SlotRecord::validate_amounts(invite.capacity, invite.push_msat, invite.stock)
            .map_err(|error| Refused::new(RefusalCode::Terms, error.field()))
    }
}
