//! What the program says when it cannot start.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn a_missing_configuration_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("no-such.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_lsp-node"))
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no-such.toml"), "{said}");
}
