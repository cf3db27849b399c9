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
    /// The LSP is not connected.
    #[error("{peer} is not connected")]
    NotConnected {
        /// Who.
        peer: bitcoin::secp256k1::PublicKey,
    },
    /// There is no stock beside the channel, or all of it is sold.
    #[error("factory {factory} has nothing to sell beside this channel")]
    NothingToBuy {
        /// The factory.
        factory: String,
    },
    /// No watchtower can take what would be bought, and it would not count before one has.
    #[error("none of the towers can take what would be bought")]
    NoTower,
    /// A channel is not bought as things stand.
    #[error(transparent)]
    Buy(#[from] superscalar_factory::sale::BuyError),
    /// The LSP does not sell, or not that.
    #[error("the LSP does not sell that: {reason}")]
    NotSold {
        /// Why.
        reason: superscalar_factory::message::NoSaleReason,
        /// The least it sells, in satoshi; 0 where the amount is not the reason.
        least_sat: u64,
        /// The most the stock allows, in satoshi; 0 where the amount is not the reason.
        up_to_sat: u64,
        /// The amount that leaves no stock, which can be bought as well; 0 likewise.
        whole_sat: u64,
    },
    /// A quote came that is not as it was asked for: too dear, or wrong.
    #[error("the quote was refused, {code}: {field}")]
    QuoteRefused {
        /// Why.
        code: superscalar_factory::message::RefusalCode,
        /// The field, `price_msat` for one that is too dear.
        field: String,
    },
    /// Another price was asked for before this one was answered.
    #[error("another price was asked for meanwhile")]
    AskedAgain,
    /// There is not enough on our side of the channels with the LSP.
    #[error("{price_msat} msat are to be paid, {spendable_msat} can be")]
    CannotPay {
        /// What it costs.
        price_msat: u64,
        /// What can be sent to the LSP.
        spendable_msat: u64,
    },
    /// The LSP gave no answer in time.
    #[error("the LSP has not answered in {seconds} s")]
    NoAnswer {
        /// How long was waited.
        seconds: u64,
    },
    /// No new epoch can be begun as things stand.
    #[error(transparent)]
    Epoch(#[from] superscalar_factory::epoch::EpochError),
    /// No new epoch is under way.
    #[error("no new epoch of {factory} is under way")]
    NoEpoch {
        /// The factory.
        factory: String,
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
