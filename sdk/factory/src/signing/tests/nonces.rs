//! The nonce pool: distinct, used once, gone after a restart.

use std::collections::HashSet;

use super::*;

fn randomness(label: &str, count: usize) -> Vec<[u8; 32]> {
    (0..count).map(|index| bytes(label, index)).collect()
}

/// A wallet process: its key from seed and salt, its pool filled with fresh randomness.
fn start(label: &str) -> (FactoryKey, NoncePool) {
    let key = FactoryKey::derive(&[1; 32], &[2; 32]);
    let mut pool = NoncePool::new(&key);
    assert_eq!(pool.missing(), NoncePool::TARGET);
    pool.refill(&key, &randomness(label, pool.missing()))
        .unwrap();
    assert_eq!((pool.available(), pool.missing()), (NoncePool::TARGET, 0));
    (key, pool)
}

#[test]
fn sixty_four_sessions_use_sixty_four_distinct_nonces() {
    let mut parties = Parties::new("64 sessions", 2, NoncePool::TARGET);
    let key = parties.signers().tweaked(root("terms"));
    let mut nonces = HashSet::new();
    let mut final_nonces = HashSet::new();
    for session in 0..64 {
        let message = bytes("message", session);
        let (session, public, partials) = parties.sign(&key, message);
        for nonce in &public {
            let bytes = nonce.to_bytes();
            // Neither of the two points of any nonce is ever seen twice.
            assert!(nonces.insert(bytes[..33].to_vec()) && nonces.insert(bytes[33..].to_vec()));
        }
        let signature = session.aggregate(&public, &partials).unwrap();
        assert!(verify(&key.output_key(), &message, &signature));
        assert!(final_nonces.insert(signature.serialize()[..32].to_vec()));
    }
    assert_eq!(nonces.len(), 64 * 2 * 2);
    assert!(parties.pools.iter().all(|pool| pool.available() == 0));
}

#[test]
fn no_nonce_survives_a_restart() {
    let (_, mut pool) = start("first run");
    let old: HashSet<_> = pool.reserve(64).unwrap().public().iter().copied().collect();
    drop(pool);
    // Same key, because seed and salt are backed up; other nonces, because they are not.
    let (_, mut pool) = start("second run");
    let new: HashSet<_> = pool.reserve(64).unwrap().public().iter().copied().collect();
    assert_eq!((old.len(), new.len()), (64, 64));
    assert!(old.is_disjoint(&new));
}

#[test]
fn repeated_randomness_gives_distinct_nonces() {
    let key = FactoryKey::derive(&[1; 32], &[2; 32]);
    let mut pool = NoncePool::new(&key);
    pool.refill(&key, &[[7; 32]; 8]).unwrap();
    let first = pool.reserve(8).unwrap();
    pool.refill(&key, &[[7; 32]; 8]).unwrap();
    let second = pool.reserve(8).unwrap();
    let all = first.public().iter().chain(second.public());
    let distinct: HashSet<_> = all.copied().collect();
    assert_eq!(distinct.len(), 16);
}

#[test]
fn same_inputs_give_the_same_nonces() {
    let (_, mut one) = start("run");
    let (_, mut other) = start("run");
    assert_eq!(
        one.reserve(64).unwrap().public(),
        other.reserve(64).unwrap().public()
    );
}

#[test]
fn refill_refuses_another_key_and_zeros() {
    let (key, mut pool) = start("run");
    let stranger = FactoryKey::derive(&[3; 32], &[2; 32]);
    assert_eq!(
        pool.refill(&stranger, &[[1; 32]]),
        Err(RefillError::WrongKey)
    );
    assert_eq!(
        pool.refill(&key, &[[1; 32], [0; 32]]),
        Err(RefillError::NotRandom { index: 1 })
    );
    assert_eq!(pool.available(), NoncePool::TARGET);
}

#[test]
fn reservation_is_all_or_nothing() {
    let (_, mut pool) = start("run");
    let refused = pool.reserve(65).unwrap_err();
    assert_eq!(
        refused,
        ReserveError {
            wanted: 65,
            available: 64
        }
    );
    assert_eq!(pool.available(), 64);
    let reserved = pool.reserve(60).unwrap();
    let rest = pool.reserve(4).unwrap();
    assert!(
        reserved
            .public()
            .iter()
            .all(|nonce| !rest.public().contains(nonce))
    );
    assert_eq!(
        pool.take().unwrap_err(),
        ReserveError {
            wanted: 1,
            available: 0
        }
    );
    assert_eq!(pool.reserve(0).unwrap().public(), &[]);
}

#[test]
fn a_reserved_nonce_is_taken_once() {
    let (_, mut pool) = start("run");
    let mut reserved = pool.reserve(3).unwrap();
    let listed = reserved.public().to_vec();
    assert_eq!(reserved.take(1).unwrap().public(), listed[1]);
    assert_eq!(reserved.take(1).unwrap_err(), TakeError::Used { index: 1 });
    assert_eq!(
        reserved.take(3).unwrap_err(),
        TakeError::OutOfRange { index: 3, count: 3 }
    );
    assert_eq!(reserved.take(2).unwrap().public(), listed[2]);
    assert_eq!(reserved.take(0).unwrap().public(), listed[0]);
    assert_eq!(reserved.public(), listed);
}

#[test]
fn malformed_nonces_name_their_signer() {
    let (_, mut pool) = start("run");
    let good = pool.take().unwrap().public().to_bytes();
    let mut bad_tag = good;
    bad_tag[0] = 4;
    for bad in [[0; 66], [0xff; 66], bad_tag] {
        assert_eq!(PublicNonce::from_bytes(&bad), Err(MalformedNonce));
        assert_eq!(
            AggregateNonce::sum_bytes(&[good, good, bad, bad]),
            Err(NonceSumError::Malformed { signer: 2 })
        );
    }
    assert_eq!(AggregateNonce::sum_bytes(&[]), Err(NonceSumError::Empty));
    assert_eq!(AggregateNonce::sum(&[]), Err(NonceSumError::Empty));
    assert_eq!(AggregateNonce::from_bytes(&[0xff; 66]), Err(MalformedNonce));
}

#[test]
fn debug_output_keeps_the_secret() {
    let (_, mut pool) = start("run");
    let nonce = pool.take().unwrap();
    let printed = format!("{nonce:?}");
    assert_eq!(
        printed,
        format!("SecretNonce {{ public: {:?}, .. }}", nonce.public())
    );
}
