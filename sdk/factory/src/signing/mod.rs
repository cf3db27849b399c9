//! MuSig2 (BIP327) over taproot-tweaked signer sets: how the parties of a factory sign.
//!
//! What always holds here:
//! - A secret nonce signs at most once. It is neither `Clone` nor serialisable, signing takes it by
//!   value, and it exists only in memory: a process that restarts has none of the old ones.
//! - A signature is aggregated first and blamed second: the final signature is checked against the
//!   output key, and the partial signatures one by one only when that fails.
//! - No input makes this code panic. Bytes from a peer become [`PublicNonce`], [`AggregateNonce`]
//!   and [`PartialSignature`] through constructors that refuse bad encodings.
//! - Nothing reads a clock or a random generator to decide a result: the same inputs give the same
//!   outputs. (The curve library blinds its arithmetic against side channels with randomness of its
//!   own; that never shows in a result.)
//!
//! # The way of one signature
//!
//! ```
//! use bitcoin::{TapNodeHash, hashes::Hash};
//! use superscalar_factory::signing::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Every party has one key per factory and a pool of nonces for it. The bytes below must be
//! // fresh and random in real life.
//! let lsp = FactoryKey::derive(&[1; 32], &[2; 32]);
//! let member = FactoryKey::derive(&[3; 32], &[4; 32]);
//! let mut lsp_pool = NoncePool::new(&lsp);
//! lsp_pool.refill(&lsp, &[[5; 32], [6; 32]])?;
//! let mut member_pool = NoncePool::new(&member);
//! member_pool.refill(&member, &[[7; 32], [8; 32]])?;
//!
//! // One aggregation per signer set, one cheap tweak per taproot Merkle root.
//! let signers = SignerSet::new(&[lsp.public(), member.public()])?;
//! let key = signers.tweaked(TapNodeHash::from_byte_array([9; 32]));
//!
//! // Nonces travel first, then partial signatures.
//! let (mut lsp_nonces, mut member_nonces) = (lsp_pool.reserve(1)?, member_pool.reserve(1)?);
//! let nonces = [lsp_nonces.public()[0], member_nonces.public()[0]];
//! let session = SigningSession::new(&key, AggregateNonce::sum(&nonces)?, [10; 32]);
//! let partials = [
//!     session.partial_sign(lsp_nonces.take(0)?, &lsp)?,
//!     session.partial_sign(member_nonces.take(0)?, &member)?,
//! ];
//! let signature = session.aggregate(&nonces, &partials)?;
//! assert!(verify(&key.output_key(), &[10; 32], &signature));
//! # Ok(())
//! # }
//! ```
//!
//! # Why there are no adaptor signatures here
//!
//! Public nonces leave the pool before anyone knows what they will sign. Adding an adaptor point to
//! the aggregate nonce *after* the nonce coefficient has been computed lets the party who chooses
//! the point shift the final nonce without changing the coefficient. With enough sessions open at
//! once (256 were enough in an experiment) it picks the points so that the challenges add up to the
//! challenge of a message nobody signed, and has a forgery. Adaptors in this protocol are therefore
//! single-signer only, and this module offers no way to add a point to a session.

mod key;
mod nonce;
mod pool;
mod session;
mod signers;

#[cfg(test)]
mod tests;

pub use key::FactoryKey;
pub use nonce::{AggregateNonce, MalformedNonce, NonceSumError, PublicNonce, SecretNonce};
pub use pool::{NoncePool, RefillError, ReserveError, ReservedNonces, TakeError};
pub use session::{
    AggregateError, MalformedPartialSignature, PartialSignError, PartialSignature, SigningSession,
    verify,
};
pub use signers::{SignerSet, SignerSetError, TweakedKey};
