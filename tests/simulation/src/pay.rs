//! The channel layer at work: opening, payments both ways, what is said again after a reconnect.

use superscalar_factory::effect::{ChannelRef, Effect};

use crate::bugs::Bug;
use crate::channel::{Balances, Change, Channel, Htlc, Kind, Stage, Talk, Toward, hash};
use crate::invariants::{Invariant, Violation, ensure};
use crate::network::{End, Packet};
use crate::observer::name;
use crate::party::{Who, place_of};
use crate::world::World;

/// Least amount of an HTLC, in msat: smaller ones cannot be enforced.
const MIN_HTLC_MSAT: u64 = 5_000_000;

impl World {
    fn tell(&mut self, number: u16, to: End, id: ChannelRef, talk: Talk) {
        let link = &mut self.links[usize::from(number)];
        if link.up {
            let packet = Packet::Channel(id, talk);
            link.queue(to).push_back(packet);
        }
    }

    /// LSP: opens an agreed channel, once.
    pub(crate) fn open_channel(&mut self, id: ChannelRef) {
        let Some(number) = self.wallet_in(&place_of(&id)) else {
            return;
        };
        if !self.links[usize::from(number)].up {
            return;
        }
        let Some(channel) = self.lsp.disk.channels.get_mut(&id) else {
            return;
        };
        if channel.stage == Stage::Agreed {
            channel.stage = Stage::Committed;
            let agreed = Box::new(channel.agreed.clone());
            self.tell(number, End::Wallet, id, Talk::Created(agreed));
        }
    }

    pub(crate) fn close(&mut self, who: Who, id: ChannelRef) {
        let party = self.party_mut(who);
        if let Some(channel) = party.disk.channels.get_mut(&id) {
            channel.stage = Stage::Over;
            channel.proposed = None;
        }
        if let Some(live) = &mut party.live {
            live.forget(&id);
        }
    }

    /// What one end of a channel says reaches the other.
    pub(crate) fn talk(
        &mut self,
        number: u16,
        at: End,
        id: ChannelRef,
        talk: Talk,
    ) -> Result<(), Violation> {
        match (at, talk) {
            (End::Wallet, Talk::Created(channel)) => {
                let disk = &mut self.party_mut(Who::Wallet(number)).disk;
                match disk.channels.get_mut(&id) {
                    Some(own) if own.stage == Stage::Agreed && own.matches(&channel) => {
                        own.stage = Stage::Held;
                        own.signed = true;
                        self.wrote(Who::Wallet(number), &id.slot.attempt)?;
                        self.tell(number, End::Lsp, id, Talk::Signed);
                        self.held(Who::Wallet(number), id);
                    }
                    _ => self.tell(number, End::Lsp, id, Talk::Gone),
                }
                Ok(())
            }
            (End::Lsp, Talk::Signed) => {
                let channel = self.lsp.disk.channels.get_mut(&id);
                if let Some(channel) = channel.filter(|it| it.stage == Stage::Committed) {
                    channel.stage = Stage::Held;
                    self.held(Who::Lsp, id);
                }
                Ok(())
            }
            (End::Lsp, Talk::Gone) => {
                self.lost(Who::Lsp, id);
                Ok(())
            }
            (End::Wallet, Talk::Gone) => {
                self.lost(Who::Wallet(number), id);
                Ok(())
            }
            (
                End::Wallet,
                Talk::Propose {
                    number: next,
                    change,
                },
            ) => self.proposed(number, id, next, change),
            (End::Lsp, Talk::Accept { number: next }) => self.accepted(id, next),
            (End::Lsp, Talk::Decline { number: next }) => {
                let channel = self.lsp.disk.channels.get_mut(&id);
                if let Some(channel) = channel.filter(|it| it.balances.number + 1 == next) {
                    channel.proposed = None;
                }
                self.tell_rested(Who::Lsp, &id.slot);
                Ok(())
            }
            (End::Lsp, Talk::Reveal(preimage)) => {
                let key = hash(&preimage);
                let channel = self.lsp.disk.channels.get_mut(&id);
                if let Some(channel) = channel.filter(|it| it.balances.htlc(&key).is_some()) {
                    channel.preimages.insert(key, preimage);
                    self.propose(id, Change::Settle(preimage));
                }
                Ok(())
            }
            (End::Lsp, Talk::Pay { amount_msat, hash }) => {
                self.forward(id, amount_msat, hash);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn held(&mut self, who: Who, id: ChannelRef) {
        let unpaid = who == Who::Lsp && Kind::of(&id) == Kind::Bought;
        if unpaid && self.bug == Some(Bug::UnpaidUsed) {
            let used = vec![Effect::ActivateBought(id)];
            self.queue(who, id.slot.attempt, used);
        }
        let role = self.party_mut(who).role_mut(&id.slot.attempt);
        let effects = role.map(|role| role.channel_held(id));
        self.queue(who, id.slot.attempt, effects.unwrap_or_default());
    }

    fn lost(&mut self, who: Who, id: ChannelRef) {
        let channel = self.party(who).disk.channels.get(&id);
        if channel.is_none_or(|channel| matches!(channel.stage, Stage::Over | Stage::Retired)) {
            return;
        }
        // A channel with a past is not given up because the other end says so.
        if self.party(who).is_open(&id) {
            return;
        }
        // A role that gives a channel up says so, but of what is bought it only hears.
        let delivered = self.party(who).role(&id.slot.attempt);
        let delivered = delivered.is_none_or(|role| role.has_delivered(&id));
        if !delivered {
            self.close(who, id);
        }
        let role = self.party_mut(who).role_mut(&id.slot.attempt);
        let effects = role.map(|role| role.channel_lost(id));
        self.queue(who, id.slot.attempt, effects.unwrap_or_default());
    }

    /// After a reconnect: what the other end may not have heard.
    pub(crate) fn reestablish(&mut self, number: u16) -> Result<(), Violation> {
        let wallet = self.party(Who::Wallet(number)).node;
        let mut said = Vec::new();
        for (id, channel) in &self.lsp.disk.channels {
            if channel.agreed.peer != wallet || !self.lsp.is_live() {
                continue;
            }
            match (&channel.proposed, channel.stage) {
                (_, Stage::Over) => said.push((*id, End::Wallet, Talk::Gone)),
                (Some(change), Stage::Held) => {
                    let (number, change) = (channel.balances.number + 1, change.clone());
                    said.push((*id, End::Wallet, Talk::Propose { number, change }));
                }
                _ => {}
            }
        }
        let party = self.party(Who::Wallet(number));
        for (id, channel) in party.disk.channels.iter().filter(|_| party.is_live()) {
            for htlc in &channel.balances.htlcs {
                if let (true, Some(preimage)) = (
                    channel.revealed.contains(&htlc.hash),
                    channel.preimages.get(&htlc.hash),
                ) {
                    said.push((*id, End::Lsp, Talk::Reveal(*preimage)));
                }
            }
        }
        for (id, to, talk) in said {
            self.tell(number, to, id, talk);
        }
        Ok(())
    }

    /// Somebody begins or answers a payment.
    pub(crate) fn pay_some(&mut self) -> Result<bool, Violation> {
        let Some(live) = &self.lsp.live else {
            return Ok(false);
        };
        let open: Vec<ChannelRef> = live.open.iter().copied().collect();
        let Some(&id) = self.dice.pick(&open) else {
            return Ok(false);
        };
        let Some(number) = self.wallet_in(&place_of(&id)) else {
            return Ok(false);
        };
        let wallet = Who::Wallet(number);
        if !self.links[usize::from(number)].up || !self.party(wallet).is_live() {
            return Ok(false);
        }
        // What is to come to rest does so.
        let rests = self.lsp.is_frozen(&id);
        let done = match self.dice.below(4) {
            0 | 2 if rests => self.answer(id),
            0 => self.invoice(number, id)?,
            1 => self.reveal_some(number, id)?,
            2 => self.ask(number, id)?,
            _ => self.answer(id),
        };
        self.counts.payments += u64::from(done);
        Ok(done)
    }

    /// The LSP forwards an HTLC to a member: mostly one it has an invoice for.
    fn invoice(&mut self, number: u16, id: ChannelRef) -> Result<bool, Violation> {
        let tip = self.chain.tip();
        let Some(channel) = self.lsp.disk.channels.get(&id) else {
            return Ok(false);
        };
        let rests = self.lsp.is_frozen(&id) && self.lsp.is_honest();
        if channel.proposed.is_some() || channel.stage != Stage::Held || rests {
            return Ok(false);
        }
        let agreed = &channel.agreed;
        let expiry = tip + u32::from(agreed.timing.invoice_min_final()) + 12;
        let most = channel.balances.spendable_msat(Toward::Member);
        if expiry > agreed.timing.last_htlc_expiry(agreed.expiry) || most < MIN_HTLC_MSAT {
            return Ok(false);
        }
        let amount_msat = self.dice.between(MIN_HTLC_MSAT, most.min(200_000_000));
        let preimage = self.dice.bytes();
        let htlc = Htlc {
            toward: Toward::Member,
            amount_msat,
            hash: hash(&preimage),
            expiry,
        };
        if self.dice.per_mille(850) {
            let disk = &mut self.party_mut(Who::Wallet(number)).disk;
            if let Some(channel) = disk.channels.get_mut(&id) {
                channel.preimages.insert(htlc.hash, preimage);
            }
            self.wrote(Who::Wallet(number), &id.slot.attempt)?;
            if self.bug == Some(Bug::EarlyPreimage) {
                self.reveal(number, id, preimage)?;
            }
        }
        Ok(self.propose(id, Change::Add(htlc)))
    }

    /// A member claims an HTLC it has an invoice for.
    fn reveal_some(&mut self, number: u16, id: ChannelRef) -> Result<bool, Violation> {
        let party = self.party(Who::Wallet(number));
        let tip = party.live.as_ref().map_or(0, |live| live.tip);
        let Some(channel) = party.disk.channels.get(&id) else {
            return Ok(false);
        };
        let agreed = &channel.agreed;
        let leaving = party.disk.exits.contains_key(&id.slot.attempt);
        if !party.is_open(&id) || leaving {
            return Ok(false);
        }
        let exit_delay = agreed.timing.exit_delay(agreed.layers);
        let due = channel.balances.htlcs.iter().find(|htlc| {
            htlc.toward == Toward::Member
                && !channel.revealed.contains(&htlc.hash)
                && htlc.expiry >= tip + exit_delay
        });
        let preimage = due
            .and_then(|htlc| channel.preimages.get(&htlc.hash))
            .copied();
        let Some(preimage) = preimage else {
            return Ok(false);
        };
        self.reveal(number, id, preimage)?;
        Ok(true)
    }

    fn reveal(&mut self, number: u16, id: ChannelRef, preimage: [u8; 32]) -> Result<(), Violation> {
        self.check_reveal(number, &id, &hash(&preimage))?;
        let disk = &mut self.party_mut(Who::Wallet(number)).disk;
        if let Some(channel) = disk.channels.get_mut(&id) {
            channel.revealed.insert(hash(&preimage));
        }
        self.wrote(Who::Wallet(number), &id.slot.attempt)?;
        self.note(format_args!(
            "wallet {number} reveals a preimage in {}",
            name(&id.slot.attempt)
        ));
        self.tell(number, End::Lsp, id, Talk::Reveal(preimage));
        self.burn(Who::Wallet(number))
    }

    /// A member asks the LSP to pay somebody.
    fn ask(&mut self, number: u16, id: ChannelRef) -> Result<bool, Violation> {
        let preimage = self.dice.bytes();
        let party = self.party(Who::Wallet(number));
        let leaving = party.disk.exits.contains_key(&id.slot.attempt);
        let Some(channel) = party.disk.channels.get(&id) else {
            return Ok(false);
        };
        let most = channel.balances.spendable_msat(Toward::Lsp);
        let rests = party.is_frozen(&id);
        if leaving || rests || !party.is_open(&id) || most < MIN_HTLC_MSAT {
            return Ok(false);
        }
        let amount_msat = self.dice.between(MIN_HTLC_MSAT, most);
        let hash = hash(&preimage);
        let disk = &mut self.party_mut(Who::Wallet(number)).disk;
        if let Some(channel) = disk.channels.get_mut(&id) {
            channel.asked.insert(hash);
        }
        self.wrote(Who::Wallet(number), &id.slot.attempt)?;
        // Whoever is paid will tell the LSP.
        if let Some(channel) = self.lsp.disk.channels.get_mut(&id) {
            channel.preimages.insert(hash, preimage);
        }
        self.tell(number, End::Lsp, id, Talk::Pay { amount_msat, hash });
        Ok(true)
    }

    fn forward(&mut self, id: ChannelRef, amount_msat: u64, hash: [u8; 32]) {
        let Some(channel) = self.lsp.disk.channels.get(&id) else {
            return;
        };
        let agreed = &channel.agreed;
        let expiry = self.chain.tip() + agreed.timing.exit_delay(agreed.layers) + 60;
        let rests = self.lsp.is_frozen(&id) && self.lsp.is_honest();
        let open = self.lsp.is_open(&id) && channel.proposed.is_none() && !rests;
        if open && expiry <= agreed.timing.last_htlc_expiry(agreed.expiry) {
            let toward = Toward::Lsp;
            self.propose(
                id,
                Change::Add(Htlc {
                    toward,
                    amount_msat,
                    hash,
                    expiry,
                }),
            );
        }
    }

    /// The LSP settles or cancels an HTLC.
    fn answer(&mut self, id: ChannelRef) -> bool {
        let Some(channel) = self.lsp.disk.channels.get(&id) else {
            return false;
        };
        let htlcs = &channel.balances.htlcs;
        if channel.proposed.is_some() || htlcs.is_empty() {
            return false;
        }
        let htlc = &htlcs[self.dice.below(htlcs.len())];
        let known = channel.preimages.get(&htlc.hash);
        let change = match (htlc.toward, known) {
            (_, Some(preimage)) if self.dice.per_mille(700) => Change::Settle(*preimage),
            (Toward::Lsp, _) | (Toward::Member, None) => Change::Cancel(htlc.hash),
            (Toward::Member, Some(preimage)) => Change::Settle(*preimage),
        };
        self.propose(id, change)
    }

    /// LSP: a change of a channel, on disk before it leaves.
    fn propose(&mut self, id: ChannelRef, change: Change) -> bool {
        let Some(number) = self.wallet_in(&place_of(&id)) else {
            return false;
        };
        let Some(channel) = self.lsp.disk.channels.get_mut(&id) else {
            return false;
        };
        let possible = channel.stage == Stage::Held
            && channel.proposed.is_none()
            && channel.balances.after(&change).is_some();
        if possible {
            channel.proposed = Some(change.clone());
            let next = channel.balances.number + 1;
            let talk = Talk::Propose {
                number: next,
                change,
            };
            self.tell(number, End::Wallet, id, talk);
        }
        possible
    }

    /// Member: accepts a change once it is durable, or declines it.
    fn proposed(
        &mut self,
        number: u16,
        id: ChannelRef,
        next: u64,
        change: Change,
    ) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        let party = self.party(who);
        let open = party.is_open(&id) && !party.disk.exits.contains_key(&id.slot.attempt);
        let Some(channel) = party.disk.channels.get(&id) else {
            self.tell(number, End::Lsp, id, Talk::Gone);
            return Ok(());
        };
        if channel.balances.number == next {
            // Said again: it is durable.
            self.tell(number, End::Lsp, id, Talk::Accept { number: next });
            return Ok(());
        }
        let follows = channel.balances.number + 1 == next && open;
        let adds = match &change {
            Change::Add(htlc) => self.may_take(party, &id, htlc),
            _ => true,
        };
        let after = acceptable(channel, &change).filter(|_| follows && adds);
        let Some(mut after) = after else {
            self.tell(number, End::Lsp, id, Talk::Decline { number: next });
            return Ok(());
        };
        if self.bug == Some(Bug::BalanceOffByOne) {
            after.member_msat += 1_000;
        }
        let disk = &mut self.party_mut(who).disk;
        if let Some(channel) = disk.channels.get_mut(&id) {
            channel.balances = after;
        }
        self.note(format_args!(
            "wallet {number} holds commitment {next} of {}",
            name(&id.slot.attempt)
        ));
        self.check_channel(who, &id)?;
        self.wrote(who, &id.slot.attempt)?;
        self.burn(who)?;
        self.tell(number, End::Lsp, id, Talk::Accept { number: next });
        self.tell_rested(who, &id.slot);
        Ok(())
    }

    /// LSP: the member holds the commitment.
    fn accepted(&mut self, id: ChannelRef, next: u64) -> Result<(), Violation> {
        let Some(channel) = self.lsp.disk.channels.get_mut(&id) else {
            return Ok(());
        };
        let expected = channel.balances.number + 1 == next;
        let Some(change) = channel.proposed.take_if(|_| expected) else {
            return Ok(());
        };
        if let Some(after) = channel.balances.after(&change) {
            channel.balances = after;
        }
        self.check_channel(Who::Lsp, &id)?;
        self.burn(Who::Lsp)?;
        // A preimage that came while another change was under way.
        let due = self.lsp.disk.channels.get(&id).and_then(|channel| {
            let mut htlcs = channel.balances.htlcs.iter();
            let revealed = |htlc: &&Htlc| htlc.toward == Toward::Member;
            htlcs
                .find(revealed)
                .and_then(|htlc| channel.preimages.get(&htlc.hash))
                .copied()
        });
        if let Some(preimage) = due {
            self.propose(id, Change::Settle(preimage));
        }
        self.tell_rested(Who::Lsp, &id.slot);
        Ok(())
    }

    /// Each end's money is what it was; two ends that are at the same commitment agree on it.
    fn check_channel(&self, who: Who, id: &ChannelRef) -> Result<(), Violation> {
        if !self.party(who).is_honest() {
            return Ok(());
        }
        let Some(channel) = self.party(who).disk.channels.get(id) else {
            return Ok(());
        };
        self.check_limbo(who, id)?;
        let all = channel.agreed.capacity.to_sat() * 1_000;
        let total = channel.balances.total_msat();
        ensure(total == all, Invariant::Conservation, || {
            format!("{who} has {total} msat in a channel of {all}")
        })?;
        let number = self.wallet_in(&place_of(id));
        let other = match (who, number) {
            (Who::Wallet(_), _) => Some(&self.lsp),
            (Who::Lsp, Some(number)) => Some(self.party(Who::Wallet(number))),
            (Who::Lsp, None) => None,
        };
        let other = other.filter(|other| other.is_honest());
        let Some(other) = other.and_then(|other| other.disk.channels.get(id)) else {
            return Ok(());
        };
        let (own, theirs): (&Balances, &Balances) = (&channel.balances, &other.balances);
        let same = own.number != theirs.number || own == theirs;
        let near = own.number.abs_diff(theirs.number) <= 1;
        ensure(same && near, Invariant::Conservation, || {
            format!("the ends of a channel are at {own:?} and {theirs:?}")
        })
    }
}

/// The state after a change a member agrees to: its own HTLCs are paid or kept, and it pays only
/// what it asked for.
fn acceptable(channel: &Channel, change: &Change) -> Option<Balances> {
    let agreed = &channel.agreed;
    let after = channel.balances.after(change)?;
    let fine = match change {
        Change::Add(htlc) => {
            let in_time = htlc.expiry <= agreed.timing.last_htlc_expiry(agreed.expiry);
            in_time && (htlc.toward == Toward::Member || channel.asked.contains(&htlc.hash))
        }
        Change::Settle(_) => true,
        Change::Cancel(hash) => {
            let toward = channel.balances.htlc(hash).map(|htlc| htlc.toward);
            toward == Some(Toward::Lsp) || !channel.revealed.contains(hash)
        }
    };
    fine.then_some(after)
}
