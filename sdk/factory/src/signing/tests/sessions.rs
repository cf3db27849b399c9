//! Signing, aggregation and blame.

use proptest::prelude::*;

use super::*;

const MESSAGE: [u8; 32] = [0x42; 32];

#[test]
fn everyone_signs_and_it_verifies() {
    let mut parties = Parties::new("everyone", 4, 1);
    let key = parties.signers().tweaked(root("terms"));
    let (session, nonces, partials) = parties.sign(&key, MESSAGE);
    let signature = session.aggregate(&nonces, &partials).unwrap();
    assert!(verify(&key.output_key(), &MESSAGE, &signature));

    // rust-bitcoin agrees, and nothing else verifies.
    let secp = bitcoin::secp256k1::Secp256k1::verification_only();
    let message = bitcoin::secp256k1::Message::from_digest(MESSAGE);
    secp.verify_schnorr(&signature, &message, &key.output_key())
        .unwrap();
    assert!(!verify(&key.output_key(), &[0x43; 32], &signature));
    assert!(!verify(&key.signers().internal_key(), &MESSAGE, &signature));
    let mut changed = signature.serialize();
    changed[63] ^= 1;
    let changed = bitcoin::secp256k1::schnorr::Signature::from_slice(&changed).unwrap();
    assert!(!verify(&key.output_key(), &MESSAGE, &changed));
}

/// Partial signatures made under different terms (another Merkle root) do not aggregate.
#[test]
fn other_terms_are_blamed() {
    let mut parties = Parties::new("terms", 3, 1);
    let key = parties.signers().tweaked(root("terms"));
    let other = parties.signers().tweaked(root("other terms"));
    let (secret, nonces) = parties.nonces();
    let sum = AggregateNonce::sum(&nonces).unwrap();
    let session = SigningSession::new(&key, sum, MESSAGE);
    let deceived = SigningSession::new(&other, sum, MESSAGE);
    let partials: Vec<_> = secret
        .into_iter()
        .enumerate()
        .map(|(slot, nonce)| {
            let session = if slot == 1 { &deceived } else { &session };
            session.partial_sign(nonce, &parties.keys[slot]).unwrap()
        })
        .collect();
    assert_eq!(
        session.aggregate(&nonces, &partials),
        Err(AggregateError::Blame { culprits: vec![1] })
    );
}

#[test]
fn a_swapped_pair_is_blamed() {
    let mut parties = Parties::new("swap", 4, 1);
    let key = parties.signers().tweaked(root("terms"));
    let (session, nonces, partials) = parties.sign(&key, MESSAGE);
    // Addition does not care about the order: the signature is good, and nobody is to blame.
    let swapped = [partials[0], partials[3], partials[2], partials[1]];
    session.aggregate(&nonces, &swapped).unwrap();
    // One signer repeating another's partial signature is.
    let copied = [partials[0], partials[1], partials[1], partials[3]];
    assert_eq!(
        session.aggregate(&nonces, &copied),
        Err(AggregateError::Blame { culprits: vec![2] })
    );
}

/// Everyone signs correctly in a session whose aggregate nonce is not the sum of their nonces.
#[test]
fn a_foreign_aggregate_nonce_blames_nobody() {
    let mut parties = Parties::new("foreign", 3, 1);
    let key = parties.signers().tweaked(root("terms"));
    let (secret, mut nonces) = parties.nonces();
    let foreign = AggregateNonce::sum(&nonces[..2]).unwrap();
    let session = SigningSession::new(&key, foreign, MESSAGE);
    let partials: Vec<_> = secret
        .into_iter()
        .zip(&parties.keys)
        .map(|(nonce, key)| session.partial_sign(nonce, key).unwrap())
        .collect();
    assert_eq!(
        session.aggregate(&nonces, &partials),
        Err(AggregateError::NonceMismatch)
    );
    nonces.swap(0, 1);
    assert_eq!(
        session.aggregate(&nonces, &partials),
        Err(AggregateError::Blame {
            culprits: vec![0, 1]
        })
    );
}

/// The nonces serve to find culprits; a good signature needs none.
#[test]
fn a_good_signature_is_never_blamed() {
    let mut parties = Parties::new("good", 3, 2);
    let key = parties.signers().tweaked(root("terms"));
    let (_, other_nonces) = parties.nonces();
    let (session, _, partials) = parties.sign(&key, MESSAGE);
    let signature = session.aggregate(&other_nonces, &partials).unwrap();
    assert!(verify(&key.output_key(), &MESSAGE, &signature));
}

#[test]
fn counts_must_match() {
    let mut parties = Parties::new("counts", 3, 1);
    let key = parties.signers().tweaked(root("terms"));
    let (session, nonces, partials) = parties.sign(&key, MESSAGE);
    let wrong = |given| Err(AggregateError::WrongCount { signers: 3, given });
    assert_eq!(session.aggregate(&nonces, &partials[..2]), wrong(2));
    assert_eq!(session.aggregate(&nonces[..1], &partials), wrong(1));
    assert_eq!(session.aggregate(&[], &[]), wrong(0));
    assert_eq!(session.aggregate_bytes(&nonces, &[[0xff; 32]; 4]), wrong(4));
    assert_eq!(
        session.aggregate_bytes(&nonces[..2], &[[0xff; 32]; 3]),
        wrong(2)
    );
    assert!(!session.verify_partial(3, &nonces[0], &partials[0]));
}

#[test]
fn wrong_key_is_an_error_and_not_an_abort() {
    let mut parties = Parties::new("mismatch", 3, 2);
    let key = parties.signers().tweaked(root("terms"));
    let (mut secret, nonces) = parties.nonces();
    let session = SigningSession::new(&key, AggregateNonce::sum(&nonces).unwrap(), MESSAGE);
    assert_eq!(
        session.partial_sign(secret.remove(0), &parties.keys[1]),
        Err(PartialSignError::NonceOfAnotherKey)
    );

    let stranger = FactoryKey::derive(&[1; 32], &[1; 32]);
    let mut pool = NoncePool::new(&stranger);
    pool.refill(&stranger, &[[1; 32]]).unwrap();
    assert_eq!(
        session.partial_sign(pool.take().unwrap(), &stranger),
        Err(PartialSignError::NotASigner)
    );
}

/// All parties' nonces cancel out: the aggregate is the point at infinity, and nothing panics.
#[test]
fn cancelling_nonces_do_not_panic() {
    let mut parties = Parties::new("cancel", 2, 1);
    let key = parties.signers().tweaked(root("terms"));
    let (mut secret, nonces) = parties.nonces();
    let mut negated = nonces[0].to_bytes();
    negated[0] ^= 1;
    negated[33] ^= 1;
    let nonces = [nonces[0], PublicNonce::from_bytes(&negated).unwrap()];
    let sum = AggregateNonce::sum(&nonces).unwrap();
    assert_eq!(sum.to_bytes(), [0; 66]);
    assert_eq!(AggregateNonce::from_bytes(&[0; 66]), Ok(sum));
    let session = SigningSession::new(&key, sum, MESSAGE);
    let honest = session
        .partial_sign(secret.remove(0), &parties.keys[0])
        .unwrap();
    let invented = PartialSignature::from_bytes(&[1; 32]).unwrap();
    assert_eq!(
        session.aggregate(&nonces, &[honest, invented]),
        Err(AggregateError::Blame { culprits: vec![1] })
    );
}

/// What a culprit sends instead of its partial signature.
#[derive(Debug, Clone)]
enum Fault {
    BitFlip(usize),
    Garbage([u8; 32]),
    TooLarge,
    Zero,
}

impl Fault {
    fn apply(&self, good: [u8; 32]) -> [u8; 32] {
        match self {
            Self::BitFlip(bit) => {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                bad
            }
            Self::Garbage(garbage) => *garbage,
            Self::TooLarge => [0xff; 32],
            Self::Zero => [0; 32],
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..256usize).prop_map(Fault::BitFlip),
        any::<[u8; 32]>().prop_map(Fault::Garbage),
        Just(Fault::TooLarge),
        Just(Fault::Zero),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Exactly the signers who sent something wrong are named, however many and whatever it was.
    #[test]
    fn blame_names_exactly_the_culprits(
        faults in prop::collection::vec(prop::option::weighted(0.3, fault()), 2..=12),
        seed in any::<u64>(),
    ) {
        let mut parties = Parties::new(&format!("blame {seed}"), faults.len(), 1);
        let key = parties.signers().tweaked(root("terms"));
        let (session, nonces, partials) = parties.sign(&key, MESSAGE);
        let sent: Vec<_> = partials
            .iter()
            .zip(&faults)
            .map(|(good, fault)| match fault {
                Some(fault) => fault.apply(good.to_bytes()),
                None => good.to_bytes(),
            })
            .collect();
        let culprits: Vec<_> =
            (0..faults.len()).filter(|slot| sent[*slot] != partials[*slot].to_bytes()).collect();

        let result = session.aggregate_bytes(&nonces, &sent);
        for (slot, bytes) in sent.iter().enumerate() {
            let fine = PartialSignature::from_bytes(bytes)
                .is_ok_and(|partial| session.verify_partial(slot, &nonces[slot], &partial));
            prop_assert_eq!(fine, !culprits.contains(&slot));
        }
        if culprits.is_empty() {
            prop_assert!(verify(&key.output_key(), &MESSAGE, &result.unwrap()));
        } else {
            prop_assert_eq!(result, Err(AggregateError::Blame { culprits }));
        }
    }

    /// No bytes make a constructor or an aggregation panic.
    #[test]
    fn any_bytes_are_a_value_or_a_typed_error(
        nonce in prop::collection::vec(any::<u8>(), 66),
        partial in any::<[u8; 32]>(),
        tags in any::<Option<(bool, bool)>>(),
    ) {
        let mut nonce: [u8; 66] = nonce.try_into().unwrap();
        if let Some((first, second)) = tags {
            nonce[0] = 2 + u8::from(first);
            nonce[33] = 2 + u8::from(second);
        }
        let mut parties = Parties::new("bytes", 2, 1);
        let key = parties.signers().tweaked(root("terms"));
        let (mut secret, nonces) = parties.nonces();
        if let Ok(public) = PublicNonce::from_bytes(&nonce) {
            prop_assert_eq!(public.to_bytes(), nonce);
        }
        match AggregateNonce::from_bytes(&nonce) {
            Ok(sum) => {
                let session = SigningSession::new(&key, sum, MESSAGE);
                let own = session.partial_sign(secret.remove(0), &parties.keys[0]).unwrap();
                prop_assert!(session.verify_partial(0, &nonces[0], &own));
                let sent = [own.to_bytes(), partial];
                prop_assert_eq!(
                    session.aggregate_bytes(&nonces, &sent),
                    Err(AggregateError::Blame { culprits: vec![1] })
                );
            }
            Err(error) => prop_assert_eq!(error, MalformedNonce),
        }
    }
}
