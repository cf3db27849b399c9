//! What the program says where it cannot run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn run(config: &str, command: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tower.toml");
    std::fs::write(&file, config).unwrap();
    Command::new(env!("CARGO_BIN_EXE_watchtower"))
        .arg("--config")
        .arg(&file)
        .args(command)
        .output()
        .unwrap()
}

#[test]
fn every_refusal_names_what_is_wrong() {
    let example = include_str!("../tower.example.toml");
    let unknown = format!("{example}\nmore = 1\n");
    for (config, command, named) in [
        (example, vec!["status", "--json"], "no tower has run here"),
        (example, vec!["run"], "run --init"),
        (unknown.as_str(), vec!["run"], "more"),
    ] {
        let output = run(config, &command);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with("watchtower: ") && said.contains(named),
            "{said}"
        );
    }
}
