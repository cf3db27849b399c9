//! Why the engine refuses.

use superscalar_factory::coordinator::PlanError;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The node is stopped.
    #[error("the node is stopped")]
    Stopped,
    /// Only an LSP builds factories.
    #[error("only an LSP builds factories")]
    NotLsp,
    /// Not enough members are connected and waiting for a channel of at most this capacity.
    #[error("{waiting} members are waiting for a channel of this capacity, {wanted} are wanted")]
    NotEnoughMembers {
        /// How many are.
        waiting: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// The terms asked for are no valid factory.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The factory would end beyond any height.
    #[error("life_blocks is {life_blocks}: no chain gets that high")]
    Life {
        /// What was asked for.
        life_blocks: u32,
    },
    /// No factory has this name.
    #[error("no factory is called {factory}")]
    UnknownFactory {
        /// What was asked for.
        factory: String,
    },
    /// The factory's journal cannot be read: nothing moves in it, everything else runs.
    #[error("the journal of factory {factory} cannot be read: {detail}")]
    Damaged {
        /// The factory.
        factory: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The path out of this factory is not complete: there is nothing to leave with.
    #[error("factory {factory} holds no complete path: it is {phase}")]
    NoPath {
        /// The factory.
        factory: String,
        /// Where it stands.
        phase: String,
    },
    /// The on-chain wallet failed.
    #[error("on-chain wallet: {0}")]
    Wallet(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The chain source failed.
    #[error(transparent)]
    Chain(#[from] crate::chain::ChainError),
    /// Nobody is paid out by this factory: under its policy the LSP reclaims at expiry.
    #[error(
        "factory {factory} has no distributions to reclaim with: the LSP may take it at height \
         {expiry}, leave before"
    )]
    NoDistributions {
        /// The factory.
        factory: String,
        /// Height from which the LSP may take it.
        expiry: u32,
    },
    /// Coins.
    #[error(transparent)]
    Onchain(#[from] crate::onchain::OnchainError),
    /// No exit of this factory has begun.
    #[error("no exit of {factory} has begun")]
    NoExit {
        /// What was asked for.
        factory: String,
    },
    /// The state was restored and nobody has confirmed that it is the newest.
    #[error(
        "nobody has confirmed that this restored state is the newest: with an older one the LSP may \
         take the whole channel. Connect to the LSP; if it is gone for good, accept the state as it is"
    )]
    UnconfirmedState,
    /// More was asked for than the caps allow.
    #[error("{asked_sat_per_vb} sat/vB is above the cap of {cap_sat_per_vb} sat/vB")]
    FeerateAboveCap {
        /// What was asked for.
        asked_sat_per_vb: u64,
        /// The most there may be.
        cap_sat_per_vb: u64,
    },
    /// The exit cannot be planned.
    #[error("exit: {0}")]
    Exit(String),
}

impl EngineError {
    /// Why the exit from a factory that ends at `expiry` has no plan.
    pub(super) fn unplannable(
        factory: &str,
        expiry: u32,
        error: &superscalar_factory::exit::PlanError,
    ) -> EngineError {
        use superscalar_factory::exit::PlanError as Exit;
        match error {
            Exit::NoDistributions => EngineError::NoDistributions {
                factory: factory.to_owned(),
                expiry,
            },
            other => EngineError::Exit(other.to_string()),
        }
    }
}
