//! What the LSP does about a new epoch beside what members say.

use std::collections::{BTreeMap, BTreeSet};

use super::hear::member_terms;
use super::plan::propose;
use super::{
    Abandoned, Built, Ceremony, Conductor, Ground, Moved, Retired, Stage, StockName, Switching,
    Top, made,
};
use crate::effect::{ChannelRef, Effect, Event};
use crate::journal::{EpochEnded, EpochSigned};
use crate::member::reserve;
use crate::message::{EpochAsk, EpochCommit, EpochEnd, EpochReveal, EpochSig, RefusalCode};
use crate::scripts::tagged_hash;
use crate::stock::StockChain;

/// A place's stock in the newest epoch, as its seller is to begin with it.
pub(crate) type Renewed = (u16, u32, Option<StockChain>);

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
        let Some(Stage::Gathering { frozen, .. }) = ceremony.map(|it| &mut it.stage) else {
            return Vec::new();
        };
        let balances = balances.iter().map(|(id, msat)| (id.seq, *msat));
        frozen.insert(slot, balances.collect());
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
        let Ok(own) = reserve(ground.key, 1, randomness) else {
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

    /// Takes the final signature: the epoch is there; `false` if it is none.
    pub(super) fn complete(
        &mut self,
        ground: &Ground<'_>,
        signature: bitcoin::secp256k1::schnorr::Signature,
    ) -> bool {
        let Some(ceremony) = &mut self.ceremony else {
            return false;
        };
        let Stage::Opening { built, .. } = &mut ceremony.stage else {
            return false;
        };
        if !built.version.complete(signature) {
            return false;
        }
        let Built {
            version,
            cuts,
            balances,
            numbers,
        } = (**built).clone();
        for slot in ceremony.slots.clone() {
            let record = &ground.terms.slots[usize::from(slot)];
            let place = (ground.sales)(slot);
            let abandoned = self.abandoned.remove(&slot).unwrap_or_default();
            let stocks = place.chain.iter().flat_map(StockChain::stocks);
            let made = self
                .moved
                .get(&slot)
                .and_then(|moved| Some(made(self.versions.get(moved.version)?, slot)));
            let mut revoked: Vec<StockName> = stocks
                .map(|stock| StockName {
                    slot,
                    made: made.clone(),
                    link: stock.link(),
                })
                .collect();
            revoked.extend(abandoned.iter().filter_map(|it| it.stock.clone()));
            let old = self.moved.get(&slot);
            let now = old.map_or_else(|| record.cut(), |moved| moved.cut.clone());
            let leaf = match old {
                None => Some(ChannelRef::first(ground.slot(slot))),
                Some(moved) => now.channel().map(|_| {
                    let retry = self.versions[moved.version].name.retry;
                    ChannelRef::moved(ground.slot(slot), moved.number, retry)
                }),
            };
            let mut channels: Vec<_> = leaf.into_iter().collect();
            channels.extend(place.bought.iter().map(|bought| bought.id));
            channels.extend(abandoned.iter().filter_map(|it| it.channel));
            self.retired.entry(slot).or_default().push(Retired {
                channels,
                bought: place.bought.clone(),
                chain: place.chain.clone(),
            });
            let name = version.name.clone();
            self.switching.insert(slot, Switching { name, revoked });
        }
        for (slot, cut) in cuts {
            let moved = Moved {
                version: self.versions.len(),
                number: numbers.get(&slot).copied().unwrap_or_default(),
                push_msat: balances.get(&slot).copied().unwrap_or_default(),
                cut,
            };
            self.moved.insert(slot, moved);
        }
        self.versions.push(version);
        self.ceremony = None;
        true
    }

    /// The places that the newest epoch cut anew, as their seller is to begin with them.
    pub(crate) fn renewed(&self, ground: &Ground<'_>) -> Vec<Renewed> {
        let Some(version) = self.versions.last() else {
            return Vec::new();
        };
        let slots = ground.tree.topology().node(version.name.node).slots.clone();
        let each = slots.filter_map(|slot| {
            let moved = self.moved.get(&slot)?;
            let record = &ground.terms.slots[usize::from(slot)];
            // An error is one of keys that occur twice, which built terms have not.
            let chain = StockChain::of_cut(&version.tree, slot, record, &moved.cut);
            Some((slot, moved.number, chain.ok().flatten()))
        });
        each.collect()
    }

    /// The final signature and what it revokes, to a member that has not switched.
    pub(super) fn delivery(&self, ground: &Ground<'_>, slot: u16) -> Vec<Effect> {
        let Some(waited) = self.switching.get(&slot) else {
            return Vec::new();
        };
        let version = self.versions.iter().find(|it| it.name == waited.name);
        let signature = version.and_then(|it| it.signatures.get(&it.top()));
        let Some(signature) = signature else {
            return Vec::new();
        };
        let (attempt, epoch) = (ground.attempt, waited.name.clone());
        let mut effects = vec![ground.say(
            slot,
            EpochSig {
                attempt,
                epoch: epoch.clone(),
                signature: *signature,
            },
        )];
        // What is on chain of the old epoch would be the member's.
        if !self.opened {
            let preimages = waited.revoked.iter().map(|name| *(ground.preimage)(name));
            let reveal = EpochReveal {
                attempt,
                epoch,
                preimages: preimages.collect(),
            };
            effects.push(ground.say(slot, reveal));
        }
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
