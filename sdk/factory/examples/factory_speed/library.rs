//! The signatures of a factory by the curve library's own calls and nothing else: no transactions,
//! no hashes of ours, no checks. What our code costs above that is its own.

use std::error::Error;

use secp_musig::musig::{self, AggregatedNonce, KeyAggCache, Session, SessionSecretRand};
use secp_musig::{Keypair, PublicKey, Scalar, SecretKey};

use crate::signing::{self, Case};
use crate::{Clock, bytes};

/// CPU seconds for all of them, each verified once.
pub(crate) fn signatures_s(case: &Case, round: u32) -> Result<f64, Box<dyn Error>> {
    let nodes = signing::signers(case)?;
    let pairs = (0..=u64::from(case.members)).map(|signer| {
        let secret = SecretKey::from_secret_bytes(bytes("library", signer))?;
        Ok(Keypair::from_secret_key(&secret))
    });
    let pairs: Vec<Keypair> = pairs.collect::<Result<_, Box<dyn Error>>>()?;
    let keys: Vec<PublicKey> = pairs.iter().map(Keypair::public_key).collect();
    let tweak = Scalar::from_be_bytes(bytes("tweak", 0))?;
    let message = bytes("message", 0);
    let label = format!("library nonce {round}");
    let mut drawn = 0;

    let clock = Clock::start();
    for node in nodes.values() {
        let signers = &node.numbers;
        let points: Vec<&PublicKey> = signers.iter().map(|signer| &keys[*signer]).collect();
        let untweaked = KeyAggCache::new(&points);
        for _ in 0..node.transactions {
            let mut cache = untweaked;
            let output = cache.pubkey_xonly_tweak_add(&tweak)?;
            let mut nonces = Vec::with_capacity(signers.len());
            for signer in signers {
                drawn += 1;
                nonces.push(musig::new_nonce_pair(
                    SessionSecretRand::assume_uniformly_random(bytes(&label, drawn)),
                    None,
                    Some(pairs[*signer].secret_key()),
                    keys[*signer],
                    None,
                    None,
                ));
            }
            let publics: Vec<_> = nonces.iter().map(|(_, public)| public).collect();
            let session = Session::new(&cache, AggregatedNonce::new(&publics), &message);
            let partials: Vec<_> = nonces
                .into_iter()
                .zip(signers)
                .map(|((secret, _), signer)| session.partial_sign(secret, &pairs[*signer], &cache))
                .collect();
            let partials: Vec<_> = partials.iter().collect();
            session
                .partial_sig_agg(&partials)
                .verify(&output.x_only_public_key().0, &message)?;
        }
    }
    Ok(clock.time().cpu_s)
}
