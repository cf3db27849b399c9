//! What the program says when it is not told where bitcoind is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn a_missing_argument_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_outside-node"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--rpc-port"), "{said}");
}
