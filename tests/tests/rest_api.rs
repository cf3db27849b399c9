//! The server's REST API as operators meet it: what it lists adds up, what is wrong with a request
//! is named by its field and changes nothing.

use std::str::FromStr;

use bitcoin::OutPoint;
use serde_json::{Value, json};
use superscalar_sdk::{Balance, ChannelInfo};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::LspProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::stage::{LSP_COIN_SAT, Stage, wait};
use superscalar_tests::wire::{ADD_AND_COMMIT_BYTES, REVOKE_BYTES};

/// Where a body is posted, the body, and what it is answered: status, code and field.
type Refused<'a> = (&'a str, String, i32, &'a str, Option<&'a str>);

fn assert_refused(lsp: &LspProcess, refused: Refused<'_>) {
    let (path, body, status, code, field) = refused;
    let shown: String = body.chars().take(100).collect();
    let request = bitreq::post(lsp.url(path)).with_body(body);
    let answer = lsp.raw(request, Some(&lsp.authorization())).unwrap();
    assert_eq!(answer.status, status, "{shown}: {answer:?}");
    assert_eq!(answer.body["code"], code, "{shown}: {answer:?}");
    assert_eq!(answer.body["field"].as_str(), field, "{shown}: {answer:?}");
    assert!(answer.body["message"].is_string() && answer.body["retryable"].is_boolean());
}

/// All channels, in an order that does not change.
fn channels(lsp: &LspProcess) -> Vec<ChannelInfo> {
    let mut channels = lsp.channels().unwrap();
    channels.sort_unstable_by(|a, b| a.peer.cmp(&b.peer));
    channels
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let chain = RegtestNode::new().unwrap();
    let mut lsp = LspProcess::start(&chain).unwrap();
    let token = lsp.authorization();
    let good = json!({"members": 4, "capacity_sat": 500_000, "life_blocks": 2_000});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let factories = "/v1/factories";
    let posts = [
        (factories, "{".to_owned(), 400, "invalid_json", None),
        (factories, "[]".to_owned(), 400, "invalid_body", None),
        (
            factories,
            "{}".to_owned(),
            400,
            "invalid_body",
            Some("members"),
        ),
        (
            factories,
            with("mambers", json!(4)),
            400,
            "invalid_body",
            Some("mambers"),
        ),
        (
            factories,
            with("members", json!(1)),
            400,
            "invalid_terms",
            Some("shape"),
        ),
        (
            factories,
            with("members", json!(129)),
            400,
            "invalid_terms",
            Some("shape"),
        ),
        (
            factories,
            with("members", json!(70_000)),
            400,
            "invalid_body",
            Some("members"),
        ),
        (
            factories,
            with("capacity_sat", json!(-1)),
            400,
            "invalid_body",
            Some("capacity_sat"),
        ),
        (
            factories,
            with("shape", json!([1, 4])),
            400,
            "invalid_terms",
            Some("shape"),
        ),
        (
            factories,
            with("shape", json!([2, 1])),
            400,
            "invalid_terms",
            Some("shape"),
        ),
        (
            factories,
            with("preset", json!("slow")),
            400,
            "invalid_body",
            Some("preset"),
        ),
        (
            factories,
            with("life_blocks", json!(u32::MAX)),
            400,
            "invalid_terms",
            Some("life_blocks"),
        ),
        (factories, good.to_string(), 409, "not_enough_members", None),
        (factories, " ".repeat(70_000), 413, "body_too_large", None),
        (
            "/v1/channels",
            json!({"peer": "x", "capacity_sat": 1}).to_string(),
            400,
            "invalid_argument",
            Some("peer"),
        ),
        (
            "/v1/invoices",
            json!({"amount_msat": 1}).to_string(),
            409,
            "no_active_channel",
            None,
        ),
        (
            "/v1/payments",
            json!({"invoice": "lnbcrt1"}).to_string(),
            400,
            "invalid_invoice",
            Some("invoice"),
        ),
    ];
    for refused in posts {
        assert_refused(&lsp, refused);
    }
    for (path, status, code) in [
        ("/v1/nothing", 404, "unknown_route"),
        ("/", 404, "unknown_route"),
        ("/v1/stop", 405, "wrong_method"),
        ("/v1/factories/ab", 404, "unknown_factory"),
        ("/v1/factories/ab/tree", 404, "unknown_factory"),
        ("/v1/payments/ab", 404, "unknown_payment"),
        ("/v1/events?after=x", 400, "invalid_argument"),
    ] {
        let answer = lsp.raw(bitreq::get(lsp.url(path)), Some(&token)).unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert_eq!(answer.body["code"], code, "{path}: {answer:?}");
    }
    let wrong = format!("Bearer {}", "0".repeat(64));
    for given in [None, Some("Bearer "), Some(wrong.as_str())] {
        for path in ["/v1/status", "/v1/nothing"] {
            let answer = lsp.raw(bitreq::get(lsp.url(path)), given).unwrap();
            assert_eq!(
                (answer.status, &answer.body["code"]),
                (401, &json!("unauthorized"))
            );
        }
    }
    assert!(lsp.factories().unwrap().is_empty());
    assert!(lsp.channels().unwrap().is_empty());
    // A waiting call does not hold up the end.
    let url = lsp.url("/v1/events?after=1000&wait_ms=60000");
    let waiting = std::thread::spawn(move || {
        bitreq::get(url)
            .with_header("Authorization", token)
            .with_timeout(60)
            .send()
    });
    lsp.program().terminate().unwrap();
    assert!(lsp.program().ended().unwrap().success());
    let _ = waiting.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_for_an_epoch_are_refused_and_begin_none() {
    let stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.quiet().await;
    let lsp = &stage.lsp;
    let state = || {
        let events = lsp.events(0, 0).unwrap().events;
        (lsp.factories().unwrap(), channels(lsp), events)
    };
    let before = state();

    let path = format!("/v1/factories/{factory}/epoch");
    let place = |place: Value| json!({"slot": 0, "places": [place]});
    let cut = |wish: Value| place(json!({"slot": 0, "wish": wish}));
    for (body, field) in [
        (json!({}), "slot"),
        (json!({"slot": null}), "slot"),
        (json!({"slot": "0"}), "slot"),
        (json!({"slot": -1}), "slot"),
        (json!({"slot": 65_536}), "slot"),
        (json!({"slot": 0, "lot": 0}), "lot"),
        (json!({"slot": 0, "places": 1}), "places"),
        (place(json!({"slot": 0})), "places[0].wish"),
        (place(json!({"wish": "merge"})), "places[0].slot"),
        (
            place(json!({"slot": 0, "wish": "merge", "lot": 0})),
            "places[0].lot",
        ),
        (cut(json!("grow")), "places[0].wish"),
        (
            cut(json!({"capacity_sat": -1})),
            "places[0].wish.capacity_sat",
        ),
        (
            cut(json!({"capacity_sat": "1"})),
            "places[0].wish.capacity_sat",
        ),
    ] {
        let path = path.as_str();
        assert_refused(
            lsp,
            (path, body.to_string(), 400, "invalid_body", Some(field)),
        );
    }
    // A place that is not there, and more than there is in one: 500,000 and 100,000 sat of stock.
    let stray = place(json!({"slot": 2, "wish": "merge"}));
    for (body, code, field) in [
        (json!({"slot": 2}), "no_such_place", "slot"),
        (stray, "no_such_place", "slot"),
        (
            cut(json!({"capacity_sat": 600_001})),
            "place_not_cut_so",
            "places",
        ),
    ] {
        let path = path.as_str();
        assert_refused(lsp, (path, body.to_string(), 400, code, Some(field)));
    }
    let good = json!({"slot": 0}).to_string();
    for (path, body, status, code, field) in [
        (path.as_str(), "{", 400, "invalid_json", None),
        (path.as_str(), "[0]", 400, "invalid_body", None),
        (
            "/v1/factories/00/epoch",
            good.as_str(),
            404,
            "unknown_factory",
            Some("factory"),
        ),
    ] {
        assert_refused(lsp, (path, body.to_owned(), status, code, field));
    }

    assert_eq!(state(), before);
    assert!(stage.chain.mempool().unwrap().is_empty());
    let abandon = bitreq::delete(lsp.url(&path));
    let none = lsp.raw(abandon, Some(&lsp.authorization())).unwrap();
    assert_eq!((none.status, &none.body["code"]), (409, &json!("no_epoch")));
    stage.lsp_pays(0, 1_000_000).await;
}

/// The balance is the sum of what channels and coins are listed with.
fn added_up(lsp: &LspProcess) -> Balance {
    let balance = lsp.balance().unwrap();
    let listed_msat: u64 = channels(lsp).iter().map(|it| it.balance_msat).sum();
    assert_eq!(balance.spendable_msat + balance.reserved_msat, listed_msat);
    let coins = lsp.coins().unwrap();
    assert_eq!(balance.onchain_sat, coins.spendable_sat);
    let waiting_sat = coins.reserved_sat + coins.pending_sat;
    assert_eq!(balance.onchain_pending_sat, waiting_sat);
    balance
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_balance_is_the_sum_of_all_that_is_listed() {
    const PAID_MSAT: [u64; 2] = [100_000_000, 60_000_700];
    let stage = Stage::set(2).await;
    let first = Balance {
        onchain_sat: LSP_COIN_SAT,
        ..Balance::default()
    };
    assert_eq!(added_up(&stage.lsp), first);

    // Its one coin pays for the factory, and comes back without that in the next block.
    let factory = stage.published(&regtest_factory(2)).await;
    let funding = stage.funding(0, &factory);
    let tx = stage.chain.raw_tx(funding.txid).unwrap().unwrap();
    let outputs = (0..).zip(&tx.output);
    let change = outputs.filter(|(vout, _)| *vout != funding.vout);
    let change_sat: u64 = change.map(|(_, output)| output.value.to_sat()).sum();
    let published = added_up(&stage.lsp);
    let coins = (published.onchain_sat, published.onchain_pending_sat);
    assert_eq!(coins, (0, change_sat));
    stage.finish(&factory).await;
    let active = added_up(&stage.lsp);
    let coins = (active.onchain_sat, active.onchain_pending_sat);
    assert_eq!(coins, (change_sat, 0));
    assert_eq!(active.spendable_msat + active.reserved_msat, 1_000_000_000);

    for (member, paid_msat) in PAID_MSAT.into_iter().enumerate() {
        stage.lsp_pays(member, paid_msat).await;
    }
    stage.quiet().await;
    let paid = added_up(&stage.lsp);
    let left_msat = 1_000_000_000 - PAID_MSAT.iter().sum::<u64>();
    assert_eq!(paid.spendable_msat + paid.reserved_msat, left_msat);
    assert_eq!(paid.onchain_sat, change_sat);
    // What it can receive is what its members can send.
    wait("both sides to agree", || {
        let wallets = stage.wallets.iter();
        let sendable: u64 = wallets.map(|it| it.balance().unwrap().spendable_msat).sum();
        stage.lsp.balance().unwrap().inbound_msat == sendable && sendable > 0
    })
    .await;
}

/// A member breaks off with a payment of the server's in its hands: the server goes on chain by
/// itself, and says how far it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_of_the_server_is_listed_with_its_place_and_stage() {
    let stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.quiet().await;
    let (lsp, wallet) = (&stage.lsp, &stage.wallets[0]);
    assert_eq!(lsp.exits().unwrap(), []);

    let invoice = wallet.receive(40_000_000, "").unwrap();
    let to_member = &stage.wires[0].to_member;
    to_member.hold();
    lsp.pay(&invoice).unwrap();
    to_member.release_once(ADD_AND_COMMIT_BYTES).await;
    to_member.until_held(REVOKE_BYTES).await;
    assert_eq!(lsp.exits().unwrap(), []);
    wallet.exit_start(&factory).unwrap();
    wait("the server to leave as well", || {
        !lsp.exits().unwrap().is_empty()
    })
    .await;

    let peer = wallet.status().unwrap().node_id;
    let seats = lsp.factory(&factory).unwrap().seats;
    let seat = seats.iter().find(|it| it.peer == peer).unwrap();
    let exits = lsp.exits().unwrap();
    let [exit] = &exits[..] else {
        panic!("{exits:?}");
    };
    assert_eq!(exit.factory, format!("{factory}/{}", seat.slot));
    let nodes = wallet.tree(&factory).unwrap();
    let path = nodes.iter().flat_map(|node| &node.transactions);
    let steps = path.filter(|tx| tx.role != "distribution").count();
    assert_eq!((exit.stage.as_str(), exit.of as usize), ("tree", steps));
    assert_eq!((exit.step, exit.leaf_height), (1, None));
    assert!(!exit.reason.is_empty() && !exit.waiting.is_empty());

    let channel = OutPoint::from_str(seat.channel.as_ref().unwrap()).unwrap();
    let mut last = exit.clone();
    for _ in 0..100 {
        if last.stage != "tree" {
            break;
        }
        stage.chain.mine(1).unwrap();
        lsp.sync().unwrap();
        let now = lsp.exits().unwrap().remove(0);
        assert!(now.stage != "tree" || now.step >= last.step, "{now:?}");
        last = now;
    }
    assert_eq!(last.stage, "closing", "{last:?}");
    let leaf = stage.chain.confirmed_at(channel.txid).unwrap();
    assert!(leaf.is_some() && last.leaf_height == leaf, "{last:?}");
    assert_eq!((&last.factory, &last.reason), (&exit.factory, &exit.reason));
}
