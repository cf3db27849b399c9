//! A member's role back from its journal.
//!
//! What always holds: records that no run of the role could have written in this order are an
//! error that names the record; nothing is guessed, and a journal never makes this code panic.

use super::moving::on_epochs;
use super::{Member, Path, Phase};
use crate::effect::{Effect, SlotRef};
use crate::epoch::Mover;
use crate::journal::{MemberJoined, Record, ReplayError};
use crate::message::{PartialBytes, RefusalCode};
use crate::sale::{Buyer, BuyerGround};
use crate::signing::FactoryKey;
use crate::tree::{Blueprint, TxName};

impl Member {
    /// The role a journal describes, and what to do now that it is back.
    ///
    /// Nonces do not survive: an attempt whose root partial signature had not left ends here.
    ///
    /// # Errors
    /// The records are not those of one member's place, in the order in which it wrote them.
    pub fn replay(
        seed: &[u8; 32],
        records: &[Record],
        tip: u32,
    ) -> Result<(Member, Vec<Effect>), ReplayError> {
        let joined = match records.first() {
            None => return Err(ReplayError::Empty),
            Some(Record::MemberJoined(joined)) => joined.clone(),
            Some(_) => return Err(refuse(0, "a member's journal begins with its join")),
        };
        let mut so_far = SoFar::default();
        let key = FactoryKey::derive(seed, &joined.salt);
        for (position, record) in records.iter().enumerate().skip(1) {
            so_far
                .add(&joined, &key, record)
                .map_err(|what| refuse(position, what))?;
        }
        let mut member = Member {
            key,
            phase: Phase::Ended(RefusalCode::Restarted),
            joined,
            tip,
            funding_height: None,
            open: false,
            waiting_since: so_far.waiting_since,
            unfunded: so_far.unfunded,
            dormant: so_far.dormant,
            buyer: so_far.buyer,
            mover: so_far.mover,
        };
        let SoFar {
            path,
            partial,
            active,
            ended,
            ..
        } = so_far;
        let effects = match (path, partial, ended) {
            (_, _, Some(code)) => {
                member.phase = Phase::Ended(code);
                Vec::new()
            }
            (Some(path), Some(partial), None) => {
                let mut effects = vec![
                    Effect::Agree(member.channel(&path)),
                    Effect::Watch(path.tree.funding),
                ];
                member.phase = match path.complete() {
                    true => Phase::Complete { path, active },
                    false => Phase::Committed { path, partial },
                };
                let bought = member.buying(|buyer, ground| buyer.agreed(ground));
                effects.extend(bought.into_iter().map(Effect::AgreeBought));
                effects.extend(member.moving(|mover, ground| mover.agreed(ground)));
                effects
            }
            _ => member.end(RefusalCode::Restarted),
        };
        Ok((member, effects))
    }
}

/// What the records read until now say.
#[derive(Default)]
struct SoFar {
    path: Option<Box<Path>>,
    partial: Option<PartialBytes>,
    active: Option<u32>,
    ended: Option<RefusalCode>,
    waiting_since: u32,
    unfunded: bool,
    dormant: Option<RefusalCode>,
    buyer: Buyer,
    mover: Mover,
}

impl SoFar {
    fn add(
        &mut self,
        joined: &MemberJoined,
        key: &FactoryKey,
        record: &Record,
    ) -> Result<(), &'static str> {
        let slot = joined.invite.slot;
        if self.ended.is_some() {
            return Err("the attempt has ended");
        }
        match (record, &mut self.path) {
            (Record::MemberSigned(body), None) => {
                let facts = &body.terms.facts;
                let blueprint = Blueprint::path(&body.terms.header, facts);
                let tree = blueprint.and_then(|blueprint| blueprint.tree(body.terms.funding));
                if facts.slot != slot {
                    return Err("the terms are for another slot");
                }
                self.path = Some(Box::new(Path {
                    tree: tree.map_err(|_| "the terms do not build")?,
                    signatures: Vec::new(),
                    terms: body.terms.clone(),
                }));
            }
            (Record::MemberPath(body), Some(path)) if path.signatures.is_empty() => {
                let order = path.tree.signing_order(slot);
                if body.signatures.len() + 1 != order.len() {
                    return Err("not one signature per transaction of the path");
                }
                let mut signed = order.iter().zip(&body.signatures);
                // Damaged on disk, they would be missed only when they are needed.
                if !signed.all(|(name, signature)| path.tree.is_signed(*name, signature)) {
                    return Err("a signature of the path is invalid");
                }
                path.signatures = body.signatures.clone();
            }
            (Record::MemberRootPartial(body), Some(path))
                if !path.signatures.is_empty() && self.partial.is_none() =>
            {
                self.partial = Some(body.partial);
                self.waiting_since = body.height;
            }
            (Record::MemberRootSig(body), Some(path))
                if self.partial.is_some() && !path.complete() =>
            {
                if !path.tree.is_signed(TxName::ROOT_KICKOFF, &body.signature) {
                    return Err("the root's signature is invalid");
                }
                path.signatures.push(body.signature);
                self.dormant = None;
                self.buyer.begin(path.stock());
            }
            (Record::Dormant(body), Some(_))
                if self.partial.is_some() && self.active.is_none() && self.dormant.is_none() =>
            {
                self.dormant = Some(body.code);
            }
            (Record::Unfunded(_), Some(_))
                if self.partial.is_some() && self.active.is_none() && !self.unfunded =>
            {
                self.unfunded = true;
            }
            (Record::Activated(body), Some(path)) if path.complete() => {
                self.active = Some(body.height);
            }
            (
                Record::MemberSaleSigned(_) | Record::MemberSaleSig(_) | Record::SaleStepped(_),
                Some(path),
            ) if self.active.is_some() => {
                let attempt = path.tree.header.attempt();
                let ground = BuyerGround {
                    slot: SlotRef { attempt, slot },
                    lsp: joined.lsp,
                    header: &path.tree.header,
                    key,
                    tip: 0,
                    active: false,
                    version: self.mover.version(),
                    frozen: self.mover.is_frozen(),
                };
                self.buyer.add(&ground, record)?;
            }
            (
                Record::MemberEpochStored(_)
                | Record::MemberEpochCommitted(_)
                | Record::MemberEpochRevealed(_)
                | Record::MemberEpochGuarded(_)
                | Record::MemberEpochSeen(_)
                | Record::EpochSigned(_)
                | Record::EpochEnded(_),
                Some(path),
            ) if self.active.is_some() => {
                let slot = SlotRef {
                    attempt: path.tree.header.attempt(),
                    slot,
                };
                let before = self.mover.version();
                let (buyer, mover) = (&self.buyer, &mut self.mover);
                on_epochs(
                    (slot, joined.lsp),
                    path,
                    key,
                    buyer,
                    mover,
                    false,
                    |mover, ground| mover.add(ground, record),
                )?;
                if self.mover.version() != before {
                    self.buyer.renew(self.mover.stock(path));
                }
            }
            (Record::Ended(body), _) if self.partial.is_none() => self.ended = Some(body.code),
            _ => return Err("not what a member writes next"),
        }
        Ok(())
    }
}

fn refuse(position: usize, what: &'static str) -> ReplayError {
    ReplayError::Order { position, what }
}
