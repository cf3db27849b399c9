//! What one BIP340 verification takes at this moment: libsecp256k1's own speed, which everything here
//! is made of.

use std::error::Error;

use bitcoin::secp256k1::{Keypair, Message, Secp256k1, SecretKey, XOnlyPublicKey, schnorr};
use superscalar_factory::signing::verify;

use crate::{Clock, bytes};

/// Enough to take longer than the clock's grain, few enough to see the same machine as what is
/// measured beside it.
const VERIFICATIONS: u32 = 500;

/// A signature to verify.
pub(crate) struct Yardstick {
    key: XOnlyPublicKey,
    message: [u8; 32],
    signature: schnorr::Signature,
}

impl Yardstick {
    pub(crate) fn new() -> Result<Yardstick, Box<dyn Error>> {
        let secp = Secp256k1::signing_only();
        let secret = SecretKey::from_slice(&bytes("yardstick", 0))?;
        let pair = Keypair::from_secret_key(&secp, &secret);
        let message = bytes("yardstick", 1);
        let signature = secp.sign_schnorr_no_aux_rand(&Message::from_digest(message), &pair);
        Ok(Yardstick {
            key: pair.x_only_public_key().0,
            message,
            signature,
        })
    }

    /// CPU seconds of one verification, now.
    pub(crate) fn verification_s(&self) -> Result<f64, Box<dyn Error>> {
        let clock = Clock::start();
        for _ in 0..VERIFICATIONS {
            if !verify(&self.key, &self.message, &self.signature) {
                return Err("the signature is valid".into());
            }
        }
        Ok(clock.time().cpu_s / f64::from(VERIFICATIONS))
    }
}
