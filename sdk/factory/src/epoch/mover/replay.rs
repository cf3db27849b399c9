//! A mover back from its member's records.

use super::{Ceremony, Ground, Mover, Stage, prepared};
use crate::journal::Record;

impl Mover {
    /// Takes the next record, or says why it cannot follow.
    pub(crate) fn add(&mut self, ground: &Ground<'_>, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::MemberEpochStored(body) if self.ceremony.is_none() => {
                if self.switching.is_some() || ground.selling {
                    return Err("a new epoch before the one before it is switched to");
                }
                let tree = self.tree(ground);
                let built = super::verify::name(ground, tree, &body.epoch)
                    .and_then(|()| prepared(ground, tree, body));
                let built = built.map_err(|_| "the new epoch does not build")?;
                if super::verify::version(ground, tree, &body.epoch) != Some(body.version) {
                    return Err("the new epoch is of another version");
                }
                if !self.agreed.insert((body.version, body.epoch.retry)) {
                    return Err("the new epoch was tried before");
                }
                let facts = &ground.path.terms().facts;
                built
                    .cut
                    .check(&facts.record)
                    .map_err(|_| "the new epoch does not pay what distributions pay")?;
                // What is left in a place that is given up was the member's own decision.
                let most = built.cut.channel().map(|cut| cut.capacity.to_sat() * 1_000);
                if most.is_some_and(|most| built.push_msat() > most) {
                    return Err("the new channel holds less than its member has");
                }
                self.ceremony = Some(Box::new(Ceremony {
                    name: body.epoch.clone(),
                    version: body.version,
                    offer: body.cut.clone(),
                    stage: Stage::Stored {
                        held: built.cut.channel().is_none(),
                        prepared: Box::new(built),
                        committed: false,
                        round: None,
                    },
                }));
                return Ok(());
            }
            Record::MemberEpochRevealed(body) => {
                let (Some(moved), Some(switching)) = (self.moved.last_mut(), &mut self.switching)
                else {
                    return Err("preimages of nothing");
                };
                if switching.revealed || !moved.retired.is_revoked_by(&body.preimages) {
                    return Err("the preimages revoke something else");
                }
                moved.retired.preimages = body.preimages.clone();
                switching.revealed = true;
                self.switched();
                return Ok(());
            }
            Record::MemberEpochGuarded(body) => {
                let newest = self.version() == body.version;
                let switching = self.switching.as_mut().filter(|_| newest);
                let switching = switching.filter(|it| !it.guarded);
                switching.ok_or("nothing to be guarded")?.guarded = true;
                self.switched();
                return Ok(());
            }
            Record::MemberEpochSeen(body) => {
                return match self.learn(body.signature) {
                    true => Ok(()),
                    false => Err("the signature is of no epoch that was abandoned"),
                };
            }
            _ => {}
        }
        let Some(ceremony) = &mut self.ceremony else {
            return Err("not what a member writes next of an epoch");
        };
        let Stage::Stored {
            prepared,
            committed,
            ..
        } = &mut ceremony.stage
        else {
            return Err("not what a member writes next of an epoch");
        };
        match record {
            Record::MemberEpochCommitted(body) if !*committed => {
                let meant = (body.outpoint, body.sighash);
                let older = self.committed.get(&body.outpoint);
                let newer = older.is_none_or(|(epoch, _)| *epoch < body.epoch);
                let name = &prepared.version.name;
                if prepared.version.commitment() != Some(meant)
                    || name.epoch() != body.epoch
                    || !newer
                {
                    return Err("something else was signed");
                }
                *committed = true;
                self.committed
                    .insert(body.outpoint, (body.epoch, body.sighash));
            }
            Record::EpochSigned(body) if *committed => {
                if !self.complete(ground, body.signature) {
                    return Err("the new state's signature is invalid");
                }
            }
            Record::EpochEnded(_) if *committed => self.abandon(),
            Record::EpochEnded(_) => self.ceremony = None,
            _ => return Err("not what a member writes next of an epoch"),
        }
        Ok(())
    }

    fn switched(&mut self) {
        if self.may_switch() {
            self.switching = None;
        }
    }
}
