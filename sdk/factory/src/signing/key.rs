//! The secret key a party uses in one factory, and in nothing else.
//!
//! The key stays in one heap cell from birth to erasure: moving a [`FactoryKey`] moves a pointer
//! and leaves no copy behind. What the erasure cannot reach: copies that the curve library and the
//! hash function keep on the stack or in registers while they compute.

use std::fmt;

use bitcoin::secp256k1::PublicKey;
use bitcoin::secp256k1::schnorr::Signature;
use hkdf::Hkdf;
use secp_musig::Keypair;
use sha2::Sha256;
use zeroize::Zeroizing;

/// HKDF `info` of a factory key; the number is the version of the derivation.
const INFO: &[u8] = b"superscalar/factory-key/v1";

/// The secret key of one party in one factory.
///
/// Never used for anything else: turnover reveals it once the factory is behind its owner. Erased
/// when dropped; cannot be cloned, and prints only its public half.
///
/// ```compile_fail,E0599
/// let key = superscalar_factory::signing::FactoryKey::derive(&[1; 32], &[2; 32]);
/// let copy = key.clone();
/// ```
pub struct FactoryKey {
    keypair: Box<Keypair>,
    public: PublicKey,
}

impl FactoryKey {
    /// Derives the key of the factory that `salt` was drawn for from the wallet's `seed`.
    ///
    /// HKDF-SHA256 (RFC 5869) with input key material `seed`, salt `salt` and info
    /// `"superscalar/factory-key/v1" ‖ counter`, where the one-byte counter starts at 0 and is
    /// raised while the output is no valid secret key (once in 2^128).
    ///
    /// `salt` must be fresh randomness of this wallet, never chosen by a peer, and durable before
    /// the public key is sent: seed and salt restore the key.
    pub fn derive(seed: &[u8; 32], salt: &[u8; 32]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(salt), seed);
        let mut secret = Zeroizing::new([0; 32]);
        let mut counter = 0u8;
        loop {
            #[expect(
                clippy::expect_used,
                reason = "HKDF-SHA256 gives up to 8,160 bytes; 32 are asked for"
            )]
            hkdf.expand_multi_info(&[INFO, &[counter]], &mut *secret)
                .expect("32 bytes are a valid length");
            if let Some(key) = Self::from_secret(&secret) {
                return key;
            }
            counter = counter.wrapping_add(1);
        }
    }

    /// The public key, as the terms list it.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// `None` if the bytes are zero or not below the group order.
    pub(super) fn from_secret(secret: &[u8; 32]) -> Option<Self> {
        let keypair = Box::new(Keypair::from_secret_bytes(*secret).ok()?);
        let public = PublicKey::from_slice(&keypair.public_key().serialize()).ok()?;
        Some(Self { keypair, public })
    }

    /// Signs a 32-byte message alone (BIP340): a spend of what only this party's key locks.
    pub(crate) fn sign_alone(&self, message: [u8; 32]) -> Signature {
        let signature = self.keypair.sign_schnorr_no_aux_rand(&message);
        #[expect(
            clippy::expect_used,
            reason = "both libraries encode signatures in the same 64 bytes"
        )]
        Signature::from_slice(signature.as_byte_array()).expect("64 bytes")
    }

    pub(super) fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

impl Drop for FactoryKey {
    fn drop(&mut self) {
        // A volatile write of a dummy key pair over the heap cell.
        self.keypair.non_secure_erase();
    }
}

impl fmt::Debug for FactoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FactoryKey")
            .field("public", &format_args!("{}", self.public))
            .finish_non_exhaustive()
    }
}
