//! What a buyer hears from its LSP, and what it says again after a reconnect.

use bitcoin::Amount;

use super::{Buyer, Ground, id, request, say};
use crate::effect::{Effect, Event};
use crate::journal::MemberSaleSig;
use crate::message::{Message, NoSale, Quote, RefusalCode, SaleId, SaleSig, SaleStored, SaleTerms};
use crate::sale::sign;
use crate::sale::verify::{self, Wrong};
use crate::stock::Sellable;

/// Why a message is refused, and what else is to be done about that.
type Refusal = (Wrong, Vec<Effect>);

impl Buyer {
    /// Takes a message of the LSP, or names what is wrong with it; it has then changed nothing.
    pub(crate) fn message(
        &mut self,
        ground: &Ground<'_>,
        message: Message,
    ) -> Result<Vec<Effect>, Refusal> {
        match message {
            Message::Quote(quote) => self.quoted(ground, quote),
            Message::SaleSig(sig) => {
                let taken = self.signature(ground, &sig);
                taken.map_err(|field| ((field, "signature"), Vec::new()))
            }
            Message::NoSale(answer) => self.not_sold(ground, &answer),
            _ => Err(((RefusalCode::Unexpected, ""), Vec::new())),
        }
    }

    fn quoted(&mut self, ground: &Ground<'_>, quote: Quote) -> Result<Vec<Effect>, Refusal> {
        let sale = &quote.sale;
        if let Some(signed) = self.signed_for(sale) {
            if signed != sale {
                let event = Event::Equivocation {
                    id: id(ground, signed),
                    peer: ground.lsp,
                };
                let refused = (RefusalCode::Equivocation, "sale");
                return Err((refused, vec![Effect::Emit(event)]));
            }
            return self.offered_again(ground, quote);
        }
        let unexpected = ((RefusalCode::Unexpected, "sale"), Vec::new());
        if self.sale.is_some() || self.opened || ground.frozen {
            return Err(unexpected);
        }
        let (Some(ask), Some(chain)) = (&self.ask, &self.chain) else {
            return Err(unexpected);
        };
        // It was on its way when something else was asked for, which waits for its own answer.
        let is_late = |it: &Amount| *it == sale.amount && *it != ask.amount;
        if let Some(at) = self.earlier.iter().position(is_late) {
            self.earlier.remove(at);
            return Ok(Vec::new());
        }
        let mut paid = self.paid.clone();
        paid.extend(self.done.iter().map(|sale| sale.payment_hash));
        verify::quote(ground, chain, &paid, ask, &quote).map_err(|wrong| (wrong, Vec::new()))?;
        let told = Event::Quoted {
            sale: sale.id(&ground.slot.attempt),
            id: id(ground, sale),
            terms: sale.clone(),
        };
        self.quote = Some(Box::new(quote));
        Ok(vec![Effect::Emit(told)])
    }

    /// What was signed for the stock output that `sale` spends.
    fn signed_for(&self, sale: &SaleTerms) -> Option<&SaleTerms> {
        let newest = self.sale.iter().map(|sale| sale.terms());
        let mut all = self.done.iter().chain(newest);
        all.find(|signed| signed.stock == sale.stock)
    }

    /// What is signed already: where the LSP has lost its nonce, it is signed once more.
    fn offered_again(&mut self, ground: &Ground<'_>, quote: Quote) -> Result<Vec<Effect>, Refusal> {
        let attempt = &ground.slot.attempt;
        let stored = || {
            let sale = quote.sale.id(attempt);
            let attempt = *attempt;
            Ok(vec![say(ground, SaleStored { attempt, sale })])
        };
        let Some(signed) = self.sale.as_ref().filter(|it| it.signature.is_none()) else {
            return stored();
        };
        if quote.signature != signed.accept.quote {
            return Err(((RefusalCode::Signature, "signature"), Vec::new()));
        }
        if quote.nonce == signed.accept.quoted_nonce {
            return Ok(vec![say(ground, signed.accept.clone())]);
        }
        if sign::nonce(&quote.nonce).is_none() {
            return Err(((RefusalCode::Nonce, "nonce"), Vec::new()));
        }
        if self.opened || ground.frozen {
            return Ok(Vec::new());
        }
        let channel = id(ground, signed.terms());
        self.again = Some(Box::new(quote));
        Ok(vec![Effect::NeedRandomness(channel)])
    }

    fn signature(
        &mut self,
        ground: &Ground<'_>,
        sig: &SaleSig,
    ) -> Result<Vec<Effect>, RefusalCode> {
        let attempt = ground.slot.attempt;
        let is_meant = |terms: &SaleTerms, wanted: SaleId| terms.id(&attempt) == wanted;
        let stored = SaleStored {
            attempt,
            sale: sig.sale,
        };
        let stored = say(ground, stored);
        if self.done.iter().any(|terms| is_meant(terms, sig.sale)) {
            return Ok(vec![stored]);
        }
        let sale = self.sale.as_mut();
        let sale = sale.filter(|sale| is_meant(sale.terms(), sig.sale));
        let (Some(sale), Some(chain)) = (sale, &mut self.chain) else {
            return Err(RefusalCode::Unexpected);
        };
        if let Some(known) = sale.signature {
            // Said again after a reconnect.
            return match known == sig.signature {
                true => Ok(vec![stored]),
                false => Err(RefusalCode::Signature),
            };
        }
        if self.opened {
            // What leads to it may never be on chain. Nothing of it is the member's, or paid for.
            return Ok(Vec::new());
        }
        // A dead channel is not paid for, and what an epoch retires takes part in nothing more.
        if sale.lost || ground.frozen {
            return Err(RefusalCode::Unexpected);
        }
        chain
            .push(sale.terms().link_terms(), sig.signature)
            .map_err(|_| RefusalCode::Signature)?;
        sale.signature = Some(sig.signature);
        self.again = None;
        let record = MemberSaleSig {
            link: sale.terms().link,
            signature: sig.signature,
        };
        let mut effects = vec![Effect::Persist(record.into()), stored];
        effects.extend(self.advance(ground, false));
        Ok(effects)
    }

    fn not_sold(&mut self, ground: &Ground<'_>, answer: &NoSale) -> Result<Vec<Effect>, Refusal> {
        let is_pending = self
            .sale
            .as_ref()
            .is_some_and(|sale| sale.signature.is_none() && sale.terms().amount == answer.amount);
        let asked = self.ask.take_if(|ask| ask.amount == answer.amount);
        if asked.is_none() && !is_pending {
            // It was on its way when something else was asked for, which waits for its own answer.
            let mut earlier = self.earlier.iter();
            let Some(at) = earlier.position(|it| *it == answer.amount) else {
                return Err(((RefusalCode::Unexpected, "amount"), Vec::new()));
            };
            self.earlier.remove(at);
            return Ok(Vec::new());
        }
        // What was signed stays signed: the LSP may deliver it after all.
        self.quote = None;
        let told = Event::NotSold {
            slot: ground.slot,
            reason: answer.reason,
            least: answer.least,
            sellable: Sellable {
                up_to: answer.up_to,
                whole: answer.whole,
            },
        };
        Ok(vec![Effect::Emit(told)])
    }

    /// What the LSP may not have heard, and what is still owed.
    pub(crate) fn repeat(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let attempt = ground.slot.attempt;
        let Some(sale) = &self.sale else {
            let asked = self.ask.iter().filter(|_| self.quote.is_none());
            return asked.map(|ask| request(ground, ask)).collect();
        };
        let said = match sale.signature {
            None if self.opened || ground.frozen => return Vec::new(),
            None => say(ground, sale.accept.clone()),
            Some(_) => {
                let sale = sale.terms().id(&attempt);
                say(ground, SaleStored { attempt, sale })
            }
        };
        let mut effects = vec![said];
        effects.extend(self.bill(ground, sale));
        effects
    }
}
