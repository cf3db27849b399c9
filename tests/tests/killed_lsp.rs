//! The LSP's process ends by SIGKILL and is never seen again: with factories in use, published, or
//! not yet deep enough, and with a payment on its way. Every member, a process of its own, leaves
//! alone with all that was its own, less the fees that stand in the blocks.

use std::collections::BTreeMap;
use std::str::FromStr;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{BuildRequest, PaymentStatus, Preset};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::stage::{Stage, wait};
use superscalar_tests::trail::value_of;
use superscalar_tests::wire::ADD_AND_COMMIT_BYTES;

/// BOLT3's weight of a timeout transaction, at the pinned 2,500 sat per 1000 weight units.
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
/// While nothing waits for a block, they come so many at a time.
const QUIET_BLOCKS: u32 = 6;
/// More than any exit here takes.
const PATIENCE_BLOCKS: u32 = 1_200;

/// A confirmed transaction and its height.
fn confirmed(chain: &RegtestNode, txid: Txid) -> (Transaction, u32) {
    let height = chain.confirmed_at(txid).unwrap();
    let height = height.unwrap_or_else(|| panic!("{txid} is in no block"));
    (chain.raw_tx(txid).unwrap().unwrap(), height)
}

/// What spends an output, in a block.
fn spender(chain: &RegtestNode, spent: OutPoint) -> Transaction {
    let spend = chain.spender_of(spent).unwrap();
    let spend = spend.unwrap_or_else(|| panic!("{spent} is unspent"));
    confirmed(chain, spend.txid).0
}

/// The one output of this amount.
fn output_of(tx: &Transaction, amount_sat: u64) -> OutPoint {
    let outputs = (0u32..).zip(&tx.output);
    let ours = outputs.filter(|(_, output)| output.value.to_sat() == amount_sat);
    let [vout] = ours.map(|(vout, _)| vout).collect::<Vec<_>>()[..] else {
        panic!("not one output of {amount_sat} sat: {tx:?}");
    };
    OutPoint::new(tx.compute_txid(), vout)
}

/// What has become of these outputs of a member: sweeps that spend nothing else, at fees that are
/// none too high.
fn swept_sat(chain: &RegtestNode, owned: &[OutPoint]) -> u64 {
    let sweeps = owned.iter().map(|outpoint| spender(chain, *outpoint));
    let sweeps: BTreeMap<Txid, Transaction> = sweeps.map(|tx| (tx.compute_txid(), tx)).collect();
    let mut arrived_sat = 0;
    for sweep in sweeps.values() {
        let mut spent_sat = 0;
        for input in &sweep.input {
            let spent = input.previous_output;
            assert!(owned.contains(&spent), "{spent} is not the member's");
            let (tx, _) = confirmed(chain, spent.txid);
            spent_sat += tx.output[spent.vout as usize].value.to_sat();
        }
        let fee_sat = spent_sat - value_of(sweep);
        let vbytes = sweep.vsize() as u64;
        let rates = vbytes..=20 * vbytes;
        assert!(rates.contains(&fee_sat), "{fee_sat} for {vbytes}");
        arrived_sat += value_of(sweep);
    }
    arrived_sat
}

/// Everything a member has on chain is `arrived_sat`, and in channels there is nothing any more.
fn assert_arrived(stage: &Stage, member: usize, arrived_sat: u64) {
    let balance = stage.wallets[member].balance().unwrap();
    let onchain = (balance.onchain_sat, balance.onchain_pending_sat);
    assert_eq!(onchain, (arrived_sat, 0), "member {member}");
    assert_eq!((balance.spendable_msat, balance.reserved_msat), (0, 0));
}

/// The commitment of a member's channel, after its whole path was found in blocks, each transaction
/// with the fee its wallet told and not before its delay.
fn commitment(stage: &Stage, member: usize, factory: &str) -> Transaction {
    let (chain, wallet) = (&stage.chain, &stage.wallets[member]);
    let (_, mut parent) = confirmed(chain, stage.funding(member, factory).txid);
    let mut leaf = None;
    for mut node in wallet.tree(factory).unwrap() {
        node.transactions.sort_by_key(|tx| tx.role != "kickoff");
        for told in node.transactions {
            let txid: Txid = told.txid.parse().unwrap();
            if told.role == "distribution" {
                assert_eq!(chain.raw_tx(txid).unwrap(), None);
                continue;
            }
            let (tx, height) = confirmed(chain, txid);
            assert!(height >= parent + told.delay_blocks, "{}", told.role);
            let spent = tx.input[0].previous_output;
            let (funds, _) = confirmed(chain, spent.txid);
            let fee = funds.output[spent.vout as usize].value.to_sat() - value_of(&tx);
            assert_eq!(fee, told.fee_sat, "{}", told.role);
            (parent, leaf) = (height, Some(txid));
        }
    }
    let infos = wallet.factories().unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let channel = info.seats[0].channel.as_ref().unwrap();
    let channel = OutPoint::from_str(channel).unwrap();
    assert_eq!(leaf, Some(channel.txid));
    spender(chain, channel)
}

/// Finds blocks, which every wallet follows, until these exits are done.
fn until_done(stage: &Stage, exits: &[(usize, &str)]) {
    let chain = &stage.chain;
    let last = chain.height().unwrap() + PATIENCE_BLOCKS;
    while chain.height().unwrap() < last {
        let quiet = chain.mempool().unwrap().is_empty();
        chain.mine(if quiet { QUIET_BLOCKS } else { 1 }).unwrap();
        for wallet in &stage.wallets {
            wallet.sync().unwrap();
        }
        let done = |(member, factory): &(usize, &str)| {
            let status = stage.wallets[*member].exit_status(factory);
            status.is_ok_and(|exit| exit.stage == "done")
        };
        if exits.iter().all(done) {
            return;
        }
    }
    for (member, factory) in exits {
        eprintln!("{:?}", stage.wallets[*member].exit_status(factory));
    }
    panic!("not everybody is out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_for_good_every_member_leaves_every_factory_whole() {
    const BALANCES_MSAT: [u64; 3] = [100_000_000, 60_000_700, 35_000_000];
    const DEPTH_BLOCKS: u32 = 6;
    let mut stage = Stage::set(3).await;
    let used = stage.published(&regtest_factory(3)).await;
    stage.finish(&used).await;
    for (member, balance_msat) in BALANCES_MSAT.into_iter().enumerate() {
        stage.lsp_pays(member, balance_msat).await;
    }
    stage.quiet().await;
    // One more is confirmed and not yet as deep as it must be, and one is only published.
    let deep = BuildRequest {
        preset: Some(Preset::Mainnet),
        life_blocks: 5_808,
        ..regtest_factory(3)
    };
    let shallow = stage.published(&deep).await;
    stage.chain.mine(DEPTH_BLOCKS - 3).unwrap();
    stage.lsp.sync().unwrap();
    let published = stage.published(&regtest_factory(3)).await;
    let funding = stage.funding(0, &published);
    assert_eq!(stage.chain.mempool().unwrap(), [funding.txid]);
    stage.lsp.kill();

    stage.chain.mine(1).unwrap();
    assert_eq!(stage.chain.confirmations(funding.txid).unwrap(), 1);
    wait("the published one to be a factory", || {
        let mut wallets = stage.wallets.iter();
        wallets.all(|it| it.is_active(&published).unwrap())
    })
    .await;
    for (wallet, balance_msat) in stage.wallets.iter().zip(BALANCES_MSAT) {
        assert!(!wallet.is_active(&shallow).unwrap(), "too early");
        let balance = wallet.balance().unwrap();
        let in_channels = balance.spendable_msat + balance.reserved_msat;
        assert_eq!((in_channels, balance.onchain_sat), (balance_msat, 0));
    }
    let mut exits = Vec::new();
    for member in 0..stage.wallets.len() {
        for factory in [&used, &shallow, &published] {
            stage.wallets[member].exit_start(factory).unwrap();
            exits.push((member, factory.as_str()));
        }
    }
    until_done(&stage, &exits);

    for (member, balance_msat) in BALANCES_MSAT.into_iter().enumerate() {
        let own = output_of(&commitment(&stage, member, &used), balance_msat / 1_000);
        assert_arrived(&stage, member, swept_sat(&stage.chain, &[own]));
        for factory in [&shallow, &published] {
            let commitment = commitment(&stage, member, factory);
            assert_eq!(commitment.output.len(), 1, "all of it is the LSP's");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_a_payment_under_way_it_comes_back_on_chain() {
    const SENT_SAT: u64 = 40_000;
    const PAYEE_SAT: u64 = 25_000;
    let mut stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.lsp_pays(1, PAYEE_SAT * 1_000).await;
    stage.quiet().await;
    // The payee is silent: the LSP has forwarded when it dies, and nobody fulfils.
    let invoice = stage.wallets[1].receive(SENT_SAT * 1_000, "").unwrap();
    let to_payee = &stage.wires[1].to_member;
    to_payee.hold();
    let hash = stage.wallets[0].send(&invoice).unwrap();
    to_payee.until_held(ADD_AND_COMMIT_BYTES).await;
    stage.lsp.kill();

    // The payer leaves by itself when its time has come, to the block; then the payee wants to.
    let last = stage.chain.height().unwrap() + PATIENCE_BLOCKS;
    while stage.wallets[0].exit_status(&factory).is_err() {
        assert!(stage.chain.height().unwrap() < last, "it never left");
        stage.chain.mine(1).unwrap();
        stage.wallets[0].sync().unwrap();
    }
    stage.wallets[1].exit_start(&factory).unwrap();
    until_done(&stage, &[(0, &factory), (1, &factory)]);
    let reason = stage.wallets[0].exit_status(&factory).unwrap().reason;
    let expiry = reason.strip_prefix("TimedOut").unwrap_or_default();
    let expiry: String = expiry.chars().filter(char::is_ascii_digit).collect();
    let expiry: u32 = expiry.parse().unwrap_or_else(|_| panic!("{reason}"));

    // The fee for forwarding was offered with it.
    let offered_msat = SENT_SAT * 1_000 + 1_000 + SENT_SAT * 1_000 / 10_000;
    let (htlc_sat, kept_sat) = (offered_msat / 1_000, (100_000_000 - offered_msat) / 1_000);
    let chain = &stage.chain;
    let payers = commitment(&stage, 0, &factory);
    let timeout = spender(chain, output_of(&payers, htlc_sat));
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    let returned_sat = htlc_sat - HTLC_TIMEOUT_FEE_SAT;
    assert_eq!(value_of(&timeout), returned_sat);
    let own = [
        output_of(&payers, kept_sat),
        output_of(&timeout, returned_sat),
    ];
    assert_arrived(&stage, 0, swept_sat(chain, &own));
    let payment = stage.wallets[0].payment(&hash).unwrap();
    assert_eq!(payment.status, PaymentStatus::Failed);

    let own = output_of(&commitment(&stage, 1, &factory), PAYEE_SAT);
    assert_arrived(&stage, 1, swept_sat(chain, &[own]));
}
