//! The two programs as users meet them: processes, REST calls, commands.

use std::time::Duration;

use bitcoin::{Amount, OutPoint, Transaction};
use serde_json::{Value, json};
use superscalar_sdk::{ExitMode, PaymentStatus};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::{CliFailure, LspProcess, WalletProcess};
use superscalar_tests::regtest::{RegtestNode, wait_until};

const LIMIT: Duration = Duration::from_secs(120);

fn wait(what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, LIMIT, condition).unwrap();
}

fn fund(chain: &RegtestNode, lsp: &LspProcess, amount: Amount) {
    let address: bitcoin::Address<_> = lsp.address().unwrap().parse().unwrap();
    let script = address.assume_checked().script_pubkey();
    chain.fund(&script, amount).unwrap();
    lsp.sync().unwrap();
    assert_eq!(lsp.coins().unwrap().spendable_sat, amount.to_sat());
}

/// The code of a command's error.
fn code(failed: anyhow::Error) -> String {
    failed.downcast::<CliFailure>().unwrap().code
}

#[test]
fn four_wallets_build_a_factory_and_pay_each_other() {
    let chain = RegtestNode::new().unwrap();
    let mut lsp = LspProcess::start(&chain).unwrap();
    fund(&chain, &lsp, Amount::from_sat(1_000_000_000));
    let mut wallets: Vec<WalletProcess> = (0..4)
        .map(|_| WalletProcess::start(&chain, &lsp.uri).unwrap())
        .collect();
    assert_eq!(
        code(wallets[0].receive(1_000, "").unwrap_err()),
        "no_active_channel"
    );
    for wallet in &wallets {
        wallet.join(500_000).unwrap();
    }
    wait("all wallets to wait for a place", || {
        lsp.waiting().unwrap().len() == 4
    });
    let factory = lsp.create_factory(&regtest_factory(4)).unwrap();
    wait("the funding to be published", || {
        let info = lsp.factory(&factory).unwrap();
        assert_eq!(info.ended, None);
        info.phase == "published"
    });
    chain.mine(1).unwrap();
    wait("everyone to be active", || {
        let of_wallets = wallets.iter().all(|it| it.is_active(&factory).unwrap());
        of_wallets && lsp.factory(&factory).unwrap().active
    });
    assert_eq!(lsp.tree(&factory).unwrap().len(), 3);
    assert_eq!(wallets[0].tree(&factory).unwrap().len(), 2);
    assert_eq!(lsp.channels().unwrap().len(), 4);

    // The LSP gives the first member something to spend, which pays the second.
    let invoice = wallets[0].receive(200_000_000, "start").unwrap();
    let hash = lsp.pay(&invoice).unwrap();
    wait("the LSP's payment to arrive", || {
        lsp.payment(&hash).unwrap().status == PaymentStatus::Succeeded
            && wallets[0].payment(&hash).unwrap().status == PaymentStatus::Succeeded
    });
    let invoice = wallets[1].receive(50_000_000, "coffee").unwrap();
    let payment = wallets[0].pay(&invoice).unwrap();
    // 1,000 msat and a ten-thousandth.
    assert_eq!(payment.fee_msat, Some(6_000));
    wait("the payment to arrive", || {
        wallets[1].payment(&payment.payment_hash).unwrap().status == PaymentStatus::Succeeded
    });
    assert_eq!(code(wallets[0].send(&invoice).unwrap_err()), "already_paid");
    let held = |wallet: &WalletProcess| {
        let balance = wallet.balance().unwrap();
        balance.spendable_msat + balance.reserved_msat
    };
    wait("the balances to settle", || {
        let all: Vec<u64> = wallets.iter().map(held).collect();
        all == [149_994_000, 50_000_000, 0, 0]
    });
    let events = wallets[1].events(0).unwrap().events;
    let kinds: Vec<Value> = events
        .iter()
        .map(|it| json!(it.event)["type"].clone())
        .collect();
    assert_eq!(
        kinds,
        [
            "factory_joined",
            "factory_complete",
            "factory_active",
            "payment_received"
        ]
    );
    let shown = wallets[0].cli_text(&["factories"]).unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains(&factory));

    // A killed wallet and a killed LSP come back with what they had.
    wallets[1].kill();
    assert_eq!(code(wallets[1].status().unwrap_err()), "not_running");
    lsp.kill();
    lsp.restart().unwrap();
    wallets[1].restart().unwrap();
    wait("everyone to be connected again", || {
        let connected = |it: &WalletProcess| it.status().unwrap().lsp_connected;
        let usable = lsp.channels().unwrap().iter().all(|it| it.usable);
        wallets.iter().all(connected) && usable
    });
    let invoice = wallets[2].receive(10_000_000, "back").unwrap();
    wallets[1].pay(&invoice).unwrap();

    // Leaving can be planned and begun without the LSP.
    assert!(wallets[0].connect().unwrap().lsp_connected);
    lsp.kill();
    wait("the LSP to be missed", || {
        !wallets[0].status().unwrap().lsp_connected
    });
    assert_eq!(code(wallets[0].connect().unwrap_err()), "peer_unreachable");
    let plan = wallets[0].exit_plan(&factory).unwrap();
    assert!(plan.worth_it && plan.coins_needed_sat == 0, "{plan:?}");
    assert_eq!(
        code(wallets[0].exit_status(&factory).unwrap_err()),
        "no_exit"
    );
    assert_eq!(wallets[0].exit_start(&factory).unwrap().factory, factory);
    assert_eq!(serde_json::to_value(ExitMode::Leave).unwrap(), "leave");
    wallets[0].stop().unwrap();
}

/// What wallets do by command who have no place in a factory, or not enough of one.
#[test]
fn a_channel_is_bought_with_the_payment_that_needs_it_and_closed() {
    let chain = RegtestNode::new().unwrap();
    let lsp = LspProcess::start(&chain).unwrap();
    fund(&chain, &lsp, Amount::from_sat(1_000_000_000));
    let wallet = || WalletProcess::start(&chain, &lsp.uri).unwrap();
    let buyer = wallet();
    assert_eq!(buyer.cli(&["channels"]).unwrap(), json!([]));
    let nothing = buyer.cli_text(&["channels"]).unwrap();
    assert_eq!(nothing.stdout, b"none\n");
    wait("the price list", || {
        buyer
            .cli(&["quote-channel", "--amount-msat", "50000000"])
            .is_ok()
    });
    let quote = buyer
        .cli(&["quote-channel", "--amount-msat", "50000000"])
        .unwrap();
    let fee_msat = quote["fee_msat"].as_u64().unwrap();
    let buy = |cap: u64| {
        let cap = cap.to_string();
        let amount = ["receive", "--amount-msat", "50000000"];
        buyer.cli(&[amount.as_slice(), &["--open-channel-for", &cap]].concat())
    };
    assert_eq!(code(buy(fee_msat - 1).unwrap_err()), "jit_fee_above_cap");
    let bought = buy(fee_msat).unwrap();
    assert_eq!(bought["quote"]["fee_msat"], fee_msat);

    let (payer, neighbour) = (wallet(), wallet());
    for wallet in [&payer, &neighbour] {
        wallet.join(500_000).unwrap();
    }
    wait("both to wait for a place", || {
        lsp.waiting().unwrap().len() == 2
    });
    let factory = lsp.create_factory(&regtest_factory(2)).unwrap();
    wait("the funding to be published", || {
        lsp.factory(&factory).unwrap().phase == "published"
    });
    chain.mine(1).unwrap();
    wait("the payer to be active", || {
        payer.is_active(&factory).unwrap() && lsp.factory(&factory).unwrap().active
    });
    let invoice = payer.receive(200_000_000, "start").unwrap();
    let hash = lsp.pay(&invoice).unwrap();
    wait("the payer to have something", || {
        payer.payment(&hash).unwrap().status == PaymentStatus::Succeeded
    });
    let paid = payer.pay(bought["invoice"].as_str().unwrap()).unwrap();
    wait("the payment to arrive less the fee", || {
        let payment = buyer.payment(&paid.payment_hash).unwrap();
        payment.status == PaymentStatus::Succeeded && payment.fee_msat == Some(fee_msat)
    });
    chain.mine(6).unwrap();
    let channel = || buyer.cli(&["channels"]).unwrap();
    wait("the channel to be usable", || {
        channel()[0]["usable"] == json!(true)
    });
    let ours_msat = 50_000_000 - fee_msat;
    assert_eq!(channel()[0]["balance_msat"], ours_msat);
    let id = channel()[0]["channel"].as_str().unwrap().to_owned();
    let unknown = buyer.cli(&["close-channel", &"00".repeat(32)]);
    assert_eq!(code(unknown.unwrap_err()), "no_channel");
    buyer.cli(&["close-channel", &id]).unwrap();
    // Both sides sweep what is theirs.
    let mempool = || -> Vec<Transaction> {
        let txids = chain.mempool().unwrap().into_iter();
        txids
            .filter_map(|txid| chain.raw_tx(txid).unwrap())
            .collect()
    };
    wait("the closing in the mempool", || !mempool().is_empty());
    let closing = mempool().remove(0);
    // The LSP opened the channel and pays for closing it.
    let ours = Amount::from_sat(ours_msat / 1_000);
    let vout = closing.output.iter().position(|out| out.value == ours);
    let own = OutPoint::new(closing.compute_txid(), vout.unwrap() as u32);
    chain.mine(6).unwrap();
    let mut sweep = None;
    wait("the sweep", || {
        let spends = |tx: &Transaction| tx.input.iter().any(|it| it.previous_output == own);
        sweep = mempool().into_iter().find(spends);
        sweep.is_some()
    });
    let sweep = sweep.unwrap();
    chain.mine(1).unwrap();
    buyer.sync().unwrap();
    let arrived: Amount = sweep.output.iter().map(|out| out.value).sum();
    assert_eq!(buyer.coins().unwrap().spendable_sat, arrived.to_sat());
    assert!(arrived < ours && ours < arrived + Amount::from_sat(2_000));
    assert_eq!(channel(), json!([]));
}

#[test]
fn commands_that_wait_return_when_it_is_done() {
    let chain = RegtestNode::new().unwrap();
    let mut lsp = LspProcess::start(&chain).unwrap();
    fund(&chain, &lsp, Amount::from_sat(1_000_000_000));
    let wallets: Vec<WalletProcess> = (0..2)
        .map(|_| WalletProcess::start(&chain, &lsp.uri).unwrap())
        .collect();

    // `join --wait` is there before the factory, and back when payments can be received in it.
    let info = std::thread::scope(|scope| {
        let joining = scope.spawn(|| wallets[0].join_and_wait(500_000));
        wallets[1].join(500_000).unwrap();
        wait("both wallets to wait for a place", || {
            assert!(!joining.is_finished(), "it did not wait");
            lsp.waiting().unwrap().len() == 2
        });
        let factory = lsp.create_factory(&regtest_factory(2)).unwrap();
        wait("the funding to be published", || {
            lsp.factory(&factory).unwrap().phase == "published"
        });
        assert!(!joining.is_finished(), "the factory does not exist yet");
        chain.mine(1).unwrap();
        joining.join().unwrap().unwrap()
    });
    let factory = info.factory.clone();
    assert!(info.active && info.phase == "active", "{info:?}");
    assert_eq!(info.seats[0].capacity_sat, 500_000);
    wait("the LSP to have noticed as well", || {
        lsp.factory(&factory).unwrap().active
    });
    let invoice = wallets[0].receive(200_000_000, "at once").unwrap();
    let hash = lsp.pay(&invoice).unwrap();
    wait("the payment to arrive", || {
        wallets[0].payment(&hash).unwrap().status == PaymentStatus::Succeeded
    });

    // `exit start --wait` is back when everything is in the wallet, and so is who looks on.
    lsp.kill();
    let plan = wallets[0].exit_plan(&factory).unwrap();
    let (exit, watched) = std::thread::scope(|scope| {
        let leaving = scope.spawn(|| wallets[0].exit_and_wait(&factory));
        wait("the exit to have begun", || {
            wallets[0].exit_status(&factory).is_ok()
        });
        let watching = scope.spawn(|| wallets[0].watch_exit(&factory));
        for _ in 0..400 {
            let done = wallets[0].exit_status(&factory).unwrap().stage == "done";
            if done {
                break;
            }
            assert!(!leaving.is_finished() && !watching.is_finished());
            chain.mine(1).unwrap();
            wallets[0].sync().unwrap();
        }
        let exit = leaving.join().unwrap().unwrap();
        (exit, watching.join().unwrap().unwrap())
    });
    assert_eq!((exit.stage.as_str(), exit.pending_sat), ("done", 0));
    assert_eq!(exit, watched);
    let leaf = exit.leaf_height.unwrap();
    assert!(leaf < chain.height().unwrap());
    let coins = wallets[0].coins().unwrap().spendable_sat;
    // The sweep's fee is by estimate.
    assert!(plan.arriving_sat > 190_000, "{plan:?}");
    let expected = plan.arriving_sat - 2_000..=200_000;
    assert!(expected.contains(&coins), "{coins}, not in {expected:?}");
    assert_eq!(
        code(wallets[1].watch_exit(&factory).unwrap_err()),
        "no_exit"
    );
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
    for (path, body, status, code, field) in posts {
        let shown: String = body.chars().take(100).collect();
        let answer = lsp
            .raw(bitreq::post(lsp.url(path)).with_body(body), Some(&token))
            .unwrap();
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert_eq!(answer.body["code"], code, "{shown}: {answer:?}");
        assert_eq!(answer.body["field"].as_str(), field, "{shown}: {answer:?}");
        assert!(answer.body["message"].is_string() && answer.body["retryable"].is_boolean());
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

#[test]
fn a_wallet_runs_once_and_says_what_is_wrong() {
    let chain = RegtestNode::new().unwrap();
    let lsp = LspProcess::start(&chain).unwrap();
    let mut wallet = WalletProcess::start(&chain, &lsp.uri).unwrap();
    let bitcoind = format!("{}:{}", chain.rpc_host(), chain.rpc_port());
    let again = [
        "run",
        "--network",
        "regtest",
        "--bitcoind",
        &bitcoind,
        "--rpc-user",
        chain.rpc_user(),
        "--rpc-password",
        chain.rpc_password(),
        "--lsp",
        &lsp.uri,
    ];
    assert_eq!(code(wallet.cli(&again).unwrap_err()), "storage_locked");
    let unknown_hash = "00".repeat(32);
    for (args, expected) in [
        (&["create"][..], "wallet_exists"),
        (&["payment", "zz"], "unknown_payment"),
        (&["payment", &unknown_hash], "unknown_payment"),
        (&["send", "lnbcrt1"], "invalid_invoice"),
        (&["receive", "--amount-msat", "1"], "no_active_channel"),
        (&["tree", "ab"], "unknown_factory"),
        (&["exit", "plan", "ab"], "unknown_factory"),
        (&["exit", "start", "ab"], "unknown_factory"),
        (&["exit", "status", "ab"], "no_exit"),
        (&["send-coins", "nowhere", "1000"], "invalid_argument"),
        (
            &[
                "send-coins",
                "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
                "1000",
            ],
            "invalid_argument",
        ),
    ] {
        let failed = wallet
            .cli(args)
            .unwrap_err()
            .downcast::<CliFailure>()
            .unwrap();
        assert_eq!(
            (failed.status, failed.code.as_str()),
            (Some(1), expected),
            "{failed}"
        );
    }
    let output = wallet.cli_text(&["payment", "zz"]).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("error[unknown_payment]") && stderr.contains("hint: "),
        "{stderr}"
    );
    for wrong in [
        &["fly"][..],
        &["join"],
        &["join", "--capacity", "-1"],
        &["send"],
    ] {
        let failed = wallet
            .cli(wrong)
            .unwrap_err()
            .downcast::<CliFailure>()
            .unwrap();
        assert_eq!(failed.status, Some(2), "{failed}");
    }
    assert!(wallet.factories().unwrap().is_empty());

    // The socket of a killed process does not hinder the next one.
    wallet.kill();
    assert!(wallet.directory().join("wallet.sock").exists());
    assert_eq!(code(wallet.status().unwrap_err()), "not_running");
    wallet.restart().unwrap();
    assert_eq!(wallet.sync().unwrap(), chain.height().unwrap());
    wallet.stop().unwrap();
    assert!(!wallet.directory().join("wallet.sock").exists());
}
