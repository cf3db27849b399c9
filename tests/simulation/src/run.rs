//! Runs: one seed, or many seeds on several threads, and how a failing one is told.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bugs::Bug;
use crate::invariants::{Invariant, Violation};
use crate::trail::Echo;
use crate::world::{Counts, World};

/// Steps of a run unless asked otherwise.
pub const STEPS: u64 = 5_000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Decides everything that happens.
    pub seed: u64,
    /// How many things happen before everything is brought to rest.
    pub steps: u64,
    /// Whether events are printed as they happen.
    pub echo: Echo,
    /// A bug to be caught.
    pub bug: Option<Bug>,
}

impl Run {
    /// A run of the usual length.
    pub fn of(seed: u64) -> Run {
        Run {
            seed,
            steps: STEPS,
            echo: Echo::Silent,
            bug: None,
        }
    }
}

/// A run in which everything held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over every event, in order.
    pub trace: [u8; 32],
    /// Steps, those that brought it to rest included.
    pub steps: u64,
    /// What they were.
    pub counts: Counts,
}

/// A run in which something did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed that gives it again.
    pub seed: u64,
    /// Steps asked for.
    pub steps: u64,
    /// The step it happened in.
    pub step: u64,
    /// What was broken.
    pub violation: Violation,
    /// The last events before it.
    pub trail: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trail {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "seed {}, step {}: {}",
            self.seed, self.step, self.violation
        )?;
        write!(
            f,
            "again: cargo run -p superscalar-simulation -- --seed {} --steps {}",
            self.seed, self.steps
        )
    }
}

impl std::error::Error for Failure {}

/// Runs one seed.
///
/// # Errors
/// The first promise that was broken; a panic of the code under test is one, too.
pub fn run(run: Run) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(run.seed, run.echo, run.bug);
    let done = catch_unwind(AssertUnwindSafe(|| {
        while world.steps < run.steps {
            world.step()?;
        }
        world.calm_down()?;
        match world.ends_without_lsp() {
            true => world.exodus(),
            false => Ok(()),
        }
    }));
    let done = done.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        let what = format!("a panic: {}", said.unwrap_or_default());
        Err(Violation::new(Invariant::BadInput, what))
    });
    match done {
        Ok(()) => Ok(Outcome {
            trace: world.trail.hash(),
            steps: world.steps,
            counts: world.counts,
        }),
        Err(violation) => Err(Box::new(Failure {
            seed: run.seed,
            steps: run.steps,
            step: world.steps,
            violation,
            trail: world.trail.last(),
        })),
    }
}

/// What many seeds came to.
#[derive(Debug, Clone, Default)]
pub struct Total {
    /// Seeds that ran to their end.
    pub seeds: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// What they were.
    pub counts: Counts,
}

/// Runs seeds from `first` on, on `threads` threads, until `enough` says so of what there is.
///
/// # Errors
/// The failure of the lowest seed that fails.
pub fn run_many(
    first: u64,
    threads: usize,
    enough: impl Fn(&Total) -> bool + Sync,
) -> Result<Total, Box<Failure>> {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    let failure: Mutex<Option<Box<Failure>>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    match run(Run::of(seed)) {
                        Ok(outcome) => {
                            let mut total = lock(&total);
                            total.seeds += 1;
                            total.steps += outcome.steps;
                            total.counts.add(&outcome.counts);
                            if enough(&total) {
                                stop.store(true, Ordering::SeqCst);
                            }
                        }
                        Err(failed) => {
                            stop.store(true, Ordering::SeqCst);
                            let mut first = lock(&failure);
                            if first.as_ref().is_none_or(|other| failed.seed < other.seed) {
                                *first = Some(failed);
                            }
                        }
                    }
                }
            });
        }
    });
    let failed = lock(&failure).take();
    match failed {
        Some(failed) => Err(failed),
        None => Ok(lock(&total).clone()),
    }
}

/// A thread that panicked holding the lock has nothing half written in it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
