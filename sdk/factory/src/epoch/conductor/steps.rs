//! What the LSP does about a new epoch beside what members say.

use std::collections::{BTreeMap, BTreeSet};

use super::hear::{member_terms, sum};
use super::plan::propose;
use super::{Built, Conductor, Ground, Stage, Top};
use crate::effect::{ChannelRef, Effect, Event};
use crate::journal::EpochSigned;
use crate::message::{EpochAsk, EpochCommit, RefusalCode};
use crate::scripts::tagged_hash;
use crate::signing::ReservedNonces;

impl Conductor {
    /// Nothing is pending in a place's channels; `balances` is what is the member's in each.
    pub(crate) fn frozen(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        balances: &[(ChannelRef, u64)],
    ) -> Vec<Effect> {
        let ceremony = self.ceremony.as_deref_mut();
        let ceremony = ceremony.filter(|it| it.slots.contains(&slot));
        let balances: BTreeMap<u32, u64> =
            balances.iter().map(|(id, msat)| (id.seq, *msat)).collect();
        match ceremony.map(|it| &mut it.stage) {
            Some(Stage::Gathering { frozen, .. }) => {
                frozen.insert(slot, balances);
            }
            // Told again: nothing may have moved since.
            Some(Stage::Opening {
                built,
                asked: false,
                ..
            }) if built.balances.get(&slot) != Some(&sum(&balances)) => {
                return self.void(ground, RefusalCode::Channel, &[slot]);
            }
            _ => return Vec::new(),
        }
        self.gathered(ground)
    }

    /// Everything below is signed: it is written down, and the channels are agreed on.
    pub(super) fn open(&mut self, ground: &Ground<'_>, built: Built) -> Vec<Effect> {
        let Some(ceremony) = &mut self.ceremony else {
            return Vec::new();
        };
        let record = built.record(&ceremony.waves);
        let tried = (record.epoch.node, record.epoch.epochs.clone());
        *self.tries.entry(tried).or_default() += 1;
        let slots = ceremony.slots.clone();
        let agreed = slots.filter_map(|slot| built.channel(ground, slot));
        let mut effects = vec![Effect::Persist(record.into())];
        effects.extend(agreed.map(Effect::AgreeMoved));
        ceremony.stage = Stage::Opening {
            built: Box::new(built),
            stored: BTreeSet::new(),
            held: BTreeSet::new(),
            asked: false,
            top: None,
        };
        effects
    }

    /// Both sides hold commitments on a new channel, ours durably.
    pub(crate) fn held(&mut self, ground: &Ground<'_>, id: ChannelRef) -> Vec<Effect> {
        let Some(ceremony) = &mut self.ceremony else {
            return Vec::new();
        };
        let Stage::Opening { built, held, .. } = &mut ceremony.stage else {
            return Vec::new();
        };
        if built.channel_ref(ground, id.slot.slot) != Some(id) {
            return Vec::new();
        }
        match held.insert(id.slot.slot) {
            true => self.try_top(ground),
            false => Vec::new(),
        }
    }

    /// A new channel could not be opened, or was closed.
    pub(crate) fn lost(&mut self, ground: &Ground<'_>, id: ChannelRef) -> Vec<Effect> {
        let slot = id.slot.slot;
        let stage = self.ceremony.as_ref().map(|it| &it.stage);
        match stage {
            Some(Stage::Opening { built, asked, .. })
                if built.channel_ref(ground, slot) == Some(id) =>
            {
                match asked {
                    true => self.hangs(ground),
                    false => self.void(ground, RefusalCode::Channel, &[slot]),
                }
            }
            _ => Vec::new(),
        }
    }

    /// Asks for what a round needs once all members have everything.
    pub(super) fn try_top(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        let due = match &ceremony.stage {
            Stage::Opening {
                stored,
                held,
                top: None,
                ..
            } => {
                let mut slots = ceremony.slots.clone();
                slots.all(|slot| stored.contains(&slot) && held.contains(&slot))
            }
            _ => false,
        };
        match due && !self.opened {
            true => vec![Effect::NeedEpochRandomness(ground.attempt)],
            false => Vec::new(),
        }
    }

    /// Begins a round of signing the node's state.
    pub(crate) fn randomness(&mut self, ground: &Ground<'_>, randomness: &[u8; 32]) -> Vec<Effect> {
        if self.try_top(ground).is_empty() {
            return Vec::new();
        }
        let Some(ceremony) = &mut self.ceremony else {
            return Vec::new();
        };
        let slots = ceremony.slots.clone();
        let Stage::Opening { top, .. } = &mut ceremony.stage else {
            return Vec::new();
        };
        let Some(own) = ReservedNonces::fresh(ground.key, 1, randomness) else {
            return Vec::new();
        };
        let public = own.public()[0].to_bytes();
        *top = Some(Top {
            round: tagged_hash("superscalar/epoch round", &[&public]),
            own: Some(own),
            nonces: BTreeMap::new(),
            signing: None,
            partials: BTreeMap::new(),
            wave: 0,
        });
        slots.flat_map(|slot| self.repeat(ground, slot)).collect()
    }

    /// Asks the members of the wave that is due.
    pub(super) fn ask_wave(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        let Stage::Opening { top: Some(top), .. } = &ceremony.stage else {
            return Vec::new();
        };
        let wave = ceremony.waves.get(top.wave).into_iter().flatten();
        wave.flat_map(|slot| self.repeat(ground, *slot)).collect()
    }

    /// What follows when a wave has signed.
    pub(super) fn next_wave(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &mut self.ceremony else {
            return Vec::new();
        };
        let Stage::Opening { top: Some(top), .. } = &mut ceremony.stage else {
            return Vec::new();
        };
        let wave = ceremony.waves.get(top.wave).into_iter().flatten();
        if !wave.clone().all(|slot| top.partials.contains_key(slot)) {
            return Vec::new();
        }
        top.wave += 1;
        if top.wave < ceremony.waves.len() {
            return self.ask_wave(ground);
        }
        let partials = std::mem::take(&mut top.partials);
        let signed = top
            .signing
            .take()
            .map(|it| it.complete(ground.key, &partials));
        let signature = match signed {
            Some(Ok(signed)) => signed.first().map(|(_, signature)| *signature),
            _ => None,
        };
        let Some(signature) = signature.filter(|it| self.complete(ground, *it)) else {
            // Every partial was verified: not reached. Nothing is lost, it is tried again.
            return self.hangs(ground);
        };
        let mut effects = vec![Effect::Persist(EpochSigned { signature }.into())];
        let name = self.versions.last().map(|version| version.name.clone());
        let Some(epoch) = name else { return effects };
        let slots = ground.tree.topology().node(epoch.node).slots.clone();
        effects.extend(slots.flat_map(|slot| self.delivery(ground, slot)));
        effects.push(Effect::Emit(Event::EpochSigned {
            attempt: ground.attempt,
            epoch,
        }));
        effects
    }

    /// After a reconnect: what the member may not have heard.
    pub(crate) fn repeat(&self, ground: &Ground<'_>, slot: u16) -> Vec<Effect> {
        let delivery = self.delivery(ground, slot);
        if !delivery.is_empty() {
            return delivery;
        }
        let attempt = ground.attempt;
        let Some(ceremony) = self.ceremony.as_ref().filter(|it| it.slots.contains(&slot)) else {
            return Vec::new();
        };
        let epoch = ceremony.name.clone();
        let said = match &ceremony.stage {
            Stage::Gathering {
                offers,
                numbers,
                ready,
                ..
            } if !ready.contains_key(&slot) => propose(ground, &epoch, offers, numbers, slot),
            Stage::Signing {
                terms, partials, ..
            } if !partials.contains_key(&slot) => terms
                .get(&slot)
                .map(|terms| ground.say(slot, terms.clone())),
            Stage::Opening {
                built, stored, top, ..
            } => match top {
                _ if !stored.contains(&slot) => match built.version.signatures.is_empty() {
                    true => member_terms(ground, &epoch, &built.version.tree, slot, Vec::new())
                        .map(|terms| ground.say(slot, terms)),
                    false => self.signatures(ground, slot),
                },
                Some(top) if !top.nonces.contains_key(&slot) => {
                    let round = top.round;
                    Some(ground.say(
                        slot,
                        EpochAsk {
                            attempt,
                            epoch,
                            round,
                        },
                    ))
                }
                Some(top) => {
                    let asked = ceremony.waves.iter().take(top.wave + 1).flatten();
                    let due = !top.partials.contains_key(&slot)
                        && asked.clone().any(|other| *other == slot);
                    let nonce = top.signing.as_ref().filter(|_| due && !self.opened);
                    let nonce = nonce.and_then(|it| it.aggregates(slot).first().copied());
                    nonce.map(|nonce| {
                        let round = top.round;
                        ground.say(
                            slot,
                            EpochCommit {
                                attempt,
                                epoch,
                                round,
                                nonce,
                            },
                        )
                    })
                }
                None => None,
            },
            _ => None,
        };
        said.into_iter().collect()
    }
}
