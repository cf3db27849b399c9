//! A world of one LSP and its members in one process: effects are carried out in order, messages
//! travel as wire frames, channels open by themselves and blocks come when a test says so.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by several test programs, none of which uses all of it; a world that cannot \
              be set up ends its test"
)]

pub mod epochs;
pub mod sales;

use std::collections::{BTreeMap, VecDeque};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, Txid, WPubkeyHash, Witness,
};
use superscalar_factory::codec::{Decode as _, Encode as _};
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan, LspSecrets, Seat};
use superscalar_factory::effect::{Bill, ChannelRef, Effect, Event, QuoteWanted, SlotChannel};
use superscalar_factory::epoch::EpochLimits;
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::{Attempt, Message};
use superscalar_factory::sale::SalePolicy;
use superscalar_factory::shape::Shape;
use superscalar_factory::signing::FactoryKey;
use superscalar_factory::terms::{Instance, TimeoutPolicy};
use superscalar_factory::timing::Timing;
use superscalar_factory::wire::{self, Assembler};

pub fn bytes(label: &str, number: u64) -> [u8; 32] {
    sha256::Hash::hash(format!("{label}/{number}").as_bytes()).to_byte_array()
}

pub fn key(label: &str, number: u64) -> PublicKey {
    SecretKey::from_slice(&bytes(label, number))
        .unwrap()
        .public_key(&Secp256k1::signing_only())
}

pub fn payout(number: u64) -> ScriptBuf {
    let hash = bytes("payout", number);
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_slice(&hash[..20]).unwrap())
}

pub fn plan(members: u16) -> FactoryPlan {
    let shape = Shape::two_layers(usize::from(members));
    let seat = |number: u16| Seat {
        peer: key("node", u64::from(number) + 1),
        capacity: Amount::from_sat(500_000),
        push_msat: 0,
        stock: Amount::from_sat(100_000),
        price: Amount::ZERO,
    };
    FactoryPlan {
        attempt: Attempt {
            instance: Instance(bytes("instance", 0)),
            number: 0,
        },
        network: Network::Regtest,
        timing: Timing::regtest(shape.layers()),
        shape,
        expiry: 1_500,
        tree_feerate: 10,
        policy: TimeoutPolicy::MembersReclaim,
        lsp_payout: payout(0),
        round_seconds: 30,
        seats: (0..members).map(seat).collect(),
    }
}

pub const TIP: u32 = 100;

/// The LSP's key in the factory of this attempt.
pub fn lsp_key(attempt: Attempt) -> FactoryKey {
    let salt = bytes("lsp salt", number(attempt));
    FactoryKey::derive(&bytes("lsp seed", 0), &salt)
}

/// A member's key in the factory of this attempt.
pub fn member_key(attempt: Attempt, slot: u16) -> FactoryKey {
    let salt = bytes("member salt", number(attempt) + u64::from(slot));
    FactoryKey::derive(&bytes("member seed", u64::from(slot)), &salt)
}

/// What the LSP of a world sells at, once it sells.
pub fn policy() -> SalePolicy {
    SalePolicy {
        base_msat: 1_000,
        ppm_per_month: 2_500,
        min_amount: Amount::from_sat(5_000),
        valid_blocks: 6,
        min_life_blocks: 144,
    }
}

/// Another number for every attempt and factory, with room for slots: what would be random.
fn number(attempt: Attempt) -> u64 {
    let mut first = [0; 8];
    first[..4].copy_from_slice(&attempt.instance.0[..4]);
    u64::from_be_bytes(first) + 1_000 * u64::from(attempt.number)
}

/// Who a message or an effect belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Lsp,
    Member(u16),
}

pub struct World {
    pub plan: FactoryPlan,
    pub lsp: Option<Coordinator>,
    pub members: BTreeMap<u16, Member>,
    /// Durable records of each party.
    pub journal: BTreeMap<Party, Vec<Record>>,
    /// Messages on their way.
    pub inbox: VecDeque<(Party, Party, Message)>,
    /// Channels the LSP is about to open.
    pub opening: VecDeque<u16>,
    /// Every message ever sent, in order.
    pub log: Vec<(Party, Message)>,
    pub events: Vec<(Party, Event)>,
    /// Channels agreed by each party.
    pub agreed: BTreeMap<(Party, u16), SlotChannel>,
    pub discarded: Vec<(Party, u16)>,
    pub activated: Vec<(Party, u16)>,
    pub broadcast: Vec<Transaction>,
    pub released: Vec<Txid>,
    /// Kills this party once its journal has this many records.
    pub crash: Option<(Party, usize)>,
    /// The party that was killed and is not back yet.
    pub dead: Option<Party>,
    /// What the LSP sells at, also after a restart.
    pub policy: Option<SalePolicy>,
    /// Bought channels agreed by each party.
    pub bought: BTreeMap<(Party, ChannelRef), SlotChannel>,
    /// Bought channels the LSP is about to open.
    pub opening_bought: VecDeque<ChannelRef>,
    pub activated_bought: Vec<(Party, ChannelRef)>,
    /// What members are to pay.
    pub bills: VecDeque<(u16, Bill)>,
    /// What was paid, by hash; a shell pays one hash once.
    pub paid: BTreeMap<[u8; 32], u64>,
    /// What the LSP's shell is asked for; answered at once unless that is held back.
    pub wanted: Vec<QuoteWanted>,
    pub hold_back_quotes: bool,
    /// What the shells know of new epochs.
    pub epochs: epochs::Shell,
    /// Random values drawn so far.
    drawn: u64,
    /// Rewrites what a party sends; `None` loses it.
    pub tamper: Box<dyn FnMut(Party, Message) -> Option<Message>>,
}

impl World {
    pub fn new(members: u16) -> World {
        World::with(plan(members))
    }

    pub fn with(plan: FactoryPlan) -> World {
        World {
            plan,
            lsp: None,
            members: BTreeMap::new(),
            journal: BTreeMap::new(),
            inbox: VecDeque::new(),
            opening: VecDeque::new(),
            log: Vec::new(),
            events: Vec::new(),
            agreed: BTreeMap::new(),
            discarded: Vec::new(),
            activated: Vec::new(),
            broadcast: Vec::new(),
            released: Vec::new(),
            crash: None,
            dead: None,
            policy: None,
            bought: BTreeMap::new(),
            opening_bought: VecDeque::new(),
            activated_bought: Vec::new(),
            bills: VecDeque::new(),
            paid: BTreeMap::new(),
            wanted: Vec::new(),
            hold_back_quotes: false,
            epochs: epochs::Shell::default(),
            drawn: 0,
            tamper: Box::new(|_, message| Some(message)),
        }
    }

    /// Invites everyone and lets the ceremony run until nothing is left to say.
    pub fn run(&mut self) {
        self.start();
        self.deliver();
    }

    pub fn start(&mut self) {
        let number = number(self.plan.attempt);
        let secrets = LspSecrets::new(
            &bytes("lsp seed", 0),
            bytes("lsp salt", number),
            bytes("lsp nonces", number),
        );
        let seats = self.plan.seats.len() as u64;
        let keys = (0..seats).map(|slot| key("lsp funding", slot)).collect();
        let (lsp, effects) = Coordinator::start(&self.plan, secrets, keys, TIP).unwrap();
        self.lsp = Some(lsp);
        self.act(Party::Lsp, effects);
    }

    pub fn deliver(&mut self) {
        let all = self.deliver_until(|_, _, _| false);
        assert!(all.is_none());
    }

    /// Delivers until `wanted` (from, to, message) is the next message, and gives a copy of it.
    pub fn deliver_until(
        &mut self,
        wanted: impl Fn(Party, Party, &Message) -> bool,
    ) -> Option<Message> {
        loop {
            while let Some((from, to, message)) = self.inbox.front() {
                if wanted(*from, *to, message) {
                    return Some(message.clone());
                }
                let (from, to, message) = self.inbox.pop_front()?;
                self.hand_over(from, to, message);
            }
            // The member acts on NodeSigs, which precede the open on the same connection.
            match self.opening.pop_front() {
                Some(slot) => self.open(slot),
                None => match self.opening_bought.pop_front() {
                    Some(id) => self.open_bought(id),
                    None => {
                        let id = self.epochs.opening.pop_front()?;
                        self.open_moved(id);
                    }
                },
            }
        }
    }

    pub fn hand_over(&mut self, from: Party, to: Party, message: Message) {
        let effects = match (to, from) {
            (Party::Lsp, Party::Member(slot)) => {
                let Some(lsp) = &mut self.lsp else { return };
                lsp.handle(coordinator::Input::Message {
                    from: self.plan.seats[usize::from(slot)].peer,
                    message,
                })
            }
            (Party::Member(slot), _) => match (self.members.get_mut(&slot), message) {
                (None, Message::Invite(invite)) => {
                    let number = number(invite.header.attempt()) + u64::from(slot);
                    let limits = WalletLimits {
                        policies: vec![self.plan.policy],
                        ..WalletLimits::standard(self.plan.network)
                    };
                    let joined = Member::join(
                        key("node", 0),
                        invite,
                        &limits,
                        JoinSecrets {
                            seed: &bytes("member seed", u64::from(slot)),
                            salt: bytes("member salt", number),
                            nonce_randomness: bytes("member nonces", number),
                        },
                        payout(u64::from(slot) + 1),
                        key("member funding", u64::from(slot)),
                        TIP,
                    );
                    let (mut member, effects) = joined.unwrap();
                    member.set_epoch_limits(Some(EpochLimits::default()));
                    self.members.insert(slot, member);
                    effects
                }
                (None, _) => return,
                (Some(member), message) => member.handle(member::Input::Message(message)),
            },
            _ => unreachable!("the LSP does not write to itself"),
        };
        self.act(to, effects);
    }

    pub fn act(&mut self, who: Party, effects: Vec<Effect>) {
        // What leaves the house is on disk before it.
        let leaves = |effect: &Effect| {
            let others = matches!(effect, Effect::Send { .. } | Effect::Broadcast(_));
            let channels = matches!(effect, Effect::Open(_) | Effect::Activate(_));
            let bought = matches!(effect, Effect::OpenBought(_) | Effect::ActivateBought(_));
            let moved = matches!(
                effect,
                Effect::OpenMoved(_) | Effect::ActivateMoved(_) | Effect::Retire(_)
            );
            others || channels || bought || moved || matches!(effect, Effect::Pay(_))
        };
        let recorded = |effect: &Effect| matches!(effect, Effect::Persist(_));
        let last = effects.iter().rposition(recorded);
        let first = effects.iter().position(leaves);
        assert!(last < first || first.is_none(), "{who:?}: {effects:?}");
        for effect in effects {
            if self.dead == Some(who) {
                return;
            }
            match effect {
                Effect::Persist(record) => {
                    let read = Record::from_bytes(&record.to_bytes(), "Record");
                    assert_eq!(read.as_ref(), Ok(&record), "the journal is lossless");
                    let records = self.journal.entry(who).or_default();
                    records.push(record);
                    if self.crash == Some((who, records.len())) {
                        self.kill(who);
                    }
                }
                Effect::Send { to, message } => self.send(who, to, message),
                Effect::Fund(output) => {
                    let funding = Transaction {
                        version: Version::TWO,
                        lock_time: LockTime::ZERO,
                        input: vec![TxIn {
                            previous_output: OutPoint::new(Txid::from_byte_array([1; 32]), 0),
                            script_sig: ScriptBuf::new(),
                            sequence: Sequence::MAX,
                            witness: Witness::new(),
                        }],
                        output: vec![output],
                    };
                    let Some(lsp) = &mut self.lsp else { return };
                    let effects = lsp.handle(coordinator::Input::Funded {
                        tx: funding,
                        vout: 0,
                    });
                    self.act(who, effects);
                }
                Effect::ReleaseFunding(txid) => self.released.push(txid),
                Effect::Agree(channel) => {
                    self.agreed.insert((who, channel.slot.slot), channel);
                }
                Effect::Open(slot) => self.opening.push_back(slot.slot),
                Effect::Activate(slot) => self.activated.push((who, slot.slot)),
                Effect::Suspend(slot) => {
                    self.activated.retain(|open| *open != (who, slot.slot));
                }
                Effect::Discard(slot) => self.discarded.push((who, slot.slot)),
                Effect::Watch(_) => {}
                Effect::Broadcast(tx) => self.broadcast.push(tx),
                Effect::Emit(event) => self.events.push((who, event)),
                Effect::PrepareQuote(wanted) => {
                    self.wanted.push(wanted.clone());
                    if !self.hold_back_quotes {
                        let backing = self.backing(&wanted);
                        self.tell_lsp(coordinator::Input::QuotePrepared { wanted, backing });
                    }
                }
                Effect::NeedRandomness(id) => {
                    let randomness = self.random();
                    let input = member::Input::SaleRandomness { id, randomness };
                    self.tell(id.slot.slot, input);
                }
                Effect::AgreeBought(bought) => {
                    let known = self.bought.insert((who, bought.id), bought.channel.clone());
                    assert!(known.is_none_or(|known| known == bought.channel));
                }
                Effect::OpenBought(id) => {
                    assert!(self.bought.contains_key(&(who, id)), "agreed before opened");
                    self.opening_bought.push_back(id);
                }
                Effect::ActivateBought(id) => self.activated_bought.push((who, id)),
                Effect::SuspendBought(id) => {
                    self.activated_bought.retain(|open| *open != (who, id));
                }
                Effect::Pay(bill) => self.bills.push_back((bill.id.slot.slot, bill)),
                other => self.act_epoch(who, other),
            }
        }
    }

    /// Confirms the funding at `height` for everyone and tells everyone that this is the tip.
    pub fn confirm_funding(&mut self, height: u32) {
        let tx = self.broadcast.last().unwrap().clone();
        if let Some(lsp) = &mut self.lsp {
            let mut effects = lsp.handle(coordinator::Input::Height(height));
            effects.extend(lsp.handle(coordinator::Input::FundingConfirmed { height }));
            self.act(Party::Lsp, effects);
        }
        for slot in self.members.keys().copied().collect::<Vec<_>>() {
            let Some(member) = self.members.get_mut(&slot) else {
                continue;
            };
            let mut effects = member.handle(member::Input::Height(height));
            let tx = tx.clone();
            effects.extend(member.handle(member::Input::FundingConfirmed { tx, height }));
            self.act(Party::Member(slot), effects);
        }
    }

    /// The block with the funding is no longer in the best chain.
    pub fn reorg_funding(&mut self) {
        if let Some(lsp) = &mut self.lsp {
            let effects = lsp.handle(coordinator::Input::FundingReorged);
            self.act(Party::Lsp, effects);
        }
        for slot in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(member) = self.members.get_mut(&slot) {
                let effects = member.handle(member::Input::FundingReorged);
                self.act(Party::Member(slot), effects);
            }
        }
    }

    /// Tells everyone the best chain's height.
    pub fn height(&mut self, tip: u32) {
        if let Some(lsp) = &mut self.lsp {
            let effects = lsp.handle(coordinator::Input::Height(tip));
            self.act(Party::Lsp, effects);
        }
        for slot in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(member) = self.members.get_mut(&slot) {
                let effects = member.handle(member::Input::Height(tip));
                self.act(Party::Member(slot), effects);
            }
        }
    }

    fn send(&mut self, from: Party, to: PublicKey, message: Message) {
        let Some(message) = (self.tamper)(from, message) else {
            return;
        };
        let mut assembler = Assembler::default();
        let mut arrived = None;
        for frame in wire::frames(&message) {
            arrived = assembler.receive(&frame).unwrap();
        }
        assert_eq!(arrived.as_ref(), Some(&message), "the wire is lossless");
        self.log.push((from, message.clone()));
        let to = match self.plan.seats.iter().position(|seat| seat.peer == to) {
            None => Party::Lsp,
            Some(slot) => Party::Member(slot as u16),
        };
        self.inbox.push_back((from, to, message));
    }

    /// Both sides hold the channel if they agreed to the same one.
    pub fn open(&mut self, slot: u16) {
        let (Some(ours), Some(theirs)) = (
            self.agreed.get(&(Party::Lsp, slot)),
            self.agreed.get(&(Party::Member(slot), slot)),
        ) else {
            return;
        };
        let same = ours.outpoint == theirs.outpoint
            && ours.capacity == theirs.capacity
            && ours.push_msat == theirs.push_msat
            && ours.script_pubkey == theirs.script_pubkey;
        if !same {
            return;
        }
        if let Some(lsp) = &mut self.lsp {
            let effects = lsp.handle(coordinator::Input::ChannelHeld(slot));
            self.act(Party::Lsp, effects);
        }
        if let Some(member) = self.members.get_mut(&slot) {
            let effects = member.handle(member::Input::ChannelHeld);
            self.act(Party::Member(slot), effects);
        }
    }

    /// Drops everything the party has in memory.
    pub fn kill(&mut self, who: Party) {
        self.crash = None;
        self.dead = Some(who);
        match who {
            Party::Lsp => self.lsp = None,
            Party::Member(slot) => drop(self.members.remove(&slot)),
        }
    }

    /// Brings a killed party back from its journal. What it says while nobody is connected is
    /// lost; then everyone reconnects.
    pub fn restart(&mut self, tip: u32) {
        let Some(who) = self.dead.take() else { return };
        self.epochs.forget(who);
        let records = &self.journal[&who];
        let effects = match who {
            Party::Lsp => {
                let replayed = Coordinator::replay(&bytes("lsp seed", 0), records, tip);
                let (mut lsp, effects) = replayed.unwrap();
                lsp.set_sale_policy(self.policy.clone());
                self.lsp = Some(lsp);
                effects
            }
            Party::Member(slot) => {
                let seed = bytes("member seed", u64::from(slot));
                let (mut member, effects) = Member::replay(&seed, records, tip).unwrap();
                member.set_epoch_limits(Some(EpochLimits::default()));
                self.members.insert(slot, member);
                effects
            }
        };
        self.act(who, effects);
        self.tell_held(who);
        match who {
            Party::Lsp => (0..self.plan.seats.len() as u16).for_each(|slot| self.reconnect(slot)),
            Party::Member(slot) => self.reconnect(slot),
        }
    }

    /// The connection between LSP and member breaks, with all that is on its way, and is back.
    pub fn reconnect(&mut self, slot: u16) {
        let end = Party::Member(slot);
        self.inbox
            .retain(|(from, to, _)| *from != end && *to != end);
        self.opening.retain(|open| *open != slot);
        self.opening_bought.retain(|open| open.slot.slot != slot);
        self.epochs.opening.retain(|open| open.slot.slot != slot);
        if let Some(lsp) = &mut self.lsp {
            let peer = self.plan.seats[usize::from(slot)].peer;
            let effects = lsp.handle(coordinator::Input::Connected(peer));
            self.act(Party::Lsp, effects);
        }
        if let Some(member) = self.members.get_mut(&slot) {
            let effects = member.handle(member::Input::Connected);
            self.act(end, effects);
        }
    }
    /// Tells the LSP's role something.
    pub fn tell_lsp(&mut self, input: coordinator::Input) {
        let effects = self.lsp.as_mut().map(|lsp| lsp.handle(input));
        self.act(Party::Lsp, effects.unwrap_or_default());
    }

    /// Tells a member's role something.
    pub fn tell(&mut self, slot: u16, input: member::Input) {
        let member = self.members.get_mut(&slot);
        let effects = member.map(|member| member.handle(input));
        self.act(Party::Member(slot), effects.unwrap_or_default());
    }
}
