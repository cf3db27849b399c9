//! What an LSP builds: a plan out of who waits, attempt after attempt.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use superscalar_factory::coordinator::{Coordinator, FactoryPlan, LspSecrets, PlanError, Seat};
use superscalar_factory::effect::SlotRef;
use superscalar_factory::message::Attempt;
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::{Instance, TermsError};

use super::bridge;
use super::engine::{Begun, Engine};
use super::error::EngineError;
use super::info::BuildRequest;
use crate::onchain::OnchainError;

/// After this many attempts an LSP gives up a plan.
const MAX_ATTEMPTS: u16 = 8;

impl Engine {
    pub(super) fn build(&mut self, request: BuildRequest) -> Result<String, EngineError> {
        if !self.parts.is_lsp {
            return Err(EngineError::NotLsp);
        }
        let members = usize::from(request.members);
        // What can never be built is refused before anybody is waited for.
        let shape = request
            .shape()
            .unwrap_or_else(|| Shape::two_layers(members));
        let invalid = |error| EngineError::Plan(PlanError::Terms(TermsError::Shape(error)));
        shape.topology(members).map_err(invalid)?;
        let life_blocks = request.life_blocks;
        let expiry = self.tip.checked_add(life_blocks);
        let expiry = expiry.ok_or(EngineError::Life { life_blocks })?;
        // Whoever asked for more would refuse the place and end the attempt.
        let content = self
            .waiting
            .iter()
            .filter(|(_, wanted)| **wanted <= request.capacity());
        let peers: Vec<PublicKey> = content.map(|(peer, _)| *peer).take(members).collect();
        if peers.len() < members {
            return Err(EngineError::NotEnoughMembers {
                waiting: peers.len(),
                wanted: members,
            });
        }
        // Change of a factory just published comes with its block. What the tree adds in fees is
        // little, and the wallet counts it when it funds.
        let needed = request.funds();
        let available = self.parts.onchain.balance().spendable;
        if available < needed {
            return Err(OnchainError::InsufficientFunds { needed, available }.into());
        }
        let address = self.parts.onchain.address();
        let address = address.map_err(|error| EngineError::Wallet(error.to_string()))?;
        let seat = |peer: &PublicKey| Seat {
            peer: *peer,
            capacity: request.capacity(),
            push_msat: 0,
            stock: Amount::from_sat(request.stock_sat),
            price: Amount::ZERO,
        };
        let timing = request.timing(self.parts.network, shape.layers());
        let plan = FactoryPlan {
            attempt: Attempt {
                instance: Instance(self.parts.host.random_bytes()),
                number: 0,
            },
            network: self.parts.network,
            shape,
            expiry,
            timing,
            tree_feerate: request.tree_feerate,
            policy: request.policy.into(),
            lsp_payout: address.script_pubkey(),
            round_seconds: request.round_seconds,
            seats: peers.iter().map(seat).collect(),
        };
        self.begin(plan)
    }

    /// Starts an attempt.
    pub(super) fn begin(&mut self, plan: FactoryPlan) -> Result<String, EngineError> {
        let secrets = LspSecrets::new(
            self.parts.factory_seed.expose(),
            self.parts.host.random_bytes(),
            self.parts.host.random_bytes(),
        );
        let attempt = plan.attempt;
        let keys = (0..plan.seats.len() as u16).map(|slot| {
            let slot = SlotRef { attempt, slot };
            self.parts.host.funding_pubkey(&bridge::slot_id(&slot))
        });
        let (mut role, effects) = Coordinator::start(&plan, secrets, keys.collect(), self.tip)?;
        role.set_sale_policy(self.parts.sales.clone());
        let asked = plan.seats.iter().filter_map(|seat| {
            let wanted = self.waiting.remove(&seat.peer)?;
            Some((seat.peer, wanted))
        });
        let wanted = asked.collect();
        self.coordinators.insert(attempt, role);
        self.plans.insert(attempt, Begun { plan, wanted });
        self.queue(attempt, effects);
        Ok(bridge::name(&attempt))
    }

    /// After a failed attempt: again without those at fault, who must ask again themselves.
    pub(super) fn retry(&mut self, attempt: Attempt, at_fault: &[u16]) {
        let Some(Begun { plan, wanted }) = self.plans.remove(&attempt) else {
            return;
        };
        let mut out = at_fault.to_vec();
        for (slot, seat) in (0u16..).zip(&plan.seats) {
            if !self.parts.host.is_connected(&seat.peer) {
                // Away, it could not answer; it asks again when it is back.
                out.push(slot);
            } else if let Some(wanted) = wanted.get(&seat.peer).filter(|_| !out.contains(&slot)) {
                // It asked once, and waits: for the next attempt, or another factory.
                self.waiting.entry(seat.peer).or_insert(*wanted);
            }
        }
        // Without anybody at fault it is not the members that the next attempt would do without.
        let again = !at_fault.is_empty() && attempt.number < MAX_ATTEMPTS;
        if let Some(next) = plan.retry(&out).filter(|_| again)
            && let Err(error) = self.begin(next)
        {
            tracing::warn!(%error, "the next attempt could not be started");
        }
    }
}
