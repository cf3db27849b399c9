//! Whether members' money is safe right now, and whether a world that has come to rest is whole.

use bitcoin::Amount;
use superscalar_factory::exit::Goal;
use superscalar_factory::journal::Record;
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;

use crate::channel::{Stage, Toward};
use crate::invariants::{Invariant, Violation, ensure};
use crate::leave::is_activated;
use crate::observer::name;
use crate::party::{Kept, Place, Who};
use crate::recover::{self, Holding};
use crate::world::World;

impl World {
    /// Everybody's money, from what is on disk.
    pub(crate) fn check_everybody(&mut self) -> Result<(), Violation> {
        for number in 0..self.wallets.len() as u16 {
            let disk = &self.party(Who::Wallet(number)).disk;
            for attempt in disk.journals.keys().copied().collect::<Vec<_>>() {
                self.check_money(number, &attempt, true)?;
            }
        }
        Ok(())
    }

    /// Everybody in a factory that is about to be funded can leave it.
    pub(crate) fn check_all_complete(&mut self, attempt: &Attempt) -> Result<(), Violation> {
        let places: Vec<Place> = self.lsp.disk.channels.keys().copied().collect();
        for place in places.into_iter().filter(|place| place.0 == *attempt) {
            let Some(number) = self.wallet_in(&place) else {
                continue;
            };
            if !self.party(Who::Wallet(number)).is_honest() {
                continue;
            }
            let path = self.stored_path(Who::Wallet(number), place)?;
            ensure(path.is_some(), Invariant::FundedLast, || {
                let name = name(attempt);
                format!("{name} is published, wallet {number} has no complete path")
            })?;
        }
        Ok(())
    }

    /// Whether a member counts on this factory: it existed, or its LSP has paid for it.
    pub(crate) fn counts_on(&self, number: u16, attempt: &Attempt) -> bool {
        let records = self.party(Who::Wallet(number)).records(attempt);
        let published = self.lsp.is_honest() && self.observer.is_published(attempt);
        let ended = |record: &Record| matches!(record, Record::Ended(_));
        let signed = |record: &Record| matches!(record, Record::MemberRootPartial(_));
        records.iter().any(is_activated)
            || (published && records.iter().any(signed) && !records.iter().any(ended))
    }

    /// Whether a member can bring its balance home, alone, from its disk. Unless `afresh`, nothing
    /// is done if neither chain nor channel have changed since the last time.
    pub(crate) fn check_money(
        &mut self,
        number: u16,
        attempt: &Attempt,
        afresh: bool,
    ) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        if !self.party(who).is_honest() || !self.counts_on(number, attempt) {
            return Ok(());
        }
        let joined = self.party(who).records(attempt).first();
        let Some(Record::MemberJoined(joined)) = joined else {
            return Err(lost(number, attempt, "has lost its join"));
        };
        let (header, place) = (joined.invite.header.clone(), (*attempt, joined.invite.slot));
        let tip = self.chain.tip();
        let exit_delay = header.timing.exit_delay(header.shape.layers());
        if header.policy == TimeoutPolicy::LspReclaims && tip + exit_delay > header.expiry {
            // Whoever stays that long has been warned and forced out before.
            return Ok(());
        }
        let disk = &self.party(who).disk;
        let channel = disk.channels.get(&place);
        if channel.is_some_and(|channel| channel.stage == Stage::Over) {
            return Ok(());
        }
        let state = (
            self.chain.version,
            channel.map_or(0, |channel| channel.balances.number),
        );
        if !afresh && self.checked.get(&place) == Some(&state) {
            return Ok(());
        }
        self.keep_path(who, place)?;
        let fresh = match self.party(who).is_live() {
            true => None,
            false => self.stored_path(who, place)?.map(|path| Kept {
                watched: path.watched(),
                path,
            }),
        };
        let keys = self.keys(place);
        let party = self.party(who);
        let kept = party.live.as_ref().and_then(|live| live.kept.get(&place));
        let Some(kept) = kept.or(fresh.as_ref()) else {
            return Err(lost(number, attempt, "has no complete path on disk"));
        };
        let funding = kept.path.funding();
        let unconfirmed = match self.chain.height_of(&funding.txid) {
            Some(_) => None,
            // Its LSP will see to it that it confirms (again), if it is honest.
            None => match self.fundings.get(&funding.txid) {
                Some(tx) if self.lsp.is_honest() => Some(tx),
                _ => return Ok(()),
            },
        };
        let payout = self.payout(number);
        let holding = Holding {
            path: &kept.path,
            watched: &kept.watched,
            channel: party.disk.channels.get(&place),
            keys: &keys,
            payout: &payout,
        };
        let due = match holding.channel {
            Some(channel) => recover::due(&channel.balances, &kept.path),
            None => Amount::ZERO,
        };
        let mut ways = vec![(Goal::Leave, due)];
        if afresh && header.policy == TimeoutPolicy::MembersReclaim {
            ways.push((Goal::Reclaim, due));
        }
        for (goal, due) in ways {
            let alone = recover::alone(&self.chain, unconfirmed, &holding, goal);
            let recovered = alone.map_err(|error| {
                lost(
                    number,
                    attempt,
                    &format!("cannot leave ({goal:?}): {error}"),
                )
            })?;
            ensure(recovered.balance >= due, Invariant::Recoverability, || {
                format!(
                    "wallet {number} gets {} of {due} out of {}",
                    recovered.balance,
                    name(attempt)
                )
            })?;
        }
        self.counts.recoveries += 1;
        self.checked.insert(place, state);
        Ok(())
    }

    /// A preimage may leave: what it pays for is on disk, and could be claimed on chain in time.
    pub(crate) fn check_reveal(
        &mut self,
        number: u16,
        place: &Place,
        hash: &[u8; 32],
    ) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        if !self.party(who).is_honest() {
            return Ok(());
        }
        let early = |what: &str| {
            let name = name(&place.0);
            let what = format!("wallet {number} reveals a preimage in {name}, {what}");
            Violation::new(Invariant::NoEarlySecret, what)
        };
        let channel = self.party(who).disk.channels.get(place);
        let htlc = channel.and_then(|channel| channel.balances.htlc(hash));
        let htlc = htlc.filter(|htlc| htlc.toward == Toward::Member);
        let expiry = htlc
            .ok_or_else(|| early("which has no such HTLC on disk"))?
            .expiry;
        self.keep_path(who, *place)?;
        let keys = self.keys(*place);
        let party = self.party(who);
        let kept = party.live.as_ref().and_then(|live| live.kept.get(place));
        let kept = kept.ok_or_else(|| early("whose path is not stored"))?;
        if self.chain.height_of(&kept.path.funding().txid).is_none() {
            // A reorg it has not seen yet.
            return Ok(());
        }
        let payout = self.payout(number);
        let holding = Holding {
            path: &kept.path,
            watched: &kept.watched,
            channel: party.disk.channels.get(place),
            keys: &keys,
            payout: &payout,
        };
        let recovered = recover::alone(&self.chain, None, &holding, Goal::Leave)
            .map_err(|error| early(&error))?;
        match recovered.settled_at < expiry {
            true => Ok(()),
            false => Err(early("which expires before it could be claimed")),
        }
    }
}

fn lost(number: u16, attempt: &Attempt, what: &str) -> Violation {
    let what = format!("wallet {number} in {}: {what}", name(attempt));
    Violation::new(Invariant::Recoverability, what)
}
