//! The node's state: the rounds in which a member signs it, its final signature, and what it retires.

use bitcoin::secp256k1::schnorr;

use super::hear::{Refusal, aggregates, equivocation, refuse};
use super::{Ground, Moved, Mover, Retired, Signing, Stage, Switching, say};
use crate::effect::Effect;
use crate::journal::{EpochSigned, MemberEpochCommitted, MemberEpochRevealed};
use crate::message::{
    EpochAsk, EpochCommit, EpochPartial, EpochReveal, EpochSig, EpochStored, RefusalCode, SwitchAck,
};
use crate::signing::SigningSession;

impl Mover {
    pub(super) fn asked(
        &mut self,
        ground: &Ground<'_>,
        ask: &EpochAsk,
    ) -> Result<Vec<Effect>, Refusal> {
        let (opened, accepted) = (self.opened, self.is_prepared_accepted(ground));
        let ceremony = self.under_way(&ask.epoch)?;
        let Stage::Stored {
            held,
            round,
            committed,
            ..
        } = &mut ceremony.stage
        else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        if opened {
            return Ok(Vec::new());
        }
        // Before anybody who is asked with it signs.
        if !*committed && !accepted {
            return Ok(self.give_up_aloud(ground, RefusalCode::Limits));
        }
        if round
            .as_ref()
            .is_some_and(|it| it.name == ask.round && it.said.is_some())
        {
            return Ok(self.repeat(ground));
        }
        // A nonce of the round before has signed nothing, or is gone.
        *round = Some(Signing {
            name: ask.round,
            nonce: None,
            said: None,
            partial: None,
        });
        Ok(match held {
            true => vec![Effect::NeedEpochRandomness(ground.slot.attempt)],
            false => Vec::new(),
        })
    }

    fn is_prepared_accepted(&self, ground: &Ground<'_>) -> bool {
        let prepared = self.ceremony.as_ref().and_then(|it| it.prepared());
        prepared.is_none_or(|it| self.is_accepted(ground, it.push_msat()))
    }

    pub(super) fn commit(
        &mut self,
        ground: &Ground<'_>,
        commit: &EpochCommit,
    ) -> Result<Vec<Effect>, Refusal> {
        let opened = self.opened;
        let (attempt, epoch) = (ground.slot.attempt, commit.epoch.clone());
        let prepared = self.ceremony.as_ref().and_then(|it| it.prepared());
        let meant = prepared.and_then(|it| it.version.commitment());
        let before = meant.and_then(|(outpoint, _)| self.committed.get(&outpoint).copied());
        let accepted = self.is_prepared_accepted(ground);
        let ceremony = self.under_way(&commit.epoch)?;
        let Stage::Stored {
            prepared,
            held,
            committed,
            round,
        } = &mut ceremony.stage
        else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        if !*held || opened {
            return refuse(RefusalCode::Unexpected, "epoch");
        }
        // The last moment for its user's word to count.
        if !*committed && !accepted {
            return Ok(self.give_up_aloud(ground, RefusalCode::Limits));
        }
        let lost = vec![say(
            ground,
            EpochStored {
                attempt,
                epoch: epoch.clone(),
            },
        )];
        let Some(signing) = round.as_mut().filter(|it| it.name == commit.round) else {
            return Ok(lost);
        };
        let answer = |partial| EpochPartial {
            attempt,
            epoch: epoch.clone(),
            round: commit.round,
            partial,
        };
        if let Some(partial) = signing.partial {
            // Said again: no nonce sees a second message.
            return Ok(vec![say(ground, answer(partial))]);
        }
        let aggregate = aggregates(&[commit.nonce], 1)?.remove(0);
        let top = prepared.version.top();
        let tx = prepared.version.tree.tx(top);
        let (Some(tx), Some((outpoint, sighash))) = (tx, meant) else {
            return refuse(RefusalCode::Terms, "epoch");
        };
        let number = prepared.version.name.epoch();
        if let Some((epoch, signed)) = before
            && (epoch > number || (epoch == number && signed != sighash))
        {
            let told = vec![equivocation(ground, &commit.epoch)];
            return Err(((RefusalCode::Equivocation, "epochs"), told));
        }
        let Some(nonce) = signing.nonce.take() else {
            return Ok(lost);
        };
        let session = SigningSession::new(&tx.key, aggregate, tx.sighash);
        let Ok(partial) = session.partial_sign(nonce, ground.key) else {
            return refuse(RefusalCode::Key, "keys");
        };
        let partial = partial.to_bytes();
        signing.partial = Some(partial);
        let mut effects = Vec::new();
        if !std::mem::replace(committed, true) {
            self.committed.insert(outpoint, (number, sighash));
            let record = MemberEpochCommitted {
                outpoint,
                epoch: number,
                sighash,
                partial,
            };
            effects.push(Effect::Persist(record.into()));
        }
        effects.push(say(ground, answer(partial)));
        Ok(effects)
    }

    pub(super) fn signature(
        &mut self,
        ground: &Ground<'_>,
        sig: &EpochSig,
    ) -> Result<Vec<Effect>, Refusal> {
        let invalid = || refuse(RefusalCode::Signature, "signature");
        if let Some(moved) = self.moved.last()
            && moved.prepared.version.name == sig.epoch
            && self.ceremony.is_none()
        {
            let version = &moved.prepared.version;
            // Said again after a reconnect.
            return match version.signatures.get(&version.top()) == Some(&sig.signature) {
                true => Ok(Vec::new()),
                false => invalid(),
            };
        }
        let ceremony = self.under_way(&sig.epoch)?;
        if ceremony.committed().is_none() {
            return refuse(RefusalCode::Unexpected, "epoch");
        }
        if !self.complete(ground, sig.signature) {
            return invalid();
        }
        let record = EpochSigned {
            signature: sig.signature,
        };
        // In limbo the old channels may have been in use.
        let frozen = Effect::Freeze(ground.slot);
        Ok(vec![Effect::Persist(record.into()), frozen])
    }

    /// Takes the final signature; `false` if it is none.
    pub(super) fn complete(&mut self, ground: &Ground<'_>, signature: schnorr::Signature) -> bool {
        let Some(ceremony) = &mut self.ceremony else {
            return false;
        };
        let Stage::Stored { prepared, .. } = &mut ceremony.stage else {
            return false;
        };
        if !prepared.version.complete(signature) {
            return false;
        }
        let Some(Stage::Stored { prepared, .. }) = self.ceremony.take().map(|it| it.stage) else {
            return false;
        };
        let abandoned = std::mem::take(&mut self.abandoned);
        let mut chains: Vec<_> = ground.chain.clone().into_iter().collect();
        chains.extend(abandoned.iter().filter_map(|it| it.stock(ground.path)));
        let used = ground.channels.iter().map(|(id, _)| *id);
        let mut channels: Vec<_> = used.chain(ground.undelivered).collect();
        channels.extend(
            abandoned
                .iter()
                .filter(|it| it.cut.channel().is_some())
                .map(|it| it.channel_ref(ground.slot)),
        );
        self.moved.push(Moved {
            prepared: *prepared,
            retired: Retired {
                channels,
                bought: ground.bought.clone(),
                chains,
                abandoned,
                preimages: Vec::new(),
            },
        });
        self.switching = Some(Switching {
            guarded: false,
            revealed: false,
        });
        true
    }

    pub(super) fn revealed(
        &mut self,
        ground: &Ground<'_>,
        reveal: &EpochReveal,
    ) -> Result<Vec<Effect>, Refusal> {
        if self.opened && self.switching.is_some() {
            // Which state wins is not decided here any more.
            return Ok(Vec::new());
        }
        let meant = self.moved.last_mut().filter(|_| self.ceremony.is_none());
        let meant = meant.filter(|moved| moved.prepared.version.name == reveal.epoch);
        let Some(moved) = meant else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        let Some(switching) = self.switching.as_mut() else {
            // Said again after a reconnect.
            let (attempt, epoch) = (ground.slot.attempt, reveal.epoch.clone());
            return Ok(vec![say(ground, SwitchAck { attempt, epoch })]);
        };
        if switching.revealed {
            return Ok(Vec::new());
        }
        if !moved.retired.is_revoked_by(&reveal.preimages) {
            return refuse(RefusalCode::Terms, "preimages");
        }
        moved.retired.preimages = reveal.preimages.clone();
        switching.revealed = true;
        let record = MemberEpochRevealed {
            preimages: reveal.preimages.clone(),
        };
        let mut effects = vec![Effect::Persist(record.into())];
        effects.extend(self.switch(ground));
        Ok(effects)
    }
}
