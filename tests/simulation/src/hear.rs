//! What reaches a party: messages, connections, the chain, a restart.

use bitcoin::secp256k1::PublicKey;
use superscalar_factory::coordinator::{Coordinator, FactoryPlan, LspSecrets};
use superscalar_factory::effect::{ChannelRef, Effect, Event};
use superscalar_factory::member::{JoinSecrets, Member};
use superscalar_factory::message::{Attempt, Invite, Message, Refusal, RefusalCode};
use superscalar_factory::wire;

use crate::bugs::Bug;
use crate::channel::{Stage, Toward};
use crate::dice::secret;
use crate::invariants::{Invariant, Violation, ensure};
use crate::network::{End, Origin, Packet};
use crate::observer::name;
use crate::party::{Live, Party, Role, Who, slot_of};
use crate::profile::limits;
use crate::world::World;

/// Ceremonies a wallet takes part in at a time.
const CEREMONIES: usize = 2;

impl World {
    /// Puts a message on its way, as frames.
    pub(crate) fn put(&mut self, who: Who, number: u16, message: &Message, origin: Origin) {
        let to = match who {
            Who::Lsp => End::Wallet,
            Who::Wallet(_) => End::Lsp,
        };
        let link = &mut self.links[usize::from(number)];
        if link.up {
            for frame in wire::frames(message) {
                link.queue(to).push_back(Packet::Factory(frame, origin));
            }
        }
    }

    /// The next packet of a connection arrives.
    pub(crate) fn deliver(&mut self, number: u16, end: End) -> Result<(), Violation> {
        let link = &mut self.links[usize::from(number)];
        let Some(packet) = link.queue(end).pop_front() else {
            return Ok(());
        };
        self.counts.messages += 1;
        let (from, to) = match end {
            End::Lsp => (Who::Wallet(number), Who::Lsp),
            End::Wallet => (Who::Lsp, Who::Wallet(number)),
        };
        match packet {
            Packet::Channel(id, talk) => {
                self.note(format_args!("{from} to {to}: {talk:?}"));
                self.talk(number, end, id, talk)?;
            }
            Packet::Factory(frame, origin) => match link.assembler(end).receive(&frame) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    let typ = message.number();
                    let of = message.attempt().as_ref().map_or(String::new(), name);
                    self.note(format_args!(
                        "{from} to {to}: {origin:?} message {typ} of {of}"
                    ));
                    self.message(from, to, message, origin)?;
                }
                Err(error) => {
                    self.note(format_args!("{from} to {to}: unreadable, {error}"));
                    ensure(origin == Origin::Forged, Invariant::BadInput, || {
                        format!("what {from} said cannot be read: {error}")
                    })?;
                }
            },
        }
        self.settle()
    }

    fn message(
        &mut self,
        from: Who,
        to: Who,
        message: Message,
        origin: Origin,
    ) -> Result<(), Violation> {
        let sender = self.party(from).node;
        let Some(attempt) = message.attempt() else {
            return Ok(());
        };
        let bug = self.bug;
        let party = self.party_mut(to);
        let refusal = matches!(message, Message::Refusal(_));
        match (party.role_mut(&attempt), message) {
            (Some(role), message) => {
                let effects = listen(to, role, sender, message, origin, bug)?;
                self.queue(to, attempt, effects);
                Ok(())
            }
            (None, Message::Invite(invite)) if to != Who::Lsp => self.invited(to, sender, invite),
            (None, _) if refusal => Ok(()),
            _ => self.refuse(to, sender, attempt, RefusalCode::Unknown, ""),
        }
    }

    fn refuse(
        &mut self,
        who: Who,
        peer: PublicKey,
        attempt: Attempt,
        code: RefusalCode,
        field: &str,
    ) -> Result<(), Violation> {
        let field = field.to_owned();
        let refusal = Refusal {
            attempt,
            code,
            field,
        };
        self.send(who, peer, refusal.into())
    }

    fn invited(&mut self, who: Who, lsp: PublicKey, invite: Invite) -> Result<(), Violation> {
        let attempt = invite.header.attempt();
        let Who::Wallet(number) = who else {
            return Ok(());
        };
        let tip = self.party(who).live.as_ref().map_or(0, |live| live.tip);
        let busy = self.party(who).live.as_ref().map_or(0, |live| {
            let roles = live.roles.values();
            roles.filter(|role| role.waits()).count()
        });
        if busy >= CEREMONIES {
            return self.refuse(who, lsp, attempt, RefusalCode::Unexpected, "invite");
        }
        let place = slot_of(&(attempt, invite.slot));
        let keys = self.keys(ChannelRef::first(place));
        let (mut salt, mut nonce_randomness) = (self.dice.bytes(), self.dice.bytes());
        if self.bug == Some(Bug::SameRandomness) {
            salt = secret(self.seed, "salt", number.into());
            nonce_randomness = salt;
        }
        let seed = self.party(who).seed;
        let joined = Member::join(
            lsp,
            invite,
            &limits(),
            JoinSecrets {
                seed: &seed,
                salt,
                nonce_randomness,
            },
            self.payout(number),
            keys.funding(Toward::Member),
            tip,
        );
        match joined {
            Ok((role, effects)) => {
                let mut role = Role::Member(Box::new(role));
                role.set_conditions(self.bug);
                if let Some(live) = &mut self.party_mut(who).live {
                    live.roles.insert(attempt, role);
                }
                self.queue(who, attempt, effects);
                Ok(())
            }
            Err(refused) => self.refuse(who, lsp, attempt, refused.code, refused.field),
        }
    }

    /// Where a wallet is paid.
    pub(crate) fn payout(&self, number: u16) -> bitcoin::ScriptBuf {
        self.payouts[usize::from(number)].clone()
    }

    /// The LSP wants a factory for some of those that are connected.
    pub(crate) fn build(&mut self) -> Result<bool, Violation> {
        let tip = self.chain.tip();
        let Some(live) = &self.lsp.live else {
            return Ok(false);
        };
        let lived_in = live.roles.values().filter(|role| match role {
            Role::Coordinator(role) => {
                let expiry = role
                    .invites()
                    .first()
                    .map_or(0, |invite| invite.header.expiry);
                role.ended().is_none() && tip < expiry
            }
            Role::Member(_) => false,
        });
        if lived_in.count() >= self.profile.factories {
            return Ok(false);
        }
        let mut ready: Vec<u16> = self.linked(true);
        if ready.len() < 2 {
            return Ok(false);
        }
        let most = match self.profile.name {
            "large" => ready.len(),
            _ => ready.len().min(8),
        };
        let least = match self.profile.name {
            "large" => (ready.len() * 3 / 4).max(2),
            _ => 2,
        };
        let wanted = self.dice.between(least as u64, most as u64) as usize;
        while ready.len() > wanted {
            let one = self.dice.below(ready.len());
            ready.remove(one);
        }
        let plan = self.profile.plan(self.seed, &mut self.dice, &ready, tip);
        self.begin(plan)?;
        self.settle()?;
        Ok(true)
    }

    pub(crate) fn begin(&mut self, plan: FactoryPlan) -> Result<(), Violation> {
        let attempt = plan.attempt;
        let (salt, randomness) = (self.dice.bytes(), self.dice.bytes());
        let secrets = LspSecrets::new(&self.lsp.seed, salt, randomness);
        let keys: Vec<PublicKey> = (0..plan.seats.len() as u16)
            .map(|slot| self.keys(ChannelRef::first(slot_of(&(attempt, slot)))))
            .map(|keys| keys.funding(Toward::Lsp))
            .collect();
        let tip = self.chain.tip();
        let started = Coordinator::start(&plan, secrets, keys, tip);
        let (role, effects) = match started {
            Ok(started) => started,
            // A retry with fewer members may have a shape that does not fit its delays.
            Err(error) => {
                self.note(format_args!("no factory: {error}"));
                return Ok(());
            }
        };
        self.counts.attempts += 1;
        let (members, shape) = (plan.seats.len(), &plan.shape);
        let (policy, expiry) = (plan.policy, plan.expiry);
        self.trail.note(
            self.steps,
            format_args!(
                "{} for {members} in {shape:?}, {policy:?} until {expiry}",
                name(&attempt)
            ),
        );
        let mut role = Role::Coordinator(Box::new(role));
        role.set_conditions(self.bug);
        if let Some(live) = &mut self.lsp.live {
            live.roles.insert(attempt, role);
            live.plans.insert(attempt, plan);
        }
        self.queue(Who::Lsp, attempt, effects);
        Ok(())
    }

    pub(crate) fn disconnect(&mut self, number: u16) -> Result<(), Violation> {
        self.links[usize::from(number)].cut();
        self.withheld.retain(|(_, to, _)| *to != number);
        self.lose_half_open(Some(number));
        self.settle()
    }

    pub(crate) fn connect(&mut self, number: u16) -> Result<(), Violation> {
        self.note(format_args!("connection {number} is made"));
        self.counts.connections += 1;
        self.links[usize::from(number)].connect();
        let wallet = Who::Wallet(number);
        for (who, peer) in [(Who::Lsp, self.party(wallet).node), (wallet, self.lsp.node)] {
            let Some(live) = &mut self.party_mut(who).live else {
                continue;
            };
            let said: Vec<(Attempt, Vec<Effect>)> = live
                .roles
                .iter_mut()
                .map(|(attempt, role)| (*attempt, role.connected(peer)))
                .collect();
            for (attempt, effects) in said {
                self.queue(who, attempt, effects);
            }
            self.settle()?;
        }
        self.reestablish(number)
    }

    /// A party looks at the chain: every role hears of the tip and of its funding, what is not
    /// confirmed is published again, exits go on.
    pub(crate) fn look(&mut self, who: Who) -> Result<(), Violation> {
        self.counts.looks += 1;
        let (tip, seen) = (self.chain.tip(), self.chain.version);
        self.note(format_args!("{who} sees {tip}"));
        let Some(live) = &mut self.party_mut(who).live else {
            return Ok(());
        };
        (live.tip, live.seen) = (tip, seen);
        // First what became of the fundings: a role that is told of a height only would count the
        // depth of a block that is gone.
        self.look_at_fundings(who)?;
        let Some(live) = &mut self.party_mut(who).live else {
            return Ok(());
        };
        let told: Vec<(Attempt, Vec<Effect>)> = live
            .roles
            .iter_mut()
            .map(|(attempt, role)| (*attempt, role.height(tip)))
            .collect();
        for (attempt, effects) in told {
            self.queue(who, attempt, effects);
        }
        self.settle()?;
        self.look_at_trees(who)?;
        self.republish(who);
        match who {
            Who::Lsp => self.guard()?,
            Who::Wallet(number) => self.step_exits(number)?,
        }
        self.settle()
    }

    /// What a role must know of its tree: that somebody opens it, and what only the LSP could sign.
    fn look_at_trees(&mut self, who: Who) -> Result<(), Violation> {
        let Some(live) = &self.party(who).live else {
            return Ok(());
        };
        let mut open = Vec::new();
        for (attempt, role) in &live.roles {
            let funding = match role {
                Role::Coordinator(role) => role.built().map(|built| built.tree.funding),
                Role::Member(role) => role.tree().map(|tree| tree.funding),
            };
            if funding.is_some_and(|funding| self.chain.spender(&funding).is_some()) {
                open.push((*attempt, live.opened.contains(attempt)));
            }
        }
        for (attempt, known) in open {
            // An LSP that cheats goes on as if nothing had happened.
            if !known && (who != Who::Lsp || self.lsp.is_honest()) {
                if let Some(live) = &mut self.party_mut(who).live {
                    live.opened.insert(attempt);
                }
                let effects = self.party_mut(who).role_mut(&attempt).map(Role::tree_seen);
                self.queue(who, attempt, effects.unwrap_or_default());
            }
            self.tell_states(who, attempt);
            self.settle()?;
        }
        Ok(())
    }

    pub(crate) fn look_at_fundings(&mut self, who: Who) -> Result<(), Violation> {
        let eager = self.bug == Some(Bug::UnburiedCounts) && who != Who::Lsp;
        let Some(live) = &self.party(who).live else {
            return Ok(());
        };
        for (attempt, (txid, told)) in live.watched.clone() {
            let mut found = self.chain.height_of(&txid);
            let mut tx = self.chain.transaction(&txid).cloned();
            if eager && found.is_none() && self.chain.is_pending(&txid) {
                found = Some(1);
                tx = self.fundings.get(&txid).cloned();
            }
            if found == told {
                continue;
            }
            if told.is_some() {
                let effects = self
                    .party_mut(who)
                    .role_mut(&attempt)
                    .map(Role::funding_reorged);
                self.queue(who, attempt, effects.unwrap_or_default());
            }
            if let (Some(height), Some(tx)) = (found, tx) {
                let role = self.party_mut(who).role_mut(&attempt);
                let effects = role.map(|role| role.funding_confirmed(tx, height));
                self.queue(who, attempt, effects.unwrap_or_default());
            }
            if let Some(live) = &mut self.party_mut(who).live
                && let Some(watched) = live.watched.get_mut(&attempt)
            {
                watched.1 = found;
            }
        }
        Ok(())
    }

    fn republish(&mut self, who: Who) {
        let chain = &mut self.chain;
        let party: &mut Party = match who {
            Who::Lsp => &mut self.lsp,
            Who::Wallet(number) => &mut self.wallets[usize::from(number)],
        };
        let Some(live) = &mut party.live else { return };
        live.publishing
            .retain(|tx| chain.height_of(&tx.compute_txid()).is_none());
        for tx in &live.publishing {
            let _ = chain.submit(tx);
        }
    }

    /// A party is back: its journals are replayed, nothing else is left of it.
    pub(crate) fn restart(&mut self, who: Who) -> Result<(), Violation> {
        self.note(format_args!("{who} is back"));
        self.counts.crashes += 1;
        let (tip, bug) = (self.chain.tip(), self.bug);
        let party = self.party_mut(who);
        party.life += 1;
        let mut live = Live {
            tip,
            ..Live::default()
        };
        let mut due = Vec::new();
        for (attempt, records) in &mut party.disk.journals {
            if let Some(bug) = bug.filter(|_| who != Who::Lsp) {
                bug.read(records);
            }
            let replayed = Role::replay(who, &party.seed, records, tip);
            let (mut role, effects) = replayed.map_err(|error| {
                let what = format!("{who} cannot replay {}: {error}", name(attempt));
                Violation::new(Invariant::CrashAnywhere, what)
            })?;
            role.set_conditions(bug);
            let (stood, stands) = (party.stood.get(attempt), role.stands());
            let resumed = stood.is_none_or(|stood| stood.resumes_as(who, &stands));
            ensure(resumed, Invariant::CrashAnywhere, || {
                format!(
                    "{who} stood at {stood:?} in {} and is {stands:?}",
                    name(attempt)
                )
            })?;
            live.roles.insert(*attempt, role);
            due.push((*attempt, effects));
        }
        party.live = Some(live);
        for (attempt, effects) in due {
            self.queue(who, attempt, effects);
        }
        if who == Who::Lsp && bug != Some(Bug::CoinsLocked) {
            self.free_unnamed_fundings();
        }
        self.settle()?;
        if who == Who::Lsp {
            self.lose_half_open(None);
            self.tell_payments();
        }
        self.settle()?;
        self.tell_channels(who);
        self.settle()?;
        match self.party(who).is_live() {
            true => self.look(who),
            false => Ok(()),
        }
    }

    /// Coins reserved for a factory that no journal names are free.
    fn free_unnamed_fundings(&mut self) {
        let Some(live) = &self.lsp.live else { return };
        let named: Vec<_> = live
            .roles
            .values()
            .filter_map(|role| match role {
                Role::Coordinator(role) => Some(role.built()?.tree.funding.txid),
                Role::Member(_) => None,
            })
            .collect();
        self.lsp
            .disk
            .reserved
            .retain(|txid, _| named.contains(txid));
    }

    /// A channel whose `funding_created` may have left is lost when the connection or the LSP goes
    /// before `funding_signed` came.
    fn lose_half_open(&mut self, number: Option<u16>) {
        if !self.lsp.is_live() {
            return;
        }
        let half_open: Vec<_> = self
            .lsp
            .disk
            .channels
            .iter()
            .filter(|(_, channel)| channel.stage == Stage::Committed)
            .map(|(id, channel)| (*id, channel.agreed.peer))
            .collect();
        for (id, peer) in half_open {
            if number.is_some() && self.wallet_of(&peer) != number {
                continue;
            }
            self.close(Who::Lsp, id);
            let role = self.lsp.role_mut(&id.slot.attempt);
            let effects = role.map(|role| role.channel_lost(id));
            self.queue(Who::Lsp, id.slot.attempt, effects.unwrap_or_default());
        }
    }
}

/// A role hears a message. What it refuses must not have changed it.
fn listen(
    who: Who,
    role: &mut Role,
    from: PublicKey,
    message: Message,
    origin: Origin,
    bug: Option<Bug>,
) -> Result<Vec<Effect>, Violation> {
    let forged = origin == Origin::Forged;
    let number = message.number();
    let before = (role.phase(), forged.then(|| format!("{role:?}")));
    let effects = role.message(from, message);
    let refused = matches!(
        effects.as_slice(),
        [
            Effect::Send {
                message: Message::Refusal(_),
                ..
            },
            Effect::Emit(Event::Refused { .. })
        ]
    );
    if refused && who != Who::Lsp && bug == Some(Bug::RefusalChangesState) {
        role.timed_out();
    }
    let after = (role.phase(), forged.then(|| format!("{role:?}")));
    ensure(!refused || before == after, Invariant::BadInput, || {
        format!(
            "{who} refused message {number} and changed from {} to {}",
            before.0, after.0
        )
    })?;
    Ok(effects)
}
