//! Tests of the signing room.

mod agreement;
mod bip327;
mod keys;
mod nonces;
mod sessions;

use bitcoin::{
    TapNodeHash,
    hashes::{Hash, sha256},
};

use super::*;

/// 32 bytes that differ for every label and index.
fn bytes(label: &str, index: usize) -> [u8; 32] {
    sha256::Hash::hash(format!("{label} {index}").as_bytes()).to_byte_array()
}

fn root(label: &str) -> TapNodeHash {
    TapNodeHash::from_byte_array(bytes(label, 0))
}

/// A factory's parties in slot order, each with a filled pool.
struct Parties {
    keys: Vec<FactoryKey>,
    pools: Vec<NoncePool>,
}

impl Parties {
    fn new(label: &str, count: usize, nonces: usize) -> Self {
        let keys: Vec<_> = (0..count)
            .map(|slot| FactoryKey::derive(&bytes(label, slot), &bytes("salt", slot)))
            .collect();
        let pools = keys
            .iter()
            .enumerate()
            .map(|(slot, key)| {
                let randomness: Vec<_> = (0..nonces)
                    .map(|nonce| bytes(&format!("{label} nonce {nonce}"), slot))
                    .collect();
                let mut pool = NoncePool::new(key);
                pool.refill(key, &randomness).unwrap();
                pool
            })
            .collect();
        Self { keys, pools }
    }

    fn signers(&self) -> SignerSet {
        let keys: Vec<_> = self.keys.iter().map(FactoryKey::public).collect();
        SignerSet::new(&keys).unwrap()
    }

    /// One nonce of every party, secret and public.
    fn nonces(&mut self) -> (Vec<SecretNonce>, Vec<PublicNonce>) {
        let secret: Vec<_> = self
            .pools
            .iter_mut()
            .map(|pool| pool.take().unwrap())
            .collect();
        let public = secret.iter().map(SecretNonce::public).collect();
        (secret, public)
    }

    /// Everyone signs `message` under `key`.
    fn sign(
        &mut self,
        key: &TweakedKey,
        message: [u8; 32],
    ) -> (SigningSession, Vec<PublicNonce>, Vec<PartialSignature>) {
        let (secret, public) = self.nonces();
        let session = SigningSession::new(key, AggregateNonce::sum(&public).unwrap(), message);
        let partials = secret
            .into_iter()
            .zip(&self.keys)
            .map(|(nonce, key)| session.partial_sign(nonce, key).unwrap())
            .collect();
        (session, public, partials)
    }
}
