//! The seller of sales, as a state machine without I/O; one per factory, owned by its coordinator.
//!
//! What always holds: a place has at most one quote, in memory; for one stock output one final
//! signature is made, recorded before the channel is opened and sent when it is held; our own
//! partial signatures never leave; a place that has not paid is sold nothing more and its channel
//! carries nothing; a sale whose channel was lost is never delivered and keeps nothing but its stock
//! output. A quote that was forgotten comes back signed by ourselves, so nothing is lost with it.

mod hear;
mod replay;

use std::collections::BTreeMap;

use bitcoin::secp256k1::{PublicKey, schnorr};

use super::price::SalePolicy;
use super::sign::{Nonces, Session};
use super::{MAX_QUOTES_PER_BLOCK, MAX_VALID_BLOCKS, bought};
use crate::effect::{BoughtChannel, ChannelRef, Effect, Event, QuoteBacking, QuoteWanted, SlotRef};
use crate::journal::{SaleStep, SaleStepped};
use crate::message::{
    Attempt, MAX_INVOICE_BYTES, Message, NoSale, NoSaleReason, Quote, SaleSig, SaleTerms,
};
use crate::signing::{FactoryKey, SecretNonce};
use crate::stock::{Link, Sellable, StockChain};
use crate::terms::Terms;
use crate::tree::Tree;

/// What the seller is told about its coordinator.
pub(crate) struct Ground<'a> {
    pub(crate) attempt: Attempt,
    pub(crate) peers: &'a [PublicKey],
    pub(crate) terms: &'a Terms,
    pub(crate) tree: &'a Tree,
    pub(crate) key: &'a FactoryKey,
    /// The revocation hash of the stock output of a slot after so many sales.
    pub(crate) stock_hash: &'a dyn Fn(u16, u8) -> [u8; 32],
    pub(crate) tip: u32,
    /// Whether the funding is buried.
    pub(crate) active: bool,
    /// Whether nothing may be sold in a slot, because a new epoch is being made.
    pub(crate) frozen: &'a dyn Fn(u16) -> bool,
}

impl Ground<'_> {
    fn slot(&self, slot: u16) -> SlotRef {
        SlotRef {
            attempt: self.attempt,
            slot,
        }
    }

    fn peer(&self, slot: u16) -> PublicKey {
        self.peers[usize::from(slot)]
    }

    fn life_blocks(&self) -> u32 {
        self.terms.header.expiry.saturating_sub(self.tip)
    }

    fn say(&self, slot: u16, message: impl Into<Message>) -> Effect {
        Effect::Send {
            to: self.peer(slot),
            message: message.into(),
        }
    }
}

/// The sales of one factory.
#[derive(Debug, Default)]
pub(crate) struct Seller {
    policy: Option<SalePolicy>,
    nonces: Nonces,
    opened: bool,
    places: BTreeMap<u16, Place>,
}

/// The sales of one place.
#[derive(Debug, Default)]
struct Place {
    /// Version of the path.
    version: u32,
    /// What was delivered; `None` where the place has no stock.
    chain: Option<StockChain>,
    /// What was agreed for each link of the chain.
    sold: Vec<SaleTerms>,
    /// How many quotes were prepared of late.
    prepared: Prepared,
    /// What the shell prepares.
    request: Option<Request>,
    offer: Option<Box<Offer>>,
    /// Signed and not delivered.
    signed: Option<Box<Signed>>,
    /// Whether the last delivery is not paid for.
    unpaid: bool,
    /// Whether the member said that it has the last delivery.
    stored: bool,
    /// Whether the place's channel is closed.
    ended: bool,
}

/// New quotes of one place at one height: each costs the shell an invoice and a durable row, and
/// asking costs nothing.
#[derive(Debug, Default)]
struct Prepared {
    height: u32,
    quotes: u8,
}

impl Prepared {
    fn count(&mut self, tip: u32) -> Result<(), NoSaleReason> {
        if self.height != tip {
            *self = Prepared {
                height: tip,
                quotes: 0,
            };
        }
        if self.quotes >= MAX_QUOTES_PER_BLOCK {
            return Err(NoSaleReason::TooMany);
        }
        self.quotes += 1;
        Ok(())
    }
}

#[derive(Debug)]
struct Request {
    wanted: QuoteWanted,
    funding_key: PublicKey,
    /// What was promised before, and is to be promised again.
    again: Option<(SaleTerms, schnorr::Signature)>,
}

#[derive(Debug)]
struct Offer {
    terms: SaleTerms,
    signature: schnorr::Signature,
    invoice: String,
    nonce: SecretNonce,
}

#[derive(Debug)]
struct Signed {
    terms: SaleTerms,
    signature: schnorr::Signature,
    link: Link,
    paid: bool,
    /// Whether its channel cannot be opened any more.
    lost: bool,
}

impl Place {
    fn last(&self) -> Option<&SaleTerms> {
        self.sold.last()
    }

    /// What was signed for the stock output that `sale` spends.
    fn signed_for(&self, sale: &SaleTerms) -> Option<&SaleTerms> {
        let pending = self.signed.iter().map(|signed| &signed.terms);
        let mut all = self.sold.iter().chain(pending);
        all.find(|terms| terms.stock == sale.stock)
    }

    /// Why nothing else is sold here now, where something is signed.
    fn signed_already(&self) -> Option<NoSaleReason> {
        self.signed.as_ref().map(|signed| match signed.lost {
            true => NoSaleReason::Lost,
            false => NoSaleReason::Pending,
        })
    }

    fn sellable(&self) -> Sellable {
        self.chain
            .as_ref()
            .map(StockChain::sellable)
            .unwrap_or_default()
    }
}

/// Why nothing is sold, and what could be.
struct Denial {
    reason: NoSaleReason,
    least: bitcoin::Amount,
    sellable: Sellable,
}

impl From<NoSaleReason> for Denial {
    fn from(reason: NoSaleReason) -> Denial {
        Denial {
            reason,
            least: bitcoin::Amount::ZERO,
            sellable: Sellable::default(),
        }
    }
}

impl Seller {
    pub(crate) fn set_policy(&mut self, policy: Option<SalePolicy>) {
        self.policy = policy;
    }

    /// Somebody has begun to open the factory: nothing is signed or delivered any more.
    pub(crate) fn opened(&mut self) {
        self.opened = true;
        for place in self.places.values_mut() {
            (place.request, place.offer) = (None, None);
        }
    }

    /// The place's own channel is closed.
    pub(crate) fn ended(&mut self, ground: &Ground<'_>, slot: u16) {
        let place = self.place(ground, slot);
        place.ended = true;
        (place.request, place.offer) = (None, None);
    }

    /// What was delivered to a place, if anything ever was asked for there.
    pub(crate) fn chain(&self, slot: u16) -> Option<&StockChain> {
        self.places.get(&slot)?.chain.as_ref()
    }

    /// The place is in a new epoch: what it bought before is part of its one channel.
    pub(crate) fn renew(&mut self, slot: u16, version: u32, chain: Option<StockChain>) {
        let renewed = Place {
            version,
            chain,
            ..Place::default()
        };
        self.places.insert(slot, renewed);
    }

    /// Whether anything was ever asked for in a place, or its epoch is not the first.
    pub(crate) fn knows(&self, slot: u16) -> bool {
        self.places.contains_key(&slot)
    }

    /// Whether a sale is signed and not settled. One that was lost never will be: what it was to
    /// spend is retired with everything else.
    pub(crate) fn is_busy(&self, slot: u16) -> bool {
        let place = self.places.get(&slot);
        place.is_some_and(|place| {
            let signed = place.signed.as_ref();
            place.unpaid || signed.is_some_and(|signed| !signed.lost)
        })
    }

    /// The channels that were delivered to a place in its newest epoch.
    pub(crate) fn bought(
        &self,
        slot: SlotRef,
        peer: PublicKey,
        header: &crate::terms::Header,
    ) -> Vec<BoughtChannel> {
        let place = self.places.get(&slot.slot).into_iter();
        let sold = place.flat_map(|it| it.chain.iter().map(|chain| (it.version, chain)));
        let links = sold.flat_map(|(version, chain)| {
            let links = chain.links().iter();
            links.map(move |sold| (version, sold))
        });
        let each = links.map(|(version, sold)| {
            bought(slot, peer, header, sold.link(), (version, sold.place()))
        });
        each.collect()
    }

    fn place(&mut self, ground: &Ground<'_>, slot: u16) -> &mut Place {
        self.places.entry(slot).or_insert_with(|| {
            let record = ground.terms.slots.get(usize::from(slot));
            let chain = record.map(|record| StockChain::of_slot(ground.tree, slot, record));
            Place {
                // An error is one of keys that occur twice, which built terms have not.
                chain: chain.and_then(Result::ok).flatten(),
                ..Place::default()
            }
        })
    }

    /// Whether anything can be sold to a place now.
    fn may_sell(&self, ground: &Ground<'_>, slot: u16) -> Result<&SalePolicy, NoSaleReason> {
        let policy = self.policy.as_ref().ok_or(NoSaleReason::NotSelling)?;
        let place = self.places.get(&slot);
        if !ground.active {
            return Err(NoSaleReason::NotActive);
        }
        if self.opened {
            return Err(NoSaleReason::Opened);
        }
        if (ground.frozen)(slot) {
            return Err(NoSaleReason::Frozen);
        }
        if place.is_some_and(|place| place.ended) {
            return Err(NoSaleReason::Ended);
        }
        match place.is_some_and(|place| place.unpaid) {
            true => Err(NoSaleReason::Unpaid),
            false => Ok(policy),
        }
    }

    /// The shell has what a quote needs: it is signed and sent, if it still can be.
    pub(crate) fn prepared(
        &mut self,
        ground: &Ground<'_>,
        wanted: &QuoteWanted,
        backing: QuoteBacking,
    ) -> Vec<Effect> {
        let slot = wanted.id.slot.slot;
        let place = self.places.get_mut(&slot);
        let due = place.and_then(|place| place.request.take_if(|it| it.wanted == *wanted));
        let Some(request) = due else {
            // Another request has come in between, or the factory was opened.
            return Vec::new();
        };
        let offered = self.offer(ground, slot, request, backing);
        offered.unwrap_or_else(|denial| deny(ground, slot, wanted.amount, &denial))
    }

    fn offer(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        request: Request,
        backing: QuoteBacking,
    ) -> Result<Vec<Effect>, Denial> {
        self.may_sell(ground, slot)?;
        let unavailable = || Denial::from(NoSaleReason::Unavailable);
        let nonce = self.nonces.fresh(ground.key, &backing.randomness);
        let place = self.place(ground, slot);
        if let Some(reason) = place.signed_already() {
            return Err(reason.into());
        }
        let stock = place.chain.as_ref().and_then(StockChain::newest);
        let stock = stock.ok_or_else(unavailable)?;
        let wanted = &request.wanted;
        let everything = stock.sellable().whole == wanted.amount;
        let next = || (ground.stock_hash)(slot, stock.link().saturating_add(1));
        let (terms, signature) = request.again.unwrap_or_else(|| {
            let terms = SaleTerms {
                slot,
                version: place.version,
                link: stock.link(),
                stock: stock.outpoint(),
                amount: wanted.amount,
                member_funding_key: request.funding_key,
                lsp_funding_key: backing.funding_key,
                next_hash: (!everything).then(next),
                price_msat: wanted.price_msat,
                valid_until: wanted.valid_until,
                payment_hash: backing.payment_hash,
            };
            let signature = terms.sign(&ground.attempt, ground.key);
            (terms, signature)
        });
        let free = terms.price_msat == 0;
        let sound = terms.lsp_funding_key == backing.funding_key
            && terms.payment_hash == backing.payment_hash
            && (terms.payment_hash == [0; 32]) == free
            && backing.invoice.is_empty() == free
            && backing.invoice.len() <= MAX_INVOICE_BYTES
            && stock.sell(&terms.link_terms()).is_ok();
        let nonce = nonce.filter(|_| sound).ok_or_else(unavailable)?;
        let offer = Offer {
            terms,
            signature,
            invoice: backing.invoice,
            nonce,
        };
        let quote = ground.say(slot, quote(ground, &offer));
        place.offer = Some(Box::new(offer));
        Ok(vec![quote])
    }

    /// Both sides hold commitments on the new channel: from here on the sale stands.
    pub(crate) fn held(&mut self, ground: &Ground<'_>, channel: ChannelRef) -> Vec<Effect> {
        let opened = self.opened;
        let slot = channel.slot.slot;
        let Some(place) = self.places.get_mut(&slot) else {
            return Vec::new();
        };
        let is_meant =
            |signed: &mut Box<Signed>| !signed.lost && id(ground, &signed.terms) == channel;
        let Some(signed) = place.signed.take_if(is_meant) else {
            return Vec::new();
        };
        if opened {
            place.signed = Some(signed);
            return vec![Effect::Emit(Event::Withheld(channel))];
        }
        let pushed = place.chain.as_mut().is_some_and(|chain| {
            chain
                .push(signed.terms.link_terms(), signed.signature)
                .is_ok()
        });
        if !pushed {
            // What was signed fits what it was signed for: not reached.
            place.signed = Some(signed);
            return Vec::new();
        }
        (place.unpaid, place.stored) = (!signed.paid, false);
        let terms = signed.terms;
        let mut effects = vec![
            stepped(&terms, SaleStep::Held),
            ground.say(slot, delivery(ground, &terms, signed.signature)),
            Effect::Emit(Event::Delivered {
                id: channel,
                amount: terms.amount,
            }),
        ];
        if signed.paid {
            effects.extend(settled(ground, &terms));
        }
        place.sold.push(terms);
        effects
    }

    /// The new channel cannot be opened any more: the sale is never delivered.
    pub(crate) fn lost(&mut self, ground: &Ground<'_>, channel: ChannelRef) -> Vec<Effect> {
        let place = self.places.get_mut(&channel.slot.slot);
        let signed = place.and_then(|place| place.signed.as_mut());
        let Some(signed) = signed.filter(|it| !it.lost && id(ground, &it.terms) == channel) else {
            return Vec::new();
        };
        signed.lost = true;
        vec![stepped(&signed.terms, SaleStep::Lost)]
    }

    /// The payment with this hash has arrived.
    pub(crate) fn paid(&mut self, ground: &Ground<'_>, payment_hash: [u8; 32]) -> Vec<Effect> {
        let is_bill =
            |terms: &SaleTerms| terms.price_msat > 0 && terms.payment_hash == payment_hash;
        for place in self.places.values_mut() {
            if let Some(signed) = &mut place.signed
                && is_bill(&signed.terms)
                && !std::mem::replace(&mut signed.paid, true)
            {
                return vec![stepped(&signed.terms, SaleStep::Paid)];
            }
            if place.unpaid && place.last().is_some_and(is_bill) {
                return settle(ground, place);
            }
        }
        Vec::new()
    }

    /// Hashes of the payments that are owed for channels, held or not.
    pub(crate) fn owed(&self) -> Vec<[u8; 32]> {
        let each = self.places.values().flat_map(|place| {
            let delivered = place.last().filter(|_| place.unpaid);
            let signed = place.signed.iter().filter(|it| !it.paid && !it.lost);
            delivered.into_iter().chain(signed.map(|it| &it.terms))
        });
        let owed = each.filter(|terms| terms.price_msat > 0);
        owed.map(|terms| terms.payment_hash).collect()
    }

    /// After a reconnect: what the member may not have heard.
    pub(crate) fn repeat(&self, ground: &Ground<'_>, slot: u16) -> Vec<Effect> {
        let place = self.places.get(&slot);
        let place = place.filter(|place| place.unpaid && !place.stored);
        let last = place.and_then(|place| Some((place.last()?, place.chain.as_ref()?)));
        let said = last.and_then(|(terms, chain)| {
            let signature = chain.links().last()?.signature();
            Some(ground.say(slot, delivery(ground, terms, signature)))
        });
        said.into_iter().collect()
    }

    /// Every bought channel LDK is to be held to.
    pub(crate) fn agreed(&self, ground: &Ground<'_>) -> Vec<BoughtChannel> {
        let each = self.places.iter().flat_map(|(slot, place)| {
            let sold = place.chain.iter().flat_map(StockChain::links);
            let sold = sold.map(|sold| (sold.link(), sold.place()));
            let pending = place.signed.iter().map(|it| (&it.link, it.terms.link));
            let all = sold.chain(pending);
            all.map(|(link, at)| agreed(ground, *slot, link, (place.version, at)))
        });
        each.collect()
    }

    /// Every bought channel that may carry payments while the funding is buried.
    pub(crate) fn usable(&self, attempt: Attempt) -> Vec<ChannelRef> {
        let each = self.places.iter().flat_map(|(&slot, place)| {
            let paid = place.sold.len() - usize::from(place.unpaid);
            let slot = SlotRef { attempt, slot };
            let paid = place.sold[..paid].iter();
            paid.map(move |terms| ChannelRef::sold(slot, terms.version, terms.link))
        });
        each.collect()
    }
}

/// A delivery is paid for, or was free: the channel may carry payments.
fn settle(ground: &Ground<'_>, place: &mut Place) -> Vec<Effect> {
    let Some(terms) = place.sold.last() else {
        return Vec::new();
    };
    place.unpaid = false;
    let mut effects = vec![stepped(terms, SaleStep::Paid)];
    effects.extend(settled(ground, terms));
    effects
}

fn settled(ground: &Ground<'_>, terms: &SaleTerms) -> Vec<Effect> {
    let channel = id(ground, terms);
    let usable = ground.active.then_some(Effect::ActivateBought(channel));
    let told = Effect::Emit(Event::Paid {
        id: channel,
        price_msat: terms.price_msat,
    });
    usable.into_iter().chain([told]).collect()
}

fn quote(ground: &Ground<'_>, offer: &Offer) -> Quote {
    Quote {
        attempt: ground.attempt,
        sale: offer.terms.clone(),
        nonce: offer.nonce.public().to_bytes(),
        invoice: offer.invoice.clone(),
        signature: offer.signature,
    }
}

fn delivery(ground: &Ground<'_>, terms: &SaleTerms, signature: schnorr::Signature) -> SaleSig {
    SaleSig {
        attempt: ground.attempt,
        sale: terms.id(&ground.attempt),
        signature,
    }
}

fn stepped(terms: &SaleTerms, step: SaleStep) -> Effect {
    let record = SaleStepped {
        slot: terms.slot,
        link: terms.link,
        step,
    };
    Effect::Persist(record.into())
}

fn agreed(ground: &Ground<'_>, slot: u16, link: &Link, place: (u32, u8)) -> BoughtChannel {
    let header = &ground.terms.header;
    bought(ground.slot(slot), ground.peer(slot), header, link, place)
}

fn id(ground: &Ground<'_>, terms: &SaleTerms) -> ChannelRef {
    ChannelRef::sold(ground.slot(terms.slot), terms.version, terms.link)
}

fn deny(ground: &Ground<'_>, slot: u16, amount: bitcoin::Amount, denial: &Denial) -> Vec<Effect> {
    let answer = NoSale {
        attempt: ground.attempt,
        reason: denial.reason,
        least: denial.least,
        up_to: denial.sellable.up_to,
        whole: denial.sellable.whole,
        amount,
    };
    vec![ground.say(slot, answer)]
}
