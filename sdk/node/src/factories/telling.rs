//! What the application is told of factories, in the words of the SDK.
//!
//! What always holds: an event that follows from a record is on disk as soon as the record is, and is
//! read once, when what it tells of was done, or at the next start.

use std::collections::BTreeMap;

use superscalar_factory::codec::Encode as _;
use superscalar_factory::effect::{Effect, Event as CoreEvent};
use superscalar_factory::journal::Record;
use superscalar_factory::member::Member;
use superscalar_factory::message::Attempt;

use super::bridge;
use super::effects::Failure;
use super::engine::{Engine, Seeking};
use crate::event::Event;
use crate::store::{Batch, Store, StoreError};

/// By attempt, events whose records are on disk and which are not told yet, in their order.
#[derive(Debug, Default)]
pub(super) struct Untold(BTreeMap<Attempt, Waiting>);

#[derive(Clone, Debug, Default)]
struct Waiting {
    events: Vec<Event>,
    /// How many of them an earlier run has left: what they tell of is done.
    recalled: usize,
}

impl Untold {
    fn of(&self, attempt: &Attempt) -> Waiting {
        self.0.get(attempt).cloned().unwrap_or_default()
    }

    fn has(&self, attempt: &Attempt, event: &Event) -> bool {
        let waiting = self.0.get(attempt);
        waiting.is_some_and(|it| it.events.contains(event))
    }
}

/// Where they are written.
fn setting(attempt: &Attempt) -> String {
    format!("untold {}", bridge::name(attempt))
}

/// What cannot be read cannot be told, and keeps nothing else from going on.
fn read(store: &Store, attempt: &Attempt) -> Result<Vec<Event>, StoreError> {
    let Some(stored) = store.setting(&setting(attempt))? else {
        return Ok(Vec::new());
    };
    let events = serde_json::from_slice(&stored);
    Ok(events.unwrap_or_else(|error| {
        tracing::error!(factory = bridge::name(attempt), %error, "events were lost");
        Vec::new()
    }))
}

fn written(events: &[Event]) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(events).map_err(StoreError::corrupt)
}

impl Engine {
    /// Writes a record, and with it the events that follow from it.
    pub(super) fn persist(&mut self, attempt: Attempt, record: &Record) -> Result<(), StoreError> {
        let stream = bridge::stream(&attempt, self.parts.is_lsp);
        let following = self.following(&attempt);
        if following.is_empty() {
            self.parts.store.append(&stream, &record.to_bytes())?;
            return Ok(());
        }
        let mut waiting = self.untold.of(&attempt);
        waiting.events.extend(following);
        let batch = Batch::new()
            .record(&stream, &record.to_bytes())
            .setting(&setting(&attempt), &written(&waiting.events)?);
        self.parts.store.commit(&batch)?;
        self.untold.0.insert(attempt, waiting);
        Ok(())
    }

    /// The events that are due before the next record.
    fn following(&self, attempt: &Attempt) -> Vec<Event> {
        let due = self.due.iter().filter(|(of, _)| of == attempt);
        let of_this = due
            .map(|(_, effect)| effect)
            .take_while(|effect| !matches!(effect, Effect::Persist(_)));
        let events = of_this.filter_map(|effect| match effect {
            Effect::Emit(event) if !Self::may_be_withheld(event) => said(attempt, event),
            _ => None,
        });
        events.collect()
    }

    /// Told only while a peer does not cause too much of it. No record comes before these.
    fn may_be_withheld(event: &CoreEvent) -> bool {
        matches!(
            event,
            CoreEvent::Refused { .. }
                | CoreEvent::Equivocation { .. }
                | CoreEvent::EpochEquivocation { .. }
        )
    }

    /// Does what an event means for this node, and tells the application.
    pub(super) fn emit(&mut self, attempt: Attempt, event: CoreEvent) -> Result<(), Failure> {
        let told = said(&attempt, &event);
        let equivocated = match event {
            CoreEvent::Equivocation { id, .. } => Some(id),
            _ => None,
        };
        match event {
            CoreEvent::Published { .. } => {
                self.plans.remove(&attempt);
            }
            CoreEvent::Active { .. } => {
                let found = |seeking: &Seeking| seeking.seated == Some(attempt);
                if self.seeking.as_ref().is_some_and(found) {
                    self.seeking = None;
                }
            }
            CoreEvent::Dormant { .. } => self.leave_seat(attempt),
            CoreEvent::Ended { at_fault, .. } => {
                self.leave_seat(attempt);
                self.retry(attempt, &at_fault);
            }
            CoreEvent::Refused {
                peer, code, field, ..
            } => {
                self.quote_refused(attempt, code, &field);
                if !self.bears_with(peer) {
                    return Ok(());
                }
            }
            CoreEvent::Moved { slot, .. } => self.was_heard(&attempt, slot.slot),
            CoreEvent::EpochHangs { silent, .. } => self.were_silent(&attempt, &silent),
            CoreEvent::EpochEnded { .. } => {
                // The LSP could go on for ever; what is recorded is told all the same.
                let lsp = self.members.get(&attempt).map(Member::lsp);
                let bears = lsp.is_none_or(|lsp| self.bears_with(lsp));
                let recorded = told
                    .as_ref()
                    .is_some_and(|it| self.untold.has(&attempt, it));
                if !bears && !recorded {
                    return Ok(());
                }
            }
            CoreEvent::EpochEquivocation { peer, .. } if !self.bears_with(peer) => return Ok(()),
            CoreEvent::Equivocation { id, .. } if self.sales.equivocated.contains(&id) => {
                return Ok(());
            }
            CoreEvent::Delivered { .. } => self.watch_sales(&attempt)?,
            CoreEvent::Quoted { sale, terms, .. } => self.quoted(attempt, sale, &terms),
            CoreEvent::NotSold {
                reason,
                least,
                sellable,
                ..
            } => self.not_sold(attempt, reason, least, &sellable),
            _ => {}
        }
        if let Some(told) = told {
            self.tell_once(&attempt, &told)?;
        }
        self.sales.equivocated.extend(equivocated);
        Ok(())
    }

    fn leave_seat(&mut self, attempt: Attempt) {
        if let Some(seeking) = &mut self.seeking {
            seeking.leave(attempt);
        }
    }

    /// Tells it and what comes before it, and that they are told, both or neither.
    fn tell_once(&mut self, attempt: &Attempt, event: &Event) -> Result<(), StoreError> {
        let waiting = self.untold.of(attempt);
        match waiting.events.iter().position(|it| it == event) {
            Some(nth) => self.tell_through(attempt, nth + 1, None),
            None => self.tell_through(attempt, waiting.recalled, Some(event)),
        }
    }

    /// Tells so many of those that wait, and one that does not.
    fn tell_through(
        &mut self,
        attempt: &Attempt,
        count: usize,
        last: Option<&Event>,
    ) -> Result<(), StoreError> {
        let mut waiting = self.untold.of(attempt);
        let rest = waiting.events.split_off(count);
        let mut told = waiting.events;
        told.extend(last.cloned());
        match count {
            0 => told.iter().try_for_each(|it| self.tell(it))?,
            _ => {
                let (setting, left) = (setting(attempt), written(&rest)?);
                self.parts.events.append_with(&told, &setting, &left)?;
            }
        }
        let recalled = waiting.recalled.saturating_sub(count);
        let waiting = Waiting {
            events: rest,
            recalled,
        };
        self.untold.0.insert(*attempt, waiting);
        Ok(())
    }

    pub(super) fn tell(&self, event: &Event) -> Result<(), StoreError> {
        self.parts.events.append(event)
    }

    /// Reads what an earlier run did not come to tell.
    pub(super) fn recall_untold(&mut self, attempt: Attempt) -> Result<(), StoreError> {
        let events = read(&self.parts.store, &attempt)?;
        let recalled = events.len();
        self.untold.0.insert(attempt, Waiting { events, recalled });
        Ok(())
    }

    /// Tells what an earlier run did not come to tell and this one has no cause to, as soon as that
    /// can be written.
    pub(super) fn tell_the_rest(&mut self) {
        for attempt in self.attempts() {
            let recalled = self.untold.of(&attempt).recalled;
            if recalled > 0
                && let Err(error) = self.tell_through(&attempt, recalled, None)
            {
                let factory = bridge::name(&attempt);
                tracing::warn!(factory, %error, "told with a later block");
            }
        }
    }

    /// What this run was about to tell will not be done.
    pub(super) fn drop_untold(&mut self, attempt: &Attempt) {
        let mut waiting = self.untold.of(attempt);
        if waiting.events.len() == waiting.recalled {
            return;
        }
        waiting.events.truncate(waiting.recalled);
        let left = written(&waiting.events);
        let dropped = left.and_then(|it| self.parts.store.set_setting(&setting(attempt), &it));
        if let Err(error) = dropped {
            tracing::warn!(%error, "told at the next start, though it was not done");
        }
        self.untold.0.insert(*attempt, waiting);
    }
}

/// What an event is called in the SDK; `None` where it answers a question instead.
fn said(attempt: &Attempt, event: &CoreEvent) -> Option<Event> {
    let factory = bridge::name(attempt);
    Some(match event {
        CoreEvent::Joined(slot) => Event::FactoryJoined {
            factory,
            slot: slot.slot,
        },
        CoreEvent::Signing(_) => Event::FactorySigning { factory },
        CoreEvent::Complete(_) => Event::FactoryComplete { factory },
        CoreEvent::Published { funding, .. } => Event::FactoryPublished {
            factory,
            funding: funding.to_string(),
        },
        CoreEvent::Active { height, .. } => Event::FactoryActive {
            factory,
            height: *height,
        },
        CoreEvent::Reorged(_) => Event::FactoryReorged { factory },
        CoreEvent::Unfunded(_) => Event::FactoryUnfunded { factory },
        CoreEvent::Dormant { code, .. } => Event::FactoryDormant {
            factory,
            reason: code.to_string(),
        },
        CoreEvent::Refused {
            peer, code, field, ..
        } => Event::FactoryRefused {
            factory,
            peer: peer.to_string(),
            reason: code.to_string(),
            field: field.clone(),
        },
        CoreEvent::Ended { code, at_fault, .. } => Event::FactoryEnded {
            factory,
            reason: code.to_string(),
            at_fault: at_fault.clone(),
        },
        CoreEvent::Moved { slot, version } => Event::EpochMoved {
            factory,
            slot: slot.slot,
            version: *version,
        },
        CoreEvent::Left { slot, forgone_msat } => Event::FactoryLeft {
            factory,
            slot: slot.slot,
            forgone_msat: *forgone_msat,
        },
        CoreEvent::EpochSigned { epoch, .. } => Event::EpochSigned {
            factory,
            epoch: epoch.to_string(),
        },
        CoreEvent::EpochEnded {
            epoch,
            code,
            at_fault,
            ..
        } => Event::EpochEnded {
            factory,
            epoch: epoch.to_string(),
            reason: code.to_string(),
            at_fault: at_fault.clone(),
        },
        CoreEvent::EpochHangs { epoch, silent, .. } => Event::EpochHangs {
            factory,
            epoch: epoch.to_string(),
            silent: silent.clone(),
        },
        CoreEvent::Limbo { slot, frozen_msat } => Event::EpochLimbo {
            factory,
            slot: slot.slot,
            most_msat: *frozen_msat,
        },
        CoreEvent::Unguarded { slot, version } => Event::EpochUnguarded {
            factory,
            slot: slot.slot,
            version: *version,
        },
        CoreEvent::EpochEquivocation { slot, epoch, peer } => Event::EpochEquivocation {
            factory,
            slot: slot.slot,
            epoch: epoch.to_string(),
            peer: peer.to_string(),
        },
        CoreEvent::Delivered { id, amount } => Event::InboundDelivered {
            factory,
            slot: id.slot.slot,
            channel: id.seq,
            capacity_sat: amount.to_sat(),
        },
        CoreEvent::Paid { id, price_msat } => Event::InboundPaid {
            factory,
            slot: id.slot.slot,
            channel: id.seq,
            price_msat: *price_msat,
        },
        CoreEvent::Withheld(id) => Event::InboundWithheld {
            factory,
            slot: id.slot.slot,
            channel: id.seq,
        },
        CoreEvent::Equivocation { id, peer } => Event::FactoryEquivocation {
            factory,
            slot: id.slot.slot,
            channel: id.seq,
            peer: peer.to_string(),
        },
        // Quotes and their refusals.
        _ => return None,
    })
}
