//! What the demo says while it works: a spinner where stderr is a terminal, plain lines where not.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const REDRAW: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(50);
/// How long any one thing may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// One step that is done.
#[derive(Clone, Debug)]
pub struct Done {
    /// What was done.
    pub what: String,
    /// What came of it.
    pub result: String,
    /// Height of the chain when it was.
    pub height: u32,
    /// How long it took.
    pub took: Duration,
}

/// Steps so far, and the one that is under way.
pub struct Progress {
    bar: Option<ProgressBar>,
    done: Vec<Done>,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// Nothing done. Every wait ends with an error once `interrupted` is set.
    pub fn new(interrupted: Arc<AtomicBool>) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(REDRAW);
            bar
        });
        Progress {
            bar,
            done: Vec::new(),
            interrupted,
        }
    }

    /// What is done.
    pub fn steps(&self) -> &[Done] {
        &self.done
    }

    /// Does one step and remembers it; `work` gives its value, what came of it, and the height.
    ///
    /// # Errors
    /// What `work` failed with, and in which step.
    pub fn step<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&Progress) -> anyhow::Result<(T, String, u32)>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        self.now(what);
        let (value, result, height) = work(self).map_err(|error| error.context(what.to_owned()))?;
        let took = started.elapsed();
        self.say(format!("✓ {what}: {result} ({:.1} s)", took.as_secs_f32()));
        self.done.push(Done {
            what: what.to_owned(),
            result,
            height,
            took,
        });
        Ok(value)
    }

    /// What is under way; seen on a terminal only.
    pub fn now(&self, what: impl Display) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_string());
        }
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When it does not come true in two minutes, cannot be asked, or the demo is interrupted.
    pub fn wait(
        &self,
        what: &str,
        mut condition: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + LIMIT;
        while !condition()? {
            self.go_on()?;
            anyhow::ensure!(Instant::now() < until, "waited in vain for {what}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// An error once the demo is interrupted.
    ///
    /// # Errors
    /// Then.
    pub fn go_on(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Takes the spinner away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: String) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // Nobody may be reading any more.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }
}
