//! What is said to one tower, and what its answers change.
//!
//! What always holds: one request at a time; an answer counts for the request it names and nothing
//! else; whatever a tower says that it should not ends the conversation, which begins anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::secp256k1::PublicKey;
use superscalar_factory::tower::{Answer, AppointmentKey, Ask, Digest, Request};
use tokio::sync::mpsc;

use super::link::{Heard, Link};
use super::{TowerAddress, Towers};
use crate::store::StoreError;

/// How long to wait before a tower is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a tower may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a tower is asked how it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// One tower, spoken to.
pub(super) struct Conversation {
    pub(super) towers: Arc<Towers>,
    pub(super) index: usize,
    pub(super) uri: TowerAddress,
    pub(super) link: Arc<Link>,
    pub(super) heard: mpsc::UnboundedReceiver<(PublicKey, Heard)>,
    pub(super) number: u32,
}

/// Why a conversation was broken off; it begins anew.
enum BrokenOff {
    Unreachable,
    Answer(String),
    Store(StoreError),
}

impl From<StoreError> for BrokenOff {
    fn from(error: StoreError) -> BrokenOff {
        BrokenOff::Store(error)
    }
}

impl Conversation {
    pub(super) async fn run(mut self) {
        loop {
            let why = match self.converse().await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            self.towers.known(self.index, |it| it.is_connected = false);
            self.link.disconnect(&self.uri.node_id);
            match why {
                BrokenOff::Unreachable => tracing::debug!(uri = %self.uri, "no tower there"),
                BrokenOff::Answer(what) => {
                    tracing::warn!(uri = %self.uri, what, "not what a tower says");
                    self.towers.known(self.index, |it| it.refused = Some(what));
                }
                BrokenOff::Store(error) => tracing::warn!(%error, "what a tower said is not kept"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, BrokenOff> {
        let address = tokio::net::lookup_host(&self.uri.address).await;
        let address = address.ok().and_then(|mut found| found.next());
        let address = address.ok_or(BrokenOff::Unreachable)?;
        if !self.link.connect(self.uri.node_id, address).await {
            return Err(BrokenOff::Unreachable);
        }
        let towers = Arc::clone(&self.towers);
        self.report().await?;
        towers.known(self.index, |it| {
            it.is_connected = true;
            it.refused = None;
        });
        // What was refused now is not asked for again in this conversation.
        let mut refused: HashMap<AppointmentKey, Option<Digest>> = HashMap::new();
        loop {
            let work = towers.work.notified();
            let next = towers.next(self.index)?;
            match next {
                Some((key, ask)) => self.settle(key, ask, &mut refused).await?,
                None => match tokio::time::timeout(REPORT_EVERY, work).await {
                    Ok(()) => {}
                    Err(_) => {
                        self.report().await?;
                        if !refused.is_empty() {
                            // Perhaps there is room now.
                            refused.clear();
                            towers.known(self.index, |it| it.refused = None);
                            towers.look_again(self.index);
                        }
                    }
                },
            }
        }
    }

    async fn report(&mut self) -> Result<(), BrokenOff> {
        match self.ask(Ask::Report).await? {
            Answer::Report(report) => Ok(self.towers.reported(self.index, report)?),
            other => Err(unexpected(&other)),
        }
    }

    async fn settle(
        &mut self,
        key: AppointmentKey,
        ask: Ask,
        refused: &mut HashMap<AppointmentKey, Option<Digest>>,
    ) -> Result<(), BrokenOff> {
        let digest = match &ask {
            Ask::Keep { appointment, .. } => Some(appointment.digest()),
            _ => None,
        };
        if refused.get(&key) == Some(&digest) {
            self.towers.known(self.index, |it| it.settled(key));
            return Ok(());
        }
        match self.ask(ask).await? {
            Answer::Kept(kept) if Some(kept) == digest => {
                self.towers.took(self.index, key, digest)?;
                self.takes(refused);
            }
            Answer::Forgotten if digest.is_none() => {
                self.towers.took(self.index, key, None)?;
                self.takes(refused);
            }
            Answer::Refused { code, detail } => {
                if digest.is_none() && !code.is_temporary() {
                    // Nothing is there: as wished.
                    return Ok(self.towers.took(self.index, key, None)?);
                }
                let said = format!("{code:?}: {detail}");
                self.towers
                    .known(self.index, |it| it.refused = Some(said.clone()));
                tracing::warn!(uri = %self.uri, said, "a tower refuses");
                match code.is_temporary() {
                    true => tokio::time::sleep(RETRY_AFTER).await,
                    false => {
                        refused.insert(key, digest);
                    }
                }
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// It takes what it is given: what it could not take for a moment was no refusal.
    fn takes(&self, refused: &HashMap<AppointmentKey, Option<Digest>>) {
        if refused.is_empty() {
            self.towers.known(self.index, |it| it.refused = None);
        }
    }

    /// One request and its answer.
    async fn ask(&mut self, ask: Ask) -> Result<Answer, BrokenOff> {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        let request = Request { number, ask };
        if !self.link.send(self.uri.node_id, &request.write()) {
            return Err(BrokenOff::Unreachable);
        }
        let answered = tokio::time::timeout(PATIENCE, self.hear(number)).await;
        let answer = answered.map_err(|_| BrokenOff::Answer("no answer".to_owned()))??;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        self.towers
            .known(self.index, |it| it.last_contact_secs = Some(now));
        Ok(answer)
    }

    async fn hear(&mut self, wanted: u32) -> Result<Answer, BrokenOff> {
        loop {
            let (_, heard) = self.heard.recv().await.ok_or(BrokenOff::Unreachable)?;
            let Heard::Message(bytes, _place) = heard else {
                // The end of an earlier connection is no end of this one.
                if !self.link.is_connected(&self.uri.node_id) {
                    return Err(BrokenOff::Unreachable);
                }
                continue;
            };
            let read = Answer::read(&bytes);
            let (number, answer) = read.map_err(|error| BrokenOff::Answer(error.to_string()))?;
            // An older one is of a request that was given up.
            if number == wanted {
                return Ok(answer);
            }
        }
    }
}

fn unexpected(answer: &Answer) -> BrokenOff {
    let what = match answer {
        Answer::Kept(_) => "acknowledged something else",
        Answer::Forgotten => "forgot something else",
        Answer::Report(_) => "a report where none was asked for",
        Answer::Refused { detail, .. } => detail,
        _ => "an answer of a newer kind",
    };
    BrokenOff::Answer(what.to_owned())
}
