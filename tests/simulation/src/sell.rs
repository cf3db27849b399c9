//! Sales at work: members ask, accept and pay, the LSP prepares what a quote needs. Payments for
//! sales travel outside: one for each hash, which both ends hear of when they can.

use bitcoin::{Amount, OutPoint};
use superscalar_factory::coordinator;
use superscalar_factory::effect::{Bill, ChannelRef, Event, QuoteBacking, QuoteWanted, SlotRef};
use superscalar_factory::journal::{Guard, Record, SaleStep};
use superscalar_factory::member;
use superscalar_factory::message::{Attempt, SaleId};
use superscalar_factory::sale::{Ask, SalePolicy, Stage};

use crate::channel::Toward;
use crate::dice::secret;
use crate::invariants::{Invariant, Violation, ensure};
use crate::observer::name;
use crate::party::{Role, Who};
use crate::world::World;

/// Least that is sold.
const MIN_SALE: Amount = Amount::from_sat(2_000);

/// What an LSP sells at: in every third factory for nothing.
pub(crate) fn policy(attempt: &Attempt) -> SalePolicy {
    let free = attempt.instance.0[1].is_multiple_of(3);
    let [base_msat, ppm_per_month] = match free {
        true => [0, 0],
        false => [1_000, 2_500],
    };
    SalePolicy {
        base_msat: u64::from(base_msat),
        ppm_per_month,
        min_amount: MIN_SALE,
        valid_blocks: 6,
        min_life_blocks: 20,
    }
}

/// What a factory is called in which every place has a watchtower.
pub(crate) const ALL_GUARDED: u8 = 0;

/// Whether a place has a watchtower: one in four, or all of a factory.
pub(crate) fn guard(attempt: &Attempt, slot: u16) -> Guard {
    let named = attempt.instance.0[2];
    match named == ALL_GUARDED || (u16::from(named) + slot).is_multiple_of(4) {
        true => Guard::Watchtower,
        false => Guard::Member,
    }
}

impl World {
    /// A member takes the next step of buying, or its watchtower answers.
    pub(crate) fn sell_some(&mut self) -> Result<bool, Violation> {
        let mut able = Vec::new();
        for number in 0..self.wallets.len() as u16 {
            let wallet = self.party(Who::Wallet(number));
            let roles = wallet.live.iter().flat_map(|live| &live.roles);
            let active = roles.filter(|(_, role)| role.is_active());
            let staying = active.filter(|(attempt, _)| !wallet.disk.exits.contains_key(*attempt));
            able.extend(staying.map(|(attempt, _)| (number, *attempt)));
        }
        let Some(&(number, attempt)) = self.dice.pick(&able) else {
            return Ok(false);
        };
        let wallet = self.party(Who::Wallet(number));
        let Some(live) = &wallet.live else {
            return Ok(false);
        };
        let bill = live.bills.values().find(|it| it.id.slot.attempt == attempt);
        if let Some(bill) = bill.cloned() {
            return self.pay_bill(number, bill);
        }
        if let Some(sale) = live.quoted.get(&attempt).copied() {
            return self.accept_quote(number, attempt, sale);
        }
        let Some(Role::Member(role)) = wallet.role(&attempt) else {
            return Ok(false);
        };
        match role.sale_stage() {
            None => self.ask_for_channel(number, attempt),
            Some(Stage::Signed) => self.guarded(number, attempt),
            Some(_) => Ok(false),
        }
    }

    fn ask_for_channel(&mut self, number: u16, attempt: Attempt) -> Result<bool, Violation> {
        let who = Who::Wallet(number);
        let Some(Role::Member(role)) = self.party(who).role(&attempt) else {
            return Ok(false);
        };
        let (sellable, slot) = (role.sellable(), role.slot().slot);
        let Some(id) = role.next_channel().filter(|_| sellable.whole >= MIN_SALE) else {
            return Ok(false);
        };
        let all = self.dice.per_mille(150) || sellable.up_to < MIN_SALE;
        let amount = match all {
            true => sellable.whole,
            false => {
                let most = sellable.up_to.to_sat();
                let most = match self.dice.per_mille(700) {
                    true => most / 2,
                    false => most,
                };
                Amount::from_sat(self.dice.between(MIN_SALE.to_sat(), most))
            }
        };
        let ask = Ask {
            amount,
            max_price_msat: u64::MAX,
            funding_key: self.keys(id).funding(Toward::Member),
            guard: guard(&attempt, slot),
        };
        let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) else {
            return Ok(false);
        };
        let Ok(effects) = role.ask(ask) else {
            return Ok(false);
        };
        self.note(format_args!(
            "{who} asks for {amount} in {}",
            name(&attempt)
        ));
        self.queue(who, attempt, effects);
        self.settle().map(|()| true)
    }

    fn accept_quote(
        &mut self,
        number: u16,
        attempt: Attempt,
        sale: SaleId,
    ) -> Result<bool, Violation> {
        let who = Who::Wallet(number);
        let randomness = self.randomness();
        if let Some(live) = &mut self.party_mut(who).live {
            live.quoted.remove(&attempt);
        }
        let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) else {
            return Ok(false);
        };
        let Ok(effects) = role.accept(sale, &randomness) else {
            return Ok(false);
        };
        self.note(format_args!("{who} accepts a quote in {}", name(&attempt)));
        self.queue(who, attempt, effects);
        self.settle().map(|()| true)
    }

    fn guarded(&mut self, number: u16, attempt: Attempt) -> Result<bool, Violation> {
        let who = Who::Wallet(number);
        let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) else {
            return Ok(false);
        };
        let chain = role.stock_chain();
        let last = chain.and_then(|chain| chain.links().last());
        let Some(place) = last.map(|sold| sold.place()) else {
            return Ok(false);
        };
        let id = ChannelRef::sold(role.slot(), role.version(), place);
        let place = (attempt, role.slot().slot);
        self.hand_over(number, place)?;
        let role = self.party_mut(who).role_mut(&attempt);
        let Some(Role::Member(role)) = role else {
            return Ok(false);
        };
        let effects = role.handle(member::Input::BoughtGuarded(id));
        let any = !effects.is_empty();
        self.queue(who, attempt, effects);
        self.settle().map(|()| any)
    }

    /// What a quote needs; the same whenever it is asked for, but for nonce and a new hash.
    pub(crate) fn prepare_quote(&mut self, attempt: Attempt, wanted: QuoteWanted) {
        let randomness = self.randomness();
        let free = wanted.price_msat == 0;
        let new_hash = match free {
            true => [0; 32],
            false => self.dice.bytes(),
        };
        let backing = QuoteBacking {
            funding_key: self.keys(wanted.id).funding(Toward::Lsp),
            payment_hash: wanted.payment_hash.unwrap_or(new_hash),
            invoice: match free {
                true => String::new(),
                false => "an invoice".to_owned(),
            },
            randomness,
        };
        if let Some(Role::Coordinator(role)) = self.lsp.role_mut(&attempt) {
            let effects = role.handle(coordinator::Input::QuotePrepared { wanted, backing });
            self.queue(Who::Lsp, attempt, effects);
        }
    }

    pub(crate) fn give_sale_randomness(&mut self, who: Who, id: ChannelRef) {
        let randomness = self.randomness();
        if let Some(Role::Member(role)) = self.party_mut(who).role_mut(&id.slot.attempt) {
            let effects = role.handle(member::Input::SaleRandomness { id, randomness });
            self.queue(who, id.slot.attempt, effects);
        }
    }

    /// A member owes for a channel, which must be its own by then.
    pub(crate) fn owe(&mut self, who: Who, bill: Bill) -> Result<(), Violation> {
        if self.party(who).is_honest() {
            self.observer.is_whole(self.party(who), &bill.id)?;
        }
        if let Some(live) = &mut self.party_mut(who).live {
            live.bills.insert(bill.id, bill);
        }
        Ok(())
    }

    /// A member pays what it owes, one hash once. It may hear of it before the LSP or after.
    fn pay_bill(&mut self, number: u16, bill: Bill) -> Result<bool, Violation> {
        let who = Who::Wallet(number);
        let (attempt, hash) = (bill.id.slot.attempt, bill.payment_hash);
        // Somebody who never pays gets no more.
        if !self.party(who).is_honest() && number.is_multiple_of(2) {
            return Ok(false);
        }
        let seed = self.seed;
        let party = self.party_mut(who);
        let first = party.disk.payments.insert(hash, bill.price_msat);
        let known = first.is_none_or(|paid| paid == bill.price_msat);
        ensure(
            known || !party.is_honest(),
            Invariant::NoEquivocation,
            || format!("{who} pays a hash again in {}", name(&attempt)),
        )?;
        self.counts.paid += u64::from(first.is_none());
        self.note(format_args!(
            "{who} pays for a channel in {}",
            name(&attempt)
        ));
        self.burn(who)?;
        self.lsp.disk.payments.insert(hash, bill.price_msat);
        let lsp_first = secret(seed, "who hears first", u64::from(hash[0]))[0] < 128;
        for lsp in [lsp_first, !lsp_first] {
            match lsp {
                true => self.tell_payment(attempt, hash),
                false => {
                    if let Some(live) = &mut self.party_mut(who).live {
                        live.bills.remove(&bill.id);
                    }
                    if let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) {
                        let effects = role.handle(member::Input::SalePaid(bill.id));
                        self.queue(who, attempt, effects);
                    }
                }
            }
            self.settle()?;
        }
        Ok(true)
    }

    fn tell_payment(&mut self, attempt: Attempt, payment_hash: [u8; 32]) {
        if let Some(Role::Coordinator(role)) = self.lsp.role_mut(&attempt) {
            let effects = role.handle(coordinator::Input::SalePaid { payment_hash });
            self.queue(Who::Lsp, attempt, effects);
        }
    }

    /// After a restart of the LSP: payments that have arrived and that it does not know of.
    pub(crate) fn tell_payments(&mut self) {
        let roles = self.lsp.live.iter().flat_map(|live| &live.roles);
        let mut arrived = Vec::new();
        for (attempt, role) in roles {
            let Role::Coordinator(role) = role else {
                continue;
            };
            let payments = &self.lsp.disk.payments;
            let owed = role.owed().into_iter();
            let there = owed.filter(|hash| payments.contains_key(hash));
            arrived.extend(there.map(|hash| (*attempt, hash)));
        }
        for (attempt, hash) in arrived {
            self.tell_payment(attempt, hash);
        }
    }

    /// The output that the last sale to a place was to spend, if its channel was lost in an epoch
    /// before this one.
    fn lost_before(&self, slot: &SlotRef, version: u32) -> Option<OutPoint> {
        let records = self.lsp.records(&slot.attempt).iter().rev();
        let mut lost = None;
        for record in records {
            match record {
                Record::SaleStepped(body) if body.slot == slot.slot => {
                    lost = lost.or((body.step == SaleStep::Lost).then_some(body.link));
                }
                Record::LspSaleSigned(body) if body.sale.slot == slot.slot => {
                    let meant = lost == Some(body.sale.link) && body.sale.version < version;
                    return meant.then_some(body.sale.stock);
                }
                _ => {}
            }
        }
        None
    }

    /// What an application hears of sales and epochs.
    pub(crate) fn told_more(&mut self, who: Who, attempt: Attempt, event: &Event) {
        match event {
            Event::Quoted { sale, .. } => {
                if let Some(live) = &mut self.party_mut(who).live {
                    live.quoted.insert(attempt, *sale);
                }
            }
            Event::Delivered { .. } if who != Who::Lsp => self.counts.sales += 1,
            Event::Moved { .. } if who != Who::Lsp => self.counts.moves += 1,
            Event::Moved { slot, version } => {
                let lost = self.lost_before(slot, *version);
                let first = lost.is_some_and(|stock| self.outlived.insert(stock));
                self.counts.outlived += u64::from(first);
            }
            Event::Limbo { .. } => self.counts.limbo += 1,
            Event::EpochHangs { .. } => {
                if let Some(live) = &mut self.lsp.live {
                    live.hanging.insert(attempt);
                }
            }
            Event::EpochEnded { .. } if who == Who::Lsp => {
                if let Some(live) = &mut self.lsp.live {
                    live.hanging.remove(&attempt);
                }
            }
            _ => {}
        }
    }
}
