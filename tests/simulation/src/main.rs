//! Replays a seed in words, or runs seeds for as long as one likes.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use superscalar_simulation::{Echo, Run, STEPS, run, run_many};

const USAGE: &str = "\
simulation --seed N [--steps M] [--quiet]   one seed, every event printed
simulation --minutes N [--first SEED]       seed after seed on all cores";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let position = arguments.iter().position(|argument| argument == name)?;
        arguments.get(position + 1)?.parse::<u64>().ok()
    };
    match (number("--seed"), number("--minutes")) {
        (Some(seed), None) => one(seed, number("--steps").unwrap_or(STEPS), &arguments),
        (None, Some(minutes)) => soak(minutes, number("--first").unwrap_or(0)),
        _ => {
            say(format_args!("{USAGE}"));
            ExitCode::FAILURE
        }
    }
}

fn one(seed: u64, steps: u64, arguments: &[String]) -> ExitCode {
    let quiet = arguments.iter().any(|argument| argument == "--quiet");
    let echo = match quiet {
        true => Echo::Silent,
        false => Echo::Printed,
    };
    let outcome = run(Run {
        steps,
        echo,
        ..Run::of(seed)
    });
    match outcome {
        Ok(outcome) => {
            say(format_args!("{:#?}", outcome.counts));
            say(format_args!("{} steps, everything held", outcome.steps));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            say(format_args!("{failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Seeds until the time is over, or one fails.
fn soak(minutes: u64, first: u64) -> ExitCode {
    let began = Instant::now();
    let length = Duration::from_secs(60 * minutes);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let told = std::sync::Mutex::new(Duration::ZERO);
    let result = run_many(first, threads, |total| {
        let passed = began.elapsed();
        if let Ok(mut told) = told.lock()
            && passed >= *told + Duration::from_secs(10)
        {
            *told = passed;
            let rate = total.steps / passed.as_secs().max(1);
            say(format_args!(
                "{:>6} s  {:>8} seeds  {:>12} steps  {rate:>8} per second  {} checks of money",
                passed.as_secs(),
                total.seeds,
                total.steps,
                total.counts.recoveries
            ));
        }
        passed >= length
    });
    match result {
        Ok(total) => {
            say(format_args!("{:#?}", total.counts));
            say(format_args!(
                "{} seeds, {} steps, everything held",
                total.seeds, total.steps
            ));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            say(format_args!("{failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads may have seen enough.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
