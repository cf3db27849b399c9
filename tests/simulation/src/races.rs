//! Races on chain: the newest state against older ones, sales against the LSP's delay on stock, and
//! what is taken of stock that an older epoch brings back.
//!
//! Who looked at the chain in time must win: from the look on in which what is newest could be in
//! the next block, and nothing else was waiting for it, nothing else may spend the same, unless a
//! reorg or a mempool that forgets comes between. That is worked out here from heights alone, not
//! asked of the planner.

use bitcoin::{FeeRate, OutPoint, Transaction, Txid};
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::exit::reclaim::Reclaim;
use superscalar_factory::exit::stale;
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Attempt;

use crate::invariants::{Invariant, Violation, ensure};
use crate::observer::name;
use crate::party::{Place, Role, Who};
use crate::world::World;

/// What stock is taken at, in sat/vB.
const RECLAIM_SAT_PER_VB: u32 = 3;

impl World {
    /// An honest party, or its tower, has looked at a place: what it holds that could be in the next
    /// block has to win from now on. `taken` are outputs that are the member's as a whole, which no
    /// sale of then divides, and what takes them.
    pub(crate) fn races(
        &self,
        path: &SignedPath,
        taken: &[(OutPoint, Txid)],
    ) -> Vec<(OutPoint, Txid)> {
        let timing = &path.header().timing;
        let next = self.chain.tip() + 1;
        let mut found: Vec<(OutPoint, Txid)> = Vec::new();
        for node in path.nodes() {
            let Some(opened) = self.chain.height_of(&node.kickoff.compute_txid()) else {
                continue;
            };
            let (epoch, newest) = node.newest();
            let delay = timing.state_delay(epoch).map_or(u32::MAX, u32::from);
            if next >= opened.saturating_add(delay.max(1)) {
                found.push((node.started(), newest.state.compute_txid()));
            }
        }
        for chain in path.sales() {
            let mut parent = chain.origin().outpoint.txid;
            for sold in chain.links() {
                if self.chain.height_of(&parent).is_none() {
                    break;
                }
                parent = sold.link().channel.txid;
                let stock = sold.stock().outpoint();
                if taken.iter().any(|(outpoint, _)| *outpoint == stock) {
                    break;
                }
                found.push((stock, parent));
            }
        }
        let there = |outpoint: &OutPoint| self.chain.height_of(&outpoint.txid).is_some();
        found.extend(taken.iter().filter(|(outpoint, _)| there(outpoint)));
        found.retain(|(outpoint, ours)| {
            let spender = self.chain.spender(outpoint);
            spender.is_none_or(|it| it.txid == *ours)
        });
        found
    }

    /// Nobody who was in time is outrun.
    pub(crate) fn check_races(&self) -> Result<(), Violation> {
        for (outpoint, ours) in &self.races {
            let Some(spend) = self.chain.spender(outpoint) else {
                continue;
            };
            let lost = spend.txid != *ours && spend.height.is_some();
            ensure(!lost, Invariant::Race, || {
                format!("{outpoint} is spent by {}, not by {ours}", spend.txid)
            })?;
        }
        Ok(())
    }

    /// A member takes stock that somebody has brought back, with what revokes it.
    pub(crate) fn sweep_stale(&mut self, number: u16, place: Place) {
        let wallet = &self.wallets[usize::from(number)];
        let kept = wallet.live.as_ref().and_then(|live| live.kept.get(&place));
        let Some(kept) = kept.filter(|kept| !kept.sweeps.is_empty()) else {
            return;
        };
        let facts = self.chain.facts(&kept.path.funding(), &kept.watched);
        let due = stale::due(&kept.sweeps, &facts);
        let due: Vec<Transaction> = due
            .into_iter()
            .filter_map(|sweep| sweep.transactions.last().cloned())
            .collect();
        for tx in due {
            if self.chain.submit(&tx).is_ok() {
                self.counts.swept += 1;
                self.note(format_args!(
                    "wallet {number} takes stock that was sold back"
                ));
            }
        }
    }

    /// The LSP takes what is left of stock after its delay. One that cheats does so from a disk of
    /// before its sales and epochs, too.
    pub(crate) fn take_stock(&mut self) {
        let Some(live) = &self.lsp.live else { return };
        // It costs more than all else a look does, and is in no hurry.
        if !self.chain.tip().is_multiple_of(8) {
            return;
        }
        let attempts: Vec<Attempt> = live.roles.keys().copied().collect();
        for attempt in attempts {
            let Some(Role::Coordinator(role)) = self.lsp.role(&attempt) else {
                continue;
            };
            let Some(built) = role.built().filter(|built| built.complete()) else {
                continue;
            };
            if self.chain.spender(&built.tree.funding).is_none() {
                continue;
            }
            self.reclaim_stock(&attempt, None);
            if !self.lsp.is_honest()
                && self.dice.per_mille(250)
                && let Some(old) = self.old_disk(&attempt)
            {
                self.reclaim_stock(&attempt, Some(old));
            }
        }
    }

    /// The role as it was before anything was sold or moved.
    fn old_disk(&self, attempt: &Attempt) -> Option<Coordinator> {
        let records = self.lsp.records(attempt);
        let later =
            |record: &Record| matches!(record, Record::LspSaleSigned(_) | Record::LspEpochBuilt(_));
        let before = records.iter().position(later)?;
        let replayed = Coordinator::replay(&self.lsp.seed, &records[..before], self.chain.tip());
        replayed.ok().map(|(role, _)| role)
    }

    fn reclaim_stock(&mut self, attempt: &Attempt, old: Option<Coordinator>) {
        let role = match (&old, self.lsp.role(attempt)) {
            (Some(role), _) => role,
            (None, Some(Role::Coordinator(role))) => role,
            _ => return,
        };
        let Some(built) = role.built() else { return };
        let outpoints: Vec<OutPoint> = role.outpoints().into_iter().collect();
        let facts = self.chain.facts(&built.tree.funding, &outpoints);
        let trees: Vec<OutPoint> = built.tree.outpoints().into_iter().collect();
        let feerate = FeeRate::from_sat_per_vb_u32(RECLAIM_SAT_PER_VB);
        // Branches that nobody has opened are not taken in this world.
        let stock = |it: &Reclaim| !trees.contains(&it.outpoint) && it.is_due(&facts);
        let due = role.reclaims(&facts);
        let due = due.iter().filter(|it| stock(it));
        let due: Vec<Transaction> = due.filter_map(|it| it.spend(role.key(), feerate)).collect();
        for tx in due {
            if self.chain.submit(&tx).is_ok() {
                self.counts.reclaimed += 1;
                let name = name(attempt);
                self.note(format_args!("the LSP takes stock of {name} back"));
                if old.is_some() {
                    let stock = tx.input[0].previous_output;
                    self.note_slept(attempt, stock);
                }
            }
        }
    }

    /// The LSP takes stock that was sold from: nobody may have looked in time.
    fn note_slept(&mut self, attempt: &Attempt, stock: OutPoint) {
        for wallet in &self.wallets {
            let Some(Role::Member(role)) = wallet.role(attempt) else {
                continue;
            };
            let chains = role.stock_chain().into_iter();
            let chains = chains.chain(role.retired_stock().into_iter().map(|(chain, _)| chain));
            for chain in chains {
                let links = chain.links().iter();
                let lost = links.skip_while(|sold| sold.stock().outpoint() != stock);
                self.slept.extend(lost.map(|sold| sold.link().channel.txid));
            }
        }
    }

    /// Hostile: every transaction that is held of epochs that are not the newest, where there are such.
    pub(crate) fn publish_all(&mut self, who: Who, attempt: &Attempt) -> bool {
        let txs = self.older(who, attempt, 500);
        self.publish(who, &txs)
    }

    /// Those transactions, with what was sold in so many places of a thousand.
    pub(crate) fn older(&mut self, who: Who, attempt: &Attempt, sold: u32) -> Vec<Transaction> {
        let slots: Vec<u16> = match self.party(who).role(attempt) {
            Some(Role::Coordinator(role)) => role.places().map(|slot| slot.slot).collect(),
            Some(Role::Member(role)) => vec![role.slot().slot],
            None => Vec::new(),
        };
        let mut txs: Vec<Transaction> = Vec::new();
        for slot in slots {
            let path = match self.party(who).role(attempt) {
                Some(Role::Coordinator(role)) => role.signed_path(slot),
                Some(Role::Member(role)) => role.signed_path(),
                None => None,
            };
            let Some(Ok(path)) = path else { continue };
            for node in path.nodes() {
                txs.push(node.kickoff.clone());
                let older = node.epochs.len().saturating_sub(1).max(1);
                let states = node.epochs.values().take(older);
                txs.extend(states.map(|epoch| epoch.state.clone()));
            }
            if self.dice.per_mille(sold) {
                let sold = path.sales().iter().flat_map(|chain| chain.links());
                txs.extend(sold.map(|sold| sold.transaction().clone()));
            }
        }
        txs
    }

    pub(crate) fn publish(&mut self, who: Who, txs: &[Transaction]) -> bool {
        let mut any = false;
        for tx in txs {
            if self.chain.submit(tx).is_ok() {
                any = true;
                let txid = tx.compute_txid();
                self.note(format_args!("{who} publishes {txid} of its own accord"));
            }
        }
        any
    }

    /// What only the LSP could complete, and is on chain or about to be.
    pub(crate) fn states_seen(&self, role: &Member) -> Vec<Transaction> {
        let mut seen: Vec<Transaction> = Vec::new();
        for tree in role.newer_trees() {
            for node in tree.topology().path(role.slot().slot) {
                let state = tree.node(node).map(|node| &node.state);
                let Some(state) = state else { continue };
                let outpoint = state.tx.input[0].previous_output;
                let spend = self.chain.spender(&outpoint);
                if spend.is_some_and(|spend| spend.txid == state.txid()) {
                    seen.extend(self.chain.any_transaction(&state.txid()).cloned());
                }
            }
        }
        seen
    }

    /// Whether something of that is not part of what a party has read from its disk.
    pub(crate) fn has_news(&self, who: Who, place: &Place) -> bool {
        let party = self.party(who);
        let kept = party.live.as_ref().and_then(|live| live.kept.get(place));
        let (Some(Role::Member(role)), Some(kept)) = (party.role(&place.0), kept) else {
            return false;
        };
        let states = kept
            .path
            .nodes()
            .iter()
            .flat_map(|node| node.epochs.values());
        let known: Vec<Txid> = states.map(|epoch| epoch.state.compute_txid()).collect();
        let seen = self.states_seen(role);
        seen.iter().any(|tx| !known.contains(&tx.compute_txid()))
    }

    pub(crate) fn tell_states(&mut self, who: Who, attempt: Attempt) {
        let Some(Role::Member(role)) = self.party(who).role(&attempt) else {
            return;
        };
        for tx in self.states_seen(role) {
            let Some(Role::Member(role)) = self.party_mut(who).role_mut(&attempt) else {
                return;
            };
            let effects = role.handle(member::Input::StateSeen(tx));
            self.counts.late += u64::from(!effects.is_empty());
            self.queue(who, attempt, effects);
        }
    }
}
