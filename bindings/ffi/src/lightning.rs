//! Invoices and payments.

use std::sync::Arc;

use superscalar_sdk as sdk;

use crate::error::WalletError;
use crate::runtime;

/// Invoices and payments.
#[derive(uniffi::Object)]
pub struct Lightning {
    wallet: Arc<sdk::Wallet>,
}

/// What a payment will do, before it is begun.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
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

/// What a channel opened for a payment costs.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct JitQuote {
    /// What the payer pays.
    pub amount_msat: u64,
    /// What the LSP keeps of it.
    pub fee_msat: u64,
    /// Seconds since 1970 until which the price holds.
    pub valid_until: u64,
    /// Blocks for which the LSP will not close the channel.
    pub min_lifetime_blocks: u32,
}

/// An invoice for whose payment a channel is opened.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct JitInvoice {
    /// The BOLT11 invoice.
    pub invoice: String,
    /// What the channel costs.
    pub quote: JitQuote,
}

/// A channel of ours that lives in no factory.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Closing {
    /// The LSP must be there, and sign.
    Together,
    /// By our own commitment.
    Alone,
}

/// Which way money goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Direction {
    /// To us.
    Inbound,
    /// From us.
    Outbound,
}

/// How far a payment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum PaymentStatus {
    /// An invoice that is not paid, or a payment on its way.
    Pending,
    /// Done, for good.
    Succeeded,
    /// Failed for good; nothing was paid.
    Failed,
}

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Payment {
    /// Its hash, hex.
    pub payment_hash: String,
    /// Which way.
    pub direction: Direction,
    /// How far.
    pub status: PaymentStatus,
    /// Amount without fees; for an unpaid invoice without amount, unknown.
    pub amount_msat: Option<u64>,
    /// Routing fee, once known.
    pub fee_msat: Option<u64>,
    /// Proof of payment, hex, once known.
    pub preimage: Option<String>,
    /// The invoice.
    pub invoice: Option<String>,
    /// Seconds since 1970 at which it began.
    pub created_at: u64,
}

#[uniffi::export]
impl Lightning {
    /// A BOLT11 invoice payable to this wallet; no amount leaves it to the payer.
    #[uniffi::method(default(description = "", expiry_secs = 3600))]
    pub async fn receive(
        &self,
        amount_msat: Option<u64>,
        description: String,
        expiry_secs: u32,
    ) -> Result<String, WalletError> {
        let lightning = self.wallet.lightning();
        let receive = async move {
            lightning
                .receive(amount_msat, &description, expiry_secs)
                .await
        };
        runtime::finish(receive).await
    }

    /// What the LSP would keep of a payment of `amount_msat` for opening a channel with it.
    pub async fn quote_jit(&self, amount_msat: u64) -> Result<JitQuote, WalletError> {
        let lightning = self.wallet.lightning();
        let quoted = runtime::finish(async move { lightning.quote_jit(amount_msat).await });
        Ok(quoted.await?.into())
    }

    /// A BOLT11 invoice over `amount_msat` for which the LSP opens an ordinary channel on chain when
    /// it is paid, and keeps its fee: at most `max_fee_msat`, or nothing is bought. Until its funding
    /// has confirmed the channel is the LSP's word.
    #[uniffi::method(default(description = "", expiry_secs = 3600))]
    pub async fn receive_jit(
        &self,
        amount_msat: u64,
        max_fee_msat: u64,
        description: String,
        expiry_secs: u32,
    ) -> Result<JitInvoice, WalletError> {
        let lightning = self.wallet.lightning();
        let bought = runtime::finish(async move {
            let bought =
                lightning.receive_jit(amount_msat, &description, expiry_secs, max_fee_msat);
            bought.await
        });
        Ok(bought.await?.into())
    }

    /// The channels that are on chain by themselves: those that were bought with a payment.
    pub async fn channels(&self) -> Result<Vec<OnchainChannel>, WalletError> {
        let lightning = self.wallet.lightning();
        runtime::compute(move || Ok(lightning.channels()?.into_iter().map(Into::into).collect()))
            .await
    }

    /// Closes one of `channels`; what is ours in it becomes coins. Together with the LSP that takes
    /// the blocks a closing is to be deep, alone the channel's delay; then a transaction of ours
    /// collects it.
    pub async fn close_channel(&self, channel: String, how: Closing) -> Result<(), WalletError> {
        let lightning = self.wallet.lightning();
        runtime::compute(move || lightning.close_channel(&channel, how.into())).await
    }

    /// Reads an invoice. `amount_msat` is for invoices without an amount.
    #[uniffi::method(default(amount_msat = None))]
    pub async fn prepare_send(
        &self,
        invoice: String,
        amount_msat: Option<u64>,
    ) -> Result<SendQuote, WalletError> {
        let lightning = self.wallet.lightning();
        runtime::compute(move || Ok(lightning.prepare_send(&invoice, amount_msat)?.into())).await
    }

    /// Begins to pay an invoice and returns the payment's hash; how it ends is an event and in
    /// `payment`.
    #[uniffi::method(default(amount_msat = None))]
    pub async fn send(
        &self,
        invoice: String,
        amount_msat: Option<u64>,
    ) -> Result<String, WalletError> {
        let lightning = self.wallet.lightning();
        runtime::finish(async move { lightning.send(&invoice, amount_msat).await }).await
    }

    /// One payment by its hash.
    pub async fn payment(&self, payment_hash: String) -> Result<Option<Payment>, WalletError> {
        let lightning = self.wallet.lightning();
        runtime::compute(move || Ok(lightning.payment(&payment_hash)?.map(Into::into))).await
    }

    /// All payments, newest first.
    pub async fn payments(&self) -> Result<Vec<Payment>, WalletError> {
        let lightning = self.wallet.lightning();
        runtime::compute(move || Ok(lightning.payments()?.into_iter().map(Into::into).collect()))
            .await
    }
}

impl Lightning {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Lightning {
        Lightning { wallet }
    }
}

impl From<sdk::JitQuote> for JitQuote {
    fn from(quote: sdk::JitQuote) -> JitQuote {
        let sdk::JitQuote {
            amount_msat,
            fee_msat,
            valid_until,
            min_lifetime_blocks,
        } = quote;
        JitQuote {
            amount_msat,
            fee_msat,
            valid_until,
            min_lifetime_blocks,
        }
    }
}

impl From<sdk::JitInvoice> for JitInvoice {
    fn from(bought: sdk::JitInvoice) -> JitInvoice {
        let sdk::JitInvoice { invoice, quote } = bought;
        JitInvoice {
            invoice,
            quote: quote.into(),
        }
    }
}

impl From<sdk::OnchainChannel> for OnchainChannel {
    fn from(info: sdk::OnchainChannel) -> OnchainChannel {
        let sdk::OnchainChannel {
            channel,
            capacity_sat,
            balance_msat,
            usable,
        } = info;
        OnchainChannel {
            channel,
            capacity_sat,
            balance_msat,
            usable,
        }
    }
}

impl From<Closing> for sdk::Closing {
    fn from(how: Closing) -> sdk::Closing {
        match how {
            Closing::Together => sdk::Closing::Together,
            Closing::Alone => sdk::Closing::Alone,
        }
    }
}

impl From<sdk::SendQuote> for SendQuote {
    fn from(quote: sdk::SendQuote) -> SendQuote {
        let sdk::SendQuote {
            amount_msat,
            payee,
            description,
            expires_in_secs,
            affordable,
        } = quote;
        SendQuote {
            amount_msat,
            payee,
            description,
            expires_in_secs,
            affordable,
        }
    }
}

impl From<sdk::Payment> for Payment {
    fn from(payment: sdk::Payment) -> Payment {
        let sdk::Payment {
            payment_hash,
            direction,
            status,
            amount_msat,
            fee_msat,
            preimage,
            invoice,
            created_at,
        } = payment;
        Payment {
            payment_hash,
            direction: match direction {
                sdk::Direction::Inbound => Direction::Inbound,
                sdk::Direction::Outbound => Direction::Outbound,
            },
            status: match status {
                sdk::PaymentStatus::Pending => PaymentStatus::Pending,
                sdk::PaymentStatus::Succeeded => PaymentStatus::Succeeded,
                sdk::PaymentStatus::Failed => PaymentStatus::Failed,
            },
            amount_msat,
            fee_msat,
            preimage,
            invoice,
            created_at,
        }
    }
}
