//! Whether members' money is safe right now, and whether a world that has come to rest is whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, Txid};
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::exit::Goal;
use superscalar_factory::journal::Record;
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;

use crate::channel::{Stage, Toward};
use crate::depart::is_departed;
use crate::invariants::{Invariant, Violation, ensure};
use crate::leave::is_activated;
use crate::money::ChannelKeys;
use crate::observer::name;
use crate::party::{Kept, Party, Who, place_of};
use crate::recover::{self, Holding, Way};
use crate::world::World;

/// All that a check of a member's money depends on.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// The member's life, and the records in its journal.
    journal: (u32, usize),
    /// Version of the chain.
    chain: u64,
    /// Each channel's stage, its commitment's number, and how many of its HTLCs can be claimed.
    channels: Vec<(ChannelRef, Stage, u64, usize)>,
    /// What a distribution pays.
    paid_out: Option<Amount>,
}

impl Checked {
    /// Whether nothing has changed but the channel.
    fn same_path(&self, other: &Checked) -> bool {
        self.journal == other.journal && self.chain == other.chain
    }
}

impl World {
    /// Everybody's money, from what is on disk, whatever was seen of it before.
    pub(crate) fn check_everybody(&mut self) -> Result<(), Violation> {
        self.checked.clear();
        for number in 0..self.wallets.len() as u16 {
            let disk = &self.party(Who::Wallet(number)).disk;
            for attempt in disk.journals.keys().copied().collect::<Vec<_>>() {
                self.check_money(number, &attempt)?;
                self.check_left_in_time(number, &attempt)?;
            }
        }
        Ok(())
    }

    /// Everybody in a factory that is about to be funded can leave it.
    pub(crate) fn check_all_complete(&mut self, attempt: &Attempt) -> Result<(), Violation> {
        let places = self.lsp.disk.channels.keys().map(place_of);
        let places: BTreeSet<_> = places.filter(|place| place.0 == *attempt).collect();
        for place in places {
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

    /// Whether a member can bring its balance home, alone, from its disk: with its channel, and by
    /// what a distribution pays. What was seen and has not changed is not looked at again.
    pub(crate) fn check_money(&mut self, number: u16, attempt: &Attempt) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        if !self.party(who).is_honest() || !self.counts_on(number, attempt) {
            return Ok(());
        }
        let joined = self.party(who).records(attempt).first();
        let Some(Record::MemberJoined(joined)) = joined else {
            return Err(lost(number, attempt, "has lost its join"));
        };
        let (header, place) = (joined.invite.header.clone(), (*attempt, joined.invite.slot));
        let party = self.party(who);
        if self.home.contains(&place) {
            return Ok(());
        }
        let mut now = Checked {
            journal: (party.life, party.records(attempt).len()),
            chain: self.chain.version,
            channels: party
                .channels(&place)
                .map(|(id, it)| (*id, it.stage, it.balances.number, it.claimable()))
                .collect(),
            paid_out: None,
        };
        let last = self.checked.get(&place).cloned();
        let last = last.as_ref();
        if last.is_some_and(|last| last.channels == now.channels && last.same_path(&now)) {
            return Ok(());
        }
        self.keep_path(who, place)?;
        let fresh = match self.party(who).is_live() && !self.has_news(who, &place) {
            true => None,
            false => self.stored_path(who, place)?,
        };
        let keys = self.signed_keys(who, &place);
        let party = self.party(who);
        let kept = party.live.as_ref().and_then(|live| live.kept.get(&place));
        let Some(kept) = fresh.as_ref().or(kept) else {
            return Err(lost(number, attempt, "has no complete path on disk"));
        };
        let funding = kept.path.funding();
        let unconfirmed = match self.chain.height_of(&funding.txid) {
            Some(_) => Vec::new(),
            // Its LSP will see to it that it confirms (again), if it is honest.
            None if self.lsp.is_honest() && self.fundings.contains_key(&funding.txid) => {
                self.unconfirmed_fundings(funding.txid)
            }
            None => return Ok(()),
        };
        let payout = self.payout(number);
        let holding = holding(party, kept, keys, &payout);
        let due = match is_departed(&kept.path) {
            // What it forgoes its LSP may have taken before it was told.
            true => Amount::ZERO,
            false => {
                let counted = party.counted(&place).map(|(_, it)| &it.balances);
                recover::due(counted, header.tree_feerate)
            }
        };
        let alone = |goal| {
            let alone = recover::alone(&self.chain, &unconfirmed, &holding, goal);
            alone.map_err(|error| {
                let what = format!("cannot leave ({goal:?}): {error}");
                lost(number, attempt, &what)
            })
        };
        let enough = |paid: Amount| {
            ensure(paid >= due, Invariant::Recoverability, || {
                let name = name(attempt);
                format!("wallet {number} gets {paid} of {due} out of {name}")
            })
        };
        let left = alone(Goal::Leave)?;
        if left.way == Way::Stale {
            // Whoever could have outrun it has to have tried, which is checked where that is lost.
            self.counts.recoveries += 1;
            self.checked.insert(place, now);
            return Ok(());
        }
        enough(left.balance)?;
        match header.policy {
            TimeoutPolicy::MembersReclaim => {
                // A distribution pays the same whatever is in the channel.
                let known = last.filter(|last| last.same_path(&now));
                now.paid_out = known.and_then(|last| last.paid_out);
                if now.paid_out.is_none() {
                    let reclaimed = alone(Goal::Reclaim)?;
                    enough(reclaimed.balance)?;
                    let distributed = reclaimed.way == Way::Distribution;
                    now.paid_out = distributed.then_some(reclaimed.balance);
                }
                now.paid_out.map_or(Ok(()), enough)?;
            }
            _ => {
                let exit_delay = header.timing.exit_delay(header.shape.layers());
                let early = self.chain.tip() + exit_delay <= header.expiry;
                ensure(
                    !early || left.settled_at <= header.expiry,
                    Invariant::Recoverability,
                    || {
                        let (name, at) = (name(attempt), left.settled_at);
                        format!("wallet {number} would be out of {name} only at {at}")
                    },
                )?;
            }
        }
        self.counts.recoveries += 1;
        self.checked.insert(place, now);
        Ok(())
    }

    /// A preimage may leave: what it pays for is on disk, and could be claimed on chain in time.
    pub(crate) fn check_reveal(
        &mut self,
        number: u16,
        id: &ChannelRef,
        hash: &[u8; 32],
    ) -> Result<(), Violation> {
        let place = &place_of(id);
        let who = Who::Wallet(number);
        if !self.party(who).is_honest() {
            return Ok(());
        }
        let early = |what: &str| {
            let name = name(&place.0);
            let what = format!("wallet {number} reveals a preimage in {name}, {what}");
            Violation::new(Invariant::NoEarlySecret, what)
        };
        let channel = self.party(who).disk.channels.get(id);
        let htlc = channel.and_then(|channel| channel.balances.htlc(hash));
        let htlc = htlc.filter(|htlc| htlc.toward == Toward::Member);
        let expiry = htlc
            .ok_or_else(|| early("which has no such HTLC on disk"))?
            .expiry;
        let outpoint = channel.map_or(OutPoint::null(), |channel| channel.agreed.outpoint);
        self.keep_path(who, *place)?;
        let keys = self.signed_keys(who, place);
        let party = self.party(who);
        let kept = party.live.as_ref().and_then(|live| live.kept.get(place));
        let kept = kept.ok_or_else(|| early("whose path is not stored"))?;
        if self.chain.height_of(&kept.path.funding().txid).is_none() {
            // A reorg it has not seen yet.
            return Ok(());
        }
        let payout = self.payout(number);
        let holding = holding(party, kept, keys, &payout);
        let recovered = recover::alone(&self.chain, &[], &holding, Goal::Leave)
            .map_err(|error| early(&error))?;
        if recovered.way == Way::Stale || is_departed(&kept.path) {
            // It has not looked for as long as it takes to outrun the newest state, or it has signed
            // its place away and the LSP completes that.
            return Ok(());
        }
        let settled = recovered.settled.get(&outpoint);
        match settled.is_some_and(|height| *height < expiry) {
            true => Ok(()),
            false => Err(early("which expires before it could be claimed")),
        }
    }

    /// A funding transaction that is not in the chain, after those it spends the change of: a reorg
    /// may have taken these out as well.
    fn unconfirmed_fundings(&self, txid: Txid) -> Vec<&Transaction> {
        let missing = |txid: &Txid| self.chain.height_of(txid).is_none();
        let Some(tx) = self.fundings.get(&txid).filter(|_| missing(&txid)) else {
            return Vec::new();
        };
        let parents = tx.input.iter().map(|input| input.previous_output.txid);
        let mut all: Vec<&Transaction> = Vec::new();
        for parent in parents.flat_map(|txid| self.unconfirmed_fundings(txid)) {
            if !all.contains(&parent) {
                all.push(parent);
            }
        }
        all.push(tx);
        all
    }
}

/// What a party holds of a place.
pub(crate) fn holding<'a>(
    party: &'a Party,
    kept: &'a Kept,
    keys: Vec<(ChannelRef, Arc<ChannelKeys>)>,
    payout: &'a ScriptBuf,
) -> Holding<'a> {
    let channels = keys.into_iter();
    let channels = channels.filter_map(|(id, keys)| Some((party.disk.channels.get(&id)?, keys)));
    Holding {
        path: &kept.path,
        watched: &kept.watched,
        sweeps: &kept.sweeps,
        channels: channels.collect(),
        payout,
    }
}

fn lost(number: u16, attempt: &Attempt, what: &str) -> Violation {
    let what = format!("wallet {number} in {}: {what}", name(attempt));
    Violation::new(Invariant::Recoverability, what)
}
