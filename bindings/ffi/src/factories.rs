//! Factories.

use std::sync::Arc;

use superscalar_sdk as sdk;

use crate::error::WalletError;
use crate::runtime;

/// Factories.
#[derive(uniffi::Object)]
pub struct Factories {
    wallet: Arc<sdk::Wallet>,
}

/// One factory as it stands.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FactoryInfo {
    /// Its name: the instance in hex, and the attempt where it is not the first.
    pub factory: String,
    /// Where it stands: `joined`, `signed`, `opening`, `committed`, `funding`, `active`, `dormant`,
    /// `unfunded`, `ended`, `damaged`.
    pub phase: String,
    /// Why it ended, if it did before it existed.
    pub ended: Option<String>,
    /// What is wrong with its journal, if it is `damaged`: its bytes are kept, nothing moves in it.
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
    /// The own place.
    pub seats: Vec<SeatInfo>,
}

/// One place in a factory.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
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
    pub version: u32,
    /// The channel's outpoint in the leaf, `txid:vout`, once known; none once we have left.
    pub channel: Option<String>,
    /// What was sold of that money, each a channel of its own, in order.
    pub sold: Vec<SoldInfo>,
    /// What is left of it in satoshi.
    pub stock_left_sat: u64,
    /// The largest channel that can be bought now and leaves something, in satoshi.
    pub sellable_sat: u64,
    /// Or exactly this much, which leaves nothing, in satoshi.
    pub sellable_whole_sat: u64,
    /// Where the sale under way stands, if one is. `pending`: signed by us, so that nothing else can
    /// be bought before it is there or the stock is renewed; `signed`: the final signature is there,
    /// our commitment is not; `unpaid`: it can receive and is not paid for.
    pub sale: Option<String>,
    /// Where a new epoch stands, if one is under way: `preparing`, `stored`, `committed` (the LSP
    /// alone can complete it) or `switching`.
    pub moving: Option<String>,
    /// What our channels in this place hold at most, in millisatoshi, while the LSP may complete an
    /// epoch alone.
    pub most_msat: Option<u64>,
}

/// A channel that was sold out of a place's stock.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct SoldInfo {
    /// Its outpoint, `txid:vout`.
    pub channel: String,
    /// Its capacity in satoshi.
    pub capacity_sat: u64,
}

/// What the LSP asks for a channel.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct InboundQuote {
    /// Names the quote: a hash of everything that is promised in it, hex.
    pub quote: String,
    /// The factory.
    pub factory: String,
    /// Capacity of the channel in satoshi, all of it the LSP's at first.
    pub capacity_sat: u64,
    /// What is paid once the channel is held, in millisatoshi.
    pub price_msat: u64,
    /// The last height at which it may be accepted.
    pub valid_until_height: u32,
}

/// Who is paid at expiry if nobody does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Policy {
    /// The members, by distributions.
    MembersReclaim,
    /// The LSP: the wallet leaves by itself in time, and has to be running then.
    LspReclaims,
}

/// What a wallet wants of a place in a factory, and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct JoinRequest {
    /// Least capacity of the channel in satoshi; 0 leaves it to the LSP.
    pub capacity_sat: u64,
    /// Who may be paid at expiry if nobody does anything.
    pub policies: Vec<Policy>,
    /// Blocks of CLTV that those who pay this wallet allow a route in total. Ordinary LDK payers
    /// allow 1,008, LND and CLN 2,016, the most there can be.
    pub route_limit_blocks: u32,
}

/// The standard: the members are paid at expiry, ordinary payers can pay. To begin with where only
/// one condition is another.
#[uniffi::export]
pub fn standard_join_request(capacity_sat: u64) -> JoinRequest {
    sdk::JoinRequest::standard(capacity_sat).into()
}

#[uniffi::export]
impl Factories {
    /// All factories, those that came to nothing included.
    pub async fn list(&self) -> Result<Vec<FactoryInfo>, WalletError> {
        let factories = self.wallet.factories();
        let list = runtime::finish(async move { factories.list().await }).await?;
        Ok(list.into_iter().map(Into::into).collect())
    }

    /// Asks the LSP for a place with at least this capacity, 0 leaving it to the LSP, and accepts an
    /// offer within the standard limits. What becomes of it are events.
    pub async fn join(&self, capacity_sat: u64) -> Result<(), WalletError> {
        let factories = self.wallet.factories();
        runtime::finish(async move { factories.join(capacity_sat).await }).await
    }

    /// `join` on other conditions than the standard ones.
    pub async fn join_with(&self, request: JoinRequest) -> Result<(), WalletError> {
        let factories = self.wallet.factories();
        runtime::finish(async move { factories.join_with(request.into()).await }).await
    }

    /// Asks the LSP what a channel of `capacity_sat` more to receive on costs, out of the stock
    /// beside our own channel in this factory. A price above `max_price_msat` is refused.
    pub async fn quote_inbound(
        &self,
        factory: String,
        capacity_sat: u64,
        max_price_msat: u64,
    ) -> Result<InboundQuote, WalletError> {
        let factories = self.wallet.factories();
        let quoted = runtime::finish(async move {
            let quoted = factories.quote_inbound(&factory, capacity_sat, max_price_msat);
            quoted.await
        });
        Ok(quoted.await?.into())
    }

    /// Accepts a quote. The channel is then made by itself, also over restarts: the event
    /// `InboundDelivered` says that it can receive, `InboundPaid` that its price was paid, after
    /// that and never before.
    pub async fn buy_inbound(&self, quote: InboundQuote) -> Result<(), WalletError> {
        let factories = self.wallet.factories();
        runtime::finish(async move { factories.buy_inbound(&quote.into()).await }).await
    }

    /// Says what this wallet agrees to when its LSP gives its place in a factory a new epoch. Unless
    /// it says otherwise it stays, and its new channel is no smaller than what it has.
    pub async fn set_epoch_consent(
        &self,
        factory: String,
        consent: EpochConsent,
    ) -> Result<(), WalletError> {
        let factories = self.wallet.factories();
        let consent = consent.into();
        runtime::finish(async move { factories.set_epoch_consent(&factory, consent).await }).await
    }
}

/// What a wallet agrees to when its LSP gives its place in a factory a new epoch.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct EpochConsent {
    /// Least capacity of the new channel in satoshi; absent for what its channels hold together.
    pub min_capacity_sat: Option<u64>,
    /// Whether the LSP may have the place back. It is signed away only when no more of the wallet's
    /// is in its channels than `forgo_sat`.
    pub departure: Departure,
    /// The most the wallet loses by giving the place up, in satoshi: what is in a channel's reserve
    /// cannot be sent, and stays behind.
    #[uniffi(default = 0)]
    pub forgo_sat: u64,
}

impl From<EpochConsent> for sdk::EpochConsent {
    fn from(consent: EpochConsent) -> sdk::EpochConsent {
        sdk::EpochConsent {
            min_capacity_sat: consent.min_capacity_sat,
            departure: match consent.departure {
                Departure::Stays => sdk::Departure::Stays,
                Departure::Leaves => sdk::Departure::Leaves,
            },
            forgo_sat: consent.forgo_sat,
        }
    }
}

/// Whether a wallet gives its place in a factory up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Departure {
    /// It does not.
    Stays,
    /// It does.
    Leaves,
}

impl Factories {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Factories {
        Factories { wallet }
    }
}

impl From<JoinRequest> for sdk::JoinRequest {
    fn from(request: JoinRequest) -> sdk::JoinRequest {
        let JoinRequest {
            capacity_sat,
            policies,
            route_limit_blocks,
        } = request;
        let policy = |it| match it {
            Policy::MembersReclaim => sdk::Policy::MembersReclaim,
            Policy::LspReclaims => sdk::Policy::LspReclaims,
        };
        sdk::JoinRequest {
            capacity_sat,
            policies: policies.into_iter().map(policy).collect(),
            route_limit_blocks,
        }
    }
}

impl From<sdk::JoinRequest> for JoinRequest {
    fn from(request: sdk::JoinRequest) -> JoinRequest {
        let sdk::JoinRequest {
            capacity_sat,
            policies,
            route_limit_blocks,
        } = request;
        // One that is newer than this list is not accepted.
        let policy = |it| match it {
            sdk::Policy::MembersReclaim => Some(Policy::MembersReclaim),
            sdk::Policy::LspReclaims => Some(Policy::LspReclaims),
            _ => None,
        };
        JoinRequest {
            capacity_sat,
            policies: policies.into_iter().filter_map(policy).collect(),
            route_limit_blocks,
        }
    }
}

impl From<sdk::FactoryInfo> for FactoryInfo {
    fn from(info: sdk::FactoryInfo) -> FactoryInfo {
        let sdk::FactoryInfo {
            factory,
            phase,
            ended,
            damage,
            active,
            expiry,
            exit_delay_blocks,
            epoch,
            funding,
            funding_sat,
            tree_feerate,
            seats,
        } = info;
        FactoryInfo {
            factory,
            phase,
            ended,
            damage,
            active,
            expiry,
            exit_delay_blocks,
            epoch,
            funding,
            funding_sat,
            tree_feerate,
            seats: seats.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<sdk::SeatInfo> for SeatInfo {
    fn from(seat: sdk::SeatInfo) -> SeatInfo {
        let sdk::SeatInfo {
            slot,
            peer,
            capacity_sat,
            stock_sat,
            version,
            channel,
            sold,
            stock_left_sat,
            sellable_sat,
            sellable_whole_sat,
            sale,
            moving,
            most_msat,
        } = seat;
        let sold = sold.into_iter().map(|it| SoldInfo {
            channel: it.channel,
            capacity_sat: it.capacity_sat,
        });
        SeatInfo {
            slot,
            peer,
            capacity_sat,
            stock_sat,
            version,
            channel,
            sold: sold.collect(),
            stock_left_sat,
            sellable_sat,
            sellable_whole_sat,
            sale,
            moving,
            most_msat,
        }
    }
}

impl From<InboundQuote> for sdk::InboundQuote {
    fn from(quoted: InboundQuote) -> sdk::InboundQuote {
        let InboundQuote {
            quote,
            factory,
            capacity_sat,
            price_msat,
            valid_until_height,
        } = quoted;
        sdk::InboundQuote {
            quote,
            factory,
            capacity_sat,
            price_msat,
            valid_until_height,
        }
    }
}

impl From<sdk::InboundQuote> for InboundQuote {
    fn from(quoted: sdk::InboundQuote) -> InboundQuote {
        let sdk::InboundQuote {
            quote,
            factory,
            capacity_sat,
            price_msat,
            valid_until_height,
        } = quoted;
        InboundQuote {
            quote,
            factory,
            capacity_sat,
            price_msat,
            valid_until_height,
        }
    }
}
