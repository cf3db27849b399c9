//! Two independent implementations of BIP327 agree: this one (libsecp256k1's `musig` module) and
//! the `musig2` crate, on random tweaked signer sets of 2 to 130.

use std::collections::BTreeSet;

use bitcoin::{TapNodeHash, hashes::Hash};
use musig2::secp::{MaybeScalar, Point, Scalar};
use musig2::{AggNonce, KeyAggContext, PubNonce, SecNonce};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

use super::*;

const LARGEST: usize = 130;

/// Mostly the sizes of leaves and small subtrees, sometimes a whole group.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        40 => 2..=9usize,
        8 => 10..=32usize,
        2 => 33..=129usize,
        1 => Just(LARGEST),
    ]
}

/// Which implementation each slot runs: one sort of signer only, or a mix.
fn runs_ours(seed: [u8; 32], slot: usize) -> bool {
    match seed[0] % 4 {
        0 => true,
        1 => false,
        _ => seed[1 + slot % 31] >> (slot % 8) & 1 == 1,
    }
}

/// One ceremony over a set of `size` signers, in which every slot runs either implementation and
/// only bytes cross between them.
fn ceremony(size: usize, seed: [u8; 32], merkle_root: [u8; 32], message: [u8; 32]) {
    let keys: Vec<_> = (0..size)
        .map(|slot| FactoryKey::derive(&seed, &bytes("agreement", slot)))
        .collect();
    let secrets: Vec<_> = keys
        .iter()
        .map(|key| Scalar::from_slice(&key.keypair().to_secret_bytes()).unwrap())
        .collect();
    let points = keys
        .iter()
        .map(|key| Point::from_slice(&key.public().serialize()).unwrap());

    // The same internal and output key.
    let publics: Vec<_> = keys.iter().map(FactoryKey::public).collect();
    let set = SignerSet::new(&publics).unwrap();
    let ours = set.tweaked(TapNodeHash::from_byte_array(merkle_root));
    let theirs = KeyAggContext::new(points)
        .unwrap()
        .with_taproot_tweak(&merkle_root)
        .unwrap();
    let output: Point = theirs.aggregated_pubkey();
    assert_eq!(ours.output_key().serialize(), output.serialize_xonly());
    let internal: Point = theirs.aggregated_pubkey_untweaked();
    assert_eq!(set.internal_key().serialize(), internal.serialize_xonly());

    // The same nonces from the same randomness, in either's hands.
    let mut secret_nonces = Vec::new();
    let mut nonces = Vec::new();
    for (slot, key) in keys.iter().enumerate() {
        let randomness = bytes(&hex::encode(seed), slot);
        let mut pool = NoncePool::new(key);
        pool.refill(key, &[randomness]).unwrap();
        let own = pool.take().unwrap();
        let other: SecNonce = SecNonce::build_with_seckey(randomness, secrets[slot])
            .with_extra_input(&[0u8; 32])
            .build();
        assert_eq!(own.public().to_bytes(), other.public_nonce().serialize());
        nonces.push(own.public().to_bytes());
        secret_nonces.push((own, other));
    }

    // The same aggregate nonce.
    let our_sum = AggregateNonce::sum_bytes(&nonces).unwrap();
    let their_nonces: Vec<_> = nonces
        .iter()
        .map(|nonce| PubNonce::from_bytes(nonce).unwrap())
        .collect();
    let their_sum = AggNonce::sum(&their_nonces);
    assert_eq!(our_sum.to_bytes(), their_sum.serialize());

    // Partial signatures, checked one by one by the other side.
    let session = SigningSession::new(&ours, our_sum, message);
    let mut partials = Vec::new();
    for (slot, (own, other)) in secret_nonces.into_iter().enumerate() {
        if runs_ours(seed, slot) {
            let partial = session.partial_sign(own, &keys[slot]).unwrap().to_bytes();
            musig2::verify_partial(
                &theirs,
                MaybeScalar::from_slice(&partial).unwrap(),
                &their_sum,
                Point::from_slice(&publics[slot].serialize()).unwrap(),
                &their_nonces[slot],
                message,
            )
            .unwrap();
            partials.push(partial);
        } else {
            let partial: MaybeScalar =
                musig2::sign_partial(&theirs, secrets[slot], other, &their_sum, message).unwrap();
            let nonce = PublicNonce::from_bytes(&nonces[slot]).unwrap();
            let parsed = PartialSignature::from_bytes(&partial.serialize()).unwrap();
            assert!(session.verify_partial(slot, &nonce, &parsed));
            partials.push(partial.serialize());
        }
    }

    // The same final signature, valid on both sides.
    let public: Vec<_> = nonces
        .iter()
        .map(|nonce| PublicNonce::from_bytes(nonce).unwrap())
        .collect();
    let signature = session.aggregate_bytes(&public, &partials).unwrap();
    let their_partials = partials
        .iter()
        .map(|partial| MaybeScalar::from_slice(partial).unwrap());
    let their_signature: [u8; 64] = musig2::aggregate_partial_signatures::<
        MaybeScalar,
        musig2::CompactSignature,
    >(&theirs, &their_sum, their_partials, message)
    .unwrap()
    .serialize();
    assert_eq!(signature.serialize(), their_signature);
    assert!(verify(&ours.output_key(), &message, &signature));
    let compact = musig2::CompactSignature::from_bytes(&signature.serialize()).unwrap();
    musig2::verify_single(output, compact, message).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_sign_the_same(
        size in size(),
        seed in any::<[u8; 32]>(),
        merkle_root in any::<[u8; 32]>(),
        message in any::<[u8; 32]>(),
    ) {
        ceremony(size, seed, merkle_root, message);
    }
}

/// The largest set, whatever the generator above happens to draw: ours alone, theirs alone, mixed.
#[test]
fn both_sign_the_same_at_130() {
    for mode in 0..3 {
        let mut seed = bytes("130", mode);
        seed[0] = mode as u8;
        ceremony(LARGEST, seed, bytes("root", mode), bytes("message", mode));
    }
}

/// The generator does reach small, middle and largest sets, and every mix of implementations.
#[test]
fn the_generator_reaches_every_kind_of_set() {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let drawn: BTreeSet<usize> = (0..256)
        .map(|_| size().new_tree(&mut runner).unwrap().current())
        .collect();
    assert_eq!((drawn.first(), drawn.last()), (Some(&2), Some(&LARGEST)));
    assert!((2..=9).all(|size| drawn.contains(&size)), "{drawn:?}");
    assert!(
        drawn.range(10..=32).count() > 0 && drawn.range(33..=129).count() > 0,
        "{drawn:?}"
    );

    let mix = |first: u8| {
        let mut seed = bytes("mix", 0);
        seed[0] = first;
        let ours = (0..LARGEST).filter(|slot| runs_ours(seed, *slot)).count();
        (ours > 0, ours < LARGEST)
    };
    assert_eq!(
        [mix(0), mix(1), mix(2)],
        [(true, false), (false, true), (true, true)]
    );
}
