//! What the roles ask for, carried out one effect after the other, as a host does it. A party can
//! be killed between any two.

use bitcoin::{Transaction, TxOut};
use superscalar_factory::codec::{Decode as _, Encode as _};
use superscalar_factory::coordinator;
use superscalar_factory::effect::{ChannelRef, Effect, Event};
use superscalar_factory::journal::Record;
use superscalar_factory::message::{Attempt, Message};

use crate::bugs::Bug;
use crate::channel::{Kind, Stage};
use crate::invariants::{Invariant, Violation, ensure};
use crate::money;
use crate::observer::{self, name};
use crate::party::{Party, Role, Who, place_of};
use crate::world::World;

impl World {
    pub(crate) fn queue(&mut self, who: Who, attempt: Attempt, effects: Vec<Effect>) {
        let effects = effects.into_iter();
        self.due
            .extend(effects.map(|effect| (who, attempt, effect)));
    }

    /// Carries out all that is due, and what follows from it.
    pub(crate) fn settle(&mut self) -> Result<(), Violation> {
        while let Some((who, attempt, effect)) = self.due.pop_front() {
            if !self.party(who).is_live() {
                continue;
            }
            self.carry_out(who, attempt, effect)?;
            self.burn(who)?;
        }
        Ok(())
    }

    /// One durable write or effect less until a party dies.
    pub(crate) fn burn(&mut self, who: Who) -> Result<(), Violation> {
        let party = self.party_mut(who);
        match party.fuse {
            Some(0 | 1) => self.kill(who),
            Some(left) => {
                party.fuse = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn carry_out(&mut self, who: Who, attempt: Attempt, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Persist(record) => self.persist(who, attempt, record),
            Effect::Send { to, message } => self.send(who, to, message),
            Effect::Fund(output) => {
                self.fund(who, attempt, output);
                Ok(())
            }
            Effect::ReleaseFunding(txid) => {
                let published = self.observer.is_published(&attempt) && self.lsp.is_honest();
                ensure(!published, Invariant::FundedLast, || {
                    format!(
                        "the coins of {}, which is published, are freed",
                        name(&attempt)
                    )
                })?;
                self.lsp.disk.reserved.remove(&txid);
                Ok(())
            }
            Effect::Agree(channel) => self.agree(who, ChannelRef::first(channel.slot), channel),
            Effect::AgreeBought(bought) => self.agree(who, bought.id, bought.channel),
            Effect::AgreeMoved(moved) => self.agree(who, moved.id, moved.channel),
            Effect::Open(slot) => {
                self.open_channel(ChannelRef::first(slot));
                Ok(())
            }
            Effect::OpenBought(id) | Effect::OpenMoved(id) => {
                self.open_channel(id);
                Ok(())
            }
            Effect::Activate(slot) => self.activate(who, ChannelRef::first(slot)),
            Effect::ActivateBought(id) | Effect::ActivateMoved(id) => self.activate(who, id),
            Effect::Suspend(slot) => {
                self.suspend(who, ChannelRef::first(slot));
                Ok(())
            }
            Effect::SuspendBought(id) | Effect::SuspendMoved(id) => {
                self.suspend(who, id);
                Ok(())
            }
            Effect::Discard(slot) => self.discard(who, ChannelRef::first(slot)),
            Effect::DiscardMoved(id) => self.discard_moved(who, id),
            Effect::Retire(id) => self.retire(who, id),
            Effect::Freeze(slot) => {
                self.freeze(who, slot);
                Ok(())
            }
            Effect::Thaw(slot) => {
                self.thaw(who, slot, None);
                Ok(())
            }
            Effect::Limbo { slot, frozen_msat } => {
                self.thaw(who, slot, Some(frozen_msat));
                Ok(())
            }
            Effect::NeedEpochRandomness(_) => {
                self.give_epoch_randomness(who, attempt);
                Ok(())
            }
            Effect::PrepareQuote(wanted) => {
                self.prepare_quote(attempt, wanted);
                Ok(())
            }
            Effect::NeedRandomness(id) => {
                self.give_sale_randomness(who, id);
                Ok(())
            }
            Effect::Pay(bill) => self.owe(who, bill),
            Effect::Watch(outpoint) => {
                if let Some(live) = &mut self.party_mut(who).live {
                    live.watched.entry(attempt).or_insert((outpoint.txid, None));
                }
                self.look_at_fundings(who)
            }
            Effect::Broadcast(tx) => self.broadcast(who, attempt, tx),
            Effect::Emit(event) => self.told(who, attempt, &event),
            other => Err(Violation::new(
                Invariant::BadInput,
                format!("an effect this world does not know: {other:?}"),
            )),
        }
    }

    fn persist(&mut self, who: Who, attempt: Attempt, record: Record) -> Result<(), Violation> {
        let read = Record::from_bytes(&record.to_bytes(), "record");
        ensure(
            read.as_ref() == Ok(&record),
            Invariant::CrashAnywhere,
            || format!("{who} cannot read back {record:?}"),
        )?;
        let root = matches!(record, Record::LspRoot(_));
        let signed = matches!(record, Record::EpochSigned(_));
        let kind = kind(&record);
        self.note(format_args!("{who} writes {kind} of {}", name(&attempt)));
        let written = match self.bug {
            Some(bug) => bug.written(record),
            None => Some(record),
        };
        if let Some(record) = written {
            let party = match who {
                Who::Lsp => &self.lsp,
                Who::Wallet(number) => &self.wallets[usize::from(number)],
            };
            if party.is_honest() {
                observer::writes(who, party, &attempt, &record)?;
                self.observer.records(who, party, &attempt, &record)?;
            }
            let disk = &mut self.party_mut(who).disk;
            disk.journals.entry(attempt).or_default().push(record);
            self.moved_on(who, attempt, signed);
        }
        if root && self.bug == Some(Bug::FundingBeforeAcks) {
            self.publish_at_once(attempt)?;
        }
        self.wrote(who, &attempt)
    }

    /// Something of an attempt has just reached a party's disk: a wallet's money is safe with what
    /// is there now.
    pub(crate) fn wrote(&mut self, who: Who, attempt: &Attempt) -> Result<(), Violation> {
        match who {
            Who::Wallet(number) => self.check_money(number, attempt),
            Who::Lsp => Ok(()),
        }
    }

    /// A channel is given up: of what it holds nothing is ever published.
    fn discard(&mut self, who: Who, id: ChannelRef) -> Result<(), Violation> {
        if let Who::Wallet(number) = who
            && self.party(who).is_honest()
        {
            let counted = self.counts_on(number, &id.slot.attempt);
            ensure(!counted, Invariant::Recoverability, || {
                let name = name(&id.slot.attempt);
                format!("{who} gives its channel in {name} up, which exists")
            })?;
        }
        self.close(who, id);
        Ok(())
    }

    fn publish_at_once(&mut self, attempt: Attempt) -> Result<(), Violation> {
        let Some(Role::Coordinator(role)) = self.lsp.role(&attempt) else {
            return Ok(());
        };
        let funding = role.built().map(|built| built.funding.clone());
        funding.map_or(Ok(()), |tx| self.broadcast(Who::Lsp, attempt, tx))
    }

    /// Sends, if the peer is there; roles repeat themselves when it comes back.
    pub(crate) fn send(
        &mut self,
        who: Who,
        to: bitcoin::secp256k1::PublicKey,
        message: Message,
    ) -> Result<(), Violation> {
        let number = match who {
            Who::Wallet(number) => number,
            Who::Lsp => match self.wallet_of(&to) {
                Some(number) => number,
                None => return Ok(()),
            },
        };
        if self.overheard.len() == 64 {
            self.overheard.pop_front();
        }
        self.overheard.push_back((who, message.clone()));
        if !self.party(who).is_honest() {
            return self.twist(who, number, message);
        }
        let slot = slot_of(self.party(who), &message, &to).unwrap_or(number);
        let party = match who {
            Who::Lsp => &self.lsp,
            Who::Wallet(number) => &self.wallets[usize::from(number)],
        };
        self.observer.says(who, party, slot, &message)?;
        self.put(who, number, &message, crate::network::Origin::Role);
        Ok(())
    }

    fn fund(&mut self, who: Who, attempt: Attempt, output: TxOut) {
        let reserved = &self.lsp.disk.reserved;
        let taken: Vec<_> = reserved
            .values()
            .flat_map(|tx| tx.input.iter().map(|input| input.previous_output))
            .collect();
        let script = money::wallet_script(&self.coin_key.public_key(&crate::dice::SECP));
        let coins = self.chain.coins_of(&script);
        let free = coins.into_iter().find(|(outpoint, coin)| {
            !taken.contains(outpoint)
                && coin.value > output.value
                && self.chain.spender(outpoint).is_none()
        });
        let funding = free.and_then(|(outpoint, coin)| {
            money::funding((outpoint, &coin), &self.coin_key, output, 5)
        });
        let input = match funding {
            None => coordinator::Input::FundingFailed,
            Some(tx) => {
                let txid = tx.compute_txid();
                self.lsp.disk.reserved.insert(txid, tx.clone());
                self.fundings.insert(txid, tx.clone());
                coordinator::Input::Funded { tx, vout: 0 }
            }
        };
        if let Some(Role::Coordinator(role)) = self.party_mut(who).role_mut(&attempt) {
            let effects = role.handle(input);
            self.queue(who, attempt, effects);
        }
    }

    fn activate(&mut self, who: Who, id: ChannelRef) -> Result<(), Violation> {
        let exists = self.exists(who, &id);
        if self.party(who).is_honest() {
            exists?;
        }
        let name = name(&id.slot.attempt);
        self.note(format_args!("{who} opens the gate of {name}"));
        if let Some(live) = &mut self.party_mut(who).live {
            live.open.insert(id);
        }
        Ok(())
    }

    /// Whether the factory is real for this party: path complete and stored, funding buried.
    fn exists(&self, who: Who, id: &ChannelRef) -> Result<(), Violation> {
        let place = &place_of(id);
        let party = self.party(who);
        let records = party.records(&place.0);
        let complete =
            |record: &Record| matches!(record, Record::MemberRootSig(_) | Record::LspPublished(_));
        let premature = |what: &str| {
            let name = name(&place.0);
            Violation::new(
                Invariant::NoPrematureMoney,
                format!("{who} counts on {name}, whose {what}"),
            )
        };
        if !records.iter().any(complete) {
            return Err(premature("path is not stored"));
        }
        let channel = party.disk.channels.get(id);
        let channel = channel.ok_or_else(|| premature("channel is not agreed"))?;
        if !matches!(channel.stage, Stage::Held | Stage::Over) {
            return Err(premature("channel is not held"));
        }
        let watched = party
            .live
            .as_ref()
            .and_then(|live| live.watched.get(&place.0));
        // What is bought or moved to comes with a message: a reorg may not have been seen by then.
        let (height, tip) = match Kind::of(id) {
            Kind::First => {
                let height = watched.and_then(|(txid, _)| self.chain.height_of(txid));
                (height, self.chain.tip())
            }
            _ => {
                let seen = party.live.as_ref().map_or(0, |live| live.tip);
                (watched.and_then(|(_, told)| *told), seen)
            }
        };
        let height = height.ok_or_else(|| premature("funding is not in the chain"))?;
        let depth = (tip + 1).saturating_sub(height);
        if depth < u32::from(channel.agreed.timing.min_depth) {
            return Err(premature("funding is not buried"));
        }
        self.observer.is_whole(party, id)
    }

    fn suspend(&mut self, who: Who, id: ChannelRef) {
        if let Some(live) = &mut self.party_mut(who).live {
            live.open.remove(&id);
        }
    }

    fn broadcast(&mut self, who: Who, attempt: Attempt, tx: Transaction) -> Result<(), Violation> {
        let name = name(&attempt);
        self.note(format_args!("{who} publishes the funding of {name}"));
        if self.lsp.is_honest() {
            let first = !self.observer.is_published(&attempt);
            self.observer.publishes(&self.lsp, &attempt, &tx)?;
            // From then on each is checked whenever it writes.
            if first {
                self.counts.published += 1;
                self.check_all_complete(&attempt)?;
            }
        }
        if let Some(live) = &mut self.party_mut(who).live
            && !live.publishing.contains(&tx)
        {
            live.publishing.push(tx.clone());
        }
        // Refused is not lost: it is sent again with every block.
        let _ = self.chain.submit(&tx);
        if self.bug == Some(Bug::CoinsReleased) {
            let released = vec![Effect::ReleaseFunding(tx.compute_txid())];
            self.queue(who, attempt, released);
        }
        Ok(())
    }

    fn told(&mut self, who: Who, attempt: Attempt, event: &Event) -> Result<(), Violation> {
        match (who, event) {
            (Who::Lsp, Event::Published { .. }) => {
                if let Some(live) = &mut self.lsp.live {
                    live.plans.remove(&attempt);
                }
            }
            (Who::Lsp, Event::Ended { code, at_fault, .. }) => {
                let name = name(&attempt);
                self.note(format_args!("{name} ends: {code}, because of {at_fault:?}"));
                self.retry(attempt, at_fault)?;
            }
            (Who::Wallet(_), Event::Left { slot, forgone_msat }) => {
                self.left(who, *slot, *forgone_msat)?;
            }
            (who, event) => self.told_more(who, attempt, event),
        }
        Ok(())
    }

    /// After a failed attempt: again without those at fault.
    fn retry(&mut self, attempt: Attempt, at_fault: &[u16]) -> Result<(), Violation> {
        let plan = self
            .lsp
            .live
            .as_mut()
            .and_then(|live| live.plans.remove(&attempt));
        let Some(plan) = plan.filter(|_| !at_fault.is_empty() && attempt.number < 4) else {
            return Ok(());
        };
        match plan.retry(at_fault) {
            Some(next) => self.begin(next),
            None => Ok(()),
        }
    }
}

/// The slot that what the LSP says to `to` is about.
fn slot_of(party: &Party, message: &Message, to: &bitcoin::secp256k1::PublicKey) -> Option<u16> {
    let Some(Role::Coordinator(role)) = party.role(&message.attempt()?) else {
        return None;
    };
    let slot = role.peers().iter().position(|peer| peer == to)?;
    Some(slot as u16)
}

fn kind(record: &Record) -> &'static str {
    match record {
        Record::MemberJoined(_) => "its join",
        Record::MemberSigned(_) => "the terms it signs",
        Record::MemberPath(_) => "its path",
        Record::MemberRootPartial(_) => "its root partial",
        Record::MemberRootSig(_) => "the root signature",
        Record::LspGathering(_) => "the gathering",
        Record::LspTerms(_) => "the terms",
        Record::LspNodes(_) => "all nodes",
        Record::LspRoot(_) => "the root",
        Record::LspPublished(_) => "the publication",
        Record::Activated(_) => "the activation",
        Record::Ended(_) => "the end",
        Record::MemberSaleSigned(_) | Record::LspSaleSigned(_) => "a sale it has signed",
        Record::MemberSaleSig(_) => "a sale's signature",
        Record::SaleStepped(_) => "a step of a sale",
        Record::MemberEpochStored(_) | Record::LspEpochBuilt(_) => "a new epoch",
        Record::LspEpochAsked(_) => "that it asks for a new epoch",
        Record::MemberEpochCommitted(_) => "that it signs a new epoch",
        Record::EpochSigned(_) => "a new epoch's signature",
        Record::EpochEnded(_) => "the end of a new epoch",
        Record::MemberEpochRevealed(_) => "preimages",
        Record::LspSwitched(_) => "a switch",
        Record::MemberEpochSeen(_) => "a signature it found",
        _ => "a record",
    }
}
