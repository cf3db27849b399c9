//! What others publish of our factories: told once, when it is first seen, and again if it leaves the
//! chain.
//!
//! What always holds: what we hand over ourselves is written down before, and is not told; an event
//! is written together with the note that it was told, so that no restart tells it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::member::Member;
use superscalar_factory::message::Attempt;
use superscalar_factory::stock::StockChain;
use superscalar_factory::tree::{Role, Tree};

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;
use crate::chain::OutPointStatus;
use crate::event::{Event, TreeEdition, TreeTxKind};
use crate::store::{Store, StoreError};

/// What is known of a transaction before it is seen.
#[derive(Clone, Debug)]
struct Known {
    kind: TreeTxKind,
    edition: TreeEdition,
    /// The places below it.
    slots: Vec<u16>,
    /// To whom it pays where it takes what the LSP has revoked.
    taker: Option<ScriptBuf>,
}

/// Everything that may spend the outputs of one factory.
#[derive(Default)]
struct Picture {
    txs: HashMap<Txid, Known>,
    /// What is looked at, by the transaction it is an output of, and what an unknown spender would
    /// be.
    outputs: BTreeMap<Txid, BTreeMap<OutPoint, Known>>,
}

impl Picture {
    /// Of the same transaction in several epochs the last one that is added counts.
    fn add_tree(&mut self, tree: &Tree, edition: TreeEdition) {
        for node in tree.nodes() {
            for tx in node.transactions() {
                let known = |kind| Known {
                    kind,
                    edition,
                    taker: None,
                    slots: node.node.slots.clone().collect(),
                };
                let kind = match tx.name.role {
                    Role::Kickoff => TreeTxKind::Kickoff,
                    Role::State => TreeTxKind::State,
                    Role::Distribution => TreeTxKind::Distribution,
                    Role::Sale(_) => TreeTxKind::Sale,
                };
                self.txs.insert(tx.txid(), known(kind));
                self.look_at(tx.tx.input[0].previous_output, known(TreeTxKind::Other));
            }
        }
    }

    /// Of a retired chain with who takes it; it is of an older epoch.
    fn add_chain(&mut self, chain: &StockChain, slot: u16, taker: Option<&ScriptBuf>) {
        let known = |kind| Known {
            kind,
            edition: match taker {
                Some(_) => TreeEdition::Older,
                None => TreeEdition::Newest,
            },
            slots: vec![slot],
            taker: taker.filter(|_| kind == TreeTxKind::Stock).cloned(),
        };
        for sold in chain.links() {
            let txid = sold.link().channel.txid;
            self.txs.insert(txid, known(TreeTxKind::Sale));
        }
        for stock in chain.stocks() {
            self.look_at(stock.outpoint(), known(TreeTxKind::Stock));
        }
    }

    fn look_at(&mut self, output: OutPoint, spender: Known) {
        let outputs = self.outputs.entry(output.txid).or_default();
        outputs.insert(output, spender);
    }
}

/// What was made of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Noted {
    /// Handed over by us before anybody else's was seen.
    Ours,
    /// The same, and told as what it takes, in the block of this height.
    OursTaken { height: u32 },
    /// Told; in the block of this height, or in the mempool when it was last seen.
    Told { height: Option<u32> },
}

type Notes = BTreeMap<Txid, Noted>;

/// By attempt, what was published by us and told of others, as far as it was asked for.
#[derive(Debug, Default)]
pub(super) struct Others(BTreeMap<Attempt, Notes>);

impl Others {
    fn of(&mut self, store: &Store, attempt: &Attempt) -> Result<Notes, StoreError> {
        if let Some(known) = self.0.get(attempt) {
            return Ok(known.clone());
        }
        let notes: Option<Notes> = store.json_setting(&setting(attempt))?;
        let notes = notes.unwrap_or_default();
        self.0.insert(*attempt, notes.clone());
        Ok(notes)
    }
}

/// Where it is written what was published and told.
fn setting(attempt: &Attempt) -> String {
    format!("tree_transactions {}", bridge::name(attempt))
}

/// What is there now.
struct Seen {
    txid: Txid,
    /// Of its block.
    height: Option<u32>,
    known: Known,
    /// What it pays to who takes revoked stock.
    taken: Amount,
}

impl Engine {
    /// Notes that we are about to publish this, unless somebody else has done so before.
    pub(super) async fn note_ours(&mut self, attempt: &Attempt, tx: &Transaction) {
        let txid = tx.compute_txid();
        if let Err(error) = self.try_to_note(attempt, tx, txid).await {
            tracing::warn!(%txid, %error, "it will be told as somebody else's");
        }
    }

    async fn try_to_note(
        &mut self,
        attempt: &Attempt,
        tx: &Transaction,
        txid: Txid,
    ) -> Result<(), EngineError> {
        let mut notes = self.others.of(&self.parts.store, attempt)?;
        if notes.contains_key(&txid) {
            return Ok(());
        }
        let output = tx.input[0].previous_output;
        let is_there = match self.parts.chain.outpoint_status(output).await? {
            OutPointStatus::Unspent => false,
            OutPointStatus::SpentInMempool(other) => other == txid,
            OutPointStatus::Spent(spend) => spend.spender.compute_txid() == txid,
        };
        if !is_there {
            notes.insert(txid, Noted::Ours);
            self.write_notes(attempt, notes, &[])?;
        }
        Ok(())
    }

    fn write_notes(
        &mut self,
        attempt: &Attempt,
        notes: Notes,
        events: &[Event],
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(&notes).map_err(StoreError::corrupt)?;
        let setting = setting(attempt);
        self.parts.events.append_with(events, &setting, &bytes)?;
        self.others.0.insert(*attempt, notes);
        Ok(())
    }

    /// With every block: tells what others have published.
    pub(super) async fn look_for_others(&mut self) {
        for attempt in self.attempts() {
            if let Err(error) = self.look_for_others_in(attempt).await {
                let factory = bridge::name(&attempt);
                tracing::warn!(factory, %error, "what others published is told later");
            }
        }
    }

    async fn look_for_others_in(&mut self, attempt: Attempt) -> Result<(), EngineError> {
        let noted = self.others.of(&self.parts.store, &attempt)?;
        let Some(funding) = self.funding_of(&attempt) else {
            return Ok(());
        };
        let watcher = self.parts.chain.watcher();
        if noted.is_empty() && watcher.confirmation(&funding.txid).is_none() {
            return Ok(());
        }
        let opened = self.parts.chain.outpoint_status(funding).await?;
        if matches!(opened, OutPointStatus::Unspent) && noted.is_empty() {
            return Ok(());
        }
        let seen = self.seen_below(&self.picture(&attempt), funding).await?;
        let (now, events) = compared(&bridge::name(&attempt), &noted, seen);
        match now == noted && events.is_empty() {
            true => Ok(()),
            false => Ok(self.write_notes(&attempt, now, &events)?),
        }
    }

    /// Walks from the funding output to everything that is in mempool or chain.
    async fn seen_below(
        &self,
        picture: &Picture,
        funding: OutPoint,
    ) -> Result<Vec<Seen>, EngineError> {
        let mut seen = Vec::new();
        let mut reached = vec![funding.txid];
        let mut walked = BTreeSet::new();
        while let Some(parent) = reached.pop() {
            let outputs = picture
                .outputs
                .get(&parent)
                .filter(|_| walked.insert(parent));
            for (output, unknown) in outputs.into_iter().flatten() {
                let (txid, confirmed) = match self.parts.chain.outpoint_status(*output).await? {
                    OutPointStatus::Unspent => continue,
                    OutPointStatus::SpentInMempool(txid) => (txid, None),
                    OutPointStatus::Spent(spend) => (spend.spender.compute_txid(), Some(spend)),
                };
                let known = picture.txs.get(&txid).unwrap_or(unknown);
                let outputs = confirmed.iter().flat_map(|it| &it.spender.output);
                let to = known.taker.as_ref();
                let taken = outputs.filter(|it| Some(&it.script_pubkey) == to);
                seen.push(Seen {
                    txid,
                    height: confirmed.as_ref().map(|it| it.confirmation.height),
                    known: known.clone(),
                    taken: taken.map(|it| it.value).sum(),
                });
                reached.push(txid);
            }
        }
        Ok(seen)
    }

    fn picture(&self, attempt: &Attempt) -> Picture {
        let mut picture = Picture::default();
        if let Some(role) = self.members.get(attempt) {
            picture_of_member(role, &mut picture);
        } else if let Some(role) = self.coordinators.get(attempt) {
            picture_of_lsp(role, &mut picture);
        }
        picture
    }
}

/// What is to be noted now, and what of it is told.
fn compared(factory: &str, noted: &Notes, seen: Vec<Seen>) -> (Notes, Vec<Event>) {
    let (mut now, mut events) = (noted.clone(), Vec::new());
    let confirmed = |txid: &Txid| {
        let mut all = seen.iter();
        all.any(|it| it.txid == *txid && it.height.is_some())
    };
    for (txid, note) in noted {
        let height = match note {
            Noted::OursTaken { height } => Some(*height),
            Noted::Told { height } => *height,
            Noted::Ours => None,
        };
        if let Some(height) = height.filter(|_| !confirmed(txid)) {
            events.push(Event::TreeTransactionReorged {
                factory: factory.to_owned(),
                txid: txid.to_string(),
                height,
            });
            match note {
                Noted::OursTaken { .. } => now.insert(*txid, Noted::Ours),
                _ => now.remove(txid),
            };
        }
    }
    for it in &seen {
        let before = now.get(&it.txid).copied();
        let told = Noted::Told { height: it.height };
        let was_confirmed = matches!(
            before,
            Some(Noted::OursTaken { .. } | Noted::Told { height: Some(_) })
        );
        // Also where it is our own: it is money that came.
        if let Some((taken, height)) = it.taken(factory).filter(|_| !was_confirmed) {
            let note = match before {
                Some(Noted::Ours) => Noted::OursTaken { height },
                _ => told,
            };
            now.insert(it.txid, note);
            events.push(taken);
            continue;
        }
        match before {
            Some(Noted::Ours | Noted::OursTaken { .. }) => {}
            Some(Noted::Told { height }) => {
                let height = it.height.or(height);
                now.insert(it.txid, Noted::Told { height });
            }
            None => {
                now.insert(it.txid, told);
                events.push(it.published(factory));
            }
        }
    }
    (now, events)
}

impl Seen {
    /// That somebody has published it.
    fn published(&self, factory: &str) -> Event {
        Event::TreeTransaction {
            factory: factory.to_owned(),
            txid: self.txid.to_string(),
            kind: self.known.kind,
            edition: self.known.edition,
            slots: self.known.slots.clone(),
            height: self.height,
        }
    }

    /// That it has taken what was revoked, and at which height.
    fn taken(&self, factory: &str) -> Option<(Event, u32)> {
        let height = self.height?;
        let taken = Event::StockTaken {
            factory: factory.to_owned(),
            slot: *self.known.slots.first()?,
            txid: self.txid.to_string(),
            amount_sat: self.taken.to_sat(),
            height,
        };
        (self.taken > Amount::ZERO).then_some((taken, height))
    }
}

fn picture_of_member(role: &Member, picture: &mut Picture) {
    for tree in role.newer_trees() {
        picture.add_tree(tree, TreeEdition::Undecided);
    }
    for tree in role.tree().into_iter().chain(role.switched_trees()) {
        picture.add_tree(tree, TreeEdition::Older);
    }
    if let Some(tree) = role.switched_trees().last().or(role.tree()) {
        picture.add_tree(tree, TreeEdition::Newest);
    }
    let slot = role.slot().slot;
    for (chain, _) in role.retired_stock() {
        let taker = role.path().map(|path| &path.terms().facts.record.payout);
        picture.add_chain(chain, slot, taker);
    }
    if let Some(chain) = role.stock_chain() {
        picture.add_chain(chain, slot, None);
    }
}

fn picture_of_lsp(role: &Coordinator, picture: &mut Picture) {
    for tree in role.trees() {
        picture.add_tree(tree, TreeEdition::Older);
    }
    if let Some(tree) = role.newest_tree() {
        picture.add_tree(tree, TreeEdition::Newest);
    }
    let records = role.built().map(|built| built.terms.slots.as_slice());
    let records = records.unwrap_or_default();
    let slot_of = |chain: &StockChain| {
        let key = chain.origin().member_key;
        let place = records.iter().position(|record| record.member_key == key);
        place.and_then(|place| u16::try_from(place).ok())
    };
    for chain in role.retired_chains() {
        if let Some(slot) = slot_of(chain) {
            let taker = &records[usize::from(slot)].payout;
            picture.add_chain(chain, slot, Some(taker));
        }
    }
    for chain in role.stock_chains() {
        if let Some(slot) = slot_of(&chain) {
            picture.add_chain(&chain, slot, None);
        }
    }
}
