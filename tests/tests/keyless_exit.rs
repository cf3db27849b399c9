//! Everything but one file is lost: the exit package, a bitcoind and `exit-runner` bring the leaf,
//! or after expiry the distribution, on chain.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::{Amount, Txid};
use serde_json::Value;
use superscalar_sdk::{BuildRequest, PaymentStatus, TreeTxInfo};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::{CliFailure, ExitRunner, LspProcess, WalletProcess};
use superscalar_tests::regtest::{Displaced, RegtestNode, wait_until};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
const PASSPHRASE: &str = "correct horse battery staple";

/// What is left of a wallet.
struct Lost {
    chain: RegtestNode,
    directory: TempDir,
    factory: String,
    expiry: u32,
    /// Kickoffs and states in their order, and the distributions.
    steps: Vec<TreeTxInfo>,
    distributions: Vec<TreeTxInfo>,
    channel: String,
    payout_sat: u64,
}

impl Lost {
    /// A factory of two whose LSP and wallets are gone with their directories.
    fn everything_but_a_file(life_blocks: u32) -> Lost {
        let chain = RegtestNode::new().unwrap();
        let lsp = LspProcess::start(&chain).unwrap();
        let address: bitcoin::Address<_> = lsp.address().unwrap().parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        chain
            .fund(&script, Amount::from_sat(1_000_000_000))
            .unwrap();
        lsp.sync().unwrap();
        let wallets: Vec<WalletProcess> = (0..2)
            .map(|_| WalletProcess::start(&chain, &lsp.uri).unwrap())
            .collect();
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("exit.package");
        let wallet = &wallets[0];
        let early = wallet.export_package(&file, PASSPHRASE).unwrap_err();
        assert_eq!(code(early), "nothing_to_export");
        for wallet in &wallets {
            wallet.join(500_000).unwrap();
        }
        let wait = |what: &str, condition: &mut dyn FnMut() -> bool| {
            wait_until(what, LIMIT, condition).unwrap();
        };
        wait("both wallets to wait for a place", &mut || {
            lsp.waiting().unwrap().len() == 2
        });
        let request = BuildRequest {
            shape: Some(vec![2, 1]),
            life_blocks,
            ..regtest_factory(2)
        };
        let factory = lsp.create_factory(&request).unwrap();
        wait("the funding to be published", &mut || {
            lsp.factory(&factory).unwrap().phase == "published"
        });
        chain.mine(1).unwrap();
        wait("everyone to be active", &mut || {
            let of_wallets = wallets.iter().all(|it| it.is_active(&factory).unwrap());
            of_wallets && lsp.factory(&factory).unwrap().active
        });
        let invoice = wallet.receive(200_000_000, "").unwrap();
        let hash = lsp.pay(&invoice).unwrap();
        wait("the payment to arrive", &mut || {
            let payment = wallet.payment(&hash).unwrap();
            payment.status == PaymentStatus::Succeeded
        });
        let info = wallet.factories().unwrap().remove(0);
        let mut all = Vec::new();
        for mut node in wallet.tree(&factory).unwrap() {
            node.transactions.sort_by_key(|tx| tx.role != "kickoff");
            all.extend(node.transactions);
        }
        let (distributions, steps) = all.into_iter().partition(|tx| tx.role == "distribution");

        let empty = wallet.export_package(&file, "").unwrap_err();
        assert_eq!(code(empty), "invalid_argument");
        let written = wallet.export_package(&file, PASSPHRASE).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(written["bytes"], bytes.len());
        let again = wallet.export_package(&file, PASSPHRASE).unwrap_err();
        assert_eq!(code(again), "file_exists");
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
        Lost {
            chain,
            directory,
            factory,
            expiry: info.expiry,
            steps,
            distributions,
            channel: info.seats[0].channel.clone().unwrap(),
            payout_sat: info.seats[0].capacity_sat + info.seats[0].stock_sat,
        }
        // LSP and wallets end here, and their directories with them.
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("exit.package")
    }

    fn runner(&self) -> ExitRunner {
        ExitRunner::new(&self.chain, &self.file(), PASSPHRASE).unwrap()
    }

    /// One run, one report.
    fn look(&self, more: &[&str]) -> Value {
        let mut reports = self.runner().run(more).unwrap();
        assert_eq!(reports.len(), 1, "{reports:?}");
        let report = reports.remove(0);
        assert_eq!(report["factory"], self.factory);
        report
    }
}

fn code(failed: anyhow::Error) -> String {
    failed.downcast::<CliFailure>().unwrap().code
}

fn txid(tx: &TreeTxInfo) -> Txid {
    tx.txid.parse().unwrap()
}

#[test]
fn a_file_and_a_chain_bring_the_leaf_on_chain() {
    let lost = Lost::everything_but_a_file(2_000);
    let chain = &lost.chain;
    let start = chain.height().unwrap();
    // Each run a new process: nothing is remembered but by the chain.
    let mut parent = start;
    for (nth, step) in lost.steps[..2].iter().enumerate() {
        let allowed = parent + step.delay_blocks.max(1);
        while chain.height().unwrap() + 1 < allowed {
            let report = lost.look(&[]);
            assert_eq!(report["published"], Value::Null, "{report}");
            assert_eq!(chain.mempool().unwrap(), []);
            chain.mine(1).unwrap();
        }
        for _ in 0..2 {
            let report = lost.look(&[]);
            assert_eq!(report["published"], step.txid);
            assert_eq!(report["step"], serde_json::json!([nth + 1, 4]));
            assert_eq!(chain.mempool().unwrap(), [txid(step)]);
        }
        chain.mine(1).unwrap();
        parent = chain.height().unwrap();
        assert_eq!(chain.confirmed_at(txid(step)).unwrap(), Some(allowed));
    }
    // A reorg takes the state away: the next run brings it back.
    chain.reorg(1, Displaced::Unconfirmed).unwrap();
    assert_eq!(lost.look(&[])["published"], lost.steps[1].txid);

    // Killed in the middle, another goes on to the end.
    let mut first = lost.runner().start(&["--watch"]).unwrap();
    first.kill();
    let mut runner = lost.runner().start(&["--watch", "--depth", "3"]).unwrap();
    let leaf = lost.steps.last().unwrap();
    let mut blocks = 0;
    let mut status = None;
    while status.is_none() {
        let height = chain.height().unwrap();
        let due = !chain.mempool().unwrap().is_empty();
        let waiting = lost.look(&[]);
        let delayed = waiting["published"] == Value::Null;
        if due || delayed {
            chain.mine(1).unwrap();
            blocks += 1;
            assert!(blocks < 60, "no end at {height}: {waiting}");
        }
        let settled = chain.confirmations(txid(leaf)).unwrap() >= 3;
        if settled {
            status = Some(runner.ended().unwrap());
        }
    }
    assert!(status.unwrap().success(), "{}", runner.log());
    let report = lost.look(&[]);
    assert_eq!(report["stage"], "leaf_confirmed");
    assert_eq!(report["outpoint"], lost.channel);
    let mut parent = start;
    for step in &lost.steps {
        let height = chain.confirmed_at(txid(step)).unwrap().unwrap();
        assert!(height >= parent + step.delay_blocks.max(1));
        parent = height;
        let tx = chain.raw_tx(txid(step)).unwrap().unwrap();
        let outputs: Vec<u64> = tx.output.iter().map(|out| out.value.to_sat()).collect();
        assert_eq!(outputs, step.outputs_sat);
    }
    assert_eq!(report["confirmed_at"], parent);
    // The channel itself is untouched: there was no commitment in the file.
    assert_eq!(
        chain.spender_of(lost.channel.parse().unwrap()).unwrap(),
        None
    );
}

#[test]
fn after_expiry_it_brings_the_distribution_on_chain() {
    let lost = Lost::everything_but_a_file(300);
    let chain = &lost.chain;
    let report = lost.look(&["--reclaim"]);
    assert_eq!(report["published"], Value::Null, "not before T");
    chain.mine_empty_to_height(lost.expiry).unwrap();
    let mut runner = lost
        .runner()
        .start(&["--reclaim", "--watch", "--depth", "1"])
        .unwrap();
    assert_eq!(runner.ready["published"], lost.steps[0].txid);
    let distribution = txid(&lost.distributions[0]);
    let mut blocks = 0;
    while chain.confirmed_at(distribution).unwrap().is_none() {
        lost.look(&["--reclaim"]);
        chain.mine(1).unwrap();
        blocks += 1;
        assert!(blocks < 60);
    }
    assert!(runner.ended().unwrap().success(), "{}", runner.log());
    let report = lost.look(&["--reclaim"]);
    assert_eq!(report["stage"], "paid_out");
    let outpoint: bitcoin::OutPoint = report["outpoint"].as_str().unwrap().parse().unwrap();
    assert_eq!(outpoint.txid, distribution);
    let tx = chain.raw_tx(distribution).unwrap().unwrap();
    let payout = &tx.output[outpoint.vout as usize];
    assert_eq!(payout.value.to_sat(), lost.payout_sat);
    assert!(payout.script_pubkey.is_p2tr());
}

#[test]
fn what_cannot_be_run_is_refused_and_publishes_nothing() {
    let lost = Lost::everything_but_a_file(2_000);
    let chain = &lost.chain;
    let refused = |file: &Path, passphrase: &str, more: &[&str]| {
        let runner = ExitRunner::new(chain, file, passphrase).unwrap();
        code(runner.run(more).unwrap_err())
    };
    let good = lost.file();
    assert_eq!(refused(&good, "wrong", &[]), "locked");
    assert_eq!(refused(&good, "", &[]), "locked");
    let unknown = ["--factory", "zz"];
    assert_eq!(refused(&good, PASSPHRASE, &unknown), "unknown_factory");
    let nowhere = lost.directory.path().join("nowhere");
    assert_eq!(refused(&nowhere, PASSPHRASE, &[]), "unreadable_file");
    let bytes = std::fs::read(&good).unwrap();
    let changed = lost.directory.path().join("changed");
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (content, expected) in [
        (&flipped[..], "locked"),
        (&bytes[..bytes.len() - 1], "locked"),
        (&bytes[..30], "invalid_package"),
        (b"", "invalid_package"),
    ] {
        std::fs::write(&changed, content).unwrap();
        assert_eq!(refused(&changed, PASSPHRASE, &[]), expected);
    }
    assert_eq!(chain.mempool().unwrap(), []);
    let early = lost.look(&["--factory", &lost.factory[..6]]);
    assert_eq!(early["published"], lost.steps[0].txid);
}
