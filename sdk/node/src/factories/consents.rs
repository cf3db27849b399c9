//! What a wallet agrees to of new epochs: what its user said, by factory, and whether a tower is
//! there to stand by it.

use std::collections::BTreeMap;

use superscalar_factory::epoch::{EpochLimits, Readiness};
use superscalar_factory::message::Attempt;

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;
use super::wishes::EpochConsent;
use crate::store::{Store, StoreError};

const SETTING: &str = "epoch_consents";

/// By the factory's name; elsewhere the standard holds.
#[derive(Default)]
pub(super) struct Consents(BTreeMap<String, EpochConsent>);

impl Consents {
    pub(super) fn load(store: &Store) -> Result<Consents, StoreError> {
        let consents = store.json_setting(SETTING)?;
        Ok(Consents(consents.unwrap_or_default()))
    }

    fn limits(&self, attempt: &Attempt) -> EpochLimits {
        let consent = self.0.get(&bridge::name(attempt));
        consent.map(EpochLimits::from).unwrap_or_default()
    }
}

impl Engine {
    /// A member's: what it agrees to from now on.
    pub(super) fn set_consent(
        &mut self,
        factory: &str,
        consent: EpochConsent,
    ) -> Result<(), EngineError> {
        let unknown = || self.missing(factory);
        let attempt = bridge::attempt(factory).ok_or_else(unknown)?;
        if !self.members.contains_key(&attempt) {
            return Err(unknown());
        }
        let mut consents = self.consents.0.clone();
        consents.insert(bridge::name(&attempt), consent);
        let bytes = serde_json::to_vec(&consents).map_err(StoreError::corrupt)?;
        self.parts.store.set_setting(SETTING, &bytes)?;
        self.consents.0 = consents;
        // It holds for an epoch under way as well, until that is signed.
        self.set_epoch_limits(&attempt);
        Ok(())
    }

    /// Says to a role what is accepted of the epoch that is proposed now: towers come and go.
    pub(super) fn set_epoch_limits(&mut self, attempt: &Attempt) {
        let limits = EpochLimits {
            guard: self.guard(),
            readiness: match self.check_towers() {
                Ok(()) => Readiness::Ready,
                Err(_) => Readiness::Away,
            },
            ..self.consents.limits(attempt)
        };
        if let Some(role) = self.members.get_mut(attempt) {
            role.set_epoch_limits(Some(limits));
        }
    }
}
