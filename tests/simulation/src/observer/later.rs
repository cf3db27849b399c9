//! What holds of sales and new epochs over more than one moment: one sale for one stock output, one
//! state for one epoch, nonces of one life, and what must be on disk before something is said, used
//! or paid for.

use bitcoin::{Amount, OutPoint};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::journal::{Guard, Record, SaleStep};
use superscalar_factory::message::{Attempt, EpochName, Message, NonceBytes};
use superscalar_factory::terms::stock_hash;

use super::{Observer, conserved, name, payouts};
use crate::channel::Kind;
use crate::depart::forgoes_msat;
use crate::invariants::{Invariant, Violation, ensure};
use crate::party::{Party, Role, Who};

/// What a nonce was offered for, and in which life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    who: Who,
    purpose: Vec<u8>,
    life: u32,
}

impl Observer {
    /// An honest party writes a record after those it has.
    pub(crate) fn records(
        &mut self,
        who: Who,
        party: &Party,
        attempt: &Attempt,
        record: &Record,
    ) -> Result<(), Violation> {
        let live = party.live.as_ref();
        let opened = live.is_some_and(|live| live.opened.contains(attempt));
        let unopened = || {
            ensure(!opened, Invariant::NoEquivocation, || {
                let name = name(attempt);
                format!("{who} signs in {name}, which it knows to be opened")
            })
        };
        match (record, party.role(attempt)) {
            (Record::MemberSaleSigned(body), _) => {
                unopened()?;
                self.one_sale(who, body.accept.sale.stock, body.accept.sale.to_bytes())
            }
            (Record::LspSaleSigned(body), _) => {
                unopened()?;
                self.one_sale(who, body.sale.stock, body.sale.to_bytes())
            }
            (Record::MemberEpochCommitted(body), Some(Role::Member(role))) => {
                unopened()?;
                let key = (who, body.outpoint, body.epoch);
                let first = *self.states.entry(key).or_insert(body.sighash);
                ensure(first == body.sighash, Invariant::NoEquivocation, || {
                    format!("{who} signs two states of one epoch in {}", name(attempt))
                })?;
                let invite = role.invite();
                for tree in role.newer_trees() {
                    let slot = role.slot().slot;
                    payouts(tree, slot, &invite.capacity, invite.stock)?;
                }
                // What the new channel gives is what the old ones hold, with nothing pending; whoever
                // leaves has no new one, and forgoes no more than it agreed to.
                let place = (*attempt, role.slot().slot);
                let moved = role.moved_channel();
                let leaves = moved.is_none();
                let moved = moved.and_then(|id| party.disk.channels.get(&id));
                let given = moved.map_or(0, |channel| channel.balances.member_msat);
                let old: Vec<_> = party.counted(&place).collect();
                let held: u64 = old.iter().map(|(_, it)| it.balances.member_msat).sum();
                let rests = old.iter().all(|(_, it)| it.balances.htlcs.is_empty());
                let agreed = match leaves {
                    true => held <= forgoes_msat(attempt),
                    false => held == given,
                };
                if leaves {
                    let ids = old.iter().map(|(id, _)| **id).collect();
                    self.departing.insert((who, *attempt), ids);
                }
                ensure(rests && agreed, Invariant::Conservation, || {
                    let name = name(attempt);
                    format!("{who} signs {given} msat away for {held} in {name}: {rests}")
                })
            }
            (Record::EpochSigned(_), Some(Role::Coordinator(role))) => {
                let (Some(built), Some(tree)) = (role.built(), role.newest_tree()) else {
                    return Ok(());
                };
                let slots = built.terms.slots.iter();
                let owed: Amount = slots.map(|slot| slot.entitlement()).sum();
                conserved(tree, owed)
            }
            _ => Ok(()),
        }
    }

    fn one_sale(&mut self, who: Who, stock: OutPoint, sale: Vec<u8>) -> Result<(), Violation> {
        let first = self.sales.entry((who, stock)).or_insert(sale.clone());
        ensure(*first == sale, Invariant::NoEquivocation, || {
            format!("{who} signs two sales of {stock}")
        })
    }

    /// An honest party says something of a sale or a new epoch.
    pub(super) fn says_later(
        &mut self,
        who: Who,
        party: &Party,
        attempt: &Attempt,
        message: &Message,
    ) -> Result<(), Violation> {
        match message {
            Message::Quote(quote) => {
                let purpose = quote.sale.to_bytes();
                self.offers(who, party, quote.nonce, purpose)
            }
            Message::SaleAccept(accept) => {
                let mut purpose = accept.sale.to_bytes();
                purpose.extend(accept.quoted_nonce);
                // Made and used at once; said again it is the same.
                if !self.offered.contains_key(&accept.nonce) {
                    self.offers(who, party, accept.nonce, purpose)?;
                }
                self.signed(who, accept.nonce, accept.partial)
            }
            Message::EpochReady(ready) => {
                for (place, nonce) in ready.nonces.iter().enumerate() {
                    let mut purpose = ready.epoch.to_bytes();
                    purpose.extend(place.to_be_bytes());
                    self.offers(who, party, *nonce, purpose)?;
                }
                self.ready.insert((who, *attempt), ready.nonces.clone());
                Ok(())
            }
            Message::EpochPartials(said) => {
                let nonces = self.ready.get(&(who, *attempt)).cloned();
                let pairs = nonces.into_iter().flatten().zip(&said.partials);
                for (nonce, partial) in pairs.collect::<Vec<_>>() {
                    self.same_life(who, party, &nonce)?;
                    self.signed(who, nonce, *partial)?;
                }
                Ok(())
            }
            Message::EpochNonce(said) => {
                self.offers(who, party, said.nonce, said.round.to_vec())?;
                self.rounds.insert((who, said.round), said.nonce);
                Ok(())
            }
            Message::EpochPartial(said) => {
                let nonce = self.rounds.get(&(who, said.round)).copied();
                let Some(nonce) = nonce else {
                    return Ok(());
                };
                self.same_life(who, party, &nonce)?;
                self.signed(who, nonce, said.partial)
            }
            Message::EpochReveal(reveal) => {
                let opened = party.live.as_ref();
                let opened = opened.is_some_and(|live| live.opened.contains(attempt));
                let Some(Role::Coordinator(role)) = party.role(attempt) else {
                    return Ok(());
                };
                let chains = role.stock_chains();
                let stocks = chains.iter().flat_map(|chain| chain.stocks());
                let live: Vec<[u8; 32]> = stocks.map(|stock| stock.hash()).collect();
                let mut hashes = reveal.preimages.iter().map(stock_hash);
                let early = hashes.any(|hash| live.contains(&hash));
                ensure(!early && !opened, Invariant::NoEarlySecret, || {
                    let name = name(attempt);
                    format!("the LSP reveals what revokes stock in use of {name}: {early}")
                })
            }
            _ => Ok(()),
        }
    }

    fn offers(
        &mut self,
        who: Who,
        party: &Party,
        nonce: NonceBytes,
        purpose: Vec<u8>,
    ) -> Result<(), Violation> {
        let life = party.life;
        let offer = Offer { who, purpose, life };
        let first = self.offered.entry(nonce).or_insert(offer.clone());
        ensure(*first == offer, Invariant::Nonces, || {
            format!("{who} offers a nonce twice")
        })
    }

    fn same_life(&self, who: Who, party: &Party, nonce: &NonceBytes) -> Result<(), Violation> {
        let life = self.offered.get(nonce).map(|offer| offer.life);
        ensure(life == Some(party.life), Invariant::Nonces, || {
            format!(
                "{who} signs with a nonce of life {life:?} in {}",
                party.life
            )
        })
    }

    /// Whether everything that makes a channel its holder's is on disk, and it is paid for where an
    /// LSP uses it.
    pub(crate) fn is_whole(&self, party: &Party, id: &ChannelRef) -> Result<(), Violation> {
        let records = party.records(&id.slot.attempt);
        let whole = match Kind::of(id) {
            Kind::First => true,
            Kind::Moved => switched(records, id),
            Kind::Bought => delivered(records, id),
        };
        ensure(whole, Invariant::NoPrematureMoney, || {
            let name = name(&id.slot.attempt);
            format!("a channel of {name} counts that is not complete: {id:?}")
        })
    }
}

/// Whether the epoch that made a channel is switched to.
fn switched(records: &[Record], id: &ChannelRef) -> bool {
    let slot = id.slot.slot;
    let made = records.iter().rposition(|record| match record {
        Record::MemberEpochStored(body) => body.version == id.version,
        Record::LspSwitched(body) => body.slot == slot,
        _ => false,
    });
    let Some(after) = made.map(|at| &records[at..]) else {
        return false;
    };
    match &after[0] {
        Record::LspSwitched(_) => true,
        Record::MemberEpochStored(body) => {
            let has = |wanted: fn(&Record) -> bool| after.iter().any(wanted);
            has(|record| matches!(record, Record::EpochSigned(_)))
                && has(|record| matches!(record, Record::MemberEpochRevealed(_)))
                && (body.guard == Guard::Member
                    || has(|record| matches!(record, Record::MemberEpochGuarded(_))))
        }
        _ => false,
    }
}

/// Whether a sale is delivered, and at the LSP paid for.
fn delivered(records: &[Record], id: &ChannelRef) -> bool {
    let (slot, link) = (id.slot.slot, id.seq - 1);
    let sold = records.iter().position(|record| match record {
        Record::MemberSaleSigned(body) => {
            let sale = &body.accept.sale;
            sale.version == id.version && u32::from(sale.link) == link
        }
        Record::LspSaleSigned(body) => {
            let sale = &body.sale;
            sale.slot == slot && sale.version == id.version && u32::from(sale.link) == link
        }
        _ => false,
    });
    let Some(after) = sold.map(|at| &records[at..]) else {
        return false;
    };
    let stepped = |wanted: SaleStep| {
        after.iter().any(|record| match record {
            Record::SaleStepped(body) => {
                body.slot == slot && u32::from(body.link) == link && body.step == wanted
            }
            _ => false,
        })
    };
    match &after[0] {
        Record::LspSaleSigned(_) => stepped(SaleStep::Held) && stepped(SaleStep::Paid),
        Record::MemberSaleSigned(body) => {
            let signed = after.iter().any(|record| match record {
                Record::MemberSaleSig(body) => u32::from(body.link) == link,
                _ => false,
            });
            let guarded = body.guard == Guard::Member || stepped(SaleStep::Guarded);
            signed && stepped(SaleStep::Held) && guarded
        }
        _ => false,
    }
}

/// The records that must be on disk before something is said of a sale or a new epoch.
pub(super) fn announced(records: &[Record], attempt: &Attempt, message: &Message) -> bool {
    match message {
        Message::SaleAccept(said) => records.iter().any(|record| match record {
            Record::MemberSaleSigned(body) => body.accept.sale == said.sale,
            _ => false,
        }),
        Message::SaleStored(said) => {
            let sale = records.iter().position(|record| match record {
                Record::MemberSaleSigned(body) => body.accept.sale.id(attempt) == said.sale,
                _ => false,
            });
            let after = sale.map(|at| &records[at..]).unwrap_or_default();
            after
                .iter()
                .any(|record| matches!(record, Record::MemberSaleSig(_)))
        }
        Message::SaleSig(said) => {
            let sale = records.iter().position(|record| match record {
                Record::LspSaleSigned(body) => body.sale.id(attempt) == said.sale,
                _ => false,
            });
            let Some(after) = sale.map(|at| &records[at..]) else {
                return false;
            };
            let Record::LspSaleSigned(sold) = &after[0] else {
                return false;
            };
            after.iter().any(|record| match record {
                Record::SaleStepped(body) => {
                    let same = (body.slot, body.link) == (sold.sale.slot, sold.sale.link);
                    same && body.step == SaleStep::Held
                }
                _ => false,
            })
        }
        Message::EpochStored(said) => of_epoch(records, &said.epoch).is_some(),
        Message::EpochPartial(said) => of_epoch(records, &said.epoch).is_some_and(|after| {
            let committed = |record: &Record| matches!(record, Record::MemberEpochCommitted(_));
            after.iter().any(committed)
        }),
        Message::EpochCommit(said) => of_epoch(records, &said.epoch).is_some_and(|after| {
            let asked = |record: &Record| matches!(record, Record::LspEpochAsked(_));
            after.iter().any(asked)
        }),
        Message::EpochSig(said) => records.iter().any(|record| match record {
            Record::EpochSigned(body) => body.signature == said.signature,
            _ => false,
        }),
        Message::EpochReveal(said) => of_epoch(records, &said.epoch).is_some_and(|after| {
            let signed = |record: &Record| matches!(record, Record::EpochSigned(_));
            after.iter().any(signed)
        }),
        Message::SwitchAck(said) => of_epoch(records, &said.epoch).is_some_and(|after| {
            let has = |wanted: fn(&Record) -> bool| after.iter().any(wanted);
            has(|record| matches!(record, Record::EpochSigned(_)))
                && has(|record| matches!(record, Record::MemberEpochRevealed(_)))
        }),
        // Whoever has signed, or asked for signatures, ends nothing that is not ended on disk.
        Message::EpochEnd(said) => of_epoch(records, &said.epoch).is_none_or(|after| {
            let has = |wanted: fn(&Record) -> bool| after.iter().any(wanted);
            let bound = has(|record| {
                matches!(
                    record,
                    Record::MemberEpochCommitted(_) | Record::LspEpochAsked(_)
                )
            });
            !bound || has(|record| matches!(record, Record::EpochEnded(_) | Record::EpochSigned(_)))
        }),
        _ => true,
    }
}

/// The records from the last beginning of an epoch on.
fn of_epoch<'a>(records: &'a [Record], epoch: &EpochName) -> Option<&'a [Record]> {
    let begun = records.iter().rposition(|record| match record {
        Record::MemberEpochStored(body) => body.epoch == *epoch,
        Record::LspEpochBuilt(body) => body.epoch == *epoch,
        _ => false,
    });
    begun.map(|at| &records[at..])
}
