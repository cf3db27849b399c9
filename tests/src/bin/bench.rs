//! What building factories and paying cost over real sockets, as rows for `cargo xtask bench`.
//!
//! Ceremony: one LSP and its members in one process, connections up and stores on disk, from the
//! command to build until everyone holds a complete path and the funding is published. Bytes are
//! counted on the sockets, CPU is the whole process's. Payments: member → LSP → member over
//! factory channels against node → LSP → node over ordinary channels, in turn. Many members: a
//! `lsp-node` process of its own, see [`superscalar_tests::scale`].
//!
//! All of it, or what is named: `bench epochs watching`.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "its output is its product")]

use std::time::{Duration, Instant};

use superscalar_sdk::{BuildRequest, EpochRequest, Event, Wallet};
use superscalar_tests::appointments;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::ordinary::Ordinary;
use superscalar_tests::scale::{self, Scale, processor_time};

/// Pairs of payment batches, factory and ordinary in turn.
const PAIRS: usize = 5;
/// Payments of a batch, one after the other.
const PAYMENTS: usize = 20;
const AMOUNT_MSAT: u64 = 100_000;
/// Members who buy, and channels each buys.
const BUYERS: usize = 4;
const SALES_EACH: usize = 3;
/// Factories that are built to be moved in.
const EPOCHS: usize = 3;
/// Factories that a tower looks after.
const WATCHED: u32 = 1_000;
/// Blocks over which a tower's time is measured.
const BLOCKS: u32 = 200;
/// Groups and members of each: the largest factory, and many of the largest that is wise.
const GROUPS: [(usize, u16); 2] = [(1, 128), (16, 64)];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    superscalar_tests::log_to_stderr();
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| {
        let wanted = only.is_empty() || only.iter().any(|it| it == part);
        if wanted {
            eprintln!("{part}");
        }
        wanted
    };
    let mut rows = Vec::new();
    if wanted("ceremonies") {
        for members in [8, 64] {
            rows.extend(ceremony(members).await);
        }
    }
    if wanted("payments") {
        rows.extend(payments().await);
    }
    if wanted("sales") {
        rows.extend(sales().await);
    }
    if wanted("epochs") {
        rows.extend(epochs().await);
    }
    if wanted("watching") {
        rows.extend(watching().await);
    }
    if wanted("scale") {
        rows.extend(scale().await);
    }
    println!("{}", serde_json::Value::from(rows));
}

fn row(figure: &str, value: String, unit: &str, remark: String) -> serde_json::Value {
    serde_json::json!({ "figure": figure, "value": value, "unit": unit, "remark": remark })
}

async fn ceremony(members: u16) -> Vec<serde_json::Value> {
    let network = TestNetwork::start_polling(usize::from(members), Duration::from_secs(60)).await;
    network.all_waiting(members).await;
    let (bytes, cpu, started) = (network.carried_bytes(), cpu_seconds(), Instant::now());
    network.build_unconfirmed(regtest_factory(members)).await;
    let wall = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let bytes = network.carried_bytes() - bytes;
    let figure = "ceremony over sockets";
    let of = || format!("{members} members, stores on disk");
    vec![
        row(figure, format!("{wall:.2}"), "s wall", of()),
        row(
            figure,
            format!("{cpu:.2}"),
            "s CPU",
            format!("{}, all parties", of()),
        ),
        row(
            figure,
            format!("{:.1}", bytes as f64 / f64::from(members) / 1_000.0),
            "kB per member",
            format!("{}, both directions, encryption included", of()),
        ),
    ]
}

async fn payments() -> Vec<serde_json::Value> {
    let network = TestNetwork::start(4).await;
    network.build(regtest_factory(4)).await;
    network.lsp_pays(0, 200_000_000).await;
    let ordinary = Ordinary::start().await;
    let mut rounds = Vec::new();
    for _ in 0..PAIRS {
        let factory = each(PAYMENTS, || network.pay(0, 1, AMOUNT_MSAT)).await;
        let plain = each(PAYMENTS, || ordinary.pay(AMOUNT_MSAT)).await;
        // The same again: what two measurements of one thing differ by.
        let again = each(PAYMENTS, || ordinary.pay(AMOUNT_MSAT)).await;
        rounds.push((factory, plain, again));
    }
    let figure = "payment through the LSP";
    let of = format!("median of {PAIRS} interleaved batches of {PAYMENTS}");
    let factory = median(rounds.iter().map(|(factory, ..)| *factory).collect());
    let plain = median(rounds.iter().map(|(_, plain, _)| *plain).collect());
    let ratios = rounds.iter().map(|(factory, plain, _)| factory / plain);
    let ratios: Vec<f64> = ratios.collect();
    let noise: Vec<f64> = rounds.iter().map(|(_, one, other)| other / one).collect();
    let remark = format!(
        "factory to ordinary, {}; ordinary to ordinary {}",
        range(&ratios),
        range(&noise)
    );
    let channels = |kind: &str| format!("{kind} channels, {of}");
    vec![
        row(figure, format!("{factory:.1}"), "ms", channels("factory")),
        row(figure, format!("{plain:.1}"), "ms", channels("ordinary")),
        row(figure, format!("{:.2}", median(ratios)), "ratio", remark),
    ]
}

/// Does it so often, one after the other; the time of one in milliseconds.
async fn each<F: Future>(times: usize, mut one: impl FnMut() -> F) -> f64 {
    let started = Instant::now();
    for _ in 0..times {
        one().await;
    }
    started.elapsed().as_secs_f64() * 1_000.0 / times as f64
}

/// The least and the greatest of them.
fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.2} to {greatest:.2}")
}

/// From the question what a channel costs until it can receive, and until it is paid for.
async fn sales() -> Vec<serde_json::Value> {
    let network = TestNetwork::start(BUYERS).await;
    let request = BuildRequest {
        stock_sat: 300_000,
        ..regtest_factory(BUYERS as u16)
    };
    let factory = network.build(request).await;
    let (mut delivered, mut paid) = (Vec::new(), Vec::new());
    for member in 0..BUYERS {
        network.lsp_pays(member, 100_000_000).await;
    }
    network.settle().await;
    for member in 0..BUYERS {
        let wallet = network.wallet(member);
        let factories = wallet.factories();
        for _ in 0..SALES_EACH {
            let after = newest(wallet);
            let started = Instant::now();
            let quoted = factories.quote_inbound(&factory, 50_000, 1_000_000).await;
            factories.buy_inbound(&quoted.unwrap()).await.unwrap();
            let is_delivered = |event: &Event| matches!(event, Event::InboundDelivered { .. });
            until_told(wallet, after, is_delivered).await;
            delivered.push(started.elapsed().as_secs_f64() * 1_000.0);
            let is_paid = |event: &Event| matches!(event, Event::InboundPaid { .. });
            until_told(wallet, after, is_paid).await;
            paid.push(started.elapsed().as_secs_f64() * 1_000.0);
            // The LSP sells the next one when it has the payment as well.
            let sold = paid.len();
            network
                .wait("the LSP to be paid", async || {
                    let events = network.lsp().events(0, 1_000).unwrap().events;
                    events.iter().filter(|it| is_paid(&it.event)).count() >= sold
                })
                .await;
        }
    }
    network.stop().await;
    let figure = "sale over sockets";
    let of = format!("median of {}, stores on disk", BUYERS * SALES_EACH);
    vec![
        row(
            figure,
            format!("{:.0}", median(delivered)),
            "ms",
            format!("from asking the price until the channel can receive, {of}"),
        ),
        row(
            figure,
            format!("{:.0}", median(paid)),
            "ms",
            "until it is paid for".to_owned(),
        ),
    ]
}

/// From the command until everybody has switched, first of one leaf, then of the whole tree.
async fn epochs() -> Vec<serde_json::Value> {
    let is_moved = |event: &Event| matches!(event, Event::EpochMoved { .. });
    let moved = |events: Vec<Event>| events.iter().filter(|it| is_moved(it)).count();
    // Members who move: those of the first leaf; and when its epochs are used up, everybody.
    let mut rounds = [(4, Vec::new()), (8, Vec::new())];
    for _ in 0..EPOCHS {
        let network = TestNetwork::start(8).await;
        let factory = network.build(regtest_factory(8)).await;
        network.lsp_pays(0, 100_000_000).await;
        network.settle().await;
        let mut so_far = 0;
        for (members, took) in &mut rounds {
            so_far += *members;
            let started = Instant::now();
            let begun = network.lsp().begin_epoch(&factory, EpochRequest::default());
            begun.await.unwrap();
            network
                .wait("everybody to move, and the LSP to know", async || {
                    let wallets = (0..8).map(|member| moved(network.member_events(member)));
                    moved(network.lsp_events()) == so_far && wallets.sum::<usize>() == so_far
                })
                .await;
            took.push(started.elapsed().as_secs_f64() * 1_000.0);
        }
        network.stop().await;
    }
    let rows = rounds.map(|(members, took)| {
        let of = format!("{members} of 8 members move, median of {EPOCHS}, stores on disk");
        let value = format!("{:.0}", median(took));
        row("new epoch over sockets", value, "ms", of)
    });
    rows.to_vec()
}

/// What a block costs a tower, with and without factories to look after.
async fn watching() -> Vec<serde_json::Value> {
    let looked = appointments::watched(WATCHED, BLOCKS).await;
    let figure = format!("{WATCHED} factories looked after by one `watchtower`");
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1_000.0);
    let of = format!("a block, mean of {BLOCKS}");
    vec![
        row(
            &figure,
            ms(looked.block),
            "ms CPU",
            format!("{of}, {} outputs looked at", looked.outpoints),
        ),
        row(
            &figure,
            ms(looked.block_without),
            "ms CPU",
            format!("{of}, before there was anything to look after"),
        ),
    ]
}

fn newest(wallet: &Wallet) -> u64 {
    let events = wallet.events(0, 1_000).unwrap().events;
    events.last().map_or(0, |stored| stored.cursor)
}

async fn until_told(wallet: &Wallet, after: u64, is_it: impl Fn(&Event) -> bool) {
    let mut seen = after;
    loop {
        let page = wallet.events(seen, 1_000).unwrap();
        if page.events.iter().any(|stored| is_it(&stored.event)) {
            return;
        }
        seen = page.events.last().map_or(seen, |stored| stored.cursor);
        wallet.wait_for_event(seen).await.unwrap();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn scale() -> Vec<serde_json::Value> {
    let mut rows = Vec::new();
    for (groups, size) in GROUPS {
        let Scale {
            members,
            slowest_ceremony,
            median_ceremony,
            ceremony_bytes_each,
            ceremony_cpu,
            server_bytes_each,
            server_disk_each,
            wallet_bytes_each,
            block,
            start,
            payment,
        } = scale::measure(groups, size).await;
        let figure = format!("{members} members on one `lsp-node`");
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1_000.0);
        let kb = |bytes: u64| format!("{:.0}", bytes as f64 / 1_000.0);
        let of = format!("{groups} × {size} members");
        let each = [
            (
                ms(median_ceremony),
                "ms",
                format!("a group's ceremony, median of {of}, wallets beside it"),
            ),
            (ms(slowest_ceremony), "ms", "the slowest group".to_owned()),
            (
                format!("{:.1}", ceremony_bytes_each as f64 / 1_000.0),
                "kB",
                "per member over its socket in a ceremony, the last group".to_owned(),
            ),
            (
                ms(ceremony_cpu),
                "ms CPU",
                "of the server for a group's ceremony".to_owned(),
            ),
            (
                kb(server_bytes_each),
                "kB",
                "memory of the server per member".to_owned(),
            ),
            (
                kb(server_disk_each),
                "kB",
                "disk of the server per member".to_owned(),
            ),
            (kb(wallet_bytes_each), "kB", "memory of a wallet".to_owned()),
            (
                ms(block),
                "ms",
                format!("to handle a block with {members} channels"),
            ),
            (
                ms(payment),
                "ms",
                "a payment between members with all connected".to_owned(),
            ),
            (
                ms(start),
                "ms",
                format!("start of the server with {members} channels"),
            ),
        ];
        rows.extend(each.map(|(value, unit, remark)| row(&figure, value, unit, remark)));
    }
    rows
}

/// CPU seconds of this process so far.
fn cpu_seconds() -> f64 {
    processor_time(std::process::id()).as_secs_f64()
}
