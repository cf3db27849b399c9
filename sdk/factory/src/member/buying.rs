//! The member's sub-role that buys channels out of its stock.

use super::{Member, Phase, Refused};
use crate::effect::{ChannelRef, Effect};
use crate::journal::SaleStep;
use crate::message::{Message, RefusalCode, SaleId, SaleTerms};
use crate::sale::{Ask, BuyError, Buyer, BuyerGround, Stage};
use crate::stock::{Sellable, StockChain};

impl Member {
    /// The channel that the next sale makes: what the keys of [`Ask`] are derived for. `None` where
    /// there is nothing to buy.
    pub fn next_channel(&self) -> Option<ChannelRef> {
        self.buyer.next_channel(self.slot(), self.mover.version())
    }

    /// What the stock beside the channel allows to be bought, if the LSP sells it.
    pub fn sellable(&self) -> Sellable {
        let chain = self.buyer.chain();
        chain.map(StockChain::sellable).unwrap_or_default()
    }

    /// The stock beside the channel with everything bought of it whose final signature is durable:
    /// a part of what leaving alone needs. `None` before the path is complete, and without stock.
    pub fn stock_chain(&self) -> Option<&StockChain> {
        self.buyer.chain()
    }

    /// Where the sale under way stands; `None` if there is none.
    pub fn sale_stage(&self) -> Option<Stage> {
        self.buyer.stage()
    }

    /// Whether a sale or a new epoch is signed and counts only when a watchtower has acknowledged it.
    pub fn awaits_tower(&self) -> bool {
        self.buyer.awaits_tower() || self.mover.awaits_tower()
    }

    /// What was quoted under this name, as long as it can be accepted.
    pub fn quoted(&self, sale: SaleId) -> Option<&SaleTerms> {
        self.buyer.quoted_as(&self.attempt(), sale)
    }

    /// Asks what a channel costs. Answered by
    /// [`Quoted`](crate::effect::Event::Quoted) or [`NotSold`](crate::effect::Event::NotSold), and
    /// said again after each reconnect until then.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn ask(&mut self, ask: Ask) -> Result<Vec<Effect>, BuyError> {
        self.buying(|buyer, ground| Some(buyer.ask(ground, ask)))
            .unwrap_or(Err(BuyError::NotActive))
    }

    /// Accepts the quote for `sale`: from here on nothing else can be bought out of this stock
    /// output. `randomness` are 32 fresh random bytes.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn accept(&mut self, sale: SaleId, randomness: &[u8; 32]) -> Result<Vec<Effect>, BuyError> {
        self.buying(|buyer, ground| Some(buyer.accept(ground, sale, randomness)))
            .unwrap_or(Err(BuyError::NotActive))
    }

    pub(super) fn connected(&mut self) -> Vec<Effect> {
        let mut effects = self.repeat();
        effects.extend(self.buying(|buyer, ground| buyer.repeat(ground)));
        effects.extend(self.moving(|mover, ground| mover.repeat(ground)));
        effects
    }

    /// Nothing is bought or signed any more.
    pub(super) fn tree_seen(&mut self) -> Vec<Effect> {
        self.buyer.opened();
        self.moving(|mover, ground| mover.opened(ground))
    }

    pub(super) fn sale_message(&mut self, message: Message) -> Vec<Effect> {
        let attempt = self.attempt();
        let unexpected = (RefusalCode::Unexpected, "");
        let taken = self.buying(|buyer, ground| Some(buyer.message(ground, message)));
        match taken.unwrap_or(Err((unexpected, Vec::new()))) {
            Ok(effects) => effects,
            Err(((code, field), told)) => {
                let mut effects = self.refuse(attempt, &Refused::new(code, field));
                effects.extend(told);
                effects
            }
        }
    }

    pub(super) fn sale_step(&mut self, id: ChannelRef, step: SaleStep) -> Vec<Effect> {
        self.buying(|buyer, ground| buyer.step(ground, id, step))
    }

    /// Lets the buyer act; nothing before the path is complete.
    pub(super) fn buying<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Buyer, &BuyerGround<'_>) -> T,
    ) -> T {
        let slot = self.slot();
        let Phase::Complete { path, .. } = &self.phase else {
            return T::default();
        };
        let ground = BuyerGround {
            slot,
            lsp: self.joined.lsp,
            header: &path.tree.header,
            key: &self.key,
            tip: self.tip,
            active: self.open,
            version: self.mover.version(),
            frozen: self.mover.is_frozen(),
        };
        act(&mut self.buyer, &ground)
    }
}
