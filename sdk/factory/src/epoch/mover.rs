//! A member on its way to a new epoch, as a state machine without I/O; one per place, owned by its
//! member.
//!
//! What always holds: until it is committed nothing is lost by giving up; it commits once to one
//! state of one epoch, when all that makes the new channel its own is durable and held; the old
//! channels are retired when the preimages are verified and durable, and not before.

mod hear;
mod replay;
mod steps;
mod top;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};

use super::EpochLimits;
use super::verify;
use super::version::Version;
use crate::effect::{BoughtChannel, ChannelRef, Effect, MovedChannel, SlotChannel, SlotRef};
use crate::exit::{SignedPath, SignedPathError};
use crate::journal::{Guard, MemberEpochStored};
use crate::message::{
    CutOffer, EpochName, EpochReady, EpochTerms, Message, NonceBytes, PartialBytes,
};
use crate::path::Path;
use crate::signing::{FactoryKey, ReservedNonces, SecretNonce};
use crate::stock::StockChain;
use crate::terms::stock_hash;
use crate::tree::{Cut, Tree};

/// What the mover is told about its member.
pub(crate) struct Ground<'a> {
    pub(crate) slot: SlotRef,
    pub(crate) lsp: PublicKey,
    pub(crate) path: &'a Path,
    pub(crate) key: &'a FactoryKey,
    /// Whether the funding is buried.
    pub(crate) active: bool,
    /// Whether a sale is delivered and not settled.
    pub(crate) selling: bool,
    /// The channels of the place in its newest epoch, with their capacities.
    pub(crate) channels: Vec<(ChannelRef, Amount)>,
    /// The channel of a sale that was signed and not delivered: nothing of it counts.
    pub(crate) undelivered: Option<ChannelRef>,
    /// Those that were bought, that one included.
    pub(crate) bought: Vec<BoughtChannel>,
    /// The stock of the newest epoch, with what that sale leaves.
    pub(crate) chain: Option<StockChain>,
}

/// Where a new epoch stands on the member's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EpochStage {
    /// The channels come to rest, or the LSP gathers the others.
    Preparing,
    /// Everything below is durable; nothing is signed that could not be given up.
    Stored,
    /// The LSP alone can complete it.
    Committed,
    /// The final signature is durable; the preimages are not there yet.
    Switching,
    /// Only the watchtower's acknowledgement is missing.
    Guarding,
}

/// The newer epochs of one place.
#[derive(Debug, Default)]
pub(crate) struct Mover {
    /// `None` where no new epoch is taken part in.
    limits: Option<EpochLimits>,
    /// The epochs the place moved to, in order.
    moved: Vec<Moved>,
    ceremony: Option<Box<Ceremony>>,
    switching: Option<Switching>,
    /// What was signed for each output that a state spends: the newest epoch and its sighash.
    committed: BTreeMap<OutPoint, (u8, [u8; 32])>,
    /// Epochs that were signed and abandoned since the last one that was not.
    abandoned: Vec<Prepared>,
    /// Versions and retries that channels were agreed for.
    agreed: BTreeSet<(u32, u16)>,
    opened: bool,
}

/// An epoch the place moved to.
#[derive(Debug)]
struct Moved {
    prepared: Prepared,
    retired: Retired,
}

/// What a new epoch took the place of.
#[derive(Debug)]
struct Retired {
    channels: Vec<ChannelRef>,
    bought: Vec<BoughtChannel>,
    /// Stock that was sold from, and stock of epochs that were abandoned.
    chains: Vec<StockChain>,
    /// Those epochs: the LSP may have completed them after all.
    abandoned: Vec<Prepared>,
    /// What revokes it, once it is verified; in no order.
    preimages: Vec<[u8; 32]>,
}

impl Retired {
    /// The hashes whose preimages are due.
    fn hashes(&self) -> impl Iterator<Item = [u8; 32]> {
        let stocks = self.chains.iter().flat_map(StockChain::stocks);
        stocks.map(|stock| stock.hash())
    }

    /// Whether `preimages` revoke all of it.
    fn is_revoked_by(&self, preimages: &[[u8; 32]]) -> bool {
        let known: BTreeSet<[u8; 32]> = preimages.iter().map(stock_hash).collect();
        self.hashes().all(|hash| known.contains(&hash))
    }
}

/// After the final signature.
#[derive(Debug)]
struct Switching {
    guarded: bool,
    revealed: bool,
}

/// A new epoch on its way.
#[derive(Debug)]
struct Ceremony {
    name: EpochName,
    version: u32,
    offer: CutOffer,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Freezing,
    Ready {
        said: EpochReady,
        nonces: ReservedNonces,
    },
    Signed {
        said: EpochReady,
        terms: EpochTerms,
        tree: Box<Tree>,
        partials: Vec<PartialBytes>,
    },
    Stored {
        prepared: Box<Prepared>,
        held: bool,
        /// Whether the state's partial signature may have left.
        committed: bool,
        round: Option<Signing>,
    },
}

/// One round of signing the node's state.
#[derive(Debug)]
struct Signing {
    name: [u8; 32],
    /// `None` until it is made, and once it has signed.
    nonce: Option<SecretNonce>,
    said: Option<NonceBytes>,
    partial: Option<PartialBytes>,
}

/// A new epoch with everything below its node signed.
#[derive(Debug)]
struct Prepared {
    version: Version,
    number: u32,
    cut: Cut,
    balances: Vec<(u32, u64)>,
    guard: Guard,
}

impl Prepared {
    fn push_msat(&self) -> u64 {
        let all = self.balances.iter().map(|(_, msat)| *msat);
        all.fold(0, u64::saturating_add)
    }

    fn channel_ref(&self, slot: SlotRef) -> ChannelRef {
        ChannelRef::moved(slot, self.number, self.version.name.retry)
    }

    fn stock(&self, path: &Path) -> Option<StockChain> {
        let facts = &path.terms().facts;
        let tree = &self.version.tree;
        // An error is one of keys that occur twice, which a path that builds has not.
        StockChain::of_cut(tree, facts.slot, &facts.record, &self.cut).ok()?
    }

    /// The channel of the new epoch; `None` where the member leaves.
    fn channel(&self, ground: &Ground<'_>) -> Option<MovedChannel> {
        let cut = self.cut.channel()?;
        let output = cut.channel_output();
        let header = &self.version.tree.header;
        Some(MovedChannel {
            id: self.channel_ref(ground.slot),
            channel: SlotChannel {
                slot: ground.slot,
                peer: ground.lsp,
                outpoint: self.version.tree.channel_outpoint(ground.slot.slot)?,
                capacity: cut.capacity,
                push_msat: self.push_msat(),
                script_pubkey: output.script_pubkey,
                timing: header.timing.clone(),
                layers: header.shape.layers(),
                expiry: header.expiry,
            },
        })
    }
}

impl Mover {
    pub(crate) fn set_limits(&mut self, limits: Option<EpochLimits>) {
        self.limits = limits;
    }

    /// The version of the place's path.
    pub(crate) fn version(&self) -> u32 {
        self.moved.last().map_or(0, |moved| moved.prepared.number)
    }

    /// Whether the member has signed its place away.
    pub(crate) fn is_departed(&self) -> bool {
        self.cut().is_some_and(|cut| *cut == Cut::Departed)
    }

    /// What the place holds, if it is not what the terms say.
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.moved.last().map(|moved| &moved.prepared.cut)
    }

    /// Where a new epoch stands; `None` where none is under way.
    pub(crate) fn stage(&self) -> Option<EpochStage> {
        if let Some(switching) = &self.switching {
            return Some(match switching.revealed {
                true => EpochStage::Guarding,
                false => EpochStage::Switching,
            });
        }
        Some(match &self.ceremony.as_ref()?.stage {
            Stage::Stored {
                committed: true, ..
            } => EpochStage::Committed,
            Stage::Stored { .. } => EpochStage::Stored,
            _ => EpochStage::Preparing,
        })
    }

    /// Whether the place's stock is not to be sold from: what is sold could be lost.
    pub(crate) fn is_frozen(&self) -> bool {
        self.stage().is_some() || !self.abandoned.is_empty() || self.is_departed()
    }

    /// What the place's channels may hold of the member's while an epoch that it has signed for may
    /// be completed without it.
    pub(crate) fn limbo_msat(&self) -> Option<u64> {
        let under_way = self
            .ceremony
            .iter()
            .filter_map(|ceremony| match &ceremony.stage {
                Stage::Stored {
                    prepared,
                    committed: true,
                    ..
                } => Some(prepared.push_msat()),
                _ => None,
            });
        let abandoned = self.abandoned.iter().map(Prepared::push_msat);
        abandoned.chain(under_way).min()
    }

    /// The place's leaf channel in the newest epoch; `None` once the member has left.
    pub(crate) fn leaf_channel(&self, slot: SlotRef) -> Option<ChannelRef> {
        match self.moved.last() {
            None => Some(ChannelRef::first(slot)),
            Some(moved) if moved.prepared.cut == Cut::Departed => None,
            Some(moved) => Some(moved.prepared.channel_ref(slot)),
        }
    }

    /// Whether the newest channels may carry payments.
    pub(crate) fn is_switched(&self) -> bool {
        self.switching.is_none()
    }

    /// The channel that the epoch under way makes.
    pub(crate) fn next_channel(&self, slot: SlotRef) -> Option<ChannelRef> {
        let ceremony = self.ceremony.as_ref()?;
        let stays = ceremony.offer != CutOffer::Departed;
        stays.then(|| ChannelRef::moved(slot, ceremony.version, ceremony.name.retry))
    }

    /// The stock of the newest epoch, with nothing sold.
    pub(crate) fn stock(&self, path: &Path) -> Option<StockChain> {
        self.moved.last()?.prepared.stock(path)
    }

    /// The newest tree of the member's path.
    pub(crate) fn tree<'a>(&'a self, ground: &'a Ground<'_>) -> &'a Tree {
        let newest = self.moved.last();
        newest.map_or(&ground.path.tree, |moved| &moved.prepared.version.tree)
    }

    /// Trees that somebody may have put on chain beside the first: of newer epochs, and of those the
    /// LSP alone can complete.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Tree> {
        let moved = self.moved.iter().map(|moved| &moved.prepared);
        let waited = self.ceremony.iter().filter_map(|it| it.committed());
        let all = moved.chain(self.all_abandoned()).chain(waited);
        all.map(|prepared| &prepared.version.tree)
    }

    /// The trees of epochs that all have signed, in order.
    pub(crate) fn switched_trees(&self) -> impl Iterator<Item = &Tree> {
        self.moved.iter().map(|moved| &moved.prepared.version.tree)
    }

    /// Every epoch that was signed and abandoned.
    fn all_abandoned(&self) -> impl Iterator<Item = &Prepared> {
        let retired = self.moved.iter().flat_map(|moved| &moved.retired.abandoned);
        retired.chain(&self.abandoned)
    }

    /// How many epochs have all their signatures beside the first.
    pub(crate) fn signed_epochs(&self) -> usize {
        let learned = |it: &&Prepared| it.version.signatures.contains_key(&it.version.top());
        self.moved.len() + self.all_abandoned().filter(learned).count()
    }

    /// Every stock output of older epochs with the preimages that are known.
    pub(crate) fn retired_stock(&self) -> Vec<(&StockChain, &[[u8; 32]])> {
        let all = self.moved.iter().map(|moved| &moved.retired);
        all.flat_map(|it| it.chains.iter().map(|chain| (chain, &it.preimages[..])))
            .collect()
    }

    /// `path` with every newer epoch, and what was sold in the older ones.
    pub(crate) fn extend(&self, mut path: SignedPath) -> Result<SignedPath, SignedPathError> {
        for moved in &self.moved {
            path = moved.prepared.version.extend(path)?;
            for chain in &moved.retired.chains {
                // Below an abandoned state, which has no final signature, nothing was sold.
                path = path.with_sales(chain.clone())?;
            }
        }
        for prepared in self.all_abandoned() {
            let version = &prepared.version;
            if version.signatures.contains_key(&version.top()) {
                path = version.extend(path)?;
            }
        }
        Ok(path)
    }

    /// Every channel of newer epochs that LDK is to be held to, and what is retired.
    pub(crate) fn agreed(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for moved in &self.moved {
            let bought = moved.retired.bought.iter().cloned();
            effects.extend(bought.map(Effect::AgreeBought));
            effects.extend(moved.prepared.channel(ground).map(Effect::AgreeMoved));
        }
        let abandoned = self.all_abandoned();
        let abandoned = abandoned.filter_map(|prepared| prepared.channel(ground));
        effects.extend(abandoned.map(Effect::AgreeMoved));
        let switched = self.moved.len() - usize::from(self.switching.is_some());
        for moved in &self.moved[..switched] {
            let retired = moved.retired.channels.iter();
            effects.extend(retired.map(|id| Effect::Retire(*id)));
        }
        let frozen = self.ceremony.is_some() || self.switching.is_some();
        let stored = self.ceremony.iter().filter_map(|it| it.prepared());
        effects.extend(
            stored
                .filter_map(|it| it.channel(ground))
                .map(Effect::AgreeMoved),
        );
        if frozen {
            effects.push(Effect::Freeze(ground.slot));
        } else {
            effects.extend(self.limbo(ground));
        }
        effects
    }

    fn limbo(&self, ground: &Ground<'_>) -> Option<Effect> {
        let slot = ground.slot;
        let frozen_msat = self.limbo_msat()?;
        Some(Effect::Limbo { slot, frozen_msat })
    }

    /// Whether a stock output of this place has, or may have had, this hash.
    pub(super) fn knows_hash(&self, ground: &Ground<'_>, hash: &[u8; 32]) -> bool {
        let retired = self.moved.iter().flat_map(|moved| &moved.retired.chains);
        let chains = retired.chain(&ground.chain);
        let prepared = self.abandoned.iter().filter_map(|it| it.cut.channel());
        let mut prepared = prepared.map(|cut| cut.stock_hash);
        let mut known = chains.flat_map(StockChain::stocks);
        known.any(|stock| stock.hash() == *hash)
            || prepared.any(|other| other == *hash)
            // Also where there was no stock: the terms name one all the same.
            || ground.path.terms().facts.record.stock_hash == *hash
    }
}

impl Ceremony {
    fn prepared(&self) -> Option<&Prepared> {
        match &self.stage {
            Stage::Stored { prepared, .. } => Some(prepared),
            _ => None,
        }
    }

    fn committed(&self) -> Option<&Prepared> {
        match &self.stage {
            Stage::Stored {
                prepared,
                committed: true,
                ..
            } => Some(prepared),
            _ => None,
        }
    }
}

/// A new epoch from what was said or written of it.
fn prepared(
    ground: &Ground<'_>,
    tree: &Tree,
    record: &MemberEpochStored,
) -> Result<Prepared, verify::Wrong> {
    let cut = verify::cut(&record.cut, record.funding_key);
    let built = verify::rebuilt(
        ground,
        tree,
        &record.epoch,
        &cut,
        &record.leaf_outputs,
        &record.contents,
    )?;
    Ok(Prepared {
        version: verify::signed(&record.epoch, built, &record.signatures)?,
        number: record.version,
        cut,
        balances: record.balances.clone(),
        guard: record.guard,
    })
}

fn say(ground: &Ground<'_>, message: impl Into<Message>) -> Effect {
    Effect::Send {
        to: ground.lsp,
        message: message.into(),
    }
}
