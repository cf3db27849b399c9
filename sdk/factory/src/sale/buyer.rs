//! The buyer of a sale, as a state machine without I/O; one per place, owned by its member.
//!
//! What always holds: nothing durable comes of a quote that is not accepted; a partial signature
//! leaves after the record that names its transaction, and for that stock output nothing else is
//! ever signed; the channel counts, and is paid for, when everything that makes it the member's is
//! durable. Signing first risks nothing: all capacity of the new channel is the LSP's.

mod hear;
mod replay;

use bitcoin::Amount;
use bitcoin::secp256k1::{PublicKey, schnorr};

use super::sign::{self, Nonces, Session};
use super::{bought, verify};
use crate::effect::{Bill, BoughtChannel, ChannelRef, Effect, Event, SlotRef};
use crate::journal::{Guard, MemberSaleSigned, SaleStep, SaleStepped};
use crate::message::{Attempt, Message, Quote, QuoteRequest, SaleAccept, SaleId, SaleTerms};
use crate::signing::FactoryKey;
use crate::stock::{Link, Sellable, StockChain};
use crate::terms::Header;

/// How many questions without an answer are remembered when another is asked.
const MAX_EARLIER: usize = 16;

/// What a buyer wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Capacity of the channel.
    pub amount: Amount,
    /// The most it may cost.
    pub max_price_msat: u64,
    /// The member's key in the channel's 2-of-2, of the channel that
    /// [`Member::next_channel`](crate::member::Member::next_channel) names.
    pub funding_key: PublicKey,
    /// Who must have acknowledged the sale before it counts.
    pub guard: Guard,
}

/// Why nothing is asked for or accepted; nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuyError {
    /// The factory does not exist yet, or no longer.
    #[error("the factory is not active")]
    NotActive,
    /// A transaction of the tree is in mempool or chain.
    #[error("somebody has begun to open the factory")]
    Opened,
    /// As many sales as the terms allow.
    #[error("there were as many sales as the terms allow, {max_sales}")]
    UsedUp {
        /// How many.
        max_sales: u8,
    },
    /// The stock does not allow that amount.
    #[error(
        "{} sat cannot be sold: up to {} sat can, or exactly {} sat",
        asked.to_sat(),
        sellable.up_to.to_sat(),
        sellable.whole.to_sat()
    )]
    Amount {
        /// What was asked for.
        asked: Amount,
        /// What can be sold.
        sellable: Sellable,
    },
    /// A sale is signed and not delivered; nothing else is signed for the same output.
    #[error("the sale of channel {} is not complete", id.seq)]
    Pending {
        /// Its channel.
        id: ChannelRef,
    },
    /// A channel is held and not paid for.
    #[error("channel {} is not paid for", id.seq)]
    Unpaid {
        /// The channel.
        id: ChannelRef,
    },
    /// There is no such quote (any more).
    #[error("there is no such quote")]
    NoQuote,
    /// The quote has expired.
    #[error("the quote was valid until height {valid_until}")]
    Expired {
        /// Its last height.
        valid_until: u32,
    },
    /// A new epoch is being made, or one that was signed for may still be completed.
    #[error("a new epoch is being made")]
    Frozen,
    /// The random bytes are not random.
    #[error("no nonce can be made from these random bytes")]
    Randomness,
}

/// What the buyer is told about its member.
pub(crate) struct Ground<'a> {
    pub(crate) slot: SlotRef,
    pub(crate) lsp: PublicKey,
    pub(crate) header: &'a Header,
    pub(crate) key: &'a FactoryKey,
    pub(crate) tip: u32,
    /// Whether the funding is buried.
    pub(crate) active: bool,
    /// Version of the path.
    pub(crate) version: u32,
    /// Whether a new epoch is on its way.
    pub(crate) frozen: bool,
}

/// Where the newest sale stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Signed by the member: only this sale can be made of its stock output.
    Pending,
    /// The final signature is on disk; commitment or watchtower are not there yet.
    Signed,
    /// The channel can be used, and is to be paid for.
    Unpaid,
}

/// The sales of one place.
#[derive(Debug, Default)]
pub(crate) struct Buyer {
    /// `None` until the path is complete, and where the place has no stock.
    chain: Option<StockChain>,
    nonces: Nonces,
    ask: Option<Ask>,
    /// What was asked for before that and not answered by then, the oldest first.
    earlier: Vec<Amount>,
    /// Verified, not accepted.
    quote: Option<Box<Quote>>,
    /// Accepted before, offered again with another nonce.
    again: Option<Box<Quote>>,
    sale: Option<Box<Sale>>,
    /// Sales of this epoch that are over and done with, the oldest first.
    done: Vec<SaleTerms>,
    /// What was paid in epochs before.
    paid: Vec<[u8; 32]>,
    opened: bool,
}

/// A sale from the first signature until it is paid for.
#[derive(Debug)]
struct Sale {
    accept: SaleAccept,
    invoice: String,
    guard: Guard,
    link: Link,
    signature: Option<schnorr::Signature>,
    held: bool,
    guarded: bool,
    paid: bool,
    /// Whether its channel cannot be opened any more: it is not taken whatever comes.
    lost: bool,
}

impl Sale {
    fn terms(&self) -> &SaleTerms {
        &self.accept.sale
    }

    /// Everything that makes the channel the member's is durable.
    fn is_usable(&self) -> bool {
        let guarded = self.guarded || self.guard == Guard::Member;
        self.signature.is_some() && self.held && guarded
    }

    fn is_settled(&self) -> bool {
        self.is_usable() && (self.paid || self.terms().price_msat == 0)
    }
}

impl Buyer {
    /// The path is complete: its stock is there to be sold.
    pub(crate) fn begin(&mut self, chain: Option<StockChain>) {
        self.chain = chain;
    }

    /// The place is in a new epoch: what was bought before is part of its one channel.
    pub(crate) fn renew(&mut self, chain: Option<StockChain>) {
        let done = self.done.drain(..);
        self.paid.extend(done.map(|sale| sale.payment_hash));
        (self.ask, self.quote, self.again) = (None, None, None);
        self.earlier.clear();
        // What was not delivered never will be: its stock is revoked.
        self.sale = None;
        self.chain = chain;
    }

    pub(crate) fn chain(&self) -> Option<&StockChain> {
        self.chain.as_ref()
    }

    /// Where the newest sale stands; `None` where none is under way.
    pub(crate) fn stage(&self) -> Option<Stage> {
        let sale = self.sale.as_ref()?;
        Some(match &sale.signature {
            None => Stage::Pending,
            Some(_) if sale.is_usable() => Stage::Unpaid,
            Some(_) => Stage::Signed,
        })
    }

    /// Whether a sale is delivered and not settled. One that is not delivered has nothing of the
    /// member's in it.
    pub(crate) fn is_busy(&self) -> bool {
        self.sale.iter().any(|sale| sale.signature.is_some())
    }

    /// The channel of a sale that the member has signed and that was not delivered.
    pub(crate) fn undelivered(&self, slot: SlotRef) -> Option<ChannelRef> {
        let sale = self.sale.iter().find(|sale| sale.signature.is_none())?;
        let terms = sale.terms();
        Some(ChannelRef::sold(slot, terms.version, terms.link))
    }

    /// All stock that somebody may bring about: with what an undelivered sale leaves, which the LSP
    /// can complete alone.
    pub(crate) fn all_stock(&self) -> Option<StockChain> {
        let undelivered = self.sale.iter().find(|sale| sale.signature.is_none());
        let left = undelivered.and_then(|sale| sale.link.next.clone());
        Some(self.chain.clone()?.and_left_by_a_lost_sale(left))
    }

    /// Whether a tower's acknowledgement is what the newest sale waits for, or among it.
    pub(crate) fn awaits_tower(&self) -> bool {
        let signed = self.sale.iter().filter(|it| it.signature.is_some());
        let signed = signed.filter(|_| !self.opened);
        let mut unguarded = signed.filter(|it| !it.guarded);
        unguarded.any(|it| it.guard == Guard::Watchtower)
    }

    /// The channel the next sale makes.
    pub(crate) fn next_channel(&self, slot: SlotRef, version: u32) -> Option<ChannelRef> {
        let stock = self.chain.as_ref()?.newest()?;
        Some(ChannelRef::sold(slot, version, stock.link()))
    }

    /// What was quoted under this name and is not accepted.
    pub(crate) fn quoted_as(&self, attempt: &Attempt, sale: SaleId) -> Option<&SaleTerms> {
        let terms = &self.quote.as_ref()?.sale;
        (terms.id(attempt) == sale).then_some(terms)
    }

    pub(crate) fn ask(&mut self, ground: &Ground<'_>, ask: Ask) -> Result<Vec<Effect>, BuyError> {
        let sellable = self.can_buy(ground)?;
        if !sellable.allows(ask.amount) {
            return Err(BuyError::Amount {
                asked: ask.amount,
                sellable,
            });
        }
        let is_answered = self.quote.take().is_some();
        let request = request(ground, &ask);
        let before = self.ask.replace(ask).filter(|_| !is_answered);
        if let Some(before) = before {
            if self.earlier.len() == MAX_EARLIER {
                self.earlier.remove(0);
            }
            self.earlier.push(before.amount);
        }
        Ok(vec![request])
    }

    /// What can be bought now.
    fn can_buy(&self, ground: &Ground<'_>) -> Result<Sellable, BuyError> {
        if !ground.active {
            return Err(BuyError::NotActive);
        }
        if self.opened {
            return Err(BuyError::Opened);
        }
        if ground.frozen {
            return Err(BuyError::Frozen);
        }
        if let Some(sale) = &self.sale {
            let id = id(ground, sale.terms());
            return Err(match sale.signature {
                None => BuyError::Pending { id },
                Some(_) => BuyError::Unpaid { id },
            });
        }
        let sellable = self.chain.as_ref().map(StockChain::sellable);
        let sold = self.chain.as_ref().map_or(0, |chain| chain.links().len());
        let max_sales = ground.header.timing.max_sales;
        match sellable {
            Some(_) if sold >= usize::from(max_sales) => Err(BuyError::UsedUp { max_sales }),
            other => Ok(other.unwrap_or_default()),
        }
    }

    /// Signs what was quoted.
    pub(crate) fn accept(
        &mut self,
        ground: &Ground<'_>,
        sale: SaleId,
        randomness: &[u8; 32],
    ) -> Result<Vec<Effect>, BuyError> {
        self.can_buy(ground)?;
        let attempt = &ground.slot.attempt;
        let quoted = self.quote.as_ref();
        let quote = quoted.filter(|quote| quote.sale.id(attempt) == sale);
        let (Some(quote), Some(ask), Some(chain)) = (quote, &self.ask, &self.chain) else {
            return Err(BuyError::NoQuote);
        };
        let valid_until = quote.sale.valid_until;
        if ground.tip > valid_until {
            return Err(BuyError::Expired { valid_until });
        }
        // Verified on arrival; only the chain could have moved since, and it has not.
        let link = verify::terms(ground, chain, &quote.sale).map_err(|_| BuyError::NoQuote)?;
        let guard = ask.guard;
        let accept = signed(&mut self.nonces, ground, quote, &link, randomness)?;
        let record = MemberSaleSigned {
            accept: accept.clone(),
            invoice: quote.invoice.clone(),
            guard,
        };
        let agreed = bought(
            ground.slot,
            ground.lsp,
            ground.header,
            &link,
            (ground.version, quote.sale.link),
        );
        let invoice = quote.invoice.clone();
        (self.quote, self.ask) = (None, None);
        self.earlier.clear();
        self.sale = Some(Box::new(Sale {
            accept: accept.clone(),
            invoice,
            guard,
            link,
            signature: None,
            held: false,
            guarded: false,
            paid: false,
            lost: false,
        }));
        Ok(vec![
            Effect::Persist(record.into()),
            Effect::AgreeBought(agreed),
            say(ground, accept),
        ])
    }

    /// Signs once more what was signed, for the LSP's newest nonce.
    pub(crate) fn sign_again(
        &mut self,
        ground: &Ground<'_>,
        channel: ChannelRef,
        randomness: &[u8; 32],
    ) -> Vec<Effect> {
        let (Some(quote), Some(sale)) = (&self.again, &mut self.sale) else {
            return Vec::new();
        };
        let same = quote.sale == *sale.terms() && id(ground, sale.terms()) == channel;
        if !same || sale.signature.is_some() || self.opened || ground.frozen {
            return Vec::new();
        }
        match signed(&mut self.nonces, ground, quote, &sale.link, randomness) {
            Err(_) => Vec::new(),
            Ok(accept) => {
                sale.accept = accept.clone();
                self.again = None;
                vec![say(ground, accept)]
            }
        }
    }

    /// Somebody has begun to open the factory: nothing is signed any more, or delivered.
    pub(crate) fn opened(&mut self) {
        self.opened = true;
        (self.ask, self.quote, self.again) = (None, None, None);
        self.earlier.clear();
    }

    /// A step of the sale of `channel` that came from outside.
    pub(crate) fn step(
        &mut self,
        ground: &Ground<'_>,
        channel: ChannelRef,
        step: SaleStep,
    ) -> Vec<Effect> {
        let Some(sale) = &mut self.sale else {
            return Vec::new();
        };
        if id(ground, sale.terms()) != channel {
            return Vec::new();
        }
        if step == SaleStep::Lost && sale.signature.is_some() {
            return Vec::new();
        }
        let was_usable = sale.is_usable();
        let delivers = !matches!(step, SaleStep::Paid | SaleStep::Lost);
        if self.opened && !was_usable && delivers {
            // Nothing is delivered any more.
            return Vec::new();
        }
        let flag = match step {
            SaleStep::Held => &mut sale.held,
            SaleStep::Guarded => &mut sale.guarded,
            SaleStep::Paid => &mut sale.paid,
            SaleStep::Lost => &mut sale.lost,
        };
        if std::mem::replace(flag, true) {
            return Vec::new();
        }
        let record = SaleStepped {
            slot: ground.slot.slot,
            link: sale.terms().link,
            step,
        };
        let mut effects = vec![Effect::Persist(record.into())];
        effects.extend(self.advance(ground, was_usable));
        effects
    }

    /// What follows once a sale is complete, and once it is paid for.
    fn advance(&mut self, ground: &Ground<'_>, was_usable: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(sale) = self.sale.take_if(|sale| sale.is_usable()) else {
            return effects;
        };
        let terms = sale.terms();
        let channel = id(ground, terms);
        if !was_usable {
            if ground.active {
                effects.push(Effect::ActivateBought(channel));
            }
            effects.push(Effect::Emit(Event::Delivered {
                id: channel,
                amount: terms.amount,
            }));
        }
        if sale.is_settled() {
            effects.push(Effect::Emit(Event::Paid {
                id: channel,
                price_msat: terms.price_msat,
            }));
            self.done.push(terms.clone());
        } else {
            effects.extend(self.bill(ground, &sale));
            self.sale = Some(sale);
        }
        effects
    }

    /// What is owed now.
    pub(crate) fn due(&self, ground: &Ground<'_>) -> Option<Effect> {
        self.bill(ground, self.sale.as_ref()?)
    }

    /// What is owed for a channel that is held, in a factory that is there. For one that somebody
    /// has begun to put on chain, where it carries nothing, nothing is paid.
    fn bill(&self, ground: &Ground<'_>, sale: &Sale) -> Option<Effect> {
        let owed = sale.is_usable() && !sale.is_settled();
        let due = owed && ground.active && !self.opened;
        due.then(|| {
            Effect::Pay(Bill {
                id: id(ground, sale.terms()),
                invoice: sale.invoice.clone(),
                payment_hash: sale.terms().payment_hash,
                price_msat: sale.terms().price_msat,
            })
        })
    }

    /// Every bought channel LDK is to be held to.
    pub(crate) fn agreed(&self, ground: &Ground<'_>) -> Vec<BoughtChannel> {
        let slot = ground.slot;
        let one = |link, place| {
            let place = (ground.version, place);
            bought(slot, ground.lsp, ground.header, link, place)
        };
        let links = self.chain.iter().flat_map(StockChain::links);
        let sold = links.map(|sold| one(sold.link(), sold.place()));
        // Until its signature is there the newest is not part of the chain.
        let pending = self.sale.iter().filter(|sale| sale.signature.is_none());
        let pending = pending.map(|sale| one(&sale.link, sale.terms().link));
        sold.chain(pending).collect()
    }

    /// Every bought channel that can be used while the funding is buried.
    pub(crate) fn usable(&self, slot: SlotRef) -> Vec<ChannelRef> {
        let newest = self.sale.iter().filter(|sale| sale.is_usable());
        let newest = newest.map(|sale| sale.terms());
        let all = self.done.iter().chain(newest);
        all.map(|terms| ChannelRef::sold(slot, terms.version, terms.link))
            .collect()
    }
}

fn signed(
    nonces: &mut Nonces,
    ground: &Ground<'_>,
    quote: &Quote,
    link: &Link,
    randomness: &[u8; 32],
) -> Result<SaleAccept, BuyError> {
    let theirs = sign::nonce(&quote.nonce).ok_or(BuyError::NoQuote)?;
    let own = nonces.fresh(ground.key, randomness);
    let own = own.ok_or(BuyError::Randomness)?;
    let public = own.public();
    let session = Session::new(link, theirs, public).ok_or(BuyError::NoQuote)?;
    let partial = session.sign(own, ground.key).ok_or(BuyError::NoQuote)?;
    Ok(SaleAccept {
        attempt: ground.slot.attempt,
        sale: quote.sale.clone(),
        quote: quote.signature,
        quoted_nonce: quote.nonce,
        nonce: public.to_bytes(),
        partial,
    })
}

fn request(ground: &Ground<'_>, ask: &Ask) -> Effect {
    let request = QuoteRequest {
        attempt: ground.slot.attempt,
        amount: ask.amount,
        funding_key: ask.funding_key,
    };
    say(ground, request)
}

fn id(ground: &Ground<'_>, terms: &SaleTerms) -> ChannelRef {
    ChannelRef::sold(ground.slot, terms.version, terms.link)
}

fn say(ground: &Ground<'_>, message: impl Into<Message>) -> Effect {
    Effect::Send {
        to: ground.lsp,
        message: message.into(),
    }
}
