//! How an attempt ends without a factory: silence, refusals, faults. Nothing was published, so its
//! coins are free again, and everyone is told; who is at fault is named to the application.

use bitcoin::Txid;

use super::{Coordinator, Phase, send};
use crate::effect::{Effect, Event, SlotRef};
use crate::journal::Ended;
use crate::message::{Refusal, RefusalCode};

impl Coordinator {
    pub(super) fn refusal(&mut self, slot: u16, code: RefusalCode) -> Vec<Effect> {
        match self.phase {
            Phase::Gathering { .. }
            | Phase::Funding { .. }
            | Phase::Signing { .. }
            | Phase::Opening { .. } => self.end(code, &[slot]),
            // Everyone who acknowledged is safe; who did not is not harmed by an ending either.
            Phase::Acking { .. } => self.end(code, &[slot]),
            Phase::Published { .. } | Phase::Ended(_) => Vec::new(),
        }
    }

    pub(super) fn timed_out(&mut self) -> Vec<Effect> {
        let all = 0..self.members();
        let silent: Vec<u16> = match &self.phase {
            Phase::Gathering { joins } => all
                .filter(|slot| joins[usize::from(*slot)].is_none())
                .collect(),
            Phase::Signing { signing, .. } => all.filter(|slot| !signing.has(*slot)).collect(),
            Phase::Opening { signing, held, .. } => all
                .filter(|slot| !held.contains(slot) || !signing.has_root(*slot))
                .collect(),
            Phase::Acking { acked, .. } => all.filter(|slot| !acked.contains(slot)).collect(),
            Phase::Funding { .. } | Phase::Published { .. } | Phase::Ended(_) => return Vec::new(),
        };
        self.end(RefusalCode::Silence, &silent)
    }

    pub(super) fn end(&mut self, code: RefusalCode, at_fault: &[u16]) -> Vec<Effect> {
        let funding = self.built().map(|built| built.tree.funding.txid);
        self.end_with(code, funding, at_fault)
    }

    pub(super) fn end_with(
        &mut self,
        code: RefusalCode,
        funding: Option<Txid>,
        at_fault: &[u16],
    ) -> Vec<Effect> {
        let attempt = self.attempt;
        self.phase = Phase::Ended(code);
        let mut effects = vec![Effect::Persist(Ended { code }.into())];
        for (slot, peer) in (0u16..).zip(&self.peers) {
            let code = match at_fault.is_empty() || at_fault.contains(&slot) {
                true => code,
                false => RefusalCode::Other,
            };
            let field = String::new();
            effects.push(send(
                *peer,
                Refusal {
                    attempt,
                    code,
                    field,
                },
            ));
            effects.push(Effect::Discard(SlotRef { attempt, slot }));
        }
        effects.extend(funding.map(Effect::ReleaseFunding));
        effects.push(Effect::Emit(Event::Ended {
            attempt,
            code,
            at_fault: at_fault.to_vec(),
        }));
        effects
    }
}
