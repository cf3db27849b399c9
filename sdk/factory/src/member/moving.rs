//! The member's sub-role that follows its LSP into new epochs.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{FeeRate, OutPoint, Script};

use super::{Member, Path, Phase, Refused, revocation_key};
use crate::effect::{ChannelRef, Effect, SlotRef};
use crate::epoch::{EpochLimits, EpochStage, Mover, MoverGround};
use crate::exit::stale::{StaleSweep, stale_stock_sweeps};
use crate::exit::{SignedPath, SignedPathError};
use crate::message::{EpochEnd, Message, RefusalCode};
use crate::sale::{Buyer, BuyerGround};
use crate::signing::FactoryKey;
use crate::stock::StockChain;
use crate::tree::{Cut, Tree};

impl Member {
    /// What is accepted of new epochs from now on; nothing until this is said, and again after each
    /// replay.
    pub fn set_epoch_limits(&mut self, limits: Option<EpochLimits>) {
        self.mover.set_limits(limits);
    }

    /// The version of the path, 0 for the first.
    pub fn version(&self) -> u32 {
        self.mover.version()
    }

    /// What the place holds now; `None` before the path is complete.
    pub fn cut(&self) -> Option<Cut> {
        let path = self.path()?;
        let first = || path.terms().facts.record.cut();
        Some(self.mover.cut().cloned().unwrap_or_else(first))
    }

    /// How many epochs of the path beside the first all have signed, as far as is known here. It
    /// grows with each that [`Self::signed_path`] holds.
    pub fn signed_epochs(&self) -> usize {
        self.mover.signed_epochs()
    }

    /// Where a new epoch stands; `None` if none is under way.
    pub fn epoch_stage(&self) -> Option<EpochStage> {
        self.mover.stage()
    }

    /// The channel that the epoch under way makes: what the key of
    /// [`Frozen`](super::Input::Frozen) is derived for.
    pub fn moved_channel(&self) -> Option<ChannelRef> {
        self.mover.next_channel(self.slot())
    }

    /// The place's leaf channel in the newest epoch; `None` once the member has left.
    pub fn newest_channel(&self) -> Option<ChannelRef> {
        self.mover.leaf_channel(self.slot())
    }

    /// What all channels of the place may hold of the member's, in millisatoshi, while an epoch that
    /// it has signed for may be completed without it; `None` while there is none.
    pub fn limbo_msat(&self) -> Option<u64> {
        self.mover.limbo_msat()
    }

    /// Trees that somebody may put on chain beside [`Self::tree`]: of newer epochs, and of those
    /// that the LSP alone can complete. Their outpoints are looked for as well.
    pub fn newer_trees(&self) -> impl Iterator<Item = &Tree> {
        self.mover.trees()
    }

    /// Those of them that all have signed, in order: the last is the newest.
    pub fn switched_trees(&self) -> impl Iterator<Item = &Tree> {
        self.mover.switched_trees()
    }

    /// Where the place's channel is in each of [`Self::newer_trees`]: a commitment on one of them
    /// counts when that is on chain.
    pub fn awaited_outpoints(&self) -> Vec<OutPoint> {
        let slot = self.slot().slot;
        let trees = self.mover.trees();
        trees
            .filter_map(|tree| tree.channel_outpoint(slot))
            .collect()
    }

    /// Everything that leads to the place's channels, in all epochs, with what was bought; `None`
    /// before the path is complete.
    ///
    /// # Errors
    /// What is held does not fit together; it was verified when it came.
    pub fn signed_path(&self) -> Option<Result<SignedPath, SignedPathError>> {
        let path = self.path()?;
        let names = path.tree.signing_order(path.slot()).into_iter();
        let signatures = names.zip(path.signatures.iter().copied());
        let first = SignedPath::new(&path.tree, path.slot(), signatures);
        let moved = first.and_then(|path| self.mover.extend(path));
        Some(moved.and_then(|path| match self.stock_chain() {
            Some(chain) => path.with_sales(chain.clone()),
            None => Ok(path),
        }))
    }

    /// The stock of older epochs, each with the preimages that revoke it; none where they are yet
    /// to be revealed. What [`stale`](crate::exit::stale) takes, whoever puts it on chain.
    pub fn retired_stock(&self) -> Vec<(&StockChain, &[[u8; 32]])> {
        self.mover.retired_stock()
    }

    /// Ready-made spends of that stock, at several feerates, to `to`. `seed` is the wallet's factory
    /// seed.
    pub fn stale_sweeps(
        &self,
        seed: &[u8; 32],
        to: &Script,
        feerates: &[FeeRate],
    ) -> Vec<StaleSweep> {
        let key = revocation_key(seed, &self.joined.salt);
        stale_stock_sweeps(&self.retired_stock(), &key, to, feerates)
    }

    pub(super) fn epoch_message(&mut self, message: Message) -> Vec<Effect> {
        let attempt = self.attempt();
        let unexpected = (RefusalCode::Unexpected, "");
        // So that the others need not wait for somebody who does not go on.
        let begun = match &message {
            Message::EpochPropose(body) => Some(body.epoch.clone()),
            Message::EpochTerms(body) => Some(body.epoch.clone()),
            Message::EpochSigs(body) => Some(body.epoch.clone()),
            _ => None,
        };
        let taken = self.moving(|mover, ground| Some(mover.message(ground, message)));
        match taken.unwrap_or(Err((unexpected, Vec::new()))) {
            Ok(effects) => effects,
            Err(((code, field), told)) => {
                let mut effects = self.refuse(attempt, &Refused::new(code, field));
                let ended = begun.filter(|_| self.epoch_stage() != Some(EpochStage::Committed));
                effects.extend(ended.map(|epoch| {
                    self.send(EpochEnd {
                        attempt,
                        epoch,
                        code,
                    })
                }));
                effects.extend(told);
                effects
            }
        }
    }

    /// What is done to the place's leaf channel, if it is in use.
    pub(super) fn leaf_channel(
        &self,
        first: impl Fn(SlotRef) -> Effect,
        moved: impl Fn(ChannelRef) -> Effect,
    ) -> Option<Effect> {
        let slot = self.slot();
        let id = self.mover.leaf_channel(slot)?;
        if id == ChannelRef::first(slot) {
            return Some(first(slot));
        }
        self.mover.is_switched().then(|| moved(id))
    }

    /// Lets the mover act; nothing before the path is complete.
    pub(super) fn moving<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Mover, &MoverGround<'_>) -> T,
    ) -> T {
        let place = (self.slot(), self.joined.lsp);
        let Phase::Complete { path, .. } = &self.phase else {
            return T::default();
        };
        let (buyer, mover) = (&self.buyer, &mut self.mover);
        let before = mover.version();
        let done = on_epochs(place, path, &self.key, buyer, mover, self.open, act);
        if self.mover.version() != before {
            self.buyer.renew(self.mover.stock(path));
        }
        done
    }
}

/// Lets a mover act on a member that is complete, with what its buyer has.
pub(super) fn on_epochs<T>(
    (slot, lsp): (SlotRef, PublicKey),
    path: &Path,
    key: &FactoryKey,
    buyer: &Buyer,
    mover: &mut Mover,
    active: bool,
    act: impl FnOnce(&mut Mover, &MoverGround<'_>) -> T,
) -> T {
    let bought = buyer.agreed(&BuyerGround {
        slot,
        lsp,
        header: &path.tree.header,
        key,
        tip: 0,
        active,
        version: mover.version(),
        frozen: true,
    });
    let record = path.terms().facts.record.cut();
    let cut = mover.cut().unwrap_or(&record);
    let leaf = mover.leaf_channel(slot).zip(cut.channel());
    let leaf = leaf.map(|(id, cut)| (id, cut.capacity));
    let undelivered = buyer.undelivered(slot);
    let sold = bought.iter().filter(|it| Some(it.id) != undelivered);
    let sold = sold.map(|it| (it.id, it.channel.capacity));
    let ground = MoverGround {
        slot,
        lsp,
        path,
        key,
        active,
        selling: buyer.is_busy(),
        channels: leaf.into_iter().chain(sold).collect(),
        undelivered,
        chain: buyer.all_stock(),
        bought,
    };
    act(mover, &ground)
}
