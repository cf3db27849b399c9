//! What a member derives from its seed and fresh randomness for one attempt.

use super::Refused;
use crate::message::RefusalCode;
use crate::scripts::tagged_hash;
use crate::signing::{FactoryKey, NoncePool, ReservedNonces};

/// The key that takes stale stock of one factory.
pub fn revocation_key(seed: &[u8; 32], salt: &[u8; 32]) -> FactoryKey {
    FactoryKey::derive(seed, &tagged_hash("superscalar/stock revocation", &[salt]))
}

/// Makes `count` nonces from 32 fresh random bytes.
pub(crate) fn reserve(
    key: &FactoryKey,
    count: usize,
    randomness: &[u8; 32],
) -> Result<ReservedNonces, Refused> {
    let each = |index: usize| {
        let index = (index as u32).to_be_bytes();
        tagged_hash("superscalar/nonce randomness", &[randomness, &index])
    };
    let randomness: Vec<_> = (0..count).map(each).collect();
    let mut pool = NoncePool::new(key);
    let made = pool.refill(key, &randomness).ok();
    made.and_then(|()| pool.reserve(count).ok())
        .ok_or(Refused::new(RefusalCode::Nonce, "nonces"))
}
