//! The harness itself: what the other tests take for granted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, WitnessVersion};
use superscalar_regtest::{Acceptance, Displaced, RegtestNode, RpcError, StartError, wait_until};

const SECONDS_30: Duration = Duration::from_secs(30);

/// A P2WSH nobody knows the script of; `tag` makes it unique.
fn some_script(tag: u8) -> ScriptBuf {
    let program = bitcoin::WitnessProgram::new(WitnessVersion::V0, &[tag; 32]).unwrap();
    ScriptBuf::new_witness_program(&program)
}

fn sat(amount: u64) -> Amount {
    Amount::from_sat(amount)
}

#[test]
fn nodes_run_beside_each_other_and_are_independent() {
    let nodes: Vec<RegtestNode> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(RegtestNode::new)).collect();
        starting
            .into_iter()
            .map(|thread| thread.join().unwrap().unwrap())
            .collect()
    });
    let ports: HashSet<u16> = nodes.iter().map(RegtestNode::rpc_port).collect();
    assert_eq!(ports.len(), 4);
    assert!(
        nodes
            .iter()
            .all(|node| node.height().unwrap() == RegtestNode::FIRST_HEIGHT)
    );
    nodes[0].mine(3).unwrap();
    assert_eq!(nodes[0].height().unwrap(), RegtestNode::FIRST_HEIGHT + 3);
    assert_eq!(nodes[1].height().unwrap(), RegtestNode::FIRST_HEIGHT);
    let tips: HashSet<_> = nodes.iter().map(|node| node.tip().unwrap()).collect();
    assert_eq!(tips.len(), 4, "same height and second, yet other blocks");
}

#[test]
fn a_node_may_be_shared_between_threads() {
    fn assert_shared<T: Send + Sync + 'static>() {}
    assert_shared::<RegtestNode>();
}

#[test]
fn an_unknown_argument_is_reported_in_bitcoinds_words() {
    let error = RegtestNode::with_args(&["-nosuchargument=1"]).unwrap_err();
    let StartError::NotStarted { output, .. } = &error else {
        panic!("{error}")
    };
    assert!(output.contains("nosuchargument"), "{output}");
}

#[test]
fn a_dropped_node_leaves_neither_process_nor_files() {
    let node = RegtestNode::new().unwrap();
    let (port, datadir) = (node.rpc_port(), node.datadir().to_owned());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    drop(node);
    assert!(
        TcpListener::bind(("127.0.0.1", port)).is_ok(),
        "bitcoind is gone when drop returns"
    );
    assert!(!datadir.exists());
}

#[test]
fn a_panic_takes_the_node_along() {
    let panicked = std::thread::spawn(|| {
        let node = RegtestNode::new().unwrap();
        std::panic::panic_any((node.rpc_port(), node.datadir().to_owned()));
    });
    let payload = panicked.join().unwrap_err();
    let (port, datadir) = payload.downcast_ref::<(u16, PathBuf)>().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", *port)).is_err());
    assert!(!datadir.exists());
}

#[test]
fn sigkill_of_the_owner_takes_the_node_along() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_regtest-node"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut value_of = |name: &str| {
        let line = lines.next().expect("the node printed another line");
        line.strip_prefix(name)
            .expect("in this order")
            .trim()
            .to_owned()
    };
    let datadir = PathBuf::from(value_of("BITCOIND_DATADIR="));
    let address: std::net::SocketAddr = value_of("BITCOIND=").parse().unwrap();
    let port = address.port();
    assert!(datadir.exists() && TcpStream::connect(("127.0.0.1", port)).is_ok());

    owner.kill().unwrap(); // SIGKILL: no destructor runs
    owner.wait().unwrap();

    wait_until("bitcoind died with its owner", SECONDS_30, || {
        TcpStream::connect(("127.0.0.1", port)).is_err() && !datadir.exists()
    })
    .unwrap();
}

#[test]
fn funding_is_confirmed_and_leaves_the_mempool_alone() {
    let node = RegtestNode::new().unwrap();
    let waiting = node.fund_unconfirmed(&some_script(1), sat(50_000)).unwrap();
    let coin = node.fund(&some_script(2), sat(123_456)).unwrap();
    assert_eq!(node.confirmations(coin.txid).unwrap(), 1);
    let output = &node.raw_tx(coin.txid).unwrap().unwrap().output[coin.vout as usize];
    assert_eq!(
        (output.value, &output.script_pubkey),
        (sat(123_456), &some_script(2))
    );
    assert_eq!(node.mempool().unwrap(), [waiting.txid]);
    assert_eq!(node.confirmations(waiting.txid).unwrap(), 0);

    node.mine_empty(1).unwrap();
    assert_eq!(
        node.mempool().unwrap(),
        [waiting.txid],
        "empty blocks take nothing"
    );
    node.mine(1).unwrap();
    assert_eq!(node.confirmations(waiting.txid).unwrap(), 1);
    assert_eq!(node.confirmations(coin.txid).unwrap(), 3);
}

#[test]
fn more_than_the_harness_owns_is_a_typed_error() {
    let node = RegtestNode::new().unwrap();
    let error = node
        .fund(&some_script(1), Amount::from_int_btc(1_000))
        .unwrap_err();
    let RpcError::OutOfCoins { available, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(available, Amount::from_int_btc(400));
}

#[test]
fn spenders_are_found_in_mempool_and_chain() {
    let node = RegtestNode::new().unwrap();
    let coin = node.fund_unconfirmed(&some_script(1), sat(50_000)).unwrap();
    let spent = node.raw_tx(coin.txid).unwrap().unwrap().input[0].previous_output;

    let spend = node.spender_of(spent).unwrap().unwrap();
    assert_eq!((spend.txid, spend.height), (coin.txid, None));
    node.mine(2).unwrap();
    let spend = node.spender_of(spent).unwrap().unwrap();
    assert_eq!(
        (spend.txid, spend.height),
        (coin.txid, Some(RegtestNode::FIRST_HEIGHT + 1))
    );
    assert_eq!(node.spender_of(coin).unwrap(), None);
    let nowhere = OutPoint { vout: 7, ..coin };
    assert_eq!(node.spender_of(nowhere).unwrap(), None);
}

#[test]
fn a_reorg_replaces_blocks_and_unconfirms_their_transactions() {
    let node = RegtestNode::new().unwrap();
    let coin = node.fund(&some_script(1), sat(50_000)).unwrap();
    node.mine(11).unwrap();
    let (height, tip) = (node.height().unwrap(), node.tip().unwrap());

    // Deeper than the ten blocks from which bitcoind itself saves transactions.
    let blocks = node.reorg(12, Displaced::Unconfirmed).unwrap();
    assert_eq!(blocks.len(), 13);
    assert_eq!(node.height().unwrap(), height + 1);
    assert!(!blocks.contains(&tip) && node.tip().unwrap() == blocks[12]);
    assert_eq!(node.confirmations(coin.txid).unwrap(), 0);
    assert_eq!(node.mempool().unwrap(), [coin.txid]);
    let spent = node.raw_tx(coin.txid).unwrap().unwrap().input[0].previous_output;
    assert_eq!(node.spender_of(spent).unwrap().unwrap().height, None);
}

#[test]
fn a_reorg_can_keep_every_transaction_at_its_height() {
    let node = RegtestNode::new().unwrap();
    let first = node.fund(&some_script(1), sat(50_000)).unwrap();
    let second = node.fund(&some_script(2), sat(60_000)).unwrap();
    let old_tip = node.tip().unwrap();
    node.reorg(2, Displaced::MinedAgain).unwrap();
    assert_ne!(
        node.block_hash(RegtestNode::FIRST_HEIGHT + 2).unwrap(),
        old_tip
    );
    assert_eq!(
        node.confirmed_at(first.txid).unwrap(),
        Some(RegtestNode::FIRST_HEIGHT + 1)
    );
    assert_eq!(
        node.confirmed_at(second.txid).unwrap(),
        Some(RegtestNode::FIRST_HEIGHT + 2)
    );
    assert_eq!(node.confirmations(second.txid).unwrap(), 2);
}

#[test]
fn after_a_reorg_the_harness_spends_only_coins_that_exist() {
    let node = RegtestNode::new().unwrap();
    node.fund(&some_script(1), sat(50_000)).unwrap();
    let first = node.block_hash(RegtestNode::FIRST_HEIGHT + 1).unwrap();
    node.invalidate(first).unwrap();
    assert_eq!(node.height().unwrap(), RegtestNode::FIRST_HEIGHT);
    let coin = node.fund(&some_script(2), sat(70_000)).unwrap();
    assert_eq!(node.confirmations(coin.txid).unwrap(), 1);
}

#[test]
fn a_transaction_refused_is_refused_alike_asked_submitted_and_mined() {
    let node = RegtestNode::new().unwrap();
    let coin = node.fund(&some_script(1), sat(50_000)).unwrap();
    // Its witness does not satisfy the program.
    let theft = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            previous_output: coin,
            ..Default::default()
        }],
        output: vec![bitcoin::TxOut {
            value: sat(40_000),
            script_pubkey: some_script(3),
        }],
    };
    let Acceptance::Refused { reason } = node.test_accept(&theft).unwrap() else {
        panic!("accepted a theft")
    };
    assert!(reason.contains("script-verify-flag"), "{reason}");
    assert!(node.submit(&theft).unwrap_err().refused_with(&reason));
    let error = node.mine_with(&[theft]).unwrap_err();
    assert!(error.refused_with("TestBlockValidity failed"), "{error}");
    assert_eq!(
        node.confirmations(coin.txid).unwrap(),
        1,
        "no block came of it"
    );
}

#[test]
fn congestion_raises_the_mempool_minimum() {
    let node = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
    let wanted = FeeRate::from_sat_per_vb(20).unwrap();
    assert!(node.mempool_minimum().unwrap() < wanted);
    node.congest(wanted).unwrap();
    assert!(node.mempool_minimum().unwrap() >= wanted);
}
