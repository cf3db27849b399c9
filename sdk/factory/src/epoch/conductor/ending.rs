//! How a new epoch ends that is not made: silence, faults, and the LSP's promise never to complete
//! what somebody has signed.

use super::{Abandoned, Built, Ceremony, Conductor, Ground, Stage, StockName, UnderWay, made};
use crate::effect::{Effect, Event};
use crate::journal::EpochEnded;
use crate::message::{EpochEnd, RefusalCode};

impl Conductor {
    /// The time for this round is over.
    pub(crate) fn timed_out(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        match ceremony.stage {
            Stage::Opening { asked: true, .. } => self.hangs(ground),
            _ => {
                let silent = ceremony.silent();
                self.void(ground, RefusalCode::Silence, &silent)
            }
        }
    }

    pub(super) fn void_or_hang(&mut self, ground: &Ground<'_>, code: RefusalCode) -> Vec<Effect> {
        match self.ceremony.as_ref().map(|it| &it.stage) {
            Some(Stage::Opening { asked: true, .. }) => self.hangs(ground),
            _ => self.void(ground, code, &[]),
        }
    }

    /// Somebody may have signed: it is for the application to wait or to abandon.
    pub(super) fn hangs(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let told = self.ceremony.iter().map(|ceremony| {
            Effect::Emit(Event::EpochHangs {
                attempt: ground.attempt,
                epoch: ceremony.name.clone(),
                silent: ceremony.silent(),
            })
        });
        told.collect()
    }

    /// Never completes what is under way, whoever has signed for it.
    pub(crate) fn abandon(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        self.void(ground, RefusalCode::Silence, &[])
    }

    /// Somebody has begun to open the factory: nothing is signed any more.
    pub(crate) fn opened(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        self.opened = true;
        match self.ceremony.as_ref().map(|it| &it.stage) {
            None | Some(Stage::Opening { asked: true, .. }) => Vec::new(),
            Some(_) => self.void(ground, RefusalCode::Unexpected, &[]),
        }
    }

    /// Ends what is under way.
    pub(super) fn void(
        &mut self,
        ground: &Ground<'_>,
        code: RefusalCode,
        at_fault: &[u16],
    ) -> Vec<Effect> {
        let Some(ceremony) = self.ceremony.take() else {
            return Vec::new();
        };
        let attempt = ground.attempt;
        let mut effects = Vec::new();
        let slots = ceremony.slots.clone();
        if let Stage::Opening { built, asked, .. } = &ceremony.stage {
            effects.push(Effect::Persist(EpochEnded { code }.into()));
            if *asked {
                self.burn(ground, built);
            } else {
                let agreed = slots
                    .clone()
                    .filter_map(|slot| built.channel_ref(ground, slot));
                effects.extend(agreed.map(Effect::DiscardMoved));
            }
        }
        for slot in slots {
            let code = match at_fault.is_empty() || at_fault.contains(&slot) {
                true => code,
                false => RefusalCode::Other,
            };
            let epoch = ceremony.name.clone();
            effects.push(Effect::Thaw(ground.slot(slot)));
            effects.push(ground.say(
                slot,
                EpochEnd {
                    attempt,
                    epoch,
                    code,
                },
            ));
        }
        effects.push(Effect::Emit(Event::EpochEnded {
            attempt,
            epoch: ceremony.name,
            code,
            at_fault: at_fault.to_vec(),
        }));
        effects
    }

    /// An epoch that somebody was asked to sign is never used again; what revokes its stock is
    /// revealed with the next.
    pub(super) fn burn(&mut self, ground: &Ground<'_>, built: &Built) {
        let name = &built.version.name;
        if let Some((outpoint, _)) = built.version.commitment() {
            self.burnt.insert(outpoint, name.epoch());
        }
        for (slot, cut) in &built.cuts {
            let cut = cut
                .channel()
                .filter(|cut| cut.stock > bitcoin::Amount::ZERO);
            let stock = cut.map(|_| StockName {
                slot: *slot,
                made: Some(made(&built.version, *slot)),
                link: 0,
            });
            let channel = built.channel_ref(ground, *slot);
            let all = self.abandoned.entry(*slot).or_default();
            all.push(Abandoned { stock, channel });
        }
    }
}

impl Ceremony {
    pub(super) fn progress(&self) -> UnderWay {
        let step = match &self.stage {
            Stage::Gathering { .. } => 0,
            Stage::Signing { .. } => 1,
            Stage::Opening { top: None, .. } => 2,
            Stage::Opening { top: Some(top), .. } if top.signing.is_none() => 3,
            Stage::Opening { top: Some(top), .. } => 4 + top.wave,
        };
        UnderWay {
            epoch: self.name.clone(),
            slots: self.slots.clone(),
            step,
            silent: self.silent(),
        }
    }

    /// Who is waited for.
    fn silent(&self) -> Vec<u16> {
        let mut slots = self.slots.clone().collect::<Vec<_>>();
        match &self.stage {
            Stage::Gathering { ready, .. } => slots.retain(|slot| !ready.contains_key(slot)),
            Stage::Signing { partials, .. } => slots.retain(|slot| !partials.contains_key(slot)),
            Stage::Opening {
                stored, held, top, ..
            } => slots.retain(|slot| match top {
                _ if !stored.contains(slot) || !held.contains(slot) => true,
                None => false,
                Some(top) if top.signing.is_none() => !top.nonces.contains_key(slot),
                Some(top) => {
                    let asked = self.waves.iter().take(top.wave + 1).flatten();
                    asked.clone().any(|other| other == slot) && !top.partials.contains_key(slot)
                }
            }),
        }
        slots
    }
}
