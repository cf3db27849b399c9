//! What the LSP hears from its members about a new epoch.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::{Built, Conductor, Ground, Stage, Top};
use crate::effect::{Effect, Event};
use crate::epoch::sign::Round;
use crate::epoch::verify;
use crate::journal::{LspEpochAsked, LspSwitched};
use crate::message::{
    EpochEnd, EpochName, EpochNonce, EpochPartial, EpochPartials, EpochReady, EpochSigs,
    EpochStored, EpochTerms, Message, RefusalCode, SwitchAck,
};
use crate::signing::{PublicNonce, ReservedNonces};
use crate::tree::Cut;

/// How a message is answered that is not taken.
pub(super) enum Answer {
    Refused(RefusalCode, &'static str),
    /// The epoch it names is not under way.
    Unknown(EpochName),
}

fn refuse<T>(code: RefusalCode, field: &'static str) -> Result<T, Answer> {
    Err(Answer::Refused(code, field))
}

impl Conductor {
    /// Takes a message of the member at `slot`. `refuse` makes a refusal of code and field.
    pub(crate) fn message(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        message: Message,
        refuse: impl Fn(RefusalCode, &'static str) -> Vec<Effect>,
    ) -> Vec<Effect> {
        let taken = match message {
            Message::EpochReady(ready) => self.ready(ground, slot, ready),
            Message::EpochPartials(partials) => self.partials(ground, slot, partials),
            Message::EpochStored(stored) => self.stored(ground, slot, &stored),
            Message::EpochNonce(nonce) => self.nonce(ground, slot, &nonce),
            Message::EpochPartial(partial) => self.partial(ground, slot, &partial),
            Message::SwitchAck(ack) => Ok(self.acknowledged(ground, slot, &ack)),
            Message::EpochEnd(end) => Ok(self.given_up(ground, slot, &end)),
            _ => Err(Answer::Refused(RefusalCode::Unexpected, "")),
        };
        match taken {
            Ok(effects) => effects,
            Err(Answer::Refused(code, field)) => refuse(code, field),
            Err(Answer::Unknown(epoch)) => {
                // It has what completes it, or waits for something that will not come.
                let again = self.delivery(ground, slot);
                if !again.is_empty() {
                    return again;
                }
                let end = EpochEnd {
                    attempt: ground.attempt,
                    epoch,
                    code: RefusalCode::Restarted,
                };
                // What is under way it may have refused because of that.
                let mut effects = vec![ground.say(slot, end)];
                effects.extend(self.repeat(ground, slot));
                effects
            }
        }
    }

    /// The stage of the epoch under way, if it is the one that is meant.
    fn under_way(&mut self, slot: u16, name: &EpochName) -> Result<&mut Stage, Answer> {
        let ceremony = self.ceremony.as_deref_mut();
        let ceremony = ceremony.filter(|it| it.name == *name && it.slots.contains(&slot));
        let ceremony = ceremony.ok_or_else(|| Answer::Unknown(name.clone()))?;
        Ok(&mut ceremony.stage)
    }

    fn ready(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        said: EpochReady,
    ) -> Result<Vec<Effect>, Answer> {
        self.under_way(slot, &said.epoch)?;
        let tree = self.tree(ground);
        let path = tree.topology().path(slot);
        let mut below = tree.renewed_below(said.epoch.node);
        below.retain(|name| path.contains(&name.node));
        let Stage::Gathering { offers, ready, .. } = self.under_way(slot, &said.epoch)? else {
            // Said again after a reconnect.
            return Ok(self.repeat(ground, slot));
        };
        if ready.get(&slot).is_some_and(|known| *known == said) {
            return Ok(Vec::new());
        }
        let sound = said
            .nonces
            .iter()
            .all(|it| PublicNonce::from_bytes(it).is_ok());
        if said.nonces.len() != below.len() || !sound {
            return refuse(RefusalCode::Nonce, "nonces");
        }
        let record = &ground.terms.slots[usize::from(slot)];
        let cut = offers
            .get(&slot)
            .map(|offer| verify::cut(offer, said.funding_key));
        if cut.is_none_or(|cut| cut.check(record).is_err()) {
            return refuse(RefusalCode::Key, "funding_key");
        }
        ready.insert(slot, said);
        Ok(self.gathered(ground))
    }

    /// What is to be done when all channels are at rest and both sides agree on what they hold.
    pub(super) fn gathered(&mut self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        let Stage::Gathering {
            offers,
            numbers,
            randomness,
            frozen,
            ready,
        } = &ceremony.stage
        else {
            return Vec::new();
        };
        for (slot, said) in ready {
            let Some(ours) = frozen.get(slot) else {
                continue;
            };
            let theirs: BTreeMap<u32, u64> = said.balances.iter().copied().collect();
            let total = sum(ours);
            let fits = match offers.get(slot).map(|it| verify::cut(it, said.funding_key)) {
                Some(Cut::Channel(cut)) => total <= cut.capacity.to_sat() * 1_000,
                // What a member leaves behind is its own decision.
                Some(Cut::Departed) => true,
                None => false,
            };
            let agreed = theirs == *ours && theirs.len() == said.balances.len();
            if !agreed || !fits {
                return self.void(ground, RefusalCode::Channel, &[*slot]);
            }
        }
        let all = || ceremony.slots.clone();
        if !all().all(|slot| ready.contains_key(&slot) && frozen.contains_key(&slot)) {
            return Vec::new();
        }
        let name = ceremony.name.clone();
        let cuts = all().filter_map(|slot| {
            let key = ready.get(&slot)?.funding_key;
            Some((slot, verify::cut(offers.get(&slot)?, key)))
        });
        let cuts: BTreeMap<u16, Cut> = cuts.collect();
        let balances = all().filter_map(|slot| Some((slot, sum(frozen.get(&slot)?))));
        let balances: BTreeMap<u16, u64> = balances.collect();
        let (numbers, randomness) = (numbers.clone(), Zeroizing::new(**randomness));
        let nonces = all().filter_map(|slot| Some((slot, ready.get(&slot)?.nonces.clone())));
        let nonces: BTreeMap<u16, _> = nonces.collect();
        let Ok(tree) = self.rebuilt(ground, &name, &cuts) else {
            return self.void(ground, RefusalCode::Terms, &[]);
        };
        let names = tree.renewed_below(name.node);
        let own = ReservedNonces::fresh(ground.key, names.len(), &randomness);
        let round = own.and_then(|own| Round::new(&tree, &names, own, &nonces));
        let Some(round) = round else {
            return self.void(ground, RefusalCode::Nonce, &[]);
        };
        let Some(terms) = terms(ground, &name, &tree, &cuts, &round) else {
            return self.void(ground, RefusalCode::Terms, &[]);
        };
        let version = crate::epoch::version::Version {
            name,
            tree,
            signatures: BTreeMap::new(),
        };
        let built = Built {
            version,
            cuts,
            balances,
            numbers,
        };
        let said = terms
            .iter()
            .map(|(slot, terms)| ground.say(*slot, terms.clone()));
        let said: Vec<Effect> = said.collect();
        if names.is_empty() {
            let mut effects = self.open(ground, built);
            effects.extend(said);
            return effects;
        }
        if let Some(ceremony) = &mut self.ceremony {
            ceremony.stage = Stage::Signing {
                built: Box::new(built),
                round: Box::new(round),
                terms,
                partials: BTreeMap::new(),
            };
        }
        said
    }

    fn partials(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        said: EpochPartials,
    ) -> Result<Vec<Effect>, Answer> {
        let Stage::Signing {
            round, partials, ..
        } = self.under_way(slot, &said.epoch)?
        else {
            return Ok(self.repeat(ground, slot));
        };
        if let Some(known) = partials.get(&slot) {
            return match *known == said.partials {
                true => Ok(Vec::new()),
                false => refuse(RefusalCode::Signature, "partials"),
            };
        }
        if !round.is_members(slot, &said.partials) {
            return refuse(RefusalCode::Signature, "partials");
        }
        partials.insert(slot, said.partials);
        let Some(ceremony) = self.ceremony.take_if(|it| match &it.stage {
            Stage::Signing { partials, .. } => partials.len() == it.slots.len(),
            _ => false,
        }) else {
            return Ok(Vec::new());
        };
        let ceremony = *ceremony;
        let Stage::Signing {
            built,
            round,
            partials,
            ..
        } = ceremony.stage
        else {
            return Ok(Vec::new());
        };
        self.ceremony = Some(Box::new(super::Ceremony {
            stage: Stage::Opening {
                built: built.clone(),
                stored: BTreeSet::new(),
                held: BTreeSet::new(),
                asked: false,
                top: None,
            },
            ..ceremony
        }));
        let signed = round.complete(ground.key, &partials);
        let signatures: Vec<_> = match signed {
            Ok(signed) => signed.into_iter().map(|(_, signature)| signature).collect(),
            Err(culprits) => return Ok(self.void(ground, RefusalCode::Signature, &culprits)),
        };
        let Some(built) = built.signed(&signatures) else {
            return Ok(self.void(ground, RefusalCode::Signature, &[]));
        };
        let mut effects = self.open(ground, built);
        let slots = self.ceremony.iter().flat_map(|it| it.slots.clone());
        effects.extend(slots.filter_map(|slot| self.signatures(ground, slot)));
        Ok(effects)
    }

    /// The final signatures of what is below that are on a member's path.
    pub(super) fn signatures(&self, ground: &Ground<'_>, slot: u16) -> Option<Effect> {
        let ceremony = self.ceremony.as_ref()?;
        let Stage::Opening { built, .. } = &ceremony.stage else {
            return None;
        };
        let version = &built.version;
        let path = version.tree.topology().path(slot);
        let names = version.tree.renewed_below(version.name.node);
        let own = names.iter().filter(|name| path.contains(&name.node));
        let signatures = own.map(|name| version.signatures.get(name).copied());
        let sigs = EpochSigs {
            attempt: ground.attempt,
            epoch: ceremony.name.clone(),
            signatures: signatures.collect::<Option<_>>()?,
        };
        Some(ground.say(slot, sigs))
    }

    fn stored(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        said: &EpochStored,
    ) -> Result<Vec<Effect>, Answer> {
        let Stage::Opening { top, .. } = self.under_way(slot, &said.epoch)? else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        // It has lost the nonce it gave, if it gave one.
        if top
            .as_ref()
            .is_some_and(|top| top.nonces.contains_key(&slot))
        {
            *top = None;
        }
        Ok(self.has_stored(ground, slot))
    }

    /// What a member is to do next that has everything below the node on its disk.
    fn has_stored(&mut self, ground: &Ground<'_>, slot: u16) -> Vec<Effect> {
        let ceremony = self.ceremony.as_deref_mut();
        let Some(Stage::Opening {
            built,
            stored,
            held,
            top,
            ..
        }) = ceremony.map(|it| &mut it.stage)
        else {
            return Vec::new();
        };
        stored.insert(slot);
        match built.channel_ref(ground, slot) {
            // Who leaves has no channel to wait for.
            None => {
                held.insert(slot);
            }
            Some(id) if !held.contains(&slot) => return vec![Effect::OpenMoved(id)],
            Some(_) => {}
        }
        match top {
            Some(_) => self.repeat(ground, slot),
            None => self.try_top(ground),
        }
    }

    fn nonce(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        said: &EpochNonce,
    ) -> Result<Vec<Effect>, Answer> {
        let opened = self.opened;
        let Stage::Opening {
            built,
            asked,
            top: Some(top),
            ..
        } = self.under_way(slot, &said.epoch)?
        else {
            // Of a round that a restart has ended.
            return Ok(self.has_stored(ground, slot));
        };
        if top.round != said.round || top.signing.is_some() || opened {
            return Ok(self.has_stored(ground, slot));
        }
        if PublicNonce::from_bytes(&said.nonce).is_err() {
            return refuse(RefusalCode::Nonce, "nonce");
        }
        if *top.nonces.entry(slot).or_insert(said.nonce) != said.nonce {
            return refuse(RefusalCode::Nonce, "nonce");
        }
        if top.nonces.len() < built.cuts.len() {
            return Ok(Vec::new());
        }
        let given = top.nonces.iter().map(|(slot, nonce)| (*slot, vec![*nonce]));
        let given = given.collect();
        let tree = &built.version.tree;
        let own = top.own.take();
        let signing = own.and_then(|own| Round::new(tree, &[built.version.top()], own, &given));
        let Some(signing) = signing else {
            return Ok(self.void_or_hang(ground, RefusalCode::Nonce));
        };
        top.signing = Some(signing);
        let mut effects = Vec::new();
        if !std::mem::replace(asked, true) {
            let epoch = built.version.name.epoch();
            effects.push(Effect::Persist(LspEpochAsked { epoch }.into()));
        }
        effects.extend(self.ask_wave(ground));
        Ok(effects)
    }

    fn partial(
        &mut self,
        ground: &Ground<'_>,
        slot: u16,
        said: &EpochPartial,
    ) -> Result<Vec<Effect>, Answer> {
        let opened = self.opened;
        let Stage::Opening {
            top:
                Some(Top {
                    round,
                    signing: Some(signing),
                    partials,
                    ..
                }),
            ..
        } = self.under_way(slot, &said.epoch)?
        else {
            return Ok(self.has_stored(ground, slot));
        };
        if *round != said.round || opened {
            return Ok(self.has_stored(ground, slot));
        }
        if !signing.is_members(slot, &[said.partial]) {
            return refuse(RefusalCode::Signature, "partial");
        }
        partials.insert(slot, vec![said.partial]);
        Ok(self.next_wave(ground))
    }

    fn acknowledged(&mut self, ground: &Ground<'_>, slot: u16, ack: &SwitchAck) -> Vec<Effect> {
        let waited = self.switching.get(&slot);
        if waited.is_none_or(|waited| waited.name != ack.epoch) {
            return Vec::new();
        }
        self.switching.remove(&slot);
        let mut effects = vec![Effect::Persist(LspSwitched { slot }.into())];
        let retired = self.retired.get(&slot).and_then(|all| all.last());
        let retired = retired.into_iter().flat_map(|it| &it.channels);
        effects.extend(retired.map(|id| Effect::Retire(*id)));
        let new = self.leaf_channel(ground.slot(slot));
        let new = new.filter(|_| ground.active);
        effects.extend(new.map(Effect::ActivateMoved));
        effects.push(Effect::Emit(Event::Moved {
            slot: ground.slot(slot),
            version: self.version(slot),
        }));
        effects
    }

    /// A member ended it before it had signed the state.
    fn given_up(&mut self, ground: &Ground<'_>, slot: u16, end: &EpochEnd) -> Vec<Effect> {
        match self.under_way(slot, &end.epoch) {
            Ok(Stage::Opening { asked: true, .. }) => self.hangs(ground),
            Ok(_) => self.void(ground, end.code, &[slot]),
            Err(_) => Vec::new(),
        }
    }
}

pub(super) fn sum(balances: &BTreeMap<u32, u64>) -> u64 {
    balances.values().copied().fold(0, u64::saturating_add)
}

/// What every member below the node is told.
fn terms(
    ground: &Ground<'_>,
    name: &EpochName,
    tree: &crate::tree::Tree,
    cuts: &BTreeMap<u16, Cut>,
    round: &Round,
) -> Option<BTreeMap<u16, EpochTerms>> {
    let each = cuts.keys().map(|slot| {
        let nonces = round.aggregates(*slot);
        Some((*slot, member_terms(ground, name, tree, *slot, nonces)?))
    });
    each.collect()
}

/// What one member is told.
pub(super) fn member_terms(
    ground: &Ground<'_>,
    name: &EpochName,
    tree: &crate::tree::Tree,
    slot: u16,
    nonces: Vec<crate::message::NonceBytes>,
) -> Option<EpochTerms> {
    let outputs = |state: &crate::tree::TreeTx| {
        let (_anchor, outputs) = state.tx.output.split_last()?;
        Some(outputs.to_vec())
    };
    let topology = tree.topology();
    let contents = match topology.node(name.node).is_leaf() {
        true => Vec::new(),
        false => {
            let leaves = topology.leaves(name.node).into_iter();
            let hash = |leaf| Some(crate::tree::leaf_hash(&outputs(&tree.node(leaf)?.state)?));
            leaves.map(hash).collect::<Option<_>>()?
        }
    };
    Some(EpochTerms {
        attempt: ground.attempt,
        epoch: name.clone(),
        leaf_outputs: outputs(&tree.leaf(slot)?.state)?,
        contents,
        nonces,
    })
}
