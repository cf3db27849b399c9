//! What a seller hears from its members.

use super::{
    Denial, Ground, MAX_VALID_BLOCKS, Offer, Place, Request, Seller, Session, Signed, agreed, deny,
    id, quote, settle,
};
use crate::effect::{ChannelRef, Effect, Event, QuoteWanted};
use crate::journal::LspSaleSigned;
use crate::message::{
    Message, NoSaleReason, QuoteRequest, RefusalCode, SaleAccept, SaleId, SaleTerms,
};
use crate::sale::sign;

/// How a message is answered that is not taken.
enum Answer {
    Denied(Denial),
    Refused(RefusalCode, &'static str),
    /// Something else was signed for this output.
    Equivocation(ChannelRef),
}

impl From<NoSaleReason> for Answer {
    fn from(reason: NoSaleReason) -> Answer {
        Answer::Denied(reason.into())
    }
}

impl Seller {
    /// Takes a message of the member at `slot`. `refuse` makes a refusal of code and field.
    pub(crate) fn message(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        message: Message,
        refuse: impl Fn(RefusalCode, &'static str) -> Vec<Effect>,
    ) -> Vec<Effect> {
        let known = self.places.contains_key(&slot);
        let amount = match &message {
            Message::QuoteRequest(request) => request.amount,
            Message::SaleAccept(accept) => accept.sale.amount,
            _ => bitcoin::Amount::ZERO,
        };
        let taken = match message {
            Message::QuoteRequest(request) => self.requested(ground, slot, &request),
            Message::SaleAccept(accept) => self.accepted(ground, slot, &accept),
            Message::SaleStored(stored) => self.stored(ground, slot, stored.sale),
            _ => Err(Answer::Refused(RefusalCode::Unexpected, "")),
        };
        if !known && matches!(taken, Err(Answer::Refused(..))) {
            // What is refused leaves nothing behind.
            self.places.remove(&slot);
        }
        match taken {
            Ok(effects) => effects,
            Err(Answer::Denied(denial)) => deny(ground, slot, amount, &denial),
            Err(Answer::Refused(code, field)) => refuse(code, field),
            Err(Answer::Equivocation(id)) => {
                let peer = ground.peer(slot);
                let mut effects = refuse(RefusalCode::Equivocation, "sale");
                effects.push(Effect::Emit(Event::Equivocation { id, peer }));
                effects
            }
        }
    }

    fn requested(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        request: &QuoteRequest,
    ) -> Result<Vec<Effect>, Answer> {
        // Also so that what there is to sell is known.
        self.place(ground, slot);
        let policy = self.may_sell(ground, slot)?.clone();
        let (tip, life) = (ground.tip, ground.life_blocks());
        if life < policy.min_life_blocks {
            return Err(NoSaleReason::NotSelling.into());
        }
        let place = self.place(ground, slot);
        if let Some(reason) = place.signed_already() {
            return Err(reason.into());
        }
        let amount = request.amount;
        let max_sales = usize::from(ground.terms.header.timing.max_sales);
        if place.sold.len() >= max_sales {
            return Err(NoSaleReason::UsedUp.into());
        }
        let sellable = place.sellable();
        if amount < policy.min_amount || !sellable.allows(amount) {
            return Err(Answer::Denied(Denial {
                reason: NoSaleReason::Amount,
                least: policy.min_amount,
                sellable,
            }));
        }
        let repeated = place.offer.as_ref().filter(|offer| {
            let terms = &offer.terms;
            let same = terms.amount == amount && terms.member_funding_key == request.funding_key;
            same && tip <= terms.valid_until
        });
        if let Some(offer) = repeated {
            return Ok(vec![ground.say(slot, quote(ground, offer))]);
        }
        let stock = place.chain.as_ref().and_then(|chain| chain.newest());
        let stock = stock.ok_or(NoSaleReason::Unavailable)?;
        place.prepared.count(tip)?;
        let price_msat = policy.price_msat(amount, life);
        let valid_blocks = u32::from(policy.valid_blocks).min(MAX_VALID_BLOCKS);
        let valid_until = tip.saturating_add(valid_blocks);
        let wanted = QuoteWanted {
            id: ChannelRef::sold(ground.slot(slot), place.version, stock.link()),
            amount,
            price_msat: price_msat.ok_or(NoSaleReason::Unavailable)?,
            valid_until: valid_until.min(ground.terms.header.expiry - 1),
            payment_hash: None,
        };
        place.offer = None;
        place.request = Some(Request {
            wanted: wanted.clone(),
            funding_key: request.funding_key,
            again: None,
        });
        Ok(vec![Effect::PrepareQuote(wanted)])
    }

    fn accepted(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        accept: &SaleAccept,
    ) -> Result<Vec<Effect>, Answer> {
        let terms = &accept.sale;
        let lsp_key = &ground.terms.header.lsp_key;
        if !terms.is_promised(&ground.attempt, lsp_key, &accept.quote) {
            return Err(Answer::Refused(RefusalCode::Signature, "quote"));
        }
        if terms.slot != slot {
            return Err(Answer::Refused(RefusalCode::Terms, "slot"));
        }
        let opened = self.opened;
        let place = self.place(ground, slot);
        if let Some(signed) = place.signed_for(terms) {
            if signed != terms {
                return Err(Answer::Equivocation(id(ground, signed)));
            }
            let delivered = place.sold.contains(terms);
            return Ok(match delivered {
                true => place.delivered_again(ground, slot, terms),
                false if place.signed.as_ref().is_some_and(|it| it.lost) => {
                    return Err(NoSaleReason::Lost.into());
                }
                false if opened => Vec::new(),
                // The channel is yet to be held.
                false => vec![Effect::OpenBought(id(ground, terms))],
            });
        }
        let stock = place.chain.as_ref().and_then(|chain| chain.newest());
        let version = place.version;
        let stock = stock.filter(|it| {
            let newest = (it.outpoint(), it.link(), version);
            newest == (terms.stock, terms.link, terms.version)
        });
        let Some(stock) = stock else {
            return Err(Answer::Refused(RefusalCode::Terms, "stock"));
        };
        let link = stock.sell(&terms.link_terms());
        let link = link.map_err(|error| Answer::Refused(RefusalCode::Terms, error.field()))?;
        let policy = self.may_sell(ground, slot)?;
        // Whoever has accepted in time can sign nothing else for this output, so what was promised
        // is kept while it still pays for what is sold.
        let today = policy.price_msat(terms.amount, ground.life_blocks());
        let dear = today.is_none_or(|price| price > terms.price_msat);
        let over = ground.life_blocks() < policy.min_life_blocks;
        if ground.tip > terms.valid_until && (dear || over) {
            return Err(NoSaleReason::Expired.into());
        }
        let place = self.place(ground, slot);
        let is_meant = |offer: &mut Box<Offer>| {
            offer.terms == *terms && offer.nonce.public().to_bytes() == accept.quoted_nonce
        };
        let Some(offer) = place.offer.take_if(is_meant) else {
            return Ok(place.offer_again(ground, slot, accept));
        };
        let theirs = sign::nonce(&accept.nonce);
        let session = theirs.and_then(|it| Session::new(&link, offer.nonce.public(), it));
        let Some(session) = session else {
            place.offer = Some(offer);
            return Err(Answer::Refused(RefusalCode::Nonce, "nonce"));
        };
        if !session.is_members(&accept.partial) {
            // Nothing of ours was signed with the nonce.
            place.offer = Some(offer);
            return Err(Answer::Refused(RefusalCode::Signature, "partial"));
        }
        let own = session.sign(offer.nonce, ground.key);
        let signature = own.and_then(|own| session.complete(own, accept.partial));
        let signature = signature.ok_or(NoSaleReason::Unavailable)?;
        let record = LspSaleSigned {
            sale: terms.clone(),
            signature,
        };
        let effects = vec![
            Effect::Persist(record.into()),
            Effect::AgreeBought(agreed(ground, slot, &link, (terms.version, terms.link))),
            Effect::OpenBought(id(ground, terms)),
        ];
        place.request = None;
        place.signed = Some(Box::new(Signed {
            terms: terms.clone(),
            signature,
            link,
            paid: false,
            lost: false,
        }));
        Ok(effects)
    }

    fn stored(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        sale: SaleId,
    ) -> Result<Vec<Effect>, Answer> {
        let place = self.place(ground, slot);
        let known = place
            .sold
            .iter()
            .rposition(|it| it.id(&ground.attempt) == sale);
        let Some(known) = known else {
            return Err(Answer::Refused(RefusalCode::Unexpected, "sale"));
        };
        if known + 1 < place.sold.len() || !place.unpaid {
            return Ok(Vec::new());
        }
        place.stored = true;
        Ok(match place.sold[known].price_msat {
            0 => settle(ground, place),
            _ => Vec::new(),
        })
    }
}

impl Place {
    /// The same promise with another nonce: the one it was accepted for is gone.
    fn offer_again(&mut self, ground: &Ground<'_>, slot: u16, accept: &SaleAccept) -> Vec<Effect> {
        let terms = &accept.sale;
        if let Some(offer) = self.offer.as_ref().filter(|offer| offer.terms == *terms) {
            return vec![ground.say(slot, quote(ground, offer))];
        }
        let wanted = QuoteWanted {
            id: id(ground, terms),
            amount: terms.amount,
            price_msat: terms.price_msat,
            valid_until: terms.valid_until,
            payment_hash: Some(terms.payment_hash),
        };
        self.offer = None;
        self.request = Some(Request {
            wanted: wanted.clone(),
            funding_key: terms.member_funding_key,
            again: Some((terms.clone(), accept.quote)),
        });
        vec![Effect::PrepareQuote(wanted)]
    }

    fn delivered_again(&self, ground: &Ground<'_>, slot: u16, terms: &SaleTerms) -> Vec<Effect> {
        let place = usize::from(terms.link);
        let sold = self
            .chain
            .as_ref()
            .and_then(|chain| chain.links().get(place));
        let said = sold.map(|sold| {
            let signature = sold.signature();
            ground.say(slot, super::delivery(ground, terms, signature))
        });
        said.into_iter().collect()
    }
}
