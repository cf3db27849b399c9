//! Somebody brings the tree of an older epoch on chain, from a copy of its own disk: while the other
//! side looks, the newest state is first; a member that slept has the stock that was retired, what was
//! sold of it, and what its old channel held, and all of that where it was a revoked balance. The
//! cheater gains nothing.

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, TxOut, Txid};
use superscalar_sdk::{BuildRequest, EpochRequest, Event, ExitMode, Lsp, SeatInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, left_of, value_of};

const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 300_000;
const BEFORE_MSAT: u64 = 100_000_000;
/// What the member is paid after the switch: what the cheater wants back.
const LATER_MSAT: u64 = 150_000_000;
/// What the member had when a copy was taken that was soon revoked.
const REVOKED_MSAT: u64 = 10_000_000;
/// What the LSP's own output of its commitment waits for.
const LSP_DELAY_BLOCKS: u32 = 720;
const BOUGHT_SAT: u64 = 120_000;
/// More than the leaf's own channel has room for.
const FILLING_MSAT: u64 = 420_000_000;

/// A member that has moved, and an LSP that has forgotten it.
struct Moved {
    network: TestNetwork,
    cheat: Arc<Lsp>,
    factory: String,
    slot: u16,
    old: OutPoint,
    new: OutPoint,
    /// Channels that were bought before the switch.
    sold: Vec<OutPoint>,
    /// What was ours in each channel before the switch, by its capacity.
    own_sat: Vec<(u64, u64)>,
    /// What was ours at the end.
    newest_sat: u64,
}

/// What the cheater's copy is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// Of the moment before the epoch.
    Newest,
    /// Of a state that was revoked before the epoch was made.
    Revoked,
    /// Of the moment before the epoch, and a channel was bought by then.
    Sold,
}

impl Moved {
    async fn start() -> Moved {
        Moved::from(Copy::Newest).await
    }

    async fn from(of: Copy) -> Moved {
        superscalar_tests::log_to_stderr();
        let mut network = TestNetwork::start(2).await;
        let request = BuildRequest {
            capacity_sat: CAPACITY_SAT,
            stock_sat: STOCK_SAT,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        let mut copy = None;
        let mut first_msat = BEFORE_MSAT;
        if of == Copy::Revoked {
            network.lsp_pays(0, REVOKED_MSAT).await;
            network.settle().await;
            copy = Some(network.save_lsp().await);
            network.reconnected().await;
            first_msat -= REVOKED_MSAT;
        }
        network.lsp_pays(0, first_msat).await;
        let mut price_msat = 0;
        if of == Copy::Sold {
            price_msat = buy(&network, &factory).await;
            // Fills the bought channel as well.
            network.lsp_pays(0, FILLING_MSAT).await;
        }
        network.at_rest(0).await;
        let old = network.seat(0, &factory).await;
        let own = own_sat(&network);
        let copy = match copy {
            Some(copy) => copy,
            None => network.save_lsp().await,
        };
        network.reconnected().await;
        let request = EpochRequest::default();
        network.lsp().begin_epoch(&factory, request).await.unwrap();
        network
            .wait("both to move", async || {
                let page = network.lsp().events(0, 1_000).unwrap();
                let events = page.events.into_iter();
                let moved = |event: &Event| matches!(event, Event::EpochMoved { .. });
                events.filter(|it| moved(&it.event)).count() == 2
            })
            .await;
        let (filled_msat, later_msat) = match of {
            // As much as the merged channel has room for.
            Copy::Sold => (FILLING_MSAT, 80_000_000),
            _ => (0, LATER_MSAT),
        };
        network.lsp_pays(0, later_msat).await;
        network.at_rest(0).await;
        let newest_msat = BEFORE_MSAT + filled_msat - price_msat + later_msat;
        assert_eq!(network.balance_msat(0), newest_msat);
        let new = network.seat(0, &factory).await;
        network.lose_lsp().await;
        network.wallet(1).stop().await;
        let cheat = network.lsp_beside(&copy).await;
        let place = format!("{factory}/{}", old.slot);
        let exit = cheat.exit();
        exit.start(&place, ExitMode::Leave).await.unwrap();
        let channel = |seat: &SeatInfo| seat.channel.as_ref().unwrap().parse().unwrap();
        Moved {
            old: channel(&old),
            new: channel(&new),
            slot: old.slot,
            sold: old
                .sold
                .iter()
                .map(|it| it.channel.parse().unwrap())
                .collect(),
            own_sat: own,
            newest_sat: newest_msat / 1_000,
            network,
            cheat,
            factory,
        }
    }

    /// A block that the cheater looks at, and perhaps our wallet.
    async fn block(&self, we: We) {
        self.network.chain.mine(1).unwrap();
        self.cheat.sync().await.unwrap();
        if let We::Look = we {
            self.network.wallet(0).sync().await.unwrap();
        }
    }

    /// Mines until `txid` is in a block.
    async fn until(&self, txid: Txid, we: We) -> Transaction {
        for _ in 0..100 {
            if self.network.chain.confirmed_at(txid).unwrap().is_some() {
                return self.network.chain.raw_tx(txid).unwrap().unwrap();
            }
            self.block(we).await;
        }
        panic!("{txid} is in no block");
    }

    async fn until_left(&self) {
        for _ in 0..400 {
            self.block(We::Look).await;
            if self.network.exit(0).await.stage == "done" {
                return;
            }
        }
        panic!("{:?}", self.network.exit(0).await);
    }
}

/// Buys a channel and waits until both sides say that it is paid for; its price.
async fn buy(network: &TestNetwork, factory: &str) -> u64 {
    let factories = network.wallet(0).factories();
    let quoted = factories.quote_inbound(factory, BOUGHT_SAT, 1_000_000);
    let quoted = quoted.await.unwrap();
    factories.buy_inbound(&quoted).await.unwrap();
    let is_paid = |event: &Event| matches!(event, Event::InboundPaid { .. });
    network
        .wait("the channel to be paid for", async || {
            let both = [network.member_events(0), network.lsp_events()];
            both.iter().all(|events| events.iter().any(is_paid))
        })
        .await;
    quoted.price_msat
}

/// What is the member's in each of its channels, by capacity, by the LSP's word.
fn own_sat(network: &TestNetwork) -> Vec<(u64, u64)> {
    let channels = network.channels_with(0).into_iter();
    let each = channels.map(|it| {
        let own_msat = it.capacity_sat * 1_000 - it.balance_msat;
        (it.capacity_sat, own_msat / 1_000)
    });
    each.collect()
}

#[derive(Clone, Copy)]
enum We {
    Look,
    Sleep,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_state_is_first_while_the_member_looks() {
    let moved = Moved::start().await;
    let network = &moved.network;
    let leaf = moved.until(moved.new.txid, We::Look).await;
    // Both states spend the same kickoff: the old one can never confirm any more.
    let (spender, _) = network.confirmed_spender(leaf.input[0].previous_output);
    assert_eq!(spender.compute_txid(), moved.new.txid);
    assert_eq!(network.chain.confirmed_at(moved.old.txid).unwrap(), None);
    // Leaving brings all of it home.
    let own = [(moved.new, (BEFORE_MSAT + LATER_MSAT) / 1_000)];
    let exit = network.wallet(0).exit();
    exit.start(&moved.factory, ExitMode::Leave).await.unwrap();
    moved.until_left().await;
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
    // And the cheater has what was its own, less the fees.
    let (commitment, _) = network.confirmed_spender(moved.new);
    let whole_sat = network.value_sat(moved.new);
    assert_eq!(value_of(&commitment), whole_sat - COMMITMENT_FEE_SAT);
    let is_ours = |it: &&TxOut| it.value.to_sat() == moved.newest_sat;
    let ours = commitment.output.iter().filter(is_ours);
    assert_eq!(ours.count(), 1, "the rest is the cheater's");
    moved.cheat.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_slept_takes_the_retired_stock_and_what_the_old_channel_held() {
    let mut moved = Moved::start().await;
    moved.network.wallet(0).stop().await;
    let leaf = moved.until(moved.old.txid, We::Sleep).await;
    moved.network.restart(0).await;
    let network = &moved.network;
    let stock = OutPoint::new(moved.old.txid, stock_vout(&leaf, moved.slot));
    moved.until_left().await;
    // The stock is taken by its preimage, before the LSP may take it after its delay.
    let (sweep, height) = network.confirmed_spender(stock);
    let leaf_at = network.chain.confirmed_at(moved.old.txid).unwrap().unwrap();
    assert!(height < leaf_at + 144, "{height} {leaf_at}");
    assert_eq!(
        sweep.input[0].witness.len(),
        4,
        "signature, preimage, script, control"
    );
    let taken_sat: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    assert_eq!(taken_sat, STOCK_SAT - network.fee_sat(sweep.compute_txid()));
    let told = Event::StockTaken {
        factory: moved.factory.clone(),
        slot: moved.slot,
        txid: sweep.compute_txid().to_string(),
        amount_sat: taken_sat,
        height,
    };
    let taken = |event: &Event| matches!(event, Event::StockTaken { .. });
    let events = network.member_events(0).into_iter();
    assert_eq!(events.filter(taken).collect::<Vec<_>>(), [told]);
    let own = [(moved.old, BEFORE_MSAT / 1_000)];
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own) + taken_sat);
    // What the cheater kept from the member is less than the stock it has lost for it.
    let kept_sat = (BEFORE_MSAT + LATER_MSAT) / 1_000 - own[0].1;
    let lost_sat = network.value_sat(stock);
    assert!(kept_sat < lost_sat, "{kept_sat} {lost_sat}");
    // And the member has more than it had before.
    assert!(coins.spendable_sat > (BEFORE_MSAT + LATER_MSAT) / 1_000);
    assert_eq!(network.balance_msat(0), 0);
    moved.cheat.stop().await;
}

/// Channels come first, each place's stock after them.
fn stock_vout(leaf: &Transaction, slot: u16) -> u32 {
    let stocks = (0..).zip(&leaf.output);
    let mut stocks = stocks.filter(|(_, out)| out.value.to_sat() == STOCK_SAT);
    stocks.nth(usize::from(slot)).unwrap().0
}

/// The sale of a retired leaf is published with it: the bought channel pays what it held, and what was
/// left of the stock is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_slept_has_what_it_had_bought_and_takes_the_rest_of_the_stock() {
    let mut moved = Moved::from(Copy::Sold).await;
    moved.network.wallet(0).stop().await;
    let leaf = moved.until(moved.old.txid, We::Sleep).await;
    moved.network.restart(0).await;
    let network = &moved.network;
    let stock = OutPoint::new(moved.old.txid, stock_vout(&leaf, moved.slot));
    moved.until_left().await;
    let leaf_at = network.chain.confirmed_at(moved.old.txid).unwrap().unwrap();
    let (first, height) = network.confirmed_spender(stock);
    assert!(height < leaf_at + 144, "{height} {leaf_at}");
    let of = |capacity_sat| {
        let mut all = moved.own_sat.iter();
        all.find(|(other, _)| *other == capacity_sat).unwrap().1
    };
    let mut own = vec![(moved.old, of(CAPACITY_SAT))];
    let taken = match first.compute_txid() == moved.sold[0].txid {
        // The sale was first: its channel pays, the rest is taken.
        true => {
            own.push((moved.sold[0], of(BOUGHT_SAT)));
            let rest = OutPoint::new(moved.sold[0].txid, 1);
            let (sweep, height) = network.confirmed_spender(rest);
            assert!(height < leaf_at + 144, "{height} {leaf_at}");
            sweep
        }
        // The member's sweep was: everything that was sold is in it.
        false => first,
    };
    let taken_sat: u64 = taken.output.iter().map(|it| it.value.to_sat()).sum();
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own) + taken_sat);
    // What the cheater kept back is less than the stock it has lost for it.
    assert!(coins.spendable_sat > moved.newest_sat, "{coins:?}");
    assert_eq!(network.balance_msat(0), 0);
    moved.cheat.stop().await;
}

/// The old leaf with a balance that was revoked before: all of that channel is the member's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_balance_on_a_retired_leaf_costs_the_lsp_the_whole_channel() {
    let mut moved = Moved::from(Copy::Revoked).await;
    moved.network.wallet(0).stop().await;
    let leaf = moved.until(moved.old.txid, We::Sleep).await;
    // Its own commitment follows.
    let mut published = None;
    for _ in 0..20 {
        published = moved.network.chain.spender_of(moved.old).unwrap();
        if published.as_ref().is_some_and(|it| it.height.is_some()) {
            break;
        }
        moved.block(We::Sleep).await;
    }
    let revoked = published.expect("the cheater publishes what it has").txid;
    let revoked = moved.network.chain.raw_tx(revoked).unwrap().unwrap();
    let mut amounts = revoked.output.iter().map(|output| output.value.to_sat());
    assert!(amounts.any(|amount| amount == REVOKED_MSAT / 1_000));
    moved.network.restart(0).await;
    // It was in a block before the start: told all the same, with what is the cheater's in it.
    let published_at = moved.network.chain.confirmed_at(revoked.compute_txid());
    let told = Event::RevokedCommitment {
        channel: moved.old.to_string(),
        peer: moved.cheat.node_id(),
        txid: revoked.compute_txid().to_string(),
        height: published_at.unwrap().unwrap(),
        claimable_sat: value_of(&revoked) - REVOKED_MSAT / 1_000,
    };
    let is_revoked = |event: &Event| matches!(event, Event::RevokedCommitment { .. });
    let events = moved.network.member_events(0).into_iter();
    assert_eq!(events.filter(is_revoked).collect::<Vec<_>>(), [told]);
    let stock = OutPoint::new(moved.old.txid, stock_vout(&leaf, moved.slot));
    moved.until_left().await;
    let network = &moved.network;
    let txid = revoked.compute_txid();
    let confirmed = network.chain.confirmed_at(txid).unwrap().unwrap();
    for vout in 0..revoked.output.len() as u32 {
        let (_, height) = network.confirmed_spender(OutPoint { txid, vout });
        assert!(height < confirmed + LSP_DELAY_BLOCKS, "{vout}");
    }
    let (sweep, _) = network.confirmed_spender(stock);
    let taken_sat: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    let coins = network.wallet(0).onchain().balance().unwrap();
    let channel_sat = left_of(&network.chain, &revoked);
    assert_eq!(coins.spendable_sat, channel_sat + taken_sat);
    // All of the channel and of the stock, less what transactions cost.
    assert!(coins.spendable_sat > CAPACITY_SAT + STOCK_SAT - 20_000);
    assert!(coins.spendable_sat > moved.newest_sat);
    moved.cheat.stop().await;
}

/// A member publishes the leaf of before it paid: its LSP looks, and the newest state is first. All
/// that the cheater has left is what the newest commitment pays it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_publishes_an_older_epoch_is_outrun_by_its_lsp() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let request = BuildRequest {
        capacity_sat: CAPACITY_SAT,
        stock_sat: STOCK_SAT,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let rich = network.save(0).await;
    network.reconnected().await;
    let old = network.seat(0, &factory).await;
    let request = EpochRequest::default();
    network.lsp().begin_epoch(&factory, request).await.unwrap();
    network
        .wait("both to move", async || {
            let moved = |event: &&Event| matches!(event, Event::EpochMoved { .. });
            network.lsp_events().iter().filter(moved).count() == 2
        })
        .await;
    network.pay(0, 1, 150_000_000).await;
    network.settle().await;
    let newest_msat = network.balance_msat(0);
    let newest_sat = newest_msat / 1_000;
    assert!(newest_sat < 50_000);
    let new = network.seat(0, &factory).await;
    let neighbour_msat = network.balance_msat(1);
    let [old_leaf, new_leaf]: [OutPoint; 2] =
        [&old, &new].map(|seat| seat.channel.as_ref().unwrap().parse().unwrap());

    // On the wire it would be told that it is behind.
    network.members[0].wire.to_lsp.hold();
    network.members[0].wire.to_member.hold();
    network.rewind(0, &rich).await;
    assert_eq!(network.balance_msat(0), 200_000_000);
    let cheater = network.wallet(0).exit();
    cheater.start(&factory, ExitMode::Leave).await.unwrap();
    network.confirm(new_leaf.txid, &[0]).await;
    let leaf = network.chain.raw_tx(new_leaf.txid).unwrap().unwrap();
    let kickoff = leaf.input[0].previous_output;
    let (spender, _) = network.confirmed_spender(kickoff);
    assert_eq!(spender.compute_txid(), new_leaf.txid);
    // It goes on trying, in vain.
    for _ in 0..40 {
        network.block(&[0]).await;
    }
    assert_eq!(network.chain.confirmed_at(old_leaf.txid).unwrap(), None);
    assert_eq!(
        network.wallet(0).onchain().balance().unwrap().spendable_sat,
        0
    );
    // The LSP has its side of the newest state whenever it wants, and the cheater its own and no more.
    let place = format!("{factory}/{}", new.slot);
    network
        .lsp()
        .exit()
        .start(&place, ExitMode::Leave)
        .await
        .unwrap();
    let txid = network.spent(new_leaf).await;
    network.confirm(txid, &[0]).await;
    let commitment = network.chain.raw_tx(txid).unwrap().unwrap();
    let outputs = commitment.output.iter().map(|it| it.value.to_sat());
    let outputs: Vec<u64> = outputs.collect();
    assert!(outputs.contains(&newest_sat), "{outputs:?}");
    let others_sat = (CAPACITY_SAT * 1_000 - newest_msat) / 1_000 - COMMITMENT_FEE_SAT;
    assert!(outputs.contains(&others_sat), "{outputs:?}");
    assert_eq!(network.balance_msat(1), neighbour_msat);
    network.stop().await;
}
