//! A member falls silent at the very end of a ceremony: the LSP builds the factory again with the
//! others, nobody forgets what was signed, and nobody has to be asked twice.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction};
use superscalar_factory::codec::Decode as _;
use superscalar_factory::journal::Record;
use superscalar_sdk::store::Store;
use superscalar_sdk::{BuildRequest, Event, FactoryInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};

const SILENT: usize = 0;
const LATE: usize = 1;
const OTHER: usize = 2;
/// Long enough for a busy machine, waited for once.
const ROUND_SECONDS: u16 = 20;
/// After which an unconfirmed funding is reported.
const UNFUNDED_AFTER_BLOCKS: u32 = 144;

async fn info(network: &TestNetwork, member: usize, factory: &str) -> Option<FactoryInfo> {
    let all = network.wallet(member).factories().list().await.unwrap();
    all.into_iter().find(|it| it.factory == factory)
}

async fn phase(network: &TestNetwork, member: usize, factory: &str) -> String {
    let info = info(network, member, factory).await;
    info.map_or_else(String::new, |it| it.phase)
}

async fn lsp_phase(network: &TestNetwork, factory: &str) -> String {
    let all = network.lsp().factories().await.unwrap();
    let ours = all.into_iter().find(|it| it.factory == factory);
    ours.map_or_else(String::new, |it| it.phase)
}

/// The funding transactions of all attempts an LSP has made terms for.
fn fundings(store: &Store) -> Vec<Transaction> {
    let mut found = BTreeMap::new();
    for stream in store.streams().unwrap() {
        for stored in store.records(&stream).unwrap() {
            if let Ok(Record::LspTerms(terms)) = Record::from_bytes(&stored.record, "record") {
                found.insert(terms.terms.header.attempt, terms.funding);
            }
        }
    }
    found.into_values().collect()
}

fn coins(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().map(|input| input.previous_output).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_silent_at_the_end_holds_up_nobody() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(3).await;
    // Coins to choose from: only on purpose does the next attempt spend one of the last.
    network.fund_lsp(&[1_000_000_000; 8]).await;
    let request = BuildRequest {
        round_seconds: ROUND_SECONDS,
        ..regtest_factory(3)
    };
    network.all_waiting(3).await;
    // Who asked for more is not invited to less.
    let less = BuildRequest {
        capacity_sat: 499_999,
        ..request.clone()
    };
    let refused = network.lsp().create_factory(less).await.unwrap_err();
    assert_eq!(refused.code(), "not_enough_members");
    // More than the LSP has: nobody is asked, and everybody waits on.
    let all_sat = 9_000_000_000;
    let more = BuildRequest {
        capacity_sat: all_sat / 3,
        stock_sat: 1,
        ..request.clone()
    };
    let refused = network.lsp().create_factory(more).await.unwrap_err();
    let funds = [("needed_sat", all_sat + 3), ("available_sat", all_sat)];
    assert_eq!(refused.code(), "insufficient_funds");
    assert_eq!(
        refused.fields(),
        funds.map(|(key, sat)| (key, sat.to_string()))
    );
    assert_eq!(network.lsp().waiting().await.unwrap().len(), 3);

    // One member is late with its channel, so that the root cannot be signed yet.
    let wires: Vec<_> = network.members.iter().map(|it| &it.wire).collect();
    wires[LATE].to_member.hold();
    let first = network.lsp().create_factory(request).await.unwrap();
    network
        .wait("the paths to be signed", async || {
            let opening = lsp_phase(&network, &first).await == "opening";
            if !opening {
                wires[LATE].to_member.release();
            }
            opening
        })
        .await;
    network
        .wait("the others to have signed the root", async || {
            let silent = phase(&network, SILENT, &first).await;
            let other = phase(&network, OTHER, &first).await;
            [silent, other] == ["committed", "committed"]
        })
        .await;
    // Another hears nothing from now on: it will not acknowledge the root's signature.
    wires[SILENT].to_member.hold();
    wires[LATE].to_member.pass();
    network
        .wait("the others to have everything", async || {
            let late = phase(&network, LATE, &first).await;
            let other = phase(&network, OTHER, &first).await;
            late == "funding" && other == "funding"
        })
        .await;
    assert_eq!(lsp_phase(&network, &first).await, "acknowledging");

    // The LSP waits for one round, and builds with the others without anybody asking.
    let second = format!("{first}-1");
    network
        .wait("the next attempt to be published", async || {
            lsp_phase(&network, &second).await == "published"
        })
        .await;
    assert_eq!(lsp_phase(&network, &first).await, "ended");
    network.mine(1).await;
    network
        .wait("the next attempt to be active", async || {
            let late = info(&network, LATE, &second).await;
            let other = info(&network, OTHER, &second).await;
            late.is_some_and(|it| it.active) && other.is_some_and(|it| it.active)
        })
        .await;
    network.lsp_pays(LATE, 200_000_000).await;
    network.pay(LATE, OTHER, 50_000_000).await;
    for member in [LATE, OTHER] {
        assert_eq!(phase(&network, member, &first).await, "dormant");
    }

    // Back again, the silent one learns how it stands and takes another place when it asks for it.
    wires[SILENT].to_member.pass();
    network
        .wait("the silent one to hear of it", async || {
            phase(&network, SILENT, &first).await == "dormant"
        })
        .await;
    network
        .wallet(SILENT)
        .factories()
        .join(500_000)
        .await
        .unwrap();
    network.all_waiting(1).await;

    // Everyone still holds the whole path of what was given up, is told that it is not funded, and
    // left nothing because of it.
    network.chain.mine(UNFUNDED_AFTER_BLOCKS).unwrap();
    network.sync().await;
    for member in [SILENT, LATE, OTHER] {
        assert_eq!(phase(&network, member, &first).await, "unfunded");
        let wallet = network.wallet(member);
        let exits = wallet.exit().status().await.unwrap();
        assert!(exits.is_empty(), "{exits:?}");
        let page = wallet.events(0, 1_000).unwrap();
        let told = |wanted: fn(&Event) -> Option<&String>| {
            let events = page.events.iter().map(|stored| &stored.event);
            events.filter_map(wanted).filter(|it| **it == first).count()
        };
        let dormant = told(|event| match event {
            Event::FactoryDormant { factory, .. } => Some(factory),
            _ => None,
        });
        let unfunded = told(|event| match event {
            Event::FactoryUnfunded { factory } => Some(factory),
            _ => None,
        });
        assert_eq!((dormant, unfunded), (1, 1));
    }
    for member in [LATE, OTHER] {
        let tree = network.wallet(member).factories().tree(&first).await;
        assert!(!tree.unwrap().is_empty());
        network.restart(member).await;
        assert_eq!(phase(&network, member, &first).await, "unfunded");
        assert!(info(&network, member, &second).await.unwrap().active);
    }

    // What was given up and what was built instead can never both confirm.
    let store = network.lsp_store().await;
    let fundings = fundings(&store);
    assert_eq!(fundings.len(), 2);
    let (given_up, built) = (coins(&fundings[0]), coins(&fundings[1]));
    assert!(given_up.iter().any(|coin| built.contains(coin)));
    drop(store);
    network.stop().await;
}
