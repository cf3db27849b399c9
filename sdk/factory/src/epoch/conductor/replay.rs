//! A conductor back from its coordinator's records.

use std::collections::BTreeSet;

use super::built::moved_channel;
use super::{Ceremony, Conductor, Ground, Stage};
use crate::effect::Effect;
use crate::journal::Record;

impl Conductor {
    /// Takes the next record, or says why it cannot follow. `true` if places were cut anew.
    pub(crate) fn add(
        &mut self,
        ground: &Ground<'_>,
        record: &Record,
    ) -> Result<bool, &'static str> {
        match record {
            Record::LspEpochBuilt(body) if self.ceremony.is_none() => {
                let built = self.built(ground, body);
                let built = built.ok_or("the new epoch does not build")?;
                let name = body.epoch.clone();
                let next = self.next_unchecked(ground, &name);
                if !next {
                    return Err("the new epoch does not follow the one before it");
                }
                let tried = (name.node, name.epochs.clone());
                *self.tries.entry(tried).or_default() += 1;
                let slots = ground.tree.topology().node(name.node).slots.clone();
                let mut listed: Vec<u16> = body.waves.iter().flatten().copied().collect();
                listed.sort_unstable();
                if !listed.iter().copied().eq(slots.clone()) {
                    return Err("not everyone is asked once");
                }
                self.ceremony = Some(Box::new(Ceremony {
                    name,
                    slots,
                    waves: body.waves.clone(),
                    stage: Stage::Opening {
                        built: Box::new(built),
                        stored: BTreeSet::new(),
                        held: BTreeSet::new(),
                        asked: false,
                        top: None,
                    },
                }));
                return Ok(false);
            }
            Record::LspSwitched(body) => {
                let known = self.switching.remove(&body.slot);
                return known.map(|_| false).ok_or("an acknowledgement of nothing");
            }
            _ => {}
        }
        let ceremony = self.ceremony.as_deref_mut();
        let Some(Stage::Opening { built, asked, .. }) = ceremony.map(|it| &mut it.stage) else {
            return Err("not what an LSP writes next of an epoch");
        };
        match record {
            Record::LspEpochAsked(body) if !*asked && body.epoch == built.version.name.epoch() => {
                *asked = true;
                Ok(false)
            }
            Record::EpochSigned(body) if *asked => match self.complete(ground, body.signature) {
                true => Ok(true),
                false => Err("the new state's signature is invalid"),
            },
            Record::EpochEnded(_) => {
                let burnt = asked.then(|| built.clone());
                if let Some(built) = burnt {
                    self.burn(ground, &built);
                }
                self.ceremony = None;
                Ok(false)
            }
            _ => Err("not what an LSP writes next of an epoch"),
        }
    }

    /// Whether a name follows the newest epoch of its node.
    fn next_unchecked(&self, ground: &Ground<'_>, name: &crate::message::EpochName) -> bool {
        let tree = self.tree(ground);
        let mut expected = tree.edition().epochs_to(tree.topology(), name.node);
        let newest = expected.pop();
        let tries = self.tries.get(&(name.node, name.epochs.clone()));
        let Some((epoch, above)) = name.epochs.split_last() else {
            return false;
        };
        let topology = tree.topology();
        let mut slots = topology.node(name.node).slots.clone();
        let free = slots.all(|slot| !self.switching.contains_key(&slot));
        newest < Some(*epoch)
            && *above == expected[..]
            && tries.copied().unwrap_or(0) == name.retry
            && free
    }

    /// Every channel of newer epochs that LDK is to be held to, and what is retired.
    pub(crate) fn agreed(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (slot, all) in &self.retired {
            let bought = all.iter().flat_map(|it| it.bought.iter().cloned());
            effects.extend(bought.map(Effect::AgreeBought));
            let switched = all.len() - usize::from(self.switching.contains_key(slot));
            let retired = all[..switched].iter().flat_map(|it| &it.channels);
            effects.extend(retired.map(|id| Effect::Retire(*id)));
            let waiting = all[switched..].iter();
            let waiting = waiting.filter_map(|it| it.leaf.clone());
            effects.extend(waiting.map(Effect::AgreeMoved));
        }
        for (slot, moved) in &self.moved {
            let tree = &self.versions[moved.version].tree;
            let id = self.leaf_channel(ground.slot(*slot));
            let push_msat = moved.push_msat;
            let channel = id.and_then(|id| moved_channel(ground, tree, id, &moved.cut, push_msat));
            effects.extend(channel.map(Effect::AgreeMoved));
        }
        let mut frozen: BTreeSet<u16> = self.switching.keys().copied().collect();
        if let Some(ceremony) = &self.ceremony {
            frozen.extend(ceremony.slots.clone());
            if let Stage::Opening { built, .. } = &ceremony.stage {
                let slots = ceremony.slots.clone();
                let agreed = slots.filter_map(|slot| built.channel(ground, slot));
                effects.extend(agreed.map(Effect::AgreeMoved));
            }
        }
        effects.extend(
            frozen
                .into_iter()
                .map(|slot| Effect::Freeze(ground.slot(slot))),
        );
        effects
    }
}
