//! A ceremony of two members in memory, for what it leaves on the disk of the first.

use std::collections::VecDeque;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, Txid, WPubkeyHash};
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan, LspSecrets, Seat};
use superscalar_factory::effect::{Effect, SlotRef};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, JoinSecrets, Member, WalletLimits};
use superscalar_factory::message::{Attempt, Message};
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::{Instance, TimeoutPolicy};
use superscalar_factory::timing::Timing;

use super::net::BEGINNING;

pub(super) const CAPACITY_SAT: u64 = 500_000;
/// The least a member accepts, in sat/vB.
const TREE_SAT_PER_VB: u32 = 5;
/// Blocks from the beginning to T.
const LIFE_BLOCKS: u32 = 300;
/// Our slot.
pub(super) const US: SlotRef = SlotRef {
    attempt: Attempt {
        instance: Instance([6; 32]),
        number: 0,
    },
    slot: 0,
};

/// What is known when a ceremony is through.
pub(super) struct Complete {
    /// Our journal.
    pub(super) records: Vec<Record>,
    pub(super) funding: Transaction,
}

/// What our side brings.
pub(super) struct Ours<'a> {
    pub(super) seed: &'a [u8; 32],
    pub(super) payout: ScriptBuf,
    pub(super) funding_key: PublicKey,
}

fn bytes(label: &str, number: usize) -> [u8; 32] {
    sha256::Hash::hash(format!("{label}/{number}").as_bytes()).to_byte_array()
}

fn key(label: &str, number: usize) -> PublicKey {
    let secret = SecretKey::from_slice(&bytes(label, number)).unwrap();
    secret.public_key(&Secp256k1::signing_only())
}

fn plan(policy: TimeoutPolicy) -> FactoryPlan {
    let shape = Shape {
        arity: Vec::new(),
        members_per_leaf: 2,
    };
    let seat = |number| Seat {
        peer: key("node", number),
        capacity: Amount::from_sat(CAPACITY_SAT),
        push_msat: 0,
        stock: Amount::ZERO,
        price: Amount::ZERO,
    };
    FactoryPlan {
        attempt: US.attempt,
        network: Network::Regtest,
        timing: Timing::regtest(shape.layers()),
        shape,
        expiry: BEGINNING + LIFE_BLOCKS,
        tree_feerate: TREE_SAT_PER_VB,
        policy,
        lsp_payout: wallet(2),
        round_seconds: 30,
        seats: [0, 1].map(seat).into(),
    }
}

fn wallet(number: usize) -> ScriptBuf {
    let hash = bytes("wallet", number);
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_slice(&hash[..20]).unwrap())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Lsp,
    Member(usize),
}

struct Ceremony {
    lsp: Coordinator,
    members: [Option<Member>; 2],
    said: VecDeque<(Who, Who, Message)>,
    opening: VecDeque<u16>,
    done: Complete,
}

/// Runs a ceremony up to the published funding.
pub(super) fn run(policy: TimeoutPolicy, ours: &Ours<'_>) -> Complete {
    let plan = plan(policy);
    let secrets = LspSecrets::new(&bytes("lsp", 0), bytes("salt", 2), bytes("nonces", 2));
    let keys = [0, 1].map(|slot| key("lsp funding", slot)).into();
    let (lsp, effects) = Coordinator::start(&plan, secrets, keys, BEGINNING).unwrap();
    let mut ceremony = Ceremony {
        lsp,
        members: [None, None],
        said: VecDeque::new(),
        opening: VecDeque::new(),
        done: Complete {
            records: Vec::new(),
            funding: Transaction {
                version: Version::TWO,
                lock_time: LockTime::ZERO,
                input: vec![TxIn {
                    previous_output: OutPoint::new(Txid::from_byte_array([1; 32]), 0),
                    ..TxIn::default()
                }],
                output: Vec::new(),
            },
        },
    };
    ceremony.act(Who::Lsp, effects);
    loop {
        if let Some((from, to, message)) = ceremony.said.pop_front() {
            ceremony.hear(from, to, message, ours);
        } else if let Some(slot) = ceremony.opening.pop_front() {
            ceremony.open(slot);
        } else {
            break;
        }
    }
    assert!(!ceremony.done.funding.output.is_empty(), "it is through");
    ceremony.done
}

impl Ceremony {
    fn hear(&mut self, from: Who, to: Who, message: Message, ours: &Ours<'_>) {
        let effects = match (to, from, message) {
            (Who::Lsp, Who::Member(slot), message) => {
                let from = key("node", slot);
                self.lsp
                    .handle(coordinator::Input::Message { from, message })
            }
            (Who::Member(slot), _, Message::Invite(invite)) => {
                let other = bytes("seed", slot);
                let (seed, payout, funding_key) = match slot {
                    0 => (ours.seed, ours.payout.clone(), ours.funding_key),
                    _ => (&other, wallet(slot), key("funding", slot)),
                };
                let mut limits = WalletLimits::standard(Network::Regtest);
                limits.life_blocks = LIFE_BLOCKS..=LIFE_BLOCKS;
                limits.policies = vec![TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims];
                let secrets = JoinSecrets {
                    seed,
                    salt: bytes("salt", slot),
                    nonce_randomness: bytes("nonces", slot),
                };
                let lsp = key("node", 2);
                let joined = Member::join(
                    lsp,
                    invite,
                    &limits,
                    secrets,
                    payout,
                    funding_key,
                    BEGINNING,
                );
                let (member, effects) = joined.unwrap();
                self.members[slot] = Some(member);
                effects
            }
            (Who::Member(slot), _, message) => {
                let member = self.members[slot].as_mut().unwrap();
                member.handle(member::Input::Message(message))
            }
            _ => panic!("nobody speaks to itself"),
        };
        self.act(to, effects);
    }

    fn open(&mut self, slot: u16) {
        let effects = self.lsp.handle(coordinator::Input::ChannelHeld(slot));
        self.act(Who::Lsp, effects);
        let number = usize::from(slot);
        let member = self.members[number].as_mut().unwrap();
        let effects = member.handle(member::Input::ChannelHeld);
        self.act(Who::Member(number), effects);
    }

    fn act(&mut self, who: Who, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist(record) if who == Who::Member(0) => self.done.records.push(record),
                Effect::Send { to, message } => {
                    let member = [0, 1].into_iter().find(|slot| key("node", *slot) == to);
                    let to = member.map_or(Who::Lsp, Who::Member);
                    self.said.push_back((who, to, message));
                }
                Effect::Fund(output) => {
                    let mut tx = self.done.funding.clone();
                    tx.output.push(output);
                    let funded = coordinator::Input::Funded { tx, vout: 0 };
                    let effects = self.lsp.handle(funded);
                    self.act(who, effects);
                }
                Effect::Open(slot) => self.opening.push_back(slot.slot),
                Effect::Broadcast(tx) => self.done.funding = tx,
                Effect::Emit(_) | Effect::Persist(_) | Effect::Agree(_) | Effect::Watch(_) => {}
                other => panic!("not in a ceremony that goes well: {other:?}"),
            }
        }
    }
}
