//! The planner: a pure function of what a member holds, wants and sees.
//!
//! It walks down the path as far as transactions are confirmed, whoever published them; the rest
//! of the way is ours. Only the first transaction of that rest can be published, because every
//! other one has an unconfirmed parent. Nothing is remembered between two calls, so a reorg is
//! just other facts.
//!
//! What was sold below a leaf state is published as soon as that state is confirmed, by whoever's
//! hand and whatever the goal: each sale must be there before its stock output may be reclaimed.

use bitcoin::{OutPoint, Transaction, Txid};

use super::status::{BlocksLeft, ChannelStatus, ExitStatus, Figures, OnChain, Progress, Waiting};
use super::timelock::{self, TimelockError};
use super::{ChainFacts, SignedEpoch, SignedNode, SignedPath};
use crate::stock::{SoldLink, StockChain};
use crate::terms::TimeoutPolicy;
use crate::tree::{Role, TxName};

/// What a member wants from its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goal {
    /// The channel on chain.
    Leave,
    /// Stay off chain, but answer every kickoff anybody publishes on the path with the newest
    /// state: somebody else opening the root does not force us out.
    Defend,
    /// After T, when the LSP is gone: be paid by a distribution, of the highest node whose state
    /// nobody publishes.
    Reclaim,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Send this transaction to the network: the next block may hold it.
    Publish {
        /// Its name.
        name: TxName,
        /// The epoch it belongs to; a kickoff or a sale belongs to none.
        epoch: Option<u8>,
        /// The signed transaction.
        transaction: Transaction,
    },
}

/// What to do now and how far things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In this order. Doing them again does no harm.
    pub actions: Vec<Action>,
    /// How far things are.
    pub status: ExitStatus,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Under `LspReclaims` members have no distributions: leave before T.
    #[error("this factory has no distributions")]
    NoDistributions,
    /// The facts cannot all be true of one chain: they were collected while a block arrived or
    /// left. Collect them again.
    #[error(
        "{outpoint} is spent at height {height}, which is above the tip or below its own block"
    )]
    Inconsistent {
        /// The outpoint.
        outpoint: OutPoint,
        /// Height of its spend.
        height: u32,
    },
    /// A transaction has a lock no factory uses. A [`SignedPath`] holds none.
    #[error(transparent)]
    Timelock(#[from] TimelockError),
}

/// Says what to publish for `goal` at this tip.
///
/// # Errors
/// See [`PlanError`]; nothing is to be published then.
pub fn plan(path: &SignedPath, goal: Goal, facts: &ChainFacts) -> Result<Plan, PlanError> {
    if goal == Goal::Reclaim && path.header().policy == TimeoutPolicy::LspReclaims {
        return Err(PlanError::NoDistributions);
    }
    let walk = Walk::new(path, facts)?;
    let (steps, reached) = match walk.end {
        End::Ours(next) => (remaining(path, goal, next), None),
        End::Sales(ref below) => (below.steps(), Some(below.reached())),
        End::Over(progress) => return Ok(over(progress, walk.channels)),
    };
    let Some(first) = steps.first() else {
        let answered = walk.answered;
        let progress = reached.unwrap_or(Progress::Guarding { answered });
        return Ok(over(progress, walk.channels));
    };
    let parent_height = walk.height;
    let waiting = match parent_height {
        None => Waiting::Funding,
        Some(height) => waiting(path, first, height, facts.next_height())?,
    };
    let start = parent_height.unwrap_or(facts.tip);
    let margin = u32::from(path.header().timing.confirm_margin).max(1);
    let blocks_left = BlocksLeft {
        best: blocks_left(&steps, start, facts.tip, 1)?,
        worst: blocks_left(&steps, start, facts.tip, margin)?,
    };
    let actions = match waiting {
        Waiting::Confirmation => vec![Action::Publish {
            name: first.name,
            epoch: first.epoch,
            transaction: first.tx.clone(),
        }],
        _ => Vec::new(),
    };
    let pending = facts.pending_spend(&first.tx.input[0].previous_output);
    let status = ExitStatus {
        progress: Progress::Underway {
            step: walk.confirmed + 1,
            of: walk.confirmed + steps.len() as u32,
            next: first.name,
            waiting,
            blocks_left,
        },
        figures: figures(path, &steps),
        rival: pending.filter(|txid| *txid != first.tx.compute_txid()),
        channels: walk.channels,
    };
    Ok(Plan { actions, status })
}

/// Nothing of ours is left to do.
fn over(progress: Progress, channels: Vec<ChannelStatus>) -> Plan {
    Plan {
        actions: Vec::new(),
        status: ExitStatus {
            progress,
            figures: Figures::default(),
            rival: None,
            channels,
        },
    }
}

/// How far down the path the chain has come.
struct Walk<'a> {
    /// Height of the last confirmed transaction; `None` if not even the funding is.
    height: Option<u32>,
    /// Transactions of the path that are confirmed.
    confirmed: u32,
    /// The lowest state among them.
    answered: Option<(TxName, u32)>,
    /// The member's channels below a leaf state that is confirmed.
    channels: Vec<ChannelStatus>,
    end: End<'a>,
}

enum End<'a> {
    Ours(Next<'a>),
    Sales(Below<'a>),
    Over(Progress),
}

/// A leaf state that is confirmed, and what is left to publish of its sales.
struct Below<'a> {
    channel: OutPoint,
    height: u32,
    left: Vec<&'a SoldLink>,
}

impl<'a> Below<'a> {
    fn reached(&self) -> Progress {
        Progress::LeafConfirmed {
            outpoint: self.channel,
            height: self.height,
        }
    }

    fn steps(&self) -> Vec<Step<'a>> {
        self.left.iter().map(|sold| sale(sold)).collect()
    }
}

/// The first transaction that is not confirmed.
enum Next<'a> {
    Kickoff(&'a SignedNode),
    AfterKickoff(&'a SignedNode),
}

impl<'a> Walk<'a> {
    fn new(path: &'a SignedPath, facts: &ChainFacts) -> Result<Walk<'a>, PlanError> {
        let mut outpoint = path.funding();
        let mut walk = Walk {
            height: facts.funding_height,
            confirmed: 0,
            answered: None,
            channels: Vec::new(),
            end: End::Over(Progress::Guarding { answered: None }),
        };
        if let Some(height) = facts.funding_height.filter(|height| *height > facts.tip) {
            return Err(PlanError::Inconsistent { outpoint, height });
        }
        while let Some(node) = path.kickoff_of(outpoint) {
            let Some((txid, height)) = walk.spend(facts, outpoint)? else {
                walk.end = End::Ours(Next::Kickoff(node));
                return Ok(walk);
            };
            let started = node.started();
            if txid != started.txid {
                return Ok(walk.superseded(outpoint, txid, height));
            }
            walk.passed(height);
            let Some((txid, height)) = walk.spend(facts, started)? else {
                walk.end = End::Ours(Next::AfterKickoff(node));
                return Ok(walk);
            };
            match role_of(node, txid) {
                Some((Role::State, signed)) => {
                    walk.passed(height);
                    let name = TxName {
                        node: node.node,
                        role: Role::State,
                    };
                    walk.answered = Some((name, height));
                    outpoint = path.below(node, signed);
                }
                Some((_, signed)) => {
                    walk.end = End::Over(paid_out(path, node, signed, txid, height));
                    return Ok(walk);
                }
                None => return Ok(walk.superseded(started, txid, height)),
            }
        }
        // A signed path is complete: what is no kickoff's input is the channel.
        let height = walk.height.unwrap_or(facts.tip);
        walk.channels.push(ChannelStatus {
            outpoint,
            on_chain: OnChain::Confirmed { height },
        });
        let left = walk.pass_sales(facts, path.sales_below(outpoint.txid))?;
        walk.end = End::Sales(Below {
            channel: outpoint,
            height,
            left,
        });
        Ok(walk)
    }

    /// Walks down a stock chain; gives the sales that are still to be published.
    fn pass_sales(
        &mut self,
        facts: &ChainFacts,
        chain: Option<&'a StockChain>,
    ) -> Result<Vec<&'a SoldLink>, PlanError> {
        let mut left = Vec::new();
        let mut lost = None;
        for sold in chain.into_iter().flat_map(StockChain::links) {
            let channel = sold.link().channel;
            // Below one that is not confirmed nothing can be.
            let spend = match left.is_empty() && lost.is_none() {
                true => self.spend(facts, sold.stock().outpoint())?,
                false => None,
            };
            let on_chain = match (spend, lost) {
                (Some((txid, height)), _) if txid == channel.txid => {
                    self.passed(height);
                    OnChain::Confirmed { height }
                }
                (Some((by, height)), _) => {
                    lost = Some((by, height));
                    OnChain::Lost { by, height }
                }
                (None, Some((by, height))) => OnChain::Lost { by, height },
                (None, None) => {
                    left.push(sold);
                    OnChain::Due
                }
            };
            self.channels.push(ChannelStatus {
                outpoint: channel,
                on_chain,
            });
        }
        Ok(left)
    }

    /// The confirmed spend of `outpoint`, whose own transaction is the last one walked over.
    fn spend(
        &self,
        facts: &ChainFacts,
        outpoint: OutPoint,
    ) -> Result<Option<(Txid, u32)>, PlanError> {
        let Some((txid, height)) = facts.confirmed_spend(&outpoint) else {
            return Ok(None);
        };
        // A spend in the chain proves its own parent, whether or not we were told its height.
        let created = self.height.unwrap_or(0);
        match (created..=facts.tip).contains(&height) {
            true => Ok(Some((txid, height))),
            false => Err(PlanError::Inconsistent { outpoint, height }),
        }
    }

    fn passed(&mut self, height: u32) {
        self.height = Some(height);
        self.confirmed += 1;
    }

    fn superseded(mut self, outpoint: OutPoint, by: Txid, height: u32) -> Self {
        self.end = End::Over(Progress::Superseded {
            outpoint,
            by,
            height,
        });
        self
    }
}

/// Which of the transactions after a kickoff `txid` is.
fn role_of(node: &SignedNode, txid: Txid) -> Option<(Role, &SignedEpoch)> {
    node.epochs.values().find_map(|signed| {
        let distribution = signed.distribution.as_ref();
        if signed.state.compute_txid() == txid {
            Some((Role::State, signed))
        } else if distribution.is_some_and(|tx| tx.compute_txid() == txid) {
            Some((Role::Distribution, signed))
        } else {
            None
        }
    })
}

fn paid_out(
    path: &SignedPath,
    node: &SignedNode,
    signed: &SignedEpoch,
    txid: Txid,
    height: u32,
) -> Progress {
    let name = TxName {
        node: node.node,
        role: Role::Distribution,
    };
    let distribution = signed.distribution.as_ref();
    let amount = distribution.and_then(|tx| path.arriving(name, tx));
    Progress::PaidOut {
        node: node.node,
        outpoint: OutPoint {
            txid,
            vout: path.payout_vout(node.node),
        },
        amount: amount.unwrap_or_default(),
        height,
    }
}

/// One transaction of the rest of the way.
struct Step<'a> {
    name: TxName,
    epoch: Option<u8>,
    tx: &'a Transaction,
    /// A height the goal itself waits for; consensus knows nothing of it.
    not_before: u32,
}

/// The rest of the way to `goal`, in order, if nobody else publishes anything.
fn remaining<'a>(path: &'a SignedPath, goal: Goal, next: Next<'a>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let (mut node, mut started) = match next {
        Next::Kickoff(node) => (node, false),
        Next::AfterKickoff(node) => (node, true),
    };
    loop {
        if !started {
            if goal == Goal::Defend {
                return steps;
            }
            steps.push(kickoff(path, goal, node));
        }
        let (epoch, signed) = node.newest();
        let after = |role, tx| Step {
            name: TxName {
                node: node.node,
                role,
            },
            epoch: Some(epoch),
            tx,
            not_before: 0,
        };
        if goal == Goal::Reclaim {
            let distribution = signed.distribution.iter();
            steps.extend(distribution.map(|tx| after(Role::Distribution, tx)));
            return steps;
        }
        steps.push(after(Role::State, &signed.state));
        let below = path.below(node, signed);
        let Some(child) = path.kickoff_of(below) else {
            let sales = path.sales_below(below.txid).into_iter();
            steps.extend(sales.flat_map(StockChain::links).map(sale));
            return steps;
        };
        (node, started) = (child, false);
    }
}

fn sale(sold: &SoldLink) -> Step<'_> {
    Step {
        name: sold.link().tx.name,
        epoch: None,
        tx: sold.transaction(),
        not_before: 0,
    }
}

fn kickoff<'a>(path: &SignedPath, goal: Goal, node: &'a SignedNode) -> Step<'a> {
    Step {
        name: TxName {
            node: node.node,
            role: Role::Kickoff,
        },
        epoch: None,
        tx: &node.kickoff,
        // Opening a node earlier would only force a living LSP to put its state on chain.
        not_before: match goal {
            Goal::Reclaim => path.header().expiry + 1,
            _ => 0,
        },
    }
}

fn earliest(step: &Step<'_>, parent_height: u32) -> Result<u32, TimelockError> {
    let allowed = timelock::earliest_height(step.tx, &[parent_height])?;
    Ok(allowed.max(step.not_before))
}

fn waiting(
    path: &SignedPath,
    step: &Step<'_>,
    parent_height: u32,
    next_height: u32,
) -> Result<Waiting, TimelockError> {
    let allowed = earliest(step, parent_height)?;
    let blocks = allowed.saturating_sub(next_height);
    Ok(if blocks == 0 {
        Waiting::Confirmation
    } else if allowed == path.header().expiry + 1 {
        Waiting::Expiry { allowed, blocks }
    } else {
        Waiting::Delay { allowed, blocks }
    })
}

/// Blocks from `tip` to the confirmation of the last step, when each takes `margin` blocks from
/// the first that may hold it.
fn blocks_left(
    steps: &[Step<'_>],
    start: u32,
    tip: u32,
    margin: u32,
) -> Result<u32, TimelockError> {
    let mut height = start;
    for step in steps {
        let first = earliest(step, height)?.max(height + 1).max(tip + 1);
        height = first.saturating_add(margin - 1);
    }
    Ok(height - tip)
}

fn figures(path: &SignedPath, steps: &[Step<'_>]) -> Figures {
    let mut figures = Figures {
        transactions: steps.len() as u32,
        ..Figures::default()
    };
    for step in steps {
        let parent = path.parent(step.tx);
        figures.vsize_vb += parent.vsize_vb;
        figures.fees += parent.fee;
        figures.parents.push(parent);
    }
    let arriving = steps.iter();
    let arriving = arriving.filter_map(|step| path.arriving(step.name, step.tx));
    figures.arriving = arriving.sum();
    figures
}
