//! An LSP opens a tree of two layers as it was before its root got a new epoch: whoever looks has the
//! newest root first, what is below the old one can never be on chain, and everybody leaves with what
//! is theirs in the newest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bitcoin::Txid;
use superscalar_sdk::{BuildRequest, EpochRequest, ExitMode, Lsp};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::ExitPath;

const EVERYBODY: [usize; 3] = [0, 1, 2];
const BEFORE_MSAT: u64 = 100_000_000;
/// What a member is paid after the epoch: what the cheater wants back.
const LATER_MSAT: u64 = 150_000_000;

async fn moved(network: &TestNetwork, factory: &str, versions: u32) {
    network
        .wait("all to move", async || {
            let mut sum = 0;
            for member in EVERYBODY {
                let seat = network.seat(member, factory).await;
                sum += if seat.moving.is_none() {
                    seat.version
                } else {
                    0
                };
            }
            sum == versions
        })
        .await;
    network.reconnected().await;
}

async fn block(network: &TestNetwork, cheat: &Lsp) {
    network.chain.mine(1).unwrap();
    cheat.sync().await.unwrap();
    network.follow(&EVERYBODY).await;
}

fn is_confirmed(network: &TestNetwork, txid: Txid) -> bool {
    network.chain.confirmed_at(txid).unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_root_is_outrun_and_what_is_below_it_never_comes() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(3).await;
    let request = BuildRequest {
        stock_sat: 200_000,
        ..regtest_factory(3)
    };
    let factory = network.build(request).await;
    for member in EVERYBODY {
        network.lsp_pays(member, BEFORE_MSAT).await;
    }
    network.settle().await;
    // One of the first leaf, whose epochs are used up by it; the next is one of the root.
    let mut slots = [0; 3];
    for member in EVERYBODY {
        slots[member] = network.seat(member, &factory).await.slot;
    }
    let cheated = EVERYBODY.into_iter().find(|it| slots[*it] == 0).unwrap();
    let lsp = network.lsp();
    lsp.begin_epoch(&factory, EpochRequest::default())
        .await
        .unwrap();
    moved(&network, &factory, 2).await;
    let old = ExitPath::of(network.wallet(cheated), &factory).await;
    let copy = network.save_lsp().await;
    network.reconnected().await;
    let begun = network.lsp().begin_epoch(&factory, EpochRequest::default());
    let name = begun.await.unwrap();
    assert!(name.starts_with("epoch 1 of node 0"), "{name}");
    moved(&network, &factory, 2 * 3).await;
    network.lsp_pays(cheated, LATER_MSAT).await;
    let mut own_msat = [BEFORE_MSAT; 3];
    own_msat[cheated] += LATER_MSAT;
    for member in EVERYBODY {
        assert_eq!(network.at_rest(member).await.0, own_msat[member]);
    }
    let new = ExitPath::of(network.wallet(cheated), &factory).await;
    let txids = |path: &ExitPath| path.steps.iter().map(|it| it.txid).collect::<Vec<_>>();
    let (old, newest) = (txids(&old), txids(&new));
    assert_eq!(
        (old.len(), old[0]),
        (4, newest[0]),
        "one kickoff of the root"
    );
    assert!(old[1..].iter().all(|txid| !newest.contains(txid)));

    let mut channels = Vec::new();
    for member in EVERYBODY {
        let path = ExitPath::of(network.wallet(member), &factory).await;
        channels.push(path.channel);
    }

    network.lose_lsp().await;
    let cheat = network.lsp_beside(&copy).await;
    let place = format!("{factory}/0");
    cheat.exit().start(&place, ExitMode::Leave).await.unwrap();
    for _ in 0..100 {
        if is_confirmed(&network, newest[1]) {
            break;
        }
        block(&network, &cheat).await;
    }
    assert!(is_confirmed(&network, newest[0]) && is_confirmed(&network, newest[1]));
    // Nobody who looked is made to leave by that.
    assert!(
        newest[2..]
            .iter()
            .all(|txid| !is_confirmed(&network, *txid))
    );

    for member in EVERYBODY {
        network.leave(member, &factory).await;
    }
    for _ in 0..500 {
        let mut done = 0;
        for member in EVERYBODY {
            done += u32::from(network.exit(member).await.stage == "done");
        }
        if done == 3 {
            break;
        }
        block(&network, &cheat).await;
    }
    for member in EVERYBODY {
        let own = [(channels[member], own_msat[member] / 1_000)];
        let coins = network.wallet(member).onchain().balance().unwrap();
        assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
        assert_eq!(network.balance_msat(member), 0);
    }
    assert!(old[1..].iter().all(|txid| !is_confirmed(&network, *txid)));
    assert!(newest.iter().all(|txid| is_confirmed(&network, *txid)));
    cheat.stop().await;
    network.stop().await;
}
