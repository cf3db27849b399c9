//! Key aggregation: one [`SignerSet`] per set of signers, one [`TweakedKey`] per taproot output.
//!
//! Aggregation costs about 19 µs per signer, a tweak about 20 µs in all: outputs with the same
//! signers share the set. A set never has fewer than two signers or one key twice.

use std::{collections::HashSet, fmt, sync::Arc};

use bitcoin::{
    ScriptBuf, TapNodeHash, TapTweakHash, XOnlyPublicKey,
    hashes::Hash,
    key::TweakedPublicKey,
    secp256k1::{Parity, PublicKey},
};
use secp_musig::{Scalar, musig::KeyAggCache};

/// The parties who sign together, in slot order (the LSP is slot 0), and their aggregate key.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct SignerSet {
    keys: Arc<[SignerKey]>,
    cache: KeyAggCache,
    internal_key: XOnlyPublicKey,
}

/// One signer's key, in the form the curve library works with and as bytes to find it by.
struct SignerKey {
    compressed: [u8; 33],
    point: secp_musig::PublicKey,
}

/// Why a list of keys is no signer set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignerSetError {
    /// An aggregate needs two signers: an output with one is a plain output of its owner.
    #[error("a signer set needs at least 2 keys, not {count}")]
    TooFew {
        /// Keys given.
        count: usize,
    },
    /// A key used twice would belong to two slots.
    #[error("signer {second} has the same key as signer {first}")]
    RepeatedKey {
        /// Index of the key's first use.
        first: usize,
        /// Index of its second use.
        second: usize,
    },
}

impl SignerSet {
    /// Aggregates `keys` as BIP327 does, in the order given.
    ///
    /// # Errors
    ///
    /// Fewer than two keys, or the same key twice.
    pub fn new(keys: &[PublicKey]) -> Result<Self, SignerSetError> {
        if keys.len() < 2 {
            return Err(SignerSetError::TooFew { count: keys.len() });
        }
        let keys: Arc<[SignerKey]> = keys.iter().map(SignerKey::new).collect();
        let mut seen = HashSet::with_capacity(keys.len());
        for (second, key) in keys.iter().enumerate() {
            if !seen.insert(key.compressed) {
                let first = position(&keys, &key.compressed).unwrap_or(second);
                return Err(SignerSetError::RepeatedKey { first, second });
            }
        }
        let points: Vec<_> = keys.iter().map(|key| &key.point).collect();
        let cache = KeyAggCache::new(&points);
        let internal_key = to_bitcoin_xonly(&cache.agg_pk());
        Ok(Self {
            keys,
            cache,
            internal_key,
        })
    }

    /// The aggregate key before any tweak: the internal key of every taproot output of this set.
    pub fn internal_key(&self) -> XOnlyPublicKey {
        self.internal_key
    }

    /// How many sign.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// The slot of `key` in this set.
    pub fn position(&self, key: &PublicKey) -> Option<usize> {
        position(&self.keys, &key.serialize())
    }

    /// The key of the taproot output (BIP341) that this set locks under `merkle_root`.
    pub fn tweaked(&self, merkle_root: TapNodeHash) -> TweakedKey {
        let tweak = TapTweakHash::from_key_and_tweak(self.internal_key, Some(merkle_root));
        let mut cache = self.cache;
        #[expect(
            clippy::expect_used,
            reason = "a hash over the key that is tweaked meets the group order or the key's negation once in 2^128"
        )]
        let output = Scalar::from_be_bytes(tweak.to_byte_array())
            .ok()
            .and_then(|tweak| cache.pubkey_xonly_tweak_add(&tweak).ok())
            .expect("no hash is an invalid tweak");
        let (point, parity) = output.x_only_public_key();
        TweakedKey {
            output_key: to_bitcoin_xonly(&point),
            output_parity: match parity {
                secp_musig::Parity::Even => Parity::Even,
                secp_musig::Parity::Odd => Parity::Odd,
            },
            signers: self.clone(),
            cache,
        }
    }
}

impl fmt::Debug for SignerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignerSet")
            .field("internal_key", &self.internal_key)
            .field("count", &self.keys.len())
            .finish_non_exhaustive()
    }
}

/// The output key of one taproot output, with what its signers need to sign for it.
///
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct TweakedKey {
    output_key: XOnlyPublicKey,
    output_parity: Parity,
    signers: SignerSet,
    cache: KeyAggCache,
}

impl TweakedKey {
    /// The BIP341 output key; signatures are valid under it.
    pub fn output_key(&self) -> XOnlyPublicKey {
        self.output_key
    }

    /// The parity of the output key's point, as a script-path spend's control block states it.
    pub fn output_parity(&self) -> Parity {
        self.output_parity
    }

    /// The P2TR script locked to this key.
    pub fn script_pubkey(&self) -> ScriptBuf {
        ScriptBuf::new_p2tr_tweaked(TweakedPublicKey::dangerous_assume_tweaked(self.output_key))
    }

    /// Who signs.
    pub fn signers(&self) -> &SignerSet {
        &self.signers
    }

    pub(super) fn cache(&self) -> &KeyAggCache {
        &self.cache
    }

    /// The key after any sequence of BIP327 tweaks (true: x-only), as the published vectors use.
    #[cfg(test)]
    pub(super) fn with_tweaks(signers: &SignerSet, tweaks: &[([u8; 32], bool)]) -> Option<Self> {
        let mut cache = signers.cache;
        for (tweak, is_xonly) in tweaks {
            let tweak = Scalar::from_be_bytes(*tweak).ok()?;
            if *is_xonly {
                cache.pubkey_xonly_tweak_add(&tweak).ok()?;
            } else {
                cache.pubkey_ec_tweak_add(&tweak).ok()?;
            }
        }
        Some(Self {
            output_key: to_bitcoin_xonly(&cache.agg_pk()),
            output_parity: Parity::Even,
            signers: signers.clone(),
            cache,
        })
    }

    /// The signers' points, in slot order.
    pub(super) fn points(&self) -> impl Iterator<Item = secp_musig::PublicKey> {
        self.signers.keys.iter().map(|key| key.point)
    }
}

impl SignerKey {
    fn new(key: &PublicKey) -> Self {
        // Uncompressed: reading it back costs no square root.
        #[expect(
            clippy::expect_used,
            reason = "both libraries encode the same points in the same way"
        )]
        let point =
            secp_musig::PublicKey::from_byte_array_uncompressed(key.serialize_uncompressed())
                .expect("a public key is a public key in either library");
        Self {
            compressed: key.serialize(),
            point,
        }
    }
}

fn position(keys: &[SignerKey], compressed: &[u8; 33]) -> Option<usize> {
    keys.iter().position(|key| key.compressed == *compressed)
}

#[expect(
    clippy::expect_used,
    reason = "both libraries encode the same points in the same way"
)]
fn to_bitcoin_xonly(key: &secp_musig::XOnlyPublicKey) -> XOnlyPublicKey {
    XOnlyPublicKey::from_slice(&key.to_byte_array())
        .expect("an x-only key is an x-only key in either library")
}
