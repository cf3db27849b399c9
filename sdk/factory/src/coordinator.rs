//! The LSP's side of building a factory, as a state machine without I/O: one per attempt.
//!
//! What always holds: the funding transaction is fixed before the terms leave and published only
//! when every member has acknowledged the complete path; the LSP's own partial signatures never
//! leave; whoever is silent or signs badly is named, and no coin was committed.

mod built;
mod chain;
mod ending;
mod input;
mod moving;
mod plan;
mod replay;
mod say;
mod selling;
mod signing;

use std::collections::BTreeSet;

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::{OutPoint, Transaction};

use crate::effect::{Effect, Event, SlotRef};
use crate::epoch::Conductor;
use crate::journal::{LspGathering, LspNodes, LspPublished, LspRoot, LspTerms};
use crate::member::PROTOCOL;
use crate::message::{
    Attempt, Identity, Invite, Join, Message, NodeSigs, PartialSigs, RefusalCode, RootAck,
    RootPartial, RootSig, TermsMessage,
};
use crate::sale::Seller;
use crate::terms::Terms;
use crate::tree::Blueprint;
use say::{refuse, send};
use signing::Signing;

pub use built::Built;
pub use input::Input;
pub use plan::{
    EpochStockOutput, FactoryPlan, LspSecrets, PlanError, Seat, StockOutput, epoch_stock_preimage,
    group_sizes, stock_preimage,
};

/// One attempt to build one factory.
#[derive(Debug)]
pub struct Coordinator {
    attempt: Attempt,
    peers: Vec<PublicKey>,
    invites: Vec<Invite>,
    lsp_funding_keys: Vec<PublicKey>,
    secrets: LspSecrets,
    phase: Phase,
    tip: u32,
    funding_height: Option<u32>,
    open: bool,
    /// Height from which the funding is waited for.
    waiting_since: u32,
    /// Whether it was waited for too long already.
    unfunded: bool,
    /// The members' factory keys, as far as they were accepted.
    member_keys: BTreeSet<XOnlyPublicKey>,
    seller: Seller,
    conductor: Conductor,
}

#[derive(Debug)]
enum Phase {
    /// Waiting for Join.
    Gathering {
        joins: Vec<Option<Join>>,
    },
    /// Waiting for the funding transaction.
    Funding {
        terms: Terms,
        blueprint: Box<Blueprint>,
        joins: Vec<Join>,
    },
    /// Waiting for PartialSigs.
    Signing {
        built: Box<Built>,
        signing: Box<Signing>,
        messages: Vec<TermsMessage>,
    },
    /// Waiting for channels and RootPartial.
    Opening {
        built: Box<Built>,
        signing: Box<Signing>,
        held: BTreeSet<u16>,
    },
    /// Waiting for RootAck.
    Acking {
        built: Box<Built>,
        acked: BTreeSet<u16>,
    },
    /// The funding is published.
    Published {
        built: Box<Built>,
        active: Option<u32>,
    },
    Ended(RefusalCode),
}

impl Coordinator {
    /// Invites the members of `plan`.
    ///
    /// `lsp_funding_keys` are the LSP's keys in the channels' 2-of-2s, in slot order.
    pub fn start(
        plan: &FactoryPlan,
        secrets: LspSecrets,
        lsp_funding_keys: Vec<PublicKey>,
        tip: u32,
    ) -> Result<(Coordinator, Vec<Effect>), PlanError> {
        let invites = plan.invites(&secrets)?;
        if lsp_funding_keys.len() != invites.len() {
            return Err(PlanError::FundingKeys {
                given: lsp_funding_keys.len(),
                seats: invites.len(),
            });
        }
        let peers: Vec<PublicKey> = plan.seats.iter().map(|seat| seat.peer).collect();
        let record = LspGathering {
            salt: secrets.salt(),
            peers: peers.clone(),
            invites: invites.clone(),
        };
        let mut effects = vec![Effect::Persist(record.into())];
        for (peer, invite) in peers.iter().zip(&invites) {
            effects.push(send(*peer, invite.clone()));
        }
        let coordinator = Coordinator {
            attempt: plan.attempt,
            phase: Phase::Gathering {
                joins: vec![None; peers.len()],
            },
            peers,
            invites,
            lsp_funding_keys,
            secrets,
            tip,
            funding_height: None,
            open: false,
            waiting_since: tip,
            unfunded: false,
            member_keys: BTreeSet::new(),
            seller: Seller::default(),
            conductor: Conductor::default(),
        };
        Ok((coordinator, effects))
    }

    /// Tells the role what happened; what it wants done comes back in order.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Message { from, message } => self.message(from, message),
            Input::RepeatedKey { from } => self.refuse(from, RefusalCode::Key, "member_key"),
            Input::Connected(peer) => self.connected(peer),
            Input::Funded { tx, vout } => self.funded(tx, vout),
            Input::FundingFailed => match self.phase {
                Phase::Funding { .. } => self.end(RefusalCode::Funding, &[]),
                _ => Vec::new(),
            },
            Input::ChannelHeld(slot) => self.channel_held(slot),
            Input::ChannelLost(slot) => match self.phase {
                // Until the funding is published nothing is lost by starting again.
                Phase::Opening { .. } | Phase::Acking { .. } => {
                    self.end(RefusalCode::Channel, &[slot])
                }
                _ => self.place_ended(slot),
            },
            Input::TimedOut => self.timed_out(),
            Input::FundingConfirmed { height } => {
                self.funding_height = Some(height);
                self.bury()
            }
            Input::FundingReorged => self.funding_reorged(),
            Input::Height(tip) => self.height(tip),
            Input::TreeSeen => self.tree_seen(),
            Input::QuotePrepared { wanted, backing } => {
                self.sell(|seller, ground| seller.prepared(ground, &wanted, backing))
            }
            Input::BoughtHeld(id) => self.sell(|seller, ground| seller.held(ground, id)),
            Input::BoughtLost(id) => self.sell(|seller, ground| seller.lost(ground, id)),
            Input::SalePaid { payment_hash } => {
                self.sell(|seller, ground| seller.paid(ground, payment_hash))
            }
            Input::Frozen { slot, balances } => {
                self.conduct(|conductor, ground| conductor.frozen(ground, slot, &balances))
            }
            Input::MovedHeld(id) => self.conduct(|conductor, ground| conductor.held(ground, id)),
            Input::MovedLost(id) => self.conduct(|conductor, ground| conductor.lost(ground, id)),
            Input::EpochRandomness(bytes) => {
                self.conduct(|conductor, ground| conductor.randomness(ground, &bytes))
            }
            Input::EpochTimedOut => self.conduct(|conductor, ground| conductor.timed_out(ground)),
        }
    }

    /// The attempt.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The members' Lightning nodes, in slot order.
    pub fn peers(&self) -> &[PublicKey] {
        &self.peers
    }

    /// What each member was offered.
    pub fn invites(&self) -> &[Invite] {
        &self.invites
    }

    /// Whether somebody brought this factory key into the attempt, whatever its sign: it may be in
    /// no other.
    pub fn has_key(&self, key: &PublicKey) -> bool {
        let own = self.key().public().x_only_public_key().0;
        let key = key.x_only_public_key().0;
        key == own || self.member_keys.contains(&key)
    }

    /// The factory, once its terms and funding are fixed.
    pub fn built(&self) -> Option<&Built> {
        match &self.phase {
            Phase::Signing { built, .. }
            | Phase::Opening { built, .. }
            | Phase::Acking { built, .. }
            | Phase::Published { built, .. } => Some(built),
            _ => None,
        }
    }

    /// The terms, once everyone has joined.
    fn terms(&self) -> Option<&Terms> {
        match &self.phase {
            Phase::Funding { terms, .. } => Some(terms),
            _ => self.built().map(|built| &built.terms),
        }
    }

    /// Whether the funding is buried.
    pub fn is_active(&self) -> bool {
        self.open
    }

    /// Why the attempt is over, if it is.
    pub fn ended(&self) -> Option<RefusalCode> {
        match self.phase {
            Phase::Ended(code) => Some(code),
            _ => None,
        }
    }

    /// One word for where the ceremony stands.
    pub fn phase(&self) -> &'static str {
        match &self.phase {
            Phase::Gathering { .. } => "gathering",
            Phase::Funding { .. } => "funding",
            Phase::Signing { .. } => "signing",
            Phase::Opening { .. } => "opening",
            Phase::Acking { .. } => "acknowledging",
            Phase::Published { .. } if self.open => "active",
            Phase::Published { .. } if self.unfunded && self.funding_height.is_none() => "unfunded",
            Phase::Published { .. } => "published",
            Phase::Ended(_) => "ended",
        }
    }

    /// Whether a round is running that a silent member can hold up.
    pub fn awaits_members(&self) -> bool {
        matches!(
            self.phase,
            Phase::Gathering { .. }
                | Phase::Signing { .. }
                | Phase::Opening { .. }
                | Phase::Acking { .. }
        )
    }

    fn members(&self) -> u16 {
        self.peers.len() as u16
    }

    fn message(&mut self, from: PublicKey, message: Message) -> Vec<Effect> {
        // A refusal is never answered with another, or two parties could go on for ever.
        let refusal = matches!(message, Message::Refusal(_));
        let named = message.attempt().unwrap_or(self.attempt);
        let slot = self.peers.iter().position(|peer| *peer == from);
        let unknown = match slot {
            None => Some(""),
            Some(_) if named != self.attempt => Some("attempt"),
            Some(_) if matches!(self.phase, Phase::Ended(_)) => Some(""),
            Some(_) => None,
        };
        let (Some(slot), None) = (slot, unknown) else {
            return match refusal {
                true => Vec::new(),
                false => refuse(named, from, RefusalCode::Unknown, unknown.unwrap_or("")),
            };
        };
        let slot = slot as u16;
        match message {
            Message::Join(join) => self.join(slot, join),
            Message::PartialSigs(sigs) => self.partial_sigs(slot, sigs),
            Message::PathAck(_) => self.path_ack(slot),
            Message::RootPartial(partial) => self.root_partial(slot, &partial),
            Message::RootAck(RootAck { .. }) => self.root_ack(slot),
            Message::Refusal(refusal) => self.refusal(slot, refusal.code),
            Message::QuoteRequest(_) | Message::SaleAccept(_) | Message::SaleStored(_) => {
                self.sale_message(slot, message)
            }
            message if message.is_of_epoch() => self.epoch_message(slot, message),
            _ => self.refuse(from, RefusalCode::Unexpected, ""),
        }
    }

    fn join(&mut self, slot: u16, join: Join) -> Vec<Effect> {
        let peer = self.peers[usize::from(slot)];
        let seat = usize::from(slot);
        let Phase::Gathering { joins } = &mut self.phase else {
            // Said again after a reconnect, as below.
            let record = self.terms().and_then(|terms| terms.slots.get(seat));
            return match record.is_some_and(|record| record.member_key == join.member_key) {
                true => Vec::new(),
                false => self.refuse(peer, RefusalCode::Key, "member_key"),
            };
        };
        if let Some(known) = &joins[seat] {
            // Said again after a reconnect: the same is fine, other keys are not.
            return match *known == join {
                true => Vec::new(),
                false => self.refuse(peer, RefusalCode::Key, "member_key"),
            };
        }
        if let Err((code, field)) = signing::check_join(&self.invites[seat], joins, &join) {
            return self.refuse(peer, code, field);
        }
        self.member_keys
            .insert(join.member_key.x_only_public_key().0);
        joins[seat] = Some(join);
        if !joins.iter().all(Option::is_some) {
            return Vec::new();
        }
        let joins: Vec<Join> = joins.drain(..).flatten().collect();
        let terms = plan::terms(&self.invites, &joins, &self.lsp_funding_keys, &self.secrets);
        let built = Blueprint::whole(&terms)
            .and_then(|blueprint| Ok((blueprint.funding_output()?, Box::new(blueprint))));
        match built {
            Err(_) => self.end(RefusalCode::Terms, &[]),
            Ok((output, blueprint)) => {
                self.phase = Phase::Funding {
                    terms,
                    blueprint,
                    joins,
                };
                vec![Effect::Fund(output)]
            }
        }
    }

    fn funded(&mut self, tx: Transaction, vout: u32) -> Vec<Effect> {
        let ended = Phase::Ended(RefusalCode::Funding);
        let (terms, blueprint, joins) = match std::mem::replace(&mut self.phase, ended) {
            Phase::Funding {
                terms,
                blueprint,
                joins,
            } => (terms, blueprint, joins),
            other => {
                self.phase = other;
                // Came when nobody waited for it any more: its coins must not stay reserved.
                let txid = tx.compute_txid();
                let used = self.built().map(|built| built.tree.funding.txid);
                return match used == Some(txid) {
                    true => Vec::new(),
                    false => vec![Effect::ReleaseFunding(txid)],
                };
            }
        };
        let funding = OutPoint {
            txid: tx.compute_txid(),
            vout,
        };
        let wanted = blueprint.funding_output().ok();
        let tree = match blueprint.tree(funding) {
            Ok(tree) if tx.output.get(vout as usize) == wanted.as_ref() => tree,
            _ => return self.end_with(RefusalCode::Funding, Some(funding.txid), &[]),
        };
        let Some(signing) = Signing::new(&tree, &joins, &mut self.secrets).map(Box::new) else {
            return self.end_with(RefusalCode::Nonce, Some(funding.txid), &[]);
        };
        let mut messages = Vec::with_capacity(self.peers.len());
        for slot in 0..self.members() {
            let Some(facts) = blueprint.facts(&terms, slot) else {
                return self.end_with(RefusalCode::Terms, Some(funding.txid), &[]);
            };
            messages.push(TermsMessage {
                attempt: self.attempt,
                header: terms.header.clone(),
                nonces: signing.aggregates(&tree.signing_order(slot)),
                facts,
                funding,
            });
        }
        let record = LspTerms {
            terms: terms.clone(),
            funding: tx.clone(),
            vout,
            joins,
        };
        let mut effects = vec![Effect::Persist(record.into())];
        for (peer, message) in self.peers.iter().zip(&messages) {
            effects.push(send(*peer, message.clone()));
        }
        effects.push(Effect::Emit(Event::Signing(self.attempt)));
        self.phase = Phase::Signing {
            built: Box::new(Built {
                terms,
                tree,
                signatures: Vec::new(),
                funding: tx,
            }),
            signing,
            messages,
        };
        effects
    }

    fn partial_sigs(&mut self, slot: u16, sigs: PartialSigs) -> Vec<Effect> {
        let peer = self.peers[usize::from(slot)];
        let (built, signing) = match &mut self.phase {
            Phase::Signing { built, signing, .. } => (built, signing),
            Phase::Gathering { .. } | Phase::Funding { .. } => {
                return self.refuse(peer, RefusalCode::Unexpected, "partials");
            }
            // Everyone's are in; a reconnecting member just repeats its own.
            _ => return Vec::new(),
        };
        let wanted = built.tree.signing_order(slot).len() - 1;
        if sigs.partials.len() != wanted {
            return self.refuse(peer, RefusalCode::Signature, "partials");
        }
        if !signing.give(slot, sigs.partials) {
            return self.refuse(peer, RefusalCode::Signature, "partials");
        }
        if !signing.complete() {
            return Vec::new();
        }
        let tree = built.tree.clone();
        match signing.nodes(&tree, self.secrets.key()) {
            Err(culprits) => self.end(RefusalCode::Signature, &culprits),
            Ok(signatures) => self.open_channels(signatures),
        }
    }

    fn open_channels(&mut self, signatures: Vec<schnorr::Signature>) -> Vec<Effect> {
        let ended = Phase::Ended(RefusalCode::Unexpected);
        let Phase::Signing {
            mut built, signing, ..
        } = std::mem::replace(&mut self.phase, ended)
        else {
            return Vec::new();
        };
        built.signatures = signatures.clone();
        let mut effects = vec![Effect::Persist(LspNodes { signatures }.into())];
        for slot in 0..self.members() {
            effects.push(Effect::Agree(self.channel(&built, slot)));
        }
        for slot in 0..self.members() {
            effects.extend(self.node_sigs(&built, slot));
        }
        self.phase = Phase::Opening {
            built,
            signing,
            held: BTreeSet::new(),
        };
        effects
    }

    /// The member's signatures and the identity of the channel that follows its answer.
    fn node_sigs(&self, built: &Built, slot: u16) -> [Effect; 2] {
        let peer = self.peers[usize::from(slot)];
        let attempt = self.attempt;
        [
            send(
                peer,
                NodeSigs {
                    attempt,
                    signatures: built.path_signatures(slot),
                },
            ),
            send(
                peer,
                Identity {
                    attempt,
                    protocol: PROTOCOL,
                    slot,
                    blocks_early: built.terms.header.timing.blocks_early,
                },
            ),
        ]
    }

    fn path_ack(&mut self, slot: u16) -> Vec<Effect> {
        let attempt = self.attempt;
        match &self.phase {
            Phase::Opening { held, .. } if !held.contains(&slot) => {
                vec![Effect::Open(SlotRef { attempt, slot })]
            }
            Phase::Opening { .. } | Phase::Acking { .. } | Phase::Published { .. } => Vec::new(),
            _ => {
                let peer = self.peers[usize::from(slot)];
                self.refuse(peer, RefusalCode::Unexpected, "")
            }
        }
    }

    fn channel_held(&mut self, slot: u16) -> Vec<Effect> {
        let members = self.members();
        if let Phase::Opening { held, .. } = &mut self.phase
            && slot < members
        {
            held.insert(slot);
        }
        self.try_root()
    }

    fn root_partial(&mut self, slot: u16, message: &RootPartial) -> Vec<Effect> {
        let peer = self.peers[usize::from(slot)];
        match &mut self.phase {
            Phase::Opening { signing, .. } => {
                if !signing.give_root(slot, message.partial) {
                    return self.refuse(peer, RefusalCode::Signature, "partial");
                }
                self.try_root()
            }
            // The member did not hear the answer.
            Phase::Acking { .. } | Phase::Published { .. } => self.repeat(peer),
            _ => self.refuse(peer, RefusalCode::Unexpected, "partial"),
        }
    }

    /// Signs the root kickoff when all channels are held and all partials are in.
    fn try_root(&mut self) -> Vec<Effect> {
        let members = self.peers.len();
        let Phase::Opening {
            built,
            signing,
            held,
        } = &mut self.phase
        else {
            return Vec::new();
        };
        if held.len() < members || !signing.root_complete() {
            return Vec::new();
        }
        let signature = match signing.root(&built.tree, self.secrets.key()) {
            Err(culprits) => return self.end(RefusalCode::Signature, &culprits),
            Ok(signature) => signature,
        };
        built.signatures.push(signature);
        let built = built.clone();
        let mut effects = vec![
            Effect::Persist(LspRoot { signature }.into()),
            Effect::Watch(built.tree.funding),
        ];
        let attempt = self.attempt;
        for peer in &self.peers {
            effects.push(send(*peer, RootSig { attempt, signature }));
        }
        self.phase = Phase::Acking {
            built,
            acked: BTreeSet::new(),
        };
        effects
    }

    fn root_ack(&mut self, slot: u16) -> Vec<Effect> {
        let members = self.peers.len();
        let (built, acked) = match &mut self.phase {
            Phase::Acking { built, acked } => (built, acked),
            Phase::Published { .. } => return Vec::new(),
            // Nobody can have what is not signed: such an acknowledgement counts for nothing.
            _ => {
                let peer = self.peers[usize::from(slot)];
                return self.refuse(peer, RefusalCode::Unexpected, "signature");
            }
        };
        acked.insert(slot);
        if acked.len() < members {
            return Vec::new();
        }
        let built = built.clone();
        self.waiting_since = self.tip;
        let height = self.tip;
        let effects = vec![
            Effect::Persist(LspPublished { height }.into()),
            Effect::Broadcast(built.funding.clone()),
            Effect::Emit(Event::Published {
                attempt: self.attempt,
                funding: built.tree.funding,
            }),
        ];
        self.phase = Phase::Published {
            built,
            active: None,
        };
        effects
    }

    /// After a reconnect: what the member may not have heard.
    fn repeat(&self, peer: PublicKey) -> Vec<Effect> {
        let Some(slot) = self.peers.iter().position(|other| *other == peer) else {
            return Vec::new();
        };
        match &self.phase {
            Phase::Gathering { joins } if joins[slot].is_none() => {
                vec![send(peer, self.invites[slot].clone())]
            }
            Phase::Signing {
                signing, messages, ..
            } if !signing.has(slot as u16) => vec![send(peer, messages[slot].clone())],
            Phase::Opening { built, held, .. } if !held.contains(&(slot as u16)) => {
                self.node_sigs(built, slot as u16).to_vec()
            }
            Phase::Acking { built, .. } => match built.signatures.last() {
                Some(&signature) => vec![send(
                    peer,
                    RootSig {
                        attempt: self.attempt,
                        signature,
                    },
                )],
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}
