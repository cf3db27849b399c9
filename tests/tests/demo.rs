//! The demo itself, with all of its processes: what it prints and draws is what the chain says, one
//! satoshi of difference is found, and nothing outlives it when it is interrupted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bitcoin::{Amount, ScriptBuf, Txid};
use serde_json::json;
use superscalar_regtest::{RegtestNode, wait_until};
use superscalar_tests::demo::books::Party;
use superscalar_tests::demo::checker::{Payer, check, check_outrun};
use superscalar_tests::demo::progress::Progress;
use superscalar_tests::demo::published::Published;
use superscalar_tests::demo::table::thousands;
use superscalar_tests::demo::{show, steps};

#[test]
fn the_demo_tells_the_truth_to_the_satoshi() {
    let mut progress = Progress::new(Arc::new(AtomicBool::new(false)));
    let (network, report) = steps::run(&mut progress).unwrap();
    // Under three minutes once the programs, which the first step finds, are built.
    let took: Duration = report.steps[1..].iter().map(|step| step.took).sum();
    assert!(took < Duration::from_secs(180), "{took:?}");
    let (audit, published) = (&report.home.audit, &report.home.published);
    assert_eq!(audit.transactions.len(), 7, "funding, path, close, sweep");
    let coins = (audit.coins_before, published.staying_coins);
    assert_eq!(coins, (Amount::ZERO, Amount::ZERO), "of all four members");
    assert_eq!(audit.paid_by(Payer::Member), audit.sweep_fee);
    // Alice was paid 150,000 and 5,000 and paid 40,000.123 sat and a fee.
    let fee_msat = report.books.payments[1].fee_msat;
    let expected_msat = 155_000_000 - 40_000_123 - fee_msat;
    assert_eq!(published.member_msat, expected_msat);
    let home = Amount::from_sat(expected_msat / 1_000);
    assert_eq!(audit.arrived + audit.sweep_fee, home);

    // Carol has all that she was paid less what she paid, although an LSP with a disk from before the
    // last payment has begun to put the state of that time on chain.
    let carol = &report.robbed;
    let paid: i128 = report
        .books
        .payments
        .iter()
        .map(|it| it.flow(Party::Member(2)))
        .sum();
    assert_eq!(i128::from(carol.published.member_msat), paid);
    let home = Amount::from_sat(carol.published.member_msat / 1_000);
    assert_eq!(carol.audit.arrived + carol.audit.sweep_fee, home);
    assert_eq!(
        carol.audit.capacity,
        Amount::from_sat(560_000),
        "both channels in one"
    );

    let folder = tempfile::tempdir().unwrap();
    let mut words = Vec::new();
    show(&report, folder.path(), &mut words).unwrap();
    let words = String::from_utf8(words).unwrap();
    for it in audit.transactions.iter().chain(&carol.audit.transactions) {
        assert!(words.contains(&it.txid.to_string()), "{}: {words}", it.name);
    }
    for (home, name) in [(&report.home, 0), (&report.robbed, 2)] {
        let name = &report.names[name];
        assert_told_as_on_chain(&network.chain, &words, name, home.audit.transactions.len());
    }
    assert!(words.contains(&thousands(audit.arrived.to_sat())));
    assert!(words.contains("trimmed HTLCs") && words.contains("reserve"));
    let drawn = std::fs::read_to_string(folder.path().join("factory.svg")).unwrap();
    // The seven transactions of Alice's way home, the two of Carol's leaf, and the legend's.
    assert_eq!(drawn.matches("class=\"tx on\"").count(), 7 + 2 + 1);
    assert!(drawn.contains("channel Alice") && drawn.contains("sweep to Alice"));

    type Change = fn(&mut Published);
    let changes: [Change; 15] = [
        |it| it.funding_amount += Amount::ONE_SAT,
        |it| it.lsp_coins_after -= Amount::ONE_SAT,
        |it| it.path[0].fee += Amount::ONE_SAT,
        |it| it.path[3].outputs[1] -= Amount::ONE_SAT,
        |it| it.capacity -= Amount::ONE_SAT,
        |it| it.member_msat -= 1_000,
        |it| it.member_coins_before += Amount::ONE_SAT,
        |it| it.member_coins_after += Amount::ONE_SAT,
        |it| it.staying_coins += Amount::ONE_SAT,
        |it| it.reserve_msat += 1,
        |it| it.reserve_msat -= 1,
        |it| it.path[1].delay += 1,
        |it| it.path[3].delay -= 1,
        |it| it.to_self_delay += 1,
        |it| it.to_self_delay -= 1,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut published = published.clone();
        change(&mut published);
        assert!(check(&network.chain, &published).is_err(), "change {index}");
    }
    check(&network.chain, &carol.published).unwrap();
    let newest = carol.published.path.last().unwrap().txid;
    let outrun = |old| check_outrun(&network.chain, old, &carol.published);
    assert!(outrun(newest).is_err(), "the newest is not outrun");
    let leaf = published.path.last().unwrap().txid;
    assert!(outrun(leaf).is_err(), "what is in a block is not outrun");
}

/// The table of a member's way home as it was printed: each transaction stands in the block of the
/// printed height with the size and fee that bitcoind itself says, and what is printed below is
/// their sums.
fn assert_told_as_on_chain(chain: &RegtestNode, words: &str, name: &str, transactions: usize) {
    let title = format!("{name}'s way home (recomputed from bitcoind)\n");
    let (_, table) = words.split_once(&title).unwrap();
    let (table, sums) = table.split_once("Fees and anchors: ").unwrap();
    let rows: Vec<Vec<String>> = table.lines().filter_map(row).collect();
    assert_eq!(rows.len(), transactions, "{table}");
    let (mut by_lsp, mut by_member, mut vbytes) = (0, 0, 0);
    let mut heights = Vec::new();
    for (index, cells) in rows.iter().enumerate() {
        let [what, block, vsize, fee, anchor, payer, txid] = &cells[..] else {
            panic!("{cells:?}");
        };
        let number = |cell: &String| cell.replace(',', "").parse::<u64>().unwrap();
        let height = u32::try_from(number(block)).unwrap();
        // Refused unless the transaction is in this very block.
        let hash = chain.block_hash(height).unwrap();
        let said = chain.call("getrawtransaction", json!([txid, 2, hash]));
        let said = said.unwrap_or_else(|error| panic!("{what} in block {height}: {error}"));
        assert_eq!(said["vsize"].as_u64(), Some(number(vsize)), "{what}");
        let paid = Amount::from_btc(said["fee"].as_f64().unwrap()).unwrap();
        assert_eq!(number(fee), paid.to_sat(), "{what}");
        let tx = chain.raw_tx(txid.parse().unwrap()).unwrap().unwrap();
        let anchors = tx.output.iter();
        let anchors = anchors.filter(|it| it.script_pubkey == ScriptBuf::new_p2a());
        let left: Amount = anchors.map(|it| it.value).sum();
        assert_eq!(number(anchor), left.to_sat(), "{what}");
        // Only the last, the sweep, is paid from what the member brings home.
        let is_sweep = index + 1 == rows.len();
        assert_eq!(payer, if is_sweep { "member" } else { "LSP" }, "{what}");
        match is_sweep {
            true => by_member += number(fee) + number(anchor),
            false => by_lsp += number(fee) + number(anchor),
        }
        // The way home begins behind the funding.
        if index > 0 {
            vbytes += number(vsize);
            heights.push(height);
        }
    }
    let blocks = heights.iter().max().unwrap() + 1 - heights.iter().min().unwrap();
    let expected = format!(
        "{} sat by the LSP, {} sat by the member. The way home: {} vbytes in {} blocks.",
        thousands(by_lsp),
        thousands(by_member),
        thousands(vbytes),
        thousands(blocks.into()),
    );
    assert_eq!(sums.lines().next(), Some(expected.as_str()));
}

/// The cells of a line of a table that ends with a transaction's id.
fn row(line: &str) -> Option<Vec<String>> {
    let cells = line.split(['│', '┆']).map(|cell| cell.trim().to_owned());
    let cells: Vec<String> = cells.filter(|cell| !cell.is_empty()).collect();
    cells.last()?.parse::<Txid>().ok()?;
    Some(cells)
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        // Everything it starts keeps its files below, so that what is left can be seen.
        .env("TMPDIR", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines();
    let wallets = lines.find(|line| {
        line.as_ref()
            .is_ok_and(|line| line.contains("four wallets"))
    });
    wallets.expect("it starts four wallets").unwrap();
    assert!(running_below(folder.path()) >= 6, "bitcoind, LSP, wallets");
    let id = demo.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(demo.wait().unwrap().code(), Some(130), "{rest:?}");
    wait_until("all processes to end", Duration::from_secs(30), || {
        running_below(folder.path()) == 0
    })
    .unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Processes whose command line names this folder.
fn running_below(folder: &std::path::Path) -> usize {
    let listed = Command::new("ps")
        .args(["-ww", "-eo", "args"])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let name = folder.to_str().unwrap();
    listed.lines().filter(|line| line.contains(name)).count()
}
