//! Whether the tests would notice: applies deliberate faults one by one and runs the tests that
//! must fail.
//!
//! What always holds: the checkout is never touched, faults go into a copy under the target
//! directory; a fault whose place is not found exactly once is an error, not a success; and the
//! tests named for a fault pass without it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The faults, beside this crate's sources.
const LIST: &str = include_str!("../mutations.toml");

#[derive(Deserialize)]
struct List {
    mutation: Vec<Mutation>,
}

/// One deliberate fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    /// What it is called.
    name: String,
    /// The room it is in.
    room: String,
    file: String,
    find: String,
    replace: String,
    /// Arguments of `cargo test`.
    tests: Vec<String>,
}

/// Applies all faults, or those whose name contains `only`, and prints what caught each.
pub(crate) fn run(root: &Path, only: Option<&str>) -> Result<()> {
    let root = root.canonicalize()?;
    let list: List = toml::from_str(LIST).context("xtask/mutations.toml")?;
    let wanted: Vec<&Mutation> = list
        .mutation
        .iter()
        .filter(|it| only.is_none_or(|only| it.name.contains(only)))
        .collect();
    ensure!(!wanted.is_empty(), "no mutation has such a name");
    let copy = Copy::of(&root)?;
    let commands: BTreeSet<&Vec<String>> = wanted.iter().map(|it| &it.tests).collect();
    for tests in commands {
        eprintln!("without a fault: cargo test {}", tests.join(" "));
        let outcome = copy.test(tests)?;
        ensure!(
            outcome.status.success(),
            "fails without any fault:\n{}",
            said(&outcome)
        );
    }
    let mut missed = Vec::new();
    println!("| room | fault | caught by | seconds |");
    println!("|---|---|---|---|");
    for mutation in wanted {
        let began = Instant::now();
        let caught = copy.with(mutation, || copy.test(&mutation.tests))?;
        let caught = verdict(&caught);
        let seconds = began.elapsed().as_secs();
        let by = caught.clone().unwrap_or_else(|| "**nothing**".to_owned());
        println!(
            "| {} | {} | {by} | {seconds} |",
            mutation.room, mutation.name
        );
        if caught.is_none() {
            missed.push(mutation.name.as_str());
        }
    }
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

/// The first test that failed, or that the compiler did; `None` if everything passed.
fn verdict(outcome: &Output) -> Option<String> {
    if outcome.status.success() {
        return None;
    }
    let text = said(outcome);
    let failed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    Some(match failed.as_slice() {
        [] => "the compiler".to_owned(),
        [one] => format!("`{one}`"),
        [one, rest @ ..] => format!("`{one}` and {} more", rest.len()),
    })
}

fn said(outcome: &Output) -> String {
    let both = [&outcome.stdout[..], &outcome.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A copy of the tracked files with a target directory of its own.
struct Copy {
    root: PathBuf,
}

impl Copy {
    fn of(root: &Path) -> Result<Copy> {
        let copy = root.join("target/mutants");
        let listed = Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(root)
            .output()?;
        ensure!(listed.status.success(), "git ls-files: {}", said(&listed));
        for name in listed.stdout.split(|byte| *byte == 0) {
            let name = std::str::from_utf8(name)?;
            let (from, to) = (root.join(name), copy.join(name));
            if name.is_empty() || !from.is_file() {
                continue;
            }
            let content = std::fs::read(&from)?;
            // What is as it was keeps its time, so that cargo does not build it again.
            if std::fs::read(&to).ok().as_ref() != Some(&content) {
                let parent = to.parent().context("a file in a directory")?;
                std::fs::create_dir_all(parent)?;
                std::fs::copy(&from, &to)?;
            }
        }
        Ok(Copy { root: copy })
    }

    /// Does something with the fault in place, and takes it out again.
    fn with<T>(&self, mutation: &Mutation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = self.root.join(&mutation.file);
        let sound = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: {}", mutation.name, mutation.file))?;
        let places = sound.matches(&mutation.find).count();
        if places != 1 {
            bail!("{}: its place is there {places} times", mutation.name);
        }
        std::fs::write(&file, sound.replacen(&mutation.find, &mutation.replace, 1))?;
        let done = work();
        std::fs::write(&file, sound)?;
        done
    }

    fn test(&self, tests: &[String]) -> Result<Output> {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--locked", "--no-fail-fast"])
            .args(tests)
            // Fixed inputs: a fault is caught always or never.
            .env("PROPTEST_CASES", "64")
            .env("CARGO_TARGET_DIR", self.root.join("target"))
            .current_dir(&self.root)
            .output()?;
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault that cannot be planted shows nothing.
    #[test]
    fn every_fault_has_exactly_one_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list: List = toml::from_str(LIST).expect("mutations.toml");
        assert!(list.mutation.len() >= 20);
        let names: BTreeSet<&str> = list.mutation.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names.len(), list.mutation.len(), "names are unique");
        for mutation in &list.mutation {
            let text = std::fs::read_to_string(root.join(&mutation.file));
            let text = text.unwrap_or_else(|error| panic!("{}: {error}", mutation.file));
            let places = text.matches(&mutation.find).count();
            assert_eq!(places, 1, "{}", mutation.name);
        }
    }
}
