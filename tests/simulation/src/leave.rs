//! Leaving alone on the world's own chain, among everybody else: exits that were begun go on with
//! every look at the chain, kickoffs that anybody published are answered.

use std::sync::Arc;

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::exit::stale::StaleSweep;
use superscalar_factory::exit::{Action, Goal, Plan, Progress, plan};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tree::Role as TxRole;

use crate::bugs::Bug;
use crate::chain::Rejection;
use crate::channel::{Channel, Htlc, Kind, Stage, Toward};
use crate::depart;
use crate::invariants::{Invariant, Violation, ensure};
use crate::money::{self, ChannelKeys};
use crate::observer::name;
use crate::party::{Kept, Place, Role, Who, place_of};
use crate::recover;
use crate::world::World;

/// No reorg of this world reaches deeper.
const BURIED_BLOCKS: u32 = 12;

/// What stock of older epochs is taken at.
pub(crate) const SWEEP_FEERATES: [FeeRate; 2] = [
    FeeRate::from_sat_per_vb_u32(2),
    FeeRate::from_sat_per_vb_u32(10),
];

/// After so many blocks nothing of an opened path is left to be done.
const SETTLED_BLOCKS: u32 = 40;

/// Blocks of the time in which a member may leave that it has seen.
#[derive(Debug, Default)]
pub(crate) struct Chances {
    last: u32,
    blocks: u32,
}

/// What follows a leaf on chain.
#[derive(Debug)]
pub(crate) struct Homeward {
    commitment: Transaction,
    claims: Vec<Transaction>,
    /// Takes the balance home, if it is worth that.
    sweep: Option<Transaction>,
}

impl World {
    /// A member decides to leave; that it does is on disk before anything happens.
    pub(crate) fn leave(
        &mut self,
        number: u16,
        attempt: Attempt,
        goal: Goal,
    ) -> Result<(), Violation> {
        self.note(format_args!("wallet {number}: {goal:?} {}", name(&attempt)));
        self.counts.exits += 1;
        if self.bug != Some(Bug::ExitNotWritten) {
            let disk = &mut self.party_mut(Who::Wallet(number)).disk;
            disk.exits.insert(attempt, goal);
        }
        self.wrote(Who::Wallet(number), &attempt)?;
        self.burn(Who::Wallet(number))?;
        match self.party(Who::Wallet(number)).is_live() {
            true => self.step_exit(number, attempt, Some(goal)),
            false => Ok(()),
        }
    }

    /// How a member leaves that is alone after the factory's end.
    pub(crate) fn reclaimable(&self, number: u16, attempt: &Attempt) -> Option<Goal> {
        let party = self.party(Who::Wallet(number));
        let Some(Role::Member(member)) = party.role(attempt) else {
            return None;
        };
        let header = &member.invite().header;
        let reclaims = header.policy == TimeoutPolicy::MembersReclaim;
        let over = self.chain.tip() >= header.expiry;
        (reclaims && over && self.lsp.gone).then_some(Goal::Reclaim)
    }

    /// Every path of a member that somebody moves on, and every exit of its own.
    pub(crate) fn step_exits(&mut self, number: u16) -> Result<(), Violation> {
        let Some(live) = &self.party(Who::Wallet(number)).live else {
            return Ok(());
        };
        let attempts: Vec<Attempt> = live.roles.keys().copied().collect();
        for attempt in attempts {
            let begun = self
                .party(Who::Wallet(number))
                .disk
                .exits
                .get(&attempt)
                .copied();
            match begun {
                Some(_) => self.step_exit(number, attempt, begun)?,
                None => match self.must_leave(number, &attempt) {
                    true => self.leave(number, attempt, Goal::Leave)?,
                    false => self.step_exit(number, attempt, None)?,
                },
            }
            if !self.party(Who::Wallet(number)).is_live() {
                return Ok(());
            }
            self.count_chance(number, attempt);
            self.check_left_in_time(number, &attempt)?;
        }
        Ok(())
    }

    /// Counts a block in which a member could go on leaving a factory that the LSP reclaims.
    fn count_chance(&mut self, number: u16, attempt: Attempt) {
        let tip = self.chain.tip();
        let party = self.party(Who::Wallet(number));
        let Some(Role::Member(member)) = party.role(&attempt) else {
            return;
        };
        let header = &member.invite().header;
        let in_time = header
            .leave_by()
            .is_some_and(|height| (height..=header.expiry).contains(&tip));
        if !in_time || !party.records(&attempt).iter().any(is_activated) {
            return;
        }
        let place = (attempt, member.slot().slot);
        let chances = self.chances.entry(place).or_default();
        if chances.last < tip {
            chances.last = tip;
            chances.blocks += 1;
        }
    }

    /// What a reorg or a mempool that forgets has undone of an exit takes blocks to do again.
    pub(crate) fn lose_chances(&mut self, blocks: u32) {
        for chances in self.chances.values_mut() {
            chances.blocks = chances.blocks.saturating_sub(blocks);
        }
    }

    /// Under `LspReclaims` a member's leaf is on chain by T, if it had as many blocks for that as
    /// the terms promise, and something to bring home.
    pub(crate) fn check_left_in_time(
        &self,
        number: u16,
        attempt: &Attempt,
    ) -> Result<(), Violation> {
        let party = self.party(Who::Wallet(number));
        let Some(Record::MemberJoined(joined)) = party.records(attempt).first() else {
            return Ok(());
        };
        let (header, place) = (&joined.invite.header, (*attempt, joined.invite.slot));
        let over = header.leave_by().is_some() && self.chain.tip() > header.expiry;
        if !over {
            return Ok(());
        }
        let needed = header.timing.exit_delay(header.shape.layers());
        let had = self.chances.get(&place).map_or(0, |it| it.blocks);
        let counted = party.counted(&place).map(|(_, channel)| &channel.balances);
        let nothing = recover::due(counted, header.tree_feerate) == Amount::ZERO
            || depart::is_signed_away(party.records(attempt));
        if !party.is_honest() || nothing || had < needed {
            return Ok(());
        }
        let leaves = party.channels(&place);
        let leaves = leaves.filter(|(id, _)| Kind::of(id) != Kind::Bought);
        let leaf = leaves.filter_map(|(_, it)| self.chain.height_of(&it.agreed.outpoint.txid));
        let leaf = leaf.min();
        ensure(
            leaf.is_some_and(|height| height <= header.expiry),
            Invariant::Recoverability,
            || {
                let (name, expiry) = (name(attempt), header.expiry);
                format!(
                    "wallet {number} is not out of {name} at {expiry}, after {had} blocks: {leaf:?}"
                )
            },
        )
    }

    /// Whether an exit begins by itself: an HTLC that was claimed and not paid, or an end at which
    /// the LSP takes everything.
    fn must_leave(&self, number: u16, attempt: &Attempt) -> bool {
        let party = self.party(Who::Wallet(number));
        let Some(Role::Member(member)) = party.role(attempt) else {
            return false;
        };
        if member.path().is_none() || !party.records(attempt).iter().any(is_activated) {
            return false;
        }
        let header = &member.invite().header;
        let tip = self.chain.tip();
        let exit_delay = header.timing.exit_delay(header.shape.layers());
        let ends = header.leave_by().is_some_and(|height| tip >= height)
            && self.bug != Some(Bug::StaysToTheEnd);
        let place = (*attempt, member.slot().slot);
        let claimed = party.counted(&place).any(|(_, channel)| {
            channel.balances.htlcs.iter().any(|htlc| {
                htlc.toward == Toward::Member
                    && channel.revealed.contains(&htlc.hash)
                    && tip + exit_delay >= htlc.expiry
            })
        });
        ends || claimed
    }

    fn step_exit(
        &mut self,
        number: u16,
        attempt: Attempt,
        goal: Option<Goal>,
    ) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        let Some(Role::Member(member)) = self.party(who).role(&attempt) else {
            return Ok(());
        };
        let funding = match member.path() {
            Some(path) => path.tree.funding,
            None => return Ok(()),
        };
        // Nobody has touched the factory, and nobody wants to.
        if goal.is_none() && self.chain.spender(&funding).is_none() {
            return Ok(());
        }
        if self.chain.height_of(&funding.txid).is_none() {
            return Ok(());
        }
        let place = (attempt, member.slot().slot);
        if self.finished.contains(&place) {
            return Ok(());
        }
        if goal.is_none() && self.relies_on_tower(&place) {
            return Ok(());
        }
        let Some(planned) = self.follow(who, place, goal.unwrap_or(Goal::Defend))? else {
            return Ok(());
        };
        self.sweep_stale(number, place);
        match (goal, planned.status.progress) {
            (Some(_), Progress::LeafConfirmed { outpoint, .. }) => {
                self.wind_up(number, place, outpoint)
            }
            (_, Progress::PaidOut { outpoint, .. }) => {
                self.counts.distributed += u64::from(!self.home.contains(&place));
                let tx = self.chain.transaction(&outpoint.txid);
                let output = tx.and_then(|tx| tx.output.get(outpoint.vout as usize));
                let to = self.payout(number);
                let paid = output.filter(|output| output.script_pubkey == to);
                let paid = paid.map_or(Amount::ZERO, |output| output.value);
                let height = self.chain.height_of(&outpoint.txid);
                self.came_home(number, place, paid, height)
            }
            // An older epoch was first: what it holds is settled whether one wants to leave or not.
            (None, Progress::LeafConfirmed { outpoint, .. })
                if self.is_stale(who, &place, outpoint) =>
            {
                self.wind_up(number, place, outpoint)
            }
            _ => Ok(()),
        }
    }

    /// Whether a confirmed leaf is not the newest that a party holds.
    fn is_stale(&self, who: Who, place: &Place, outpoint: OutPoint) -> bool {
        let live = self.party(who).live.as_ref();
        let kept = live.and_then(|live| live.kept.get(place));
        kept.is_some_and(|kept| kept.path.channel_outpoint() != outpoint)
    }

    /// Plans and publishes. What the planner names must be acceptable now, unless a rival is there
    /// first.
    fn follow(&mut self, who: Who, place: Place, goal: Goal) -> Result<Option<Plan>, Violation> {
        self.keep_path(who, place)?;
        let party = match who {
            Who::Lsp => &self.lsp,
            Who::Wallet(number) => &self.wallets[usize::from(number)],
        };
        let kept = party.live.as_ref().and_then(|live| live.kept.get(&place));
        let Some(Kept {
            path,
            watched,
            sweeps,
        }) = kept
        else {
            return Ok(None);
        };
        let mut facts = self.chain.facts(&path.funding(), watched);
        if self.bug == Some(Bug::ExitTooEarly) {
            facts.tip += 1;
        }
        let planned = plan(path, goal, &facts);
        let planned = planned.map_err(|error| {
            Violation::new(Invariant::Exit, format!("{who} has no plan: {error}"))
        })?;
        let root = path.nodes()[0].kickoff.compute_txid();
        let taken = sweeps.iter().filter_map(|it| {
            let sweep = it.transactions.last()?;
            Some((it.outpoint, sweep.compute_txid()))
        });
        let taken: Vec<(OutPoint, Txid)> = taken.collect();
        for action in planned.actions.clone() {
            let Action::Publish {
                name: what,
                transaction,
                ..
            } = action
            else {
                return Err(Violation::new(Invariant::Exit, "an action nobody knows"));
            };
            let begun = self.party(who).disk.exits.contains_key(&place.0);
            let opens = transaction.compute_txid() == root || what.role == TxRole::Kickoff;
            ensure(
                begun || !opens || who == Who::Lsp,
                Invariant::DurableFirst,
                || {
                    format!(
                        "{who} opens {} without a record that it leaves",
                        name(&place.0)
                    )
                },
            )?;
            let kept_back = match what.role {
                TxRole::Sale(_) => self.bug == Some(Bug::SalesStayOffChain),
                TxRole::State => self.bug == Some(Bug::KickoffsUnanswered) && !begun,
                _ => false,
            };
            if kept_back && who != Who::Lsp {
                continue;
            }
            // All of that output is the member's, and not divided by a sale of then.
            let output = transaction.input[0].previous_output;
            if taken.iter().any(|(outpoint, _)| *outpoint == output) {
                continue;
            }
            match self.chain.submit(&transaction) {
                Ok(()) => {
                    let what = format!("{who} publishes the {what} of {}", name(&place.0));
                    self.note(format_args!("{what}"));
                }
                Err(Rejection::Known | Rejection::Rival(_)) => {}
                Err(error) => {
                    let what = format!("{who} was to publish the {what}: {error}");
                    return Err(Violation::new(Invariant::Exit, what));
                }
            }
        }
        // Whoever waits for a distribution leaves the race to others.
        if self.party(who).is_honest() && goal != Goal::Reclaim {
            let live = self.party(who).live.as_ref();
            let kept = live.and_then(|live| live.kept.get(&place));
            let races = kept.map(|kept| self.races(&kept.path, &taken));
            self.races.extend(races.unwrap_or_default());
        }
        Ok(Some(planned))
    }

    /// The leaf and what was sold below it are on chain: commitments, claims, sweeps.
    fn wind_up(&mut self, number: u16, place: Place, leaf: OutPoint) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        let stale = self.is_stale(who, &place, leaf);
        let payout = self.payout(number);
        let mut waits = false;
        let mut paid = Amount::ZERO;
        let mut last = None;
        for (id, keys) in self.signed_keys(who, &place) {
            let Some(channel) = self.party(who).disk.channels.get(&id).cloned() else {
                continue;
            };
            if self
                .chain
                .height_of(&channel.agreed.outpoint.txid)
                .is_none()
            {
                continue;
            }
            let Some(height) = self.bring_home(&id, &channel, &keys, &payout) else {
                waits = true;
                continue;
            };
            let Some((output, height)) = height else {
                // Nothing that is worth its fee.
                continue;
            };
            paid += output.value;
            last = last.max(Some(height));
        }
        match waits {
            true => Ok(()),
            false if stale => {
                self.counts.stale += u64::from(!self.home.contains(&place));
                self.gone_home(number, place, last)
            }
            false => self.came_home(number, place, paid, last),
        }
    }

    /// Brings one channel home; `None` while that takes time, and nothing inside it if there is
    /// nothing to bring.
    fn bring_home(
        &mut self,
        id: &ChannelRef,
        channel: &Channel,
        keys: &ChannelKeys,
        payout: &ScriptBuf,
    ) -> Option<Option<(TxOut, u32)>> {
        let number = self.wallet_in(&place_of(id))?;
        let live = self.wallets[usize::from(number)].live.as_ref()?;
        let feerate = recover::tree_feerate(&live.kept.get(&place_of(id))?.path);
        let homeward = self.homeward.entry(*id).or_insert_with(|| {
            let commitment = money::commitment(keys, channel);
            let claim = |htlc: &Htlc| {
                let known = channel.preimages.get(&htlc.hash);
                commitment.claim(keys, &htlc.hash, known, payout, feerate)
            };
            Homeward {
                claims: channel.balances.htlcs.iter().filter_map(claim).collect(),
                sweep: commitment.sweep(keys, payout, feerate),
                commitment: commitment.tx.clone(),
            }
        });
        let commitment = homeward.commitment.compute_txid();
        if self.chain.height_of(&commitment).is_none() {
            let _ = self.chain.submit(&homeward.commitment);
            return None;
        }
        for tx in homeward.claims.iter().chain(&homeward.sweep) {
            // Not yet, or already: it is offered again with the next block.
            let _ = self.chain.submit(tx);
        }
        let Some(sweep) = &homeward.sweep else {
            return Some(None);
        };
        let height = self.chain.height_of(&sweep.compute_txid())?;
        let output = sweep.output.first().cloned()?;
        (output.script_pubkey == *payout).then_some(Some((output, height)))
    }

    /// Money has arrived in a wallet: all that was due.
    fn came_home(
        &mut self,
        number: u16,
        place: Place,
        paid: Amount,
        height: Option<u32>,
    ) -> Result<(), Violation> {
        let party = &self.wallets[usize::from(number)];
        let kept = party.live.as_ref().and_then(|live| live.kept.get(&place));
        let Some(kept) = kept else {
            return Ok(());
        };
        let feerate = kept.path.header().tree_feerate;
        // What was bought and lost to an LSP that waited for a wallet that slept is lost.
        let there = |channel: &Channel| {
            let stock = self.slept.contains(&channel.agreed.outpoint.txid);
            !stock
        };
        let due = match depart::is_departed(&kept.path) {
            true => Amount::ZERO,
            false => {
                let counted = party.counted(&place).filter(|(_, it)| there(it));
                recover::due(counted.map(|(_, it)| &it.balances), feerate)
            }
        };
        let whole = paid >= due || self.home.contains(&place);
        ensure(whole || !party.is_honest(), Invariant::Exit, || {
            let name = name(&place.0);
            format!("wallet {number} is paid {paid} of {due} out of {name}")
        })?;
        self.gone_home(number, place, height)
    }

    /// Nothing of a place is left to be brought home.
    fn gone_home(
        &mut self,
        number: u16,
        place: Place,
        height: Option<u32>,
    ) -> Result<(), Violation> {
        let buried = height.is_some_and(|height| height + BURIED_BLOCKS <= self.chain.tip());
        if buried {
            self.finished.insert(place);
        }
        if self.home.insert(place) && height.is_some() {
            self.counts.home += 1;
            self.note(format_args!("wallet {number} is out of {}", name(&place.0)));
        }
        let who = Who::Wallet(number);
        let channels: Vec<ChannelRef> = self
            .party(who)
            .channels(&place)
            .map(|(id, _)| *id)
            .collect();
        if let Some(live) = &mut self.party_mut(who).live {
            channels.iter().for_each(|id| {
                live.open.remove(id);
            });
        }
        Ok(())
    }

    /// The LSP answers every kickoff with the newest state, and stops using what is on chain.
    pub(crate) fn guard(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.lsp.live else {
            return Ok(());
        };
        let mut opened: Vec<Place> = Vec::new();
        for role in live.roles.values() {
            let Role::Coordinator(role) = role else {
                continue;
            };
            let Some(built) = role.built().filter(|built| built.complete()) else {
                continue;
            };
            if self.chain.spender(&built.tree.funding).is_none()
                || self.chain.height_of(&built.tree.funding.txid).is_none()
            {
                continue;
            }
            // Below a leaf each place has sales of its own.
            opened.extend(role.places().map(|slot| (slot.attempt, slot.slot)));
        }
        opened.retain(|place| !self.followed.contains(place));
        for place in opened {
            if self.lsp.is_honest() || self.dice.per_mille(300) {
                let planned = self.follow(Who::Lsp, place, Goal::Defend)?;
                let reached = planned.and_then(|planned| match planned.status.progress {
                    Progress::LeafConfirmed { height, .. }
                    | Progress::PaidOut { height, .. }
                    | Progress::Superseded { height, .. } => Some(height),
                    _ => None,
                });
                // The last of what there was to publish is buried for good.
                if reached.is_some_and(|height| height + SETTLED_BLOCKS <= self.chain.tip()) {
                    self.followed.insert(place);
                }
            }
        }
        self.take_stock();
        let spent: Vec<ChannelRef> = self
            .lsp
            .disk
            .channels
            .iter()
            .filter(|(_, channel)| {
                channel.stage == Stage::Held
                    && self.chain.spender(&channel.agreed.outpoint).is_some()
            })
            .map(|(id, _)| *id)
            .collect();
        spent.into_iter().for_each(|id| self.close(Who::Lsp, id));
        Ok(())
    }

    pub(crate) fn keys(&mut self, id: ChannelRef) -> Arc<ChannelKeys> {
        let known = self.keys.entry(id);
        let made = || Arc::new(ChannelKeys::new(self.seed, &id));
        Arc::clone(known.or_insert_with(made))
    }

    /// The keys of a place's channels whose commitment was ever durable.
    pub(crate) fn signed_keys(
        &mut self,
        who: Who,
        place: &Place,
    ) -> Vec<(ChannelRef, Arc<ChannelKeys>)> {
        let channels = self.party(who).channels(place);
        let signed = channels.filter(|(_, channel)| channel.signed);
        let signed: Vec<ChannelRef> = signed.map(|(id, _)| *id).collect();
        signed.into_iter().map(|id| (id, self.keys(id))).collect()
    }

    /// Reads a party's path from its disk, unless that was done since anything was written there.
    pub(crate) fn keep_path(&mut self, who: Who, place: Place) -> Result<(), Violation> {
        let party = self.party(who);
        let kept = party
            .live
            .as_ref()
            .map(|live| live.kept.contains_key(&place));
        if kept != Some(false) {
            return Ok(());
        }
        let kept = self.stored_path(who, place)?;
        if let (Some(kept), Some(live)) = (kept, &mut self.party_mut(who).live) {
            live.kept.insert(place, kept);
        }
        Ok(())
    }

    /// The path a member could read from its disk, or the LSP's as it is in memory; `None` if it is
    /// not complete.
    pub(crate) fn stored_path(&self, who: Who, place: Place) -> Result<Option<Kept>, Violation> {
        let party = self.party(who);
        let (signed, sweeps) = match who {
            Who::Lsp => match party.role(&place.0) {
                Some(Role::Coordinator(role)) => (role.signed_path(place.1), Vec::new()),
                _ => return Ok(None),
            },
            Who::Wallet(number) => {
                let records = party.records(&place.0);
                let replayed = Member::replay(&party.seed, records, self.chain.tip());
                let (mut role, _) = replayed.map_err(|error| {
                    let what = format!("the journal of {who} cannot be replayed: {error}");
                    Violation::new(Invariant::CrashAnywhere, what)
                })?;
                // What it would see as soon as it looks.
                for tx in self.states_seen(&role) {
                    role.handle(member::Input::StateSeen(tx));
                }
                let to = self.payout(number);
                let sweeps = role.stale_sweeps(&party.seed, &to, &SWEEP_FEERATES);
                (role.signed_path(), sweeps)
            }
        };
        let path = signed.transpose().map_err(|error| {
            let what = format!("the path of {who} in {} on disk: {error}", name(&place.0));
            Violation::new(Invariant::Recoverability, what)
        })?;
        Ok(path.map(|path| {
            let mut watched = path.watched();
            watched.extend(sweeps.iter().map(|sweep: &StaleSweep| sweep.outpoint));
            Kept {
                path,
                watched,
                sweeps,
            }
        }))
    }
}

pub(crate) fn is_activated(record: &Record) -> bool {
    matches!(record, Record::Activated(_))
}
