//! The LSP takes back what a factory was to be funded with, when everybody has acknowledged it
//! already: nobody counts money that is not there, and the next factory stands.

use superscalar_sdk::{Event, FactoryInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};

/// After which an unconfirmed funding is reported.
const UNFUNDED_AFTER_BLOCKS: u32 = 144;
const LSP_SAT: u64 = 1_000_000_000;

async fn info(network: &TestNetwork, member: usize, factory: &str) -> FactoryInfo {
    let infos = network.wallet(member).factories().list().await.unwrap();
    infos.into_iter().find(|it| it.factory == factory).unwrap()
}

/// There is nothing in a wallet, and nothing can be received.
async fn assert_empty(network: &TestNetwork, member: usize) {
    let wallet = network.wallet(member);
    assert_eq!(wallet.balance().unwrap(), Default::default());
    let refused = wallet.lightning().receive(Some(1_000_000), "", 60).await;
    assert_eq!(refused.unwrap_err().code(), "no_active_channel");
    assert_eq!(wallet.exit().status().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_funding_that_is_spent_elsewhere_gives_nobody_money_and_the_next_one_stands() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    // On an old copy of its disk the coin is free.
    let before = network.save_lsp().await;
    let cheat = network.lsp_beside(&before).await;
    let factory = network.build_unconfirmed(regtest_factory(2)).await;
    for member in [0, 1] {
        network
            .wait("everyone to have everything", async || {
                info(&network, member, &factory).await.phase == "funding"
            })
            .await;
        assert_empty(&network, member).await;
    }
    let mempool = network.chain.mempool().unwrap();
    let [funding] = mempool[..] else {
        panic!("the funding is not alone: {mempool:?}");
    };
    let funding = network.chain.raw_tx(funding).unwrap().unwrap();
    let coin = funding.input[0].previous_output;
    let address = cheat.onchain().address().unwrap();
    let sent = cheat.onchain().send(&address, LSP_SAT / 2, Some(50)).await;
    let elsewhere = sent.unwrap().parse().unwrap();
    cheat.stop().await;
    assert_eq!(network.chain.mempool().unwrap(), [elsewhere]);
    network.mine(1).await;
    let (_, height, fee_sat, _) = network.taken(coin);
    assert_eq!(network.chain.confirmed_at(elsewhere).unwrap(), Some(height));
    let refused = network.chain.submit(&funding).unwrap_err();
    assert!(
        refused.refused_with("bad-txns-inputs-missingorspent"),
        "{refused}"
    );

    for member in [0, 1] {
        assert_eq!(info(&network, member, &factory).await.phase, "funding");
        assert_empty(&network, member).await;
    }
    network.chain.mine(UNFUNDED_AFTER_BLOCKS).unwrap();
    network.sync().await;
    for member in [0, 1] {
        let told = info(&network, member, &factory).await;
        assert_eq!((told.phase.as_str(), told.active), ("unfunded", false));
        assert_empty(&network, member).await;
        let events = network.wallet(member).events(0, 1_000).unwrap().events;
        let told = |wanted: &dyn Fn(&Event) -> bool| {
            let events = events.iter().map(|stored| &stored.event);
            events.filter(|event| wanted(event)).count()
        };
        let unfunded = told(&|it| matches!(it, Event::FactoryUnfunded { .. }));
        let active = told(&|it| matches!(it, Event::FactoryActive { .. }));
        assert_eq!((unfunded, active), (1, 0));
    }
    // All it has done is to pay a fee.
    let lsp = network.lsp().balance();
    assert_eq!(
        lsp.onchain_sat + lsp.onchain_pending_sat,
        LSP_SAT - fee_sat,
        "net gain at most 0"
    );

    for member in &network.members {
        member.wallet.factories().join(500_000).await.unwrap();
    }
    let next = network.build(regtest_factory(2)).await;
    assert_ne!(next, factory);
    network.lsp_pays(0, 100_000_000).await;
    // LDK forwards over whichever of a peer's channels has least to spare: that is the new one now.
    network.lsp_pays(1, 5_000_000).await;
    network.pay(0, 1, 10_000_000).await;
    let fee_msat = 1_000 + 10_000_000 * 100 / 1_000_000;
    let expected = [100_000_000 - 10_000_000 - fee_msat, 15_000_000];
    network
        .wait("both to have what is theirs", async || {
            [network.balance_msat(0), network.balance_msat(1)] == expected
        })
        .await;
    network.restart(1).await;
    assert_eq!(info(&network, 1, &factory).await.phase, "unfunded");
    assert!(info(&network, 1, &next).await.active);
    network.stop().await;
}
