//! New epochs in a world: what both shells do about them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use superscalar_factory::coordinator;
use superscalar_factory::effect::{ChannelRef, Effect, SlotChannel, SlotRef};
use superscalar_factory::epoch::{EpochError, EpochPlan, PlacePlan, Wish};
use superscalar_factory::member;

use super::{Party, World, key};

/// What the shells know of new epochs.
#[derive(Default)]
pub struct Shell {
    /// Whose channels of which place rest.
    pub frozen: BTreeSet<(Party, u16)>,
    /// What a member's channels may hold, where it is in limbo.
    pub limbo: BTreeMap<u16, u64>,
    /// Channels agreed by each party.
    pub moved: BTreeMap<(Party, ChannelRef), SlotChannel>,
    /// Channels the LSP is about to open.
    pub opening: VecDeque<ChannelRef>,
    /// Channels both sides hold.
    pub held: BTreeSet<ChannelRef>,
    pub activated: BTreeSet<(Party, ChannelRef)>,
    pub retired: BTreeSet<(Party, ChannelRef)>,
    pub discarded: Vec<(Party, ChannelRef)>,
    /// What is a member's in a channel, in millisatoshi; nothing where it is not listed.
    pub balances: BTreeMap<ChannelRef, u64>,
    /// Whose shell says nothing about frozen channels.
    pub busy: BTreeSet<Party>,
}

impl Shell {
    /// What is only in the memory of a party's shell.
    pub fn forget(&mut self, who: Party) {
        self.frozen.retain(|(by, _)| *by != who);
        if let Party::Member(slot) = who {
            self.limbo.remove(&slot);
        }
    }
}

/// Another number for every channel.
fn number(id: ChannelRef) -> u64 {
    let place = u64::from(id.slot.slot) * 1_000_000;
    place + u64::from(id.version) * 1_000 + u64::from(id.seq >> 16)
}

impl World {
    pub fn slot_ref(&self, slot: u16) -> SlotRef {
        let attempt = self.plan.attempt;
        SlotRef { attempt, slot }
    }

    /// The channels of a place that a party uses, or has put to rest.
    pub fn channels(&self, who: Party, slot: u16) -> Vec<ChannelRef> {
        let first = ChannelRef::first(self.slot_ref(slot));
        let bought = self.activated_bought.iter().map(|(_, id)| *id);
        let moved = self.epochs.held.iter().copied();
        let all: BTreeSet<_> = [first].into_iter().chain(bought).chain(moved).collect();
        let gone = |id: &ChannelRef| {
            let discarded = self.epochs.discarded.iter().any(|(_, other)| other == id);
            let version = match who {
                Party::Lsp => self.lsp.as_ref().map(|lsp| lsp.version(slot)),
                Party::Member(slot) => self.members.get(&slot).map(|member| member.version()),
            };
            discarded || version.is_none_or(|version| id.version != version)
        };
        all.into_iter()
            .filter(|id| id.slot.slot == slot && !gone(id))
            .collect()
    }

    fn balances(&self, who: Party, slot: u16) -> Vec<(ChannelRef, u64)> {
        let channels = self.channels(who, slot).into_iter();
        let balance = |id| self.epochs.balances.get(&id).copied().unwrap_or(0);
        channels.map(|id| (id, balance(id))).collect()
    }

    pub(super) fn act_epoch(&mut self, who: Party, effect: Effect) {
        match effect {
            Effect::Freeze(slot) => {
                self.epochs.frozen.insert((who, slot.slot));
                if !self.epochs.busy.contains(&who) {
                    self.tell_frozen(who, slot.slot);
                }
            }
            Effect::Thaw(slot) => {
                self.epochs.frozen.remove(&(who, slot.slot));
                if who != Party::Lsp {
                    self.epochs.limbo.remove(&slot.slot);
                }
            }
            Effect::Limbo { slot, frozen_msat } => {
                self.epochs.frozen.remove(&(who, slot.slot));
                self.epochs.limbo.insert(slot.slot, frozen_msat);
            }
            Effect::AgreeMoved(moved) => {
                let known = self
                    .epochs
                    .moved
                    .insert((who, moved.id), moved.channel.clone());
                assert!(known.is_none_or(|known| known == moved.channel));
            }
            Effect::OpenMoved(id) => {
                assert!(
                    self.epochs.moved.contains_key(&(who, id)),
                    "agreed before opened"
                );
                self.epochs.opening.push_back(id);
            }
            Effect::DiscardMoved(id) => self.epochs.discarded.push((who, id)),
            Effect::ActivateMoved(id) => {
                assert!(self.epochs.held.contains(&id), "held before it is used");
                self.epochs.frozen.remove(&(who, id.slot.slot));
                self.epochs.activated.insert((who, id));
            }
            Effect::SuspendMoved(id) => {
                self.epochs.activated.remove(&(who, id));
            }
            Effect::Retire(id) => {
                self.epochs.retired.insert((who, id));
                self.epochs.activated.remove(&(who, id));
            }
            Effect::NeedEpochRandomness(_) => {
                let randomness = self.random();
                match who {
                    Party::Lsp => self.tell_lsp(coordinator::Input::EpochRandomness(randomness)),
                    Party::Member(slot) => {
                        self.tell(slot, member::Input::EpochRandomness(randomness));
                    }
                }
            }
            other => panic!("an effect this world does not know: {other:?}"),
        }
    }

    /// Nothing is pending in the channels of a place any more.
    pub fn tell_frozen(&mut self, who: Party, slot: u16) {
        let balances = self.balances(who, slot);
        match who {
            Party::Lsp => self.tell_lsp(coordinator::Input::Frozen { slot, balances }),
            Party::Member(slot) => {
                let id = self
                    .members
                    .get(&slot)
                    .and_then(member::Member::moved_channel);
                let funding_key = key("member moved", id.map_or(0, number));
                let randomness = self.random();
                self.tell(
                    slot,
                    member::Input::Frozen {
                        balances,
                        funding_key,
                        randomness,
                    },
                );
            }
        }
    }

    /// Both sides hold the new channel if they agreed to the same one.
    pub fn open_moved(&mut self, id: ChannelRef) {
        let slot = id.slot.slot;
        let ours = self.epochs.moved.get(&(Party::Lsp, id)).cloned();
        let theirs = self.epochs.moved.get(&(Party::Member(slot), id)).cloned();
        let (Some(mut ours), Some(theirs)) = (ours, theirs) else {
            return;
        };
        ours.peer = theirs.peer;
        assert_eq!(ours, theirs);
        self.epochs.held.insert(id);
        self.epochs.balances.insert(id, ours.push_msat);
        self.tell_lsp(coordinator::Input::MovedHeld(id));
        self.tell(slot, member::Input::MovedHeld(id));
    }

    /// After a restart: the channels that are there.
    pub(super) fn tell_held(&mut self, who: Party) {
        for id in self.epochs.held.clone() {
            match who {
                Party::Lsp => self.tell_lsp(coordinator::Input::MovedHeld(id)),
                Party::Member(slot) if slot == id.slot.slot => {
                    self.tell(slot, member::Input::MovedHeld(id));
                }
                Party::Member(_) => {}
            }
        }
    }

    /// A plan for the next epoch of a leaf: every place cut as it is wished.
    pub fn epoch_plan(
        &self,
        slot: u16,
        wish: impl Fn(u16) -> Wish,
    ) -> Result<EpochPlan, EpochError> {
        let next = self.lsp.as_ref().unwrap().next_epoch(slot)?;
        let places = next.channels.iter().map(|id| PlacePlan {
            wish: wish(id.slot.slot),
            funding_key: key("lsp moved", number(*id)),
        });
        Ok(EpochPlan {
            slot,
            places: places.collect(),
            waves: Vec::new(),
        })
    }

    /// The LSP begins; what follows is yet to be delivered.
    pub fn begin_epoch(&mut self, plan: &EpochPlan) -> Result<(), EpochError> {
        let randomness = self.random();
        let begun = self.lsp.as_mut().unwrap().begin_epoch(plan, randomness);
        self.act(Party::Lsp, begun?);
        Ok(())
    }

    /// A whole new epoch in which everybody's channels are merged.
    pub fn merge(&mut self, slot: u16) -> Result<(), EpochError> {
        let plan = self.epoch_plan(slot, |_| Wish::Merge)?;
        self.begin_epoch(&plan)?;
        self.deliver();
        Ok(())
    }
}
