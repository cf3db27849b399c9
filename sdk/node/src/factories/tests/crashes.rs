//! An exit whose transactions need children, killed before and after every durable write.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, Transaction, Txid};
use superscalar_factory::terms::TimeoutPolicy;

use super::super::bridge;
use super::super::exits::BURIED_BLOCKS;
use super::ceremony::US;
use super::device::{COIN, Device, Member, Picture, Remote, Rooms};
use super::net::Net;
use crate::hosting::SlotPhase;

/// Children ever handed over, by the transaction they are on.
fn children(net: &Net) -> BTreeMap<Txid, BTreeSet<Txid>> {
    let mut children: BTreeMap<Txid, BTreeSet<Txid>> = BTreeMap::new();
    for package in net.handed() {
        if let [parent, child] = package.as_slice() {
            let on = children.entry(parent.compute_txid()).or_default();
            on.insert(child.compute_txid());
        }
    }
    children
}

/// What was handed over is on disk: that we leave, each child, and the coins it spends.
fn check_disk(rooms: &Rooms, handed: &[Vec<Transaction>]) {
    let name = bridge::name(&US.attempt);
    let jobs = rooms.jobs();
    assert!(
        handed.is_empty() || jobs[&name]["mode"] == "leave",
        "{jobs}"
    );
    for package in handed {
        let [parent, child] = package.as_slice() else {
            continue;
        };
        if rooms.net.height_of(&parent.compute_txid()).is_some() {
            continue;
        }
        let kept = rooms.onchain.anchor_child(parent.compute_txid()).unwrap();
        assert_eq!(kept.map(|kept| kept.tx).as_ref(), Some(child));
        assert_eq!(rooms.onchain.balance().spendable, Amount::ZERO);
    }
}

/// Goes on until the leaf is buried and the coins are free again; what is left of them.
async fn to_the_end(device: &mut Device) -> Amount {
    let leaf = device.rooms.slot().channel.outpoint.txid;
    let name = bridge::name(&US.attempt);
    for _ in 0..60 {
        check_disk(&device.rooms, &device.rooms.net.handed());
        let tip = device.rooms.net.tip().height;
        let height = device.rooms.net.height_of(&leaf);
        if height.is_some_and(|height| tip >= height + BURIED_BLOCKS) {
            assert_eq!(device.rooms.slot().leaf_height, height);
            assert_eq!(
                device.rooms.jobs()[&name]["leaf_told"].as_u64(),
                height.map(u64::from)
            );
            assert!(device.rooms.onchain.exits_with_coins().unwrap().is_empty());
            let coins = device.rooms.onchain.balance();
            assert_eq!(coins.total(), coins.spendable);
            return coins.spendable;
        }
        device.block().await;
    }
    panic!("the leaf is not on chain");
}

async fn after(picture: Picture) -> Amount {
    let Picture {
        files,
        objects,
        net,
    } = picture;
    let rooms = Rooms::open(files.path(), &Remote::of(&objects), &net).await;
    check_disk(&rooms, &net.handed());
    let mut device = rooms.run().await;
    let left = to_the_end(&mut device).await;
    // A child is made once: after the crash the same one is handed over again.
    for (parent, children) in children(&net) {
        assert_eq!(children.len(), 1, "on {parent}");
    }
    device.rooms.close().await;
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_goes_on_from_a_crash_at_any_write() {
    let member = Member::new(TimeoutPolicy::MembersReclaim, SlotPhase::Closed).await;
    let Member {
        directory,
        remote,
        net,
    } = member;
    let rooms = Rooms::open(directory.path(), &remote, &net).await;
    remote.watch(directory.path(), &net);
    let mut device = rooms.run().await;
    assert_eq!(device.rooms.onchain.balance().reserved, COIN);
    let expected = to_the_end(&mut device).await;
    let pictures = remote.pictures();
    device.rooms.close().await;
    assert_eq!(children(&net).len(), 2, "kickoff and state");
    assert!(expected < COIN, "they cost something");

    let count = pictures.len();
    assert!(count > 40, "two of each write, {count}");
    for (nth, picture) in pictures.into_iter().enumerate() {
        let done = tokio::spawn(after(picture)).await;
        match done {
            Ok(left) => assert_eq!(left, expected, "picture {nth} of {count}"),
            Err(error) => panic!("picture {nth} of {count}: {error}"),
        }
    }
}
