//! What happens to a member's new epoch beside what its LSP says.

use std::collections::BTreeMap;

use bitcoin::Transaction;
use bitcoin::secp256k1::{PublicKey, schnorr};

use super::{Ground, Mover, Signing, Stage, say};
use crate::effect::{ChannelRef, Effect, Event};
use crate::epoch::{EpochStage, verify};
use crate::journal::{EpochEnded, EpochSigned, Guard, MemberEpochGuarded, MemberEpochSeen};
use crate::message::{CutOffer, EpochEnd, EpochNonce, EpochReady, RefusalCode, SwitchAck};
use crate::signing::ReservedNonces;
use crate::tree::Cut;

impl Mover {
    /// No HTLC is pending in the place's channels; `balances` is what is the member's in each.
    pub(crate) fn frozen(
        &mut self,
        ground: &Ground<'_>,
        balances: &[(ChannelRef, u64)],
        funding_key: PublicKey,
        randomness: &[u8; 32],
    ) -> Vec<Effect> {
        let tree = self.tree(ground);
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        let said: &Vec<(u32, u64)> = &balances.iter().map(|(id, msat)| (id.seq, *msat)).collect();
        if let Stage::Stored {
            prepared,
            committed: false,
            ..
        } = &ceremony.stage
        {
            // Told again: nothing may have moved since.
            let known: BTreeMap<_, _> = prepared.balances.iter().copied().collect();
            return match known == said.iter().copied().collect() {
                true => Vec::new(),
                false => self.give_up_aloud(ground, RefusalCode::Channel),
            };
        }
        if !matches!(ceremony.stage, Stage::Freezing) {
            return Vec::new();
        }
        let below = tree.renewed_below(ceremony.name.node).len();
        let listed = balances.len() == ground.channels.len()
            && ground.channels.iter().all(|(id, capacity)| {
                let mut own = balances.iter().filter(|(other, _)| other == id);
                let most = capacity.to_sat() * 1_000;
                own.next().is_some_and(|(_, msat)| *msat <= most)
            });
        let each = balances.iter().map(|(_, msat)| *msat);
        let total = each.fold(0, u64::saturating_add);
        let cut = verify::cut(&ceremony.offer, funding_key);
        let sound = match &cut {
            Cut::Departed => true,
            Cut::Channel(channel) => {
                let fits = total <= channel.capacity.to_sat() * 1_000;
                fits && cut.check(&ground.path.terms().facts.record).is_ok()
            }
        };
        if !listed || !sound || !self.is_accepted(ground, total) {
            return self.give_up_aloud(ground, RefusalCode::Limits);
        }
        let Some(nonces) = ReservedNonces::fresh(ground.key, below, randomness) else {
            return self.give_up_aloud(ground, RefusalCode::Nonce);
        };
        let said = EpochReady {
            attempt: ground.slot.attempt,
            epoch: ceremony.name.clone(),
            funding_key,
            balances: said.clone(),
            nonces: nonces.public().iter().map(|it| it.to_bytes()).collect(),
        };
        if let Some(ceremony) = &mut self.ceremony {
            ceremony.stage = Stage::Ready {
                said: said.clone(),
                nonces,
            };
        }
        vec![say(ground, said)]
    }

    /// Both sides hold commitments on the new channel, ours durably.
    pub(crate) fn held(&mut self, ground: &Ground<'_>, id: ChannelRef) -> Vec<Effect> {
        let meant = self.next_channel(ground.slot) == Some(id);
        let Some(ceremony) = self.ceremony.as_mut().filter(|_| meant) else {
            return Vec::new();
        };
        let Stage::Stored { held, round, .. } = &mut ceremony.stage else {
            return Vec::new();
        };
        let waited = !std::mem::replace(held, true) && round.is_some();
        match waited {
            true => vec![Effect::NeedEpochRandomness(ground.slot.attempt)],
            false => Vec::new(),
        }
    }

    /// The new channel could not be opened, or was closed.
    pub(crate) fn lost(&mut self, ground: &Ground<'_>, id: ChannelRef) -> Vec<Effect> {
        let ceremony = self.ceremony.as_ref();
        let given_up = ceremony.is_some_and(|it| it.committed().is_none());
        match given_up && self.next_channel(ground.slot) == Some(id) {
            true => self.give_up_aloud(ground, RefusalCode::Channel),
            false => Vec::new(),
        }
    }

    /// Makes the nonce that the LSP has asked for.
    pub(crate) fn randomness(&mut self, ground: &Ground<'_>, randomness: &[u8; 32]) -> Vec<Effect> {
        let opened = self.opened;
        let Some(ceremony) = self.ceremony.as_mut().filter(|_| !opened) else {
            return Vec::new();
        };
        let epoch = ceremony.name.clone();
        let Stage::Stored {
            held: true,
            round: Some(signing),
            ..
        } = &mut ceremony.stage
        else {
            return Vec::new();
        };
        let Signing {
            said: None, name, ..
        } = signing
        else {
            return Vec::new();
        };
        let round = *name;
        let nonce = ReservedNonces::fresh(ground.key, 1, randomness);
        let Some(nonce) = nonce.and_then(|mut it| it.take(0).ok()) else {
            return Vec::new();
        };
        let public = nonce.public().to_bytes();
        (signing.nonce, signing.said) = (Some(nonce), Some(public));
        let said = EpochNonce {
            attempt: ground.slot.attempt,
            epoch,
            round,
            nonce: public,
        };
        vec![say(ground, said)]
    }

    /// The watchtower has acknowledged the new epoch, with what is revoked by it.
    pub(crate) fn guarded(&mut self, ground: &Ground<'_>, version: u32) -> Vec<Effect> {
        let meant = self.version() == version && !self.opened;
        let switching = self.switching.as_mut().filter(|_| meant);
        // Before it is revealed nobody could claim what it revokes.
        let Some(switching) = switching.filter(|it| it.revealed) else {
            return Vec::new();
        };
        if std::mem::replace(&mut switching.guarded, true) {
            return Vec::new();
        }
        let mut effects = vec![Effect::Persist(MemberEpochGuarded { version }.into())];
        effects.extend(self.switch(ground));
        effects
    }

    /// The old channels give way to the new one, if nothing is missing.
    pub(super) fn switch(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        if !self.may_switch() {
            return Vec::new();
        }
        self.switching = None;
        let Some(moved) = self.moved.last() else {
            return Vec::new();
        };
        let (attempt, prepared) = (ground.slot.attempt, &moved.prepared);
        let retired = moved.retired.channels.iter();
        let mut effects: Vec<_> = retired.map(|id| Effect::Retire(*id)).collect();
        let epoch = prepared.version.name.clone();
        effects.push(say(ground, SwitchAck { attempt, epoch }));
        let new = self.leaf_channel(ground.slot).filter(|_| ground.active);
        effects.extend(new.map(Effect::ActivateMoved));
        effects.push(Effect::Emit(Event::Moved {
            slot: ground.slot,
            version: prepared.number,
        }));
        let before = self.moved.iter().rev().nth(1);
        let was_here = before.is_none_or(|moved| moved.prepared.cut != Cut::Departed);
        if prepared.cut == Cut::Departed && was_here {
            effects.push(Effect::Emit(Event::Left {
                slot: ground.slot,
                forgone_msat: prepared.push_msat(),
            }));
        }
        effects
    }

    pub(super) fn may_switch(&self) -> bool {
        let guard = self.moved.last().map(|moved| moved.prepared.guard);
        let switching = self.switching.as_ref();
        switching.is_some_and(|it| it.revealed && (it.guarded || guard == Some(Guard::Member)))
    }

    /// Whether nothing but a watchtower's acknowledgement is missing.
    pub(crate) fn awaits_tower(&self) -> bool {
        self.stage() == Some(EpochStage::Guarding) && !self.opened
    }

    /// A state that only the LSP could complete is in mempool or chain, with its signature.
    pub(crate) fn seen(&mut self, ground: &Ground<'_>, tx: &Transaction) -> Vec<Effect> {
        let witness = tx.input.first().and_then(|input| input.witness.nth(0));
        let signature = witness.and_then(|it| schnorr::Signature::from_slice(it).ok());
        let Some(signature) = signature else {
            return Vec::new();
        };
        let ceremony = self.ceremony.as_ref();
        if ceremony.is_some_and(|it| it.committed().is_some()) && self.complete(ground, signature) {
            let frozen = Effect::Freeze(ground.slot);
            return vec![Effect::Persist(EpochSigned { signature }.into()), frozen];
        }
        match self.learn(signature) {
            true => vec![Effect::Persist(MemberEpochSeen { signature }.into())],
            false => Vec::new(),
        }
    }

    /// Takes the signature of an epoch that was abandoned; `false` if it is none, or known.
    pub(super) fn learn(&mut self, signature: schnorr::Signature) -> bool {
        let retired = self.moved.iter_mut();
        let retired = retired.flat_map(|moved| &mut moved.retired.abandoned);
        let mut all = retired.chain(&mut self.abandoned);
        all.any(|prepared| {
            let version = &mut prepared.version;
            !version.signatures.contains_key(&version.top()) && version.complete(signature)
        })
    }

    /// A round took longer than the LSP said it would wait.
    pub(crate) fn timed_out(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            let waits = self.awaits_tower().then(|| Event::Unguarded {
                slot: ground.slot,
                version: self.version(),
            });
            return waits.map(Effect::Emit).into_iter().collect();
        };
        if ceremony.committed().is_none() {
            return self.give_up_aloud(ground, RefusalCode::Silence);
        }
        let mut effects: Vec<_> = self.limbo(ground).into_iter().collect();
        effects.extend(self.limbo_msat().map(|frozen_msat| {
            let slot = ground.slot;
            Effect::Emit(Event::Limbo { slot, frozen_msat })
        }));
        effects
    }

    /// Somebody has begun to open the factory: nothing is signed any more, and no channel gives way
    /// to one that may never be on chain.
    pub(crate) fn opened(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        self.opened = true;
        let ceremony = self.ceremony.as_ref();
        match ceremony.is_some_and(|it| it.committed().is_none()) {
            true => self.give_up_aloud(ground, RefusalCode::Unexpected),
            false => Vec::new(),
        }
    }

    /// Whether what is under way is what the host accepts now, with so much of the member's in its
    /// channels.
    pub(super) fn is_accepted(&self, ground: &Ground<'_>, own_msat: u64) -> bool {
        let Some(ceremony) = &self.ceremony else {
            return false;
        };
        let leaves = ceremony.offer == CutOffer::Departed && !self.is_departed();
        match &self.limits {
            Some(limits) => {
                let forgone = !leaves || own_msat <= limits.forgo_msat;
                forgone && verify::within(ground, self, limits, &ceremony.offer).is_ok()
            }
            // Not said yet since a restart: only what takes nothing goes on.
            None => !leaves,
        }
    }

    pub(super) fn give_up_aloud(&mut self, ground: &Ground<'_>, code: RefusalCode) -> Vec<Effect> {
        let Some(epoch) = self.ceremony.as_ref().map(|it| it.name.clone()) else {
            return Vec::new();
        };
        let attempt = ground.slot.attempt;
        let mut effects = self.give_up(ground, code);
        let end = EpochEnd {
            attempt,
            epoch,
            code,
        };
        effects.push(say(ground, end));
        effects
    }

    /// Ends an epoch of which nothing was signed that counts.
    pub(super) fn give_up(&mut self, ground: &Ground<'_>, code: RefusalCode) -> Vec<Effect> {
        let Some(ceremony) = self.ceremony.take() else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        if let Some(prepared) = ceremony.prepared() {
            effects.push(Effect::Persist(EpochEnded { code }.into()));
            let channel = prepared.cut.channel();
            effects
                .extend(channel.map(|_| Effect::DiscardMoved(prepared.channel_ref(ground.slot))));
        }
        // What was signed before may still be completed.
        effects.push(self.limbo(ground).unwrap_or(Effect::Thaw(ground.slot)));
        effects.push(Effect::Emit(Event::EpochEnded {
            attempt: ground.slot.attempt,
            epoch: ceremony.name,
            code,
            at_fault: Vec::new(),
        }));
        effects
    }

    /// Keeps an epoch that was signed and that the LSP says it never completes.
    pub(super) fn abandon(&mut self) {
        if let Some(Stage::Stored { prepared, .. }) = self.ceremony.take().map(|it| it.stage) {
            self.abandoned.push(*prepared);
        }
    }
}
