//! How much wrong a peer may send before it is hung up on.
//!
//! What always holds: what a peer makes us write or say because of its own mistakes is bounded per
//! minute, whatever it sends.

use std::collections::HashMap;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use tokio::time::Instant;

/// An honest peer of another version, or one that lost its memory, needs a few.
const PER_WINDOW: u32 = 64;
const WINDOW: Duration = Duration::from_secs(60);

/// Refused messages by peer.
#[derive(Default)]
pub(super) struct Patience(HashMap<PublicKey, (Instant, u32)>);

impl Patience {
    /// Counts one refused message; `true` once there were too many.
    pub(super) fn is_exhausted_by(&mut self, peer: PublicKey, now: Instant) -> bool {
        self.0.retain(|_, (since, _)| now < *since + WINDOW);
        let (_, count) = self.0.entry(peer).or_insert((now, 0));
        *count = count.saturating_add(1);
        *count > PER_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    fn peer(byte: u8) -> PublicKey {
        let secret = SecretKey::from_slice(&[byte; 32]).unwrap();
        PublicKey::from_secret_key(&Secp256k1::new(), &secret)
    }

    #[test]
    fn each_peer_has_its_own_and_a_minute_restores_it() {
        let mut patience = Patience::default();
        let start = Instant::now();
        for _ in 0..PER_WINDOW {
            assert!(!patience.is_exhausted_by(peer(1), start));
        }
        assert!(patience.is_exhausted_by(peer(1), start + WINDOW / 2));
        assert!(!patience.is_exhausted_by(peer(2), start + WINDOW / 2));
        assert!(!patience.is_exhausted_by(peer(1), start + WINDOW));
    }
}
