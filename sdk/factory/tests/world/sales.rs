//! Buying and selling in a world.

use bitcoin::Amount;
use superscalar_factory::coordinator::{self, FactoryPlan};
use superscalar_factory::effect::{ChannelRef, Event, QuoteBacking, QuoteWanted};
use superscalar_factory::journal::Guard;
use superscalar_factory::member;
use superscalar_factory::message::SaleId;
use superscalar_factory::sale::{Ask, BuyError, SalePolicy};

use super::{Party, TIP, World, bytes, key, policy};

/// Who holds a channel that is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    ByNobody,
    ByTheMember,
}

impl World {
    /// An active factory whose LSP sells.
    pub fn selling(plan: FactoryPlan) -> World {
        let mut world = World::with(plan);
        world.run();
        world.confirm_funding(TIP + 1);
        world.sell_at(Some(policy()));
        world
    }

    pub fn sell_at(&mut self, policy: Option<SalePolicy>) {
        self.policy = policy.clone();
        self.lsp.as_mut().unwrap().set_sale_policy(policy);
    }

    /// 32 bytes never drawn before in this world.
    pub fn random(&mut self) -> [u8; 32] {
        self.drawn += 1;
        bytes("drawn", self.drawn)
    }

    /// What the LSP's shell knows of a channel: the same key whenever it is asked, and the invoice
    /// of the hash it is asked for.
    pub fn backing(&mut self, wanted: &QuoteWanted) -> QuoteBacking {
        let number = u64::from(wanted.id.slot.slot) * 100 + u64::from(wanted.id.seq);
        let randomness = self.random();
        let free = wanted.price_msat == 0;
        let new_hash = if free {
            [0; 32]
        } else {
            bytes("payment", self.drawn)
        };
        let payment_hash = wanted.payment_hash.unwrap_or(new_hash);
        QuoteBacking {
            funding_key: key("lsp bought", number),
            payment_hash,
            invoice: if free {
                String::new()
            } else {
                "lnbcrt".repeat(40)
            },
            randomness,
        }
    }

    /// What a member asks for, watched by itself.
    pub fn wish(&self, slot: u16, sat: u64) -> Ask {
        let id = self.members[&slot].next_channel();
        let seq = id.map_or(0, |id| u64::from(id.seq));
        Ask {
            amount: Amount::from_sat(sat),
            max_price_msat: u64::MAX,
            funding_key: key("member bought", u64::from(slot) * 100 + seq),
            guard: Guard::Member,
        }
    }

    /// The member asks; gives the quote's sale once it is there.
    pub fn ask(&mut self, slot: u16, ask: Ask) -> Result<Option<SaleId>, BuyError> {
        let before = self.events.len();
        let effects = self.members.get_mut(&slot).unwrap().ask(ask)?;
        self.act(Party::Member(slot), effects);
        self.deliver();
        Ok(self.events[before..]
            .iter()
            .find_map(|(who, event)| match event {
                Event::Quoted { sale, .. } if *who == Party::Member(slot) => Some(*sale),
                _ => None,
            }))
    }

    /// The member accepts; what follows is yet to be delivered.
    pub fn accept(&mut self, slot: u16, sale: SaleId) -> Result<(), BuyError> {
        let randomness = self.random();
        let accepted = self
            .members
            .get_mut(&slot)
            .unwrap()
            .accept(sale, &randomness);
        self.act(Party::Member(slot), accepted?);
        Ok(())
    }

    /// Both sides hold the bought channel if they agreed to the same one.
    pub fn open_bought(&mut self, id: ChannelRef) {
        let slot = id.slot.slot;
        let ours = self.bought.get(&(Party::Lsp, id)).cloned();
        let theirs = self.bought.get(&(Party::Member(slot), id)).cloned();
        let (Some(mut ours), Some(theirs)) = (ours, theirs) else {
            return;
        };
        ours.peer = theirs.peer;
        assert_eq!(ours, theirs);
        self.tell_lsp(coordinator::Input::BoughtHeld(id));
        self.tell(slot, member::Input::BoughtHeld(id));
    }

    /// A member signs a sale whose channel is given up: the LSP's final signature stays where it is.
    /// `held` says whether the member had it by then.
    pub fn lose_bought(&mut self, slot: u16, sat: u64, held: Held) -> ChannelRef {
        let sale = self.ask(slot, self.wish(slot, sat)).unwrap();
        let id = self.members[&slot].next_channel().unwrap();
        self.accept(slot, sale.expect("a quote")).unwrap();
        while let Some((from, to, message)) = self.inbox.pop_front() {
            self.hand_over(from, to, message);
        }
        assert_eq!(self.opening_bought.pop_front(), Some(id));
        if held == Held::ByTheMember {
            self.tell(slot, member::Input::BoughtHeld(id));
            self.tell(slot, member::Input::BoughtLost(id));
        }
        self.tell_lsp(coordinator::Input::BoughtLost(id));
        id
    }

    /// Members pay what they owe; gives how many did.
    pub fn pay(&mut self) -> usize {
        let mut paid = 0;
        while let Some((slot, bill)) = self.bills.pop_front() {
            let payment_hash = bill.payment_hash;
            self.paid.insert(payment_hash, bill.price_msat);
            self.tell_lsp(coordinator::Input::SalePaid { payment_hash });
            self.tell(slot, member::Input::SalePaid(bill.id));
            paid += 1;
        }
        paid
    }

    /// A whole sale, paid for.
    pub fn buy(&mut self, slot: u16, sat: u64) {
        let sale = self
            .ask(slot, self.wish(slot, sat))
            .unwrap()
            .expect("a quote");
        self.accept(slot, sale).unwrap();
        self.deliver();
        self.pay();
        self.deliver();
    }
}
