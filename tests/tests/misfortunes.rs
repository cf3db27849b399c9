//! Members fall silent in the middle of ceremonies, also of several at once, or answer late: no group
//! disturbs another, no coin stays locked, and whoever was left over joins again.

use bitcoin::OutPoint;
use superscalar_sdk::{BuildRequest, FactoryInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};

const GROUPS: usize = 5;
/// Who of them never says anything to its invitation, and who stops when only the channels are
/// missing and the LSP's coin is reserved.
const SILENT: usize = 1;
const CUT_OFF: usize = 3;
/// The LSP waits so long for an answer in a group that fails.
const SHORT_ROUND_SECS: u16 = 10;
/// A Join has at least five nonces of 66 bytes; what keeps a connection alive is less.
const LEAST_JOIN_BYTES: u64 = 330;

/// One group of two.
struct Group {
    factory: String,
    members: Vec<usize>,
}

/// What the LSP says of a group.
async fn info(network: &TestNetwork, group: &Group) -> FactoryInfo {
    let infos = network.lsp().factories().await.unwrap();
    let mut infos = infos.into_iter();
    infos.find(|it| it.factory == group.factory).unwrap()
}

/// Invites all groups at once, with every member's answers held on the wire.
async fn invited(network: &TestNetwork) -> Vec<Group> {
    network.all_waiting(2 * GROUPS as u16).await;
    for member in &network.members {
        member.wire.to_lsp.hold();
    }
    let mut groups = Vec::new();
    for group in 0..GROUPS {
        let request = BuildRequest {
            round_seconds: match group {
                SILENT | CUT_OFF => SHORT_ROUND_SECS,
                _ => 60,
            },
            ..regtest_factory(2)
        };
        let factory = network.lsp().create_factory(request).await.unwrap();
        let mut group = Group {
            factory,
            members: Vec::new(),
        };
        let seats = info(network, &group).await.seats;
        let peers: Vec<&String> = seats.iter().map(|seat| &seat.peer).collect();
        let of_group = |it: &usize| peers.contains(&&network.wallet(*it).node_id());
        group.members = (0..network.members.len()).filter(of_group).collect();
        assert_eq!(group.members.len(), 2);
        groups.push(group);
    }
    groups
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_groups_at_once_two_fail_and_three_do_not_notice() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2 * GROUPS).await;
    // A coin for each group's funding.
    network.fund_lsp(&[10_000_000; GROUPS]).await;
    let coins = || network.lsp().onchain().balance().unwrap();
    let before_sat = coins().spendable_sat;
    let groups = invited(&network).await;

    let victims = [SILENT, CUT_OFF].map(|group| groups[group].members[0]);
    for (member, it) in network.members.iter().enumerate() {
        if !victims.contains(&member) {
            it.wire.to_lsp.pass();
        }
    }
    // The second victim signs its path, and is cut off before it can say that it has it.
    let wire = &network.members[victims[1]].wire.to_lsp;
    network
        .wait("the channels to be all that is missing", async || {
            let now = info(&network, &groups[CUT_OFF]).await.phase;
            if ["gathering", "signing"].contains(&now.as_str()) && wire.held_bytes() > 0 {
                wire.release();
            }
            now == "opening"
        })
        .await;
    network
        .wait("every group to have come to its end", async || {
            let mut all = true;
            for (number, group) in groups.iter().enumerate() {
                let now = info(&network, group).await;
                let fails = [SILENT, CUT_OFF].contains(&number);
                assert!(fails || now.ended.is_none(), "{number}: {:?}", now.ended);
                all &= now.ended.is_some() == fails && (fails || now.phase == "published");
            }
            all
        })
        .await;
    network.mine(1).await;

    // Three are active on both sides, and pay.
    let mut spent_sat = 0;
    for (number, group) in groups.iter().enumerate() {
        let now = info(&network, group).await;
        if [SILENT, CUT_OFF].contains(&number) {
            assert!(!now.active);
            continue;
        }
        let funding: OutPoint = now.funding.unwrap().parse().unwrap();
        spent_sat += network.value_sat(funding) + network.fee_sat(funding.txid);
        assert_eq!(now.funding_sat, Some(network.value_sat(funding)));
        for member in &group.members {
            network
                .wait("a member to be active", async || {
                    let list = network.wallet(*member).factories().list().await.unwrap();
                    list.iter()
                        .any(|it| it.factory == group.factory && it.active)
                })
                .await;
            network.lsp_pays(*member, 20_000_000).await;
        }
        network
            .pay(group.members[0], group.members[1], 5_000_000)
            .await;
    }
    // Every coin is accounted for: three fundings are spent, nothing is reserved or on its way.
    let after = coins();
    assert_eq!((after.reserved_sat, after.pending_sat), (0, 0));
    assert_eq!(after.spendable_sat, before_sat - spent_sat);

    // Who was left over joins again, the victims with them.
    let left_over: Vec<usize> = [SILENT, CUT_OFF]
        .iter()
        .flat_map(|group| groups[*group].members.clone())
        .collect();
    for member in &left_over {
        network.members[*member].wire.to_lsp.pass();
    }
    for member in &left_over {
        network
            .wait(
                "the place that came to nothing to be given up",
                async || {
                    let list = network.wallet(*member).factories().list().await.unwrap();
                    list.iter()
                        .all(|it| it.ended.is_some() || it.phase == "dormant")
                },
            )
            .await;
        let wallet = network.wallet(*member);
        assert_eq!(wallet.balance().unwrap(), Default::default());
        wallet.factories().join(500_000).await.unwrap();
    }
    let again = network.build_unconfirmed(regtest_factory(4)).await;
    network.mine(1).await;
    for member in left_over {
        network
            .wait("a member to be active after all", async || {
                let list = network.wallet(member).factories().list().await.unwrap();
                list.iter().any(|it| it.factory == again && it.active)
            })
            .await;
        network.lsp_pays(member, 20_000_000).await;
    }
    network.stop().await;
}

/// A member of three falls silent in this phase of the ceremony: the LSP goes on with the others,
/// its coins are all accounted for, and the member may join again.
async fn silent_while(phase: &str) {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(3).await;
    network.fund_lsp(&[10_000_000; 2]).await;
    let coins = || network.lsp().onchain().balance().unwrap();
    let before_sat = coins().spendable_sat;
    network.all_waiting(3).await;
    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let request = BuildRequest {
        round_seconds: SHORT_ROUND_SECS,
        ..regtest_factory(3)
    };
    let factory = network.lsp().create_factory(request).await.unwrap();
    network
        .wait(phase, async || {
            let infos = network.lsp().factories().await.unwrap();
            let first = infos.iter().find(|it| it.factory == factory).unwrap();
            assert_ne!(first.phase, "published");
            if first.phase != phase && wire.held_bytes() > 0 {
                wire.release();
            }
            first.phase == phase
        })
        .await;
    let mut again = None;
    network
        .wait("the next attempt to be published", async || {
            let infos = network.lsp().factories().await.unwrap();
            let next = infos.into_iter().find(|it| it.factory != factory);
            again = next.filter(|it| it.phase == "published");
            again.is_some()
        })
        .await;
    let again = again.unwrap();
    let silent = network.wallet(0).node_id();
    assert_eq!(again.seats.len(), 2);
    assert!(again.seats.iter().all(|seat| seat.peer != silent));
    network.mine(1).await;
    for member in [1, 2] {
        network
            .wait("the others to be active", async || {
                let list = network.wallet(member).factories().list().await.unwrap();
                list.iter()
                    .any(|it| it.factory == again.factory && it.active)
            })
            .await;
        network.lsp_pays(member, 20_000_000).await;
    }
    let funding: OutPoint = again.funding.unwrap().parse().unwrap();
    let spent_sat = network.value_sat(funding) + network.fee_sat(funding.txid);
    let after = coins();
    assert_eq!((after.reserved_sat, after.pending_sat), (0, 0));
    assert_eq!(after.spendable_sat, before_sat - spent_sat);

    // Late, and told that its place is gone, it asks for another.
    network.members[0].wire.to_lsp.pass();
    network
        .wait("the place to be given up", async || {
            let list = network.wallet(0).factories().list().await.unwrap();
            list.iter().all(|it| it.ended.is_some())
        })
        .await;
    assert_eq!(network.wallet(0).balance().unwrap(), Default::default());
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.all_waiting(1).await;
    assert_eq!(network.lsp().waiting().await.unwrap(), [silent]);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_silent_while_gathering_is_left_out_and_no_coin_is_locked() {
    silent_while("gathering").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_silent_while_signing_is_left_out_and_no_coin_is_locked() {
    silent_while("signing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_silent_while_opening_is_left_out_and_no_coin_is_locked() {
    silent_while("opening").await;
}

/// Of four one is silent and one away when the round ends, and one of the two who are left is silent
/// in the next: the last, who did everything right, waits for another factory without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_nothing_wrong_is_asked_again_and_then_waits_for_the_next() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(4).await;
    network.fund_lsp(&[10_000_000; 2]).await;
    let coins = || network.lsp().onchain().balance().unwrap();
    let before = coins();
    network.all_waiting(4).await;
    let wires: Vec<_> = network.members.iter().map(|it| &it.wire.to_lsp).collect();
    let said = |member: usize| wires[member].carried_bytes();
    let earlier: Vec<u64> = (0..4).map(said).collect();
    wires[0].hold();
    let request = BuildRequest {
        round_seconds: SHORT_ROUND_SECS,
        ..regtest_factory(4)
    };
    let factory = network.lsp().create_factory(request).await.unwrap();
    network
        .wait("three to have answered", async || {
            (1..4).all(|member| said(member) > earlier[member] + LEAST_JOIN_BYTES)
        })
        .await;
    network.wallet(1).stop().await;
    wires[2].hold();

    let peers = [2, 3].map(|member| network.wallet(member).node_id());
    let mut next = None;
    network
        .wait("the next attempt to have ended", async || {
            let infos = network.lsp().factories().await.unwrap();
            next = infos.into_iter().find(|it| it.factory != factory);
            next.as_ref().is_some_and(|it| it.ended.is_some())
        })
        .await;
    let mut seats: Vec<String> = next.unwrap().seats.into_iter().map(|it| it.peer).collect();
    seats.sort_by_key(|peer| peers.iter().position(|it| it == peer));
    assert_eq!(seats, peers);
    network.all_waiting(1).await;
    assert_eq!(network.lsp().waiting().await.unwrap(), peers[1..]);
    assert_eq!(coins(), before);
    network.stop().await;
}

/// Invites three, of whom the first has answered and the answer is still on its way when those of the
/// others are there; the attempt's name.
async fn invited_with_one_late(round_seconds: u16) -> (TestNetwork, String) {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(3).await;
    network.fund_lsp(&[10_000_000; 2]).await;
    network.all_waiting(3).await;
    let wires: Vec<_> = network.members.iter().map(|it| &it.wire.to_lsp).collect();
    let earlier: Vec<u64> = wires.iter().map(|it| it.carried_bytes()).collect();
    wires[0].hold();
    let request = BuildRequest {
        round_seconds,
        ..regtest_factory(3)
    };
    let factory = network.lsp().create_factory(request).await.unwrap();
    network
        .wait("all to have answered", async || {
            let joined = |said: u64| said > LEAST_JOIN_BYTES;
            joined(wires[0].held_bytes() as u64)
                && (1..3).all(|other| joined(wires[other].carried_bytes() - earlier[other]))
        })
        .await;
    (network, factory)
}

/// Waits until these members have the factory, and pays each.
async fn have_it(network: &TestNetwork, members: &[usize], factory: &str) {
    for member in members {
        network
            .wait("a member to be active", async || {
                let list = network.wallet(*member).factories().list().await.unwrap();
                list.iter().any(|it| it.factory == factory && it.active)
            })
            .await;
        network.lsp_pays(*member, 20_000_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_joins_late_in_the_round_is_waited_for() {
    let (network, factory) = invited_with_one_late(60).await;
    let coins = || network.lsp().onchain().balance().unwrap();
    let before_sat = coins().spendable_sat;
    let infos = network.lsp().factories().await.unwrap();
    assert_eq!(infos[0].phase, "gathering");
    assert!(network.chain.mempool().unwrap().is_empty());
    network.members[0].wire.to_lsp.pass();
    network
        .wait("the funding to be published", async || {
            let infos = network.lsp().factories().await.unwrap();
            assert!(infos[0].ended.is_none(), "{:?}", infos[0].ended);
            infos[0].phase == "published"
        })
        .await;
    network.mine(1).await;
    have_it(&network, &[0, 1, 2], &factory).await;

    // It is the first attempt, and its funding is all that was spent.
    let infos = network.lsp().factories().await.unwrap();
    assert_eq!((infos.len(), infos[0].seats.len()), (1, 3));
    let funding: OutPoint = infos[0].funding.as_ref().unwrap().parse().unwrap();
    let spent_sat = network.value_sat(funding) + network.fee_sat(funding.txid);
    let after = coins();
    assert_eq!((after.reserved_sat, after.pending_sat), (0, 0));
    assert_eq!(after.spendable_sat, before_sat - spent_sat);
    network.pay(0, 1, 5_000_000).await;
    network.pay(2, 0, 5_000_000).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_joins_after_the_round_is_in_the_next_factory() {
    let (mut network, first) = invited_with_one_late(SHORT_ROUND_SECS).await;
    let late = network.wallet(0).node_id();
    let mut built = None;
    network
        .wait("the attempt without it to be published", async || {
            let infos = network.lsp().factories().await.unwrap();
            built = infos.into_iter().find(|it| it.phase == "published");
            built.is_some()
        })
        .await;
    let built = built.unwrap();
    assert_ne!(built.factory, first);
    assert_eq!(built.seats.len(), 2);
    assert!(built.seats.iter().all(|seat| seat.peer != late));
    network.mine(1).await;
    have_it(&network, &[1, 2], &built.factory).await;

    // Its answer comes when nobody waits for it any more.
    network.members[0].wire.to_lsp.pass();
    network
        .wait("the place to be given up", async || {
            let list = network.wallet(0).factories().list().await.unwrap();
            list.iter().all(|it| it.ended.is_some())
        })
        .await;
    let other = network.add_wallet().await;
    for member in [0, other] {
        let factories = network.wallet(member).factories();
        factories.join(500_000).await.unwrap();
    }
    let before = network.lsp().onchain().balance().unwrap();
    assert_eq!((before.reserved_sat, before.pending_sat), (0, 0));
    let next = network.build_unconfirmed(regtest_factory(2)).await;
    network.mine(1).await;
    have_it(&network, &[0, other], &next).await;
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.into_iter().find(|it| it.factory == next).unwrap();
    assert!(info.active && info.seats.iter().any(|seat| seat.peer == late));
    let funding: OutPoint = info.funding.unwrap().parse().unwrap();
    let spent_sat = network.value_sat(funding) + network.fee_sat(funding.txid);
    let after = network.lsp().onchain().balance().unwrap();
    assert_eq!((after.reserved_sat, after.pending_sat), (0, 0));
    assert_eq!(after.spendable_sat, before.spendable_sat - spent_sat);
    // From one factory to the other.
    network.pay(0, 1, 5_000_000).await;
    network.pay(2, 0, 5_000_000).await;
    network.stop().await;
}
