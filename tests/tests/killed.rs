//! Processes that end by SIGKILL at named points: of the ceremony (either side, in each round), of a
//! sale, of a payment, of a new epoch, and of an exit. No coin is locked, nothing owned is lost, and what was under way goes
//! on or ends cleanly.

use std::str::FromStr;

use bitcoin::{Amount, OutPoint, Txid};
use superscalar_sdk::{EpochRequest, Event, PaymentStatus};
use superscalar_tests::network::regtest_factory;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::stage::{LSP_COIN_SAT, Stage, wait};
use superscalar_tests::trail::left_of;
use superscalar_tests::wire::{ADD_AND_COMMIT_BYTES, REVOKE_BYTES};

async fn lsp_killed_while(phase: &str) {
    let mut stage = Stage::set(3).await;
    let factory = stage.held_in(phase).await;
    stage.lsp.kill();
    assert!(stage.chain.mempool().unwrap().is_empty());
    stage.lsp.restart().unwrap();
    begins_again(&stage, &factory, phase).await;
}

/// Nothing came of `factory`: no coin has moved, and the same people build another one.
async fn begins_again(stage: &Stage, factory: &str, phase: &str) {
    assert!(stage.chain.mempool().unwrap().is_empty());
    for wire in &stage.wires {
        wire.to_lsp.pass();
    }
    wait("every place to be given up", || {
        let mut wallets = stage.wallets.iter().enumerate();
        wallets.all(|(member, wallet)| {
            let infos = wallet.factories().unwrap();
            infos.iter().all(|it| match it.phase.as_str() {
                // Who was not held may have signed the root, and keeps what it signed for.
                "dormant" => phase == "opening" && member != 0,
                _ => it.ended.is_some(),
            })
        })
    })
    .await;
    wait("no attempt to be under way", || {
        let infos = stage.lsp.factories().unwrap();
        infos.iter().all(|it| it.ended.is_some())
    })
    .await;
    let coins = stage.lsp.coins().unwrap();
    let all = (coins.spendable_sat, coins.pending_sat);
    assert_eq!(all, (LSP_COIN_SAT, 0));
    stage.all_waiting().await;
    let request = regtest_factory(stage.wallets.len() as u16);
    let again = stage.lsp.create_factory(&request).unwrap();
    assert_ne!(again, factory);
    stage.finish(&again).await;
    stage.lsp_pays(0, 10_000_000).await;
}

async fn member_killed_while(phase: &str) {
    let mut stage = Stage::set(3).await;
    let factory = stage.held_in(phase).await;
    stage.wallets[0].kill();
    assert!(stage.chain.mempool().unwrap().is_empty());
    stage.wires[0].to_lsp.pass();
    stage.wallets[0].restart().unwrap();
    // The others get their factory in the next attempt; only that one is funded.
    wait("the factory of the others", || {
        let infos = stage.lsp.factories().unwrap();
        infos.iter().any(|it| it.phase == "published")
    })
    .await;
    let infos = stage.lsp.factories().unwrap();
    let next = infos.iter().find(|it| it.phase == "published").unwrap();
    assert_eq!(next.factory, format!("{factory}-1"));
    let funding = OutPoint::from_str(next.funding.as_ref().unwrap()).unwrap();
    assert_eq!(stage.chain.mempool().unwrap(), [funding.txid]);
    stage.chain.mine(1).unwrap();
    wait("the others to be active", || {
        let others = &stage.wallets[1..];
        let active = others.iter().all(|it| it.is_active(&next.factory).unwrap());
        active && stage.lsp.factory(&next.factory).unwrap().active
    })
    .await;
    stage.lsp_pays(1, 10_000_000).await;
    // Its own place is given up, and it may ask for another.
    wait("the place to be given up", || {
        let infos = stage.wallets[0].factories().unwrap();
        infos.iter().all(|it| it.ended.is_some())
    })
    .await;
    stage.wallets[0].join(500_000).unwrap();
    wait("the member to wait again", || {
        stage.lsp.waiting().unwrap().len() == 1
    })
    .await;
}

macro_rules! killed {
    ($($name:ident: $who:ident($phase:literal);)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $who($phase).await;
        }
    )*};
}

killed! {
    lsp_killed_while_gathering_locks_no_coin: lsp_killed_while("gathering");
    lsp_killed_while_signing_locks_no_coin: lsp_killed_while("signing");
    lsp_killed_while_opening_locks_no_coin: lsp_killed_while("opening");
    member_killed_while_gathering_locks_no_coin: member_killed_while("gathering");
    member_killed_while_signing_locks_no_coin: member_killed_while("signing");
    member_killed_while_opening_locks_no_coin: member_killed_while("opening");
}

/// Everybody holds everything but one acknowledgement: whoever comes back, the factory is finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_acknowledging_the_factory_is_finished_by_who_comes_back() {
    let mut stage = Stage::set(3).await;
    let factory = stage.held_in("acknowledging").await;
    let funding = stage.funding(1, &factory);
    stage.lsp.kill();
    stage.wallets[0].kill();
    assert_eq!(stage.chain.raw_tx(funding.txid).unwrap(), None);
    stage.wires[0].to_lsp.pass();
    stage.lsp.restart().unwrap();
    stage.wallets[0].restart().unwrap();
    stage.finish(&factory).await;
    assert_eq!(stage.chain.confirmations(funding.txid).unwrap(), 1);
    stage.lsp_pays(0, 10_000_000).await;
}

/// Who dies in the middle of a sale, and what was not heard.
#[derive(Clone, Copy)]
enum Dies {
    /// The member, as soon as it has accepted; the LSP has heard nothing.
    Buyer,
    /// The LSP, when it has signed; the member has heard nothing.
    Seller,
}

/// Whoever dies, the channel is there afterwards and paid for once.
async fn killed_while_selling(who: Dies) {
    const BOUGHT_SAT: u64 = 50_000;
    const LIMIT_MSAT: u64 = 1_000_000;
    // Less than a quote takes, more than a ping.
    const QUOTE_BYTES: usize = 300;
    let mut stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.quiet().await;
    let text = (BOUGHT_SAT.to_string(), LIMIT_MSAT.to_string());
    let buy = [
        "inbound",
        "buy",
        &factory,
        "--capacity",
        &text.0,
        "--max-price-msat",
        &text.1,
    ];
    // The LSP's first word is the quote, and the next belongs to the channel.
    stage.wires[0].to_member.hold();
    let bought = std::thread::scope(|scope| {
        let wallet = &stage.wallets[0];
        let buying = scope.spawn(move || wallet.cli(&buy));
        let wire = &stage.wires[0];
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            runtime.block_on(wire.to_member.until_held(QUOTE_BYTES));
            if let Dies::Buyer = who {
                wire.to_lsp.hold();
            }
            wire.to_member.release();
            buying.join().unwrap()
        })
    });
    let price_msat = bought.unwrap()["price_msat"].as_u64().unwrap();
    match who {
        Dies::Buyer => {
            stage.wires[0].to_lsp.until_held(1).await;
            stage.wallets[0].kill();
        }
        Dies::Seller => {
            stage.wires[0].to_member.until_held(1).await;
            stage.lsp.kill();
        }
    }
    stage.wires[0].to_lsp.pass();
    stage.wires[0].to_member.pass();
    match who {
        Dies::Buyer => stage.wallets[0].restart().unwrap(),
        Dies::Seller => stage.lsp.restart().unwrap(),
    }
    let wallet = &stage.wallets[0];
    wait("the channel to be paid for", || {
        let seats = wallet.factories().unwrap().remove(0).seats;
        (seats[0].sold.len(), &seats[0].sale) == (1, &None)
    })
    .await;
    wait("the balance to be what is left", || {
        let balance = wallet.balance().unwrap();
        balance.spendable_msat + balance.reserved_msat == 100_000_000 - price_msat
    })
    .await;
    assert!(stage.chain.mempool().unwrap().is_empty());
    // More than the leaf's own channel has room for.
    wait("both channels to be usable", || {
        stage.wallets[0].receive(430_000_000, "").is_ok()
    })
    .await;
    stage.lsp_pays(0, 430_000_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_killed_when_it_has_accepted_gets_its_channel() {
    killed_while_selling(Dies::Buyer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_killed_when_it_has_signed_delivers() {
    killed_while_selling(Dies::Seller).await;
}

/// The LSP dies with its funding in the mempool, and is never seen again; everything a member has
/// comes home although its own process dies before every block of the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_every_step_of_its_exit_a_member_comes_home() {
    let mut stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    stage.quiet().await;
    stage.lsp.kill();

    let wallet = &mut stage.wallets[0];
    let tree = wallet.tree(&factory).unwrap();
    let mut path: Vec<Txid> = Vec::new();
    for mut node in tree {
        node.transactions.sort_by_key(|tx| tx.role != "kickoff");
        let ours = node
            .transactions
            .iter()
            .filter(|tx| tx.role != "distribution");
        path.extend(ours.map(|tx| tx.txid.parse::<Txid>().unwrap()));
    }
    let infos = wallet.factories().unwrap();
    let channel = infos[0].seats[0].channel.as_ref().unwrap();
    let channel = OutPoint::from_str(channel).unwrap();
    wallet.exit_start(&factory).unwrap();
    for txid in path {
        // Dead as soon as the transaction is published; the block comes while nobody looks.
        while !stage.chain.mempool().unwrap().contains(&txid) {
            stage.chain.mine(1).unwrap();
            wallet.sync().unwrap();
        }
        wallet.kill();
        stage.chain.mine(1).unwrap();
        assert!(stage.chain.confirmed_at(txid).unwrap().is_some());
        wallet.restart().unwrap();
    }
    let chain = &stage.chain;
    for output in ["commitment", "sweep"] {
        let mut spent = channel;
        if output == "sweep" {
            let (commitment, _) = confirmed_spender(chain, channel);
            let outputs = chain.raw_tx(commitment).unwrap().unwrap().output;
            let ours = |out: &bitcoin::TxOut| out.value == Amount::from_sat(100_000);
            let vout = outputs.iter().position(ours).unwrap() as u32;
            spent = OutPoint::new(commitment, vout);
        }
        for _ in 0..200 {
            if chain.spender_of(spent).unwrap().is_some() {
                break;
            }
            chain.mine(1).unwrap();
            wallet.sync().unwrap();
            // Publishing is a task of its own.
            if output == "commitment" {
                wait("the commitment", || {
                    chain.spender_of(spent).unwrap().is_some()
                })
                .await;
            }
        }
        assert!(chain.spender_of(spent).unwrap().is_some(), "no {output}");
        wallet.kill();
        chain.mine(1).unwrap();
        wallet.restart().unwrap();
    }
    wait("the exit to be done", || {
        wallet.sync().unwrap();
        wallet.exit_status(&factory).unwrap().stage == "done"
    })
    .await;
    let (commitment, _) = confirmed_spender(chain, channel);
    let outputs = chain.raw_tx(commitment).unwrap().unwrap().output;
    let ours = |out: &bitcoin::TxOut| out.value == Amount::from_sat(100_000);
    let vout = outputs.iter().position(ours).unwrap() as u32;
    let (sweep, _) = confirmed_spender(chain, OutPoint::new(commitment, vout));
    let sweep = chain.raw_tx(sweep).unwrap().unwrap();
    let arrived: u64 = sweep.output.iter().map(|out| out.value.to_sat()).sum();
    let fee = 100_000 - arrived;
    let vsize = sweep.vsize() as u64;
    assert!(fee >= vsize && fee <= 20 * vsize, "{fee} for {vsize}");
    assert_eq!(wallet.balance().unwrap().onchain_sat, arrived);
}

fn confirmed_spender(chain: &RegtestNode, spent: OutPoint) -> (Txid, u32) {
    let spend = chain.spender_of(spent).unwrap().unwrap();
    (spend.txid, spend.height.unwrap())
}

/// Both processes die when the member has given out its preimage and the LSP has not heard it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_a_claimed_payment_unsettled_the_member_takes_it_on_chain() {
    const HTLC_SAT: u64 = 40_000;
    const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
    let mut stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, 100_000_000).await;
    let invoice = stage.wallets[0].receive(HTLC_SAT * 1_000, "").unwrap();
    let (to_lsp, to_member) = (&stage.wires[0].to_lsp, &stage.wires[0].to_member);
    stage.quiet().await;
    to_member.hold();
    let hash = stage.lsp.pay(&invoice).unwrap();
    to_member.release_once(ADD_AND_COMMIT_BYTES).await;
    to_member.until_held(REVOKE_BYTES).await;
    to_lsp.hold();
    to_member.pass();
    wait("the member to claim", || {
        let payment = stage.wallets[0].payment(&hash).unwrap();
        payment.status == PaymentStatus::Succeeded
    })
    .await;
    stage.wallets[0].kill();
    stage.lsp.kill();
    stage.wallets[0].restart().unwrap();

    let (chain, wallet) = (&stage.chain, &stage.wallets[0]);
    let infos = wallet.factories().unwrap();
    let channel = infos[0].seats[0].channel.as_ref().unwrap();
    let channel = OutPoint::from_str(channel).unwrap();
    let mut done = false;
    for _ in 0..900 {
        chain.mine(1).unwrap();
        wallet.sync().unwrap();
        done = wallet
            .exit_status(&factory)
            .is_ok_and(|exit| exit.stage == "done");
        if done {
            break;
        }
    }
    assert!(done, "never out");
    let (commitment, _) = confirmed_spender(chain, channel);
    let closing = chain.raw_tx(commitment).unwrap().unwrap();
    let outputs = &closing.output;
    let htlc = |out: &bitcoin::TxOut| out.value == Amount::from_sat(HTLC_SAT);
    let vout = outputs.iter().position(htlc).unwrap() as u32;
    let (success, _) = confirmed_spender(chain, OutPoint::new(commitment, vout));
    let success = chain.raw_tx(success).unwrap().unwrap();
    assert_eq!(success.lock_time.to_consensus_u32(), 0);
    let taken: u64 = success.output.iter().map(|out| out.value.to_sat()).sum();
    assert_eq!(taken, HTLC_SAT - HTLC_SUCCESS_FEE_SAT);
    // The dead LSP's balance is what nobody spends.
    let lsps = (0..).zip(outputs).filter(|(vout, _)| {
        let outpoint = OutPoint::new(commitment, *vout);
        chain.spender_of(outpoint).unwrap().is_none()
    });
    let lsp_sat: u64 = lsps.map(|(_, output)| output.value.to_sat()).sum();
    let arrived = wallet.balance().unwrap().onchain_sat;
    assert_eq!(arrived, left_of(chain, &closing) - lsp_sat);
    assert!(arrived > 100_000, "balance and HTLC");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Killed {
    Member,
    Lsp,
}

/// Whoever is killed while a member is `moving`, the epoch goes on to the millisatoshi.
async fn killed_in_an_epoch(who: Killed, moving: &str) {
    const PAID_MSAT: u64 = 100_000_007;
    let mut stage = Stage::set(2).await;
    let factory = stage.published(&regtest_factory(2)).await;
    stage.finish(&factory).await;
    stage.lsp_pays(0, PAID_MSAT).await;
    stage.quiet().await;
    let seat = |stage: &Stage, wallet: usize| {
        let infos = stage.wallets[wallet].factories().unwrap();
        infos.into_iter().next().unwrap().seats.remove(0)
    };
    let wire = &stage.wires[0].to_lsp;
    wire.hold();
    let request = EpochRequest::default();
    stage.lsp.begin_epoch(&factory, &request).unwrap();
    wait(moving, || {
        let there = seat(&stage, 0).moving.as_deref() == Some(moving);
        if !there && wire.held_bytes() > 0 {
            wire.release();
        }
        there && wire.held_bytes() > 0
    })
    .await;
    match who {
        Killed::Member => stage.wallets[0].kill(),
        Killed::Lsp => stage.lsp.kill(),
    }
    stage.wires[0].to_lsp.pass();
    match who {
        Killed::Member => stage.wallets[0].restart().unwrap(),
        Killed::Lsp => stage.lsp.restart().unwrap(),
    }
    let mut begun = 1;
    wait("everybody to be in the new epoch", || {
        let events = stage.lsp.events(0, 0).unwrap().events;
        let ended = events
            .iter()
            .filter(|it| matches!(it.event, Event::EpochEnded { .. }));
        // A channel that was half open takes another try.
        if ended.count() == begun {
            let again = stage.lsp.begin_epoch(&factory, &request);
            begun += usize::from(again.is_ok());
        }
        let channels = stage.lsp.channels().unwrap();
        let moved = |wallet| {
            let seat = seat(&stage, wallet);
            seat.version == 1 && seat.moving.is_none()
        };
        channels.len() == 2 && channels.iter().all(|it| it.usable) && moved(0) && moved(1)
    })
    .await;
    stage.quiet().await;
    let balance = stage.wallets[0].balance().unwrap();
    assert_eq!(balance.spendable_msat + balance.reserved_msat, PAID_MSAT);
    stage.lsp_pays(0, 10_000_000).await;
    stage.lsp_pays(1, 10_000_000).await;
    assert!(stage.chain.mempool().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_before_it_signs_an_epoch_signs_it_when_it_is_back() {
    killed_in_an_epoch(Killed::Member, "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_after_it_has_signed_an_epoch_switches_when_it_is_back() {
    killed_in_an_epoch(Killed::Member, "committed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_killed_before_members_sign_an_epoch_asks_again_when_it_is_back() {
    killed_in_an_epoch(Killed::Lsp, "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_killed_after_members_have_signed_an_epoch_completes_it_when_it_is_back() {
    killed_in_an_epoch(Killed::Lsp, "committed").await;
}
