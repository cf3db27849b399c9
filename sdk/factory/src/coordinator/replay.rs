//! An LSP's role back from its journal.
//!
//! What always holds: records that no run of the role could have written in this order are an
//! error that names the record; nothing is guessed, and a journal never makes this code panic.

use std::collections::BTreeSet;

use bitcoin::secp256k1::XOnlyPublicKey;

use super::{Built, Coordinator, LspSecrets, Phase};
use crate::effect::Effect;
use crate::epoch::Conductor;
use crate::journal::{LspGathering, Record, ReplayError};
use crate::message::RefusalCode;
use crate::sale::Seller;
use crate::tree::TxName;

impl Coordinator {
    /// The role a journal describes, and what to do now that it is back.
    ///
    /// Nonces do not survive: an attempt whose root kickoff was not signed ends here.
    ///
    /// # Errors
    /// The records are not those of one attempt of an LSP, in the order in which it wrote them.
    pub fn replay(
        seed: &[u8; 32],
        records: &[Record],
        tip: u32,
    ) -> Result<(Coordinator, Vec<Effect>), ReplayError> {
        let gathering = match records.first() {
            None => return Err(ReplayError::Empty),
            Some(Record::LspGathering(gathering)) => gathering,
            Some(_) => return Err(refuse(0, "an LSP's journal begins with its gathering")),
        };
        let mut coordinator = gathered(seed, gathering, tip).map_err(|what| refuse(0, what))?;
        let mut so_far = SoFar::default();
        for (position, record) in records.iter().enumerate().skip(1) {
            so_far
                .add(&coordinator, record)
                .map_err(|what| refuse(position, what))?;
        }
        let SoFar {
            built,
            published,
            active,
            ended,
            unfunded,
            member_keys,
            seller,
            conductor,
        } = so_far;
        coordinator.member_keys = member_keys;
        coordinator.unfunded = unfunded;
        coordinator.seller = seller;
        coordinator.conductor = conductor;
        let mut effects = Vec::new();
        match (built, ended) {
            (_, Some(code)) => coordinator.phase = Phase::Ended(code),
            (Some(built), None) if built.complete() => {
                for slot in 0..coordinator.members() {
                    effects.push(Effect::Agree(coordinator.channel(&built, slot)));
                }
                effects.push(Effect::Watch(built.tree.funding));
                coordinator.phase = match published {
                    Some(height) => {
                        coordinator.waiting_since = height;
                        // Also one that was buried: it may have left the chain meanwhile.
                        effects.push(Effect::Broadcast(built.funding.clone()));
                        let (seller, moved) = (&coordinator.seller, &coordinator.conductor);
                        let bought =
                            coordinator.on_ground(&built, moved, |ground| seller.agreed(ground));
                        effects.extend(bought.into_iter().map(Effect::AgreeBought));
                        effects.extend(
                            coordinator.on_epochs(&built, seller, |ground| moved.agreed(ground)),
                        );
                        Phase::Published { built, active }
                    }
                    None => Phase::Acking {
                        built,
                        acked: BTreeSet::new(),
                    },
                };
            }
            (built, None) => {
                let funding = built.map(|built| built.tree.funding.txid);
                effects = coordinator.end_with(RefusalCode::Restarted, funding, &[]);
            }
        }
        Ok((coordinator, effects))
    }
}

fn gathered(
    seed: &[u8; 32],
    gathering: &LspGathering,
    tip: u32,
) -> Result<Coordinator, &'static str> {
    let (peers, invites) = (gathering.peers.clone(), gathering.invites.clone());
    let first = invites.first().ok_or("nobody was invited")?;
    let one_each = peers.len() == invites.len()
        && (0u16..).zip(&invites).all(|(slot, invite)| {
            invite.slot == slot
                && usize::from(invite.members) == peers.len()
                && invite.header == first.header
        });
    if !one_each {
        return Err("not one invitation to the same factory per member");
    }
    Ok(Coordinator {
        attempt: first.header.attempt(),
        peers,
        invites,
        lsp_funding_keys: Vec::new(),
        secrets: LspSecrets::restored(seed, gathering.salt),
        phase: Phase::Ended(RefusalCode::Restarted),
        tip,
        funding_height: None,
        open: false,
        waiting_since: tip,
        unfunded: false,
        member_keys: BTreeSet::new(),
        seller: Seller::default(),
        conductor: Conductor::default(),
    })
}

/// What the records read until now say.
#[derive(Default)]
struct SoFar {
    built: Option<Box<Built>>,
    /// From which height on the funding is waited for.
    published: Option<u32>,
    active: Option<u32>,
    ended: Option<RefusalCode>,
    unfunded: bool,
    member_keys: BTreeSet<XOnlyPublicKey>,
    seller: Seller,
    conductor: Conductor,
}

impl SoFar {
    fn add(&mut self, coordinator: &Coordinator, record: &Record) -> Result<(), &'static str> {
        if self.ended.is_some() {
            return Err("the attempt has ended");
        }
        match (record, &mut self.built) {
            (Record::LspTerms(body), None) => {
                let built = Built::from_record(body).ok_or("the terms do not build")?;
                let invited = built.terms.header == coordinator.invites[0].header
                    && built.terms.slots.len() == coordinator.peers.len();
                if !invited {
                    return Err("the terms are not what members were invited to");
                }
                let keys = built.terms.keys().into_iter();
                self.member_keys = keys.map(|key| key.x_only_public_key().0).collect();
                self.built = Some(Box::new(built));
            }
            (Record::LspNodes(body), Some(built)) if built.signatures.is_empty() => {
                if body.signatures.len() + 1 != built.tree.transactions().count() {
                    return Err("not one signature per transaction");
                }
                built.signatures = body.signatures.clone();
                let mut signed = built.named_signatures();
                // Damaged on disk, they would be missed only when they are needed.
                if !signed.all(|(name, signature)| built.tree.is_signed(name, &signature)) {
                    return Err("a signature of the tree is invalid");
                }
            }
            (Record::LspRoot(body), Some(built))
                if !built.signatures.is_empty() && !built.complete() =>
            {
                if !built.tree.is_signed(TxName::ROOT_KICKOFF, &body.signature) {
                    return Err("the root's signature is invalid");
                }
                built.signatures.push(body.signature);
            }
            (Record::LspPublished(body), Some(built))
                if built.complete() && self.published.is_none() =>
            {
                self.published = Some(body.height);
            }
            (Record::Activated(body), Some(_)) if self.published.is_some() => {
                self.active = Some(body.height);
            }
            (Record::Unfunded(_), Some(_))
                if self.published.is_some() && self.active.is_none() && !self.unfunded =>
            {
                self.unfunded = true;
            }
            (Record::LspSaleSigned(_) | Record::SaleStepped(_), Some(built))
                if self.active.is_some() =>
            {
                let seller = &mut self.seller;
                coordinator
                    .on_ground(built, &self.conductor, |ground| seller.add(ground, record))?;
            }
            (
                Record::LspEpochBuilt(_)
                | Record::LspEpochAsked(_)
                | Record::EpochSigned(_)
                | Record::EpochEnded(_)
                | Record::LspSwitched(_),
                Some(built),
            ) if self.active.is_some() => {
                let (seller, conductor) = (&self.seller, &mut self.conductor);
                let renewed = coordinator.on_epochs(built, seller, |ground| {
                    let cut = conductor.add(ground, record)?;
                    Ok::<_, &'static str>(cut.then(|| conductor.renewed(ground)))
                })?;
                for (slot, version, chain) in renewed.into_iter().flatten() {
                    self.seller.renew(slot, version, chain);
                }
            }
            (Record::Ended(body), _) if self.published.is_none() => self.ended = Some(body.code),
            _ => return Err("not what an LSP writes next"),
        }
        Ok(())
    }
}

fn refuse(position: usize, what: &'static str) -> ReplayError {
    ReplayError::Order { position, what }
}
