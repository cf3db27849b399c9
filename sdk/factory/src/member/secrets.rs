//! What a member derives from its seed for one attempt.

use crate::scripts::tagged_hash;
use crate::signing::FactoryKey;

/// The key that takes stale stock of one factory.
pub fn revocation_key(seed: &[u8; 32], salt: &[u8; 32]) -> FactoryKey {
    FactoryKey::derive(seed, &tagged_hash("superscalar/stock revocation", &[salt]))
}
