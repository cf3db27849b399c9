//! Builds a wallet-less bitcoind from the Bitcoin Core tree inside the published crate
//! `libbitcoinkernel-sys`, once per machine.
//!
//! What always holds: the source is the one Cargo.lock pins; a file in `bin/` of the cache is
//! complete (it is renamed into place); one process builds, all others wait for its lock.
//!
//! Layout: `<cache>/superscalar/build/<key>/bin/bitcoind`, where the key names the crate's version,
//! so another version never finds this build.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::binary::BitcoindError;
use crate::build_packages::{BUILD_PACKAGES, require};

const CRATE: &str = "libbitcoinkernel-sys";
const CRATE_VERSION: &str = "0.4.1";

/// What cmake reads beside Bitcoin Core's own files, in this crate's folder.
const CMAKE_INCLUDE: &str = "bitcoind.cmake";
const CMAKE_OPTIONS: [&str; 14] = [
    "-DBUILD_DAEMON=ON",
    "-DBUILD_CLI=OFF",
    "-DENABLE_WALLET=OFF",
    "-DENABLE_IPC=OFF",
    "-DBUILD_TESTS=OFF",
    "-DBUILD_BENCH=OFF",
    "-DBUILD_TX=OFF",
    "-DBUILD_UTIL=OFF",
    "-DBUILD_WALLET_TOOL=OFF",
    "-DBUILD_BITCOIN_BIN=OFF",
    "-DWITH_EMBEDDED_ASMAP=OFF",
    "-DINSTALL_MAN=OFF",
    "-DCMAKE_BUILD_TYPE=Release",
    // Its tests wait for the compiler more than for what it makes.
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
];

/// The cached bitcoind, built first if the cache has none.
pub(crate) fn cached_or_built() -> Result<PathBuf, BitcoindError> {
    let home = cache_folder()?.join(format!("bitcoind-{CRATE}-{CRATE_VERSION}"));
    let bitcoind = home.join("bin").join("bitcoind");
    if bitcoind.is_file() {
        return Ok(bitcoind);
    }
    fs::create_dir_all(&home).map_err(|e| cache_error(&home, e))?;
    let _lock = wait_for_lock(&home.join("lock"))?;
    // Whoever held the lock before has probably built it.
    if !bitcoind.is_file() {
        require(&BUILD_PACKAGES)?;
        build(&core_source()?, &home)?;
    }
    Ok(bitcoind)
}

fn cache_folder() -> Result<PathBuf, BitcoindError> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache
        .ok_or(BitcoindError::NoCacheFolder)?
        .join("superscalar")
        .join("build"))
}

fn wait_for_lock(path: &Path) -> Result<File, BitcoindError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| cache_error(path, e))?;
    if file.try_lock().is_err() {
        progress("bitcoind: another process is building it, waiting");
        file.lock().map_err(|e| cache_error(path, e))?;
    }
    Ok(file)
}

/// Folder of the Bitcoin Core tree, fetched by cargo like any other dependency: from the registry
/// or mirror the user configured, checked against Cargo.lock.
fn core_source() -> Result<PathBuf, BitcoindError> {
    let failed = |reason: String| BitcoindError::Source(reason);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let host = host_platform(&cargo)
        .ok_or_else(|| failed(format!("{} -vV names no host", cargo.display())))?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        // Without it cargo downloads what other platforms need, too.
        .args(["--filter-platform", &host])
        .args(["--features", "core-source", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == CRATE && package["version"] == CRATE_VERSION)
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|manifest| Path::new(manifest).parent())
        .map(|folder| folder.join("bitcoin"))
        .ok_or_else(|| failed(format!("{CRATE} {CRATE_VERSION} is not in Cargo.lock")))
}

fn host_platform(cargo: &OsStr) -> Option<String> {
    let output = Command::new(cargo).arg("-vV").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
}

fn build(source: &Path, home: &Path) -> Result<(), BitcoindError> {
    let started = Instant::now();
    let work = home.join("work");
    let log = home.join("build.log");
    fs::create_dir_all(&work).map_err(|e| cache_error(&work, e))?;
    File::create(&log).map_err(|e| cache_error(&log, e))?;

    progress(&format!(
        "bitcoind: none found, building it from {CRATE} {CRATE_VERSION} into {} (minutes, once)",
        home.display()
    ));
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join(CMAKE_INCLUDE);
    let mut named_include = OsString::from("-DCMAKE_PROJECT_BitcoinCore_INCLUDE=");
    named_include.push(include);
    let mut cmake = Command::new("cmake");
    cmake
        .args(["-G", "Ninja", "-S"])
        .arg(source)
        .arg("-B")
        .arg(&work)
        .arg(named_include)
        .args(CMAKE_OPTIONS);
    run_logged(cmake, "cmake", &log, started)?;
    let mut ninja = Command::new("ninja");
    ninja
        .arg("-C")
        .arg(&work)
        .arg("bitcoind")
        .env("NINJA_STATUS", "[%f/%t] ");
    run_logged(ninja, "ninja", &log, started)?;

    let bin = home.join("bin");
    fs::create_dir_all(&bin).map_err(|e| cache_error(&bin, e))?;
    // Its presence is what marks the cache complete.
    let target = bin.join("bitcoind");
    fs::rename(work.join("bin/bitcoind"), &target).map_err(|e| cache_error(&target, e))?;
    fs::remove_dir_all(&work).map_err(|e| cache_error(&work, e))?;
    progress(&format!(
        "bitcoind: built in {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// Runs one step with its output in `log`, telling every further 5 % that ninja reports.
fn run_logged(
    mut command: Command,
    step: &str,
    log: &Path,
    started: Instant,
) -> Result<(), BitcoindError> {
    let failed = |reason: String| BitcoindError::Build {
        step: step.to_owned(),
        log: log.to_owned(),
        tail: format!("{}{reason}", last_lines(log, 20)),
    };
    let mut log_file = OpenOptions::new()
        .append(true)
        .open(log)
        .map_err(|e| cache_error(log, e))?;
    let stderr = log_file.try_clone().map_err(|e| cache_error(log, e))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut told_percent = 0;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            writeln!(log_file, "{line}").map_err(|e| cache_error(log, e))?;
            if let Some(percent) = finished_percent(&line).filter(|p| *p >= told_percent + 5) {
                told_percent = percent;
                let seconds = started.elapsed().as_secs();
                progress(&format!("bitcoind: {percent:3} % built after {seconds} s"));
            }
        }
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(status.to_string()))
    }
}

/// `[120/345] Building …` → 34.
fn finished_percent(ninja_line: &str) -> Option<u64> {
    let (finished, total) = ninja_line
        .strip_prefix('[')?
        .split_once(']')?
        .0
        .split_once('/')?;
    let (finished, total): (u64, u64) = (finished.parse().ok()?, total.parse().ok()?);
    (finished * 100).checked_div(total)
}

fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(count);
    lines[skip..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect()
}

/// Straight to the stream: the test runner swallows what `eprintln!` prints.
fn progress(line: &str) {
    // A closed stderr is no reason to stop building.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn cache_error(path: &Path, source: std::io::Error) -> BitcoindError {
    BitcoindError::Cache {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninja_progress_is_read() {
        assert_eq!(
            finished_percent("[120/345] Building CXX object x.o"),
            Some(34)
        );
        assert_eq!(finished_percent("[345/345] Linking"), Some(100));
        assert_eq!(finished_percent("[0/0] nothing"), None);
        assert_eq!(finished_percent("-- Configuring done"), None);
    }

    #[test]
    fn cargo_has_the_source() {
        assert!(core_source().unwrap().join("src/bitcoind.cpp").is_file());
    }

    #[test]
    fn a_failing_step_names_itself_and_shows_its_output() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        File::create(&log).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo no such boost >&2; exit 3"]);
        let error = run_logged(command, "cmake", &log, Instant::now()).unwrap_err();
        let BitcoindError::Build { step, tail, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(step, "cmake");
        assert!(
            tail.contains("no such boost") && tail.contains("exit status: 3"),
            "{tail}"
        );
    }
}
