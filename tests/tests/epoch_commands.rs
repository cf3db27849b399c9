//! New epochs as operators and users ask for them: over the server's API and on the wallet's command
//! line.

use serde_json::{Value, json};
use superscalar_sdk::{BuildRequest, EpochRequest, Event, PlaceRequest, PlaceWish, SeatInfo};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::LspProcess;
use superscalar_tests::stage::{Stage, wait};

const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 200_000;
/// Less than the channel has now: nothing that a wallet takes without being told to.
const LESS_SAT: u64 = 300_000;

fn delete(lsp: &LspProcess, factory: &str, authorization: Option<&str>) -> (i32, Value) {
    let url = lsp.url(&format!("/v1/factories/{factory}/epoch"));
    let answer = lsp.raw(bitreq::delete(url), authorization).unwrap();
    (answer.status, answer.body)
}

/// The wallet's place.
fn seat(stage: &Stage, factory: &str) -> SeatInfo {
    let all = stage.wallets[0].factories().unwrap();
    let info = all.into_iter().find(|it| it.factory == factory).unwrap();
    info.seats.into_iter().next().unwrap()
}

/// Why each epoch that came to nothing did.
fn ended(stage: &Stage) -> Vec<String> {
    let events = stage.lsp.events(0, 0).unwrap().events.into_iter();
    let reasons = events.filter_map(|it| match it.event {
        Event::EpochEnded { reason, .. } => Some(reason),
        _ => None,
    });
    reasons.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_begun_abandoned_and_consented_to_by_command() {
    let stage = Stage::set(2).await;
    let request = BuildRequest {
        stock_sat: STOCK_SAT,
        ..regtest_factory(2)
    };
    let factory = stage.published(&request).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.quiet().await;
    let token = stage.lsp.authorization();
    let token = Some(token.as_str());

    // What cannot be abandoned is refused by its name, and nothing without the token.
    let (status, body) = delete(&stage.lsp, &factory, token);
    assert_eq!((status, &body["code"]), (409, &json!("no_epoch")));
    let (status, body) = delete(&stage.lsp, "00", token);
    let unknown = json!("unknown_factory");
    assert_eq!((status, &body["code"]), (404, &unknown));

    // A member is silent; the server gives the epoch up, and payments go on.
    stage.wires[0].to_lsp.hold();
    let begun = stage.lsp.begin_epoch(&factory, &EpochRequest::default());
    assert!(begun.unwrap().starts_with("epoch 1 of node"));
    assert_eq!(delete(&stage.lsp, &factory, None).0, 401);
    assert!(ended(&stage).is_empty());
    assert_eq!(delete(&stage.lsp, &factory, token), (204, Value::Null));
    assert_eq!(delete(&stage.lsp, &factory, token).0, 409);
    wait("the epoch to end", || ended(&stage).len() == 1).await;
    stage.wires[0].to_lsp.pass();
    wait("the place to be at rest no more", || {
        seat(&stage, &factory).moving.is_none()
    })
    .await;
    stage.lsp_pays(0, 20_000_000).await;
    stage.quiet().await;

    // A smaller channel is refused until the user agrees to one.
    let slot = seat(&stage, &factory).slot;
    let smaller = EpochRequest {
        slot,
        places: vec![PlaceRequest {
            slot,
            wish: PlaceWish::CapacitySat(LESS_SAT),
        }],
    };
    stage.lsp.begin_epoch(&factory, &smaller).unwrap();
    wait("the wallet to refuse", || ended(&stage).len() == 2).await;
    assert_eq!(seat(&stage, &factory).capacity_sat, CAPACITY_SAT);
    stage.wallets[0].consent(&factory, LESS_SAT).unwrap();
    stage.lsp.begin_epoch(&factory, &smaller).unwrap();
    wait("the place to move", || {
        assert_eq!(ended(&stage).len(), 2);
        let seat = seat(&stage, &factory);
        seat.version == 1 && seat.moving.is_none()
    })
    .await;
    let seat = seat(&stage, &factory);
    assert_eq!(seat.capacity_sat, LESS_SAT);
    assert_eq!(seat.stock_sat, CAPACITY_SAT + STOCK_SAT - LESS_SAT);
    stage.lsp_pays(0, 10_000_000).await;
    stage.quiet().await;
    assert!(stage.chain.mempool().unwrap().is_empty());
}
