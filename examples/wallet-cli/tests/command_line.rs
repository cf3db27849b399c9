//! What the program says without a wallet that runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn a_command_without_a_running_wallet_fails_with_a_code() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_wallet-cli"))
        .arg("--dir")
        .arg(directory.path())
        .args(["--json", "balance"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"]["code"].is_string(), "{said}");
}
