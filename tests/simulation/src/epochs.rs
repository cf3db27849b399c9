//! New epochs at work: channels come to rest, are made anew and retired, as a host does it; the LSP
//! begins, waits and abandons.

use std::collections::BTreeSet;

use bitcoin::Amount;
use superscalar_factory::coordinator;
use superscalar_factory::effect::{ChannelRef, Effect, SlotChannel, SlotRef};
use superscalar_factory::epoch::{
    Departure, EpochError, EpochLimits, EpochPlan, EpochStage, PlacePlan, Wish,
};
use superscalar_factory::journal::Record;
use superscalar_factory::member;
use superscalar_factory::message::Attempt;
use superscalar_factory::scripts::MIN_OUTPUT;
use superscalar_factory::tree::Cut;

use crate::bugs::Bug;
use crate::channel::{Channel, Htlc, Kind, Stage, Toward};
use crate::depart::{self, MOST_FORGONE_MSAT};
use crate::dice::secret;
use crate::invariants::{Invariant, Violation, ensure};
use crate::observer::name;
use crate::party::{Frozen, Party, Place, Role, Who, place_of};
use crate::sell;
use crate::world::World;

/// What a member accepts of new epochs.
fn limits(attempt: &Attempt, slot: u16) -> EpochLimits {
    EpochLimits {
        min_capacity: None,
        departure: match depart::leaves(attempt, slot) {
            true => Departure::Leaves,
            false => Departure::Stays,
        },
        forgo_msat: depart::forgoes_msat(attempt),
        guard: sell::guard(attempt, slot),
        ..EpochLimits::default()
    }
}

impl Role {
    /// What its application tells a role once it is there, and again after each replay.
    pub(crate) fn set_conditions(&mut self, bug: Option<Bug>) {
        match self {
            Role::Coordinator(role) => {
                let policy = sell::policy(&role.attempt());
                role.set_sale_policy(Some(policy));
            }
            Role::Member(role) => {
                let mut limits = limits(&role.attempt(), role.slot().slot);
                if bug == Some(Bug::ForgoesAnything) {
                    limits.forgo_msat = u64::MAX;
                }
                role.set_epoch_limits(Some(limits));
            }
        }
    }
}

impl World {
    /// 32 random bytes for nonces.
    pub(crate) fn randomness(&mut self) -> [u8; 32] {
        match self.bug {
            Some(Bug::SameSaleRandomness) => secret(self.seed, "always the same", 0),
            _ => self.dice.bytes(),
        }
    }

    /// The channel layer is held to a channel from now on.
    pub(crate) fn agree(
        &mut self,
        who: Who,
        id: ChannelRef,
        channel: SlotChannel,
    ) -> Result<(), Violation> {
        let disk = &mut self.party_mut(who).disk;
        let known = disk.channels.entry(id);
        let known = known.or_insert_with(|| Channel::new(channel.clone()));
        let same = known.matches(&channel);
        ensure(same, Invariant::NoEquivocation, || {
            format!("{who} agrees to two channels in slot {}", id.slot.slot)
        })?;
        if let Some(live) = &mut self.party_mut(who).live {
            live.agreed.insert(id);
        }
        self.wrote(who, &id.slot.attempt)
    }

    /// A record is on disk: what was read from there before is old.
    pub(crate) fn moved_on(&mut self, who: Who, attempt: Attempt, signed: bool) {
        let party = self.party_mut(who);
        if let Some(live) = &mut party.live {
            live.kept.retain(|place, _| place.0 != attempt);
        }
        let Some(Role::Member(role)) = party.role(&attempt) else {
            return;
        };
        if signed {
            let place = (attempt, role.slot().slot);
            let version = role.version();
            party.disk.versions.insert(place, version);
        }
    }

    /// The leaf of a channel is of an older epoch.
    pub(crate) fn retire(&mut self, who: Who, id: ChannelRef) -> Result<(), Violation> {
        let party = self.party_mut(who);
        if let Some(channel) = party.disk.channels.get_mut(&id)
            && channel.stage == Stage::Held
        {
            channel.stage = Stage::Retired;
            channel.proposed = None;
        }
        if let Some(live) = &mut party.live {
            live.limbo.remove(&id.slot);
            live.forget(&id);
        }
        self.wrote(who, &id.slot.attempt)
    }

    /// Nothing comes of a channel; nobody can have been able to complete its epoch.
    pub(crate) fn discard_moved(&mut self, who: Who, id: ChannelRef) -> Result<(), Violation> {
        let party = self.party(who);
        let mut records = party.records(&id.slot.attempt).iter().rev();
        let committed = records
            .by_ref()
            .take_while(|record| !matches!(record, Record::MemberEpochStored(_)))
            .any(|record| matches!(record, Record::MemberEpochCommitted(_)));
        let lost = committed && party.is_honest();
        ensure(!lost, Invariant::Recoverability, || {
            let name = name(&id.slot.attempt);
            format!("{who} gives up a channel in {name} that the LSP can bring about")
        })?;
        self.close(who, id);
        Ok(())
    }

    /// The channels that a place uses come to rest.
    pub(crate) fn freeze(&mut self, who: Who, slot: SlotRef) {
        let party = self.party_mut(who);
        let version = party.role(&slot.attempt).map(|it| it.version(slot.slot));
        let Some(version) = version else { return };
        let place = (slot.attempt, slot.slot);
        let used = party.channels(&place);
        let used = used.filter(|(_, it)| !matches!(it.stage, Stage::Over | Stage::Retired));
        let role = party.role(&slot.attempt);
        let lost = |id: &ChannelRef| {
            let newest = id.version == version;
            newest && role.is_some_and(|role| !role.has_delivered(id))
        };
        let used: BTreeSet<ChannelRef> = used.map(|(id, _)| *id).filter(|id| !lost(id)).collect();
        // After the final signature it is what that retires.
        let old: BTreeSet<_> = used.iter().filter(|id| id.version < version).collect();
        let channels = match old.is_empty() {
            true => used
                .iter()
                .filter(|id| id.version == version)
                .copied()
                .collect(),
            false => old.into_iter().copied().collect(),
        };
        if let Some(live) = &mut party.live {
            live.limbo.remove(&slot);
            let told = false;
            live.frozen.insert(slot, Frozen { channels, told });
        }
        self.tell_rested(who, &slot);
    }

    /// The channels of a place are used as before, or within a limit.
    pub(crate) fn thaw(&mut self, who: Who, slot: SlotRef, most_msat: Option<u64>) {
        if let Some(live) = &mut self.party_mut(who).live {
            live.frozen.remove(&slot);
            live.limbo.remove(&slot);
            live.limbo.extend(most_msat.map(|msat| (slot, msat)));
        }
    }

    /// Tells a role that nothing is pending in the channels of a place, once that is so.
    pub(crate) fn tell_rested(&mut self, who: Who, slot: &SlotRef) {
        let party = self.party(who);
        let frozen = party.live.as_ref().and_then(|live| live.frozen.get(slot));
        let Some(frozen) = frozen.filter(|frozen| !frozen.told) else {
            return;
        };
        let channels = frozen.channels.iter();
        let channels = channels.filter_map(|id| Some((*id, party.disk.channels.get(id)?)));
        let held: Vec<_> = channels.filter(|(_, it)| it.stage == Stage::Held).collect();
        let rests =
            |channel: &Channel| channel.balances.htlcs.is_empty() && channel.proposed.is_none();
        if !held.iter().all(|(_, channel)| rests(channel)) {
            return;
        }
        let balances = held.iter().map(|(id, it)| (*id, it.balances.member_msat));
        let balances: Vec<(ChannelRef, u64)> = balances.collect();
        let moved = match party.role(&slot.attempt) {
            Some(Role::Member(role)) => role.moved_channel(),
            _ => None,
        };
        let keys = self.keys(moved.unwrap_or(ChannelRef::first(*slot)));
        let randomness = self.randomness();
        let party = self.party_mut(who);
        if let Some(live) = &mut party.live
            && let Some(frozen) = live.frozen.get_mut(slot)
        {
            frozen.told = true;
        }
        let effects = match party.role_mut(&slot.attempt) {
            Some(Role::Coordinator(role)) => role.handle(coordinator::Input::Frozen {
                slot: slot.slot,
                balances,
            }),
            Some(Role::Member(role)) => role.handle(member::Input::Frozen {
                balances,
                funding_key: keys.funding(Toward::Member),
                randomness,
            }),
            None => Vec::new(),
        };
        self.queue(who, slot.attempt, effects);
    }

    /// Whether a member's channels may take an HTLC: they do not rest, and what could be the
    /// member's stays within what an epoch that it has signed for would give it.
    pub(crate) fn may_take(&self, party: &Party, id: &ChannelRef, htlc: &Htlc) -> bool {
        if party.is_frozen(id) && self.bug != Some(Bug::FrozenIgnored) {
            return false;
        }
        let limit = party.live.as_ref().and_then(|it| it.limbo.get(&id.slot));
        let Some(limit) = limit.filter(|_| htlc.toward == Toward::Member) else {
            return true;
        };
        // What was sent and is pending may come back.
        let counted = party.counted(&place_of(id));
        let most: u64 = counted.map(|(_, it)| it.balances.back_msat()).sum();
        let most = most + htlc.amount_msat;
        most <= *limit || self.bug == Some(Bug::LimboIgnored)
    }

    /// While the LSP alone can complete an epoch, a member never has more than that would give it.
    pub(crate) fn check_limbo(&self, who: Who, id: &ChannelRef) -> Result<(), Violation> {
        let (party, place) = (self.party(who), place_of(id));
        let Some(Role::Member(role)) = party.role(&place.0) else {
            return Ok(());
        };
        let limit = role.limbo_msat();
        let Some(limit) = limit.filter(|_| party.is_honest()) else {
            return Ok(());
        };
        let most = most_msat(party, &place);
        ensure(most <= limit, Invariant::Limbo, || {
            format!("{who} has {most} msat in {}, of {limit}", name(&place.0))
        })
    }

    pub(crate) fn give_epoch_randomness(&mut self, who: Who, attempt: Attempt) {
        let bytes = self.randomness();
        let role = self.party_mut(who).role_mut(&attempt);
        let effects = role.map(|role| role.epoch_randomness(bytes));
        self.queue(who, attempt, effects.unwrap_or_default());
    }

    /// Something about a new epoch.
    pub(crate) fn move_some(&mut self) -> Result<bool, Violation> {
        match self.dice.below(12) {
            0 => self.lose_patience(),
            1 => self.abandon_some(),
            2 => self.time_out_member(),
            3 => self.guard_some(),
            // Where every place waits for a watchtower's word.
            4..8 if self.profile.ambush => self.guard_some(),
            _ => self.begin_epoch(),
        }
    }

    /// The LSP's roles of factories that exist, unopened as far as it knows.
    fn moving(&self) -> Vec<Attempt> {
        let live = self.lsp.live.as_ref();
        let roles = live.into_iter().flat_map(|live| &live.roles);
        let active = roles.filter(|(_, role)| role.is_active());
        active.map(|(attempt, _)| *attempt).collect()
    }

    pub(crate) fn begin_epoch(&mut self) -> Result<bool, Violation> {
        let moving = self.moving();
        let Some(&attempt) = self.dice.pick(&moving) else {
            return Ok(false);
        };
        let Some(Role::Coordinator(role)) = self.lsp.role(&attempt) else {
            return Ok(false);
        };
        let slot = self.dice.below(role.peers().len()) as u16;
        let next = match role.next_epoch(slot) {
            Ok(next) => next,
            Err(EpochError::UsedUp(_)) => {
                self.counts.used_up += u64::from(self.used_up.insert((attempt, slot)));
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        let invites = role.invites();
        let entitled = |slot: u16| {
            let invite = invites.get(usize::from(slot));
            invite.map_or(Amount::ZERO, |it| it.capacity + it.stock)
        };
        let entitled: Vec<Amount> = next
            .channels
            .iter()
            .map(|id| entitled(id.slot.slot))
            .collect();
        let carries = next.epoch.epochs.len()
            < role
                .newest_tree()
                .map_or(0, |tree| tree.topology().path(slot).len());
        let mut places = Vec::new();
        for (id, entitled) in next.channels.iter().zip(entitled) {
            let wish = self.wish(&place_of(id), entitled);
            let funding_key = self.keys(*id).funding(Toward::Lsp);
            places.push(PlacePlan { wish, funding_key });
        }
        let waves = match self.dice.per_mille(500) {
            true => vec![vec![slot]],
            false => Vec::new(),
        };
        let mut plan = EpochPlan {
            slot,
            places,
            waves,
        };
        // A place whose member has left stays as it is.
        for _ in 0..=plan.places.len() {
            let randomness = self.randomness();
            let Some(Role::Coordinator(role)) = self.lsp.role_mut(&attempt) else {
                return Ok(false);
            };
            match role.begin_epoch(&plan, randomness) {
                Ok(effects) => {
                    self.counts.carries += u64::from(carries);
                    let what = &next.epoch;
                    self.note(format_args!("the LSP begins {what} of {}", name(&attempt)));
                    self.queue(Who::Lsp, attempt, effects);
                    return self.settle().map(|()| true);
                }
                Err(EpochError::Departed { slot }) => {
                    let mut all = next.channels.iter().zip(&mut plan.places);
                    if let Some((_, place)) = all.find(|(id, _)| id.slot.slot == slot) {
                        place.wish = Wish::Depart;
                    }
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// How the LSP would like to cut a place.
    fn wish(&mut self, place: &Place, entitled: Amount) -> Wish {
        let role = self.lsp.role(&place.0);
        let version = role.map_or(0, |role| role.version(place.1));
        let used = self.lsp.channels(place);
        let used = used.filter(|(id, it)| id.version == version && it.stage == Stage::Held);
        let used: Vec<_> = used.map(|(_, channel)| channel).collect();
        let rests = used.iter().all(|it| it.balances.htlcs.is_empty());
        let left: u64 = used.iter().map(|it| it.balances.member_msat).sum();
        let leaves = depart::leaves(&place.0, place.1);
        let little = match leaves {
            true => left <= MOST_FORGONE_MSAT,
            false => left == 0,
        };
        let held: Amount = used.iter().map(|channel| channel.agreed.capacity).sum();
        let most = entitled.checked_sub(MIN_OUTPUT).unwrap_or(held).max(held);
        match self.dice.below(10) {
            0 | 1 if rests && little => Wish::Depart,
            2..5 => {
                let capacity = self.dice.between(held.to_sat(), most.to_sat());
                Wish::Capacity(Amount::from_sat(capacity))
            }
            // Whoever would leave is let go sooner or later.
            5 | 6 if leaves && rests && little => Wish::Depart,
            _ => Wish::Merge,
        }
    }

    /// The LSP has waited long enough for somebody.
    fn lose_patience(&mut self) -> Result<bool, Violation> {
        let moving = self.moving();
        let Some(&attempt) = self.dice.pick(&moving) else {
            return Ok(false);
        };
        self.end_epoch(attempt, Role::epoch_timed_out)
    }

    fn end_epoch(
        &mut self,
        attempt: Attempt,
        end: impl Fn(&mut Role) -> Vec<Effect>,
    ) -> Result<bool, Violation> {
        let effects = self.lsp.role_mut(&attempt).map(end).unwrap_or_default();
        let any = !effects.is_empty();
        if any {
            let name = name(&attempt);
            self.note(format_args!(
                "the LSP loses patience with an epoch of {name}"
            ));
        }
        self.queue(Who::Lsp, attempt, effects);
        self.settle().map(|()| any)
    }

    /// The LSP promises never to complete an epoch that hangs.
    fn abandon_some(&mut self) -> Result<bool, Violation> {
        let live = self.lsp.live.as_ref();
        let hanging = live.and_then(|live| live.hanging.first().copied());
        let Some(attempt) = hanging else {
            return Ok(false);
        };
        self.abandon(attempt)
    }

    fn abandon(&mut self, attempt: Attempt) -> Result<bool, Violation> {
        if let Some(live) = &mut self.lsp.live {
            live.hanging.remove(&attempt);
        }
        let any = self.end_epoch(attempt, |role| match role {
            Role::Coordinator(role) => role.abandon_epoch(),
            Role::Member(_) => Vec::new(),
        })?;
        self.counts.abandoned += u64::from(any);
        Ok(any)
    }

    fn time_out_member(&mut self) -> Result<bool, Violation> {
        let mut waiting = Vec::new();
        for number in 0..self.wallets.len() as u16 {
            let live = &self.party(Who::Wallet(number)).live;
            for (attempt, role) in live.iter().flat_map(|live| &live.roles) {
                let stage = role.stands().epoch;
                let waits = |stage| !matches!(stage, EpochStage::Switching | EpochStage::Guarding);
                if stage.is_some_and(waits) {
                    waiting.push((number, *attempt));
                }
            }
        }
        let Some(&(number, attempt)) = self.dice.pick(&waiting) else {
            return Ok(false);
        };
        let who = Who::Wallet(number);
        self.note(format_args!(
            "{who} has waited for an epoch of {}",
            name(&attempt)
        ));
        let effects = self
            .party_mut(who)
            .role_mut(&attempt)
            .map(Role::epoch_timed_out);
        self.queue(who, attempt, effects.unwrap_or_default());
        self.settle().map(|()| true)
    }

    /// A watchtower acknowledges an epoch.
    pub(crate) fn guard_some(&mut self) -> Result<bool, Violation> {
        let mut waiting = Vec::new();
        for number in 0..self.wallets.len() as u16 {
            let Some(live) = &self.party(Who::Wallet(number)).live else {
                continue;
            };
            // Where the tree is open nothing is switched to.
            let closed = live
                .roles
                .iter()
                .filter(|(it, _)| !live.opened.contains(it));
            for (attempt, role) in closed {
                if role.stands().epoch == Some(EpochStage::Guarding) {
                    waiting.push((number, *attempt));
                }
            }
        }
        let Some(&(number, attempt)) = self.dice.pick(&waiting) else {
            return Ok(false);
        };
        let who = Who::Wallet(number);
        let Some(Role::Member(role)) = self.party(who).role(&attempt) else {
            return Ok(false);
        };
        let place = (attempt, role.slot().slot);
        self.hand_over(number, place)?;
        let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) else {
            return Ok(false);
        };
        let version = role.version();
        let effects = role.handle(member::Input::MovedGuarded { version });
        let any = !effects.is_empty();
        self.queue(who, attempt, effects);
        self.settle().map(|()| any)
    }

    /// Ends every epoch that is under way, as an LSP does that nobody answers.
    pub(crate) fn end_epochs(&mut self) -> Result<(), Violation> {
        for attempt in self.moving() {
            self.end_epoch(attempt, Role::epoch_timed_out)?;
            let live = self.lsp.live.as_ref();
            if live.is_some_and(|live| live.hanging.contains(&attempt)) {
                self.abandon(attempt)?;
            }
        }
        Ok(())
    }

    /// Ends what members still wait for, and have not signed, as they do after a while.
    pub(crate) fn end_waiting(&mut self) -> Result<(), Violation> {
        for number in 0..self.wallets.len() as u16 {
            let who = Who::Wallet(number);
            let live = &self.party(who).live;
            let roles = live.iter().flat_map(|live| &live.roles);
            let waits = [EpochStage::Preparing, EpochStage::Stored].map(Some);
            let waiting = roles.filter(|(_, role)| waits.contains(&role.stands().epoch));
            for attempt in waiting.map(|(attempt, _)| *attempt).collect::<Vec<_>>() {
                let role = self.party_mut(who).role_mut(&attempt);
                let effects = role.map(Role::epoch_timed_out);
                self.queue(who, attempt, effects.unwrap_or_default());
                self.settle()?;
            }
        }
        Ok(())
    }

    /// In a world at rest a member is in the epoch its LSP has for it, and waits for nothing.
    pub(crate) fn check_epochs_rest(
        &self,
        number: u16,
        attempt: &Attempt,
    ) -> Result<(), Violation> {
        let wallet = self.party(Who::Wallet(number));
        let (Some(Role::Coordinator(ours)), Some(Role::Member(role))) =
            (self.lsp.role(attempt), wallet.role(attempt))
        else {
            return Ok(());
        };
        let knows = |party: &Party| {
            let live = party.live.as_ref();
            live.is_some_and(|live| live.opened.contains(attempt))
        };
        let Some(built) = ours.built() else {
            return Ok(());
        };
        let touched = self.chain.spender(&built.tree.funding).is_some();
        if touched || knows(wallet) || knows(&self.lsp) || !role.is_active() {
            return Ok(());
        }
        let breach = |what: String| Err(Violation::new(Invariant::CrashAnywhere, what));
        let (slot, name) = (role.slot(), name(attempt));
        if let Some(stage) = role.epoch_stage() {
            return breach(format!("wallet {number} stays {stage:?} in {name}"));
        }
        let (here, there) = (role.version(), ours.version(slot.slot));
        if here != there {
            return breach(format!(
                "wallet {number} is in {here} of {name}, its LSP in {there}"
            ));
        }
        for party in [&self.lsp, wallet] {
            let live = party.live.as_ref();
            let frozen = live.and_then(|live| live.frozen.get(&slot));
            let departed = role.cut() == Some(Cut::Departed);
            if let Some(frozen) = frozen.filter(|_| !departed) {
                return breach(format!(
                    "wallet {number} stays frozen in {name}: {frozen:?}"
                ));
            }
        }
        let same = ours.stock_chain(slot.slot).as_ref() == role.stock_chain();
        // A sale that is signed and cannot be delivered stays pending.
        if !same && role.sale_stage().is_none() {
            return breach(format!(
                "wallet {number} has other sales in {name} than its LSP"
            ));
        }
        let place = (*attempt, slot.slot);
        let leaf = wallet
            .counted(&place)
            .find(|(id, _)| Kind::of(id) != Kind::Bought);
        let open = leaf.is_none_or(|(id, _)| wallet.is_open(id));
        match open {
            true => Ok(()),
            false => breach(format!(
                "the channel of wallet {number} in {name} is not used"
            )),
        }
    }

    /// Channels that nobody is held to any more after a restart are dropped, and what is there is
    /// told.
    pub(crate) fn tell_channels(&mut self, who: Who) {
        let party = self.party(who);
        let Some(live) = &party.live else { return };
        let channels = party.disk.channels.iter();
        let made = channels.filter(|(id, it)| {
            Kind::of(id) != Kind::First && it.stage != Stage::Over && it.stage != Stage::Retired
        });
        let over: Vec<_> = channels_over(party);
        let (there, gone): (Vec<_>, Vec<_>) = made
            .map(|(id, channel)| (*id, channel.stage))
            .partition(|(id, _)| live.agreed.contains(id));
        for (id, _) in gone {
            self.close(who, id);
        }
        for (id, stage) in there {
            if stage == Stage::Held {
                self.held(who, id);
            }
        }
        for id in over {
            let role = self.party_mut(who).role_mut(&id.slot.attempt);
            let effects = role.map(|role| role.channel_lost(id));
            self.queue(who, id.slot.attempt, effects.unwrap_or_default());
        }
    }
}

/// Bought channels that are closed, whether or not their role has heard of it.
fn channels_over(party: &Party) -> Vec<ChannelRef> {
    let channels = party.disk.channels.iter();
    let over = channels.filter(|(id, it)| Kind::of(id) == Kind::Bought && it.stage == Stage::Over);
    over.map(|(id, _)| *id).collect()
}

fn most_msat(party: &Party, place: &Place) -> u64 {
    let counted = party.counted(place);
    counted
        .map(|(_, channel)| channel.balances.most_msat())
        .sum()
}
