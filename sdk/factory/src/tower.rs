//! A watchtower: what it keeps for others, and what it publishes when the chain shows that they are
//! being cheated or that somebody opens their factory.
//!
//! What always holds: a tower holds signed transactions and nothing that signs; what it publishes is
//! a function of one [`Appointment`] and of what the chain says, so neither a restart nor a reorg
//! needs remembering; whoever could read all of it could publish it, and take nothing.
//!
//! [`due`] goes by the planner of [`exit`](crate::exit), with the goal of
//! [`Defend`](Goal::Defend): the newest state follows every kickoff, every sale its leaf, and
//! nothing is opened that is closed. What is taken from a cheat are [`Claim`]s: one output each, in
//! transactions signed beforehand at several feerates, because nobody can sign another one later.

mod message;

use bitcoin::{FeeRate, OutPoint, Transaction, Weight};

use crate::codec::{Decode, DecodeError, Encode, Reader, fields};
use crate::exit::stale::StaleSweep;
use crate::exit::{Action, ChainFacts, Goal, PlanError, SignedPath, plan};
use crate::scripts::tagged_hash;

pub use message::{
    Answer, Ask, Ears, MAX_MESSAGE, RefusalCode, Report, Request, VERSION, answer_to, pieces,
};

/// Most feerates at which one output may be claimed.
pub const MAX_TRIES: usize = 4;
/// Most outputs of older epochs that one path may bring along.
pub const MAX_CLAIMS: usize = 256;
/// Most outpoints of epochs that were not completed, beside one path.
pub const MAX_OUTPOINTS: usize = 1_024;
/// What a claim may weigh: one input, one output, with room for a script and its proof.
const MAX_CLAIM_WEIGHT: Weight = Weight::from_wu(4_000);

/// Names an appointment among those of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppointmentKey(pub [u8; 32]);

/// Hash of an appointment's content: what an acknowledgement names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(pub [u8; 32]);

macro_rules! hashes {
    ($($name:ident),*) => {$(
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                Ok($name(r.array(field)?))
            }
        }
    )*};
}
hashes!(AppointmentKey, Digest);

impl AppointmentKey {
    /// Of a revoked commitment with this output of the cheater's.
    pub fn of_revoked(output: OutPoint) -> AppointmentKey {
        AppointmentKey::new("superscalar/tower revoked", output, None)
    }

    fn new(label: &str, outpoint: OutPoint, slot: Option<u16>) -> AppointmentKey {
        AppointmentKey(tagged_hash(
            label,
            &[&outpoint.to_bytes(), &slot.to_bytes()],
        ))
    }
}

impl Digest {
    /// Adds one to a set, or takes it out again: the same set has the same sum in any order.
    pub fn toggle(&mut self, other: Digest) {
        for (byte, other) in self.0.iter_mut().zip(other.0) {
            *byte ^= other;
        }
    }
}

/// One transaction that claims an output, and what it pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// In satoshi per 1,000 weight units.
    pub feerate_sat_per_kwu: u32,
    /// Signed, with that output as its only input.
    pub transaction: Transaction,
}

fields!(Try {
    feerate_sat_per_kwu,
    transaction
});

/// An output that belongs to the client as soon as it is on chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    outpoint: OutPoint,
    /// By feerate, the cheapest first; never empty.
    tries: Vec<Try>,
}

impl Claim {
    /// `None` unless there are one to [`MAX_TRIES`] small transactions with `outpoint` as their only
    /// input, each dearer than the one before.
    pub fn new(outpoint: OutPoint, tries: Vec<Try>) -> Option<Claim> {
        let counted = (1..=MAX_TRIES).contains(&tries.len());
        let ascending = |pair: &[Try]| pair[0].feerate_sat_per_kwu < pair[1].feerate_sat_per_kwu;
        let fits = |it: &Try| {
            let inputs = it.transaction.input.as_slice();
            let [input] = inputs else { return false };
            input.previous_output == outpoint && it.transaction.weight() <= MAX_CLAIM_WEIGHT
        };
        let good = counted && tries.windows(2).all(ascending) && tries.iter().all(fits);
        good.then_some(Claim { outpoint, tries })
    }

    /// A ready-made spend of stale stock; `feerates` are those it was made for.
    pub fn of_stale(sweep: &StaleSweep, feerates: &[FeeRate]) -> Option<Claim> {
        let mut feerates = feerates.to_vec();
        feerates.sort_unstable();
        // What is missing are those that would leave nothing: the dearest.
        let made = feerates.iter().zip(&sweep.transactions);
        let tries = made.map(|(feerate, tx)| Try {
            feerate_sat_per_kwu: u32::try_from(feerate.to_sat_per_kwu()).unwrap_or(u32::MAX),
            transaction: tx.clone(),
        });
        Claim::new(sweep.outpoint, tries.collect())
    }

    /// The output.
    pub fn outpoint(&self) -> OutPoint {
        self.outpoint
    }

    /// Those that pay `market`, the cheapest first; where none does the dearest there is. What is
    /// taken is the first that the mempool takes: somebody else's spend may have to be replaced.
    pub fn at(&self, market: FeeRate) -> impl Iterator<Item = &Transaction> {
        let pays = |it: &&Try| u64::from(it.feerate_sat_per_kwu) >= market.to_sat_per_kwu();
        let enough = self.tries.iter().filter(pays).count().max(1);
        // A claim is never empty, see `new`.
        let dearest = &self.tries[self.tries.len() - enough..];
        dearest.iter().map(|it| &it.transaction)
    }
}

impl Encode for Claim {
    fn encode(&self, out: &mut Vec<u8>) {
        self.outpoint.encode(out);
        self.tries.encode(out);
    }
}
impl Decode for Claim {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let outpoint = OutPoint::decode(r, "outpoint")?;
        let tries = Vec::<Try>::decode(r, "tries")?;
        Claim::new(outpoint, tries).ok_or(DecodeError::Invalid { field })
    }
}

/// Something to look after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Appointment {
    /// A place in a factory: the newest states, every sale, and stock of older epochs.
    Path {
        /// Everything signed from the funding output to the channels.
        path: Box<SignedPath>,
        /// Outputs of older epochs that are the client's if they come on chain.
        stale: Vec<Claim>,
        /// Outpoints of epochs that only the LSP could complete: what spends one may put a claimed
        /// output on chain.
        beside: Vec<OutPoint>,
    },
    /// A commitment that was revoked.
    Revoked {
        /// The channel's funding output, which it spends.
        channel: OutPoint,
        /// The cheater's own output of it.
        claim: Claim,
    },
}

const PATH: u8 = 0;
const REVOKED: u8 = 1;

impl Appointment {
    /// What the client calls it: the next content under the same name takes its place.
    pub fn key(&self) -> AppointmentKey {
        match self {
            // An LSP has every place of a factory looked after.
            Appointment::Path { path, .. } => {
                let slot = Some(path.slot());
                AppointmentKey::new("superscalar/tower path", path.funding(), slot)
            }
            Appointment::Revoked { claim, .. } => AppointmentKey::of_revoked(claim.outpoint),
        }
    }

    /// Names its content.
    pub fn digest(&self) -> Digest {
        Digest(tagged_hash(
            "superscalar/tower appointment",
            &[&self.to_bytes()],
        ))
    }

    /// The output whose spending begins everything: as long as it is unspent nothing can be due.
    pub fn trigger(&self) -> OutPoint {
        match self {
            Appointment::Path { path, .. } => path.funding(),
            Appointment::Revoked { channel, .. } => *channel,
        }
    }

    /// Every output whose spender matters.
    pub fn watched(&self) -> Vec<OutPoint> {
        match self {
            Appointment::Path {
                path,
                stale,
                beside,
            } => {
                let mut watched = path.watched();
                watched.extend(stale.iter().map(Claim::outpoint));
                watched.extend(beside);
                watched
            }
            Appointment::Revoked { channel, claim } => vec![*channel, claim.outpoint],
        }
    }
}

impl Encode for Appointment {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Appointment::Path {
                path,
                stale,
                beside,
            } => {
                out.push(PATH);
                path.encode(out);
                stale.encode(out);
                beside.encode(out);
            }
            Appointment::Revoked { channel, claim } => {
                out.push(REVOKED);
                channel.encode(out);
                claim.encode(out);
            }
        }
    }
}
impl Decode for Appointment {
    fn decode(r: &mut Reader<'_>, _field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, "appointment")? {
            PATH => {
                let path = Box::new(SignedPath::decode(r, "path")?);
                let stale = bounded::<Claim>(r, "stale", MAX_CLAIMS)?;
                let beside = bounded::<OutPoint>(r, "beside", MAX_OUTPOINTS)?;
                Ok(Appointment::Path {
                    path,
                    stale,
                    beside,
                })
            }
            REVOKED => Ok(Appointment::Revoked {
                channel: OutPoint::decode(r, "channel")?,
                claim: Claim::decode(r, "claim")?,
            }),
            typ => Err(DecodeError::UnknownType {
                what: "appointment",
                typ: typ.into(),
            }),
        }
    }
}

fn bounded<T: Decode>(
    r: &mut Reader<'_>,
    field: &'static str,
    max: usize,
) -> Result<Vec<T>, DecodeError>
where
    Vec<T>: Decode,
{
    let all = Vec::<T>::decode(r, field)?;
    match all.len() <= max {
        true => Ok(all),
        false => Err(DecodeError::TooLong {
            field,
            len: all.len() as u64,
            max: max as u64,
        }),
    }
}

/// What to publish for one appointment at one tip. Doing it again does no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due<'a> {
    /// Transactions of the tree, whose anchors a child may speed up.
    pub tree: Vec<Transaction>,
    /// Outputs to take, each by the transaction the market asks for.
    pub claims: Vec<&'a Claim>,
}

/// Says what to publish; `facts` are of [`Appointment::watched`].
///
/// # Errors
/// The facts cannot all be true at once: collect them again.
pub fn due<'a>(appointment: &'a Appointment, facts: &ChainFacts) -> Result<Due<'a>, PlanError> {
    let mut due = Due::default();
    let claims = match appointment {
        Appointment::Path { path, stale, .. } => {
            let planned = plan(path, Goal::Defend, facts)?;
            // What is the client's as a whole is not divided with the LSP by a sale of then.
            let is_claimed = |tx: &Transaction| {
                let spends = |it: &Claim| it.outpoint == tx.input[0].previous_output;
                stale.iter().any(spends)
            };
            let actions = planned.actions.into_iter();
            let tree = actions.map(|Action::Publish { transaction, .. }| transaction);
            due.tree = tree.filter(|tx| !is_claimed(tx)).collect();
            stale.as_slice()
        }
        Appointment::Revoked { claim, .. } => std::slice::from_ref(claim),
    };
    let is_on_chain = |claim: &&Claim| {
        let mut confirmed = facts.spends.values().filter(|it| it.height.is_some());
        confirmed.any(|spend| spend.txid == claim.outpoint.txid)
    };
    let is_unspent = |claim: &&Claim| facts.confirmed_spend(&claim.outpoint).is_none();
    due.claims = claims
        .iter()
        .filter(is_on_chain)
        .filter(is_unspent)
        .collect();
    Ok(due)
}
