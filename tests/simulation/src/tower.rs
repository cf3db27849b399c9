//! Watchtowers at work. A tower has what was handed over before it acknowledged, and nothing else: it
//! looks at the chain whatever its member does, publishes what is due, and who it looks for is in time
//! by it.

use bitcoin::{FeeRate, OutPoint, Transaction, Txid};
use superscalar_factory::journal::Guard;
use superscalar_factory::tower::{Appointment, Claim, due};
use superscalar_factory::tree::Tree;

use crate::bugs::Bug;
use crate::chain::Rejection;
use crate::invariants::{Invariant, Violation};
use crate::leave::SWEEP_FEERATES;
use crate::observer::name;
use crate::party::{Place, Role, Who};
use crate::sell::guard;
use crate::world::World;

/// What a factory may be called in which members leave all answers to their towers.
pub(crate) const ALL_SLEEP: u8 = 2;

/// What a tower keeps of one place.
#[derive(Debug)]
pub(crate) struct Kept {
    appointment: Appointment,
    /// The chain it has looked at.
    seen: u64,
}

impl World {
    /// The member hands over all that its disk has of a place, before the tower acknowledges
    /// anything of it.
    pub(crate) fn hand_over(&mut self, number: u16, place: Place) -> Result<(), Violation> {
        let who = Who::Wallet(number);
        if guard(&place.0, place.1) != Guard::Watchtower {
            return Ok(());
        }
        let Some(kept) = self.stored_path(who, place)? else {
            return Ok(());
        };
        let known = kept.path.watched();
        let newer = match self.party(who).role(&place.0) {
            Some(Role::Member(role)) => role.newer_trees().flat_map(Tree::outpoints).collect(),
            _ => Vec::new(),
        };
        let sweeps = kept.sweeps.iter();
        let claims = sweeps.filter_map(|it| Claim::of_stale(it, &SWEEP_FEERATES));
        let appointment = Appointment::Path {
            stale: claims.collect(),
            beside: newer.into_iter().filter(|it| !known.contains(it)).collect(),
            path: Box::new(kept.path),
        };
        let seen = 0;
        self.towers.insert(place, Kept { appointment, seen });
        Ok(())
    }

    /// Whether a member that stays leaves all answers to its tower, as one that sleeps: every other
    /// that has one.
    pub(crate) fn relies_on_tower(&self, place: &Place) -> bool {
        self.towers.contains_key(place) && place.0.instance.0[3].is_multiple_of(2)
    }

    /// Towers that have not seen this chain, of factories that somebody opens.
    pub(crate) fn towers_behind(&self) -> impl Iterator<Item = Place> {
        let opened = |kept: &Kept| self.chain.spender(&kept.appointment.trigger()).is_some();
        let behind = move |kept: &Kept| kept.seen != self.chain.version && opened(kept);
        let towers = self.towers.iter().filter(move |(_, kept)| behind(kept));
        towers.map(|(place, _)| *place)
    }

    /// A tower looks at the chain.
    pub(crate) fn tower_looks(&mut self, place: Place) -> Result<(), Violation> {
        self.counts.looks += 1;
        let seen = self.chain.version;
        let Some(mut kept) = self.towers.remove(&place) else {
            return Ok(());
        };
        kept.seen = seen;
        self.defend(place, &kept.appointment)?;
        self.towers.insert(place, kept);
        Ok(())
    }

    fn defend(&mut self, place: Place, appointment: &Appointment) -> Result<(), Violation> {
        let Appointment::Path { path, stale, .. } = appointment else {
            return Ok(());
        };
        if self.chain.height_of(&path.funding().txid).is_none() {
            return Ok(());
        }
        let facts = self.chain.facts(&path.funding(), &appointment.watched());
        let due = due(appointment, &facts).map_err(|error| {
            let what = format!("the tower of {} has no plan: {error}", name(&place.0));
            Violation::new(Invariant::Exit, what)
        })?;
        let claims = due.claims.iter().flat_map(|it| it.at(FeeRate::MAX));
        let mut txs = due.tree.clone();
        txs.extend(claims.cloned());
        let is_claim = |tx: &Transaction| {
            let spent = tx.input[0].previous_output;
            due.claims.iter().any(|claim| claim.outpoint() == spent)
        };
        match self.bug {
            Some(Bug::TowerOnlyAcknowledges) => txs.clear(),
            Some(Bug::TowerTakesNoStock) => txs.retain(|tx| !is_claim(tx)),
            _ => {}
        }
        for tx in txs {
            match self.chain.submit(&tx) {
                Ok(()) => {
                    self.counts.guarded += 1;
                    self.counts.claimed += u64::from(is_claim(&tx));
                    let (txid, name) = (tx.compute_txid(), name(&place.0));
                    self.note(format_args!("the tower of {name} publishes {txid}"));
                }
                Err(Rejection::Known | Rejection::Rival(_)) => {}
                Err(error) => {
                    let what = format!("a tower was to publish {}: {error}", tx.compute_txid());
                    return Err(Violation::new(Invariant::Exit, what));
                }
            }
        }
        let dearest = |claim: &Claim| {
            let mut tries = claim.at(FeeRate::MAX);
            Some((claim.outpoint(), tries.next()?.compute_txid()))
        };
        let taken: Vec<(OutPoint, Txid)> = stale.iter().filter_map(dearest).collect();
        let races = self.races(path, &taken);
        self.races.extend(races);
        Ok(())
    }
}
