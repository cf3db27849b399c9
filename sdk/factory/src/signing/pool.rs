//! The nonce pool of one factory key: filled in the background, drained by value, never stored.
//!
//! A nonce is in exactly one place: the pool, a [`ReservedNonces`], or a [`SecretNonce`] about to
//! sign. Dropping any of them destroys it; there is no way back into the pool.

use std::{collections::VecDeque, fmt};

use bitcoin::secp256k1::PublicKey;

use super::{FactoryKey, PublicNonce, SecretNonce};
use crate::scripts::tagged_hash;

/// Secret nonces of one factory key, waiting to be used.
pub struct NoncePool {
    signer: PublicKey,
    /// Nonces made so far; the next one's number.
    made: u64,
    ready: VecDeque<SecretNonce>,
}

impl NoncePool {
    /// How many nonces a wallet keeps ready. A coordinator, who signs every transaction of a
    /// factory, may fill in as many as it needs.
    pub const TARGET: usize = 64;

    /// An empty pool for `key`.
    pub fn new(key: &FactoryKey) -> Self {
        Self {
            signer: key.public(),
            made: 0,
            ready: VecDeque::new(),
        }
    }

    /// How many nonces are ready.
    pub fn available(&self) -> usize {
        self.ready.len()
    }

    /// How many nonces are missing to [`Self::TARGET`]: as many random values as the next
    /// [`Self::refill`] should bring.
    pub fn missing(&self) -> usize {
        Self::TARGET.saturating_sub(self.ready.len())
    }

    /// Makes one nonce from each random value (about 40 µs each).
    ///
    /// Every value must be 32 fresh bytes from the operating system. They are hashed together with
    /// the secret key and a running number, so two nonces of one pool differ even if two values do
    /// not; across restarts only fresh values keep them apart.
    ///
    /// # Errors
    ///
    /// The key is not the pool's, or a value is all zero, which no working generator gives. The
    /// pool is then as it was.
    pub fn refill(&mut self, key: &FactoryKey, randomness: &[[u8; 32]]) -> Result<(), RefillError> {
        if key.public() != self.signer {
            return Err(RefillError::WrongKey);
        }
        if let Some(index) = randomness.iter().position(|value| *value == [0; 32]) {
            return Err(RefillError::NotRandom { index });
        }
        for value in randomness {
            self.ready
                .push_back(SecretNonce::generate(key, value, self.made));
            self.made += 1;
        }
        Ok(())
    }

    /// Takes one nonce for one signature.
    ///
    /// # Errors
    ///
    /// The pool is empty.
    pub fn take(&mut self) -> Result<SecretNonce, ReserveError> {
        self.ready.pop_front().ok_or(ReserveError {
            wanted: 1,
            available: 0,
        })
    }

    /// Takes `count` nonces for one ceremony, to be used by index.
    ///
    /// # Errors
    ///
    /// Fewer are ready. The pool is then as it was.
    pub fn reserve(&mut self, count: usize) -> Result<ReservedNonces, ReserveError> {
        if count > self.ready.len() {
            return Err(ReserveError {
                wanted: count,
                available: self.ready.len(),
            });
        }
        let secret: Vec<_> = self.ready.drain(..count).map(Some).collect();
        let public = secret.iter().flatten().map(SecretNonce::public).collect();
        Ok(ReservedNonces { public, secret })
    }
}

impl fmt::Debug for NoncePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoncePool")
            .field("signer", &format_args!("{}", self.signer))
            .field("available", &self.ready.len())
            .finish_non_exhaustive()
    }
}

/// Nonces set aside for one ceremony: number i signs the ceremony's i-th message.
///
/// Dropped with the ceremony, and every nonce it still holds with it.
pub struct ReservedNonces {
    public: Vec<PublicNonce>,
    secret: Vec<Option<SecretNonce>>,
}

impl ReservedNonces {
    /// Makes `count` nonces from 32 fresh random bytes; `None` where these are none, or too many are
    /// wanted.
    pub(crate) fn fresh(
        key: &FactoryKey,
        count: usize,
        randomness: &[u8; 32],
    ) -> Option<ReservedNonces> {
        let each = |index: usize| {
            let index = (index as u32).to_be_bytes();
            tagged_hash("superscalar/nonce randomness", &[randomness, &index])
        };
        let randomness: Vec<_> = (0..count).map(each).collect();
        let mut pool = NoncePool::new(key);
        pool.refill(key, &randomness).ok()?;
        pool.reserve(count).ok()
    }

    /// The public nonces, in index order, used or not: what is sent to the coordinator.
    pub fn public(&self) -> &[PublicNonce] {
        &self.public
    }

    /// Takes the secret nonce with this index out, once.
    ///
    /// # Errors
    ///
    /// It was taken before, or there is none with this index.
    pub fn take(&mut self, index: usize) -> Result<SecretNonce, TakeError> {
        let count = self.secret.len();
        self.secret
            .get_mut(index)
            .ok_or(TakeError::OutOfRange { index, count })?
            .take()
            .ok_or(TakeError::Used { index })
    }
}

impl fmt::Debug for ReservedNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservedNonces")
            .field("count", &self.secret.len())
            .field("unused", &self.secret.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

/// Why the pool made no nonces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefillError {
    /// The pool belongs to another factory key.
    #[error("the nonce pool belongs to another factory key")]
    WrongKey,
    /// A random value was all zero.
    #[error("random value {index} for the nonce pool is all zero")]
    NotRandom {
        /// Index of the value.
        index: usize,
    },
}

/// The pool holds fewer nonces than asked for: refill it and ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} nonces wanted, {available} in the pool")]
pub struct ReserveError {
    /// Nonces asked for.
    pub wanted: usize,
    /// Nonces ready.
    pub available: usize,
}

/// Why a ceremony has no nonce for an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// It has been taken: it signs no second time.
    #[error("nonce {index} has already been used")]
    Used {
        /// Index asked for.
        index: usize,
    },
    /// The ceremony reserved fewer nonces.
    #[error("nonce {index} was never reserved: there are {count}")]
    OutOfRange {
        /// Index asked for.
        index: usize,
        /// Nonces reserved.
        count: usize,
    },
}
