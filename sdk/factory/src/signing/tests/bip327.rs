//! The vectors published with BIP327 (see `tests/vectors/bip327/README.md`).

use bitcoin::secp256k1::PublicKey;
use secp_musig::{Scalar, SecretKey, musig};
use serde_json::Value;

use super::*;

fn vectors(file: &str) -> Value {
    let path = format!("{}/tests/vectors/bip327/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn cases<'a>(vectors: &'a Value, name: &str) -> &'a [Value] {
    let cases = vectors[name].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn decode(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    decode(value).try_into().unwrap()
}

/// The entries of `list` that `case` points at under `indices`.
fn chosen<'a>(list: &'a Value, case: &Value, indices: &str) -> Vec<&'a Value> {
    let indices = case[indices].as_array().unwrap();
    indices
        .iter()
        .map(|index| &list[index.as_u64().unwrap() as usize])
        .collect()
}

fn index(case: &Value, name: &str) -> usize {
    case[name].as_u64().unwrap() as usize
}

/// The public keys of a case, or the index of the first signer whose key is invalid.
fn public_keys(vectors: &Value, case: &Value) -> Result<Vec<PublicKey>, usize> {
    chosen(&vectors["pubkeys"], case, "key_indices")
        .into_iter()
        .enumerate()
        .map(|(signer, key)| PublicKey::from_slice(&decode(key)).map_err(|_| signer))
        .collect()
}

fn tweaks(vectors: &Value, case: &Value) -> Vec<([u8; 32], bool)> {
    let modes = case["is_xonly"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mode| mode.as_bool().unwrap());
    chosen(&vectors["tweaks"], case, "tweak_indices")
        .into_iter()
        .map(array)
        .zip(modes)
        .collect()
}

fn nonces(vectors: &Value, case: &Value) -> Vec<[u8; 66]> {
    chosen(&vectors["pnonces"], case, "nonce_indices")
        .into_iter()
        .map(array)
        .collect()
}

/// A secret nonce with the scalars of a published one (`k1 ‖ k2 ‖ pk`).
///
/// The curve library keeps `magic(4) ‖ k1(32) ‖ k2(32) ‖ pk(64, own format)`: the scalars are
/// written over those of a nonce generated for the same key.
fn secret_nonce(published: &Value, public: [u8; 66], key: &FactoryKey) -> SecretNonce {
    let published: [u8; 97] = array(published);
    assert_eq!(published[64..], key.public().serialize());
    let (template, _) = musig::new_nonce_pair(
        musig::SessionSecretRand::assume_uniformly_random([1; 32]),
        None,
        None,
        key.keypair().public_key(),
        None,
        None,
    );
    let mut bytes = template.dangerous_into_bytes();
    bytes[4..68].copy_from_slice(&published[..64]);
    SecretNonce::new(
        musig::SecretNonce::dangerous_from_bytes(bytes),
        PublicNonce::from_bytes(&public).unwrap(),
        key.public(),
    )
}

fn factory_key(vectors: &Value) -> FactoryKey {
    FactoryKey::from_secret(&array(&vectors["sk"])).unwrap()
}

#[test]
fn key_aggregation() {
    let vectors = vectors("key_agg_vectors.json");
    for case in cases(&vectors, "valid_test_cases") {
        let keys = public_keys(&vectors, case).unwrap();
        let expected: [u8; 32] = array(&case["expected"]);
        match SignerSet::new(&keys) {
            Ok(set) => assert_eq!(set.internal_key().serialize(), expected),
            // A factory has no use for a key twice; the aggregation itself is still right.
            Err(error) => {
                assert!(matches!(
                    error,
                    SignerSetError::RepeatedKey {
                        first: 0,
                        second: 1
                    }
                ));
                let keys: Vec<_> = keys
                    .iter()
                    .map(|key| secp_musig::PublicKey::from_slice(&key.serialize()).unwrap())
                    .collect();
                let keys: Vec<_> = keys.iter().collect();
                assert_eq!(
                    musig::KeyAggCache::new(&keys).agg_pk().to_byte_array(),
                    expected
                );
            }
        }
    }
    for case in cases(&vectors, "error_test_cases") {
        match public_keys(&vectors, case) {
            Err(signer) => assert_eq!(signer, index(&case["error"], "signer")),
            Ok(keys) if keys.len() == 1 => {
                // The tweak is the key's negation; SignerSet refuses one key before it matters.
                assert_eq!(
                    SignerSet::new(&keys).unwrap_err(),
                    SignerSetError::TooFew { count: 1 }
                );
                let key = secp_musig::PublicKey::from_slice(&keys[0].serialize()).unwrap();
                let (tweak, is_xonly) = tweaks(&vectors, case)[0];
                assert!(!is_xonly);
                let tweak = Scalar::from_be_bytes(tweak).unwrap();
                assert!(
                    musig::KeyAggCache::new(&[&key])
                        .pubkey_ec_tweak_add(&tweak)
                        .is_err()
                );
            }
            Ok(keys) => {
                let set = SignerSet::new(&keys).unwrap();
                assert!(TweakedKey::with_tweaks(&set, &tweaks(&vectors, case)).is_none());
            }
        }
    }
}

#[test]
fn nonce_aggregation() {
    let vectors = vectors("nonce_agg_vectors.json");
    let nonces = |case| -> Vec<[u8; 66]> {
        chosen(&vectors["pnonces"], case, "pnonce_indices")
            .into_iter()
            .map(array)
            .collect()
    };
    for case in cases(&vectors, "valid_test_cases") {
        let sum = AggregateNonce::sum_bytes(&nonces(case)).unwrap();
        assert_eq!(sum.to_bytes(), array(&case["expected"]));
        assert_eq!(AggregateNonce::from_bytes(&sum.to_bytes()), Ok(sum));
    }
    for case in cases(&vectors, "error_test_cases") {
        let signer = index(&case["error"], "signer");
        assert_eq!(
            AggregateNonce::sum_bytes(&nonces(case)),
            Err(NonceSumError::Malformed { signer })
        );
    }
}

#[test]
fn signing() {
    let vectors = vectors("sign_verify_vectors.json");
    let key = factory_key(&vectors);
    let mut signed = 0;
    for case in cases(&vectors, "valid_test_cases") {
        let Ok(message) = decode(&vectors["msgs"][index(case, "msg_index")]).try_into() else {
            continue; // A sighash has 32 bytes; the API takes nothing else.
        };
        let set = SignerSet::new(&public_keys(&vectors, case).unwrap()).unwrap();
        let nonces = nonces(&vectors, case);
        let signer = index(case, "signer_index");
        let sum = array(&vectors["aggnonces"][index(case, "aggnonce_index")]);
        let sum = AggregateNonce::from_bytes(&sum).unwrap();
        assert_eq!(AggregateNonce::sum_bytes(&nonces), Ok(sum));
        let untweaked = TweakedKey::with_tweaks(&set, &[]).unwrap();
        let session = SigningSession::new(&untweaked, sum, message);

        let nonce = secret_nonce(&vectors["secnonces"][0], nonces[signer], &key);
        let public = nonce.public();
        let partial = session.partial_sign(nonce, &key).unwrap();
        assert_eq!(partial.to_bytes(), array(&case["expected"]));
        assert!(session.verify_partial(signer, &public, &partial));
        signed += 1;
    }
    assert_eq!(signed, 4);
}

/// The last case, a secret nonce of zeros, cannot be built through this API: signing erases by
/// consuming.
#[test]
fn signing_errors() {
    let vectors = vectors("sign_verify_vectors.json");
    let key = factory_key(&vectors);
    let (mut strangers, mut bad_keys, mut bad_sums) = (0, 0, 0);
    for case in cases(&vectors, "sign_error_test_cases") {
        if index(case, "secnonce_index") == 1 {
            continue;
        }
        let sum = array(&vectors["aggnonces"][index(case, "aggnonce_index")]);
        let keys = match public_keys(&vectors, case) {
            Ok(keys) => keys,
            Err(signer) => {
                assert_eq!(signer, index(&case["error"], "signer"));
                bad_keys += 1;
                continue;
            }
        };
        let Ok(sum) = AggregateNonce::from_bytes(&sum) else {
            assert_eq!(case["error"]["contrib"], "aggnonce");
            bad_sums += 1;
            continue;
        };
        let set = SignerSet::new(&keys).unwrap();
        let session =
            SigningSession::new(&TweakedKey::with_tweaks(&set, &[]).unwrap(), sum, [0; 32]);
        let public = array(&vectors["pnonces"][0]);
        let nonce = secret_nonce(&vectors["secnonces"][0], public, &key);
        assert_eq!(
            session.partial_sign(nonce, &key),
            Err(PartialSignError::NotASigner)
        );
        strangers += 1;
    }
    assert_eq!((strangers, bad_keys, bad_sums), (1, 1, 3));
}

#[test]
fn partial_verification() {
    let vectors = vectors("sign_verify_vectors.json");
    for case in cases(&vectors, "verify_fail_test_cases") {
        let set = SignerSet::new(&public_keys(&vectors, case).unwrap()).unwrap();
        let key = TweakedKey::with_tweaks(&set, &[]).unwrap();
        let nonces = nonces(&vectors, case);
        let message = array(&vectors["msgs"][index(case, "msg_index")]);
        let session =
            SigningSession::new(&key, AggregateNonce::sum_bytes(&nonces).unwrap(), message);
        let signer = index(case, "signer_index");
        match PartialSignature::from_bytes(&array(&case["sig"])) {
            Ok(partial) => {
                let nonce = PublicNonce::from_bytes(&nonces[signer]).unwrap();
                assert!(!session.verify_partial(signer, &nonce, &partial));
            }
            Err(error) => {
                assert_eq!(error, MalformedPartialSignature);
                assert_eq!(case["comment"], "Signature exceeds group size");
            }
        }
    }
    for case in cases(&vectors, "verify_error_test_cases") {
        let signer = index(&case["error"], "signer");
        match public_keys(&vectors, case) {
            Err(bad) => assert_eq!(bad, signer),
            Ok(_) => assert_eq!(
                AggregateNonce::sum_bytes(&nonces(&vectors, case)),
                Err(NonceSumError::Malformed { signer })
            ),
        }
    }
}

#[test]
fn tweaking() {
    let vectors = vectors("tweak_vectors.json");
    let key = factory_key(&vectors);
    let sum = AggregateNonce::from_bytes(&array(&vectors["aggnonce"])).unwrap();
    for case in cases(&vectors, "valid_test_cases") {
        let set = SignerSet::new(&public_keys(&vectors, case).unwrap()).unwrap();
        let tweaked = TweakedKey::with_tweaks(&set, &tweaks(&vectors, case)).unwrap();
        let session = SigningSession::new(&tweaked, sum, array(&vectors["msg"]));
        let signer = index(case, "signer_index");
        let public = nonces(&vectors, case)[signer];
        let nonce = secret_nonce(&vectors["secnonce"], public, &key);
        let public = nonce.public();
        let partial = session.partial_sign(nonce, &key).unwrap();
        assert_eq!(partial.to_bytes(), array(&case["expected"]));
        assert!(session.verify_partial(signer, &public, &partial));
    }
    for case in cases(&vectors, "error_test_cases") {
        let set = SignerSet::new(&public_keys(&vectors, case).unwrap()).unwrap();
        assert!(TweakedKey::with_tweaks(&set, &tweaks(&vectors, case)).is_none());
    }
}

#[test]
fn signature_aggregation() {
    let vectors = vectors("sig_agg_vectors.json");
    let message: [u8; 32] = array(&vectors["msg"]);
    let open = |case| {
        let set = SignerSet::new(&public_keys(&vectors, case).unwrap()).unwrap();
        let key = TweakedKey::with_tweaks(&set, &tweaks(&vectors, case)).unwrap();
        let sum = AggregateNonce::from_bytes(&array(&case["aggnonce"])).unwrap();
        assert_eq!(AggregateNonce::sum_bytes(&nonces(&vectors, case)), Ok(sum));
        let nonces: Vec<_> = nonces(&vectors, case)
            .iter()
            .map(|nonce| PublicNonce::from_bytes(nonce).unwrap())
            .collect();
        let partials: Vec<[u8; 32]> = chosen(&vectors["psigs"], case, "psig_indices")
            .into_iter()
            .map(array)
            .collect();
        (SigningSession::new(&key, sum, message), nonces, partials)
    };
    for case in cases(&vectors, "valid_test_cases") {
        let (session, nonces, partials) = open(case);
        let signature = session.aggregate_bytes(&nonces, &partials).unwrap();
        assert_eq!(signature.serialize(), array(&case["expected"]));
        assert!(verify(&session.key().output_key(), &message, &signature));
    }
    for case in cases(&vectors, "error_test_cases") {
        let (session, nonces, partials) = open(case);
        let signer = index(&case["error"], "signer");
        assert_eq!(
            PartialSignature::from_bytes(&partials[signer]),
            Err(MalformedPartialSignature)
        );
        let Err(AggregateError::Blame { culprits }) = session.aggregate_bytes(&nonces, &partials)
        else {
            panic!("aggregated a malformed partial signature");
        };
        assert!(culprits.contains(&signer));
    }
}

/// The layout `secret_nonce` relies on: overwriting the scalars changes what is signed, and the
/// bound key is the one given.
#[test]
fn secret_nonce_layout() {
    let vectors = vectors("sign_verify_vectors.json");
    let key = factory_key(&vectors);
    let secret = SecretKey::from_secret_bytes(array(&vectors["sk"])).unwrap();
    assert_eq!(
        secp_musig::PublicKey::from_secret_key(&secret),
        key.keypair().public_key()
    );
    let published: [u8; 97] = array(&vectors["secnonces"][0]);
    let public = [&published[..32], &published[32..64]].map(|scalar| {
        let scalar = SecretKey::from_secret_bytes(scalar.try_into().unwrap()).unwrap();
        secp_musig::PublicKey::from_secret_key(&scalar).serialize()
    });
    assert_eq!(public.concat(), decode(&vectors["pnonces"][0]));
}
