//! The sources of the other languages are what the generator makes of the library.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

// Not called: it makes cargo build the library.
use superscalar_ffi as _;

/// Cargo puts libraries of dependencies beside the tests.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let name = format!("{DLL_PREFIX}superscalar_ffi{DLL_SUFFIX}");
    test.parent().unwrap().join(name)
}

fn bindgen(arguments: &[&Path]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_superscalar-bindgen"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn committed_sources_are_what_the_library_says() {
    let output = bindgen(&["check".as_ref(), &library()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let output = bindgen(&["check".as_ref(), "no-such.so".as_ref()]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no-such.so"), "{said}");
}
