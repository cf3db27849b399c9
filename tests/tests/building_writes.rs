//! A member, or its LSP, whose disk takes no more at any one of the writes of a building ceremony: it
//! stands still there, ends, and comes back. All have the factory then, or the LSP has its coins and
//! builds another. And what a member needs to leave is on its disk before it signs the root.

use std::sync::{Arc, Mutex};

use bitcoin::OutPoint;
use superscalar_factory::message::Message as FactoryMessage;
use superscalar_sdk::{
    BackupState, BuildRequest, Event, EventPage, FactoryInfo, OnchainCoins, StoredEvent,
    WalletError,
};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::remote::{Remote, every_write};

const PAID_MSAT: u64 = 100_000_007;
const THERE_MSAT: u64 = 20_000_000;
const BACK_MSAT: u64 = 5_000_000;

/// Of two, in rounds so short that an attempt without one of them is soon over.
fn small_factory() -> BuildRequest {
    BuildRequest {
        round_seconds: 10,
        ..regtest_factory(2)
    }
}

fn coins(network: &TestNetwork) -> OnchainCoins {
    network.lsp().onchain().balance().unwrap()
}

/// What the LSP takes for a forward.
fn fee_msat(amount_msat: u64) -> u64 {
    1_000 + amount_msat * 100 / 1_000_000
}

/// Whether everybody is told that the factory is there; who stands still tells nothing.
fn all_are_told(network: &TestNetwork) -> bool {
    let is_told = |page: Result<EventPage, WalletError>| {
        let active = |it: &StoredEvent| matches!(it.event, Event::FactoryActive { .. });
        page.is_ok_and(|page| page.events.iter().any(active))
    };
    let mut members = network.members.iter();
    is_told(network.lsp().events(0, 1_000)) && members.all(|it| is_told(it.wallet.events(0, 1_000)))
}

/// Whether a funding waits for its block. Nothing else is ever published.
fn is_published(network: &TestNetwork) -> bool {
    let pending = network.chain.mempool().unwrap();
    assert!(pending.len() < 2, "{pending:?}");
    !pending.is_empty()
}

/// Waits until the attempt is over; whether all have the factory.
async fn is_built(network: &TestNetwork) -> bool {
    let mut built = false;
    network
        .wait("the attempt to be over", async || {
            if is_published(network) {
                network.mine(1).await;
            }
            // Of what was never written down nobody knows.
            let infos = network.lsp().factories().await.unwrap();
            if infos.iter().all(|it| it.ended.is_some()) {
                return true;
            }
            let mut all = vec![infos];
            for member in &network.members {
                all.push(member.wallet.factories().list().await.unwrap());
            }
            built = all.iter().all(|infos| infos.iter().any(|it| it.active));
            built
        })
        .await;
    built
}

/// After an attempt that came to nothing: its coins are free, and all are in the next factory.
async fn is_built_anew(network: &TestNetwork, before: OnchainCoins) {
    assert_eq!(coins(network), before);
    assert!(network.chain.mempool().unwrap().is_empty());
    for member in &network.members {
        let factories = member.wallet.factories();
        network
            .wait("the place to be given up", async || {
                let list = factories.list().await.unwrap();
                let over = |it: &FactoryInfo| it.ended.is_some() || it.phase == "dormant";
                list.iter().all(over)
            })
            .await;
        assert_eq!(member.wallet.balance().unwrap(), Default::default());
        factories.join(500_000).await.unwrap();
    }
    network.build(small_factory()).await;
}

/// All are in one factory, what the LSP has spent is its funding, and payments arrive.
async fn all_have_it(network: &TestNetwork, before: OnchainCoins, writes: usize) {
    network.sync().await;
    let infos = network.lsp().factories().await.unwrap();
    let living: Vec<&FactoryInfo> = infos.iter().filter(|it| it.ended.is_none()).collect();
    let [ours] = living[..] else {
        panic!("after {writes} writes: {infos:?}")
    };
    assert!(ours.active && ours.seats.len() == 2, "{ours:?}");
    let funding: OutPoint = ours.funding.as_ref().unwrap().parse().unwrap();
    assert!(network.chain.confirmed_at(funding.txid).unwrap().is_some());
    let spent_sat = network.value_sat(funding) + network.fee_sat(funding.txid);
    let after = coins(network);
    assert_eq!((after.reserved_sat, after.pending_sat), (0, 0));
    assert_eq!(after.spendable_sat, before.spendable_sat - spent_sat);

    network.reconnected().await;
    network.lsp_pays(0, PAID_MSAT).await;
    network.pay(0, 1, THERE_MSAT).await;
    network.pay(1, 0, BACK_MSAT).await;
    network.settle().await;
    let left = [
        PAID_MSAT - THERE_MSAT - fee_msat(THERE_MSAT) + BACK_MSAT,
        THERE_MSAT - BACK_MSAT - fee_msat(BACK_MSAT),
    ];
    let balances = [network.balance_msat(0), network.balance_msat(1)];
    assert_eq!(balances, left, "after {writes} writes");
    assert!(network.chain.mempool().unwrap().is_empty());
}

/// Whether a member writes more of the ceremony than `writes`.
async fn ends_after(writes: usize) -> bool {
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.all_waiting(2).await;
    let before = coins(&network);
    network.remote(0).full_after(writes);
    let begun = network.lsp().create_factory(small_factory()).await;
    begun.unwrap();
    let mut full = false;
    network
        .wait("the disk to be full, or the factory", async || {
            let backup = network.wallet(0).backup().status().unwrap().unwrap();
            full = matches!(backup.state, BackupState::Unreachable { .. });
            if !full && is_published(&network) {
                network.chain.mine(1).unwrap();
            }
            full || all_are_told(&network)
        })
        .await;
    network.wallet(0).stop().await;
    network.remote(0).make_room();
    network.restart(0).await;
    if !is_built(&network).await {
        is_built_anew(&network, before).await;
    }
    all_have_it(&network, before, writes).await;
    network.stop().await;
    full
}

/// Who stands still holds threads, also of others that wait for its locks: there are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_building_survives_the_end_of_a_member_at_every_write() {
    superscalar_tests::log_to_stderr();
    let writes = every_write(4, ends_after).await;
    // Records, the register, the channel's manager and monitor, and the funding's block.
    assert!(writes > 8, "{writes} writes");
}

/// Whether the LSP writes more of the ceremony than `writes`.
async fn its_lsp_ends_after(writes: usize) -> bool {
    let mut network = TestNetwork::start(2).await;
    let remote = Remote::new();
    network.restart_lsp_with(&remote).await;
    network.all_waiting(2).await;
    let before = coins(&network);
    remote.full_after(writes);
    let lsp = Arc::clone(network.lsp.as_ref().unwrap());
    // Where not even this is written down, nobody is asked.
    let building = tokio::spawn(async move { lsp.create_factory(small_factory()).await });
    let mut full = false;
    network
        .wait("the disk to be full, or the factory", async || {
            let state = network.lsp().backup().unwrap().state;
            full = matches!(state, BackupState::Unreachable { .. });
            if !full && is_published(&network) {
                network.chain.mine(1).unwrap();
            }
            full || all_are_told(&network)
        })
        .await;
    network.lose_lsp().await;
    // Whatever it had to say: the LSP is gone.
    let _ = building.await;
    remote.make_room();
    network.restart_lsp_with(&remote).await;
    if !is_built(&network).await {
        is_built_anew(&network, before).await;
    }
    all_have_it(&network, before, writes).await;
    network.stop().await;
    full
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_building_survives_the_end_of_its_lsp_at_every_write() {
    superscalar_tests::log_to_stderr();
    let writes = every_write(4, its_lsp_ends_after).await;
    // Records, coins, the register, two channels' manager and monitors, and the funding's block.
    assert!(writes > 12, "{writes} writes");
}

/// The member's disk as it was when the first byte of its last signature left is all that remains:
/// path, channel and commitment are on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_its_device_while_it_signs_the_root_has_its_channel() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    network.back_up(0).await;
    let tap = network.tap(0).await;
    let copies = Arc::new(Mutex::new(Vec::new()));
    let (copy, taken) = (network.remote(0).copier(), Arc::clone(&copies));
    tap.set_rule(Box::new(move |_, message| match message.factory() {
        Some(FactoryMessage::RootPartial(_)) => {
            taken.lock().unwrap().push(copy());
            Vec::new()
        }
        _ => vec![message],
    }));
    network.wallet(0).factories().join(500_000).await.unwrap();
    network.all_waiting(2).await;
    let factory = network.lsp().create_factory(regtest_factory(2)).await;
    let factory = factory.unwrap();
    network
        .wait("the member to sign the root", async || {
            !copies.lock().unwrap().is_empty()
        })
        .await;
    let infos = network.lsp().factories().await.unwrap();
    assert_eq!(infos[0].phase, "opening");
    assert!(network.chain.mempool().unwrap().is_empty());

    // Of whatever it wrote afterwards nothing is left.
    network.wallet(0).stop().await;
    let then = copies.lock().unwrap().remove(0);
    network.remote(0).roll_back(&then.keep());
    tap.pass();
    network.replace_device(0).await;
    network
        .wait("the funding to be published", async || {
            let infos = network.lsp().factories().await.unwrap();
            assert!(infos[0].ended.is_none(), "{:?}", infos[0].ended);
            infos[0].phase == "published"
        })
        .await;
    network.mine(1).await;
    network
        .wait("both to be active", async || {
            let mut active = 0;
            for member in &network.members {
                let infos = member.wallet.factories().list().await.unwrap();
                let ours = infos.iter().filter(|it| it.factory == factory && it.active);
                active += ours.count();
            }
            active == 2
        })
        .await;
    network.reconnected().await;
    network.mine(1).await;
    assert!(!network.wallet(0).status().unconfirmed);
    network.lsp_pays(0, PAID_MSAT).await;
    network.pay(0, 1, THERE_MSAT).await;
    network.settle().await;
    let left_msat = PAID_MSAT - THERE_MSAT - fee_msat(THERE_MSAT);
    let balances = [network.balance_msat(0), network.balance_msat(1)];
    assert_eq!(balances, [left_msat, THERE_MSAT]);
    assert!(network.wallet(0).exit().status().await.unwrap().is_empty());
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
}
