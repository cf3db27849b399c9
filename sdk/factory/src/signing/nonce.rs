//! Nonces: secret ones that sign once, public ones that travel, and their sum.

use std::{fmt, mem};

use bitcoin::secp256k1::PublicKey;
use secp_musig::musig::{self, AggregatedNonce, SessionSecretRand};

use super::FactoryKey;

/// One secret nonce: the right to make one partial signature with one key.
///
/// It lives in one heap cell and is erased there when it signs or is dropped. What erasure cannot
/// reach: copies the curve library makes on the stack while it generates the nonce and signs.
///
/// It cannot be used twice:
/// ```compile_fail,E0382
/// # use superscalar_factory::signing::*;
/// fn sign_twice(session: &SigningSession, nonce: SecretNonce, key: &FactoryKey) {
///     let _first = session.partial_sign(nonce, key);
///     let _second = session.partial_sign(nonce, key);
/// }
/// ```
/// nor be copied first:
/// ```compile_fail,E0599
/// # use superscalar_factory::signing::*;
/// fn sign_twice(session: &SigningSession, nonce: SecretNonce, key: &FactoryKey) {
///     let _first = session.partial_sign(nonce.clone(), key);
///     let _second = session.partial_sign(nonce, key);
/// }
/// ```
/// while using it once is fine:
/// ```
/// # use superscalar_factory::signing::*;
/// fn sign_once(session: &SigningSession, nonce: SecretNonce, key: &FactoryKey) {
///     let _only = session.partial_sign(nonce, key);
/// }
/// ```
pub struct SecretNonce {
    secret: Box<musig::SecretNonce>,
    public: PublicNonce,
    signer: PublicKey,
}

impl SecretNonce {
    /// BIP327's NonceGen over `randomness`, the secret key, and the counter as `extra_in`
    /// (big-endian, 32 bytes).
    ///
    /// With the secret key in the hash and the counter in the input, the nonce stays secret and
    /// distinct even where the randomness is weak. `randomness` must not be all zero: the curve
    /// library takes that for a nonce already used, and panics.
    pub(super) fn generate(key: &FactoryKey, randomness: &[u8; 32], counter: u64) -> Self {
        let mut extra_input = [0; 32];
        extra_input[24..].copy_from_slice(&counter.to_be_bytes());
        let mut secret_key = key.keypair().secret_key();
        let (secret, public) = musig::new_nonce_pair(
            SessionSecretRand::assume_uniformly_random(*randomness),
            None,
            Some(secret_key),
            key.keypair().public_key(),
            None,
            Some(extra_input),
        );
        secret_key.non_secure_erase();
        Self::new(secret, PublicNonce(public), key.public())
    }

    pub(super) fn new(secret: musig::SecretNonce, public: PublicNonce, signer: PublicKey) -> Self {
        Self {
            secret: Box::new(secret),
            public,
            signer,
        }
    }

    /// What the other signers need of this nonce.
    pub fn public(&self) -> PublicNonce {
        self.public
    }

    /// The public key of the only key this nonce can sign with.
    pub fn signer(&self) -> PublicKey {
        self.signer
    }

    /// Hands the secret to the one signing operation, which erases what it is given.
    pub(super) fn into_secret(mut self) -> musig::SecretNonce {
        mem::replace(
            &mut self.secret,
            musig::SecretNonce::dangerous_from_bytes([0; SECRET_SIZE]),
        )
    }
}

const SECRET_SIZE: usize = 132;

impl Drop for SecretNonce {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for SecretNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretNonce")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// The public half of a nonce: two curve points, 66 bytes on the wire (BIP327 `pubnonce`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicNonce(pub(super) musig::PublicNonce);

impl PublicNonce {
    /// Bytes on the wire.
    pub const SIZE: usize = musig::PUBNONCE_SERIALIZED_SIZE;

    /// Reads a nonce.
    ///
    /// # Errors
    ///
    /// The bytes are not two compressed curve points.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, MalformedNonce> {
        musig::PublicNonce::from_byte_array(bytes)
            .map(Self)
            .map_err(|_| MalformedNonce)
    }

    /// The nonce as it travels.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        self.0.serialize()
    }
}

impl fmt::Debug for PublicNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicNonce({})", self.0)
    }
}

/// The sum of all signers' public nonces for one message: 66 bytes on the wire (BIP327 `aggnonce`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AggregateNonce(pub(super) AggregatedNonce);

impl AggregateNonce {
    /// Bytes on the wire.
    pub const SIZE: usize = musig::AGGNONCE_SERIALIZED_SIZE;

    /// Adds up the nonces of all signers of one message. Their order does not matter here.
    ///
    /// # Errors
    ///
    /// The list is empty.
    pub fn sum(nonces: &[PublicNonce]) -> Result<Self, NonceSumError> {
        if nonces.is_empty() {
            return Err(NonceSumError::Empty);
        }
        let nonces: Vec<_> = nonces.iter().map(|nonce| &nonce.0).collect();
        Ok(Self(AggregatedNonce::new(&nonces)))
    }

    /// [`Self::sum`] of nonces as they came over the wire, in slot order.
    ///
    /// # Errors
    ///
    /// The list is empty, or a nonce is malformed; the error names the first such signer.
    pub fn sum_bytes(nonces: &[[u8; PublicNonce::SIZE]]) -> Result<Self, NonceSumError> {
        let nonces: Vec<_> = nonces
            .iter()
            .enumerate()
            .map(|(signer, bytes)| {
                PublicNonce::from_bytes(bytes).map_err(|_| NonceSumError::Malformed { signer })
            })
            .collect::<Result<_, _>>()?;
        Self::sum(&nonces)
    }

    /// Reads an aggregate nonce.
    ///
    /// # Errors
    ///
    /// The bytes are not two compressed curve points. (33 zero bytes are the point at infinity,
    /// which BIP327 allows in an aggregate: nonces can cancel out.)
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, MalformedNonce> {
        AggregatedNonce::from_byte_array(bytes)
            .map(Self)
            .map_err(|_| MalformedNonce)
    }

    /// The aggregate nonce as it travels.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        self.0.serialize()
    }
}

impl fmt::Debug for AggregateNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AggregateNonce({})", self.0)
    }
}

/// 66 bytes that are no nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the nonce is not two compressed curve points")]
pub struct MalformedNonce;

/// Why nonces could not be added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NonceSumError {
    /// There was nothing to add.
    #[error("no nonces to add up")]
    Empty,
    /// A signer sent bytes that are no nonce.
    #[error("the nonce of signer {signer} is not two compressed curve points")]
    Malformed {
        /// Index of the signer.
        signer: usize,
    },
}
