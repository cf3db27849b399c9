//! The two programs as users meet them: processes, REST calls, commands.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bitcoin::{Address, Amount, OutPoint, ScriptBuf, Transaction, Txid};
use serde_json::{Value, json};
use superscalar_sdk::{Balance, ExitMode, PaymentStatus};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::{CliFailure, LspProcess, WalletProcess};
use superscalar_tests::regtest::{RegtestNode, wait_until};

const LIMIT: Duration = Duration::from_secs(120);

fn wait(what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, LIMIT, condition).unwrap();
}

fn script(address: &str) -> ScriptBuf {
    let address: Address<_> = address.parse().unwrap();
    address.assume_checked().script_pubkey()
}

fn fund(chain: &RegtestNode, lsp: &LspProcess, amount: Amount) {
    chain
        .fund(&script(&lsp.address().unwrap()), amount)
        .unwrap();
    lsp.sync().unwrap();
    assert_eq!(lsp.coins().unwrap().spendable_sat, amount.to_sat());
}

/// Waits until nothing is pending, and every channel can be used and is told alike by both sides.
fn agreed(lsp: &LspProcess, wallets: &[WalletProcess]) {
    wait("both sides of every channel to agree", || {
        let channels = lsp.channels().unwrap();
        let pending = channels
            .iter()
            .any(|it| it.inbound_htlcs + it.outbound_htlcs > 0);
        let server = lsp.balance().unwrap();
        let balances: Vec<Balance> = wallets.iter().map(|it| it.balance().unwrap()).collect();
        let sendable: u64 = balances.iter().map(|it| it.spendable_msat).sum();
        let receivable: u64 = balances.iter().map(|it| it.inbound_msat).sum();
        let usable = balances.iter().all(|it| it.inbound_msat > 0);
        let same = (server.inbound_msat, server.spendable_msat) == (sendable, receivable);
        !pending && usable && same
    });
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

    // Everybody is killed at once, and comes back with exactly what they had.
    let all = |lsp: &LspProcess, wallets: &[WalletProcess]| -> Vec<Balance> {
        let of_wallets = wallets.iter().map(|it| it.balance().unwrap());
        of_wallets.chain([lsp.balance().unwrap()]).collect()
    };
    agreed(&lsp, &wallets);
    let before = all(&lsp, &wallets);
    lsp.kill();
    for wallet in &mut wallets {
        wallet.kill();
    }
    assert_eq!(code(wallets[1].status().unwrap_err()), "not_running");
    lsp.restart().unwrap();
    for wallet in &mut wallets {
        wallet.restart().unwrap();
    }
    wait("everyone to be connected again", || {
        let connected = |it: &WalletProcess| it.status().unwrap().lsp_connected;
        let usable = lsp.channels().unwrap().iter().all(|it| it.usable);
        wallets.iter().all(connected) && usable
    });
    agreed(&lsp, &wallets);
    assert_eq!(all(&lsp, &wallets), before);
    let invoice = wallets[2].receive(10_000_000, "back").unwrap();
    let payment = wallets[1].pay(&invoice).unwrap();
    assert_eq!(payment.fee_msat, Some(2_000));
    wait("the balances to settle again", || {
        let all: Vec<u64> = wallets.iter().map(held).collect();
        all == [149_994_000, 39_998_000, 10_000_000, 0]
    });

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
    wait("the channel to be closed", || {
        let closed = buyer.cli(&["close-channel", &id]);
        closed
            .map_err(|error| assert_eq!(code(error), "channel_busy"))
            .is_ok()
    });
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

/// What the running wallet answers to a line that no command of ours would send.
fn told(wallet: &WalletProcess, line: &Value) -> Value {
    let mut socket = UnixStream::connect(wallet.directory().join("wallet.sock")).unwrap();
    writeln!(socket, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn a_send_that_is_wrong_says_what_and_moves_no_coin() {
    let chain = RegtestNode::new().unwrap();
    let lsp = LspProcess::start(&chain).unwrap();
    let wallet = WalletProcess::start(&chain, &lsp.uri).unwrap();
    let own = script(&wallet.address().unwrap());
    chain.fund(&own, Amount::from_sat(70_000)).unwrap();
    wallet.sync().unwrap();
    let before = wallet.coins().unwrap();
    assert_eq!(before.spendable_sat, 70_000);
    let to = lsp.address().unwrap();

    for (args, named) in [
        (&["send-coins"][..], "<ADDRESS>"),
        (&["send-coins", &to], "<AMOUNT_SAT>"),
        (&["send-coins", &to, "much"], "<AMOUNT_SAT>"),
        (&["send-coins", &to, "1.5"], "<AMOUNT_SAT>"),
        (&["send-coins", &to, "18446744073709551616"], "<AMOUNT_SAT>"),
        (&["send-coins", &to, "1000", "--feerate", "x"], "--feerate"),
        (&["send-coins", &to, "1000", "--rate", "1"], "--rate"),
    ] {
        let failed = wallet.cli(args).unwrap_err();
        let failed = failed.downcast::<CliFailure>().unwrap();
        assert_eq!(failed.status, Some(2), "{args:?}: {failed}");
        assert!(failed.stderr.contains(named), "{args:?}: {failed}");
    }
    for (args, expected, named) in [
        (&["nowhere", "1000"][..], "invalid_argument", "address"),
        (&[to.as_str(), "1"], "amount_too_small", "dust"),
        (&[&to, "70000"], "insufficient_funds", "needed"),
        (
            &[&to, "1000", "--feerate", "18446744073709551615"],
            "invalid_argument",
            "feerate",
        ),
    ] {
        let failed = wallet
            .cli(&[["send-coins"].as_slice(), args].concat())
            .unwrap_err();
        let failed = failed.downcast::<CliFailure>().unwrap();
        let said = (failed.status, failed.code.as_str());
        assert_eq!(said, (Some(1), expected), "{args:?}: {failed}");
        assert!(failed.stderr.contains(named), "{args:?}: {failed}");
    }
    let good = json!({
        "call": "send_coins", "address": to, "amount_sat": 1_000, "feerate_sat_per_vb": null,
    });
    let with = |key: &str, value: Value| {
        let mut line = good.clone();
        line[key] = value;
        line
    };
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("amount_sat");
    for (line, named) in [
        (with("amount_sat", json!("much")), "\"much\""),
        (with("amount_sat", json!(-1)), "`-1`"),
        (with("fee", json!(1)), "`fee`"),
        (without, "`amount_sat`"),
    ] {
        let answer = told(&wallet, &line);
        let failed = &answer["failed"];
        assert_eq!(failed["code"], "invalid_request", "{line}: {answer}");
        let message = failed["message"].as_str().unwrap();
        assert!(message.contains(named), "{line}: {answer}");
    }
    assert_eq!(wallet.coins().unwrap(), before);
    assert!(chain.mempool().unwrap().is_empty());
    let lsps = lsp.coins().unwrap();
    assert_eq!((lsps.spendable_sat, lsps.pending_sat), (0, 0));
}

/// The words bring back who the wallet is, and with its backup what it had.
#[test]
fn a_wallet_is_restored_from_its_words() {
    let chain = RegtestNode::new().unwrap();
    let lsp = LspProcess::start(&chain).unwrap();
    let backup = tempfile::tempdir().unwrap();
    let backup = backup.path().to_str().unwrap();
    let mut first = WalletProcess::start(&chain, &lsp.uri).unwrap();
    first.stop().unwrap();
    first.also(&["--backup-dir", backup]);
    first.restart().unwrap();
    let addresses = [first.address().unwrap(), first.address().unwrap()];
    // The block of the first coin, by whose number no coin may be missed.
    let birthday = (chain.height().unwrap() + 1).to_string();
    for (address, sat) in addresses.iter().zip([70_000, 30_001]) {
        chain.fund(&script(address), Amount::from_sat(sat)).unwrap();
    }
    first.sync().unwrap();
    let (status, coins) = (first.status().unwrap(), first.coins().unwrap());
    assert_eq!(coins.spendable_sat, 100_001);
    let words = first.words().unwrap();

    // Wrong words are refused by what is wrong with them, and nothing is written.
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("restored");
    let some: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(some.len(), 12);
    for (wrong, named) in [
        (String::new(), "12 or 24 words, not 0"),
        (some[..11].join(" "), "12 or 24 words, not 11"),
        (
            [&some[..2], &["bitcorn"], &some[3..]].concat().join(" "),
            "word 3 of the mnemonic is not in the BIP39 list",
        ),
        (["abandon"; 12].join(" "), "checksum is wrong"),
    ] {
        let refused = WalletProcess::take_over(&nowhere, &wrong).unwrap_err();
        let refused = refused.downcast::<CliFailure>().unwrap();
        let said = (refused.status, refused.code.as_str());
        assert_eq!(said, (Some(1), "invalid_mnemonic"), "{refused}");
        assert!(refused.stderr.contains(named), "{refused}");
        assert!(!nowhere.exists(), "{named}");
    }

    // The words alone: the same node, and the same addresses.
    first.stop().unwrap();
    let mut bare = WalletProcess::restore(&words, &chain, &lsp.uri, &[]).unwrap();
    assert_eq!(bare.words().unwrap(), words);
    assert_eq!(bare.status().unwrap().node_id, status.node_id);
    let again: Vec<String> = (0..20).map(|_| bare.address().unwrap()).collect();
    assert!(addresses.iter().all(|it| again.contains(it)), "{again:?}");
    let occupied = WalletProcess::take_over(bare.directory(), &words);
    assert_eq!(code(occupied.unwrap_err()), "wallet_exists");
    assert_eq!(bare.coins().unwrap().spendable_sat, 0);
    bare.stop().unwrap();

    // With a block before the first coin all coins, too.
    let birthday = ["--birthday", &birthday];
    let mut born = WalletProcess::restore(&words, &chain, &lsp.uri, &birthday).unwrap();
    assert_eq!(born.coins().unwrap(), coins);
    // Only at the first start: then it goes on from where it was.
    born.stop().unwrap();
    born.restart().unwrap();
    assert_eq!(born.coins().unwrap(), coins);
    born.stop().unwrap();

    // With the backup everything is there, and can be spent.
    let begin = ["--backup-dir", backup, "--begin", "restore"];
    let restored = WalletProcess::restore(&words, &chain, &lsp.uri, &begin).unwrap();
    assert_ne!(restored.directory(), first.directory());
    assert_eq!(restored.status().unwrap().node_id, status.node_id);
    assert_eq!(restored.coins().unwrap(), coins);
    let to = lsp.address().unwrap();
    let sent = restored.cli(&["send-coins", &to, "90000"]).unwrap();
    let txid: Txid = sent["txid"].as_str().unwrap().parse().unwrap();
    wait("the transaction to be published", || {
        chain.mempool().unwrap() == [txid]
    });
    chain.mine(1).unwrap();
    let spend = chain.raw_tx(txid).unwrap().unwrap();
    assert_eq!(spend.input.len(), 2, "one coin is not enough");
    let change = spend
        .output
        .iter()
        .filter(|it| it.script_pubkey != script(&to));
    let change: Amount = change.map(|it| it.value).sum();
    restored.sync().unwrap();
    assert_eq!(restored.coins().unwrap().spendable_sat, change.to_sat());
    lsp.sync().unwrap();
    assert_eq!(lsp.coins().unwrap().spendable_sat, 90_000);
}
