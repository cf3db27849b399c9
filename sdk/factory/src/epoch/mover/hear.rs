//! What a member hears from its LSP about a new epoch, and what it says again after a reconnect.

use bitcoin::secp256k1::schnorr;

use super::{Ceremony, Ground, Mover, Signing, Stage, prepared, say};
use crate::effect::{Effect, Event};
use crate::epoch::Readiness;
use crate::epoch::verify::{self, Wrong};
use crate::journal::{EpochEnded, Guard, MemberEpochStored};
use crate::message::{
    EpochEnd, EpochName, EpochNonce, EpochPartial, EpochPartials, EpochPropose, EpochSigs,
    EpochStored, EpochTerms, Message, NonceBytes, RefusalCode,
};
use crate::signing::{AggregateNonce, SigningSession};
use crate::tree::Tree;

/// Why a message is refused, and what else is to be done about that.
pub(super) type Refusal = (Wrong, Vec<Effect>);

pub(super) fn refuse<T>(code: RefusalCode, field: &'static str) -> Result<T, Refusal> {
    Err(((code, field), Vec::new()))
}

pub(super) fn plain(wrong: Wrong) -> Refusal {
    (wrong, Vec::new())
}

impl Mover {
    /// Takes a message of the LSP, or names what is wrong with it; it has then changed nothing.
    pub(crate) fn message(
        &mut self,
        ground: &Ground<'_>,
        message: Message,
    ) -> Result<Vec<Effect>, Refusal> {
        match message {
            Message::EpochPropose(propose) => self.proposed(ground, propose),
            Message::EpochTerms(terms) => self.terms(ground, terms),
            Message::EpochSigs(sigs) => self.signatures(ground, &sigs),
            Message::EpochAsk(ask) => self.asked(ground, &ask),
            Message::EpochCommit(commit) => self.commit(ground, &commit),
            Message::EpochSig(sig) => self.signature(ground, &sig),
            Message::EpochReveal(reveal) => self.revealed(ground, &reveal),
            Message::EpochEnd(end) => Ok(self.ended(ground, &end)),
            _ => refuse(RefusalCode::Unexpected, ""),
        }
    }

    fn proposed(
        &mut self,
        ground: &Ground<'_>,
        propose: EpochPropose,
    ) -> Result<Vec<Effect>, Refusal> {
        let limits = self
            .limits
            .as_ref()
            .filter(|_| ground.active && !self.opened);
        let Some(limits) = limits.filter(|_| self.switching.is_none()) else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        if let Some(under_way) = &self.ceremony {
            let same = under_way.name == propose.epoch && under_way.offer == propose.cut;
            if same {
                return Ok(self.repeat(ground));
            }
            if under_way.committed().is_some() {
                return refuse(RefusalCode::Unexpected, "epoch");
            }
        }
        if ground.selling {
            return refuse(RefusalCode::Unexpected, "sale");
        }
        if limits.readiness == Readiness::Away {
            return refuse(RefusalCode::Unguarded, "epoch");
        }
        let tree = self.tree(ground);
        self.check_name(ground, tree, &propose.epoch)?;
        let version = verify::version(ground, tree, &propose.epoch);
        if version != Some(propose.version) {
            return refuse(RefusalCode::Terms, "version");
        }
        if self
            .agreed
            .contains(&(propose.version, propose.epoch.retry))
        {
            return refuse(RefusalCode::Terms, "retry");
        }
        verify::offer(ground, self, limits, &propose).map_err(plain)?;
        // The LSP began again: nothing was signed for the one before.
        let mut effects = match self.ceremony.is_some() {
            true => self.give_up(ground, RefusalCode::Restarted),
            false => Vec::new(),
        };
        self.ceremony = Some(Box::new(Ceremony {
            name: propose.epoch,
            version: propose.version,
            offer: propose.cut,
            stage: Stage::Freezing,
        }));
        effects.push(Effect::Freeze(ground.slot));
        Ok(effects)
    }

    /// A newer epoch than the newest, and than any that something was signed for; below no node for
    /// which something was signed that is not completed.
    fn check_name(
        &self,
        ground: &Ground<'_>,
        tree: &Tree,
        name: &EpochName,
    ) -> Result<(), Refusal> {
        let signed = |node| {
            let state = &tree.node(node)?.state.tx;
            self.committed.get(&state.input[0].previous_output)
        };
        let path = tree.topology().path(ground.slot.slot);
        let mut above = path.iter().take_while(|node| **node != name.node);
        if above.any(|node| signed(*node).is_some_and(|(it, _)| *it > tree.edition().epoch(*node)))
        {
            // The LSP alone could complete that, and nothing of this one would be left.
            return refuse(RefusalCode::Terms, "epochs");
        }
        let signed = signed(name.node);
        let checked = match signed {
            Some((epoch, _)) if name.epoch() <= *epoch => {
                verify::name(ground, tree, name).and(Err((RefusalCode::Equivocation, "epochs")))
            }
            _ => verify::name(ground, tree, name),
        };
        checked.map_err(|wrong| match wrong.0 {
            RefusalCode::Equivocation => (wrong, vec![equivocation(ground, name)]),
            _ => plain(wrong),
        })
    }

    fn terms(&mut self, ground: &Ground<'_>, terms: EpochTerms) -> Result<Vec<Effect>, Refusal> {
        let ceremony = self.under_way(&terms.epoch)?;
        let said = match &ceremony.stage {
            Stage::Ready { said, .. } => said.clone(),
            // Said again after a reconnect.
            Stage::Signed { terms: known, .. } if *known == terms => {
                return Ok(self.repeat(ground));
            }
            Stage::Stored { .. } => return Ok(self.repeat(ground)),
            _ => return refuse(RefusalCode::Unexpected, "epoch"),
        };
        let cut = verify::cut(&ceremony.offer, said.funding_key);
        let (outputs, contents) = (&terms.leaf_outputs, &terms.contents);
        let tree = self.tree(ground);
        let built = verify::rebuilt(ground, tree, &terms.epoch, &cut, outputs, contents);
        let built = built.map_err(plain)?;
        let names = built.renewed_below(terms.epoch.node);
        let aggregates = aggregates(&terms.nonces, names.len())?;
        if names.is_empty() {
            return self.store(ground, &said, &terms, Vec::new());
        }
        let ceremony = self.ceremony.as_mut();
        let Some(Stage::Ready { nonces, .. }) = ceremony.map(|it| &mut it.stage) else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        // From here on nothing can fail, so nonces are taken only for terms that are signed.
        let mut partials = Vec::with_capacity(names.len());
        for (index, (name, aggregate)) in names.iter().zip(aggregates).enumerate() {
            let nonce = nonces.take(index).ok();
            let (Some(nonce), Some(tx)) = (nonce, built.tx(*name)) else {
                return refuse(RefusalCode::Nonce, "nonces");
            };
            let session = SigningSession::new(&tx.key, aggregate, tx.sighash);
            match session.partial_sign(nonce, ground.key) {
                Ok(partial) => partials.push(partial.to_bytes()),
                Err(_) => return refuse(RefusalCode::Key, "keys"),
            }
        }
        let (attempt, epoch) = (ground.slot.attempt, terms.epoch.clone());
        if let Some(ceremony) = &mut self.ceremony {
            ceremony.stage = Stage::Signed {
                said,
                terms,
                tree: Box::new(built),
                partials: partials.clone(),
            };
        }
        let said = EpochPartials {
            attempt,
            epoch,
            partials,
        };
        Ok(vec![say(ground, said)])
    }

    fn signatures(
        &mut self,
        ground: &Ground<'_>,
        sigs: &EpochSigs,
    ) -> Result<Vec<Effect>, Refusal> {
        let ceremony = self.under_way(&sigs.epoch)?;
        let (said, terms, tree) = match &ceremony.stage {
            Stage::Signed {
                said, terms, tree, ..
            } => (said.clone(), terms.clone(), tree),
            // Said again after a reconnect: the same is fine, anything else is not.
            Stage::Stored { prepared, .. } if prepared.version.below() == sigs.signatures => {
                return Ok(self.repeat(ground));
            }
            Stage::Stored { .. } => return refuse(RefusalCode::Signature, "signatures"),
            _ => return refuse(RefusalCode::Unexpected, "epoch"),
        };
        let tree = Tree::clone(tree);
        verify::signed(&sigs.epoch, tree, &sigs.signatures).map_err(plain)?;
        self.store(ground, &said, &terms, sigs.signatures.clone())
    }

    /// Everything below the node is verified: it is written down, and the channel may be opened.
    fn store(
        &mut self,
        ground: &Ground<'_>,
        said: &crate::message::EpochReady,
        terms: &EpochTerms,
        signatures: Vec<schnorr::Signature>,
    ) -> Result<Vec<Effect>, Refusal> {
        let limits = self.limits.as_ref();
        let guard = limits.map_or(Guard::Member, |limits| limits.guard);
        let Some(ceremony) = &self.ceremony else {
            return refuse(RefusalCode::Unexpected, "epoch");
        };
        let record = MemberEpochStored {
            epoch: ceremony.name.clone(),
            version: ceremony.version,
            cut: ceremony.offer.clone(),
            funding_key: said.funding_key,
            balances: said.balances.clone(),
            leaf_outputs: terms.leaf_outputs.clone(),
            contents: terms.contents.clone(),
            signatures,
            guard,
        };
        let prepared = prepared(ground, self.tree(ground), &record).map_err(plain)?;
        let agreed = prepared.channel(ground);
        self.agreed.insert((record.version, record.epoch.retry));
        let stored = EpochStored {
            attempt: ground.slot.attempt,
            epoch: record.epoch.clone(),
        };
        if let Some(ceremony) = &mut self.ceremony {
            ceremony.stage = Stage::Stored {
                // Whoever leaves has no channel to wait for.
                held: agreed.is_none(),
                prepared: Box::new(prepared),
                committed: false,
                round: None,
            };
        }
        let mut effects = vec![Effect::Persist(record.into())];
        effects.extend(agreed.map(Effect::AgreeMoved));
        effects.push(say(ground, stored));
        Ok(effects)
    }

    fn ended(&mut self, ground: &Ground<'_>, end: &EpochEnd) -> Vec<Effect> {
        let ceremony = self.ceremony.as_ref();
        let Some(ceremony) = ceremony.filter(|it| it.name == end.epoch) else {
            return Vec::new();
        };
        if ceremony.committed().is_none() {
            return self.give_up(ground, end.code);
        }
        let event = Event::EpochEnded {
            attempt: ground.slot.attempt,
            epoch: end.epoch.clone(),
            code: end.code,
            at_fault: Vec::new(),
        };
        self.abandon();
        let mut effects = vec![Effect::Persist(EpochEnded { code: end.code }.into())];
        effects.extend(self.limbo(ground));
        effects.push(Effect::Emit(event));
        effects
    }

    /// What the LSP may not have heard.
    pub(crate) fn repeat(&self, ground: &Ground<'_>) -> Vec<Effect> {
        let Some(ceremony) = &self.ceremony else {
            return Vec::new();
        };
        let (attempt, epoch) = (ground.slot.attempt, ceremony.name.clone());
        let said: Message = match &ceremony.stage {
            Stage::Freezing => return Vec::new(),
            Stage::Ready { said, .. } => said.clone().into(),
            Stage::Signed { partials, .. } => EpochPartials {
                attempt,
                epoch,
                partials: partials.clone(),
            }
            .into(),
            Stage::Stored { round, .. } => match round {
                Some(Signing {
                    name,
                    partial: Some(partial),
                    ..
                }) => EpochPartial {
                    attempt,
                    epoch,
                    round: *name,
                    partial: *partial,
                }
                .into(),
                Some(Signing {
                    name,
                    said: Some(nonce),
                    ..
                }) => EpochNonce {
                    attempt,
                    epoch,
                    round: *name,
                    nonce: *nonce,
                }
                .into(),
                _ => EpochStored { attempt, epoch }.into(),
            },
        };
        vec![say(ground, said)]
    }

    pub(super) fn under_way(&mut self, name: &EpochName) -> Result<&mut Ceremony, Refusal> {
        let ceremony = self.ceremony.as_deref_mut();
        let ceremony = ceremony.filter(|it| it.name == *name);
        ceremony.ok_or(((RefusalCode::Unexpected, "epoch"), Vec::new()))
    }
}

pub(super) fn aggregates(
    bytes: &[NonceBytes],
    count: usize,
) -> Result<Vec<AggregateNonce>, Refusal> {
    let parsed = bytes.iter().map(AggregateNonce::from_bytes);
    let parsed: Option<Vec<_>> = parsed.map(Result::ok).collect();
    let parsed = parsed.filter(|all| all.len() == count);
    parsed.ok_or(plain((RefusalCode::Nonce, "nonces")))
}

pub(super) fn equivocation(ground: &Ground<'_>, name: &EpochName) -> Effect {
    Effect::Emit(Event::EpochEquivocation {
        slot: ground.slot,
        epoch: name.clone(),
        peer: ground.lsp,
    })
}
