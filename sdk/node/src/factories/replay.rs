//! All roles back from their journals, after a start.
//!
//! What always holds: a journal that cannot be read stops its own factory and nothing else. Its
//! bytes stay as they are, its channel carries nothing new, nothing is said or signed in it.

use bitcoin::Txid;
use superscalar_factory::codec::Decode as _;
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::effect::Effect;
use superscalar_factory::journal::Record;
use superscalar_factory::member::Member;
use superscalar_factory::message::Attempt;

use super::bridge;
use super::engine::Engine;
use crate::event::Event;
use crate::hosting::SlotPhase;
use crate::onchain::OnchainError;
use crate::store::JournalRecord;
use crate::store::StoreError;

impl Engine {
    /// Reads all journals and queues what they leave to be done.
    pub(super) fn replay_all(&mut self) -> Result<(), StoreError> {
        for stream in self.parts.store.streams()? {
            let Some((attempt, is_lsp)) = bridge::attempt_of(&stream) else {
                continue;
            };
            let records = self.parts.store.records(&stream)?;
            match self.replay(attempt, is_lsp, &records) {
                Ok(effects) => {
                    self.recall_untold(attempt)?;
                    self.epochs.named(&effects);
                    tracing::info!(factory = bridge::name(&attempt), "replayed");
                    self.due
                        .extend(effects.into_iter().map(|effect| (attempt, effect)));
                }
                Err(detail) => self.quarantine(attempt, detail),
            }
        }
        // What users have said holds before anybody is heard.
        let members: Vec<Attempt> = self.members.keys().copied().collect();
        members.iter().for_each(|it| self.set_epoch_limits(it));
        Ok(())
    }

    fn replay(
        &mut self,
        attempt: Attempt,
        is_lsp: bool,
        records: &[JournalRecord],
    ) -> Result<Vec<Effect>, String> {
        let records: Vec<Record> = records
            .iter()
            .map(|stored| Record::from_bytes(&stored.record, "record"))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let seed = self.parts.factory_seed.expose();
        let of_another = || "its records are another factory's".to_owned();
        if is_lsp {
            let replayed = Coordinator::replay(seed, &records, self.tip);
            let (mut role, effects) = replayed.map_err(|error| error.to_string())?;
            role.set_sale_policy(self.parts.sales.clone());
            (role.attempt() == attempt)
                .then_some(())
                .ok_or_else(of_another)?;
            self.coordinators.insert(attempt, role);
            Ok(effects)
        } else {
            let replayed = Member::replay(seed, &records, self.tip);
            let (role, effects) = replayed.map_err(|error| error.to_string())?;
            (role.attempt() == attempt)
                .then_some(())
                .ok_or_else(of_another)?;
            self.members.insert(attempt, role);
            Ok(effects)
        }
    }

    fn quarantine(&mut self, attempt: Attempt, detail: String) {
        let factory = bridge::name(&attempt);
        tracing::error!(factory, detail, "the journal of a factory cannot be read");
        let told = self.tell(&Event::FactoryDamaged {
            factory,
            detail: detail.clone(),
        });
        if let Err(error) = told {
            tracing::error!(%error, "the application was not told of a damaged factory");
        }
        self.damaged.insert(attempt, detail);
    }

    /// A funding may have left the chain while we were away: its channels were open then. And in a
    /// damaged factory nothing can be brought on chain that is received from now on.
    pub(super) fn suspend_unburied(&self) {
        for slot in self.parts.host.slots() {
            // A resting one is shown as frozen.
            let open = matches!(slot.phase, SlotPhase::Active | SlotPhase::Frozen);
            let Some(place) = bridge::slot_ref(&slot.channel.slot).filter(|_| open) else {
                continue;
            };
            let member = self.members.get(&place.attempt).map(Member::is_active);
            let lsp = self
                .coordinators
                .get(&place.attempt)
                .map(Coordinator::is_active);
            if member.or(lsp) != Some(true)
                && let Err(error) = self.parts.host.freeze(&slot.channel.slot)
            {
                tracing::warn!(%error, "a channel without a funding was not frozen");
            }
        }
    }

    /// A crash between reserving a funding's coins and its record leaves a reservation that no
    /// journal names: nobody was told of that funding, so its coins are free. The same holds for an
    /// ordinary channel's (P2WSH) that neither LDK nor a sale names. A journal that cannot be read
    /// may name any: none is freed then.
    pub(super) fn free_unnamed_fundings(&self) -> Result<(), OnchainError> {
        if !self.damaged.is_empty() {
            return Ok(());
        }
        let named: Vec<Txid> = self
            .coordinators
            .values()
            .filter_map(Coordinator::built)
            .map(|built| built.tree.funding.txid)
            .chain(self.parts.host.named_fundings())
            .collect();
        for tx in self.parts.onchain.reserved()? {
            let txid = tx.compute_txid();
            if !named.contains(&txid)
                && let Err(error) = self.parts.onchain.release(txid)
            {
                tracing::info!(%txid, %error, "a reservation stays");
            }
        }
        Ok(())
    }
}
