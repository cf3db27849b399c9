//! The coordinator's sub-role that makes new epochs.

use std::collections::BTreeSet;

use bitcoin::OutPoint;

use super::{Built, Coordinator, Phase};
use crate::effect::{ChannelRef, Effect, SlotRef};
use crate::epoch::{
    Conductor, ConductorGround, EpochError, EpochPlan, NextEpoch, Renewed, Sales, UnderWay,
};
use crate::exit::reclaim::{self, Reclaim, stock_outpoints};
use crate::exit::{ChainFacts, SignedPath, SignedPathError};
use crate::message::{Message, RefusalCode};
use crate::sale::Seller;
use crate::stock::StockChain;
use crate::tree::{Cut, Tree};

impl Coordinator {
    /// The new epoch that comes next for the leaf of `slot`.
    ///
    /// # Errors
    /// None can be made now, see [`EpochError`].
    pub fn next_epoch(&self, slot: u16) -> Result<NextEpoch, EpochError> {
        let Phase::Published { built, .. } = &self.phase else {
            return Err(EpochError::NotActive);
        };
        self.on_epochs(built, &self.seller, |ground| {
            self.conductor.next(ground, slot)
        })
    }

    /// Begins a new epoch. `randomness` are 32 fresh random bytes.
    ///
    /// # Errors
    /// See [`EpochError`].
    pub fn begin_epoch(
        &mut self,
        plan: &EpochPlan,
        randomness: [u8; 32],
    ) -> Result<Vec<Effect>, EpochError> {
        self.conduct(|conductor, ground| Some(conductor.begin(ground, plan, randomness)))
            .unwrap_or(Err(EpochError::NotActive))
    }

    /// Never completes the epoch under way. If anybody was asked to sign it, its number is used up;
    /// from here on payments may be accepted in the old channels.
    pub fn abandon_epoch(&mut self) -> Vec<Effect> {
        self.conduct(|conductor, ground| conductor.abandon(ground))
    }

    /// The version of the path to a place, 0 for the first.
    pub fn version(&self, slot: u16) -> u32 {
        self.conductor.version(slot)
    }

    /// What a place holds now; `None` before the terms are fixed.
    pub fn cut(&self, slot: u16) -> Option<Cut> {
        let record = self.built()?.terms.slots.get(usize::from(slot))?;
        Some(self.conductor.cut(record, slot))
    }

    /// A place's leaf channel in the newest epoch; `None` once its member has left.
    pub fn newest_channel(&self, slot: u16) -> Option<ChannelRef> {
        let attempt = self.attempt;
        self.conductor.leaf_channel(SlotRef { attempt, slot })
    }

    /// How far a new epoch is that not all have signed; `None` if there is none.
    pub fn epoch_under_way(&self) -> Option<UnderWay> {
        self.conductor.progress()
    }

    /// Whether the channels of a place rest, because a new epoch of it is under way or its member
    /// has not acknowledged the last one.
    pub fn is_moving(&self, slot: u16) -> bool {
        self.conductor.is_moving(slot)
    }

    /// The newest whole tree: the first, or that of the newest epoch that all have signed.
    pub fn newest_tree(&self) -> Option<&Tree> {
        let first = self.built().map(|built| &built.tree);
        self.conductor.newest().or(first)
    }

    /// Everything that leads to a place's channels, in all epochs, with what was sold; `None` until
    /// the first is signed.
    ///
    /// # Errors
    /// What is held does not fit together; it was verified when it came.
    pub fn signed_path(&self, slot: u16) -> Option<Result<SignedPath, SignedPathError>> {
        let built = self.built().filter(|built| built.complete())?;
        let first = SignedPath::new(&built.tree, slot, built.named_signatures());
        let path = first.and_then(|path| self.conductor.extend(slot, path));
        Some(path.and_then(|path| match self.stock_chain(slot) {
            Some(chain) => path.with_sales(chain),
            None => Ok(path),
        }))
    }

    /// Every outpoint whose spender the LSP wants to know, in all epochs: those of trees and stock.
    pub fn outpoints(&self) -> BTreeSet<OutPoint> {
        let trees = self.trees().flat_map(Tree::outpoints);
        trees.chain(stock_outpoints(&self.all_chains())).collect()
    }

    /// What the LSP may take alone, in whatever epoch the tree is on chain, as
    /// [`reclaims`](reclaim::reclaims).
    pub fn reclaims(&self, facts: &ChainFacts) -> Vec<Reclaim> {
        let chains = self.all_chains();
        let mut found: Vec<Reclaim> = Vec::new();
        for tree in self.trees() {
            let more = reclaim::reclaims(tree, &chains, facts);
            let known = |it: &Reclaim| found.iter().any(|other| other.outpoint == it.outpoint);
            let new: Vec<_> = more.into_iter().filter(|it| !known(it)).collect();
            found.extend(new);
        }
        found
    }

    /// The tree of every epoch that all have signed, the first one first.
    pub fn trees(&self) -> impl Iterator<Item = &Tree> {
        let first = self.built().map(|built| &built.tree);
        first.into_iter().chain(self.conductor.trees())
    }

    /// The stock of all older epochs, with the sales there were.
    pub fn retired_chains(&self) -> impl Iterator<Item = &StockChain> {
        self.conductor.retired_chains()
    }

    fn all_chains(&self) -> Vec<StockChain> {
        let mut chains = self.stock_chains();
        chains.extend(self.retired_chains().cloned());
        chains
    }

    pub(super) fn epoch_message(&mut self, slot: u16, message: Message) -> Vec<Effect> {
        let (attempt, peer) = (self.attempt, self.peers[usize::from(slot)]);
        let refuse = |code, field| super::refuse(attempt, peer, code, field);
        if !matches!(self.phase, Phase::Published { .. }) {
            return refuse(RefusalCode::Unexpected, "");
        }
        self.conduct(|conductor, ground| conductor.message(ground, slot, message, refuse))
    }

    /// What is done to the leaf channel of every place that uses it.
    pub(super) fn leaf_channels(
        &self,
        first: impl Fn(SlotRef) -> Effect,
        moved: impl Fn(ChannelRef) -> Effect,
    ) -> Vec<Effect> {
        let attempt = self.attempt;
        let each = (0..self.members()).filter_map(|slot| {
            let place = SlotRef { attempt, slot };
            let id = self.conductor.leaf_channel(place)?;
            if id == ChannelRef::first(place) {
                return Some(first(place));
            }
            self.conductor.is_switched(slot).then(|| moved(id))
        });
        each.collect()
    }

    /// Lets the conductor act; nothing before the factory is published.
    pub(super) fn conduct<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Conductor, &ConductorGround<'_>) -> T,
    ) -> T {
        let mut conductor = std::mem::take(&mut self.conductor);
        let before = conductor.newest().map(|tree| tree.edition().clone());
        let (done, renewed) = match &self.phase {
            Phase::Published { built, .. } => self.on_epochs(built, &self.seller, |ground| {
                let done = act(&mut conductor, ground);
                let new = conductor.newest().map(|tree| tree.edition()) != before.as_ref();
                let renewed: Vec<Renewed> = match new {
                    true => conductor.renewed(ground),
                    false => Vec::new(),
                };
                (done, renewed)
            }),
            _ => (T::default(), Vec::new()),
        };
        self.conductor = conductor;
        for (slot, version, chain) in renewed {
            self.seller.renew(slot, version, chain);
        }
        done
    }

    pub(super) fn on_epochs<T>(
        &self,
        built: &Built,
        seller: &Seller,
        act: impl FnOnce(&ConductorGround<'_>) -> T,
    ) -> T {
        let (secrets, header) = (&self.secrets, &built.terms.header);
        let attempt = self.attempt;
        let sales = |slot: u16| {
            let place = usize::from(slot);
            let chain = seller.chain(slot).cloned();
            let first = || {
                let record = built.terms.slots.get(place)?;
                // An error is one of keys that occur twice, which built terms have not.
                StockChain::of_slot(&built.tree, slot, record).ok()?
            };
            Sales {
                busy: seller.is_busy(slot),
                // A place that has moved has told its seller.
                chain: match seller.knows(slot) {
                    true => chain,
                    false => first(),
                },
                bought: seller.bought(SlotRef { attempt, slot }, self.peers[place], header),
            }
        };
        act(&ConductorGround {
            attempt,
            peers: &self.peers,
            terms: &built.terms,
            tree: &built.tree,
            key: secrets.key(),
            preimage: &|name| secrets.stock_preimage(header, name),
            active: self.open,
            sales: &sales,
        })
    }
}
