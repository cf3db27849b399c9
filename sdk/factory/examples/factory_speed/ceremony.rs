//! The building ceremony between one LSP and its members in one process: every message goes
//! through the wire format, every record is encoded; nothing waits for a network or a disk.

use std::collections::VecDeque;
use std::error::Error;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, Network, OutPoint, Transaction, TxIn};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan, LspSecrets, Seat};
use superscalar_factory::effect::Effect;
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::{Attempt, Message};
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::{Instance, TimeoutPolicy};
use superscalar_factory::timing::Timing;
use superscalar_factory::wire::{self, Assembler, Frame};

use crate::{Clock, Time, bytes, key, payout};

/// Lightning message type, protocol id and submessage number around every payload.
const ENVELOPE_BYTES: usize = 2 + 32 + 2;
const TIP: u32 = 100;

/// What it took.
pub(crate) struct Run {
    pub(crate) time: Time,
    pub(crate) bytes_per_member: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Party {
    Lsp,
    Member(usize),
}

pub(crate) struct Ceremony {
    pub(crate) plan: FactoryPlan,
    pub(crate) lsp: Coordinator,
    pub(crate) members: Vec<Option<Member>>,
    assemblers: Vec<[Assembler; 2]>,
    frames: VecDeque<(Party, usize, Frame)>,
    opening: Vec<usize>,
    bytes: usize,
    published: Option<Transaction>,
}

pub(crate) fn run(members: usize) -> Result<Run, Box<dyn Error>> {
    let (ceremony, time) = build(members)?;
    Ok(Run {
        time,
        bytes_per_member: ceremony.bytes / members,
    })
}

/// A factory that is built, and what that took.
pub(crate) fn build(members: usize) -> Result<(Ceremony, Time), Box<dyn Error>> {
    let plan = plan(members)?;
    let funding_keys = (0..members as u64).map(|slot| key("lsp funding", slot));
    let funding_keys = funding_keys.collect::<Result<Vec<_>, _>>()?;
    let clock = Clock::start();
    let secrets = LspSecrets::new(&[1; 32], [2; 32], [3; 32]);
    let (lsp, effects) = Coordinator::start(&plan, secrets, funding_keys, TIP)?;
    let mut ceremony = Ceremony {
        plan,
        lsp,
        members: (0..members).map(|_| None).collect(),
        assemblers: (0..members).map(|_| Default::default()).collect(),
        frames: VecDeque::new(),
        opening: Vec::new(),
        bytes: 0,
        published: None,
    };
    ceremony.act(Party::Lsp, effects)?;
    loop {
        while let Some((from, slot, frame)) = ceremony.frames.pop_front() {
            ceremony.receive(from, slot, &frame)?;
        }
        let Some(slot) = ceremony.opening.pop() else {
            break;
        };
        let effects = ceremony
            .lsp
            .handle(coordinator::Input::ChannelHeld(slot as u16));
        ceremony.act(Party::Lsp, effects)?;
        if let Some(member) = &mut ceremony.members[slot] {
            let effects = member.handle(member::Input::ChannelHeld);
            ceremony.act(Party::Member(slot), effects)?;
        }
    }
    let time = clock.time();
    let complete = |member: &Option<Member>| member.as_ref().is_some_and(|m| m.path().is_some());
    if ceremony.published.is_none() || !ceremony.members.iter().all(complete) {
        return Err("the ceremony did not complete".into());
    }
    Ok((ceremony, time))
}

impl Ceremony {
    /// Buries the funding for the LSP and the first member.
    pub(crate) fn bury(&mut self) -> Result<(), Box<dyn Error>> {
        let (height, tip) = (TIP + 1, TIP + 100);
        let tx = self.published.clone().ok_or("nothing was published")?;
        self.lsp
            .handle(coordinator::Input::FundingConfirmed { height });
        self.lsp.handle(coordinator::Input::Height(tip));
        let member = self.members[0].as_mut().ok_or("no member")?;
        member.handle(member::Input::FundingConfirmed { tx, height });
        member.handle(member::Input::Height(tip));
        Ok(())
    }

    fn receive(&mut self, from: Party, slot: usize, frame: &Frame) -> Result<(), Box<dyn Error>> {
        let direction = usize::from(from == Party::Lsp);
        let Some(message) = self.assemblers[slot][direction].receive(frame)? else {
            return Ok(());
        };
        if from != Party::Lsp {
            let from = self.plan.seats[slot].peer;
            let effects = self
                .lsp
                .handle(coordinator::Input::Message { from, message });
            return self.act(Party::Lsp, effects);
        }
        let effects = match (&mut self.members[slot], message) {
            (Some(member), message) => member.handle(member::Input::Message(message)),
            (place, Message::Invite(invite)) => {
                let number = slot as u64;
                let (member, effects) = Member::join(
                    key("lsp node", 0)?,
                    invite,
                    &WalletLimits::standard(Network::Regtest),
                    JoinSecrets {
                        seed: &bytes("member seed", number),
                        salt: bytes("member salt", number),
                        nonce_randomness: bytes("member nonces", number),
                    },
                    payout(number + 1),
                    key("member funding", number)?,
                    TIP,
                )?;
                *place = Some(member);
                effects
            }
            (None, _) => return Err("a message before the invitation".into()),
        };
        self.act(Party::Member(slot), effects)
    }

    fn act(&mut self, who: Party, effects: Vec<Effect>) -> Result<(), Box<dyn Error>> {
        for effect in effects {
            match effect {
                Effect::Persist(record) => drop(record.to_bytes()),
                Effect::Send { to, message } => {
                    let slot = match who {
                        Party::Member(slot) => Some(slot),
                        Party::Lsp => self.plan.seats.iter().position(|seat| seat.peer == to),
                    };
                    let slot = slot.ok_or("a message to a stranger")?;
                    for frame in wire::frames(&message) {
                        self.bytes += frame.payload.len() + ENVELOPE_BYTES;
                        self.frames.push_back((who, slot, frame));
                    }
                }
                Effect::Fund(output) => {
                    let tx = Transaction {
                        version: Version::TWO,
                        lock_time: LockTime::ZERO,
                        input: vec![TxIn {
                            previous_output: OutPoint::null(),
                            ..Default::default()
                        }],
                        output: vec![output],
                    };
                    let effects = self.lsp.handle(coordinator::Input::Funded { tx, vout: 0 });
                    self.act(Party::Lsp, effects)?;
                }
                Effect::Open(slot) => self.opening.push(usize::from(slot.slot)),
                Effect::Broadcast(tx) => self.published = Some(tx),
                _ => {}
            }
        }
        Ok(())
    }
}

fn plan(members: usize) -> Result<FactoryPlan, Box<dyn Error>> {
    let shape = Shape::two_layers(members);
    let seat = |number: u64| -> Result<Seat, Box<dyn Error>> {
        Ok(Seat {
            peer: key("member node", number)?,
            capacity: Amount::from_sat(500_000),
            push_msat: 0,
            stock: Amount::from_sat(100_000),
            price: Amount::ZERO,
        })
    };
    Ok(FactoryPlan {
        attempt: Attempt {
            instance: Instance(bytes("instance", 0)),
            number: 0,
        },
        network: Network::Regtest,
        timing: Timing::mainnet(shape.layers()),
        shape,
        expiry: TIP + 5_808,
        tree_feerate: 10,
        policy: TimeoutPolicy::MembersReclaim,
        lsp_payout: payout(0),
        round_seconds: 30,
        seats: (0..members as u64).map(seat).collect::<Result<_, _>>()?,
    })
}
