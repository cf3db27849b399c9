//! What a tower keeps, on disk and as an index in memory.
//!
//! What always holds: the index is what the disk says; an appointment is in it from the moment it is
//! on disk until it is forgotten; the tallies are the sums of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Txid};
use superscalar_factory::codec::{Decode as _, Encode as _};
use superscalar_factory::tower::{Appointment, AppointmentKey, Digest};

use crate::store::{Store, StoreError};

/// Namespace of the appointments, one below it for each client.
const NAMESPACE: &str = "tower";

/// Whose appointment, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) client: PublicKey,
    pub(super) key: AppointmentKey,
}

/// What is known of one without reading it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    /// Nothing is due while this is unspent.
    pub(super) trigger: OutPoint,
    /// The one spender of it that matters; any if there is none.
    pub(super) spender: Option<Txid>,
    watched: Vec<OutPoint>,
    bytes: u64,
}

impl Entry {
    fn of(appointment: &Appointment, bytes: u64) -> Entry {
        let spender = match appointment {
            Appointment::Revoked { claim, .. } => Some(claim.outpoint().txid),
            _ => None,
        };
        Entry {
            digest: appointment.digest(),
            trigger: appointment.trigger(),
            spender,
            watched: appointment.watched(),
            bytes,
        }
    }
}

/// What one client has here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) appointments: u32,
    pub(super) bytes: u64,
    pub(super) sum: Digest,
}

/// See the module's first lines.
pub(super) struct Book {
    store: Arc<Store>,
    entries: BTreeMap<Place, Entry>,
    tallies: HashMap<PublicKey, Tally>,
    /// How many entries of which clients look at each outpoint.
    watched: HashMap<OutPoint, HashMap<PublicKey, u32>>,
}

impl Book {
    /// Reads everything.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names what cannot be read: a tower that began without it would not
    /// look after somebody who counts on it.
    pub(super) fn open(store: Arc<Store>) -> Result<Book, StoreError> {
        let mut book = Book {
            store,
            entries: BTreeMap::new(),
            tallies: HashMap::new(),
            watched: HashMap::new(),
        };
        for client in book.store.namespaces(NAMESPACE)? {
            for key in book.store.keys(NAMESPACE, &client)? {
                if let Some((place, appointment, bytes)) = book.stored(&client, &key)? {
                    book.enter(place, Entry::of(&appointment, bytes));
                }
            }
        }
        Ok(book)
    }

    fn stored(
        &self,
        client: &str,
        key: &str,
    ) -> Result<Option<(Place, Appointment, u64)>, StoreError> {
        let Some(bytes) = self.store.value(NAMESPACE, client, key)? else {
            return Ok(None);
        };
        let row = || format!("{NAMESPACE}/{client}/{key}");
        let damaged = |why: &dyn fmt::Display| StoreError::damaged(row(), why);
        let appointment = Appointment::from_bytes(&bytes, "appointment");
        let appointment = appointment.map_err(|error| damaged(&error))?;
        let place = Place {
            client: PublicKey::from_str(client).map_err(|error| damaged(&error))?,
            key: appointment.key(),
        };
        if names(&place) != (client.to_owned(), key.to_owned()) {
            return Err(damaged(&"what is stored there has another name"));
        }
        Ok(Some((place, appointment, bytes.len() as u64)))
    }

    /// What a client has here.
    pub(super) fn tally(&self, client: &PublicKey) -> Tally {
        self.tallies.get(client).copied().unwrap_or_default()
    }

    /// How many clients have something here.
    pub(super) fn clients(&self) -> usize {
        self.tallies.len()
    }

    /// How many appointments there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// One of them.
    pub(super) fn entry(&self, place: &Place) -> Option<&Entry> {
        self.entries.get(place)
    }

    /// All of them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Place, &Entry)> {
        self.entries.iter()
    }

    /// The size of one of them.
    pub(super) fn bytes_of(&self, place: &Place) -> u64 {
        self.entries.get(place).map_or(0, |entry| entry.bytes)
    }

    /// Whether anybody looks at this outpoint.
    pub(super) fn is_watched(&self, outpoint: &OutPoint) -> bool {
        self.watched.contains_key(outpoint)
    }

    /// Whether this client does: what others said about it is not believed.
    pub(super) fn is_watched_by(&self, client: &PublicKey, outpoint: &OutPoint) -> bool {
        let watching = self.watched.get(outpoint);
        watching.is_some_and(|clients| clients.contains_key(client))
    }

    /// Reads one of them.
    pub(super) fn read(&self, place: &Place) -> Result<Option<Appointment>, StoreError> {
        let (client, key) = names(place);
        let stored = self.stored(&client, &key)?;
        Ok(stored.map(|(_, appointment, _)| appointment))
    }

    /// Puts one on disk in place of what was there; gives the outpoints nobody looks at any more.
    pub(super) fn keep(
        &mut self,
        client: PublicKey,
        appointment: &Appointment,
    ) -> Result<Vec<OutPoint>, StoreError> {
        let key = appointment.key();
        let place = Place { client, key };
        let bytes = appointment.to_bytes();
        let (client, key) = names(&place);
        self.store.set_value(NAMESPACE, &client, &key, &bytes)?;
        let entry = Entry::of(appointment, bytes.len() as u64);
        let left = self.leave(&place);
        self.enter(place, entry);
        Ok(self.unwatched(left))
    }

    /// Takes one away; gives the outpoints nobody looks at any more. `None` if it was not there.
    pub(super) fn forget(&mut self, place: &Place) -> Result<Option<Vec<OutPoint>>, StoreError> {
        if !self.entries.contains_key(place) {
            return Ok(None);
        }
        let (client, key) = names(place);
        self.store.remove_value(NAMESPACE, &client, &key)?;
        let left = self.leave(place);
        Ok(Some(self.unwatched(left)))
    }

    fn unwatched(&self, outpoints: Vec<OutPoint>) -> Vec<OutPoint> {
        let unique: HashSet<OutPoint> = outpoints.into_iter().collect();
        let gone = unique.into_iter().filter(|it| !self.is_watched(it));
        gone.collect()
    }

    fn enter(&mut self, place: Place, entry: Entry) {
        let tally = self.tallies.entry(place.client).or_default();
        tally.appointments += 1;
        tally.bytes += entry.bytes;
        tally.sum.toggle(entry.digest);
        for outpoint in &entry.watched {
            let clients = self.watched.entry(*outpoint).or_default();
            *clients.entry(place.client).or_default() += 1;
        }
        self.entries.insert(place, entry);
    }

    fn leave(&mut self, place: &Place) -> Vec<OutPoint> {
        let Some(entry) = self.entries.remove(place) else {
            return Vec::new();
        };
        if let Some(tally) = self.tallies.get_mut(&place.client) {
            tally.appointments -= 1;
            tally.bytes -= entry.bytes;
            tally.sum.toggle(entry.digest);
            if tally.appointments == 0 {
                self.tallies.remove(&place.client);
            }
        }
        for outpoint in &entry.watched {
            let Some(clients) = self.watched.get_mut(outpoint) else {
                continue;
            };
            if let Some(count) = clients.get_mut(&place.client) {
                *count -= 1;
                if *count == 0 {
                    clients.remove(&place.client);
                }
            }
            if clients.is_empty() {
                self.watched.remove(outpoint);
            }
        }
        entry.watched
    }
}

fn names(place: &Place) -> (String, String) {
    (place.client.to_string(), hex::encode(place.key.0))
}
