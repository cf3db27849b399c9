//! What a tower reports, and what it is given because of it.

use super::*;

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

/// A tower that has acknowledged these, by the wallet's disk.
fn known(kept: &[u8]) -> Known {
    let node_id = crate::hosting::node_id(&[7; 32]);
    let kept = kept
        .iter()
        .map(|it| (AppointmentKey([*it; 32]), digest(*it)));
    Known {
        uri: TowerAddress {
            node_id,
            address: "localhost:1".to_owned(),
        },
        client: node_id,
        kept: kept.collect(),
        due: BTreeSet::new(),
        report: None,
        besides: None,
        given_again: None,
        last_contact_secs: None,
        is_connected: true,
        refused: None,
    }
}

/// What a tower that keeps these reports.
fn report(kept: &[u8]) -> Report {
    let mut sum = Digest::default();
    kept.iter().for_each(|it| sum.toggle(digest(*it)));
    Report {
        height: 1,
        coins_sat: 0,
        kept: kept.len() as u32,
        quota: 100,
        sum,
    }
}

#[test]
fn what_a_tower_keeps_of_another_disk_is_no_reason_to_give_all_again_for_ever() {
    let mut tower = known(&[1, 2]);
    assert!(tower.needs_all_again(report(&[1, 2, 8, 9])));
    assert!(!tower.needs_all_again(report(&[1, 2, 8, 9])));
    // One more of ours changes nothing of the rest.
    tower.kept.insert(AppointmentKey([3; 32]), digest(3));
    assert!(!tower.needs_all_again(report(&[1, 2, 3, 8, 9])));
    // One of ours is lost: the same number is not the same content.
    assert!(tower.needs_all_again(report(&[1, 2, 8, 9, 10])));
}

#[test]
fn a_tower_that_keeps_less_or_something_else_is_given_all_again_each_time() {
    for other in [&[1][..], &[1, 9]] {
        let mut tower = known(&[1, 2]);
        assert!(!tower.needs_all_again(report(&[1, 2])));
        for _ in 0..2 {
            assert!(tower.needs_all_again(report(other)));
        }
        assert!(!tower.needs_all_again(report(&[1, 2])));
    }
}

/// It is not asked for too often, and what was seen meanwhile is not taken for what is besides.
#[test]
fn what_is_not_given_again_yet_is_given_later() {
    for other in [&[1][..], &[1, 9], &[1, 2, 8], &[1, 8, 9]] {
        let mut tower = known(&[1, 2]);
        tower.given_again = Some(Instant::now());
        for _ in 0..2 {
            assert!(!tower.needs_all_again(report(other)));
        }
        tower.given_again = None;
        assert!(tower.needs_all_again(report(other)));
    }
}
