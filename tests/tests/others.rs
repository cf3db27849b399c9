//! What others publish of a factory's tree is told: once, over restarts, and again if it leaves the
//! chain. What a node publishes itself is not.

use bitcoin::{OutPoint, Txid};
use superscalar_sdk::{Event, ExitMode, TreeEdition, TreeTxKind};
use superscalar_tests::network::{TestNetwork, regtest_factory};

const ALL: [u16; 2] = [0, 1];

fn told(events: Vec<Event>) -> Vec<Event> {
    let is_it = |event: &Event| {
        matches!(
            event,
            Event::TreeTransaction { .. } | Event::TreeTransactionReorged { .. }
        )
    };
    events.into_iter().filter(is_it).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_is_told_once_and_a_reorg_as_well() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let infos = network.lsp().factories().await.unwrap();
    let funding = infos[0].funding.as_ref().unwrap().parse().unwrap();
    let exit = network.wallet(0).exit();
    exit.start(&factory, ExitMode::Leave).await.unwrap();
    let kickoff = network.spent(funding).await;
    let seen = |txid: Txid, kind, height| Event::TreeTransaction {
        factory: factory.clone(),
        txid: txid.to_string(),
        kind,
        edition: TreeEdition::Newest,
        slots: ALL.to_vec(),
        height,
    };
    let opened = seen(kickoff, TreeTxKind::Kickoff, None);
    let once = [opened.clone()];
    // Nobody has mined it: the mempool tells.
    network.chain.mine_empty(1).unwrap();
    network.sync().await;
    assert_eq!(told(network.lsp_events()), once);
    assert_eq!(told(network.member_events(1)), once);
    network.restart_lsp().await;
    network.restart(1).await;
    network.restart(0).await;
    network.mine(1).await;
    let height = network.chain.confirmed_at(kickoff).unwrap().unwrap();
    network.restart(1).await;
    assert_eq!(told(network.member_events(1)), once);

    // Its block is taken back, and the mempool has it again.
    let chain = &network.chain;
    chain.invalidate(chain.block_hash(height).unwrap()).unwrap();
    chain.mine_empty_to_height(height + 1).unwrap();
    network.sync().await;
    let reorged = Event::TreeTransactionReorged {
        factory: factory.clone(),
        txid: kickoff.to_string(),
        height,
    };
    let all = [opened.clone(), reorged, opened];
    assert_eq!(told(network.lsp_events()), all);
    assert_eq!(told(network.member_events(1)), all);
    assert_eq!(told(network.member_events(0)), []);

    // Whoever looks first publishes the state: not a member that stays, while all epochs are the first.
    network.mine(1).await;
    for _ in 0..20 {
        network.mine(1).await;
    }
    let now = told(network.member_events(1)).split_off(3);
    let [
        Event::TreeTransaction {
            txid, kind, slots, ..
        },
    ] = &now[..]
    else {
        panic!("{now:?}");
    };
    assert_eq!((*kind, &slots[..]), (TreeTxKind::State, &ALL[..]));
    let state = txid.parse().unwrap();
    let (leaf, _) = network.confirmed_spender(OutPoint::new(kickoff, 0));
    assert_eq!(leaf.compute_txid(), state);
    network.stop().await;
}
