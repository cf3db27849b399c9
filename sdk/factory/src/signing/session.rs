//! One message and its signature: partial signatures, aggregation, blame.

use std::fmt;

use bitcoin::{XOnlyPublicKey, secp256k1::schnorr::Signature};
use secp_musig::musig::{self, Session};

use super::{AggregateNonce, FactoryKey, PublicNonce, SecretNonce, TweakedKey};

/// The signing of one 32-byte message under one output key with one aggregate nonce.
///
/// Opening it costs about 20 µs; all partial signatures of a process for one message share it.
/// Signers who disagree on key, message or aggregate nonce produce partial signatures that do not
/// aggregate; nobody's key is at risk, whoever chose the aggregate nonce.
#[derive(Debug, Clone)]
pub struct SigningSession {
    key: TweakedKey,
    message: [u8; 32],
    session: Session,
}

impl SigningSession {
    /// Opens the session. `message` is the sighash.
    pub fn new(key: &TweakedKey, nonce: AggregateNonce, message: [u8; 32]) -> Self {
        let session = Session::new(key.cache(), nonce.0, &message);
        Self {
            key: key.clone(),
            message,
            session,
        }
    }

    /// The key that is signed for.
    pub fn key(&self) -> &TweakedKey {
        &self.key
    }

    /// What is signed.
    pub fn message(&self) -> &[u8; 32] {
        &self.message
    }

    /// Signs as one of the signers. The nonce is gone afterwards, also when this fails.
    ///
    /// # Errors
    ///
    /// The nonce was made for another key, or the key is not among the signers.
    pub fn partial_sign(
        &self,
        nonce: SecretNonce,
        key: &FactoryKey,
    ) -> Result<PartialSignature, PartialSignError> {
        // The curve library would abort the process on the first, and not notice the second.
        if nonce.signer() != key.public() {
            return Err(PartialSignError::NonceOfAnotherKey);
        }
        if self.key.signers().position(&key.public()).is_none() {
            return Err(PartialSignError::NotASigner);
        }
        let partial =
            self.session
                .partial_sign(nonce.into_secret(), key.keypair(), self.key.cache());
        Ok(PartialSignature(partial))
    }

    /// Combines the partial signatures of all signers into the final one and verifies it.
    ///
    /// `nonces` and `partials` are in slot order; the nonces are read only to find culprits.
    ///
    /// # Errors
    ///
    /// A count that is not the number of signers; or the final signature is invalid: then the error
    /// names the signers whose partial signatures are ([`AggregateError::Blame`]), or says that
    /// none is ([`AggregateError::NonceMismatch`]).
    pub fn aggregate(
        &self,
        nonces: &[PublicNonce],
        partials: &[PartialSignature],
    ) -> Result<Signature, AggregateError> {
        let signers = self.key.signers().count();
        for given in [nonces.len(), partials.len()] {
            if given != signers {
                return Err(AggregateError::WrongCount { signers, given });
            }
        }
        self.try_aggregate(partials)
            .ok_or_else(|| self.blame(nonces, partials))
    }

    /// [`Self::aggregate`] for partial signatures as they came over the wire.
    ///
    /// # Errors
    ///
    /// As there; a malformed partial signature makes its signer a culprit, beside all others whose
    /// partial signatures are invalid.
    pub fn aggregate_bytes(
        &self,
        nonces: &[PublicNonce],
        partials: &[[u8; PartialSignature::SIZE]],
    ) -> Result<Signature, AggregateError> {
        let parsed: Vec<_> = partials
            .iter()
            .map(|bytes| PartialSignature::from_bytes(bytes).ok())
            .collect();
        if let Some(all) = parsed.iter().copied().collect::<Option<Vec<_>>>() {
            return self.aggregate(nonces, &all);
        }
        let signers = self.key.signers().count();
        for given in [nonces.len(), partials.len()] {
            if given != signers {
                return Err(AggregateError::WrongCount { signers, given });
            }
        }
        Err(AggregateError::Blame {
            culprits: self.culprits(nonces, &parsed),
        })
    }

    /// Whether `partial` is what `signer` (its slot) owes this session.
    ///
    /// Says nothing outside the session: anyone can make up nonces for a valid-looking one.
    pub fn verify_partial(
        &self,
        signer: usize,
        nonce: &PublicNonce,
        partial: &PartialSignature,
    ) -> bool {
        self.key.points().nth(signer).is_some_and(|point| {
            self.session
                .partial_verify(self.key.cache(), &partial.0, &nonce.0, point)
        })
    }

    fn try_aggregate(&self, partials: &[PartialSignature]) -> Option<Signature> {
        let partials: Vec<_> = partials.iter().map(|partial| &partial.0).collect();
        let signature = self
            .session
            .partial_sig_agg(&partials)
            .verify(&self.key.cache().agg_pk(), &self.message)
            .ok()?;
        Signature::from_slice(&signature.to_byte_array()).ok()
    }

    fn blame(&self, nonces: &[PublicNonce], partials: &[PartialSignature]) -> AggregateError {
        let partials: Vec<_> = partials.iter().copied().map(Some).collect();
        let culprits = self.culprits(nonces, &partials);
        if culprits.is_empty() {
            AggregateError::NonceMismatch
        } else {
            AggregateError::Blame { culprits }
        }
    }

    /// The slots whose partial signature is missing (`None`) or invalid.
    fn culprits(
        &self,
        nonces: &[PublicNonce],
        partials: &[Option<PartialSignature>],
    ) -> Vec<usize> {
        self.key
            .points()
            .zip(nonces.iter().zip(partials))
            .enumerate()
            .filter(|(_, (point, (nonce, partial)))| {
                !partial.is_some_and(|partial| {
                    self.session
                        .partial_verify(self.key.cache(), &partial.0, &nonce.0, *point)
                })
            })
            .map(|(signer, _)| signer)
            .collect()
    }
}

/// Whether `signature` is a valid BIP340 signature of `message` under `output_key`.
pub fn verify(output_key: &XOnlyPublicKey, message: &[u8; 32], signature: &Signature) -> bool {
    let Ok(key) = secp_musig::XOnlyPublicKey::from_byte_array(output_key.serialize()) else {
        return false;
    };
    let signature = secp_musig::schnorr::Signature::from_byte_array(signature.serialize());
    secp_musig::schnorr::verify(&signature, message, &key).is_ok()
}

/// One signer's share of a signature: a scalar, 32 bytes on the wire (BIP327 `psig`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartialSignature(musig::PartialSignature);

impl PartialSignature {
    /// Bytes on the wire.
    pub const SIZE: usize = musig::PART_SIG_SERIALIZED_SIZE;

    /// Reads a partial signature.
    ///
    /// # Errors
    ///
    /// The bytes are not below the group order.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, MalformedPartialSignature> {
        musig::PartialSignature::from_byte_array(bytes)
            .map(Self)
            .map_err(|_| MalformedPartialSignature)
    }

    /// The partial signature as it travels.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        self.0.serialize()
    }
}

impl fmt::Debug for PartialSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartialSignature({})", self.0)
    }
}

/// 32 bytes that are no partial signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the partial signature is not below the group order")]
pub struct MalformedPartialSignature;

/// Why no partial signature was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartialSignError {
    /// A nonce signs only with the key it was made for.
    #[error("the nonce was made for another key")]
    NonceOfAnotherKey,
    /// The key has no share in the aggregate.
    #[error("the key is not among the signers")]
    NotASigner,
}

/// Why there is no final signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// Nonces or partial signatures are not one per signer.
    #[error("{given} contributions for {signers} signers")]
    WrongCount {
        /// How many sign.
        signers: usize,
        /// How many nonces or partial signatures were given.
        given: usize,
    },
    /// These signers' partial signatures are invalid: restart without them.
    #[error("invalid partial signatures of signers {culprits:?}")]
    Blame {
        /// Slots of the culprits, ascending, never empty.
        culprits: Vec<usize>,
    },
    /// Every partial signature fits its signer's nonce, and the sum still fails: the session's
    /// aggregate nonce is not the sum of the nonces given. No signer is at fault.
    #[error("the aggregate nonce is not the sum of the signers' nonces")]
    NonceMismatch,
}
