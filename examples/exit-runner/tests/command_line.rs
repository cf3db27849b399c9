//! What the program says without a package.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Stdio};

#[test]
fn a_file_that_is_no_package_is_refused_with_a_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("package");
    std::fs::write(&file, b"not a package").unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_exit-runner"))
        .args(["--json", "--bitcoind", "127.0.0.1:1", "--package"])
        .arg(&file)
        .args(["--rpc-user", "nobody", "--rpc-password", "nothing"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(program.stdin.take().unwrap(), "a passphrase").unwrap();
    let output = program.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"]["code"].is_string(), "{said}");
}
