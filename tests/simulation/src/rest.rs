//! How a world ends: it is brought to rest, where every attempt must be a factory for all or nothing
//! for anybody; or its LSP is gone for good, and everybody's balance must arrive.

use superscalar_factory::exit::Goal;
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;

use crate::invariants::{Invariant, Violation, ensure};
use crate::leave::is_activated;
use crate::observer::name;
use crate::party::{Place, Role, Who};
use crate::world::World;

/// Blocks beyond all delays that an exit may need: not every block takes what is offered.
const SLACK_BLOCKS: u32 = 60;
/// More attempts than one plan is given.
const ATTEMPTS: usize = 8;

impl World {
    /// Brings everything to rest: nobody is disturbed any more, whoever can return does, and blocks
    /// come until nothing is left to wait for.
    pub(crate) fn calm_down(&mut self) -> Result<(), Violation> {
        for who in self.everybody() {
            self.party_mut(who).fuse = None;
            if !self.party(who).is_live() && !self.party(who).gone {
                self.restart(who)?;
            }
        }
        self.withheld.clear();
        for _ in 0..2 {
            for number in 0..self.links.len() as u16 {
                self.reconnect(number)?;
            }
            self.drain()?;
        }
        self.settle_trades()?;
        // A round that ends may begin another attempt, with a hostile member less in it.
        for _ in 0..ATTEMPTS {
            let waiting = self.waiting();
            for (who, attempt) in &waiting {
                if self.party(*who).role(attempt).is_some_and(Role::waits) {
                    self.time_out(*who, *attempt)?;
                }
            }
            self.drain()?;
        }
        for _ in 0..8 {
            self.steps += 1;
            self.chain.mine(|| true)?;
            self.counts.blocks += 1;
            for who in self.everybody() {
                if self.party(who).is_live() {
                    self.steps += 1;
                    self.look(who)?;
                }
            }
            self.drain()?;
        }
        self.check_everybody()?;
        self.check_rest()
    }

    /// Epochs that somebody is silent about end, watchtowers answer.
    fn settle_trades(&mut self) -> Result<(), Violation> {
        for _ in 0..3 {
            while self.guard_some()? {}
            self.drain()?;
            self.end_epochs()?;
            self.drain()?;
            self.end_waiting()?;
            self.drain()?;
        }
        Ok(())
    }

    fn reconnect(&mut self, number: u16) -> Result<(), Violation> {
        if self.links[usize::from(number)].up {
            self.disconnect(number)?;
        }
        if self.lsp.is_live() && self.party(Who::Wallet(number)).is_live() {
            self.connect(number)?;
        }
        Ok(())
    }

    /// Delivers all that is on its way.
    fn drain(&mut self) -> Result<(), Violation> {
        for _ in 0..200_000 {
            if !self.deliver_some()? {
                return Ok(());
            }
            self.steps += 1;
        }
        Err(Violation::new(
            Invariant::CrashAnywhere,
            "the parties never stop talking",
        ))
    }

    /// In a world at rest every attempt is a factory for everybody or nothing for anybody, and no
    /// coin is locked for nothing.
    pub(crate) fn check_rest(&self) -> Result<(), Violation> {
        let breach = |what: String| Err(Violation::new(Invariant::CrashAnywhere, what));
        if self.lsp.gone || !self.lsp.is_honest() {
            return Ok(());
        }
        let Some(live) = &self.lsp.live else {
            return breach("the LSP is not back".to_owned());
        };
        for (attempt, role) in &live.roles {
            let Role::Coordinator(role) = role else {
                continue;
            };
            let name = name(attempt);
            let published = self.observer.is_published(attempt);
            match (published, role.ended()) {
                (false, Some(_)) => {}
                (false, None) => return breach(format!("{name} is stuck: {}", role.phase())),
                (true, Some(code)) => {
                    return breach(format!("{name} is published and over: {code}"));
                }
                (true, None) if !role.is_active() => {
                    return breach(format!("{name} is published and only {}", role.phase()));
                }
                (true, None) => {}
            }
            for (slot, peer) in (0u16..).zip(role.peers()) {
                let Some(number) = self.wallet_of(peer) else {
                    continue;
                };
                let wallet = self.party(Who::Wallet(number));
                let phase = wallet.role(attempt).map(Role::phase);
                let active = wallet.role(attempt).is_some_and(Role::is_active);
                if published && wallet.is_honest() && !active {
                    return breach(format!("{name} exists, for slot {slot} it is {phase:?}"));
                }
                if !published && active {
                    return breach(format!("{name} is over, for slot {slot} it is active"));
                }
                if active && wallet.is_honest() {
                    self.check_epochs_rest(number, attempt)?;
                }
            }
        }
        for (txid, tx) in &self.lsp.disk.reserved {
            let built = live.roles.values().any(|role| match role {
                Role::Coordinator(role) => role
                    .built()
                    .is_some_and(|built| built.tree.funding.txid == *txid),
                Role::Member(_) => false,
            });
            if !built && self.chain.height_of(txid).is_none() {
                let coin = tx.input[0].previous_output;
                return breach(format!("the coin {coin} stays reserved for nothing"));
            }
        }
        for wallet in self.wallets.iter().filter(|wallet| wallet.is_honest()) {
            let roles = wallet.live.iter().flat_map(|live| live.roles.iter());
            for (attempt, role) in roles {
                if role.waits() && !role.has_ended() {
                    let name = name(attempt);
                    return breach(format!("a member is stuck in {name}: {}", role.phase()));
                }
            }
        }
        Ok(())
    }

    /// The LSP is gone for good: whoever counts on a factory leaves it, before T or by what is paid
    /// out after T, and all that is due arrives on this chain, among all others.
    pub(crate) fn exodus(&mut self) -> Result<(), Violation> {
        if self.lsp.is_live() {
            self.kill(Who::Lsp)?;
        }
        self.lsp.gone = true;
        let mut leaving: Vec<(u16, Place)> = Vec::new();
        let mut latest = self.chain.tip();
        for number in 0..self.wallets.len() as u16 {
            for attempt in self.counted(number) {
                let Some((place, goal, until)) = self.way_out(number, &attempt) else {
                    continue;
                };
                let exits = &self.wallets[usize::from(number)].disk.exits;
                if let Some(goal) = goal.filter(|_| !exits.contains_key(&attempt)) {
                    self.leave(number, attempt, goal)?;
                }
                latest = latest.max(until);
                leaving.push((number, place));
            }
        }
        while self.chain.tip() < latest {
            self.steps += 1;
            self.block()?;
            for number in 0..self.wallets.len() as u16 {
                self.steps += 1;
                self.look(Who::Wallet(number))?;
            }
            leaving.retain(|(number, place)| !self.is_home(*number, place));
            if leaving.is_empty() {
                return Ok(());
            }
        }
        ensure(leaving.is_empty(), Invariant::Exit, || {
            let (number, place) = leaving[0];
            format!("wallet {number} is not out of {} in time", name(&place.0))
        })
    }

    /// Factories an honest member counts on.
    fn counted(&self, number: u16) -> Vec<Attempt> {
        let wallet = self.party(Who::Wallet(number));
        let attempts = wallet.disk.journals.keys().copied();
        let counted = attempts.filter(|it| wallet.is_honest() && self.counts_on(number, it));
        counted.collect()
    }

    /// How a member leaves a factory it is still in, unless by itself before the LSP may take it,
    /// and the height by which it is out.
    fn way_out(&mut self, number: u16, attempt: &Attempt) -> Option<(Place, Option<Goal>, u32)> {
        let wallet = self.party(Who::Wallet(number));
        let Some(Role::Member(member)) = wallet.role(attempt) else {
            return None;
        };
        let active = wallet.records(attempt).iter().any(is_activated);
        let place = (*attempt, member.slot().slot);
        let path = member.path()?;
        let header = &path.tree.header;
        let (tip, expiry, timing) = (self.chain.tip(), header.expiry, header.timing.clone());
        let exit_delay = timing.exit_delay(header.shape.layers());
        self.chain.height_of(&path.tree.funding.txid)?;
        let policy = header.policy;
        if self.is_home(number, &place) {
            return None;
        }
        let begins = tip.max(expiry);
        let goal = match (policy, self.dice.per_mille(500)) {
            (TimeoutPolicy::MembersReclaim, true) => Some(Goal::Reclaim),
            // All of a factory alike: a neighbour would bring the leaf on chain.
            (TimeoutPolicy::LspReclaims, _) if active && attempt.instance.0[0] < 128 => None,
            _ => Some(Goal::Leave),
        };
        let until = begins
            + 2 * exit_delay
            + timing.distribution_delay()
            + u32::from(timing.member_to_self_delay)
            + SLACK_BLOCKS;
        Some((place, goal, until))
    }

    fn is_home(&self, number: u16, place: &Place) -> bool {
        let mut channels = self.party(Who::Wallet(number)).channels(place);
        self.home.contains(place) || channels.next().is_none()
    }
}
