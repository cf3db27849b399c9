//! Channels sold out of a member's stock, as a node carries them out: prices asked for, bills paid,
//! payments recognised, and the bought channels of a place.
//!
//! What always holds: nothing is asked for, signed or opened in a factory whose kickoff is in
//! mempool or chain; a bill is paid once, to the LSP that wrote it, and for no more than its price.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use bitcoin::Amount;
use lightning_invoice::Bolt11Invoice;
use serde::{Deserialize, Serialize};
use superscalar_factory::coordinator::{self, Coordinator};
use superscalar_factory::effect::{
    Bill, BoughtChannel, ChannelRef, Effect, QuoteBacking, QuoteWanted, SlotRef,
};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Attempt, NoSaleReason, RefusalCode, SaleId, SaleTerms};
use superscalar_factory::sale::Ask;
use superscalar_factory::stock::{Sellable, StockChain};
use superscalar_factory::tree::Tree;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::bridge::{self, ChannelKind};
use super::effects::{Failure, still_possible};
use super::engine::Engine;
use super::error::EngineError;
use crate::chain::OutPointStatus;
use crate::hosting::SlotPhase;
use crate::payments::{Direction, Payment, PaymentStatus};
use crate::store::StoreError;

/// A block's time, for an invoice that must be payable until a height.
const BLOCK_SECS: u32 = 600;
/// BOLT 11 writes seconds; no invoice needs to live longer than the longest factory.
const MAX_INVOICE_SECS: u32 = 2 * 365 * 24 * 3_600;
/// How long after a try what is owed is tried again, twice as long after each.
const PAY_AGAIN: Duration = Duration::from_secs(1);
const PAY_AGAIN_AT_LAST: Duration = Duration::from_secs(64);

/// What the LSP asks for a channel. Accepting it is
/// [`Factories::buy_inbound`](crate::Factories::buy_inbound).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// One who waits for a price.
pub(super) type PriceAnswer = oneshot::Sender<Result<InboundQuote, EngineError>>;

/// What a node remembers of sales beside what its roles do.
#[derive(Default)]
pub(super) struct Sales {
    asking: BTreeMap<Attempt, PriceAnswer>,
    /// What is owed and not paid yet.
    bills: BTreeMap<[u8; 32], (Attempt, Bill)>,
    /// When that is tried again, and how long that is after the try before.
    again: Option<Instant>,
    wait: Duration,
    /// Factories somebody has begun to open.
    opened: BTreeSet<Attempt>,
    /// An LSP's: the hash of each place's newest bill.
    quoted: BTreeMap<SlotRef, [u8; 32]>,
    /// For which channels an equivocation was told, once until the next start.
    pub(super) equivocated: BTreeSet<ChannelRef>,
}

impl Sales {
    /// When something of this is to be looked at again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.again
    }

    /// What is owed could not be paid: a channel may carry nothing yet, or too little.
    fn pay_later(&mut self) {
        self.wait = (self.wait * 2).clamp(PAY_AGAIN, PAY_AGAIN_AT_LAST);
        self.again = Some(Instant::now() + self.wait);
    }
}

impl Engine {
    /// A member's: asks its LSP what a channel costs. `answer` gets the quote, or why there is none.
    pub(super) async fn ask_price(
        &mut self,
        factory: &str,
        amount: Amount,
        max_price_msat: u64,
        answer: PriceAnswer,
    ) {
        match self.asked_price(factory, amount, max_price_msat).await {
            Ok(attempt) => {
                if let Some(before) = self.sales.asking.insert(attempt, answer) {
                    let _ = before.send(Err(EngineError::AskedAgain));
                }
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    async fn asked_price(
        &mut self,
        factory: &str,
        amount: Amount,
        max_price_msat: u64,
    ) -> Result<Attempt, EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        let role = self.members.get(&attempt).ok_or_else(unknown)?;
        let lsp = role.lsp();
        if !self.parts.host.is_connected(&lsp) {
            return Err(EngineError::NotConnected { peer: lsp });
        }
        let id = role.next_channel();
        let id = id.ok_or_else(|| EngineError::NothingToBuy {
            factory: factory.to_owned(),
        })?;
        let ask = Ask {
            amount,
            max_price_msat,
            funding_key: self.parts.host.funding_pubkey(&bridge::channel_id(&id)),
            guard: self.guard(),
        };
        self.check_towers()?;
        self.look_whether_opened(attempt).await;
        let role = self.members.get_mut(&attempt).ok_or(EngineError::Stopped)?;
        let effects = role.ask(ask)?;
        self.queue(attempt, effects);
        Ok(attempt)
    }

    /// A member's: signs what was quoted.
    pub(super) async fn buy(&mut self, factory: &str, quote: &str) -> Result<(), EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        let role = self.members.get(&attempt).ok_or_else(unknown)?;
        let no_quote = || superscalar_factory::sale::BuyError::NoQuote;
        let bytes = hex::decode(quote).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        let sale = SaleId(bytes.ok_or_else(no_quote)?);
        let price_msat = role.quoted(sale).ok_or_else(no_quote)?.price_msat;
        let spendable_msat = self.spendable_msat(&role.lsp());
        if price_msat > spendable_msat {
            return Err(EngineError::CannotPay {
                price_msat,
                spendable_msat,
            });
        }
        self.check_towers()?;
        self.look_whether_opened(attempt).await;
        let randomness = self.parts.host.random_bytes();
        let role = self.members.get_mut(&attempt).ok_or(EngineError::Stopped)?;
        let effects = role.accept(sale, &randomness)?;
        self.queue(attempt, effects);
        Ok(())
    }

    fn spendable_msat(&self, peer: &bitcoin::secp256k1::PublicKey) -> u64 {
        let channels = self.parts.host.channel_states();
        let ours = channels.iter().filter(|it| {
            let active = it.phase.is_none_or(|phase| phase == SlotPhase::Active);
            it.peer == *peer && active && it.is_usable
        });
        ours.map(|it| it.outbound_capacity_msat).sum()
    }

    /// Carries out what a sale asks for.
    pub(super) async fn sell(&mut self, attempt: Attempt, effect: Effect) -> Result<(), Failure> {
        let host = &self.parts.host;
        match effect {
            Effect::PrepareQuote(wanted) => self.prepare_quote(attempt, wanted).await?,
            Effect::NeedRandomness(id) => {
                self.look_whether_opened(attempt).await;
                let randomness = self.parts.host.random_bytes();
                self.member(attempt, |_| member::Input::SaleRandomness {
                    id,
                    randomness,
                });
            }
            Effect::AgreeBought(bought) => self.agree_bought(&bought)?,
            Effect::OpenBought(id) => {
                self.look_whether_opened(attempt).await;
                if !self.sales.opened.contains(&attempt) {
                    self.open_channel(&bridge::channel_id(&id));
                }
            }
            Effect::ActivateBought(id) => {
                let activated = host.activate(&bridge::channel_id(&id));
                still_possible(activated, "the bought channel was not activated")?;
            }
            Effect::SuspendBought(id) => {
                let frozen = host.freeze(&bridge::channel_id(&id));
                still_possible(frozen, "the bought channel was not frozen")?;
            }
            Effect::Pay(bill) => {
                self.sales.bills.insert(bill.payment_hash, (attempt, bill));
                self.sales.wait = Duration::ZERO;
                self.pay_bills().await;
            }
            other => {
                let error = format!("an effect this node does not know: {other:?}");
                return Err(Failure::Never(error));
            }
        }
        Ok(())
    }

    fn agree_bought(&self, bought: &BoughtChannel) -> Result<(), Failure> {
        let channel = bridge::bought(bought, self.parts.is_lsp);
        let (host, slot) = (&self.parts.host, channel.slot);
        // Whoever else holds its keys or its output keeps them: this one is never opened then.
        still_possible(host.agree_slot(channel), "a sale's channel was refused")?;
        if host.slot(&slot).map(|entry| entry.phase) == Some(SlotPhase::Agreed) {
            still_possible(host.allow_signing(&slot), "the bought channel cannot open")?;
        }
        Ok(())
    }

    /// An LSP's: invoice, key and randomness of a quote.
    async fn prepare_quote(
        &mut self,
        attempt: Attempt,
        wanted: QuoteWanted,
    ) -> Result<(), StoreError> {
        self.look_whether_opened(attempt).await;
        let host = &self.parts.host;
        let mut backing = QuoteBacking {
            funding_key: host.funding_pubkey(&bridge::channel_id(&wanted.id)),
            payment_hash: [0; 32],
            invoice: String::new(),
            randomness: host.random_bytes(),
        };
        if wanted.price_msat > 0 {
            // Without an invoice the role answers that nothing can be sold now.
            if let Some((hash, invoice)) = self.bill_of(&wanted)? {
                (backing.payment_hash, backing.invoice) = (hash, invoice);
            }
        }
        self.coordinator(
            attempt,
            coordinator::Input::QuotePrepared { wanted, backing },
        );
        Ok(())
    }

    /// A new invoice for a quote, or the one it had.
    fn bill_of(&mut self, wanted: &QuoteWanted) -> Result<Option<([u8; 32], String)>, StoreError> {
        let payments = &self.parts.payments;
        if let Some(hash) = wanted.payment_hash {
            let known = payments.get(&hex::encode(hash))?;
            return Ok(known
                .and_then(|it| it.invoice)
                .map(|invoice| (hash, invoice)));
        }
        let place = wanted.id.slot;
        let role = self.coordinators.get(&place.attempt);
        let Some(role) = role else { return Ok(None) };
        let (Some(peer), Some(built)) = (role.peers().get(usize::from(place.slot)), role.built())
        else {
            return Ok(None);
        };
        // Whoever has accepted may pay for as long as the factory lives.
        let life_blocks = built.terms.header.expiry.saturating_sub(self.tip);
        let seconds = life_blocks.saturating_mul(BLOCK_SECS).min(MAX_INVOICE_SECS);
        let description = format!("a channel of {} sat", wanted.amount.to_sat());
        let made = self
            .parts
            .host
            .invoice_of_peer(peer, wanted.price_msat, &description, seconds);
        let invoice = match made {
            Ok(invoice) => invoice,
            Err(error) => {
                tracing::warn!(%peer, %error, "no invoice for a quote");
                return Ok(None);
            }
        };
        let (hash, text) = (invoice.payment_hash().0, invoice.to_string());
        payments.record(&Payment::begin(
            hex::encode(hash),
            Direction::Inbound,
            Some(wanted.price_msat),
            Some(text.clone()),
        ))?;
        // A place has one quote: nobody who is honest accepts the one before.
        if let Some(before) = self.sales.quoted.insert(place, hash)
            && !role.owed().contains(&before)
        {
            let before = hex::encode(before);
            let unpaid = payments.get(&before)?;
            if unpaid.is_some_and(|it| it.status == PaymentStatus::Pending) {
                payments.forget(&before)?;
            }
        }
        Ok(Some((hash, text)))
    }

    /// A member's: pays what is owed, and tells what was paid already. For a channel in a factory
    /// that somebody opens nothing is paid any more.
    pub(super) async fn pay_bills(&mut self) {
        self.sales.again = None;
        for (hash, (attempt, bill)) in self.sales.bills.clone() {
            self.look_whether_opened(attempt).await;
            if self.sales.opened.contains(&attempt) {
                self.sales.bills.remove(&hash);
                continue;
            }
            match self.pay_bill(&bill) {
                Ok(PaymentStatus::Succeeded) => {
                    self.sales.bills.remove(&hash);
                    let channel = bill.id;
                    self.member(attempt, |_| member::Input::SalePaid(channel));
                }
                Ok(_) => {}
                Err(error) => {
                    let factory = bridge::name(&attempt);
                    tracing::warn!(factory, error, "a channel is not paid for yet");
                    self.sales.pay_later();
                }
            }
        }
    }

    /// A payment was given up: what is owed is tried again.
    pub(super) fn not_paid(&mut self, payment_hash: Option<[u8; 32]>) {
        if payment_hash.is_some_and(|hash| self.sales.bills.contains_key(&hash)) {
            self.sales.pay_later();
        }
    }

    /// It is time to pay what could not be paid before.
    pub(super) async fn bills_over(&mut self, now: Instant) {
        if self.sales.again.is_some_and(|again| again <= now) {
            self.pay_bills().await;
        }
    }

    fn pay_bill(&self, bill: &Bill) -> Result<PaymentStatus, String> {
        let payments = &self.parts.payments;
        let hash = hex::encode(bill.payment_hash);
        let known = payments.get(&hash).map_err(|error| error.to_string())?;
        let known = known.filter(|it| it.direction == Direction::Outbound);
        if let Some(payment) = known.filter(|it| it.is_under_way(&self.parts.host)) {
            return Ok(payment.status);
        }
        let invoice = Bolt11Invoice::from_str(&bill.invoice).map_err(|error| error.to_string())?;
        let lsp = self
            .members
            .get(&bill.id.slot.attempt)
            .map(|role| role.lsp());
        if invoice.payment_hash().0 != bill.payment_hash
            || invoice.amount_milli_satoshis() != Some(bill.price_msat)
            || Some(invoice.get_payee_pub_key()) != lsp
        {
            return Err("the invoice is not what was quoted".to_owned());
        }
        let payment = Payment::begin(
            hash,
            Direction::Outbound,
            Some(bill.price_msat),
            Some(bill.invoice.clone()),
        );
        // Written first: an answer of LDK may come before this call returns.
        payments
            .record(&payment)
            .map_err(|error| error.to_string())?;
        match self.parts.host.pay(&bill.invoice, None) {
            Ok(_) | Err(crate::hosting::PayError::Duplicate) => Ok(PaymentStatus::Pending),
            Err(error) => {
                let failed = Payment {
                    status: PaymentStatus::Failed,
                    ..payment
                };
                payments
                    .record(&failed)
                    .map_err(|error| error.to_string())?;
                Err(error.to_string())
            }
        }
    }

    /// A payment to an LSP may be one for a channel.
    pub(super) fn paid_to_us(&mut self, payment_hash: [u8; 32]) {
        let attempts: Vec<Attempt> = self.coordinators.keys().copied().collect();
        for attempt in attempts {
            self.coordinator(attempt, coordinator::Input::SalePaid { payment_hash });
        }
    }

    /// Both sides hold a bought channel.
    pub(super) async fn bought_held(&mut self, id: ChannelRef) {
        let attempt = id.slot.attempt;
        // What follows for an LSP is the final signature.
        self.look_whether_opened(attempt).await;
        self.member(attempt, |_| member::Input::BoughtHeld(id));
        self.coordinator(attempt, coordinator::Input::BoughtHeld(id));
    }

    /// A bought channel is closed that was not delivered: nothing more is sold in its place before
    /// the next epoch.
    pub(super) fn bought_lost(&mut self, id: ChannelRef) {
        let attempt = id.slot.attempt;
        self.member(attempt, |_| member::Input::BoughtLost(id));
        self.coordinator(attempt, coordinator::Input::BoughtLost(id));
    }

    /// After a start: what may have happened without being written into a journal.
    pub(super) async fn resume_sales(&mut self) {
        let owed = self.coordinators.values().flat_map(Coordinator::owed);
        for hash in owed.collect::<Vec<_>>() {
            let known = self.parts.payments.get(&hex::encode(hash));
            match known {
                Ok(Some(payment)) if payment.status == PaymentStatus::Succeeded => {
                    self.paid_to_us(hash);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a payment for a channel is not known"),
            }
        }
    }

    /// Tells the roles of a factory whose kickoff is in mempool or chain.
    pub(super) async fn look_whether_opened(&mut self, attempt: Attempt) {
        let Some(funding) = self.funding_of(&attempt) else {
            return;
        };
        match self.parts.chain.outpoint_status(funding).await {
            Ok(OutPointStatus::Unspent) => {}
            Ok(_) => self.tree_seen(attempt),
            // What the source cannot say now is asked again before anything is signed for.
            Err(error) => tracing::warn!(%error, "whether a factory is opened is not known"),
        }
    }

    /// With every block: the same by what blocks say.
    pub(super) fn look_for_openings(&mut self) {
        let watcher = self.parts.chain.watcher();
        let opened = self.attempts().into_iter().filter(|attempt| {
            let funding = self.funding_of(attempt);
            funding.is_some_and(|funding| watcher.spend(&funding).is_some())
        });
        for attempt in opened.collect::<Vec<_>>() {
            self.tree_seen(attempt);
        }
    }

    fn tree_seen(&mut self, attempt: Attempt) {
        if self.sales.opened.insert(attempt) {
            self.member(attempt, |_| member::Input::TreeSeen);
            self.coordinator(attempt, coordinator::Input::TreeSeen);
        }
    }

    /// Whether somebody has begun to open the factory.
    pub(super) fn is_opened(&self, attempt: &Attempt) -> bool {
        self.sales.opened.contains(attempt)
    }

    pub(super) fn funding_of(&self, attempt: &Attempt) -> Option<bitcoin::OutPoint> {
        let member = self.members.get(attempt).and_then(Member::tree);
        let built = || self.coordinators.get(attempt)?.built();
        let tree = member.or_else(|| built().map(|built| &built.tree));
        tree.map(|tree| tree.funding)
    }

    /// Looks at everything that sales and new epochs have added.
    pub(super) fn watch_sales(&self, attempt: &Attempt) -> Result<(), StoreError> {
        let mut outpoints = Vec::new();
        if let Some(role) = self.coordinators.get(attempt) {
            outpoints.extend(role.outpoints());
            let chains = role.stock_chains();
            let sold = chains.iter().flat_map(StockChain::links);
            outpoints.extend(sold.map(|sold| sold.link().channel));
        }
        if let Some(role) = self.members.get(attempt) {
            if let Ok(path) = self.signed_path(&bridge::name(attempt)) {
                outpoints.extend(path.watched());
            }
            outpoints.extend(role.newer_trees().flat_map(Tree::outpoints));
            let retired = role.retired_stock().into_iter();
            let retired = retired.flat_map(|(chain, _)| chain.stocks().map(|it| it.outpoint()));
            outpoints.extend(retired);
        }
        self.parts.chain.watcher().watch_outpoints(&outpoints)
    }

    /// Whether a bought channel is a part of what its place holds: delivered, so that its output
    /// is on chain with the leaf.
    pub(super) fn is_delivered(&self, id: &ChannelRef) -> bool {
        let place = &id.slot;
        let links = if let Some(role) = self.coordinators.get(&place.attempt) {
            role.stock_chain(place.slot)
                .map_or(0, |chain| chain.links().len())
        } else if let Some(role) = self.members.get(&place.attempt) {
            role.stock_chain().map_or(0, |chain| chain.links().len())
        } else {
            0
        };
        // The stock of an older epoch is not asked for here.
        let newest = self.version_of(place) == Some(id.version);
        newest && bridge::kind(id) == ChannelKind::Bought && links >= id.seq as usize
    }

    /// Answers whoever asked for a price.
    pub(super) fn quoted(&mut self, attempt: Attempt, sale: SaleId, terms: &SaleTerms) {
        if let Some(answer) = self.sales.asking.remove(&attempt) {
            let _ = answer.send(Ok(InboundQuote {
                quote: hex::encode(sale.0),
                factory: bridge::name(&attempt),
                capacity_sat: terms.amount.to_sat(),
                price_msat: terms.price_msat,
                valid_until_height: terms.valid_until,
            }));
        }
    }

    /// A wrong or too dear quote was refused: whoever asked for it is told.
    pub(super) fn quote_refused(&mut self, attempt: Attempt, code: RefusalCode, field: &str) {
        if let Some(answer) = self.sales.asking.remove(&attempt) {
            let _ = answer.send(Err(EngineError::QuoteRefused {
                code,
                field: field.to_owned(),
            }));
        }
    }

    /// The same where there is none.
    pub(super) fn not_sold(
        &mut self,
        attempt: Attempt,
        reason: NoSaleReason,
        least: Amount,
        sellable: &Sellable,
    ) {
        if let Some(answer) = self.sales.asking.remove(&attempt) {
            let _ = answer.send(Err(EngineError::NotSold {
                reason,
                least_sat: least.to_sat(),
                up_to_sat: sellable.up_to.to_sat(),
                whole_sat: sellable.whole.to_sat(),
            }));
        }
    }
}
