//! The coordinator's sub-role that sells stock, and what it is told about the factory.

use bitcoin::secp256k1::PublicKey;

use super::{Built, Coordinator, Phase};
use crate::effect::{Effect, SlotRef};
use crate::epoch::{Conductor, StockName};
use crate::message::{Message, RefusalCode};
use crate::sale::{SalePolicy, Seller, SellerGround};
use crate::stock::StockChain;

impl Coordinator {
    /// What is sold from now on; nothing until this is said, and again after each replay.
    pub fn set_sale_policy(&mut self, policy: Option<SalePolicy>) {
        self.seller.set_policy(policy);
    }

    /// The stock of every place that has some, with the sales that were delivered: what
    /// [`reclaims`](crate::exit::reclaim::reclaims) must leave alone.
    pub fn stock_chains(&self) -> Vec<StockChain> {
        let slots = 0..self.members();
        slots.filter_map(|slot| self.stock_chain(slot)).collect()
    }

    /// The stock of one place with the sales that were delivered; `None` if it has none.
    pub fn stock_chain(&self, slot: u16) -> Option<StockChain> {
        if let Some(chain) = self.seller.chain(slot) {
            return Some(chain.clone());
        }
        if self.conductor.version(slot) > 0 {
            return None;
        }
        let built = self.built()?;
        let record = built.terms.slots.get(usize::from(slot))?;
        // An error is one of keys that occur twice, which built terms have not.
        StockChain::of_slot(&built.tree, slot, record).ok()?
    }

    /// How many channels were sold in a place's newest epoch and delivered.
    pub fn sold(&self, slot: u16) -> usize {
        let chain = self.seller.chain(slot);
        chain.map_or(0, |chain| chain.links().len())
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = SlotRef> + use<> {
        let attempt = self.attempt;
        (0..self.members()).map(move |slot| SlotRef { attempt, slot })
    }

    /// Hashes of the payments that are owed for channels.
    pub fn owed(&self) -> Vec<[u8; 32]> {
        self.seller.owed()
    }

    pub(super) fn connected(&mut self, peer: PublicKey) -> Vec<Effect> {
        let mut effects = self.repeat(peer);
        let slot = self.peers.iter().position(|other| *other == peer);
        if let Some(slot) = slot {
            let slot = slot as u16;
            effects.extend(self.sell(|seller, ground| seller.repeat(ground, slot)));
            effects.extend(self.conduct(|conductor, ground| conductor.repeat(ground, slot)));
        }
        effects
    }

    /// Nothing is sold or signed any more.
    pub(super) fn tree_seen(&mut self) -> Vec<Effect> {
        self.seller.opened();
        self.conduct(|conductor, ground| conductor.opened(ground))
    }

    /// Only remembered: nothing is done about it here.
    pub(super) fn place_ended(&mut self, slot: u16) -> Vec<Effect> {
        self.sell(|seller, ground| seller.ended(ground, slot));
        Vec::new()
    }

    pub(super) fn sale_message(&mut self, slot: u16, message: Message) -> Vec<Effect> {
        let (attempt, peer) = (self.attempt, self.peers[usize::from(slot)]);
        let refuse = |code, field| super::refuse(attempt, peer, code, field);
        if !matches!(self.phase, Phase::Published { .. }) {
            return refuse(RefusalCode::Unexpected, "");
        }
        self.sell(|seller, ground| seller.message(ground, slot, message, refuse))
    }

    /// Lets the seller act; nothing before the factory is published.
    pub(super) fn sell<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Seller, &SellerGround<'_>) -> T,
    ) -> T {
        let mut seller = std::mem::take(&mut self.seller);
        let done = match &self.phase {
            Phase::Published { built, .. } => {
                self.on_ground(built, &self.conductor, |it| act(&mut seller, it))
            }
            _ => T::default(),
        };
        self.seller = seller;
        done
    }

    pub(super) fn on_ground<T>(
        &self,
        built: &Built,
        conductor: &Conductor,
        act: impl FnOnce(&SellerGround<'_>) -> T,
    ) -> T {
        let (secrets, header) = (&self.secrets, &built.terms.header);
        let stock_hash = |slot, link| {
            let made = conductor.made(slot);
            secrets.stock_hash(header, &StockName { slot, made, link })
        };
        act(&SellerGround {
            attempt: self.attempt,
            peers: &self.peers,
            terms: &built.terms,
            tree: &built.tree,
            key: secrets.key(),
            stock_hash: &stock_hash,
            tip: self.tip,
            active: self.open,
            frozen: &|slot| conductor.is_frozen(slot),
        })
    }
}
