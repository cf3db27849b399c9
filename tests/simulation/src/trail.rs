//! What happened: a hash over all of it, and the last of it in words.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};

/// Events that are kept in words.
const KEPT: usize = 40;

/// The events of a run, in order.
#[derive(Debug)]
pub(crate) struct Trail {
    hash: [u8; 32],
    last: VecDeque<String>,
    echo: Echo,
}

/// Whether events are also printed as they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Only the last are kept.
    Silent,
    /// All go to standard output.
    Printed,
}

impl Trail {
    pub(crate) fn new(echo: Echo) -> Trail {
        Trail {
            hash: [0; 32],
            last: VecDeque::with_capacity(KEPT),
            echo,
        }
    }

    pub(crate) fn note(&mut self, step: u64, event: fmt::Arguments<'_>) {
        let line = format!("{step:>7}  {event}");
        let mut engine = sha256::Hash::engine();
        engine.input(&self.hash);
        engine.input(line.as_bytes());
        self.hash = sha256::Hash::from_engine(engine).to_byte_array();
        if self.echo == Echo::Printed {
            // A reader that has seen enough does not end the run.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The hash over every event so far.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}
