//! Channels bought with the payment they are opened for (bLIP-52, "LSPS2").
//!
//! A wallet asks the LSP what a channel costs, buys one for an amount and writes the hop it was
//! given into an invoice. A payment to that hop stops at the LSP, which opens a 0-conf channel from
//! its own coins, passes the payment on less the opening fee, and publishes the funding when the
//! wallet has claimed ("client trusts LSP").
//!
//! What always holds, beside what `lightning-liquidity` sees to:
//! - Nobody but the LSP has the signed funding before it is due, and it is due, on disk, before the
//!   first claim in the channel is counted. Until then its coins can be taken back.
//! - An HTLC is given to such a channel by the rule for all forwards, and is failed back when its
//!   channel does not come about.
//! - A wallet accepts a 0-conf channel only from whom it bought one, once for each purchase, and
//!   claims a payment short of a fee only up to what was agreed for that payment.

mod bought;
mod buy;
mod sell;
mod sold;

use std::time::Duration;

pub use buy::{JitError, JitQuote};

pub(super) use bought::{Bought, Purchase};
pub(super) use buy::Waiting;
pub(super) use sold::SoldChannels;

/// How long the LSP waits for the rest of a payment, and for a channel to come about.
const PATIENCE: Duration = Duration::from_secs(90);

/// What an LSP asks for a channel that is opened for a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitPolicy {
    /// Least fee. The funding transaction's fee should be covered by it.
    pub min_fee_msat: u64,
    /// Fee in millionths of the payment, where that is more.
    pub fee_ppm: u32,
    /// How long a price holds, and a channel that was bought can be paid into.
    pub valid_for_secs: u32,
    /// How long the channel is not closed by the LSP.
    pub min_lifetime_blocks: u32,
    /// Longest delay the buyer may put on what is the LSP's in its commitment.
    pub max_client_delay_blocks: u16,
    /// Smallest first payment.
    pub min_payment_msat: u64,
    /// Largest first payment.
    pub max_payment_msat: u64,
    /// What can be received beside the first payment.
    pub headroom_sat: u64,
    /// How many channels may be under way at once: so many coins, each of at most `max_payment_msat`
    /// and `headroom_sat`, can be tied up by payments that are never claimed. A payment for one more
    /// fails, and can be tried again.
    pub max_opening: u16,
}

impl Default for JitPolicy {
    fn default() -> Self {
        Self {
            min_fee_msat: 2_000_000,
            fee_ppm: 4_000,
            valid_for_secs: 3_600,
            min_lifetime_blocks: 4_032,
            max_client_delay_blocks: 2_016,
            min_payment_msat: 10_000_000,
            max_payment_msat: 1_000_000_000,
            headroom_sat: 100_000,
            max_opening: 32,
        }
    }
}
