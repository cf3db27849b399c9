//! The log of entries: reading it, writing at its end.
//!
//! What always holds: what is read is unbroken from a full entry to the end; what is written
//! follows exactly what the writer knows to be the end.

use std::sync::Arc;

use super::BackupError;
use super::entry::{Entry, Kind, Place, Vault, hash, random};
use super::remote::{Creation, RemoteStore};

/// The end of a log, as one device knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Number of the last entry; 0 before the first.
    pub(crate) position: u64,
    /// Its hash.
    pub(crate) hash: [u8; 32],
    /// Who may write.
    pub(crate) generation: u64,
    /// The generation's first entry.
    pub(crate) since: u64,
}

impl Head {
    /// Before the first entry of all.
    pub(crate) const START: Head = Head {
        position: 0,
        hash: [0; 32],
        generation: 1,
        since: 1,
    };

    /// The same place, with the next entry beginning a generation of its own.
    pub(crate) fn next_generation(self) -> Head {
        Head {
            generation: self.generation + 1,
            since: self.position + 1,
            ..self
        }
    }
}

/// One remote store, and what is needed to read and write it.
pub(crate) struct Log {
    remote: Arc<dyn RemoteStore>,
    vault: Vault,
    writer: [u8; 16],
}

impl Log {
    pub(crate) fn new(remote: Arc<dyn RemoteStore>, vault: Vault) -> Result<Log, BackupError> {
        Ok(Log {
            remote,
            vault,
            writer: random()?,
        })
    }

    pub(crate) fn describe(&self) -> String {
        self.remote.describe()
    }

    /// Everything a restore needs, from the newest full entry on, and the log's end; `None` for an
    /// empty log.
    pub(crate) fn newest(&self) -> Result<Option<(Vec<Entry>, Head)>, BackupError> {
        let Some(last) = self.positions()?.into_iter().max() else {
            return Ok(None);
        };
        let mut entries = vec![self.entry(last)?];
        while let Some(earliest) = entries.last()
            && earliest.place.kind != Kind::Full
        {
            let place = earliest.place;
            let before = match place.position.checked_sub(1) {
                Some(before) if before > 0 => self.entry(before)?,
                _ => return Err(BackupError::Gap { position: 1 }),
            };
            check_follows(&place, before.hash, before.place.generation)?;
            entries.push(before);
        }
        let head = entries[0].head(last);
        entries.reverse();
        Ok(Some((entries, head)))
    }

    /// What was acknowledged after `known`, oldest first: at most what this device's last run could
    /// not write locally.
    ///
    /// # Errors
    /// [`BackupError::RolledBack`], [`BackupError::Diverged`] and [`BackupError::Superseded`] where
    /// the log is not the one this device wrote.
    pub(crate) fn after(&self, known: &Head) -> Result<Vec<Entry>, BackupError> {
        let last = self.positions()?.into_iter().max().unwrap_or(0);
        if last < known.position {
            return Err(BackupError::RolledBack {
                local: known.position,
                remote: last,
            });
        }
        if last > known.position {
            let newest = self.entry(last)?;
            if newest.place.generation != known.generation {
                return Err(BackupError::Superseded { position: last });
            }
        }
        // What is not there any more was cleaned up by whoever went on from it.
        let superseded = |error| match error {
            BackupError::Gap { .. } if last > known.position => {
                BackupError::Superseded { position: last }
            }
            error => error,
        };
        let ours = self.entry(known.position).map_err(superseded)?;
        if ours.hash != known.hash {
            return Err(BackupError::Diverged {
                position: known.position,
            });
        }
        let mut hash = known.hash;
        (known.position + 1..=last)
            .map(|position| {
                let entry = self.entry(position).map_err(superseded)?;
                check_follows(&entry.place, hash, known.generation)?;
                hash = entry.hash;
                Ok(entry)
            })
            .collect()
    }

    /// Writes `payload` behind `head`; the new end, once it is acknowledged.
    ///
    /// # Errors
    /// After [`BackupError::Unreachable`] the entry may be there or not; the next call finds out.
    /// [`BackupError::Superseded`] when somebody else's entry is there.
    pub(crate) fn append(
        &self,
        mut head: Head,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Head, BackupError> {
        loop {
            let position = head.position + 1;
            let place = Place {
                kind,
                position,
                generation: head.generation,
                writer: self.writer,
                previous: head.hash,
            };
            let sealed = self.vault.seal(&place, payload)?;
            match self.remote.create(&name(position), &sealed)? {
                Creation::Created => return Ok(head.followed_by(position, hash(&sealed))),
                Creation::Exists => {
                    let found = self.entry(position)?;
                    if found.place.writer != self.writer {
                        return Err(BackupError::Superseded { position });
                    }
                    check_follows(&found.place, head.hash, head.generation)?;
                    // An earlier try of ours whose answer was lost.
                    head = head.followed_by(position, found.hash);
                }
            }
        }
    }

    /// What nobody needs once the full entry `head` is acknowledged: what this generation wrote,
    /// except its first entry and those in `kept`.
    pub(crate) fn outdated(&self, head: &Head, kept: &[u64]) -> Result<Vec<u64>, BackupError> {
        let mut positions = self.positions()?;
        positions.retain(|position| {
            let ours = head.since < *position && *position < head.position;
            ours && !kept.contains(position)
        });
        Ok(positions)
    }

    /// Deletes one entry.
    pub(crate) fn delete(&self, position: u64) -> Result<(), BackupError> {
        Ok(self.remote.delete(&name(position))?)
    }

    fn positions(&self) -> Result<Vec<u64>, BackupError> {
        let names = self.remote.list()?;
        Ok(names.iter().filter_map(|name| position_of(name)).collect())
    }

    fn entry(&self, position: u64) -> Result<Entry, BackupError> {
        let sealed = self.remote.get(&name(position))?;
        let sealed = sealed.ok_or(BackupError::Gap { position })?;
        self.vault.open(position, &sealed)
    }
}

impl Entry {
    /// The log's end if this is the last entry, of a generation that began at `since`.
    pub(crate) fn head(&self, since: u64) -> Head {
        Head {
            position: self.place.position,
            hash: self.hash,
            generation: self.place.generation,
            since,
        }
    }
}

impl Head {
    fn followed_by(self, position: u64, hash: [u8; 32]) -> Head {
        Head {
            position,
            hash,
            ..self
        }
    }
}

/// Whether an entry stands behind one of this hash and generation. Only a full entry begins a
/// generation.
fn check_follows(place: &Place, previous: [u8; 32], generation: u64) -> Result<(), BackupError> {
    let position = place.position;
    if place.previous != previous {
        return Err(BackupError::Diverged { position });
    }
    match place.generation == generation {
        true => Ok(()),
        false => Err(BackupError::Superseded { position }),
    }
}

fn name(position: u64) -> String {
    format!("entry-{position:016x}")
}

fn position_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("entry-")?;
    let position = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16 && position > 0).then_some(position)
}
