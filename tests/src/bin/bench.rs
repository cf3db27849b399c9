//! What building factories and paying cost over real sockets, as JSON for `cargo xtask bench`.
//!
//! Ceremony: one LSP and its members in one process, connections up and stores on disk, from the
//! command to build until everyone holds a complete path and the funding is published. Bytes are
//! counted on the sockets, CPU is the whole process's. Payments: member → LSP → member over
//! factory channels against node → LSP → node over ordinary channels, in turn.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "its output is its product")]

use std::time::{Duration, Instant};

use superscalar_tests::network::{Options, TestNetwork, regtest_factory};
use superscalar_tests::ordinary::Ordinary;

/// Pairs of payment batches, factory and ordinary in turn.
const PAIRS: usize = 5;
/// Payments of a batch, one after the other.
const PAYMENTS: usize = 20;
const AMOUNT_MSAT: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    superscalar_tests::log_to_stderr();
    let mut ceremonies = Vec::new();
    for members in [8, 64] {
        eprintln!("ceremony of {members}");
        ceremonies.push(ceremony(members).await);
    }
    eprintln!("payments");
    let payments = payments().await;
    let report = serde_json::json!({ "ceremonies": ceremonies, "payments": payments });
    println!("{report}");
}

async fn ceremony(members: u16) -> serde_json::Value {
    let options = Options {
        metered: true,
        poll_interval: Duration::from_secs(60),
    };
    let network = TestNetwork::start_with(usize::from(members), options).await;
    network.all_waiting(members).await;
    let (bytes, cpu, started) = (network.metered_bytes(), cpu_seconds(), Instant::now());
    network.build_unconfirmed(regtest_factory(members)).await;
    let wall = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let bytes = network.metered_bytes() - bytes;
    serde_json::json!({
        "members": members,
        "wall_s": wall,
        "cpu_s": cpu,
        "bytes_per_member": bytes / u64::from(members),
    })
}

async fn payments() -> serde_json::Value {
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
    serde_json::json!({
        "factory_ms": median(pairs.iter().map(|(factory, _)| *factory).collect()),
        "ordinary_ms": median(pairs.iter().map(|(_, plain)| *plain).collect()),
        "ratio": median(pairs.iter().map(|(factory, plain)| factory / plain).collect()),
        "pairs": PAIRS,
        "payments": PAYMENTS,
    })
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
