//! What building factories and paying cost over real sockets, as rows for `cargo xtask bench`.
//!
//! Ceremony: one LSP and its members in one process, connections up and stores on disk, from the
//! command to build until everyone holds a complete path and the funding is published. Bytes are
//! counted on the sockets, CPU is the whole process's. Payments: member → LSP → member over
//! factory channels against node → LSP → node over ordinary channels, in turn.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "its output is its product")]

use std::time::{Duration, Instant};

use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::ordinary::Ordinary;

/// Pairs of payment batches, factory and ordinary in turn.
const PAIRS: usize = 5;
/// Payments of a batch, one after the other.
const PAYMENTS: usize = 20;
const AMOUNT_MSAT: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    superscalar_tests::log_to_stderr();
    let mut rows = Vec::new();
    for members in [8, 64] {
        eprintln!("ceremony of {members}");
        rows.extend(ceremony(members).await);
    }
    eprintln!("payments");
    rows.extend(payments().await);
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
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let factory = {
            let started = Instant::now();
            for _ in 0..PAYMENTS {
                network.pay(0, 1, AMOUNT_MSAT).await;
            }
            started.elapsed().as_secs_f64()
        };
        let plain = {
            let started = Instant::now();
            for _ in 0..PAYMENTS {
                ordinary.pay(AMOUNT_MSAT).await;
            }
            started.elapsed().as_secs_f64()
        };
        let each = |seconds: f64| seconds * 1_000.0 / PAYMENTS as f64;
        pairs.push((each(factory), each(plain)));
    }
    let median = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let figure = "payment through the LSP";
    let of = format!("median of {PAIRS} interleaved batches of {PAYMENTS}");
    let factory = median(pairs.iter().map(|(factory, _)| *factory).collect());
    let plain = median(pairs.iter().map(|(_, plain)| *plain).collect());
    let ratio = median(
        pairs
            .iter()
            .map(|(factory, plain)| factory / plain)
            .collect(),
    );
    let channels = |kind: &str| format!("{kind} channels, {of}");
    vec![
        row(figure, format!("{factory:.1}"), "ms", channels("factory")),
        row(figure, format!("{plain:.1}"), "ms", channels("ordinary")),
        row(
            figure,
            format!("{ratio:.2}"),
            "ratio",
            "factory to ordinary".to_owned(),
        ),
    ]
}

/// CPU seconds of this process so far, all threads, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // Linux counts in hundredths of a second for every program.
    ticks / 100.0
}
