//! The handles that group a wallet's calls.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::address::NetworkUnchecked;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Address, Amount, FeeRate};
use lightning_invoice::Bolt11Invoice;
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::package::ExitPackage;
use superscalar_factory::member::WalletLimits;
use superscalar_factory::timing::DEFAULT_PAYER_CLTV_BLOCKS as DEFAULT_ROUTE_LIMIT_BLOCKS;
use zeroize::Zeroizing;

use super::error::WalletError;
use super::handle::NodeHandle;
use crate::backup::BackupStatus;
use crate::factories::{
    Command, EngineError, EpochCommand, EpochConsent, ExitInfo, ExitMode, ExitPlan, FactoryInfo,
    InboundQuote, Policy, TreeNodeInfo,
};
use crate::hosting::{ChannelError, JitError, JitQuote, PayError};
use crate::package::{Freshness, PackageError, seal};
use crate::payments::{Direction, Payment};

/// Invoices and payments.
#[derive(Clone)]
pub struct Lightning {
    node: NodeHandle,
    /// Whom channels are bought from; an LSP itself buys none.
    lsp: Option<PublicKey>,
}

/// An invoice that leads to a channel which is opened for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitInvoice {
    /// The BOLT11 invoice.
    pub invoice: String,
    /// What it costs.
    pub quote: JitQuote,
}

/// A channel of ours that lives in no factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnchainChannel {
    /// Its id, hex.
    pub channel: String,
    /// Value of the funding output.
    pub capacity_sat: u64,
    /// What is ours.
    pub balance_msat: u64,
    /// Whether it can be used now.
    pub usable: bool,
}

/// How a channel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closing {
    /// The LSP must be there, and sign.
    Together,
    /// By our own commitment.
    Alone,
}

/// What a payment will do, before it is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendQuote {
    /// What the payee gets.
    pub amount_msat: u64,
    /// Who that is, a node id.
    pub payee: String,
    /// What the payee says it is for.
    pub description: String,
    /// Seconds until the invoice expires; 0 if it has.
    pub expires_in_secs: u64,
    /// Whether there is enough to pay it, fees not counted.
    pub affordable: bool,
}

impl Lightning {
    pub(crate) fn new(node: NodeHandle, lsp: Option<PublicKey>) -> Lightning {
        Lightning { node, lsp }
    }

    /// A BOLT11 invoice payable to this wallet; `None` leaves the amount to the payer.
    ///
    /// # Errors
    /// Without an active channel there is nothing to receive on (`no_active_channel`), and not more
    /// than all of them can take (`inbound_too_small`): [`receive_jit`](Self::receive_jit) buys one.
    pub async fn receive(
        &self,
        amount_msat: Option<u64>,
        description: &str,
        expiry_secs: u32,
    ) -> Result<String, WalletError> {
        let node = self.node.get()?;
        let invoice = node.host.invoice(amount_msat, description, expiry_secs)?;
        let hash = hex::encode(invoice.payment_hash().0);
        let text = invoice.to_string();
        let payment = Payment::begin(hash, Direction::Inbound, amount_msat, Some(text.clone()));
        node.payments.record(&payment)?;
        Ok(text)
    }

    /// What the LSP would keep of a payment of `amount_msat` for opening a channel with it.
    ///
    /// # Errors
    /// `jit_not_offered` if the LSP sells none, `jit_amount` with its limits.
    pub async fn quote_jit(&self, amount_msat: u64) -> Result<JitQuote, WalletError> {
        let node = self.node.get()?;
        let lsp = self.lsp.ok_or(JitError::NotOffered)?;
        Ok(node.host.jit_quote(lsp, amount_msat).await?)
    }

    /// A BOLT11 invoice over `amount_msat` for which the LSP opens an ordinary channel on chain when
    /// it is paid, and keeps its fee: at most `max_fee_msat`, or nothing is bought. The invoice
    /// expires with the LSP's price if that is sooner. Until its funding has confirmed the channel
    /// is the LSP's word.
    ///
    /// # Errors
    /// `jit_fee_above_cap` with the fee; those of [`quote_jit`](Self::quote_jit).
    pub async fn receive_jit(
        &self,
        amount_msat: u64,
        description: &str,
        expiry_secs: u32,
        max_fee_msat: u64,
    ) -> Result<JitInvoice, WalletError> {
        let node = self.node.get()?;
        let lsp = self.lsp.ok_or(JitError::NotOffered)?;
        let bought =
            node.host
                .jit_invoice(lsp, amount_msat, description, expiry_secs, max_fee_msat);
        let (invoice, quote) = bought.await?;
        let hash = hex::encode(invoice.payment_hash().0);
        let invoice = invoice.to_string();
        let written = Some(invoice.clone());
        let payment = Payment::begin(hash, Direction::Inbound, Some(amount_msat), written);
        node.payments.record(&payment)?;
        Ok(JitInvoice { invoice, quote })
    }

    /// The channels that are on chain by themselves: those that were bought.
    pub fn channels(&self) -> Result<Vec<OnchainChannel>, WalletError> {
        let states = self.node.get()?.host.channel_states().into_iter();
        let ordinary = states.filter(|state| state.slot.is_none());
        let info = |state: crate::hosting::ChannelState| OnchainChannel {
            channel: state.channel.to_string(),
            capacity_sat: state.capacity_sat,
            balance_msat: state.balance_msat,
            usable: state.is_usable,
        };
        Ok(ordinary.map(info).collect())
    }

    /// Closes one of [`channels`](Self::channels); what is ours in it becomes coins. Together with
    /// the LSP that takes the blocks a closing is to be deep, alone the channel's delay; then a
    /// transaction of ours collects it. `channel_busy` while the LSP is away, or for a moment while
    /// the channel changes: try again.
    pub fn close_channel(&self, channel: &str, how: Closing) -> Result<(), WalletError> {
        let node = self.node.get()?;
        let states = node.host.channel_states().into_iter();
        let mut ordinary = states.filter(|state| state.slot.is_none());
        let state = ordinary.find(|state| state.channel.to_string() == channel);
        let state = state.ok_or_else(|| ChannelError::NoChannel(channel.to_owned()))?;
        match how {
            Closing::Together => node
                .host
                .close_ordinary_channel(state.channel, state.peer)?,
            Closing::Alone => node
                .host
                .force_close_ordinary_channel(state.channel, state.peer)?,
        }
        Ok(())
    }

    /// Reads an invoice. `amount_msat` is for invoices without an amount.
    pub fn prepare_send(
        &self,
        invoice: &str,
        amount_msat: Option<u64>,
    ) -> Result<SendQuote, WalletError> {
        let node = self.node.get()?;
        let invoice = parse(invoice)?;
        let amount_msat = invoice
            .amount_milli_satoshis()
            .or(amount_msat)
            .ok_or(PayError::InvalidAmount)?;
        Ok(SendQuote {
            amount_msat,
            payee: invoice.get_payee_pub_key().to_string(),
            description: invoice.description().to_string(),
            expires_in_secs: invoice
                .expires_at()
                .and_then(|end| end.checked_sub(now()))
                .map_or(0, |left| left.as_secs()),
            affordable: super::Balance::of(&node).spendable_msat >= amount_msat,
        })
    }

    /// Begins to pay an invoice and returns the payment's hash; how it ends is an event and in
    /// [`payment`](Self::payment).
    pub async fn send(
        &self,
        invoice: &str,
        amount_msat: Option<u64>,
    ) -> Result<String, WalletError> {
        let node = self.node.get()?;
        let quote = self.prepare_send(invoice, amount_msat)?;
        let parsed = parse(invoice)?;
        let hash = hex::encode(parsed.payment_hash().0);
        if let Some(known) = node.payments.get(&hash)?
            && known.direction == Direction::Outbound
            && known.is_under_way(&node.host)
        {
            return Err(PayError::Duplicate.into());
        }
        // Written first: an answer of LDK may come before this call returns.
        let payment = Payment::begin(
            hash.clone(),
            Direction::Outbound,
            Some(quote.amount_msat),
            Some(invoice.to_owned()),
        );
        node.payments.record(&payment)?;
        let given = match parsed.amount_milli_satoshis() {
            Some(_) => None,
            None => amount_msat,
        };
        if let Err(error) = node.host.pay(invoice, given) {
            let failed = Payment {
                status: crate::payments::PaymentStatus::Failed,
                ..payment
            };
            node.payments.record(&failed)?;
            return Err(error.into());
        }
        Ok(hash)
    }

    /// One payment by its hash.
    pub fn payment(&self, payment_hash: &str) -> Result<Option<Payment>, WalletError> {
        Ok(self.node.get()?.payments.get(payment_hash)?)
    }

    /// All payments, newest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) names one that cannot be read; the
    /// others are had one by one, and nothing else waits for it.
    pub fn payments(&self) -> Result<Vec<Payment>, WalletError> {
        Ok(self.node.get()?.payments.all()?)
    }
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

fn parse(invoice: &str) -> Result<Bolt11Invoice, WalletError> {
    let parsed = Bolt11Invoice::from_str(invoice.trim());
    parsed.map_err(|error| PayError::InvalidInvoice(error.to_string()).into())
}

/// Coins.
#[derive(Clone)]
pub struct Onchain {
    node: NodeHandle,
}

/// Coins by what can be done with them, in satoshi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnchainCoins {
    /// Free to spend.
    pub spendable_sat: u64,
    /// Reserved for fundings and exits.
    pub reserved_sat: u64,
    /// Unconfirmed or immature.
    pub pending_sat: u64,
}

impl Onchain {
    pub(crate) fn new(node: NodeHandle) -> Onchain {
        Onchain { node }
    }

    /// A fresh address.
    pub fn address(&self) -> Result<String, WalletError> {
        Ok(self.node.get()?.onchain.address()?.to_string())
    }

    /// Coins.
    pub fn balance(&self) -> Result<OnchainCoins, WalletError> {
        let coins = self.node.get()?.onchain.balance();
        Ok(OnchainCoins {
            spendable_sat: coins.spendable.to_sat(),
            reserved_sat: coins.reserved.to_sat(),
            pending_sat: (coins.total() - coins.spendable - coins.reserved).to_sat(),
        })
    }

    /// Sends coins; `feerate` in sat/vB, by estimate if absent. Gives the transaction's id.
    pub async fn send(
        &self,
        address: &str,
        amount_sat: u64,
        feerate: Option<u64>,
    ) -> Result<String, WalletError> {
        let wrong = |problem: String| WalletError::Argument {
            argument: "address",
            problem,
        };
        let node = self.node.get()?;
        let address = Address::<NetworkUnchecked>::from_str(address)
            .map_err(|error| wrong(error.to_string()))?
            .require_network(node.keys.network())
            .map_err(|error| wrong(error.to_string()))?;
        let feerate = match feerate {
            None => node.chain.fees().within(6),
            Some(rate) => FeeRate::from_sat_per_vb(rate).ok_or(WalletError::Argument {
                argument: "feerate",
                problem: "too high".to_owned(),
            })?,
        };
        let script = address.script_pubkey();
        let amount = Amount::from_sat(amount_sat);
        let tx = node.onchain.send(script, amount, feerate).await?;
        Ok(tx.compute_txid().to_string())
    }
}

/// What a wallet wants of a place in a factory, and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Least capacity of the channel in satoshi; 0 leaves it to the LSP.
    pub capacity_sat: u64,
    /// Who may be paid at expiry if nobody does anything. Under [`Policy::LspReclaims`] the wallet
    /// leaves by itself in time, and has to be running then.
    #[serde(default = "standard_policies")]
    pub policies: Vec<Policy>,
    /// Blocks of CLTV that those who pay this wallet allow a route in total. Ordinary LDK payers
    /// allow 1,008, LND and CLN 2,016, the most there can be.
    #[serde(default = "standard_route_limit")]
    pub route_limit_blocks: u32,
}

fn standard_policies() -> Vec<Policy> {
    vec![Policy::MembersReclaim]
}

fn standard_route_limit() -> u32 {
    DEFAULT_ROUTE_LIMIT_BLOCKS
}

impl JoinRequest {
    /// The standard: the members are paid at expiry, ordinary payers can pay.
    pub fn standard(capacity_sat: u64) -> JoinRequest {
        JoinRequest {
            capacity_sat,
            policies: standard_policies(),
            route_limit_blocks: DEFAULT_ROUTE_LIMIT_BLOCKS,
        }
    }
}

/// How long an LSP may think about a price.
const QUOTE_TIMEOUT: Duration = Duration::from_secs(30);

/// Factories.
#[derive(Clone)]
pub struct Factories {
    node: NodeHandle,
    lsp: PublicKey,
}

impl Factories {
    pub(crate) fn new(node: NodeHandle, lsp: PublicKey) -> Factories {
        Factories { node, lsp }
    }

    /// All factories, those that came to nothing included.
    pub async fn list(&self) -> Result<Vec<FactoryInfo>, WalletError> {
        Ok(self.node.get()?.engine.ask(Command::List).await?)
    }

    /// Asks the LSP for a place with at least this capacity, 0 leaving it to the LSP, and accepts
    /// an offer within the standard limits (see [`WalletLimits::standard`]). What becomes of it
    /// are events; an offer outside the limits is one too, with the field that was wrong.
    pub async fn join(&self, capacity_sat: u64) -> Result<(), WalletError> {
        self.join_with(JoinRequest::standard(capacity_sat)).await
    }

    /// [`join`](Self::join) with other limits than the standard ones.
    pub async fn join_with(&self, request: JoinRequest) -> Result<(), WalletError> {
        let node = self.node.get()?;
        let capacity = Amount::from_sat(request.capacity_sat);
        let limits = WalletLimits {
            policies: request.policies.into_iter().map(Into::into).collect(),
            ..WalletLimits::standard(node.keys.network())
        };
        let limits = limits
            .wanting(capacity)
            .payable_within(request.route_limit_blocks);
        let lsp = self.lsp;
        let joined = node.engine.ask(|answer| Command::Seek {
            lsp,
            capacity,
            limits: Box::new(limits),
            answer,
        });
        Ok(joined.await??)
    }

    /// Asks the LSP what a channel of `capacity_sat` more to receive on costs. It comes out of the
    /// stock beside our own channel in this factory: no on-chain transaction, no neighbour, no wait.
    /// [`FactoryInfo::seats`] says how much there is. A price above `max_price_msat` is refused.
    ///
    /// # Errors
    /// `not_connected`, `no_tower`, `nothing_to_buy`, `not_sold` with the reason and what could be sold,
    /// `quote_refused` for a price above the limit, `no_answer`, and why nothing can be bought as
    /// things stand.
    pub async fn quote_inbound(
        &self,
        factory: &str,
        capacity_sat: u64,
        max_price_msat: u64,
    ) -> Result<InboundQuote, WalletError> {
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node.engine.ask(|answer| Command::AskPrice {
            factory,
            amount: Amount::from_sat(capacity_sat),
            max_price_msat,
            answer,
        });
        let silent = |_| EngineError::NoAnswer {
            seconds: QUOTE_TIMEOUT.as_secs(),
        };
        let answered = tokio::time::timeout(QUOTE_TIMEOUT, asked).await;
        Ok(answered.map_err(silent)???)
    }

    /// Says what this wallet agrees to when its LSP gives its place in a factory a new epoch. Unless
    /// it says otherwise it stays, and its new channel is no smaller than what it has. It holds for an
    /// epoch under way as well, until the wallet has signed that: its place is `committed` then.
    ///
    /// # Errors
    /// `unknown_factory`.
    pub async fn set_epoch_consent(
        &self,
        factory: &str,
        consent: EpochConsent,
    ) -> Result<(), WalletError> {
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node.engine.ask(|answer| {
            Command::Epoch(EpochCommand::Consent {
                factory,
                consent,
                answer,
            })
        });
        Ok(asked.await??)
    }

    /// Accepts a quote. From here on the channel is made by itself, also over restarts:
    /// [`InboundDelivered`](crate::Event::InboundDelivered) says that it can receive,
    /// [`InboundPaid`](crate::Event::InboundPaid) that its price was paid, after that and never
    /// before.
    ///
    /// # Errors
    /// `cannot_pay` where our side of the channels is worth less than the price, `no_quote` and
    /// `quote_expired` for one that cannot be accepted any more.
    pub async fn buy_inbound(&self, quote: &InboundQuote) -> Result<(), WalletError> {
        let node = self.node.get()?;
        let (factory, quote) = (quote.factory.clone(), quote.quote.clone());
        let bought = node.engine.ask(|answer| Command::Buy {
            factory,
            quote,
            answer,
        });
        Ok(bought.await??)
    }

    /// The own path of a factory in its newest epoch, node by node.
    pub async fn tree(&self, factory: &str) -> Result<Vec<TreeNodeInfo>, WalletError> {
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node.engine.ask(|answer| Command::Tree { factory, answer });
        Ok(asked.await??)
    }
}

/// Leaving alone: any time, asking nobody, without a coin.
///
/// [`plan`](Self::plan) says what it costs and brings; [`start`](Self::start) begins a job that
/// survives restarts and goes on by itself; [`status`](Self::status) says how far it is.
#[derive(Clone)]
pub struct Exit {
    node: NodeHandle,
}

impl Exit {
    pub(crate) fn new(node: NodeHandle) -> Exit {
        Exit { node }
    }

    /// What leaving this factory costs, how long it takes and what arrives.
    pub async fn plan(&self, factory: &str) -> Result<ExitPlan, WalletError> {
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node
            .engine
            .ask(|answer| Command::PlanExit { factory, answer });
        Ok(asked.await??)
    }

    /// Begins to leave. The channel carries nothing from then on. Starting again changes nothing.
    ///
    /// # Errors
    /// `unknown_factory`, `no_path`, `no_distributions`; `unconfirmed_state` in a restored wallet
    /// whose LSP has not confirmed the state yet, see
    /// [`accept_restored_state`](Self::accept_restored_state).
    pub async fn start(&self, factory: &str, mode: ExitMode) -> Result<(), WalletError> {
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node.engine.ask(|answer| Command::StartExit {
            factory,
            reason: "asked for".to_owned(),
            mode,
            answer,
        });
        Ok(asked.await??)
    }

    /// Takes a restored state for the newest although no LSP has confirmed that it is, so that it
    /// can be left. If it is an older one, which a dishonest backup store can give, the LSP may take
    /// the whole channel: for when the LSP is gone for good, and the store is to be trusted.
    pub async fn accept_restored_state(&self) -> Result<(), WalletError> {
        let node = self.node.get()?;
        Ok(node.engine.ask(Command::AcceptState).await??)
    }

    /// Wants at least `feerate` (sat/vB) for what the exit publishes from now on. Own coins pay it,
    /// through children on the transactions' anchors and within
    /// [`FeeCaps`](crate::FeeCaps); what comes of it is in [`status`](Self::status).
    ///
    /// # Errors
    /// `feerate_above_cap`, and `no_exit` where none has begun.
    pub async fn speed_up(&self, factory: &str, feerate: u64) -> Result<(), WalletError> {
        let feerate = FeeRate::from_sat_per_vb(feerate).ok_or(WalletError::Argument {
            argument: "feerate",
            problem: "too high".to_owned(),
        })?;
        let factory = factory.to_owned();
        let node = self.node.get()?;
        let asked = node.engine.ask(|answer| Command::SpeedUpExit {
            factory,
            feerate,
            answer,
        });
        Ok(asked.await??)
    }

    /// The ways out of all factories as one file, encrypted with `passphrase`: what the program
    /// `exit-runner` needs to bring the leaves on chain when nothing else is left. It holds signed
    /// tree transactions; no key, no commitment, nothing that could be used against this wallet.
    /// Export again after joining another factory or buying a channel.
    ///
    /// # Errors
    /// `nothing_to_export` without a complete factory; `invalid_argument` for an empty passphrase.
    pub async fn export_package(&self, passphrase: &str) -> Result<Vec<u8>, WalletError> {
        let node = self.node.get()?;
        let paths = node.engine.ask(Command::ExportPaths).await??;
        let package = ExitPackage::new(paths).ok_or(PackageError::NoPath)?;
        let ([random, nonce], passphrase) = (
            [0; 2].map(|_: u8| node.host.random_bytes()),
            Zeroizing::new(passphrase.to_owned()),
        );
        let mut fresh = Freshness {
            salt: [0; 16],
            nonce: [0; 24],
        };
        fresh.salt.copy_from_slice(&random[..16]);
        fresh.nonce.copy_from_slice(&nonce[..24]);
        // Deriving the key takes memory and a moment, which no other task should wait for.
        let sealing = tokio::task::spawn_blocking(move || seal(&package, &passphrase, fresh));
        let sealed = sealing.await.map_err(|_| EngineError::Stopped)?;
        Ok(sealed?)
    }

    /// All exits that were begun.
    pub async fn status(&self) -> Result<Vec<ExitInfo>, WalletError> {
        Ok(self.node.get()?.engine.ask(Command::Exits).await??)
    }
}

/// The backup of the wallet.
#[derive(Clone)]
pub struct Backup {
    node: NodeHandle,
}

impl Backup {
    pub(crate) fn new(node: NodeHandle) -> Backup {
        Backup { node }
    }

    /// How it stands, also when another device has taken the wallet over; `None` without a backup.
    ///
    /// # Errors
    /// [`WalletError::Stopped`].
    pub fn status(&self) -> Result<Option<BackupStatus>, WalletError> {
        let node = self.node.last().ok_or(WalletError::Stopped)?;
        Ok(node.backup())
    }
}
