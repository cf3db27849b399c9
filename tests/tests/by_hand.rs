//! The section of the README that is there to be pasted, pasted: every line works, and money has
//! moved in the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use superscalar_tests::processes::Programs;

/// The lines of the section's block, but the first, which builds the programs.
fn pasted() -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let (_, section) = readme.split_once("## By hand").unwrap();
    let block = section.split("```").nth(1).unwrap();
    let (build, lines) = block.trim_start().split_once('\n').unwrap();
    assert!(build.starts_with("cargo build "), "{build}");
    lines.to_owned()
}

#[test]
fn what_the_readme_says_to_paste_works_line_by_line() {
    let programs = Programs::locate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("target")).unwrap();
    let built = programs.lsp_node.parent().unwrap().canonicalize().unwrap();
    symlink(built, folder.path().join("target/debug")).unwrap();
    // Whatever it has started ends with it, also when it is stuck.
    let trap = "trap 'kill $(jobs -p) 2>/dev/null' EXIT";
    let file = folder.path().join("pasted");
    fs::write(&file, format!("{trap}\n{}", pasted())).unwrap();
    // What is pasted is the input of whatever reads it: a program that did would take lines away.
    let output = Command::new("timeout")
        .args(["120", "bash", "-e"])
        .stdin(fs::File::open(&file).unwrap())
        .current_dir(folder.path())
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    // Bob's part of both, less the reserve of his channel.
    let spendable = said.lines().find(|line| line.contains("spendable msat"));
    assert!(spendable.unwrap().contains("15000000"), "{said}");
    let exported = fs::read_dir(folder.path()).unwrap();
    let mut exported = exported.map(|entry| entry.unwrap().path().join("alice.exit"));
    assert!(exported.any(|file| file.exists()), "{said}");
}
