//! Whether the tests would notice: applies deliberate faults one by one and runs the tests that
//! must fail.
//!
//! What always holds: the checkout is never touched, faults go into a copy under the target
//! directory; a fault whose place is not found exactly once, or that does not compile, is an error,
//! not a success; the tests named for a fault pass without it; and none runs for ever.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The faults, beside this crate's sources.
const LIST: &str = include_str!("../mutations.toml");
/// How long the tests named for one fault may run. None takes a tenth of it without a fault.
const TIME_LIMIT: Duration = Duration::from_secs(600);

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

impl Mutation {
    fn is_one_of(&self, wanted: &[String]) -> bool {
        let mut wanted = wanted.iter();
        wanted.any(|it| *it == self.room || self.name.contains(it))
    }
}

/// Applies all faults, or those of these rooms or with these words in their names, or of those the
/// first in each room, and shows what caught each. A table over all rooms is kept in the target
/// directory.
pub(crate) fn run(root: &Path, only: &[String], one_per_room: bool) -> Result<()> {
    let root = root.canonicalize()?;
    let list: List = toml::from_str(LIST).context("xtask/mutations.toml")?;
    let mut rooms = BTreeSet::new();
    let wanted: Vec<&Mutation> = list
        .mutation
        .iter()
        .filter(|it| only.is_empty() || it.is_one_of(only))
        .filter(|it| !one_per_room || rooms.insert(it.room.as_str()))
        .collect();
    ensure!(!wanted.is_empty(), "no mutation has such a room or name");
    let copy = Copy::of(&root)?;
    let mut table = match (only, one_per_room) {
        ([], false) => Table::in_file(&root.join("target/mutants.md"))?,
        ([], true) => Table::in_file(&root.join("target/mutants-one-per-room.md"))?,
        _ => Table { file: None },
    };
    let commands: BTreeSet<&Vec<String>> = wanted.iter().map(|it| &it.tests).collect();
    for (nth, tests) in (1..).zip(&commands) {
        let (of, tests) = (commands.len(), *tests);
        eprintln!(
            "[{nth}/{of}] without a fault: cargo test {}",
            tests.join(" ")
        );
        match copy.test(tests)? {
            Outcome::Passed => {}
            Outcome::Endless => bail!("does not end without any fault"),
            Outcome::Failed(said) | Outcome::Unbuilt(said) => {
                bail!("fails without any fault:\n{said}")
            }
        }
    }
    let (mut missed, mut unsound) = (Vec::new(), Vec::new());
    table.row(["room", "fault", "caught by", "seconds"])?;
    table.row(["---"; 4])?;
    for (nth, mutation) in (1..).zip(&wanted) {
        let (of, name) = (wanted.len(), mutation.name.as_str());
        eprintln!("[{nth}/{of}] {}: {name}", mutation.room);
        let began = Instant::now();
        let outcome = copy.with(mutation, || copy.test(&mutation.tests))?;
        let by = match outcome {
            Outcome::Passed => {
                missed.push(name);
                "**nothing**".to_owned()
            }
            Outcome::Unbuilt(said) => {
                eprintln!("{said}");
                unsound.push(name);
                "**does not compile**".to_owned()
            }
            Outcome::Failed(said) => culprit(&said),
            Outcome::Endless => "the time limit".to_owned(),
        };
        let seconds = began.elapsed().as_secs().to_string();
        table.row([&mutation.room, name, &by, &seconds])?;
    }
    ensure!(unsound.is_empty(), "no faults: {}", unsound.join(", "));
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

/// What is printed line by line, and kept.
struct Table {
    file: Option<File>,
}

impl Table {
    fn in_file(path: &Path) -> Result<Table> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Table { file: Some(file) })
    }

    fn row(&mut self, cells: [&str; 4]) -> Result<()> {
        let line = format!("| {} |", cells.join(" | "));
        println!("{line}");
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}")?;
        }
        Ok(())
    }
}

/// What became of some tests, and what was said where that matters.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Unbuilt(String),
    /// They were killed at the time limit.
    Endless,
}

/// The first test that failed.
fn culprit(said: &str) -> String {
    let failed: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    match failed.as_slice() {
        [] => "a test program that died".to_owned(),
        [one] => format!("`{one}`"),
        [one, rest @ ..] => format!("`{one}` and {} more", rest.len()),
    }
}

/// A copy of the checkout's files with a target directory of its own.
struct Copy {
    root: PathBuf,
}

impl Copy {
    fn of(root: &Path) -> Result<Copy> {
        let copy = root.join("target/mutants");
        let listed = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()?;
        ensure!(listed.status.success(), "git ls-files: {listed:?}");
        let mut kept = BTreeSet::new();
        for name in listed.stdout.split(|byte| *byte == 0) {
            let name = std::str::from_utf8(name)?;
            let (from, to) = (root.join(name), copy.join(name));
            if name.is_empty() || !from.is_file() {
                continue;
            }
            let content = fs::read(&from)?;
            // What is as it was keeps its time, so that cargo does not build it again.
            if fs::read(&to).ok().as_ref() != Some(&content) {
                let parent = to.parent().context("a file in a directory")?;
                fs::create_dir_all(parent)?;
                fs::copy(&from, &to)?;
            }
            kept.insert(to);
        }
        remove_others(&copy, &kept)?;
        Ok(Copy { root: copy })
    }

    /// Does something with the fault in place, and takes it out again.
    fn with<T>(&self, mutation: &Mutation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = self.root.join(&mutation.file);
        let sound = fs::read_to_string(&file)
            .with_context(|| format!("{}: {}", mutation.name, mutation.file))?;
        let places = sound.matches(&mutation.find).count();
        if places != 1 {
            bail!("{}: its place is there {places} times", mutation.name);
        }
        fs::write(&file, sound.replacen(&mutation.find, &mutation.replace, 1))?;
        let done = work();
        fs::write(&file, sound)?;
        done
    }

    fn test(&self, tests: &[String]) -> Result<Outcome> {
        let cargo = |more: &[&str]| {
            let mut cargo = Command::new(env!("CARGO"));
            cargo
                .args(["test", "--locked", "--no-fail-fast"])
                .args(more)
                .args(tests)
                // Fixed inputs: a fault is caught always or never.
                .env("PROPTEST_CASES", "64")
                .env("CARGO_TARGET_DIR", self.root.join("target"))
                // The checkout's programs, which have no fault.
                .env_remove("SUPERSCALAR_BIN_DIR")
                .current_dir(&self.root);
            cargo
        };
        // Whatever a compiler takes, it ends.
        match self.watch(cargo(&["--no-run"]), Duration::MAX)? {
            Outcome::Passed => self.watch(cargo(&[]), TIME_LIMIT),
            Outcome::Failed(said) => Ok(Outcome::Unbuilt(said)),
            other => Ok(other),
        }
    }

    /// Runs a command to its end, or kills it with all that it has started.
    fn watch(&self, mut command: Command, limit: Duration) -> Result<Outcome> {
        let path = self.root.join("target/said");
        let said = File::create(&path).with_context(|| path.display().to_string())?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()?;
        match wait(&mut child, limit)? {
            Some(status) if status.success() => Ok(Outcome::Passed),
            Some(_) => {
                let said = fs::read(&path)?;
                Ok(Outcome::Failed(String::from_utf8_lossy(&said).into_owned()))
            }
            None => {
                let group = format!("-{}", child.id());
                let killed = Command::new("kill")
                    .args(["-KILL", "--", &group])
                    .status()?;
                ensure!(killed.success(), "tests that do not end cannot be killed");
                child.wait()?;
                Ok(Outcome::Endless)
            }
        }
    }
}

/// `None` if the process still runs at the limit.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// Files of an earlier copy that the checkout has no more.
fn remove_others(copy: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    let target = copy.join("target");
    fs::create_dir_all(&target)?;
    let mut directories = vec![copy.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                if path != target {
                    directories.push(path);
                }
            } else if !kept.contains(&path) {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
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
            let text = fs::read_to_string(root.join(&mutation.file));
            let text = text.unwrap_or_else(|error| panic!("{}: {error}", mutation.file));
            let places = text.matches(&mutation.find).count();
            assert_eq!(places, 1, "{}", mutation.name);
            assert_ne!(mutation.find, mutation.replace, "{}", mutation.name);
        }
    }

    /// A room that no fault is planted in may have no test that would notice one. What is a room:
    /// each module beside a library's root, and each program.
    #[test]
    fn every_room_has_a_fault() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list: List = toml::from_str(LIST).expect("mutations.toml");
        let mut rooms = BTreeSet::new();
        for house in ["sdk/factory/src", "sdk/node/src", "examples"] {
            for entry in fs::read_dir(root.join(house)).expect("a house") {
                let entry = entry.expect("an entry");
                // `exit/` and `exit.rs` are one room.
                rooms.insert(Path::new(house).join(entry.file_name()).with_extension(""));
            }
        }
        // They only name the rooms.
        for no_room in ["sdk/factory/src/lib", "sdk/node/src/lib"] {
            assert!(rooms.remove(Path::new(no_room)), "{no_room}");
        }
        for mutation in &list.mutation {
            let home = Path::new(&mutation.file).with_extension("");
            rooms.retain(|room| !home.starts_with(room));
        }
        assert!(rooms.is_empty(), "no fault in {rooms:?}");
    }

    #[test]
    fn what_does_not_end_is_killed_with_all_it_has_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().to_owned();
        fs::create_dir(root.join("target")).expect("a directory");
        let copy = Copy { root };
        let shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).current_dir(&copy.root);
            shell
        };
        let watch = |script, limit| copy.watch(shell(script), limit).expect("it runs");
        let long = Duration::from_secs(60);
        assert_eq!(watch("true", long), Outcome::Passed);
        let failed = Outcome::Failed("test a::b ... FAILED\n".to_owned());
        assert_eq!(watch("echo 'test a::b ... FAILED'; false", long), failed);
        assert_eq!(culprit("test a::b ... FAILED\ntest c ... ok\n"), "`a::b`");

        // A grandchild holds the lock for as long as it lives.
        let script = "flock lock sleep 1000 & until test -e lock; do :; done; wait";
        assert_eq!(watch(script, Duration::from_secs(1)), Outcome::Endless);
        assert_eq!(watch("flock lock true", long), Outcome::Passed);
    }
}
