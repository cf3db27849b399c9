//! `cargo xtask bench`: runs every program that measures something and writes their rows into the
//! README, between its markers. The README is written only when all of them succeeded.
//!
//! Such a program prints a JSON list of rows, each with `figure`, `value`, `unit` and `remark`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const BEGIN: &str = "<!-- bench -->";
const END: &str = "<!-- /bench -->";

/// What measures: arguments of `cargo run --release`.
const PROGRAMS: [&[&str]; 2] = [
    &[
        "--package",
        "superscalar-factory",
        "--example",
        "factory_speed",
        "--",
        "--json",
    ],
    &["--package", "superscalar-tests", "--bin", "bench"],
];

/// One line of the table.
#[derive(Debug, Deserialize)]
struct Row {
    figure: String,
    value: String,
    unit: String,
    remark: String,
}

/// Measures, and replaces the table in `readme`.
pub(crate) fn run(readme: &Path) -> Result<()> {
    let text = fs::read_to_string(readme).with_context(|| readme.display().to_string())?;
    // Before minutes are spent measuring.
    replaced(&text, "").with_context(|| readme.display().to_string())?;
    let mut rows = Vec::new();
    for arguments in PROGRAMS {
        rows.extend(measured(arguments)?);
    }
    let table = table(&rows, &machine());
    print!("{table}");
    fs::write(readme, replaced(&text, &table)?).with_context(|| readme.display().to_string())
}

fn measured(arguments: &[&str]) -> Result<Vec<Row>> {
    let program = arguments.join(" ");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--release", "--locked", "--quiet"])
        .args(arguments)
        // Programs that are measured are optimised as well.
        .env_remove("SUPERSCALAR_BIN_DIR")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {program} printed"))
}

fn table(rows: &[Row], machine: &str) -> String {
    let mut table = "| Figure | Value | Unit | |\n|---|--:|---|---|\n".to_owned();
    let mut above = "";
    for row in rows {
        let Row {
            figure,
            value,
            unit,
            remark,
        } = row;
        let name = if figure == above { "" } else { figure };
        table += &format!("| {name} | {value} | {unit} | {remark} |\n");
        above = figure;
    }
    table + &format!("\nMeasured by `make bench` on {machine}.\n")
}

/// The processor and how many of it there are.
fn machine() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    format!(
        "{count} × {}",
        model.unwrap_or_else(|| env::consts::ARCH.to_owned())
    )
}

/// `text` with what stands between the markers replaced by `table`.
fn replaced(text: &str, table: &str) -> Result<String> {
    let places = (text.matches(BEGIN).count(), text.matches(END).count());
    let (Some(begin), Some(end), (1, 1)) = (text.find(BEGIN), text.find(END), places) else {
        bail!("the markers {BEGIN} and {END} do not stand in it once each");
    };
    if end < begin {
        bail!("{END} stands before {BEGIN}");
    }
    let (before, after) = (&text[..begin + BEGIN.len()], &text[end..]);
    Ok(format!("{before}\n{table}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(replaced(&new, "new\n").unwrap(), new);
    }

    #[test]
    fn a_text_without_one_pair_of_markers_is_refused() {
        for text in [
            "none".to_owned(),
            format!("{END}{BEGIN}"),
            format!("{BEGIN}{BEGIN}{END}"),
            BEGIN.to_owned(),
        ] {
            assert!(replaced(&text, "").is_err(), "{text}");
        }
    }

    #[test]
    fn a_figure_is_named_once() {
        let row = |figure: &str, value: &str| Row {
            figure: figure.to_owned(),
            value: value.to_owned(),
            unit: "s".to_owned(),
            remark: String::new(),
        };
        let table = table(&[row("a", "1"), row("a", "2"), row("b", "3")], "m");
        let lines: Vec<_> = table.lines().skip(2).take(3).collect();
        assert_eq!(
            lines,
            ["| a | 1 | s |  |", "|  | 2 | s |  |", "| b | 3 | s |  |"]
        );
    }
}
