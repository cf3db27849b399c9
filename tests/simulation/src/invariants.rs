//! What must always hold (§13 of the protocol, as `ARCHITECTURE.md` and the factory's module docs
//! state it), by name, and how a breach is told.

use std::fmt;

/// The promises that are checked after every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Invariant {
    /// Every honest member can, alone, with what is on its disk, bring its balance minus published
    /// fees on chain.
    Recoverability,
    /// Inputs are outputs plus fees everywhere; nobody's channel holds more or less than it should.
    Conservation,
    /// One sighash for each outpoint and role.
    NoEquivocation,
    /// No nonce signs twice, and none survives a restart.
    Nonces,
    /// A preimage leaves only when what it pays for is durable and can be claimed.
    NoEarlySecret,
    /// Nothing is received or counted on a path that is not complete, stored and buried.
    NoPrematureMoney,
    /// The funding is published only when everyone holds a complete path.
    FundedLast,
    /// Every distribution pays each member at least its capacity and stock.
    Payouts,
    /// A record is durable before what it announces leaves.
    DurableFirst,
    /// Killed anywhere, either side continues or ends cleanly; no coin stays locked.
    CrashAnywhere,
    /// What a peer sends gives a typed refusal and changes nothing, or is what was expected.
    BadInput,
    /// What an exit publishes is acceptable when the planner says so, and pays in the end.
    Exit,
    /// Whoever looked in time is not outrun: by an older epoch, or by the delay on stock.
    Race,
    /// While the LSP alone can complete an epoch, a member has no more than that would give it.
    Limbo,
    /// No block holds what a lock forbids.
    Consensus,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invariant::Recoverability => "recoverability",
            Invariant::Conservation => "conservation",
            Invariant::NoEquivocation => "no equivocation",
            Invariant::Nonces => "nonces",
            Invariant::NoEarlySecret => "no early secret",
            Invariant::NoPrematureMoney => "no premature money",
            Invariant::FundedLast => "funded last",
            Invariant::Payouts => "payouts",
            Invariant::DurableFirst => "durable first",
            Invariant::CrashAnywhere => "crash anywhere",
            Invariant::BadInput => "bad input",
            Invariant::Exit => "exit",
            Invariant::Race => "race",
            Invariant::Limbo => "limbo",
            Invariant::Consensus => "consensus",
        })
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {detail}")]
pub struct Violation {
    /// Which promise.
    pub invariant: Invariant,
    /// What happened instead.
    pub detail: String,
}

impl Violation {
    pub(crate) fn new(invariant: Invariant, detail: impl Into<String>) -> Violation {
        Violation {
            invariant,
            detail: detail.into(),
        }
    }
}

/// `Ok` if it holds.
pub(crate) fn ensure(
    holds: bool,
    invariant: Invariant,
    detail: impl FnOnce() -> String,
) -> Result<(), Violation> {
    match holds {
        true => Ok(()),
        false => Err(Violation::new(invariant, detail())),
    }
}
