//! What the engine tells and is asked, in types an application can hold.

use bitcoin::{Amount, Network};
use serde::{Deserialize, Serialize};
use superscalar_factory::message::Attempt;
use superscalar_factory::shape::Shape;
use superscalar_factory::stock::StockChain;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::timing::Timing;
use superscalar_factory::tree::{Role, Tree};

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;

/// A factory an LSP wants to build with members that are waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// How many members, 2 to 128.
    pub members: u16,
    /// Capacity of each channel, in satoshi.
    pub capacity_sat: u64,
    /// LSP money beside each channel, in satoshi; 0 for none.
    #[serde(default)]
    pub stock_sat: u64,
    /// Blocks from now until the factory ends.
    pub life_blocks: u32,
    /// Feerate of tree transactions, in sat/vB.
    #[serde(default = "default_feerate")]
    pub tree_feerate: u32,
    /// Seconds to wait for each answer of a member.
    #[serde(default = "default_round")]
    pub round_seconds: u16,
    /// Delays: those of mainnet, or short ones for regtest. Absent: by the network.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// Blocks by which every payment is over before the factory is, and which its invoices ask for;
    /// never fewer than leaving alone takes. Absent: just as many.
    #[serde(default)]
    pub blocks_early: Option<u16>,
    /// Children of each node, level by level, and members of a leaf last. Absent: two layers.
    #[serde(default)]
    pub shape: Option<Vec<u8>>,
    /// Whether the LSP reclaims at expiry instead of the members.
    #[serde(default)]
    pub policy: Policy,
}

fn default_feerate() -> u32 {
    10
}

fn default_round() -> u16 {
    30
}

/// A set of delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Preset {
    /// Two states of 96 blocks, six confirmations.
    Mainnet,
    /// Three states of 144 blocks: payers need a raised route limit.
    Conservative,
    /// A few blocks, one confirmation.
    Regtest,
}

/// Who is paid at expiry if nobody does anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// The members, by distributions.
    #[default]
    MembersReclaim,
    /// The LSP.
    LspReclaims,
}

impl BuildRequest {
    pub(super) fn capacity(&self) -> Amount {
        Amount::from_sat(self.capacity_sat)
    }

    /// What the channels and the stock take from the LSP's coins, without any fee.
    pub(super) fn funds(&self) -> Amount {
        let place_sat = self.capacity_sat.saturating_add(self.stock_sat);
        Amount::from_sat(place_sat.saturating_mul(self.members.into()))
    }

    pub(super) fn shape(&self) -> Option<Shape> {
        let (members_per_leaf, arity) = self.shape.as_ref()?.split_last()?;
        Some(Shape {
            arity: arity.to_vec(),
            members_per_leaf: *members_per_leaf,
        })
    }

    pub(super) fn timing(&self, network: Network, layers: u32) -> Timing {
        let preset = self.preset.unwrap_or(match network {
            Network::Regtest => Preset::Regtest,
            _ => Preset::Mainnet,
        });
        let timing = match preset {
            Preset::Mainnet => Timing::mainnet(layers),
            Preset::Conservative => Timing::conservative(layers),
            Preset::Regtest => Timing::regtest(layers),
        };
        Timing {
            blocks_early: self.blocks_early.unwrap_or(timing.blocks_early),
            ..timing
        }
    }
}

impl From<Policy> for TimeoutPolicy {
    fn from(policy: Policy) -> TimeoutPolicy {
        match policy {
            Policy::MembersReclaim => TimeoutPolicy::MembersReclaim,
            Policy::LspReclaims => TimeoutPolicy::LspReclaims,
        }
    }
}

/// One factory as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactoryInfo {
    /// Its name: the instance in hex, and the attempt where it is not the first.
    pub factory: String,
    /// Where it stands: `joined`, `signed`, `opening`, `committed`, `funding`, `dormant`,
    /// `unfunded`, `active`, `ended` for a member, `gathering`, `funding`, `signing`, `opening`,
    /// `acknowledging`, `published`, `unfunded`, `active`, `ended` for an LSP. A `dormant` factory
    /// was given up by the LSP before it was funded, an `unfunded` one is not funded for a day. Of a
    /// `damaged` one the journal cannot be read: nothing moves in it, its bytes are kept.
    pub phase: String,
    /// Why it ended, if it did before it existed.
    pub ended: Option<String>,
    /// What is wrong with its journal, if it is `damaged`: then no more is known than stands here.
    pub damage: Option<String>,
    /// Whether payments can pass.
    pub active: bool,
    /// Height at which it ends.
    pub expiry: u32,
    /// Blocks to leave alone, at worst.
    pub exit_delay_blocks: u32,
    /// Version of the path, "n/last".
    pub epoch: String,
    /// The output on chain, `txid:vout`, once known.
    pub funding: Option<String>,
    /// Its amount in satoshi.
    pub funding_sat: Option<u64>,
    /// Feerate of tree transactions, in sat/vB.
    pub tree_feerate: u32,
    /// The places: all of them for an LSP, the own one for a member.
    pub seats: Vec<SeatInfo>,
}

/// One place in a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatInfo {
    /// The place, from 0.
    pub slot: u16,
    /// The other side's Lightning node.
    pub peer: String,
    /// Capacity of the channel in satoshi.
    pub capacity_sat: u64,
    /// LSP money beside it in satoshi.
    pub stock_sat: u64,
    /// Version of its path: how many new epochs it has moved to. A carry counts those it skips.
    #[serde(default)]
    pub version: u32,
    /// The channel's outpoint in the leaf, `txid:vout`, once known; none once the member has left.
    pub channel: Option<String>,
    /// What was sold of that money, each a channel of its own, in order.
    #[serde(default)]
    pub sold: Vec<SoldInfo>,
    /// What is left of it in satoshi.
    #[serde(default)]
    pub stock_left_sat: u64,
    /// The largest channel that can be bought now and leaves something, in satoshi.
    #[serde(default)]
    pub sellable_sat: u64,
    /// Or exactly this much, which leaves nothing, in satoshi.
    #[serde(default)]
    pub sellable_whole_sat: u64,
    /// A wallet's: where the sale under way stands, if one is. `pending`: signed by us, so that
    /// nothing else can be bought before it is there or the stock is renewed; `signed`: the final
    /// signature is there, our commitment is not; `unpaid`: it can receive and is not paid for.
    #[serde(default)]
    pub sale: Option<String>,
    /// A wallet's: where a new epoch stands, if one is under way. `preparing`, `stored`: nothing is
    /// signed that could not be given up; `committed`: the LSP alone can complete it; `switching`:
    /// all have signed it, and the channels rest until what it replaces is revoked; `guarding`: and
    /// until a tower has acknowledged it.
    #[serde(default)]
    pub moving: Option<String>,
    /// A wallet's: what its channels in this place hold at most, in millisatoshi, while the LSP may
    /// complete an epoch alone.
    #[serde(default)]
    pub most_msat: Option<u64>,
}

/// A channel that was sold out of a place's stock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoldInfo {
    /// Its outpoint, `txid:vout`.
    pub channel: String,
    /// Its capacity in satoshi.
    pub capacity_sat: u64,
}

impl SeatInfo {
    pub(super) fn with_stock(mut self, chain: Option<&StockChain>) -> SeatInfo {
        let Some(chain) = chain else { return self };
        let sold = chain.links().iter().map(|sold| SoldInfo {
            channel: sold.link().channel.to_string(),
            capacity_sat: sold.terms().amount.to_sat(),
        });
        let left = chain.newest().map(|stock| stock.value().to_sat());
        let sellable = chain.sellable();
        self.sold = sold.collect();
        self.stock_left_sat = left.unwrap_or(0);
        self.sellable_sat = sellable.up_to.to_sat();
        self.sellable_whole_sat = sellable.whole.to_sat();
        self
    }

    pub(super) fn new(slot: u16, peer: String, capacity_sat: u64, stock_sat: u64) -> SeatInfo {
        SeatInfo {
            slot,
            peer,
            capacity_sat,
            stock_sat,
            version: 0,
            channel: None,
            sold: Vec::new(),
            stock_left_sat: 0,
            sellable_sat: 0,
            sellable_whole_sat: 0,
            sale: None,
            moving: None,
            most_msat: None,
        }
    }
}

/// One node of a factory's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeNodeInfo {
    /// Its position, parents first.
    pub node: u16,
    /// The node above, if any.
    pub parent: Option<u16>,
    /// First slot below it.
    pub first_slot: u16,
    /// How many slots are below it.
    pub slots: u16,
    /// Whether its outputs are channels.
    pub leaf: bool,
    /// Its transactions.
    pub transactions: Vec<TreeTxInfo>,
}

/// One transaction of a factory's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeTxInfo {
    /// `kickoff`, `state` or `distribution`.
    pub role: String,
    /// Its id.
    pub txid: String,
    /// Virtual size, signed.
    pub vsize: u64,
    /// Fee it pays by itself, in satoshi.
    pub fee_sat: u64,
    /// Relative delay in blocks.
    pub delay_blocks: u32,
    /// Value of each output in satoshi, the anchor last.
    pub outputs_sat: Vec<u64>,
}

/// How to leave alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitMode {
    /// Bring the channel on chain and close it there.
    #[default]
    Leave,
    /// After expiry, when the LSP is gone: be paid by a distribution, which brings capacity and
    /// stock, not only the own balance.
    Reclaim,
}

impl ExitMode {
    pub(super) fn goal(self) -> superscalar_factory::exit::Goal {
        match self {
            ExitMode::Leave => superscalar_factory::exit::Goal::Leave,
            ExitMode::Reclaim => superscalar_factory::exit::Goal::Reclaim,
        }
    }
}

/// What leaving alone costs and brings, before anything is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitPlan {
    /// The factory.
    pub factory: String,
    /// Transactions to publish until the channel is on chain.
    pub transactions: u32,
    /// Their virtual size.
    pub vsize: u64,
    /// Fees they carry, which the tree holds for them.
    pub fees_sat: u64,
    /// Blocks until the channel is on chain, when every transaction confirms at once.
    pub blocks_best: u32,
    /// The same when each needs the margin the terms budget.
    pub blocks_worst: u32,
    /// Blocks after that until the own balance can be swept.
    pub then_blocks: u32,
    /// Own balance in the channel in satoshi, rounded down.
    pub balance_sat: u64,
    /// What arrives in the wallet in satoshi, after the commitment's and the sweep's fees are paid.
    pub arriving_sat: u64,
    /// What sweeping the balance costs, which it pays itself, in satoshi.
    pub sweep_fee_sat: u64,
    /// What own coins would lose by speeding every transaction up to what blocks take now, in
    /// satoshi; 0 while the tree's own fees are enough.
    pub own_fees_sat: u64,
    /// Coins needed for that, in satoshi.
    pub coins_needed_sat: u64,
    /// Coins free to spend, in satoshi.
    pub coins_available_sat: u64,
    /// Coins kept for this exit already, in satoshi.
    pub coins_reserved_sat: u64,
    /// Whether there are enough. If not the exit goes at the tree's own pace: it waits while
    /// blocks cost more.
    pub affordable: bool,
    /// Whether more arrives than own coins would lose.
    pub worth_it: bool,
}

/// How far leaving alone is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// The factory.
    pub factory: String,
    /// Why it began.
    pub reason: String,
    /// `tree`, `closing`, `paid_out`, `superseded`, `done`, or `unknown` when it cannot be judged
    /// at the moment.
    pub stage: String,
    /// Number of the next tree transaction, from 1.
    pub step: u32,
    /// How many there are.
    pub of: u32,
    /// What it waits for.
    pub waiting: String,
    /// Blocks left at best, where known.
    pub blocks_left_best: Option<u32>,
    /// Blocks left at worst, where known.
    pub blocks_left_worst: Option<u32>,
    /// Satoshi of the closed channel that are not in the wallet yet.
    pub pending_sat: u64,
    /// Height of the leaf's block, once on chain.
    pub leaf_height: Option<u32>,
    /// What own coins have lost in fees, children still unconfirmed included, in satoshi.
    pub own_fees_sat: u64,
    /// What own coins do for the transaction that is due.
    pub speed_up: SpeedUp,
}

/// What own coins do for the transaction of an exit that is due.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpeedUp {
    /// Nothing: it pays enough by itself, or nothing is due.
    #[default]
    NotNeeded,
    /// A child of ours pays for it.
    OwnChild {
        /// The child.
        txid: String,
        /// What own coins lose by it, in satoshi.
        cost_sat: u64,
        /// Why it pays less than wanted, if it does.
        limit: Option<SpeedUpLimit>,
    },
    /// Somebody else's child pays for it.
    OthersChild {
        /// The child.
        txid: String,
        /// Why it was not replaced, where it pays less than wanted.
        limit: Option<SpeedUpLimit>,
    },
    /// Nothing can be added: it waits until blocks cost less.
    Limited {
        /// Why.
        limit: SpeedUpLimit,
    },
}

/// Why less is paid than wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpeedUpLimit {
    /// The coins are worth too little.
    Coins {
        /// What they would have to be worth, in satoshi.
        needed_sat: u64,
    },
    /// The caps of [`FeeCaps`](superscalar_factory::exit::bump::FeeCaps) forbid it.
    Cap {
        /// What it would cost, in satoshi.
        needed_sat: u64,
        /// What it may cost, in satoshi.
        allowed_sat: u64,
    },
}

impl ExitInfo {
    pub(super) fn unknown(factory: String, reason: String, error: &EngineError) -> ExitInfo {
        ExitInfo {
            factory,
            reason,
            stage: "unknown".to_owned(),
            step: 0,
            of: 0,
            waiting: error.to_string(),
            blocks_left_best: None,
            blocks_left_worst: None,
            pending_sat: 0,
            leaf_height: None,
            own_fees_sat: 0,
            speed_up: SpeedUp::NotNeeded,
        }
    }
}

impl Engine {
    pub(super) fn list(&self) -> Vec<FactoryInfo> {
        let members = self.members.values().map(|role| self.member_info(role));
        let coordinators = self.coordinators.values();
        let coordinators = coordinators.map(|role| self.coordinator_info(role));
        let damaged = self.damaged.iter();
        let damaged = damaged.map(|(attempt, detail)| self.damaged_info(attempt, detail));
        members.chain(coordinators).chain(damaged).collect()
    }

    /// What the register of channels knows of a factory whose journal cannot be read.
    fn damaged_info(&self, attempt: &Attempt, detail: &str) -> FactoryInfo {
        let slots = self.parts.host.slots();
        let channels = slots
            .iter()
            .map(|slot| &slot.channel)
            .filter_map(|channel| {
                let place = bridge::slot_ref(&channel.slot)?;
                let own = !channel.slot.is_sold() && place.attempt == *attempt;
                own.then_some((place, channel))
            });
        let mut seats = Vec::new();
        let mut exit_delay_blocks = 0;
        for (place, channel) in channels {
            exit_delay_blocks = u32::from(channel.exit_delay_blocks);
            let (peer, capacity_sat) = (channel.peer.to_string(), channel.capacity_sat);
            seats.push(SeatInfo {
                channel: Some(channel.outpoint.to_string()),
                ..SeatInfo::new(place.slot, peer, capacity_sat, 0)
            });
        }
        seats.sort_by_key(|seat| seat.slot);
        FactoryInfo {
            factory: bridge::name(attempt),
            phase: "damaged".to_owned(),
            ended: None,
            damage: Some(detail.to_owned()),
            active: false,
            expiry: 0,
            exit_delay_blocks,
            epoch: String::new(),
            funding: None,
            funding_sat: None,
            tree_feerate: 0,
            seats,
        }
    }

    /// Why there is no role for a factory, or a place in one, of this name.
    pub(super) fn missing(&self, name: &str) -> EngineError {
        let place = || bridge::slot_of_place(name).map(|place| place.attempt);
        let attempt = bridge::attempt(name).or_else(place);
        let factory = name.to_owned();
        match attempt.and_then(|attempt| self.damaged.get(&attempt)) {
            Some(detail) => EngineError::Damaged {
                factory,
                detail: detail.clone(),
            },
            None => EngineError::UnknownFactory { factory },
        }
    }

    pub(super) fn tree(&self, factory: &str) -> Result<Vec<TreeNodeInfo>, EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        let (tree, phase) = if let Some(role) = self.coordinators.get(&attempt) {
            (role.newest_tree(), role.phase())
        } else if let Some(role) = self.members.get(&attempt) {
            let first = role.path().map(|path| &path.tree);
            (role.switched_trees().last().or(first), role.phase())
        } else {
            return Err(unknown());
        };
        tree.map(tree_info).ok_or_else(|| EngineError::NoPath {
            factory: factory.to_owned(),
            phase: phase.to_owned(),
        })
    }
}

fn tree_info(tree: &Tree) -> Vec<TreeNodeInfo> {
    let node = |it: &superscalar_factory::tree::TreeNode| TreeNodeInfo {
        node: it.node.id.0,
        parent: it.node.parent.map(|parent| parent.0),
        first_slot: it.node.slots.start,
        slots: it.node.slots.len() as u16,
        leaf: it.node.is_leaf(),
        transactions: it
            .transactions()
            .map(|tx| TreeTxInfo {
                role: match tx.name.role {
                    Role::Kickoff => "kickoff",
                    Role::State => "state",
                    Role::Distribution => "distribution",
                    Role::Sale(_) => "sale",
                }
                .to_owned(),
                txid: tx.txid().to_string(),
                vsize: tx.vsize() as u64,
                fee_sat: tx.fee().to_sat(),
                delay_blocks: match tx.name.role {
                    Role::Kickoff => 0,
                    _ => tx.tx.input[0].sequence.to_consensus_u32(),
                },
                outputs_sat: tx.tx.output.iter().map(|out| out.value.to_sat()).collect(),
            })
            .collect(),
    };
    tree.nodes().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WalletError;

    #[test]
    fn a_factory_without_distributions_says_what_can_be_done() {
        let error = superscalar_factory::exit::PlanError::NoDistributions;
        let error = WalletError::from(EngineError::unplannable("ab", 5_808, &error));
        assert_eq!(error.code(), "no_distributions");
        let said = error.to_string();
        assert!(said.contains("5808, leave before"), "{said}");
        assert!(!error.retryable());
    }
}
