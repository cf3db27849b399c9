//! The world: parties, chain and network, and what happens next.
//!
//! One step is one thing that really happens: a message arrives, a block is found or lost, a party
//! looks at the chain, dies, returns, a connection breaks or comes back, a round runs out of time,
//! somebody pays, leaves or cheats. A choice that finds nothing to do is no step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::SecretKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use superscalar_factory::effect::{ChannelRef, Effect};
use superscalar_factory::exit::Goal;
use superscalar_factory::message::{Attempt, Message};

use crate::bugs::Bug;
use crate::chain::Chain;
use crate::check::Checked;
use crate::dice::{Dice, public_key, secret, secret_key};
use crate::invariants::Violation;
use crate::leave::{Chances, Homeward};
use crate::money::{ChannelKeys, wallet_script};
use crate::network::{End, Link};
use crate::observer::Observer;
use crate::party::{Character, Live, Party, Place, Role, Who, slot_of};
use crate::profile::{Profile, Vanishing};
use crate::tower;
use crate::trail::{Echo, Trail};

/// Height at which every world begins.
const BEGINNING: u32 = 100;
/// The LSP's coins.
const COINS: u32 = 60;
const COIN: Amount = Amount::from_sat(200_000_000);
/// So many steps apart everybody's money is looked at, whether anything was written or not.
const FULL_CHECK_STEPS: u64 = 1_000;

/// One run.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) dice: Dice,
    pub(crate) profile: Profile,
    pub(crate) chain: Chain,
    pub(crate) lsp: Party,
    pub(crate) wallets: Vec<Party>,
    pub(crate) links: Vec<Link>,
    pub(crate) observer: Observer,
    pub(crate) trail: Trail,
    pub(crate) bug: Option<Bug>,
    pub(crate) due: VecDeque<(Who, Attempt, Effect)>,
    pub(crate) steps: u64,
    pub(crate) counts: Counts,
    pub(crate) coin_key: SecretKey,
    pub(crate) keys: BTreeMap<ChannelRef, Arc<ChannelKeys>>,
    /// Where each wallet is paid.
    pub(crate) payouts: Vec<ScriptBuf>,
    /// Every funding transaction that was ever built.
    pub(crate) fundings: BTreeMap<Txid, Transaction>,
    /// What was said, for those who say it again.
    pub(crate) overheard: VecDeque<(Who, Message)>,
    /// What hostile parties hold back.
    pub(crate) withheld: Vec<(Who, u16, Message)>,
    /// Commitments and sweeps of members that leave.
    pub(crate) homeward: BTreeMap<ChannelRef, Homeward>,
    /// Members whose balance was home, be it that a reorg takes it back.
    pub(crate) home: BTreeSet<Place>,
    /// Members whose balance is home for good.
    pub(crate) finished: BTreeSet<Place>,
    /// What must be spent by whom, because an honest party was there in time.
    pub(crate) races: BTreeMap<OutPoint, Txid>,
    /// Places whose opened paths the LSP has followed to their end.
    pub(crate) followed: BTreeSet<Place>,
    /// Sales whose stock the LSP has taken.
    pub(crate) slept: BTreeSet<Txid>,
    /// Places whose epochs are used up.
    pub(crate) used_up: BTreeSet<Place>,
    /// Stock of lost sales that an epoch retired.
    pub(crate) outlived: BTreeSet<OutPoint>,
    /// What the last check of a member's money has seen.
    pub(crate) checked: BTreeMap<Place, Checked>,
    /// What watchtowers keep.
    pub(crate) towers: BTreeMap<Place, tower::Kept>,
    /// How long members have had to leave factories that the LSP reclaims.
    pub(crate) chances: BTreeMap<Place, Chances>,
}

/// Who looks at the chain.
enum Looker {
    Party(Who),
    Tower(Place),
}

/// How often each kind of thing happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Messages that arrived.
    pub messages: u64,
    /// Blocks found.
    pub blocks: u64,
    /// Blocks lost in reorgs.
    pub reorged: u64,
    /// Times a party looked at the chain.
    pub looks: u64,
    /// Payments begun, and answers to them.
    pub payments: u64,
    /// Connections lost or made.
    pub connections: u64,
    /// Crashes and restarts.
    pub crashes: u64,
    /// Rounds that ran out of time.
    pub timers: u64,
    /// Exits begun.
    pub exits: u64,
    /// Hostile acts.
    pub hostile: u64,
    /// Attempts begun.
    pub attempts: u64,
    /// Fundings published by an honest LSP.
    pub published: u64,
    /// Balances that reached their owner's wallet on the chain itself.
    pub home: u64,
    /// Of those, the ones a distribution paid after T.
    pub distributed: u64,
    /// Channels that were bought and delivered.
    pub sales: u64,
    /// Sales that were paid for.
    pub paid: u64,
    /// New epochs of an upper node that were begun.
    pub carries: u64,
    /// Members that switched to a new epoch.
    pub moves: u64,
    /// Epochs that the LSP promised never to complete.
    pub abandoned: u64,
    /// Members that were told of limbo.
    pub limbo: u64,
    /// Epochs that members learnt of on chain.
    pub late: u64,
    /// Places whose epochs are used up.
    pub used_up: u64,
    /// Sales whose channel was lost, and that the next epoch retired.
    pub outlived: u64,
    /// Places that were settled in an older epoch.
    pub stale: u64,
    /// Stock of older epochs that members took.
    pub swept: u64,
    /// Stock that the LSP took after its delay.
    pub reclaimed: u64,
    /// Transactions that watchtowers published.
    pub guarded: u64,
    /// Of those, the ones that take stock of older epochs.
    pub claimed: u64,
    /// Members that left and forwent what was in their channels.
    pub forgone: u64,
    /// Full checks that a member can recover its money alone.
    pub recoveries: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        macro_rules! sum {
            ($($field:ident),*) => {{
                let Counts { $($field),* } = other;
                $( self.$field += $field; )*
            }};
        }
        sum!(
            messages,
            blocks,
            reorged,
            looks,
            payments,
            connections,
            crashes,
            timers,
            exits,
            hostile,
            attempts,
            published,
            home,
            distributed,
            sales,
            paid,
            carries,
            moves,
            abandoned,
            limbo,
            late,
            used_up,
            outlived,
            stale,
            swept,
            reclaimed,
            guarded,
            claimed,
            forgone,
            recoveries
        );
    }
}

impl World {
    pub(crate) fn new(seed: u64, echo: Echo, bug: Option<Bug>) -> World {
        let mut dice = Dice::new(seed);
        let mut profile = match bug {
            Some(Bug::TowerTakesNoStock) => Profile::calm(&mut dice).ambushes(),
            _ => Profile::of(seed, &mut dice),
        };
        if bug == Some(Bug::TowerOnlyAcknowledges) {
            profile.weights.hostile *= 5;
        }
        if bug.is_some_and(Bug::shows_in_epochs) {
            profile.weights.epoch *= 10;
        }
        World::with(seed, dice, profile, echo, bug)
    }

    /// A world of a given kind.
    pub(crate) fn with(
        seed: u64,
        mut dice: Dice,
        profile: Profile,
        echo: Echo,
        bug: Option<Bug>,
    ) -> World {
        let coin_key = secret_key(seed, "lsp coins", 0);
        let script_pubkey = wallet_script(&public_key(seed, "lsp coins", 0));
        let coins = (0..COINS).map(|vout| {
            let txid = Txid::from_byte_array(secret(seed, "coins", 0));
            let script_pubkey = script_pubkey.clone();
            let value = COIN;
            (
                OutPoint { txid, vout },
                TxOut {
                    value,
                    script_pubkey,
                },
            )
        });
        let chain = Chain::new(BEGINNING, coins.collect());
        let lsp = Party::new(
            public_key(seed, "lsp node", 0),
            secret(seed, "lsp seed", 0),
            profile.lsp,
        );
        let wallets: Vec<Party> = (0..profile.wallets as u64)
            .map(|number| {
                let character = match dice.per_mille(profile.hostile_wallets) {
                    true => Character::Hostile,
                    false => Character::Honest,
                };
                let node = public_key(seed, "node", number);
                Party::new(node, secret(seed, "wallet seed", number), character)
            })
            .collect();
        let payout = |number| wallet_script(&public_key(seed, "wallet coins", number));
        let payouts = (0..wallets.len() as u64).map(payout).collect();
        let mut world = World {
            seed,
            links: wallets.iter().map(|_| Link::default()).collect(),
            dice,
            profile,
            chain,
            lsp,
            wallets,
            observer: Observer::default(),
            trail: Trail::new(echo),
            bug,
            due: VecDeque::new(),
            steps: 0,
            counts: Counts::default(),
            coin_key,
            keys: BTreeMap::new(),
            payouts,
            fundings: BTreeMap::new(),
            overheard: VecDeque::new(),
            withheld: Vec::new(),
            homeward: BTreeMap::new(),
            home: BTreeSet::new(),
            races: BTreeMap::new(),
            followed: BTreeSet::new(),
            slept: BTreeSet::new(),
            used_up: BTreeSet::new(),
            outlived: BTreeSet::new(),
            finished: BTreeSet::new(),
            checked: BTreeMap::new(),
            towers: BTreeMap::new(),
            chances: BTreeMap::new(),
        };
        for who in world.everybody() {
            let (tip, seen) = (world.chain.tip(), world.chain.version);
            world.party_mut(who).live = Some(Live {
                tip,
                seen,
                ..Live::default()
            });
        }
        world.links.iter_mut().for_each(Link::connect);
        world
    }

    pub(crate) fn party(&self, who: Who) -> &Party {
        match who {
            Who::Lsp => &self.lsp,
            Who::Wallet(number) => &self.wallets[usize::from(number)],
        }
    }

    pub(crate) fn party_mut(&mut self, who: Who) -> &mut Party {
        match who {
            Who::Lsp => &mut self.lsp,
            Who::Wallet(number) => &mut self.wallets[usize::from(number)],
        }
    }

    pub(crate) fn everybody(&self) -> Vec<Who> {
        let wallets = (0..self.wallets.len() as u16).map(Who::Wallet);
        std::iter::once(Who::Lsp).chain(wallets).collect()
    }

    /// The wallet with this Lightning node; `None` for the LSP's.
    pub(crate) fn wallet_of(&self, node: &bitcoin::secp256k1::PublicKey) -> Option<u16> {
        let position = self
            .wallets
            .iter()
            .position(|wallet| wallet.node == *node)?;
        Some(position as u16)
    }

    /// The wallet in a slot, as the LSP's role has it.
    pub(crate) fn wallet_in(&self, place: &Place) -> Option<u16> {
        let first = ChannelRef::first(slot_of(place));
        let channel = self.lsp.disk.channels.get(&first)?;
        self.wallet_of(&channel.agreed.peer)
    }

    pub(crate) fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trail.note(self.steps, event);
    }

    /// Whether the run ends with everybody leaving.
    pub(crate) fn ends_without_lsp(&self) -> bool {
        let half = (self.seed / 16).is_multiple_of(2);
        self.lsp.gone || self.seed % 4 == 3 || (half && !self.lsp.is_honest())
    }

    /// Lets something happen.
    pub(crate) fn step(&mut self) -> Result<(), Violation> {
        self.steps += 1;
        if let Vanishing::At(step) = self.profile.vanishing
            && step == self.steps
        {
            self.lsp.gone = true;
            return self.kill(Who::Lsp);
        }
        while !self.try_step()? {}
        if self.steps.is_multiple_of(FULL_CHECK_STEPS) {
            self.check_everybody()?;
        }
        Ok(())
    }

    /// Tries one kind of thing; `false` if there is nothing of it to do.
    fn try_step(&mut self) -> Result<bool, Violation> {
        let w = &self.profile.weights;
        let weights = [
            w.deliver,
            w.look,
            w.block,
            w.pay,
            w.disconnect,
            w.connect,
            w.crash,
            w.restart,
            w.timer,
            w.reorg,
            w.forget,
            w.leave,
            w.hostile,
            w.build,
            w.sell,
            w.epoch,
        ];
        match self.dice.weighted(&weights) {
            Some(0) => self.deliver_some(),
            Some(1) => self.look_some(),
            Some(2) => self.block().map(|()| true),
            Some(3) => self.pay_some(),
            Some(4) => self.disconnect_some(),
            Some(5) => self.connect_some(),
            Some(6) => self.crash_some(),
            Some(7) => self.restart_some(),
            Some(8) => self.time_out_some(),
            Some(9) => self.reorg(),
            Some(10) => Ok(self.forget()),
            Some(11) => self.leave_some(),
            Some(12) => self.cheat(),
            Some(13) => self.build(),
            Some(14) => self.sell_some(),
            Some(15) => self.move_some(),
            _ => Ok(false),
        }
    }

    pub(crate) fn deliver_some(&mut self) -> Result<bool, Violation> {
        let mut ready = Vec::new();
        for (number, link) in self.links.iter().enumerate() {
            for end in [End::Lsp, End::Wallet] {
                if link.waiting(end) > 0 {
                    ready.push((number as u16, end));
                }
            }
        }
        let Some(&(number, end)) = self.dice.pick(&ready) else {
            return Ok(false);
        };
        self.deliver(number, end)?;
        Ok(true)
    }

    fn look_some(&mut self) -> Result<bool, Violation> {
        let version = self.chain.version;
        let parties = self.everybody().into_iter().filter(|who| {
            let live = self.party(*who).live.as_ref();
            live.is_some_and(|live| live.seen != version)
        });
        let towers = self.towers_behind().map(Looker::Tower);
        let behind: Vec<Looker> = parties.map(Looker::Party).chain(towers).collect();
        match self.dice.pick(&behind) {
            Some(Looker::Party(who)) => self.look(*who)?,
            Some(Looker::Tower(place)) => self.tower_looks(*place)?,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// A block with most of what waits for one.
    pub(crate) fn block(&mut self) -> Result<(), Violation> {
        let dice = &mut self.dice;
        let held = self.chain.mine(|| dice.per_mille(850))?;
        self.check_races()?;
        self.counts.blocks += 1;
        let tip = self.chain.tip();
        self.note(format_args!("block {tip} with {held}"));
        Ok(())
    }

    fn reorg(&mut self) -> Result<bool, Violation> {
        let depth = 1 + self.dice.below(6);
        if self.chain.reversible() < depth {
            return Ok(false);
        }
        self.races.clear();
        let dice = &mut self.dice;
        let forgetting = match dice.per_mille(400) {
            true => 700,
            false => 0,
        };
        self.chain.disconnect(depth, || dice.per_mille(forgetting));
        for _ in 0..=depth {
            let dice = &mut self.dice;
            self.chain.mine(|| dice.per_mille(500))?;
        }
        self.lose_chances(2 * (depth as u32 + 1));
        self.counts.reorged += depth as u64;
        self.counts.blocks += depth as u64 + 1;
        let tip = self.chain.tip();
        self.note(format_args!("reorg of {depth} up to {tip}"));
        Ok(true)
    }

    fn forget(&mut self) -> bool {
        let any = self.chain.has_pending();
        if any {
            self.chain.forget();
            self.races.clear();
            self.lose_chances(1);
            self.note(format_args!("mempools are empty"));
        }
        any
    }

    fn disconnect_some(&mut self) -> Result<bool, Violation> {
        let up: Vec<u16> = self.linked(true);
        let Some(&number) = self.dice.pick(&up) else {
            return Ok(false);
        };
        self.note(format_args!("connection {number} breaks"));
        self.counts.connections += 1;
        self.disconnect(number)?;
        Ok(true)
    }

    fn connect_some(&mut self) -> Result<bool, Violation> {
        let down = self.linked(false);
        let ready: Vec<u16> = down
            .into_iter()
            .filter(|number| self.lsp.is_live() && self.party(Who::Wallet(*number)).is_live())
            .collect();
        let Some(&number) = self.dice.pick(&ready) else {
            return Ok(false);
        };
        self.connect(number)?;
        Ok(true)
    }

    pub(crate) fn linked(&self, up: bool) -> Vec<u16> {
        let numbers = (0u16..).zip(&self.links);
        let numbers = numbers.filter(|(_, link)| link.up == up);
        numbers.map(|(number, _)| number).collect()
    }

    fn crash_some(&mut self) -> Result<bool, Violation> {
        let living: Vec<Who> = self
            .everybody()
            .into_iter()
            .filter(|who| self.party(*who).is_live() && self.party(*who).fuse.is_none())
            .collect();
        let Some(&who) = self.dice.pick(&living) else {
            return Ok(false);
        };
        if self.dice.per_mille(300) {
            self.kill(who)?;
            return Ok(true);
        }
        // Somewhere between two of the next things it does: that will be part of another step.
        let fuse = 1 + self.dice.below(8) as u32;
        self.party_mut(who).fuse = Some(fuse);
        Ok(false)
    }

    fn restart_some(&mut self) -> Result<bool, Violation> {
        let dead: Vec<Who> = self
            .everybody()
            .into_iter()
            .filter(|who| !self.party(*who).is_live() && !self.party(*who).gone)
            .collect();
        let Some(&who) = self.dice.pick(&dead) else {
            return Ok(false);
        };
        self.restart(who)?;
        Ok(true)
    }

    /// Whose rounds silence could end.
    pub(crate) fn waiting(&self) -> Vec<(Who, Attempt)> {
        let mut waiting = Vec::new();
        for who in self.everybody() {
            let Some(live) = &self.party(who).live else {
                continue;
            };
            let waits = live.roles.iter().filter(|(_, role)| role.waits());
            waiting.extend(waits.map(|(attempt, _)| (who, *attempt)));
        }
        waiting
    }

    fn time_out_some(&mut self) -> Result<bool, Violation> {
        let waiting = self.waiting();
        let Some(&(who, attempt)) = self.dice.pick(&waiting) else {
            return Ok(false);
        };
        self.time_out(who, attempt)?;
        Ok(true)
    }

    pub(crate) fn time_out(&mut self, who: Who, attempt: Attempt) -> Result<(), Violation> {
        self.counts.timers += 1;
        let name = crate::observer::name(&attempt);
        self.note(format_args!("{who} has waited long enough in {name}"));
        let effects = self.party_mut(who).role_mut(&attempt).map(Role::timed_out);
        self.queue(who, attempt, effects.unwrap_or_default());
        self.settle()
    }

    fn leave_some(&mut self) -> Result<bool, Violation> {
        let mut staying = Vec::new();
        for number in 0..self.wallets.len() as u16 {
            let wallet = self.party(Who::Wallet(number));
            let Some(live) = &wallet.live else { continue };
            for (attempt, role) in &live.roles {
                let Role::Member(member) = role else { continue };
                if member.path().is_some() && !wallet.disk.exits.contains_key(attempt) {
                    staying.push((number, *attempt));
                }
            }
        }
        let Some(&(number, attempt)) = self.dice.pick(&staying) else {
            return Ok(false);
        };
        let goal = self.reclaimable(number, &attempt);
        self.leave(number, attempt, goal.unwrap_or(Goal::Leave))?;
        Ok(true)
    }

    /// A party dies: only its disk remains, and what it had to say is lost.
    pub(crate) fn kill(&mut self, who: Who) -> Result<(), Violation> {
        self.note(format_args!("{who} dies"));
        self.counts.crashes += 1;
        let idle = !self.due.iter().any(|(other, _, _)| *other == who);
        let party = self.party_mut(who);
        party.stood.clear();
        if let Some(live) = party.live.take().filter(|_| idle) {
            let roles = live.roles.iter();
            party.stood = roles
                .map(|(attempt, role)| (*attempt, role.stands()))
                .collect();
        }
        party.fuse = None;
        self.due.retain(|(other, _, _)| *other != who);
        match who {
            Who::Lsp => (0..self.links.len() as u16).try_for_each(|it| self.disconnect(it)),
            Who::Wallet(number) => self.disconnect(number),
        }
    }
}
