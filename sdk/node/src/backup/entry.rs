//! One entry of the log as bytes.
//!
//! ```text
//! "SSBK" ‖ format u8 ‖ kind u8 ‖ owner 32 ‖ position u64 ‖ generation u64 ‖ writer 16
//!        ‖ previous 32 ‖ nonce 24 ‖ ciphertext
//! ```
//! XChaCha20-Poly1305 under the seed's backup key, with everything before the ciphertext as
//! associated data. What always holds: an entry that opens was written by somebody with the seed,
//! for this place of this log.

use bitcoin::Network;
use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use rand::{RngCore as _, rngs::OsRng};

use super::BackupError;

const MAGIC: &[u8; 4] = b"SSBK";
const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 24;
const PLACE_BYTES: usize = 4 + 1 + 1 + 32 + 8 + 8 + 16 + 32;
const HEADER_BYTES: usize = PLACE_BYTES + NONCE_BYTES;

/// Whose log it is, and the key to it.
pub(crate) struct Vault {
    cipher: XChaCha20Poly1305,
    owner: [u8; 32],
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What one commit changed.
    Changes = 0,
    /// Everything after one commit.
    Full = 1,
}

/// Where an entry stands, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) position: u64,
    pub(super) generation: u64,
    /// Random for each time a log is opened.
    pub(super) writer: [u8; 16],
    /// Hash of the entry before; zeroes for the first of all.
    pub(super) previous: [u8; 32],
}

/// An entry that was opened.
pub(crate) struct Entry {
    pub(super) place: Place,
    pub(super) hash: [u8; 32],
    pub(crate) payload: Vec<u8>,
}

impl Entry {
    pub(crate) fn kind(&self) -> Kind {
        self.place.kind
    }
}

impl Vault {
    /// The log of one seed, named by `seed_tag`, on one network.
    pub(crate) fn new(key: &[u8; 32], network: Network, seed_tag: &[u8; 32]) -> Vault {
        let mut owner = sha256::Hash::engine();
        owner.input(b"superscalar backup");
        owner.input(network.to_core_arg().as_bytes());
        owner.input(seed_tag);
        Vault {
            cipher: XChaCha20Poly1305::new(key.into()),
            owner: sha256::Hash::from_engine(owner).to_byte_array(),
        }
    }

    pub(super) fn seal(&self, place: &Place, payload: &[u8]) -> Result<Vec<u8>, BackupError> {
        let mut sealed = Vec::with_capacity(HEADER_BYTES + payload.len() + 16);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&[FORMAT, place.kind as u8]);
        sealed.extend_from_slice(&self.owner);
        sealed.extend_from_slice(&place.position.to_be_bytes());
        sealed.extend_from_slice(&place.generation.to_be_bytes());
        sealed.extend_from_slice(&place.writer);
        sealed.extend_from_slice(&place.previous);
        let nonce: [u8; NONCE_BYTES] = random()?;
        sealed.extend_from_slice(&nonce);
        let plain = Payload {
            msg: payload,
            aad: &sealed,
        };
        let ciphertext = self.cipher.encrypt(XNonce::from_slice(&nonce), plain);
        // The cipher refuses nothing but more than 256 GiB.
        let ciphertext = ciphertext.map_err(|_| BackupError::BadEntry {
            position: place.position,
        })?;
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    /// Opens what was found at `position`.
    pub(super) fn open(&self, position: u64, sealed: &[u8]) -> Result<Entry, BackupError> {
        let bad = || BackupError::BadEntry { position };
        let (header, ciphertext) = sealed.split_at_checked(HEADER_BYTES).ok_or_else(bad)?;
        let place = self.read_place(position, header)?;
        let sealed_payload = Payload {
            msg: ciphertext,
            aad: header,
        };
        let nonce = XNonce::from_slice(&header[PLACE_BYTES..]);
        let payload = self.cipher.decrypt(nonce, sealed_payload);
        Ok(Entry {
            place,
            hash: hash(sealed),
            payload: payload.map_err(|_| bad())?,
        })
    }

    fn read_place(&self, position: u64, header: &[u8]) -> Result<Place, BackupError> {
        let bad = || BackupError::BadEntry { position };
        let mut fields = Fields(header);
        if fields.next::<4>() != Some(*MAGIC) {
            return Err(bad());
        }
        match fields.next::<1>().ok_or_else(bad)? {
            [FORMAT] => {}
            [found] => return Err(BackupError::Newer { position, found }),
        }
        let kind = match fields.next::<1>() {
            Some([0]) => Kind::Changes,
            Some([1]) => Kind::Full,
            _ => return Err(bad()),
        };
        if fields.next::<32>().ok_or_else(bad)? != self.owner {
            return Err(BackupError::OtherWallet);
        }
        let place = Place {
            kind,
            position: u64::from_be_bytes(fields.next().ok_or_else(bad)?),
            generation: u64::from_be_bytes(fields.next().ok_or_else(bad)?),
            writer: fields.next().ok_or_else(bad)?,
            previous: fields.next().ok_or_else(bad)?,
        };
        match place.position == position {
            true => Ok(place),
            false => Err(bad()),
        }
    }
}

/// Reads fields of a fixed size one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// What the next entry names this one by.
pub(super) fn hash(sealed: &[u8]) -> [u8; 32] {
    sha256::Hash::hash(sealed).to_byte_array()
}

/// From the operating system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], BackupError> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| BackupError::Randomness)?;
    Ok(bytes)
}
