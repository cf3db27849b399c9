//! A breach stays in its factory: an LSP publishes revoked commitments of one, and serves another
//! with the same members meanwhile.

use bitcoin::OutPoint;
use superscalar_sdk::ExitMode;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, left_of, value_of};

use super::revoked::{CAPACITY_SAT, LSP_DELAY_BLOCKS, assert_told};

const MEMBERS: [usize; 2] = [0, 1];
/// What a member has in the commitment that is revoked.
const THEN_SAT: u64 = 10_000;
/// What it is paid afterwards in the first factory, which leaves the LSP hardly anything there.
const LATER_SAT: u64 = 430_000;
/// What it is paid when there is another: more than the first has room for.
const BESIDE_MSAT: u64 = 200_000_000;

/// What a member has in its channel of a factory, by the LSP's word.
fn held_msat(network: &TestNetwork, member: usize, factory: &str) -> u64 {
    let of_factory = |slot: &Option<String>| {
        let slot = slot.as_ref();
        slot.is_some_and(|slot| slot.starts_with(&factory[..8]))
    };
    let mut channels = network.channels_with(member).into_iter();
    let channel = channels.find(|it| of_factory(&it.slot)).unwrap();
    channel.capacity_sat * 1_000 - channel.balance_msat
}

/// The cheat is the LSP with an old disk beside the one that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breach_in_one_factory_leaves_the_other_alone() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let first = network.build(regtest_factory(2)).await;
    for member in MEMBERS {
        network.lsp_pays(member, THEN_SAT * 1_000).await;
    }
    network.settle().await;
    let rich = network.save_lsp().await;
    network.reconnected().await;
    for member in MEMBERS {
        network.lsp_pays(member, LATER_SAT * 1_000).await;
    }
    network.settle().await;
    let paths = network.paths(&first).await;
    for member in MEMBERS {
        let factories = network.wallet(member).factories();
        factories.join(CAPACITY_SAT).await.unwrap();
    }
    let second = network.build(regtest_factory(2)).await;
    for member in MEMBERS {
        network.lsp_pays(member, BESIDE_MSAT).await;
        let (ours, _) = network.at_rest(member).await;
        let whole_msat = (THEN_SAT + LATER_SAT) * 1_000 + BESIDE_MSAT;
        assert_eq!(ours, whole_msat);
    }
    let held = MEMBERS.map(|it| held_msat(&network, it, &second));
    let room_msat = (CAPACITY_SAT - THEN_SAT - LATER_SAT) * 1_000;
    assert!(held.iter().all(|it| *it > BESIDE_MSAT - room_msat));
    let factories = network.lsp().factories().await.unwrap();
    let info = factories.iter().find(|it| it.factory == second).unwrap();
    let funding: OutPoint = info.funding.as_ref().unwrap().parse().unwrap();
    let coins = || {
        let balance = network.lsp().balance();
        balance.onchain_sat + balance.onchain_pending_sat
    };
    let coins_sat = coins();

    let cheat = network.lsp_beside(&rich).await;
    for member in MEMBERS {
        let place = format!("{first}/{}", network.seat(member, &first).await.slot);
        let exit = cheat.exit();
        exit.start(&place, ExitMode::Leave).await.unwrap();
    }
    let published = || {
        let spends = paths
            .iter()
            .map(|path| network.chain.spender_of(path.channel).unwrap());
        spends.flatten().filter(|it| it.height.is_some()).count()
    };
    for _ in 0..100 {
        if published() == paths.len() {
            break;
        }
        network.mine(1).await;
        cheat.sync().await.unwrap();
    }
    let old: Vec<_> = paths
        .iter()
        .map(|path| network.confirmed_spender(path.channel))
        .collect();
    for (commitment, confirmed) in &old {
        let mut amounts = commitment.output.iter().map(|it| it.value.to_sat());
        assert!(amounts.any(|it| it == THEN_SAT), "the revoked one");
        assert_eq!(value_of(commitment), CAPACITY_SAT - COMMITMENT_FEE_SAT);
        let txid = commitment.compute_txid();
        for vout in 0..commitment.output.len() as u32 {
            let spent = OutPoint { txid, vout };
            let height = network.mined_spend(spent, &MEMBERS).await;
            assert!(height < confirmed + LSP_DELAY_BLOCKS, "{spent}");
        }
    }
    // Every output is the cheated member's, and none the cheater's.
    network
        .wait("the members to have it all", async || {
            network.mine(1).await;
            MEMBERS.iter().all(|it| {
                let arrived = network.wallet(*it).balance().unwrap().onchain_sat;
                arrived == left_of(&network.chain, &old[*it].0)
            })
        })
        .await;
    cheat.sync().await.unwrap();
    assert_eq!(coins(), coins_sat, "the cheater's 0");
    let lsp = network.lsp().node_id();
    for member in MEMBERS {
        let events = network.member_events(member);
        assert_told(&network, &events, &old[member].0, &lsp, THEN_SAT);
    }

    // What is in the other factory is there still, and pays on.
    network.settle().await;
    assert_eq!(MEMBERS.map(|it| network.balance_msat(it)), held);
    network.pay(0, 1, 30_000_000).await;
    network.lsp_pays(0, 7_000_000).await;
    network.pay(1, 0, 11_000_001).await;
    network.settle().await;
    // Base 1,000 msat and 100 ppm.
    let fee_msat = |amount_msat: u64| 1_000 + amount_msat / 10_000;
    let expected = [
        held[0] - 30_000_000 - fee_msat(30_000_000) + 7_000_000 + 11_000_001,
        held[1] + 30_000_000 - 11_000_001 - fee_msat(11_000_001),
    ];
    assert_eq!(MEMBERS.map(|it| network.balance_msat(it)), expected);
    assert_eq!(network.chain.spender_of(funding).unwrap(), None);
    for member in MEMBERS {
        let exits = network.wallet(member).exit().status().await.unwrap();
        assert!(exits.iter().all(|it| it.factory == first), "{exits:?}");
        assert_eq!(held_msat(&network, member, &second), expected[member]);
    }
    cheat.stop().await;
    network.stop().await;
}
