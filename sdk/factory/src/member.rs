//! The member's side of building a factory and of buying in it, as a state machine without I/O.
//!
//! What always holds: nothing is signed that was not rebuilt from the terms; the root kickoff is
//! signed only when the rest of the path is verified and durable and the channel is held; the
//! factory does not exist for the member until the root signature is durable and the funding
//! buried. A refused message changes nothing.

mod buying;
mod chain;
mod ending;
mod input;
mod limits;
mod moving;
mod replay;
mod secrets;
mod verify;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf};

use crate::effect::{Effect, Event, SlotChannel, SlotRef};
use crate::epoch::Mover;
use crate::journal::{
    MemberJoined, MemberPath, MemberRootPartial, MemberRootSig, MemberSigned, SaleStep,
};
use crate::message::{
    Attempt, Identity, Invite, Join, Message, NodeSigs, PartialBytes, PartialSigs, PathAck,
    Refusal, RefusalCode, RootAck, RootPartial, RootSig, TermsMessage,
};
use crate::sale::Buyer;
use crate::signing::{AggregateNonce, FactoryKey, ReservedNonces, SecretNonce, SigningSession};
use crate::tree::Tree;

pub use crate::path::Path;
pub use input::Input;
pub use limits::{DelayLimits, WalletLimits};
pub use secrets::revocation_key;

/// ASCII name of this factory type in bLIP-56 identities, zero-padded.
pub const PROTOCOL: [u8; 32] = {
    let name = b"superscalar_v1";
    let mut id = [0; 32];
    let mut at = 0;
    while at < name.len() {
        id[at] = name[at];
        at += 1;
    }
    id
};

/// What is random about a Join: fresh for every attempt, never chosen by the LSP.
pub struct JoinSecrets<'a> {
    /// The wallet's factory seed.
    pub seed: &'a [u8; 32],
    /// Salt of the factory key, 32 fresh random bytes.
    pub salt: [u8; 32],
    /// 32 more, for the nonces.
    pub nonce_randomness: [u8; 32],
}

/// Why an invitation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {field}")]
pub struct Refused {
    /// The reason.
    pub code: RefusalCode,
    /// The field that was wrong, empty if none.
    pub field: &'static str,
}

impl Refused {
    fn new(code: RefusalCode, field: &'static str) -> Refused {
        Refused { code, field }
    }
}

/// One place in one factory, from the invitation on.
#[derive(Debug)]
pub struct Member {
    joined: MemberJoined,
    key: FactoryKey,
    phase: Phase,
    tip: u32,
    funding_height: Option<u32>,
    /// Whether the channel's gate is open.
    open: bool,
    /// Height from which the funding is waited for.
    waiting_since: u32,
    /// Whether it was waited for too long already.
    unfunded: bool,
    /// Why the LSP gave the attempt up after it had our root partial signature.
    dormant: Option<RefusalCode>,
    buyer: Buyer,
    mover: Mover,
}

#[derive(Debug)]
enum Phase {
    Joined {
        nonces: ReservedNonces,
    },
    Signed {
        path: Box<Path>,
        partials: Vec<PartialBytes>,
        root: Option<Box<(SecretNonce, AggregateNonce)>>,
    },
    Committed {
        path: Box<Path>,
        partial: PartialBytes,
    },
    Complete {
        path: Box<Path>,
        active: Option<u32>,
    },
    Ended(RefusalCode),
}

impl Member {
    /// Accepts an invitation that is within `limits`.
    ///
    /// `funding_key` is the member's key in the future channel's 2-of-2, `payout` an own script.
    pub fn join(
        lsp: PublicKey,
        invite: Invite,
        limits: &WalletLimits,
        secrets: JoinSecrets<'_>,
        payout: ScriptBuf,
        funding_key: PublicKey,
        tip: u32,
    ) -> Result<(Member, Vec<Effect>), Refused> {
        limits.check(&invite, tip)?;
        let nonce_count = verify::signing_count(&invite)?;
        let revocation = revocation_key(secrets.seed, &secrets.salt).public();
        let joined = MemberJoined {
            lsp,
            invite,
            salt: secrets.salt,
            payout,
            funding_key,
            revocation_key: revocation.x_only_public_key().0,
        };
        let key = FactoryKey::derive(secrets.seed, &joined.salt);
        let nonces = ReservedNonces::fresh(&key, nonce_count, &secrets.nonce_randomness)
            .ok_or(Refused::new(RefusalCode::Nonce, "nonces"))?;
        let slot = SlotRef {
            attempt: joined.invite.header.attempt(),
            slot: joined.invite.slot,
        };
        let effects = vec![
            Effect::Persist(joined.clone().into()),
            Effect::Send {
                to: lsp,
                message: join_message(&joined, &key, &nonces).into(),
            },
            Effect::Emit(Event::Joined(slot)),
        ];
        let member = Member {
            joined,
            key,
            phase: Phase::Joined { nonces },
            tip,
            funding_height: None,
            open: false,
            waiting_since: tip,
            unfunded: false,
            dormant: None,
            buyer: Buyer::default(),
            mover: Mover::default(),
        };
        Ok((member, effects))
    }

    /// Tells the role what happened; what it wants done comes back in order.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Message(message) => self.message(message),
            Input::Connected => self.connected(),
            Input::ChannelHeld => self.channel_held(),
            Input::ChannelLost => self.channel_lost(),
            Input::TimedOut => match self.phase {
                // Once the root partial is out the LSP may complete at any time: wait.
                Phase::Joined { .. } | Phase::Signed { .. } => self.end(RefusalCode::Silence),
                _ => Vec::new(),
            },
            Input::FundingConfirmed { tx, height } => self.funding_confirmed(&tx, height),
            Input::KnownFundingConfirmed { height } => self.known_funding_confirmed(height),
            Input::FundingReorged => self.funding_reorged(),
            Input::Height(tip) => self.height(tip),
            Input::TreeSeen => self.tree_seen(),
            Input::SaleRandomness { id, randomness } => {
                self.buying(|buyer, ground| buyer.sign_again(ground, id, &randomness))
            }
            Input::BoughtHeld(id) => self.sale_step(id, SaleStep::Held),
            Input::BoughtLost(id) => self.sale_step(id, SaleStep::Lost),
            Input::BoughtGuarded(id) => self.sale_step(id, SaleStep::Guarded),
            Input::SalePaid(id) => self.sale_step(id, SaleStep::Paid),
            Input::Frozen {
                balances,
                funding_key,
                randomness,
            } => self
                .moving(|mover, ground| mover.frozen(ground, &balances, funding_key, &randomness)),
            Input::MovedHeld(id) => self.moving(|mover, ground| mover.held(ground, id)),
            Input::MovedLost(id) => self.moving(|mover, ground| mover.lost(ground, id)),
            Input::MovedGuarded { version } => {
                self.moving(|mover, ground| mover.guarded(ground, version))
            }
            Input::EpochRandomness(bytes) => {
                self.moving(|mover, ground| mover.randomness(ground, &bytes))
            }
            Input::StateSeen(tx) => self.moving(|mover, ground| mover.seen(ground, &tx)),
            Input::EpochTimedOut => self.moving(|mover, ground| mover.timed_out(ground)),
        }
    }

    /// The attempt this place is in.
    pub fn attempt(&self) -> Attempt {
        self.joined.invite.header.attempt()
    }

    /// The place.
    pub fn slot(&self) -> SlotRef {
        SlotRef {
            attempt: self.attempt(),
            slot: self.joined.invite.slot,
        }
    }

    /// The LSP's Lightning node.
    pub fn lsp(&self) -> PublicKey {
        self.joined.lsp
    }

    /// What was offered and accepted.
    pub fn invite(&self) -> &Invite {
        &self.joined.invite
    }

    /// The path, once every signature of it is durable: what leaving alone needs.
    pub fn path(&self) -> Option<&Path> {
        match &self.phase {
            Phase::Complete { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The path's transactions, from before the funding can be published: what to look for on chain.
    pub fn tree(&self) -> Option<&Tree> {
        match &self.phase {
            Phase::Committed { path, .. } | Phase::Complete { path, .. } => Some(&path.tree),
            _ => None,
        }
    }

    /// Whether the factory exists: path complete and durable, funding buried.
    pub fn is_active(&self) -> bool {
        self.open
    }

    /// Whether the funding is in a block, as far as was told.
    pub fn is_funded(&self) -> bool {
        self.funding_height.is_some()
    }

    /// Whether nobody counts on a funding that was never buried: the LSP gave the attempt up, or it
    /// has not confirmed for a day. What was signed is kept all the same.
    pub fn is_given_up(&self) -> bool {
        (self.dormant.is_some() || self.unfunded) && !self.knows_funding()
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
            Phase::Joined { .. } => "joined",
            Phase::Signed { path, .. } if path.signatures.is_empty() => "signed",
            Phase::Signed { .. } => "opening",
            Phase::Ended(_) => "ended",
            Phase::Complete {
                active: Some(_), ..
            } => "active",
            _ if self.unfunded && !self.is_funded() => "unfunded",
            _ if self.dormant.is_some() && !self.is_funded() => "dormant",
            Phase::Committed { .. } => "committed",
            Phase::Complete { .. } => "funding",
        }
    }

    fn message(&mut self, message: Message) -> Vec<Effect> {
        // A refusal is never answered with another, or two parties could go on for ever.
        let refusal = matches!(message, Message::Refusal(_));
        let named = message.attempt().unwrap_or(self.attempt());
        if named != self.attempt() {
            return match refusal {
                true => Vec::new(),
                false => self.refuse(named, &Refused::new(RefusalCode::Unknown, "attempt")),
            };
        }
        if matches!(self.phase, Phase::Ended(_)) && !refusal {
            return self.refuse(named, &Refused::new(RefusalCode::Unknown, ""));
        }
        let result = match message {
            Message::Invite(invite) => self.invited_again(&invite),
            Message::Terms(terms) => self.terms(terms),
            Message::NodeSigs(sigs) => self.node_sigs(sigs),
            Message::Identity(identity) => self.identity(&identity),
            Message::RootSig(sig) => self.root_sig(&sig),
            Message::Refusal(refusal) => Ok(self.refusal(&refusal)),
            Message::Quote(_) | Message::SaleSig(_) | Message::NoSale(_) => {
                return self.sale_message(message);
            }
            message if message.is_of_epoch() => return self.epoch_message(message),
            _ => Err(Refused::new(RefusalCode::Unexpected, "")),
        };
        result.unwrap_or_else(|refused| self.refuse(named, &refused))
    }

    /// The LSP repeats an invitation whose answer it did not get.
    fn invited_again(&self, invite: &Invite) -> Result<Vec<Effect>, Refused> {
        match *invite == self.joined.invite {
            true if matches!(self.phase, Phase::Joined { .. }) => Ok(self.repeat()),
            true => Ok(Vec::new()),
            false => Err(Refused::new(RefusalCode::Unexpected, "invite")),
        }
    }

    fn terms(&mut self, terms: TermsMessage) -> Result<Vec<Effect>, Refused> {
        let nonces = match &mut self.phase {
            Phase::Joined { nonces } => nonces,
            // Said again after a reconnect: the answer is the one already made, so that no nonce
            // sees a second message.
            Phase::Signed { path, .. } if path.terms == terms => return Ok(self.repeat()),
            Phase::Committed { path, .. } | Phase::Complete { path, .. } if path.terms == terms => {
                return Ok(Vec::new());
            }
            _ => return Err(Refused::new(RefusalCode::Unexpected, "terms")),
        };
        let tree = verify::terms(&self.joined, &self.key, &terms)?;
        let order = tree.signing_order(terms.facts.slot);
        let aggregates = verify::nonces(&terms.nonces, order.len())?;
        // From here on nothing can fail, so nonces are taken only for terms that are signed.
        let mut partials = Vec::with_capacity(order.len());
        let mut root = None;
        for (index, (name, aggregate)) in order.iter().zip(aggregates).enumerate() {
            let nonce = nonces
                .take(index)
                .map_err(|_| Refused::new(RefusalCode::Nonce, "nonces"))?;
            if index + 1 == order.len() {
                root = Some(Box::new((nonce, aggregate)));
                break;
            }
            let tx = tree
                .tx(*name)
                .ok_or(Refused::new(RefusalCode::Terms, "shape"))?;
            let session = SigningSession::new(&tx.key, aggregate, tx.sighash);
            let partial = session
                .partial_sign(nonce, &self.key)
                .map_err(|_| Refused::new(RefusalCode::Key, "keys"))?;
            partials.push(partial.to_bytes());
        }
        let record = MemberSigned {
            terms: terms.clone(),
        };
        self.phase = Phase::Signed {
            path: Box::new(Path {
                tree,
                signatures: Vec::new(),
                terms,
            }),
            partials: partials.clone(),
            root,
        };
        let attempt = self.attempt();
        Ok(vec![
            Effect::Persist(record.into()),
            self.send(PartialSigs { attempt, partials }),
        ])
    }

    fn node_sigs(&mut self, sigs: NodeSigs) -> Result<Vec<Effect>, Refused> {
        let slot = self.joined.invite.slot;
        let path = match &mut self.phase {
            Phase::Signed { path, .. }
            | Phase::Committed { path, .. }
            | Phase::Complete { path, .. } => path,
            _ => return Err(Refused::new(RefusalCode::Unexpected, "signatures")),
        };
        let order = path.tree.signing_order(slot);
        if let Some(known) = path.signatures.get(..order.len() - 1) {
            // Said again after a reconnect: the same is fine, anything else is not.
            return match *known == sigs.signatures {
                true => Ok(self.path_ack().into_iter().collect()),
                false => Err(Refused::new(RefusalCode::Signature, "signatures")),
            };
        }
        if sigs.signatures.len() + 1 != order.len() {
            return Err(Refused::new(RefusalCode::Signature, "signatures"));
        }
        for (name, signature) in order.iter().zip(&sigs.signatures) {
            if !path.tree.is_signed(*name, signature) {
                return Err(Refused::new(RefusalCode::Signature, "signatures"));
            }
        }
        path.signatures = sigs.signatures.clone();
        let path = path.clone();
        let record = MemberPath {
            signatures: sigs.signatures,
        };
        Ok(vec![
            Effect::Persist(record.into()),
            Effect::Agree(self.channel(&path)),
            self.send(PathAck {
                attempt: self.attempt(),
            }),
        ])
    }

    /// That the channel may be opened, while that is still due.
    fn path_ack(&self) -> Option<Effect> {
        let attempt = self.attempt();
        match &self.phase {
            Phase::Signed { path, .. } if !path.signatures.is_empty() => {
                Some(self.send(PathAck { attempt }))
            }
            _ => None,
        }
    }

    fn identity(&self, identity: &Identity) -> Result<Vec<Effect>, Refused> {
        let invite = &self.joined.invite;
        let mismatch = |field| Err(Refused::new(RefusalCode::Channel, field));
        let due = match &self.phase {
            Phase::Signed { path, .. } => !path.signatures.is_empty(),
            // Said again after a reconnect.
            Phase::Committed { .. } | Phase::Complete { .. } => true,
            _ => false,
        };
        if !due {
            return Err(Refused::new(RefusalCode::Unexpected, "factory_instance"));
        }
        if identity.protocol != PROTOCOL {
            return mismatch("factory_protocol");
        }
        if identity.slot != invite.slot {
            return mismatch("slot");
        }
        if identity.blocks_early != invite.header.timing.blocks_early {
            return mismatch("blocks_early");
        }
        Ok(Vec::new())
    }

    fn channel_held(&mut self) -> Vec<Effect> {
        let Phase::Signed { path, root, .. } = &mut self.phase else {
            return Vec::new();
        };
        if path.signatures.is_empty() {
            return Vec::new();
        }
        let Some((nonce, aggregate)) = root.take().map(|root| *root) else {
            return Vec::new();
        };
        let partial = path
            .tree
            .tx(crate::tree::TxName::ROOT_KICKOFF)
            .and_then(|tx| {
                let session = SigningSession::new(&tx.key, aggregate, tx.sighash);
                session.partial_sign(nonce, &self.key).ok()
            });
        let Some(partial) = partial.map(|partial| partial.to_bytes()) else {
            return self.end(RefusalCode::Key);
        };
        let path = path.clone();
        let funding = path.tree.funding;
        self.phase = Phase::Committed { path, partial };
        self.waiting_since = self.tip;
        let attempt = self.attempt();
        let height = self.tip;
        vec![
            Effect::Persist(MemberRootPartial { partial, height }.into()),
            Effect::Watch(funding),
            self.send(RootPartial { attempt, partial }),
        ]
    }

    fn channel_lost(&mut self) -> Vec<Effect> {
        match self.phase {
            Phase::Signed { .. } => self.end(RefusalCode::Channel),
            _ => Vec::new(),
        }
    }

    fn root_sig(&mut self, sig: &RootSig) -> Result<Vec<Effect>, Refused> {
        let attempt = self.attempt();
        let invalid = Refused::new(RefusalCode::Signature, "signature");
        let path = match &mut self.phase {
            Phase::Committed { path, .. } => path,
            Phase::Complete { path, .. } => {
                // Said again after a reconnect.
                return match path.signatures.last() == Some(&sig.signature) {
                    true => Ok(vec![self.send(RootAck { attempt })]),
                    false => Err(invalid),
                };
            }
            _ => return Err(Refused::new(RefusalCode::Unexpected, "signature")),
        };
        let root = crate::tree::TxName::ROOT_KICKOFF;
        if !path.tree.is_signed(root, &sig.signature) {
            return Err(invalid);
        }
        path.signatures.push(sig.signature);
        let path = path.clone();
        self.buyer.begin(path.stock());
        self.phase = Phase::Complete { path, active: None };
        // It goes on after all.
        self.dormant = None;
        let record = MemberRootSig {
            signature: sig.signature,
        };
        let mut effects = vec![
            Effect::Persist(record.into()),
            self.send(RootAck { attempt }),
            Effect::Emit(Event::Complete(self.slot())),
        ];
        effects.extend(self.bury());
        Ok(effects)
    }

    /// After a reconnect: what the LSP may not have heard.
    fn repeat(&self) -> Vec<Effect> {
        let attempt = self.attempt();
        match &self.phase {
            _ if self.dormant.is_some() => Vec::new(),
            Phase::Joined { nonces } => {
                vec![self.send(join_message(&self.joined, &self.key, nonces))]
            }
            Phase::Signed { path, partials, .. } if path.signatures.is_empty() => {
                let partials = partials.clone();
                vec![self.send(PartialSigs { attempt, partials })]
            }
            Phase::Signed { .. } => self.path_ack().into_iter().collect(),
            Phase::Committed { partial, .. } => vec![self.send(RootPartial {
                attempt,
                partial: *partial,
            })],
            Phase::Complete { active: None, .. } => vec![self.send(RootAck { attempt })],
            _ => Vec::new(),
        }
    }

    fn refuse(&self, attempt: Attempt, refused: &Refused) -> Vec<Effect> {
        let code = refused.code;
        let field = refused.field.to_owned();
        let event = Event::Refused {
            attempt,
            peer: self.joined.lsp,
            code,
            field: field.clone(),
        };
        let refusal = Refusal {
            attempt,
            code,
            field,
        };
        vec![self.send(refusal), Effect::Emit(event)]
    }

    fn send(&self, message: impl Into<Message>) -> Effect {
        Effect::Send {
            to: self.joined.lsp,
            message: message.into(),
        }
    }

    fn channel(&self, path: &Path) -> SlotChannel {
        let facts = &path.terms.facts;
        let output = facts.record.channel_output();
        let outpoint = path.tree.channel_outpoint(facts.slot);
        SlotChannel {
            slot: self.slot(),
            peer: self.joined.lsp,
            outpoint: outpoint.unwrap_or_else(OutPoint::null),
            capacity: output.value,
            push_msat: facts.record.push_msat,
            script_pubkey: output.script_pubkey,
            timing: path.tree.header.timing.clone(),
            layers: path.tree.header.shape.layers(),
            expiry: path.tree.header.expiry,
        }
    }
}

/// The same nonces each time it is said: they sign nothing until terms are verified.
fn join_message(joined: &MemberJoined, key: &FactoryKey, nonces: &ReservedNonces) -> Join {
    Join {
        attempt: joined.invite.header.attempt(),
        member_key: key.public(),
        payout: joined.payout.clone(),
        funding_key: joined.funding_key,
        revocation_key: joined.revocation_key,
        nonces: nonces.public().iter().map(|n| n.to_bytes()).collect(),
    }
}
