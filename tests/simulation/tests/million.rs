//! A million steps of many worlds, each under its own seed, with every promise checked.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests"
)]

use std::time::Instant;

use superscalar_simulation::{Echo, Run, run, run_many};

/// Steps `make test` runs; `SIMULATION_STEPS` asks for others.
const STEPS: u64 = 1_000_000;

#[test]
fn a_million_steps_break_no_promise() {
    let steps = std::env::var("SIMULATION_STEPS").ok();
    let steps = steps.map_or(STEPS, |text| text.parse().expect("a number of steps"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let total = run_many(0, threads, |total| total.steps >= steps);
    let total = total.unwrap_or_else(|failure| panic!("{failure}"));
    // How long it may take depends on the machine: whoever runs it judges.
    let took = began.elapsed();
    println!("{total:#?}\nin {took:.1?} on {threads} threads");
    let counts = total.counts;
    // What was checked must have been there.
    assert!(total.steps >= steps);
    for (what, count) in [
        ("messages", counts.messages),
        ("payments", counts.payments),
        ("crashes", counts.crashes),
        ("reorgs", counts.reorged),
        ("hostile acts", counts.hostile),
        ("factories", counts.published),
        ("exits", counts.exits),
        ("balances that came home", counts.home),
        ("checks of money", counts.recoveries),
        ("channels that were bought", counts.sales),
        ("sales that were paid for", counts.paid),
        ("members that moved", counts.moves),
        ("carries", counts.carries),
    ] {
        assert!(count > steps / 10_000, "only {count} {what}");
    }
    // What takes a whole history, and somebody who cheats at its end.
    for (what, count) in [
        ("epochs that were abandoned", counts.abandoned),
        ("members in limbo", counts.limbo),
        ("places without another epoch", counts.used_up),
        ("lost sales that an epoch retired", counts.outlived),
        ("leaves of older epochs", counts.stale),
        ("sweeps of older stock", counts.swept),
        ("stock taken back", counts.reclaimed),
        ("transactions that towers published", counts.guarded),
        ("departures that cost a balance", counts.forgone),
    ] {
        assert!(count >= steps / 200_000, "only {count} {what}");
    }
    // What takes an LSP that breaks its promise before anybody looks, or a tower that is alone with a
    // cheat and comes too late for the newest state.
    for (what, count) in [
        ("epochs that were learnt of on chain", counts.late),
        ("stock that towers took", counts.claimed),
    ] {
        assert!(count >= steps / 500_000, "only {count} {what}");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in [3, 9, 12] {
        let short = Run {
            steps: 1_500,
            ..Run::of(seed)
        };
        let (first, second) = (run(short).unwrap(), run(short).unwrap());
        assert_eq!(first, second);
        let other = run(Run {
            seed: seed + 1_000,
            echo: Echo::Silent,
            ..short
        });
        assert_ne!(first.trace, other.unwrap().trace);
    }
}
