//! A wallet whose every step is on a remote store first: it comes back on a new device with nothing
//! but its words, is never two devices at once, and stands still while the remote store is away.

use std::str::FromStr;

use bitcoin::{Amount, OutPoint, Txid};
use superscalar_sdk::{
    Action, BackupError, BackupState, Begin, BuildRequest, EpochRequest, Event, ExitMode, Mnemonic,
    PaymentStatus, WalletError, WordCount,
};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::{LspProcess, WalletProcess};
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::remote::{Remote, start_lsp};
use superscalar_tests::tap::{FUNDING_CREATED, FUNDING_SIGNED, Side};
use superscalar_tests::wire::REVOKE_BYTES;
use tempfile::TempDir;

/// How long the member's output of its own commitment is locked.
const MEMBER_DELAY_BLOCKS: u32 = 144;

fn code<T>(refused: Result<T, WalletError>) -> (&'static str, Action) {
    match refused {
        Ok(_) => panic!("not refused"),
        Err(error) => (error.code(), error.action()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_lsp_dead_a_new_device_without_coins_brings_the_newest_balance_home() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(3).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    let factory = network.build(regtest_factory(3)).await;
    for member in 0..2 {
        network.lsp_pays(member, 100_000_000).await;
    }
    network.pay(0, 1, 30_000_000).await;
    network.pay(1, 0, 10_000_001).await;
    network.settle().await;
    let balance_sat = network.balance_msat(0) / 1_000;
    let tree = network.wallet(0).factories().tree(&factory).await.unwrap();
    let before = network.wallet(0).factories().list().await.unwrap();
    network.lose_lsp().await;

    network.replace_device(0).await;
    let wallet = network.wallet(0);
    let coins = wallet.onchain().balance().unwrap();
    assert_eq!((coins.spendable_sat, coins.pending_sat), (0, 0));
    assert_eq!(network.balance_msat(0) / 1_000, balance_sat);
    assert_eq!(wallet.factories().tree(&factory).await.unwrap(), tree);
    assert_eq!(wallet.factories().list().await.unwrap(), before);
    let status = wallet.status();
    assert!(status.unconfirmed && status.backup.unwrap().generation == 2);

    let exit = wallet.exit();
    let refused = code(exit.start(&factory, ExitMode::Leave).await);
    assert_eq!(refused, ("unconfirmed_state", Action::CheckBackup));
    exit.accept_restored_state().await.unwrap();
    exit.start(&factory, ExitMode::Leave).await.unwrap();
    assert!(!wallet.status().unconfirmed);
    let mut blocks = 0;
    while network.exit(0).await.stage != "done" {
        network.mine(1).await;
        blocks += 1;
        assert!(blocks < 700, "{:?}", network.exit(0).await);
    }
    let mut confirmed = 0;
    for node in tree {
        for tx in node.transactions {
            let at = network
                .chain
                .confirmed_at(Txid::from_str(&tx.txid).unwrap());
            match tx.role.as_str() {
                "distribution" => assert_eq!(at.unwrap(), None),
                _ => confirmed = confirmed.max(at.unwrap().unwrap()),
            }
        }
    }
    let leaf = OutPoint::from_str(before[0].seats[0].channel.as_ref().unwrap()).unwrap();
    let (commitment, at) = network.confirmed_spender(leaf);
    assert!(at > confirmed, "{at} {confirmed}");
    // The newest state and no other: after each payment this output was another.
    let ours: Vec<usize> = (0..commitment.output.len())
        .filter(|vout| commitment.output[*vout].value.to_sat() == balance_sat)
        .collect();
    let [vout] = ours[..] else {
        panic!("{balance_sat} sat in {commitment:?}")
    };
    let spent = OutPoint::new(commitment.compute_txid(), vout as u32);
    let (sweep, swept_at) = network.confirmed_spender(spent);
    assert!(swept_at >= at + MEMBER_DELAY_BLOCKS, "{swept_at} {at}");
    let arrived: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    assert_eq!(sweep.input.len(), 1);
    let (fee, vbytes) = (balance_sat - arrived, sweep.vsize() as u64);
    assert!(fee >= vbytes && fee <= 20 * vbytes, "{fee} for {vbytes}");
    let balance = network.wallet(0).balance().unwrap();
    assert_eq!(balance.onchain_sat, arrived);
    assert_eq!(balance.spendable_msat + balance.reserved_msat, 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_device_stops_when_a_new_one_has_taken_over() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;

    let (new, directory) = network.restored(0).await.unwrap();
    let payee = network.wallet(1).lightning();
    let invoice = payee.receive(Some(10_000_000), "", 3_600).await.unwrap();
    let old = std::mem::replace(&mut network.members[0].wallet, new);
    let superseded = ("backup_superseded", Action::UseOtherDevice);
    let refused = old.lightning().send(&invoice, None).await;
    assert_eq!(code(refused), superseded);
    network
        .wait("the old device to stop", async || !old.status().running)
        .await;
    assert_eq!(code(old.lightning().send(&invoice, None).await), superseded);
    assert_eq!(code(old.balance()), superseded);
    let state = old.backup().status().unwrap().unwrap().state;
    assert!(matches!(state, BackupState::Lost { .. }), "{state:?}");
    old.stop().await;
    assert_eq!(code(old.start().await), superseded);

    network.reconnected().await;
    network.mine(1).await;
    let status = network.wallet(0).status();
    assert!(
        !status.unconfirmed,
        "the channel works: its state is the newest"
    );
    let hash = network.wallet(0).lightning().send(&invoice, None).await;
    let hash = hash.unwrap();
    network.settled(network.wallet(0), &hash).await;
    network.settled(network.wallet(1), &hash).await;
    network.settle().await;
    assert_eq!(network.balance_msat(1), 10_000_000);
    assert_eq!(network.channel(0).inbound_htlcs, 0);
    network.stop().await;
    drop(directory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_backup_a_member_signs_no_commitment_and_the_factory_waits() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.all_waiting(2).await;
    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let factory = network.lsp().create_factory(regtest_factory(2)).await;
    let factory = factory.unwrap();
    // Up to where the member's next message lets the LSP send it a commitment.
    network
        .wait("the channels to be opened", async || {
            let infos = network.lsp().factories().await.unwrap();
            if infos[0].phase != "opening" && wire.held_bytes() > 0 {
                wire.release();
            }
            infos[0].phase == "opening"
        })
        .await;
    network.remote(0).unmount();
    wire.pass();
    network.stands_still(0).await;
    let infos = network.lsp().factories().await.unwrap();
    assert_eq!(infos[0].phase, "opening");
    assert!(network.chain.mempool().unwrap().is_empty());

    network.remote(0).mount();
    network
        .wait("the funding to be published", async || {
            let infos = network.lsp().factories().await.unwrap();
            infos.iter().any(|it| it.phase == "published")
        })
        .await;
    network.mine(1).await;
    network
        .wait("both to be active", async || {
            for member in &network.members {
                let infos = member.wallet.factories().list().await.unwrap();
                if !infos.iter().any(|it| it.factory == factory && it.active) {
                    return false;
                }
            }
            true
        })
        .await;
    network.lsp_pays(0, 10_000_000).await;
    network.settle().await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_backup_a_wallet_sends_nothing_of_a_payment() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let payee = network.wallet(1).lightning();
    let outgoing = payee.receive(Some(10_000_000), "", 3_600).await.unwrap();
    let receiver = network.wallet(0).lightning();
    let incoming = receiver.receive(Some(5_000_000), "", 3_600).await.unwrap();
    network
        .wait("the wallet to be at rest", async || {
            network.channel(0).inbound_htlcs + network.channel(0).outbound_htlcs == 0
        })
        .await;

    network.remote(0).unmount();
    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let refused = code(network.wallet(0).lightning().send(&outgoing, None).await);
    assert_eq!(refused, ("backup_unreachable", Action::CheckBackup));
    network.stands_still(0).await;
    let hash = network.lsp().lightning().send(&incoming, None).await;
    let hash = hash.unwrap();
    network
        .wait("the LSP to offer the payment", async || {
            network.channel(0).outbound_htlcs == 1
        })
        .await;
    // The commitment with it is not revoked for, nor is anything signed.
    assert!(wire.held_bytes() < REVOKE_BYTES, "{}", wire.held_bytes());
    let lightning = network.lsp().lightning();
    let paid = lightning.payment(&hash).unwrap().unwrap();
    assert_eq!(paid.status, PaymentStatus::Pending);

    network.remote(0).mount();
    wire.pass();
    network.settled(network.wallet(0), &hash).await;
    let again = network.wallet(0).lightning().send(&outgoing, None).await;
    let again = again.unwrap();
    network.settled(network.wallet(0), &again).await;
    network.settled(network.wallet(1), &again).await;
    network.settle().await;
    assert_eq!(network.balance_msat(1), 10_000_000);
    let state = network.wallet(0).status().backup.unwrap().state;
    assert_eq!(state, BackupState::Current);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_backup_is_refused() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.build(regtest_factory(2)).await;
    let older = network.remote(0).copy();
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let wallet = std::sync::Arc::clone(network.wallet(0));
    wallet.stop().await;
    network.remote(0).roll_back(&older.keep());
    let refused = code(wallet.start().await);
    assert_eq!(refused, ("backup_rolled_back", Action::CheckBackup));
    network.remote(0).roll_forward();
    wallet.start().await.unwrap();
    network.reconnected().await;
    network.pay(0, 1, 10_000_000).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_restored_and_the_old_one_ends() {
    let chain = RegtestNode::new().unwrap();
    let remote = Remote::new();
    let words = Mnemonic::generate(WordCount::Twelve).unwrap();
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [here, there] = directories.each_ref().map(TempDir::path);
    let old = start_lsp(&chain, &words, here, &remote, Begin::Continue).await;
    let old = old.unwrap();
    let address: bitcoin::Address<_> = old.onchain().address().unwrap().parse().unwrap();
    let script = address.assume_checked().script_pubkey();
    chain.fund(&script, Amount::from_sat(5_000_000)).unwrap();
    old.sync().await.unwrap();

    let new = start_lsp(&chain, &words, there, &remote, Begin::Restore).await;
    let new = new.unwrap();
    assert_eq!(new.node_id(), old.node_id());
    assert_eq!(new.balance().onchain_sat, 5_000_000);
    assert_eq!(new.backup().unwrap().generation, 2);
    // The next block is the first thing it would write.
    chain.mine(1).unwrap();
    let lost = old.lost().await;
    assert!(matches!(lost, BackupError::Superseded { .. }), "{lost}");
    old.stop().await;
    new.sync().await.unwrap();
    new.stop().await;
}

#[test]
fn the_command_line_backs_up_and_restores() {
    let chain = RegtestNode::new().unwrap();
    let lsp = LspProcess::start(&chain).unwrap();
    let remote = tempfile::tempdir().unwrap();
    let mut wallet = WalletProcess::start(&chain, &lsp.uri).unwrap();
    wallet.stop().unwrap();
    wallet.also(&["--backup-dir", remote.path().to_str().unwrap()]);
    wallet.restart().unwrap();
    let address: bitcoin::Address<_> = wallet.address().unwrap().parse().unwrap();
    let script = address.assume_checked().script_pubkey();
    chain.fund(&script, Amount::from_sat(70_000)).unwrap();
    wallet.sync().unwrap();
    let before = wallet.status().unwrap();
    assert_eq!(before.backup.as_ref().unwrap().generation, 1);

    wallet.lose_data().unwrap();
    let refused = wallet.restart().unwrap_err().to_string();
    assert!(refused.contains("error[restore_needed]"), "{refused}");
    wallet.also(&["--begin", "restore"]);
    wallet.restart().unwrap();
    let after = wallet.status().unwrap();
    assert_eq!(after.node_id, before.node_id);
    let (before, after) = (before.backup.unwrap(), after.backup.unwrap());
    assert_eq!((after.generation, after.state), (2, BackupState::Current));
    assert!(after.position > before.position);
    assert_eq!(wallet.balance().unwrap().onchain_sat, 70_000);
}

/// A channel with an expired payment is closed by LDK before anybody has confirmed that its state is
/// the newest. What follows from that would publish a commitment, so it waits for the user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_wallet_whose_state_nobody_confirms_leaves_when_it_is_told_to() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let payee = network.wallet(1).lightning();
    let invoice = payee.receive(Some(30_000_000), "", 3_600).await.unwrap();
    network.members[1].wire.to_lsp.hold();
    let paying = network.wallet(0).lightning();
    paying.send(&invoice, None).await.unwrap();
    network
        .wait("the payment to be on its way", async || {
            network.channel(1).outbound_htlcs == 1
        })
        .await;
    network.lose_lsp().await;
    network.replace_device(0).await;
    let wallet = network.wallet(0);
    let infos = wallet.factories().list().await.unwrap();
    let funding = OutPoint::from_str(infos[0].funding.as_ref().unwrap()).unwrap();

    // That the funding has left the chain says nothing of the state: it comes back.
    let (chain, exit) = (&network.chain, wallet.exit());
    let height = chain.confirmed_at(funding.txid).unwrap().unwrap();
    let tip = chain.height().unwrap();
    chain.invalidate(chain.block_hash(height).unwrap()).unwrap();
    chain.mine_empty_to_height(tip + 1_000).unwrap();
    network.follow(&[0]).await;
    assert_eq!(chain.confirmed_at(funding.txid).unwrap(), None);
    assert!(wallet.status().unconfirmed);
    network.block(&[0]).await;
    assert!(chain.confirmed_at(funding.txid).unwrap().is_some());
    network.block(&[0]).await;
    assert!(wallet.status().unconfirmed);
    assert!(exit.status().await.unwrap().is_empty());
    assert_eq!(network.chain.spender_of(funding).unwrap(), None);

    // What its channel held when it was closed is what an exit would bring.
    let plan = exit.plan(&factory).await.unwrap();
    assert_eq!(plan.balance_sat, 100_000);
    assert!(plan.worth_it && plan.arriving_sat > 90_000);
    let refused = code(exit.start("nowhere", ExitMode::Leave).await);
    assert_eq!(refused.0, "unknown_factory");
    assert!(wallet.status().unconfirmed, "a refusal changes nothing");
    let refused = code(exit.start(&factory, ExitMode::Leave).await);
    assert_eq!(refused, ("unconfirmed_state", Action::CheckBackup));
    network.block(&[0]).await;
    assert!(wallet.status().unconfirmed && exit.status().await.unwrap().is_empty());
    assert_eq!(network.chain.spender_of(funding).unwrap(), None);
    exit.accept_restored_state().await.unwrap();
    exit.start(&factory, ExitMode::Leave).await.unwrap();
    let leaf = OutPoint::from_str(infos[0].seats[0].channel.as_ref().unwrap()).unwrap();
    network.mined_spend(leaf, &[0]).await;
    let (commitment, _) = network.confirmed_spender(leaf);
    let amounts = commitment.output.iter().map(|it| it.value.to_sat());
    assert!(amounts.into_iter().any(|amount| amount == 30_000 + 4));
    network.stop().await;
}

/// What a hash chain cannot show: the remote store hides its newest entries, and the device that
/// knew them is gone. The LSP's proof that the state is an old one is what protects then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_state_the_lsp_proves_old_nothing_is_published() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let older = network.remote(0).copy();
    network.pay(0, 1, 30_000_000).await;
    network.settle().await;
    let newest_sat = network.balance_msat(0) / 1_000;
    let infos = network.lsp().factories().await.unwrap();
    let funding = OutPoint::from_str(infos[0].funding.as_ref().unwrap()).unwrap();

    network.wallet(0).stop().await;
    network.remote(0).roll_back(&older.keep());
    let (stale, _directory) = network.restored(0).await.unwrap();
    network
        .wait("the stale wallet to be stopped", async || {
            !stale.status().running
        })
        .await;
    let refused = stale.exit().start(&factory, ExitMode::Leave).await;
    assert_eq!(code(refused), ("old_state", Action::CheckBackup));
    assert!(network.chain.mempool().unwrap().is_empty());
    assert_eq!(network.chain.spender_of(funding).unwrap(), None);

    // Started again it brings the leaf on chain, but no commitment of its own.
    stale.stop().await;
    stale.start().await.unwrap();
    let status = stale.status();
    assert!(status.running && status.old_state && !status.lsp_connected);
    let seat = stale
        .factories()
        .list()
        .await
        .unwrap()
        .remove(0)
        .seats
        .remove(0);
    let leaf = OutPoint::from_str(&seat.channel.unwrap()).unwrap();
    let slot = seat.slot;
    stale.exit().start(&factory, ExitMode::Leave).await.unwrap();
    network.members[0].wallet = stale;
    let mut blocks = 0;
    while network.chain.confirmed_at(leaf.txid).unwrap().is_none() {
        network.mine(1).await;
        blocks += 1;
        assert!(blocks < 700, "{:?}", network.exit(0).await);
    }
    network.mine(10).await;
    assert_eq!(network.chain.spender_of(leaf).unwrap(), None);

    // The LSP's closing pays the newest balance.
    let place = format!("{factory}/{slot}");
    let lsp_exit = network.lsp().exit();
    lsp_exit.start(&place, ExitMode::Leave).await.unwrap();
    while network.wallet(0).balance().unwrap().onchain_sat == 0 {
        network.mine(1).await;
        blocks += 1;
        assert!(blocks < 1_000, "{:?}", network.exit(0).await);
    }
    let (commitment, _) = network.confirmed_spender(leaf);
    let ours = commitment
        .output
        .iter()
        .position(|it| it.value.to_sat() == newest_sat);
    let spent = OutPoint::new(commitment.compute_txid(), ours.unwrap() as u32);
    let (sweep, _) = network.confirmed_spender(spent);
    let arrived: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    assert_eq!(network.wallet(0).balance().unwrap().onchain_sat, arrived);
    assert!(arrived > newest_sat - 20 * sweep.vsize() as u64);
    network.stop().await;
}

/// The device is gone in the middle of a purchase: this message of the channel's opening was the last
/// and has not arrived. What is left of the channel is dead, and nobody has paid for it.
async fn a_new_device_buys_again_when(speaker: Side, said: u16) {
    const PAID_MSAT: u64 = 100_000_007;
    const MORE_MSAT: u64 = 450_000_000;
    const ANY_PRICE_MSAT: u64 = 100_000_000;
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    let request = BuildRequest {
        stock_sat: 300_000,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    for member in [0, 1] {
        network.lsp_pays(member, PAID_MSAT).await;
    }
    network.settle().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    let before = network.wallet(0).balance().unwrap();
    network.half_buy(0, &factory, &tap, speaker, said).await;
    tap.pass();
    network.replace_device(0).await;

    network.reconnected().await;
    network.mine(1).await;
    network
        .wait("the state to be known for the newest", async || {
            !network.wallet(0).status().unconfirmed
        })
        .await;
    let capacity_msat = 500_000_000;
    let own = (PAID_MSAT, capacity_msat - PAID_MSAT);
    assert_eq!(network.at_rest(0).await, own);
    assert_eq!(network.wallet(0).balance().unwrap(), before);
    let seat = network.seat(0, &factory).await;
    let sale = (seat.sale.as_deref(), seat.sold.len());
    assert_eq!(sale, (Some("pending"), 0));
    assert!(network.wallet(0).exit().status().await.unwrap().is_empty());

    // A new epoch brings its stock back.
    network
        .wait("the LSP to know that it is lost", async || {
            let request = EpochRequest::default();
            let begun = network.lsp().begin_epoch(&factory, request).await;
            begun.is_ok_and(|name| name.starts_with("epoch 1 of node"))
        })
        .await;
    let moved = |events: Vec<Event>| {
        let moved = |event: &&Event| matches!(event, Event::EpochMoved { .. });
        events.iter().filter(moved).count()
    };
    network
        .wait("both to move", async || {
            let members = [0, 1].map(|member| moved(network.member_events(member)));
            (members, moved(network.lsp_events())) == ([1, 1], 2)
        })
        .await;
    assert_eq!(network.at_rest(0).await, own);
    let seat = network.seat(0, &factory).await;
    assert_eq!((seat.capacity_sat, seat.stock_sat), (500_000, 300_000));
    let factories = network.wallet(0).factories();
    let quote = factories.quote_inbound(&factory, 120_000, ANY_PRICE_MSAT);
    let quote = quote.await.unwrap();
    factories.buy_inbound(&quote).await.unwrap();
    let paid = |events: Vec<Event>| {
        let paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
        events.iter().filter(paid).count()
    };
    network
        .wait("the channel to be paid for", async || {
            paid(network.member_events(0)) == 1 && paid(network.lsp_events()) == 1
        })
        .await;
    // More than one of the channels can hold.
    network.lsp_pays(0, MORE_MSAT).await;
    let own_msat = PAID_MSAT - quote.price_msat + MORE_MSAT;
    let own = (own_msat, capacity_msat + 120_000_000 - own_msat);
    assert_eq!(network.at_rest(0).await, own);
    assert_eq!(network.channels_with(0).len(), 2);
    network.pay(0, 1, 20_000_000).await;
    assert_eq!(network.at_rest(1).await.0, PAID_MSAT + 20_000_000);
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_buys_again_when_the_old_one_alone_held_its_bought_channel() {
    a_new_device_buys_again_when(Side::Member, FUNDING_SIGNED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_buys_again_when_a_sale_was_signed_and_never_delivered() {
    a_new_device_buys_again_when(Side::Lsp, FUNDING_CREATED).await;
}
