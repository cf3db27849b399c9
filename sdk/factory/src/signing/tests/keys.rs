//! Factory keys, signer sets and taproot tweaks.

use bitcoin::{
    key::{TapTweak, UntweakedPublicKey},
    secp256k1::{PublicKey, Secp256k1, SecretKey},
};
use hkdf::Hkdf;
use sha2::Sha256;

use super::*;

/// Computed with Python's `hmac` module: HKDF-Extract(salt, seed), then HKDF-Expand with
/// `"superscalar/factory-key/v1" ‖ 00`. Changing it loses every factory key ever derived.
#[test]
fn derivation_is_pinned() {
    let key = FactoryKey::derive(&[0x11; 32], &[0x22; 32]);
    assert_eq!(
        hex::encode(key.keypair().to_secret_bytes()),
        "24a66fb7602f6c7b4a4b7942463d3073069f52e364276dd50690b4bc13384636"
    );
    assert_eq!(
        key.public().to_string(),
        "02cfc9e0e688596634ce9dc7a51938e1dc2c12ffc252b1f2a60109d36bd118639b"
    );
}

#[test]
fn seed_and_salt_both_matter() {
    let keys: std::collections::HashSet<_> =
        [([1; 32], [1; 32]), ([1; 32], [2; 32]), ([2; 32], [1; 32])]
            .iter()
            .map(|(seed, salt)| FactoryKey::derive(seed, salt).public())
            .collect();
    assert_eq!(keys.len(), 3);
}

#[test]
fn invalid_scalars_are_no_key() {
    let order = bitcoin::secp256k1::constants::CURVE_ORDER;
    assert!(FactoryKey::from_secret(&[0; 32]).is_none());
    assert!(FactoryKey::from_secret(&order).is_none());
    assert!(FactoryKey::from_secret(&[0xff; 32]).is_none());
    let mut largest = order;
    largest[31] -= 1;
    assert!(FactoryKey::from_secret(&largest).is_some());
}

#[test]
fn debug_output_keeps_the_secret() {
    let key = FactoryKey::derive(&[1; 32], &[2; 32]);
    let secret = hex::encode(key.keypair().to_secret_bytes());
    let printed = format!("{key:?}");
    assert!(printed.contains(&key.public().to_string()));
    assert!(!printed.contains(&secret));
    // As a list of numbers, too.
    let numbers = format!("{:?}", key.keypair().to_secret_bytes());
    assert!(!printed.contains(numbers.trim_matches(['[', ']'])));
}

#[test]
fn too_few_or_repeated_keys_are_refused() {
    let keys: Vec<PublicKey> = (0..3)
        .map(|slot| FactoryKey::derive(&bytes("key", slot), &[0; 32]).public())
        .collect();
    let refusal = |keys: &[PublicKey]| SignerSet::new(keys).unwrap_err();
    assert_eq!(refusal(&[]), SignerSetError::TooFew { count: 0 });
    assert_eq!(refusal(&keys[..1]), SignerSetError::TooFew { count: 1 });
    assert_eq!(
        refusal(&[keys[0], keys[1], keys[2], keys[1]]),
        SignerSetError::RepeatedKey {
            first: 1,
            second: 3
        }
    );
    assert_eq!(
        refusal(&[keys[0], keys[0]]),
        SignerSetError::RepeatedKey {
            first: 0,
            second: 1
        }
    );
    assert_eq!(SignerSet::new(&keys).unwrap().count(), 3);
}

#[test]
fn order_makes_the_key() {
    let parties = Parties::new("order", 3, 0);
    let mut keys: Vec<_> = parties.keys.iter().map(FactoryKey::public).collect();
    let set = SignerSet::new(&keys).unwrap();
    for (slot, key) in keys.iter().enumerate() {
        assert_eq!(set.position(key), Some(slot));
    }
    keys.swap(1, 2);
    assert_ne!(
        SignerSet::new(&keys).unwrap().internal_key(),
        set.internal_key()
    );
}

/// The output key is the one rust-bitcoin computes from the internal key (BIP341).
#[test]
fn tweak_is_bip341() {
    let secp = Secp256k1::verification_only();
    let mut parities = [0; 2];
    for size in [2, 3, 4, 5, 6, 7, 8, 9] {
        let set = Parties::new("tweak", size, 0).signers();
        for name in ["kickoff", "state"] {
            let key = set.tweaked(root(name));
            let internal: UntweakedPublicKey = set.internal_key();
            let (expected, parity) = internal.tap_tweak(&secp, Some(root(name)));
            assert_eq!(key.output_key(), expected.to_x_only_public_key());
            assert_eq!(key.output_parity(), parity);
            assert_eq!(
                key.script_pubkey(),
                bitcoin::ScriptBuf::new_p2tr_tweaked(expected)
            );
            parities[usize::from(parity.to_u8())] += 1;
        }
    }
    assert!(
        parities.iter().all(|seen| *seen > 0),
        "both parities must be seen: {parities:?}"
    );
}

#[test]
fn public_key_is_the_secret_keys() {
    let key = FactoryKey::derive(&[5; 32], &[6; 32]);
    let secret = SecretKey::from_slice(&key.keypair().to_secret_bytes()).unwrap();
    assert_eq!(
        key.public(),
        PublicKey::from_secret_key(&Secp256k1::new(), &secret)
    );
    let hkdf = Hkdf::<Sha256>::new(Some(&[6; 32]), &[5; 32]);
    let mut expected = [0; 32];
    hkdf.expand(b"superscalar/factory-key/v1\0", &mut expected)
        .unwrap();
    assert_eq!(key.keypair().to_secret_bytes(), expected);
}
