//! A wallet's towers: what they are to look after, what they have acknowledged, how they are.
//!
//! What always holds: what is to be looked after is on disk before anybody is asked to; an
//! acknowledgement counts for exactly the content it names and is on disk before it is told; a tower
//! that is away holds nobody up but whoever waits for it. Each tower is spoken to under an identity
//! of its own, so that two of them cannot tell that they have the same client. What cannot be read of
//! the disk is told, and a tower that has it is never asked to forget it because of that.

mod conversation;
pub(crate) mod link;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitcoin::OutPoint;
use bitcoin::hashes::{Hash as _, HashEngine as _, Hmac, HmacEngine, sha256};
use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};
use superscalar_factory::codec::{Decode as _, Encode as _};
use superscalar_factory::tower::{Appointment, AppointmentKey, Ask, Digest, Report};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::chain::ChainWatcher;
use crate::store::{Store, StoreError};

use conversation::Conversation;
use link::Link;

/// Namespace of what is to be looked after.
const WANTED: &str = "towers";
/// Namespace of what was acknowledged, one below it for each tower.
const KEPT: &str = "towers_kept";

/// Where a tower is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TowerAddress {
    pub(crate) node_id: PublicKey,
    /// Host and port.
    pub(crate) address: String,
}

impl std::fmt::Display for TowerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

/// As far back as a tower has to look for a channel: a week, which all of them do.
const RECENT_BLOCKS: u32 = 1_000;

/// How often a tower that does not keep what it has acknowledged is given everything again: one that
/// says something else each time makes no more work than that.
const GIVEN_AGAIN_EVERY: Duration = Duration::from_secs(600);

/// Whether a tower can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TowerState {
    /// It answers.
    Connected,
    /// It cannot be reached, or does not admit this wallet.
    Away,
    /// It answers, and refuses what it should look after.
    Refusing,
}

/// How one tower is, as far as this wallet knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TowerHealth {
    /// The tower, `node_id@host:port`.
    pub uri: String,
    /// Who this wallet is to it, hex: what its operator admits.
    pub client_id: String,
    /// Whether it can be reached.
    pub state: TowerState,
    /// The last block it had looked at when it last answered.
    pub height: Option<u32>,
    /// When it last answered, in seconds since 1970.
    pub last_contact_secs: Option<u64>,
    /// What it has acknowledged.
    pub kept: u32,
    /// What it has not acknowledged yet, and what cannot be read here to be given to it.
    pub backlog: u32,
    /// Coins it has to pay fees with, in satoshi.
    pub coins_sat: Option<u64>,
    /// What it last refused, and why.
    pub refused: Option<String>,
}

/// The key of a wallet's identity towards one tower.
fn identity_seed(lightning_seed: &[u8; 32], tower: &PublicKey) -> [u8; 32] {
    let mut engine = HmacEngine::<sha256::Hash>::new(lightning_seed);
    engine.input(b"superscalar/tower client");
    engine.input(&tower.serialize());
    Hmac::from_engine(engine).to_byte_array()
}

/// Who a wallet is to a tower.
pub(crate) fn identity(lightning_seed: &[u8; 32], tower: &PublicKey) -> PublicKey {
    crate::hosting::node_id(&identity_seed(lightning_seed, tower))
}

/// See the module's first lines.
pub(crate) struct Towers {
    store: Arc<Store>,
    watcher: Arc<ChainWatcher>,
    state: Mutex<State>,
    /// Counts acknowledgements.
    acknowledged: watch::Sender<u64>,
    work: Notify,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<AppointmentKey, Wanted>,
    /// Rows of what is wanted as well, and cannot be read to be given to anybody.
    unreadable: BTreeSet<String>,
    /// In the order in which they were configured.
    towers: Vec<Known>,
}

#[derive(Clone, Copy)]
struct Wanted {
    digest: Digest,
    urgency: Urgency,
    /// Of a revoked commitment.
    channel: Option<OutPoint>,
}

impl Wanted {
    fn of(appointment: &Appointment) -> Wanted {
        let (urgency, channel) = match appointment {
            Appointment::Revoked { channel, .. } => (Urgency::Background, Some(*channel)),
            _ => (Urgency::Awaited, None),
        };
        Wanted {
            digest: appointment.digest(),
            urgency,
            channel,
        }
    }
}

/// What somebody waits for goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Awaited,
    Background,
}

/// What is known of one tower.
struct Known {
    uri: TowerAddress,
    client: PublicKey,
    kept: HashMap<AppointmentKey, Digest>,
    due: BTreeSet<(Urgency, AppointmentKey)>,
    report: Option<Report>,
    /// How much it kept besides, and its sum, when it was last given everything again.
    besides: Option<(u32, Digest)>,
    /// When it was last given everything again.
    given_again: Option<Instant>,
    last_contact_secs: Option<u64>,
    is_connected: bool,
    refused: Option<String>,
}

impl Known {
    fn namespace(&self) -> String {
        self.uri.node_id.to_string()
    }

    fn sum(&self) -> Digest {
        let mut sum = Digest::default();
        self.kept.values().for_each(|digest| sum.toggle(*digest));
        sum
    }

    /// Whether it is to be given everything again, because it does not keep what it has acknowledged.
    /// What it keeps besides is of another disk with the same words: it may be all that guards money
    /// there, and is left alone once giving everything again has not changed it.
    fn needs_all_again(&mut self, report: Report) -> bool {
        self.report = Some(report);
        let mut sum = report.sum;
        sum.toggle(self.sum());
        let before = self.besides.take();
        let besides = report.kept.checked_sub(self.kept.len() as u32);
        let besides = besides.map(|count| (count, sum));
        match besides {
            Some((0, sum)) if sum == Digest::default() => return false,
            // As many with another content are none besides: one of ours is not as it should be.
            Some((1.., _)) if besides == before => {
                self.besides = before;
                return false;
            }
            _ => {}
        }
        let recently = |at: Instant| at.elapsed() < GIVEN_AGAIN_EVERY;
        if self.given_again.is_some_and(recently) {
            return false;
        }
        self.besides = besides;
        true
    }

    fn settled(&mut self, key: AppointmentKey) {
        for urgency in [Urgency::Awaited, Urgency::Background] {
            self.due.remove(&(urgency, key));
        }
    }

    /// Everything that differs from what it has acknowledged. What cannot be read here stays with
    /// it: it may be all that guards money.
    fn look_what_is_due(
        &mut self,
        wanted: &BTreeMap<AppointmentKey, Wanted>,
        unreadable: &BTreeSet<String>,
    ) {
        let missing = wanted
            .iter()
            .filter(|(key, it)| self.kept.get(key) != Some(&it.digest));
        let missing = missing.map(|(key, it)| (it.urgency, *key));
        let is_unreadable = |key: &AppointmentKey| unreadable.contains(&row(*key));
        let stale = self.kept.keys();
        let stale = stale.filter(|key| !wanted.contains_key(key) && !is_unreadable(key));
        let stale = stale.map(|key| (Urgency::Background, *key));
        self.due = missing.chain(stale).collect();
    }

    fn health(
        &self,
        wanted: &BTreeMap<AppointmentKey, Wanted>,
        unreadable: &BTreeSet<String>,
    ) -> TowerHealth {
        let is_missing =
            |(key, it): &(&AppointmentKey, &Wanted)| self.kept.get(key) != Some(&it.digest);
        let missing = wanted.iter().filter(is_missing).count();
        let report = self.report.as_ref();
        TowerHealth {
            uri: self.uri.to_string(),
            client_id: self.client.to_string(),
            state: match (self.is_connected, &self.refused) {
                (true, None) => TowerState::Connected,
                (true, Some(_)) => TowerState::Refusing,
                (false, _) => TowerState::Away,
            },
            height: report.map(|it| it.height),
            last_contact_secs: self.last_contact_secs,
            kept: self.kept.len() as u32,
            backlog: (missing + unreadable.len()) as u32,
            coins_sat: report.map(|it| it.coins_sat),
            refused: self.refused.clone(),
        }
    }
}

impl Towers {
    /// Reads what is on disk; nobody is spoken to before [`speak`](Self::speak).
    pub(crate) fn open(
        store: Arc<Store>,
        watcher: Arc<ChainWatcher>,
        lightning_seed: &[u8; 32],
        uris: &[TowerAddress],
    ) -> Result<Arc<Towers>, StoreError> {
        Ok(Arc::new(Towers {
            state: Mutex::new(read(&store, lightning_seed, uris)?),
            store,
            watcher,
            acknowledged: watch::Sender::new(0),
            work: Notify::new(),
            tasks: Mutex::default(),
        }))
    }

    /// Begins to speak to all of them. Must be called within a tokio runtime.
    pub(crate) fn speak(self: &Arc<Self>, lightning_seed: &[u8; 32]) {
        let state = lock(&self.state);
        let uris = state.towers.iter().map(|tower| tower.uri.clone());
        for (index, uri) in uris.enumerate() {
            let only = uri.node_id;
            let seed = identity_seed(lightning_seed, &only);
            let (link, heard) = Link::new(&seed, Box::new(move |peer| *peer == only));
            let conversation = Conversation {
                towers: Arc::clone(self),
                index,
                uri,
                link,
                heard,
                number: 0,
            };
            lock(&self.tasks).push(tokio::spawn(conversation.run()));
        }
    }

    /// Ends all conversations.
    pub(crate) async fn stop(&self) {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            task.abort();
            // Ended by the abort, as it should be.
            let _ = task.await;
        }
    }

    /// Has this looked after, in place of what had the same key; `from_height` is where the chain
    /// stands. It is on disk when this returns.
    pub(crate) fn keep(
        &self,
        from_height: u32,
        appointment: &Appointment,
    ) -> Result<(), StoreError> {
        let (key, digest) = (appointment.key(), appointment.digest());
        let row = row(key);
        let mut state = lock(&self.state);
        if state.wanted.get(&key).is_some_and(|it| it.digest == digest) {
            return Ok(());
        }
        let mut value = from_height.to_bytes();
        value.extend(appointment.to_bytes());
        self.store.set_value(WANTED, "", &row, &value)?;
        state.unreadable.remove(&row);
        let wanted = Wanted::of(appointment);
        let urgency = wanted.urgency;
        state.wanted.insert(key, wanted);
        for tower in &mut state.towers {
            match tower.kept.get(&key) == Some(&digest) {
                true => tower.due.remove(&(urgency, key)),
                false => tower.due.insert((urgency, key)),
            };
        }
        drop(state);
        self.work.notify_waiters();
        Ok(())
    }

    /// Has this looked after no longer.
    pub(crate) fn forget(&self, key: AppointmentKey) -> Result<(), StoreError> {
        let row = row(key);
        let mut state = lock(&self.state);
        if !state.wanted.contains_key(&key) && !state.unreadable.contains(&row) {
            return Ok(());
        }
        self.store.remove_value(WANTED, "", &row)?;
        state.wanted.remove(&key);
        state.unreadable.remove(&row);
        for tower in &mut state.towers {
            tower.settled(key);
            if tower.kept.contains_key(&key) {
                tower.due.insert((Urgency::Background, key));
            }
        }
        drop(state);
        self.work.notify_waiters();
        Ok(())
    }

    /// Has nothing of a channel looked after any more.
    pub(crate) fn forget_channel(&self, channel: &OutPoint) -> Result<(), StoreError> {
        let of_channel = |it: &Wanted| it.channel == Some(*channel);
        let state = lock(&self.state);
        let wanted = state.wanted.iter().filter(|(_, it)| of_channel(it));
        let keys: Vec<AppointmentKey> = wanted.map(|(key, _)| *key).collect();
        drop(state);
        keys.into_iter().try_for_each(|key| self.forget(key))
    }

    /// Channels of which revoked commitments are looked after.
    pub(crate) fn channels(&self) -> BTreeSet<OutPoint> {
        let state = lock(&self.state);
        state.wanted.values().filter_map(|it| it.channel).collect()
    }

    /// The channel whose revoked commitment has this output, if that is looked after.
    pub(crate) fn channel_of(&self, output: OutPoint) -> Option<OutPoint> {
        let key = AppointmentKey::of_revoked(output);
        lock(&self.state).wanted.get(&key)?.channel
    }

    /// Whether one of them is there and would take more.
    pub(crate) fn have_room(&self) -> bool {
        let state = lock(&self.state);
        let mut towers = state.towers.iter();
        towers.any(|tower| {
            let report = tower.report.filter(|report| report.kept < report.quota);
            tower.is_connected && tower.refused.is_none() && report.is_some()
        })
    }

    /// The highest block that one which is there has looked at.
    pub(crate) fn seen_height(&self) -> Option<u32> {
        let state = lock(&self.state);
        let connected = state.towers.iter().filter(|tower| tower.is_connected);
        connected
            .filter_map(|tower| Some(tower.report?.height))
            .max()
    }

    /// Whether a tower has acknowledged exactly this content.
    pub(crate) fn is_kept(&self, key: AppointmentKey, digest: Digest) -> bool {
        let state = lock(&self.state);
        let mut towers = state.towers.iter();
        towers.any(|tower| tower.kept.get(&key) == Some(&digest))
    }

    /// What is to be looked after and cannot be read, by its row in the database.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        let state = lock(&self.state);
        let rows = state.unreadable.iter();
        rows.map(|row| format!("{WANTED}/{row}")).collect()
    }

    /// Changes with every acknowledgement.
    pub(crate) fn acknowledged(&self) -> watch::Receiver<u64> {
        self.acknowledged.subscribe()
    }

    /// How each of them is.
    pub(crate) fn health(&self) -> Vec<TowerHealth> {
        let state = lock(&self.state);
        let towers = state.towers.iter();
        towers
            .map(|it| it.health(&state.wanted, &state.unreadable))
            .collect()
    }

    /// What to ask a tower for next.
    fn next(&self, index: usize) -> Result<Option<(AppointmentKey, Ask)>, StoreError> {
        loop {
            let mut state = lock(&self.state);
            let State { wanted, towers, .. } = &mut *state;
            let Some(tower) = towers.get_mut(index) else {
                return Ok(None);
            };
            let Some((urgency, key)) = tower.due.first().copied() else {
                return Ok(None);
            };
            if !wanted.contains_key(&key) {
                return Ok(Some((key, Ask::Forget(key))));
            }
            let row = row(key);
            let stored = self.store.value(WANTED, "", &row)?;
            match stored.as_deref().and_then(|it| wanted_of(&row, it)) {
                Some((stored, appointment)) => {
                    let from_height = self.opened_from(stored, &appointment);
                    let ask = Ask::Keep {
                        from_height,
                        appointment,
                    };
                    return Ok(Some((key, ask)));
                }
                None => {
                    tracing::error!(row, "cannot be read for a tower");
                    tower.due.remove(&(urgency, key));
                }
            }
        }
    }

    /// From which block on a tower has to look: we have looked until now ourselves.
    fn opened_from(&self, stored: u32, appointment: &Appointment) -> u32 {
        let tip = self.watcher.tip().map_or(stored, |tip| tip.height);
        match appointment {
            Appointment::Path { .. } => {
                let spend = self.watcher.spend(&appointment.trigger());
                spend.map_or(tip, |spend| spend.confirmation.height)
            }
            // Not every channel is watched here; LDK has answered what is older.
            _ => stored.max(tip.saturating_sub(RECENT_BLOCKS)),
        }
    }

    /// Takes what a tower has acknowledged, or has forgotten.
    fn took(
        &self,
        index: usize,
        key: AppointmentKey,
        digest: Option<Digest>,
    ) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let State { wanted, towers, .. } = &mut *state;
        let Some(tower) = towers.get_mut(index) else {
            return Ok(());
        };
        let (name, row) = (tower.namespace(), row(key));
        match digest {
            Some(digest) => {
                self.store.set_value(KEPT, &name, &row, &digest.0)?;
                tower.kept.insert(key, digest);
            }
            None => {
                self.store.remove_value(KEPT, &name, &row)?;
                tower.kept.remove(&key);
            }
        }
        let now = wanted.get(&key);
        tower.settled(key);
        match now {
            // Replaced meanwhile.
            Some(now) if digest != Some(now.digest) => {
                tower.due.insert((now.urgency, key));
            }
            None if digest.is_some() => {
                tower.due.insert((Urgency::Background, key));
            }
            _ => {}
        }
        drop(state);
        self.acknowledged.send_modify(|count| *count += 1);
        Ok(())
    }

    /// What a tower says of itself. One that keeps something else than it has acknowledged is given
    /// everything again, once for the same difference and not at every report.
    fn reported(&self, index: usize, report: Report) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let State {
            wanted,
            unreadable,
            towers,
        } = &mut *state;
        let Some(tower) = towers.get_mut(index) else {
            return Ok(());
        };
        if !tower.needs_all_again(report) {
            return Ok(());
        }
        tracing::warn!(uri = %tower.uri, "not what it has acknowledged: it is given all again");
        let name = tower.namespace();
        self.store.transaction(|tx| {
            tx.execute(
                "DELETE FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2",
                rusqlite::params![KEPT, name],
            )?;
            Ok::<_, StoreError>(())
        })?;
        tower.given_again = Some(Instant::now());
        tower.kept.clear();
        tower.look_what_is_due(wanted, unreadable);
        Ok(())
    }

    /// What was refused may be taken now.
    fn look_again(&self, index: usize) {
        let mut state = lock(&self.state);
        let State {
            wanted,
            unreadable,
            towers,
        } = &mut *state;
        if let Some(tower) = towers.get_mut(index) {
            tower.look_what_is_due(wanted, unreadable);
        }
    }

    fn known(&self, index: usize, change: impl FnOnce(&mut Known)) {
        if let Some(tower) = lock(&self.state).towers.get_mut(index) {
            change(tower);
        }
    }
}

/// Reads what is on disk.
fn read(
    store: &Store,
    lightning_seed: &[u8; 32],
    uris: &[TowerAddress],
) -> Result<State, StoreError> {
    let mut state = State::default();
    for row in store.keys(WANTED, "")? {
        let stored = store.value(WANTED, "", &row)?;
        let Some((_, appointment)) = stored.as_deref().and_then(|it| wanted_of(&row, it)) else {
            // Whoever has it here must be able to leave all the same.
            tracing::error!(row, "cannot be read for the towers");
            state.unreadable.insert(row);
            continue;
        };
        state
            .wanted
            .insert(appointment.key(), Wanted::of(&appointment));
    }
    for uri in uris {
        let name = uri.node_id.to_string();
        let mut kept = HashMap::new();
        for key in store.keys(KEPT, &name)? {
            let digest = store.value(KEPT, &name, &key)?;
            let digest = digest.and_then(|it| it.try_into().ok()).map(Digest);
            let bytes = hex::decode(&key).ok();
            let key = bytes.and_then(|it| it.try_into().ok());
            kept.extend(key.map(AppointmentKey).zip(digest));
        }
        let mut tower = Known {
            uri: uri.clone(),
            client: identity(lightning_seed, &uri.node_id),
            kept,
            due: BTreeSet::new(),
            report: None,
            besides: None,
            given_again: None,
            last_contact_secs: None,
            is_connected: false,
            refused: None,
        };
        tower.look_what_is_due(&state.wanted, &state.unreadable);
        state.towers.push(tower);
    }
    Ok(state)
}

/// What is stored in this row of something to be looked after.
fn wanted_of(name: &str, bytes: &[u8]) -> Option<(u32, Appointment)> {
    let (height, appointment) = bytes.split_first_chunk::<4>()?;
    let appointment = Appointment::from_bytes(appointment, "appointment").ok()?;
    let is_its_own = row(appointment.key()) == name;
    is_its_own.then_some((u32::from_be_bytes(*height), appointment))
}

/// Where something to be looked after is stored.
fn row(key: AppointmentKey) -> String {
    hex::encode(key.0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
