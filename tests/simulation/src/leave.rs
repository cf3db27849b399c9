//! Leaving alone on the world's own chain, among everybody else: exits that were begun go on with
//! every look at the chain, kickoffs that anybody published are answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{Amount, OutPoint, Transaction};
use superscalar_factory::exit::{Action, Goal, Plan, Progress, SignedPath, plan};
use superscalar_factory::journal::Record;
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tree::Role as TxRole;

use crate::bugs::Bug;
use crate::chain::Rejection;
use crate::channel::{Channel, Htlc, Stage, Toward};
use crate::invariants::{Invariant, Violation, ensure};
use crate::money::{self, ChannelKeys};
use crate::observer::name;
use crate::party::{Kept, Place, Role, Who};
use crate::recover;
use crate::world::World;

/// No reorg of this world reaches deeper.
const BURIED_BLOCKS: u32 = 12;

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
        let Some(channel) = party.disk.channels.get(&place).filter(|_| over) else {
            return Ok(());
        };
        let needed = header.timing.exit_delay(header.shape.layers());
        let had = self.chances.get(&place).map_or(0, |it| it.blocks);
        let nothing = recover::due_at(&channel.balances, header.tree_feerate) == Amount::ZERO;
        if !party.is_honest() || nothing || had < needed {
            return Ok(());
        }
        let leaf = self.chain.height_of(&channel.agreed.outpoint.txid);
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
        let claimed = party.disk.channels.get(&place).is_some_and(|channel| {
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
        let Some(planned) = self.follow(who, place, goal.unwrap_or(Goal::Defend))? else {
            return Ok(());
        };
        match (goal, planned.status.progress) {
            (Some(_), Progress::LeafConfirmed { outpoint, .. }) => {
                self.wind_up(number, place, outpoint)
            }
            (_, Progress::PaidOut { outpoint, .. }) => {
                if !self
                    .party(who)
                    .disk
                    .channels
                    .get(&place)
                    .is_some_and(is_over)
                {
                    self.counts.distributed += 1;
                }
                self.came_home(number, place, Some(outpoint))
            }
            _ => Ok(()),
        }
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
        let Some(Kept { path, watched }) = kept else {
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
        Ok(Some(planned))
    }

    /// The leaf is on chain: commitment, claims, sweep.
    fn wind_up(&mut self, number: u16, place: Place, outpoint: OutPoint) -> Result<(), Violation> {
        let keys = self.keys(place);
        let payout = self.payout(number);
        let disk = &self.wallets[usize::from(number)].disk;
        let Some(channel) = disk
            .channels
            .get(&place)
            .filter(|it| it.agreed.outpoint == outpoint)
        else {
            return Ok(());
        };
        let agreed = &channel.agreed;
        let delay = agreed.timing.member_to_self_delay;
        let Some(live) = &self.wallets[usize::from(number)].live else {
            return Ok(());
        };
        let feerate = match live.kept.get(&place) {
            Some(kept) => recover::tree_feerate(&kept.path),
            None => return Ok(()),
        };
        let homeward = self.homeward.entry(place).or_insert_with(|| {
            let commitment =
                money::commitment(&keys, outpoint, agreed.capacity, delay, &channel.balances);
            let claim = |htlc: &Htlc| {
                let known = channel.preimages.get(&htlc.hash);
                commitment.claim(&keys, &htlc.hash, known, &payout, feerate)
            };
            Homeward {
                claims: channel.balances.htlcs.iter().filter_map(claim).collect(),
                sweep: commitment.sweep(&keys, &payout, feerate),
                commitment: commitment.tx,
            }
        });
        if self
            .chain
            .height_of(&homeward.commitment.compute_txid())
            .is_none()
        {
            let _ = self.chain.submit(&homeward.commitment);
            return Ok(());
        }
        for tx in homeward.claims.iter().chain(&homeward.sweep) {
            // Not yet, or already: it is offered again with the next block.
            let _ = self.chain.submit(tx);
        }
        let Some(sweep) = &homeward.sweep else {
            // Nothing that is worth its fee.
            return self.came_home(number, place, None);
        };
        let txid = sweep.compute_txid();
        match self.chain.height_of(&txid) {
            Some(_) => self.came_home(number, place, Some(OutPoint { txid, vout: 0 })),
            None => Ok(()),
        }
    }

    /// Money has arrived in a wallet: all that was due.
    fn came_home(
        &mut self,
        number: u16,
        place: Place,
        outpoint: Option<OutPoint>,
    ) -> Result<(), Violation> {
        let payout = self.payout(number);
        let party = &self.wallets[usize::from(number)];
        let kept = party.live.as_ref().and_then(|live| live.kept.get(&place));
        let (Some(kept), Some(channel)) = (kept, party.disk.channels.get(&place)) else {
            return Ok(());
        };
        let due = recover::due(&channel.balances, &kept.path);
        let paid = outpoint.and_then(|it| {
            let tx = self.chain.transaction(&it.txid)?;
            let height = self.chain.height_of(&it.txid)?;
            Some((tx.output.get(it.vout as usize)?, height))
        });
        let whole = match paid {
            Some((output, _)) => output.value >= due && output.script_pubkey == payout,
            None => due == Amount::ZERO,
        };
        ensure(whole || !party.is_honest(), Invariant::Exit, || {
            let name = name(&place.0);
            format!("wallet {number} is paid less than {due} out of {name}")
        })?;
        let buried = paid.is_some_and(|(_, height)| height + BURIED_BLOCKS <= self.chain.tip());
        let arrived = paid.is_some() && !is_over(channel);
        if buried {
            self.finished.insert(place);
        }
        if arrived {
            self.counts.home += 1;
            self.note(format_args!("wallet {number} is out of {}", name(&place.0)));
        }
        self.close(Who::Wallet(number), place);
        Ok(())
    }

    /// The LSP answers every kickoff with the newest state, and stops using what is on chain.
    pub(crate) fn guard(&mut self) -> Result<(), Violation> {
        let Some(live) = &self.lsp.live else {
            return Ok(());
        };
        let mut opened: BTreeMap<Place, OutPoint> = BTreeMap::new();
        for (attempt, role) in &live.roles {
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
            for node in built.tree.nodes().filter(|node| node.node.is_leaf()) {
                let slot = node.node.slots.start;
                opened.insert((*attempt, slot), built.tree.funding);
            }
        }
        for place in opened.into_keys() {
            if self.lsp.is_honest() || self.dice.per_mille(300) {
                self.follow(Who::Lsp, place, Goal::Defend)?;
            }
        }
        let spent: Vec<Place> = self
            .lsp
            .disk
            .channels
            .iter()
            .filter(|(_, channel)| {
                channel.stage == Stage::Held
                    && self.chain.spender(&channel.agreed.outpoint).is_some()
            })
            .map(|(place, _)| *place)
            .collect();
        spent
            .into_iter()
            .for_each(|place| self.close(Who::Lsp, place));
        Ok(())
    }

    pub(crate) fn keys(&mut self, place: Place) -> Arc<ChannelKeys> {
        let known = self.keys.entry(place);
        let made = || Arc::new(ChannelKeys::new(self.seed, &place.0, place.1));
        Arc::clone(known.or_insert_with(made))
    }

    /// Reads a party's path from its disk, unless that was done in this life.
    pub(crate) fn keep_path(&mut self, who: Who, place: Place) -> Result<(), Violation> {
        let party = self.party(who);
        let kept = party
            .live
            .as_ref()
            .map(|live| live.kept.contains_key(&place));
        if kept != Some(false) {
            return Ok(());
        }
        let path = self.stored_path(who, place)?;
        if let (Some(path), Some(live)) = (path, &mut self.party_mut(who).live) {
            let watched = path.watched();
            live.kept.insert(place, Kept { path, watched });
        }
        Ok(())
    }

    /// The path a party could read from its disk; `None` if it is not complete.
    pub(crate) fn stored_path(
        &self,
        who: Who,
        place: Place,
    ) -> Result<Option<SignedPath>, Violation> {
        let party = self.party(who);
        let records = party.records(&place.0);
        let replayed = Role::replay(who, &party.seed, records, self.chain.tip());
        let (role, _) = replayed.map_err(|error| {
            let what = format!("the journal of {who} cannot be replayed: {error}");
            Violation::new(Invariant::CrashAnywhere, what)
        })?;
        let signed = match &role {
            Role::Member(member) => member.path().map(|path| {
                let order = path.tree.signing_order(place.1);
                let signatures = order.into_iter().zip(path.signatures.iter().copied());
                SignedPath::new(&path.tree, place.1, signatures)
            }),
            Role::Coordinator(role) => role
                .built()
                .filter(|built| built.complete())
                .map(|built| SignedPath::new(&built.tree, place.1, built.named_signatures())),
        };
        signed.transpose().map_err(|error| {
            let what = format!("the path of {who} in {} on disk: {error}", name(&place.0));
            Violation::new(Invariant::Recoverability, what)
        })
    }
}

pub(crate) fn is_activated(record: &Record) -> bool {
    matches!(record, Record::Activated(_))
}

fn is_over(channel: &Channel) -> bool {
    channel.stage == Stage::Over
}
