//! The way out of a place: what is signed, what the chain says of it, and which channels it brings
//! on chain.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Txid};
use superscalar_factory::effect::SlotRef;
use superscalar_factory::exit::package::PackagedPath;
use superscalar_factory::exit::{ChainFacts, SignedPath, Spend};

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;
use crate::chain::{Chain, ChainError, OutPointStatus};
use crate::hosting::SlotId;

impl Engine {
    /// Every complete path, and where to look for it: the funding's block, or the next one.
    pub(super) fn export_paths(&self) -> Result<Vec<PackagedPath>, EngineError> {
        let members = self.members.keys().map(bridge::name);
        let places = self.coordinators.iter().flat_map(|(attempt, role)| {
            let slots = 0..role.invites().len() as u16;
            slots.map(|slot| {
                let attempt = *attempt;
                bridge::place(&SlotRef { attempt, slot })
            })
        });
        let watcher = self.parts.chain.watcher();
        let mut paths = Vec::new();
        for name in members.chain(places) {
            let path = match self.signed_path(&name) {
                Ok(path) => path,
                Err(EngineError::NoPath { .. }) => continue,
                Err(error) => return Err(error),
            };
            let funding = watcher.confirmation(&path.funding().txid);
            paths.push(PackagedPath {
                from_height: funding.map_or(self.tip + 1, |at| at.height),
                path,
            });
        }
        Ok(paths)
    }

    /// Every channel of the place an exit is of, in its newest epoch.
    pub(super) fn channels_of_exit(&self, key: &str) -> Vec<SlotId> {
        let place = self.exit_slot(key);
        place.map_or_else(Vec::new, |place| self.live_channels(&place))
    }

    /// Those of them that LDK has not closed.
    pub(super) fn open_channels(&self, key: &str) -> Vec<SlotId> {
        let mut channels = self.channels_of_exit(key);
        // Of an older epoch whose leaf is on chain nevertheless.
        let place = self.exit_slot(key);
        channels.extend(place.iter().flat_map(|place| self.stale_channels(place)));
        channels.retain(|id| self.parts.host.channel_state(id).is_some());
        channels
    }

    /// Closes them all; their commitments are held until their outputs are on chain.
    pub(super) fn close_channels(&self, key: &str) {
        for id in self.open_channels(key) {
            if let Err(error) = self.parts.host.force_close(&id) {
                tracing::warn!(key, channel = %id, %error, "not closed before the next block");
            }
        }
    }

    /// What the way out of a place is called.
    pub(super) fn exit_name(&self, slot: &SlotRef) -> String {
        match self.parts.is_lsp {
            true => bridge::place(slot),
            false => bridge::name(&slot.attempt),
        }
    }

    /// A member leaves by a factory's name, an LSP by name and slot.
    pub(super) fn exit_slot(&self, key: &str) -> Option<SlotRef> {
        match self.parts.is_lsp {
            true => bridge::slot_of_place(key),
            false => Some(self.members.get(&bridge::attempt(key)?)?.slot()),
        }
    }

    pub(super) fn signed_path(&self, key: &str) -> Result<SignedPath, EngineError> {
        let unknown = || self.missing(key);
        let no_path = |phase: &str| EngineError::NoPath {
            factory: key.to_owned(),
            phase: phase.to_owned(),
        };
        let slot = self.exit_slot(key).ok_or_else(unknown)?;
        let made = if let Some(role) = self.coordinators.get(&slot.attempt) {
            role.signed_path(slot.slot)
                .ok_or_else(|| no_path(role.phase()))?
        } else {
            let role = self.members.get(&slot.attempt).ok_or_else(unknown)?;
            role.signed_path().ok_or_else(|| no_path(role.phase()))?
        };
        made.map_err(|error| EngineError::Exit(error.to_string()))
    }

    /// What the chain says about a path, mempool included.
    pub(super) async fn facts(&self, path: &SignedPath) -> Result<ChainFacts, EngineError> {
        let funding = path.funding().txid;
        let facts = chain_facts(&self.parts.chain, funding, &path.watched()).await;
        Ok(facts?)
    }
}

/// What the chain says about these outpoints, mempool included, and about the factory's funding.
pub(crate) async fn chain_facts(
    chain: &Chain,
    funding: Txid,
    watched: &[OutPoint],
) -> Result<ChainFacts, ChainError> {
    let funding = chain.watcher().confirmation(&funding);
    let mut facts = ChainFacts {
        tip: chain.watcher().tip()?.height,
        funding_height: funding.map(|at| at.height),
        spends: BTreeMap::new(),
    };
    for outpoint in watched {
        let spend = match chain.outpoint_status(*outpoint).await? {
            OutPointStatus::Spent(spend) => Spend {
                txid: spend.spender.compute_txid(),
                height: Some(spend.confirmation.height),
            },
            OutPointStatus::SpentInMempool(txid) => Spend { txid, height: None },
            OutPointStatus::Unspent => continue,
        };
        facts.spends.insert(*outpoint, spend);
    }
    Ok(facts)
}
