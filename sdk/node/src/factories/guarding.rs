//! A member's factories in the hands of its towers.
//!
//! What always holds: what a tower is to look after is what the wallet itself would leave by; what a
//! role waits for is told to it when a tower has acknowledged exactly that, and a wallet without
//! towers waits for nobody.

use std::collections::BTreeMap;

use bitcoin::{FeeRate, OutPoint};
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::exit::{self, Goal, OnChain, Progress, SignedPath};
use superscalar_factory::journal::Guard;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;
use superscalar_factory::stock::StockChain;
use superscalar_factory::tower::{Appointment, AppointmentKey, Claim, Digest};

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;
use super::exits::BURIED_BLOCKS;

/// What stock of older epochs is claimed at: 2, 20 and 200 sat/vB.
const CLAIM_FEERATES: [FeeRate; 3] = [
    FeeRate::from_sat_per_kwu(500),
    FeeRate::from_sat_per_kwu(5_000),
    FeeRate::from_sat_per_kwu(50_000),
];

/// What of a role an appointment is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand {
    version: u32,
    /// How many channels were bought in this version.
    sold: usize,
    /// How many stock chains can be taken.
    retired: usize,
}

impl Stand {
    fn of(role: &Member) -> Stand {
        let sold = role.stock_chain().map(StockChain::links);
        Stand {
            version: role.version(),
            sold: sold.map_or(0, <[_]>::len),
            retired: role.retired_stock().len(),
        }
    }
}

/// What was given to the towers of one factory.
#[derive(Debug)]
struct Given {
    stand: Stand,
    key: AppointmentKey,
    digest: Digest,
    /// Whether the role knows that it is kept.
    told: bool,
}

/// What was given to the towers since the start.
#[derive(Debug, Default)]
pub(super) struct Guarding(BTreeMap<Attempt, Given>);

impl Engine {
    /// Who has to have acknowledged a sale before it counts.
    pub(super) fn guard(&self) -> Guard {
        match self.parts.towers {
            Some(_) => Guard::Watchtower,
            None => Guard::Member,
        }
    }

    /// Gives the towers what is new, and tells the roles what they keep.
    pub(super) async fn see_towers(&mut self) {
        let attempts: Vec<Attempt> = self.members.keys().copied().collect();
        for attempt in attempts {
            if let Err(error) = self.give(attempt) {
                let factory = bridge::name(&attempt);
                tracing::warn!(factory, %error, "not given to the towers yet");
            }
            if self.is_guarded(attempt) {
                self.tell_guarded(attempt);
            }
        }
        self.settle().await;
    }

    fn give(&mut self, attempt: Attempt) -> Result<(), EngineError> {
        let (Some(towers), Some(role)) = (&self.parts.towers, self.members.get(&attempt)) else {
            return Ok(());
        };
        let stand = Stand::of(role);
        let given = self.guarding.0.get(&attempt);
        if given.is_some_and(|given| given.stand == stand) {
            return Ok(());
        }
        let Some(path) = role.signed_path() else {
            return Ok(());
        };
        let path = path.map_err(|error| EngineError::Exit(error.to_string()))?;
        if self.nothing_left(&path) {
            return Ok(());
        }
        let appointment = Appointment::Path {
            stale: self.stale_claims(role),
            path: Box::new(path),
        };
        towers.keep(self.opened_from(appointment.trigger()), &appointment)?;
        let given = Given {
            stand,
            key: appointment.key(),
            digest: appointment.digest(),
            told: false,
        };
        self.guarding.0.insert(attempt, given);
        Ok(())
    }

    fn stale_claims(&self, role: &Member) -> Vec<Claim> {
        let Some(path) = role.path() else {
            return Vec::new();
        };
        let to = &path.terms().facts.record.payout;
        let seed = self.parts.factory_seed.expose();
        let sweeps = role.stale_sweeps(seed, to, &CLAIM_FEERATES);
        let claims = sweeps.iter();
        claims
            .filter_map(|sweep| Claim::of_stale(sweep, &CLAIM_FEERATES))
            .collect()
    }

    /// From which height on anything below `funding` can be on chain.
    fn opened_from(&self, funding: OutPoint) -> u32 {
        let spend = self.parts.chain.watcher().spend(&funding);
        spend.map_or(self.tip, |spend| spend.confirmation.height)
    }

    /// Whether a tower keeps what the role stands at, and the role does not know it.
    fn is_guarded(&self, attempt: Attempt) -> bool {
        let Some(towers) = &self.parts.towers else {
            // Towers that were taken out of the configuration are waited for no longer.
            let role = self.members.get(&attempt);
            return role.is_some_and(Member::awaits_tower);
        };
        let given = self.guarding.0.get(&attempt);
        given.is_some_and(|given| !given.told && towers.is_kept(given.key, given.digest))
    }

    fn tell_guarded(&mut self, attempt: Attempt) {
        let Some(role) = self.members.get(&attempt) else {
            return;
        };
        let (slot, version) = (role.slot(), role.version());
        let sold = role.stock_chain().map(StockChain::links);
        let newest = sold.and_then(<[_]>::last).map(|sold| sold.place());
        if let Some(place) = newest {
            let bought = ChannelRef::sold(slot, version, place);
            self.member(attempt, |_| member::Input::BoughtGuarded(bought));
        }
        self.member(attempt, |_| member::Input::MovedGuarded { version });
        if let Some(given) = self.guarding.0.get_mut(&attempt) {
            given.told = true;
        }
    }

    /// With every block: what is over is looked after no longer.
    pub(super) fn release_towers(&mut self) {
        let Some(towers) = &self.parts.towers else {
            return;
        };
        for (attempt, given) in &self.guarding.0 {
            let path = self.signed_path(&bridge::name(attempt));
            if path.is_ok_and(|path| self.nothing_left(&path))
                && let Err(error) = towers.forget(given.key)
            {
                tracing::warn!(%error, "a tower looks after what is over");
            }
        }
    }

    /// Whether nothing of a path can have to be published any more.
    fn nothing_left(&self, path: &SignedPath) -> bool {
        if self.parts.chain.watcher().spend(&path.funding()).is_none() {
            return false;
        }
        let facts = self.confirmed_spends(path.funding(), path.watched());
        let Ok(planned) = exit::plan(path, Goal::Defend, &facts) else {
            return false;
        };
        let buried = |height: u32| facts.tip >= height + BURIED_BLOCKS;
        let ended = match planned.status.progress {
            Progress::LeafConfirmed { height, .. }
            | Progress::PaidOut { height, .. }
            | Progress::Superseded { height, .. } => buried(height),
            _ => false,
        };
        let mut channels = planned.status.channels.iter();
        ended
            && channels.all(|channel| match channel.on_chain {
                OnChain::Confirmed { height } | OnChain::Lost { height, .. } => buried(height),
                _ => false,
            })
    }
}
