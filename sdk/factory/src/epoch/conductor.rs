//! The LSP of new epochs, as a state machine without I/O; one per factory, owned by its
//! coordinator.
//!
//! What always holds: our own partial signatures never leave; the channels are opened when
//! everything below the changed node is durable; members are asked for the state's signatures when
//! all of them hold their channels; an epoch that somebody was asked to sign is completed or never
//! used again; preimages leave when the state that replaces their stock is durable, and are those of
//! what it replaces.

mod built;
mod done;
mod ending;
mod hear;
mod plan;
mod replay;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bitcoin::OutPoint;
use bitcoin::secp256k1::PublicKey;
use zeroize::Zeroizing;

use super::sign::Round;
use super::version::Version;
use crate::effect::{BoughtChannel, ChannelRef, Effect, MovedChannel, SlotRef};
use crate::exit::{SignedPath, SignedPathError};
use crate::message::{
    Attempt, CutOffer, EpochName, EpochReady, EpochTerms, Message, NonceBytes, PartialBytes,
};
use crate::shape::NodeId;
use crate::signing::{FactoryKey, ReservedNonces};
use crate::stock::StockChain;
use crate::terms::Terms;
use crate::tree::{Cut, Tree};

pub(crate) use done::Renewed;
pub use plan::{EpochError, EpochPlan, NextEpoch, PlacePlan, Wish};

/// What revokes one stock output: the place, the epochs and the try its leaf was made in, and how
/// many sales came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StockName {
    pub(crate) slot: u16,
    /// `None` in the first edition.
    pub(crate) made: Option<(Vec<u8>, u16)>,
    pub(crate) link: u8,
}

/// What the conductor is told about its coordinator.
pub(crate) struct Ground<'a> {
    pub(crate) attempt: Attempt,
    pub(crate) peers: &'a [PublicKey],
    pub(crate) terms: &'a Terms,
    /// Of the first edition.
    pub(crate) tree: &'a Tree,
    pub(crate) key: &'a FactoryKey,
    pub(crate) preimage: &'a dyn Fn(&StockName) -> Zeroizing<[u8; 32]>,
    /// Whether the funding is buried.
    pub(crate) active: bool,
    /// The sales of a place.
    pub(crate) sales: &'a dyn Fn(u16) -> Sales,
}

/// What a place has sold.
#[derive(Debug, Clone)]
pub(crate) struct Sales {
    /// Whether a sale is signed and not settled.
    pub(crate) busy: bool,
    /// The stock of the newest epoch.
    pub(crate) chain: Option<StockChain>,
    pub(crate) bought: Vec<BoughtChannel>,
}

impl Ground<'_> {
    fn slot(&self, slot: u16) -> SlotRef {
        SlotRef {
            attempt: self.attempt,
            slot,
        }
    }

    fn say(&self, slot: u16, message: impl Into<Message>) -> Effect {
        Effect::Send {
            to: self.peers[usize::from(slot)],
            message: message.into(),
        }
    }
}

/// The newer epochs of one factory.
#[derive(Debug, Default)]
pub(crate) struct Conductor {
    /// What all have signed, in order.
    versions: Vec<Version>,
    /// Where each place that moved is now.
    moved: BTreeMap<u16, Moved>,
    /// What members still have to acknowledge.
    switching: BTreeMap<u16, Switching>,
    /// What was retired, kept for its monitors.
    retired: BTreeMap<u16, Vec<Retired>>,
    ceremony: Option<Box<Ceremony>>,
    /// By output that a state spends: the newest epoch somebody was asked to sign in vain.
    burnt: BTreeMap<OutPoint, u8>,
    /// Epochs that were asked for and abandoned, since the last one of their place.
    abandoned: BTreeMap<u16, Vec<Abandoned>>,
    /// How many tries at an epoch came as far as channels.
    tries: BTreeMap<(NodeId, Vec<u8>), u16>,
    opened: bool,
}

/// The newest epoch of a place.
#[derive(Debug, Clone)]
struct Moved {
    /// Position in `versions`.
    version: usize,
    number: u32,
    cut: Cut,
    push_msat: u64,
}

#[derive(Debug, Clone)]
struct Abandoned {
    /// Its stock, if it has any.
    stock: Option<StockName>,
    channel: Option<ChannelRef>,
}

#[derive(Debug)]
struct Switching {
    name: EpochName,
    /// The names of what is to be revealed.
    revoked: Vec<StockName>,
}

#[derive(Debug)]
struct Retired {
    channels: Vec<ChannelRef>,
    /// The leaf's own channel, where it was not the first: in use until the member has switched.
    leaf: Option<MovedChannel>,
    bought: Vec<BoughtChannel>,
    chain: Option<StockChain>,
}

/// How far a new epoch is on the LSP's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// Which.
    pub epoch: EpochName,
    /// The places below its node.
    pub slots: Range<u16>,
    /// Grows with every round; a restart begins again at the last one that is on disk.
    pub step: usize,
    /// Who is waited for, and nobody where the LSP's own channels do not rest yet.
    pub silent: Vec<u16>,
}

/// A new epoch on its way.
#[derive(Debug)]
struct Ceremony {
    name: EpochName,
    slots: Range<u16>,
    waves: Vec<Vec<u16>>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Channels come to rest.
    Gathering {
        offers: BTreeMap<u16, CutOffer>,
        numbers: BTreeMap<u16, u32>,
        randomness: Zeroizing<[u8; 32]>,
        frozen: BTreeMap<u16, BTreeMap<u32, u64>>,
        ready: BTreeMap<u16, EpochReady>,
    },
    /// What is below is being signed.
    Signing {
        built: Box<Built>,
        round: Box<Round>,
        terms: BTreeMap<u16, EpochTerms>,
        partials: BTreeMap<u16, Vec<PartialBytes>>,
    },
    /// Everything below is signed.
    Opening {
        built: Box<Built>,
        stored: BTreeSet<u16>,
        held: BTreeSet<u16>,
        /// Whether somebody was asked to sign the state.
        asked: bool,
        top: Option<Top>,
    },
}

/// A new epoch as values.
#[derive(Debug, Clone)]
struct Built {
    version: Version,
    cuts: BTreeMap<u16, Cut>,
    /// What is each member's, in millisatoshi.
    balances: BTreeMap<u16, u64>,
    numbers: BTreeMap<u16, u32>,
}

/// One round of signing the node's state.
#[derive(Debug)]
struct Top {
    round: [u8; 32],
    own: Option<ReservedNonces>,
    nonces: BTreeMap<u16, NonceBytes>,
    /// Once all nonces are there.
    signing: Option<Round>,
    partials: BTreeMap<u16, Vec<PartialBytes>>,
    /// The wave that is asked.
    wave: usize,
}

impl Conductor {
    /// The newest tree.
    pub(crate) fn tree<'a>(&'a self, ground: &Ground<'a>) -> &'a Tree {
        let newest = self.versions.last();
        newest.map_or(ground.tree, |version| &version.tree)
    }

    /// Every tree but the first, in order.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.versions.iter().map(|version| &version.tree)
    }

    /// The stock of all older epochs.
    pub(crate) fn retired_chains(&self) -> impl Iterator<Item = &StockChain> {
        let retired = self.retired.values().flatten();
        retired.filter_map(|retired| retired.chain.as_ref())
    }

    /// The newest tree, if it is not the first.
    pub(crate) fn newest(&self) -> Option<&Tree> {
        self.versions.last().map(|version| &version.tree)
    }

    /// The version of a place's path.
    pub(crate) fn version(&self, slot: u16) -> u32 {
        self.moved.get(&slot).map_or(0, |moved| moved.number)
    }

    /// In which epochs and try the leaf of a place was made; `None` in the first edition.
    pub(crate) fn made(&self, slot: u16) -> Option<(Vec<u8>, u16)> {
        let version = self.versions.get(self.moved.get(&slot)?.version)?;
        Some(made(version, slot))
    }

    /// Whether nothing may be sold in a place now.
    pub(crate) fn is_frozen(&self, slot: u16) -> bool {
        let gone = self.moved.get(&slot);
        let gone = gone.is_some_and(|moved| moved.cut == Cut::Departed);
        gone || self.is_moving(slot)
    }

    /// Whether the channels of a place rest for a new epoch.
    pub(crate) fn is_moving(&self, slot: u16) -> bool {
        let under_way = self.ceremony.as_ref();
        let moving = under_way.is_some_and(|ceremony| ceremony.slots.contains(&slot));
        moving || self.switching.contains_key(&slot)
    }

    /// How far the epoch under way is.
    pub(crate) fn progress(&self) -> Option<UnderWay> {
        Some(self.ceremony.as_ref()?.progress())
    }

    /// The place's leaf channel in the newest epoch that it uses; `None` once the member has left.
    pub(crate) fn leaf_channel(&self, slot: SlotRef) -> Option<ChannelRef> {
        let Some(moved) = self.moved.get(&slot.slot) else {
            return Some(ChannelRef::first(slot));
        };
        moved.cut.channel()?;
        let retry = self.versions[moved.version].name.retry;
        Some(ChannelRef::moved(slot, moved.number, retry))
    }

    /// Whether the newest channel of a place may carry payments.
    pub(crate) fn is_switched(&self, slot: u16) -> bool {
        !self.switching.contains_key(&slot)
    }

    /// `path` with every newer epoch on it, and what was sold in the older ones.
    pub(crate) fn extend(
        &self,
        slot: u16,
        mut path: SignedPath,
    ) -> Result<SignedPath, SignedPathError> {
        for version in &self.versions {
            let top = version.tree.topology().node(version.name.node);
            if top.slots.contains(&slot) {
                path = version.extend(path)?;
            }
        }
        for retired in self.retired.get(&slot).into_iter().flatten() {
            if let Some(chain) = &retired.chain {
                path = path.with_sales(chain.clone())?;
            }
        }
        Ok(path)
    }
}

/// In which epochs and try `version` made the leaf of a place.
fn made(version: &Version, slot: u16) -> (Vec<u8>, u16) {
    let tree = &version.tree;
    let path = tree.topology().path(slot);
    let epochs = path.iter().map(|node| tree.edition().epoch(*node));
    (epochs.collect(), version.name.retry)
}
