//! All chance of a simulation. One seed gives one sequence, and nothing else in this crate draws a
//! random number, reads a clock or iterates over a map without an order.

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, SignOnly};
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::sync::LazyLock;

pub(crate) static SECP: LazyLock<Secp256k1<SignOnly>> = LazyLock::new(Secp256k1::signing_only);

/// The random numbers of one run.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number from 0 to `count - 1`; 0 if there is none.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        match count {
            0 => 0,
            _ => self.0.gen_range(0..count),
        }
    }

    /// A number of the range, both ends included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0.gen_range(least..=most.max(least))
    }

    /// Yes, so many times out of a thousand.
    pub(crate) fn per_mille(&mut self, times: u32) -> bool {
        self.0.gen_range(0..1_000) < times
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// The index of a weight, each as often as it weighs; `None` if all are zero.
    pub(crate) fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let sum: u32 = weights.iter().sum();
        if sum == 0 {
            return None;
        }
        let mut left = self.0.gen_range(0..sum);
        weights.iter().position(|weight| match left < *weight {
            true => true,
            false => {
                left -= weight;
                false
            }
        })
    }
}

/// Secrets that both ends of a model share, and that no random number is spent on: what `label` and
/// `number` name in the run of `seed`.
pub(crate) fn secret(seed: u64, label: &str, number: u64) -> [u8; 32] {
    sha256::Hash::hash(format!("{seed}/{label}/{number}").as_bytes()).to_byte_array()
}

/// The secret key of that name.
pub(crate) fn secret_key(seed: u64, label: &str, number: u64) -> SecretKey {
    let mut bytes = secret(seed, label, number);
    loop {
        // One in 2^128 is no key; its hash is.
        match SecretKey::from_slice(&bytes) {
            Ok(key) => return key,
            Err(_) => bytes = sha256::Hash::hash(&bytes).to_byte_array(),
        }
    }
}

/// The public key of that name.
pub(crate) fn public_key(seed: u64, label: &str, number: u64) -> PublicKey {
    secret_key(seed, label, number).public_key(&SECP)
}
