//! How far an exit is, what it waits for, what it costs and what arrives.

use bitcoin::{Amount, FeeRate, OutPoint, Txid, Weight};

use super::bump::{self, LEAST_CHANGE, Parent};
use crate::shape::NodeId;
use crate::tree::TxName;

/// Weight that LDK pays for when it moves a member's balance from its channel's commitment
/// (`to_local` of BOLT3 with a delay of 128 to 32,767 blocks, low-R signature) to one P2TR output
/// once `to_self_delay` is over: the only transaction of an exit that a member pays for out of its
/// own balance.
pub const SWEEP_WEIGHT: Weight = Weight::from_wu(530);

/// Where an exit stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    /// What has happened and what comes next.
    pub progress: Progress,
    /// Costs of the transactions that are still to confirm, and what they bring.
    pub figures: Figures,
    /// Somebody else's unconfirmed transaction that spends what our next one spends.
    pub rival: Option<Txid>,
    /// Below a leaf state that is confirmed: its own channel, then those bought, in order.
    pub channels: Vec<ChannelStatus>,
}

/// One channel below a confirmed leaf state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelStatus {
    /// Its funding outpoint.
    pub outpoint: OutPoint,
    /// Whether it is there.
    pub on_chain: OnChain,
}

/// Whether a channel's funding output is on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnChain {
    /// In this block.
    Confirmed {
        /// Height of the block.
        height: u32,
    },
    /// To be published, or waiting for those before it.
    Due,
    /// Something else has spent the stock it was sold from.
    Lost {
        /// The spender.
        by: Txid,
        /// Height of its block.
        height: u32,
    },
}

/// What has happened and what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A transaction of ours is next.
    Underway {
        /// Number of the next transaction, from 1.
        step: u32,
        /// Transactions from the funding output to the goal, those confirmed included.
        of: u32,
        /// The transaction.
        next: TxName,
        /// What keeps it from being confirmed.
        waiting: Waiting,
        /// How long the goal is away.
        blocks_left: BlocksLeft,
    },
    /// Every kickoff on chain has its state; what is not open below stays off chain. Only under
    /// [`super::Goal::Defend`].
    Guarding {
        /// The lowest state of the path on chain and its height; `None` if the root is not open.
        answered: Option<(TxName, u32)>,
    },
    /// The funding outputs of all channels that can be are on chain: the rest is LDK's. Bought ones
    /// are in [`ExitStatus::channels`].
    LeafConfirmed {
        /// The leaf's own channel.
        outpoint: OutPoint,
        /// Height of its block.
        height: u32,
    },
    /// A distribution has paid the member's wallet.
    PaidOut {
        /// Whose distribution it was.
        node: NodeId,
        /// The payout.
        outpoint: OutPoint,
        /// Its amount.
        amount: Amount,
        /// Height of its block.
        height: u32,
    },
    /// A transaction that is not part of this path has spent an output of it: a rotation or close
    /// that was agreed on, a newer epoch than the ones held, or under `LspReclaims` the LSP.
    Superseded {
        /// The output.
        outpoint: OutPoint,
        /// The spender.
        by: Txid,
        /// Height of its block.
        height: u32,
    },
}

/// What keeps the next transaction from being confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// The funding transaction is not confirmed.
    Funding,
    /// It may be in the next block, and is published until it is in one.
    Confirmation,
    /// Its relative delay.
    Delay {
        /// The first block that may hold it.
        allowed: u32,
        /// Blocks that have to be mined before that one.
        blocks: u32,
    },
    /// The factory's expiry T.
    Expiry {
        /// The first block that may hold it.
        allowed: u32,
        /// Blocks that have to be mined before that one.
        blocks: u32,
    },
}

/// Blocks until the goal is reached, the one that reaches it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksLeft {
    /// Every transaction confirms in the first block that may hold it.
    pub best: u32,
    /// Every transaction needs the `confirm_margin` that the terms budget for it.
    pub worst: u32,
}

/// Costs of the transactions still to confirm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// How many there are.
    pub transactions: u32,
    /// Fee and size of each, in order.
    pub parents: Vec<Parent>,
    /// Their virtual size.
    pub vsize_vb: u64,
    /// The fees they carry. The tree holds them beside the members' money: no member pays them.
    pub fees: Amount,
    /// The channels, or under [`super::Goal::Reclaim`] the payout, that they bring.
    pub arriving: Amount,
}

/// Whether a balance survives the way to the wallet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// This much arrives.
    Yes {
        /// Balance minus what the member pays.
        net: Amount,
    },
    /// Sweeping costs as much as the balance, or leaves less than an output may hold.
    No {
        /// What the member would pay.
        cost: Amount,
    },
}

impl Figures {
    /// What own coins lose while blocks take `feerate`: nothing up to the feerate of the tree, else
    /// what one anchor child of each transaction pays, made with one coin.
    pub fn own_fees(&self, feerate: FeeRate) -> Amount {
        let costs = self.parents.iter();
        let costs = costs.map(|parent| bump::own_cost(*parent, feerate));
        costs.fold(Amount::ZERO, |sum, cost| {
            sum.checked_add(cost).unwrap_or(Amount::MAX_MONEY)
        })
    }

    /// Coins a wallet needs for that: each child's change pays for the next.
    pub fn coins_needed(&self, feerate: FeeRate) -> Amount {
        match self.own_fees(feerate) {
            Amount::ZERO => Amount::ZERO,
            fees => fees.checked_add(LEAST_CHANGE).unwrap_or(Amount::MAX_MONEY),
        }
    }
}

impl Worth {
    /// What arrives of `balance` when its sweep pays `feerate`. The tree's fees are the LSP's, so
    /// this is all a member loses, besides the reserve and HTLCs too small to enforce.
    pub fn of(balance: Amount, feerate: FeeRate) -> Worth {
        // LDK rounds down to the satoshi where `FeeRate` rounds up.
        let cost = feerate.to_sat_per_kwu().checked_mul(SWEEP_WEIGHT.to_wu());
        let cost = cost.map_or(Amount::MAX_MONEY, |cost| Amount::from_sat(cost / 1_000));
        match balance.checked_sub(cost) {
            Some(net) if net >= crate::scripts::MIN_OUTPUT => Worth::Yes { net },
            _ => Worth::No { cost },
        }
    }
}
