//! A process that dies without warning.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use superscalar_sdk::store::{Batch, Store, StoreError};

use crate::infra::common::keys;

/// Set for the process that is to be killed: the directory it writes to.
const CHILD_DIRECTORY: &str = "SUPERSCALAR_TEST_KILLED_CHILD";

/// The test runs itself again as the process to kill, which confirms each write on its output.
#[test]
fn a_killed_process_leaves_every_confirmed_write_and_no_lock() {
    if let Some(directory) = std::env::var_os(CHILD_DIRECTORY) {
        write_for_ever(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let identity = keys().identity().unwrap();
    for round in 1..=3u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("infra::killed::a_killed_process_leaves_every_confirmed_write_and_no_lock")
            .env(CHILD_DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut confirmed = output
            .lines()
            .map(Result::unwrap)
            .filter_map(|line| line.rsplit_once("wrote ")?.1.parse::<u64>().ok());
        let last = confirmed.nth(20).unwrap();
        assert!(matches!(
            Store::open(directory.path(), &identity),
            Err(StoreError::Locked { .. })
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it confirmed before it died counts too.
        let last = confirmed.last().unwrap_or(last);

        let store = Store::open(directory.path(), &identity).unwrap();
        let records = store.records(b"stream").unwrap();
        assert!(records.len() as u64 >= last, "{} < {last}", records.len());
        assert!(last > 20 * round);
        for (expected, record) in (1u64..).zip(&records) {
            assert_eq!(record.seq, expected);
            assert_eq!(record.record, expected.to_be_bytes());
        }
        // The batch's other half.
        let events = store.events_after(0, u32::MAX).unwrap().events;
        assert_eq!(events.len(), records.len());
    }
}

fn write_for_ever(directory: &Path) -> ! {
    let store = Store::open(directory, &keys().identity().unwrap()).unwrap();
    let mut next = store.records(b"stream").unwrap().len() as u64;
    loop {
        next += 1;
        let batch = Batch::new()
            .record(b"stream", &next.to_be_bytes())
            .event(&next.to_be_bytes());
        store.commit(&batch).unwrap();
        let mut output = std::io::stdout();
        // The parent is gone: so are we.
        if writeln!(output, "wrote {next}")
            .and_then(|()| output.flush())
            .is_err()
        {
            std::process::exit(0);
        }
    }
}
