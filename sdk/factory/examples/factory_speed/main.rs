//! What a factory costs: signing the whole of it, building one over the wire format, leaving it,
//! selling a channel in it.
//!
//! Everything runs on one thread of one process; CPU time is the thread's own, so that other load
//! on the machine disturbs little. Numbers are medians over rounds. What shares the processor's
//! cores with the machine does disturb: so the bench shape is told in verifications as well, which
//! are measured in turns with it.
//!
//! `cargo run --release -p superscalar-factory --example factory_speed [-- --json] [-- --rounds N]`

#![expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]

mod ceremony;
mod library;
mod sale;
mod signing;
mod yardstick;

use std::error::Error;
use std::{env, fs, time::Instant};

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{ScriptBuf, WPubkeyHash};
use serde_json::json;
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::timing::Timing;

/// One line of the table.
struct Figure {
    figure: String,
    value: String,
    unit: &'static str,
    remark: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut as_json = false;
    let mut rounds = 9;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => as_json = true,
            "--rounds" => rounds = arguments.next().ok_or("--rounds needs a number")?.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if rounds == 0 {
        return Err("at least one round".into());
    }
    let figures = figures(rounds)?;
    if as_json {
        let rows: Vec<_> = figures
            .iter()
            .map(|row| {
                json!({
                    "figure": row.figure,
                    "value": row.value,
                    "unit": row.unit,
                    "remark": row.remark,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&json!(rows))?);
    } else {
        for row in &figures {
            let Figure {
                figure,
                value,
                unit,
                remark,
            } = row;
            println!("{figure:<44} {value:>9} {unit:<6} {remark}");
        }
    }
    Ok(())
}

fn figures(rounds: u32) -> Result<Vec<Figure>, Box<dyn Error>> {
    let mut figures = Vec::new();
    let binary = Shape::binary(127);
    let regtest = Timing::regtest(binary.layers());
    let bench = signing::Case {
        members: 127,
        shape: binary,
        timing: regtest,
        policy: TimeoutPolicy::LspReclaims,
    };
    let name = "bench shape: binary, 127 members".to_owned();
    signing_figures(&mut figures, &name, &bench, rounds)?;
    figures.insert(1, in_verifications(&name, &bench, rounds)?);
    figures.insert(2, above_the_library(&name, &bench, rounds)?);
    for members in [4, 8, 16, 64] {
        let shape = Shape::two_layers(members);
        let name = format!("{members} members, {} per leaf", shape.members_per_leaf);
        let case = signing::Case {
            members: members as u16,
            timing: Timing::mainnet(shape.layers()),
            shape,
            policy: TimeoutPolicy::MembersReclaim,
        };
        signing_figures(&mut figures, &name, &case, rounds)?;
    }
    for members in [8, 64] {
        let mut runs = Vec::new();
        for _ in 0..rounds {
            runs.push(ceremony::run(members)?);
        }
        let wall = median(runs.iter().map(|run| run.time.wall_s));
        let cpu = median(runs.iter().map(|run| run.time.cpu_s));
        let members = format!("ceremony of {members}, in one process");
        figures.push(Figure {
            figure: members.clone(),
            value: format!("{wall:.3}"),
            unit: "s",
            remark: format!("{cpu:.3} CPU s of the LSP and all members together"),
        });
        figures.push(Figure {
            figure: members,
            value: format!("{:.1}", runs[0].bytes_per_member as f64 / 1e3),
            unit: "kB",
            remark: "sent and received per member, before BOLT8".to_owned(),
        });
    }
    let mut runs = Vec::new();
    for _ in 0..rounds {
        runs.push(sale::run()?);
    }
    for (who, cpu_s) in [
        ("LSP", median(runs.iter().map(|run| run.lsp_s))),
        ("member", median(runs.iter().map(|run| run.member_s))),
    ] {
        figures.push(Figure {
            figure: format!("sale of a channel, {who}"),
            value: format!("{:.2}", cpu_s * 1e3),
            unit: "CPU ms",
            remark: "quoted, signed and verified; hosting not counted".to_owned(),
        });
    }
    Ok(figures)
}

fn signing_figures(
    figures: &mut Vec<Figure>,
    name: &str,
    case: &signing::Case,
    rounds: u32,
) -> Result<(), Box<dyn Error>> {
    let mut runs = Vec::new();
    for round in 0..rounds {
        runs.push(signing::run(case, round)?);
    }
    let signing::Run {
        transactions,
        partials,
        ..
    } = runs[0];
    figures.push(Figure {
        figure: name.to_owned(),
        value: format!("{:.4}", median(runs.iter().map(|run| run.whole.cpu_s))),
        unit: "CPU s",
        remark: format!(
            "built, signed by all, aggregated and verified: {transactions} transactions, \
             {partials} partial signatures"
        ),
    });
    let each = median(
        runs.iter()
            .map(|run| run.signing.cpu_s * 1e6 / partials as f64),
    );
    figures.push(Figure {
        figure: name.to_owned(),
        value: format!("{each:.1}"),
        unit: "µs",
        remark: "per partial signature".to_owned(),
    });
    figures.push(Figure {
        figure: name.to_owned(),
        value: runs[0].exit_vbytes.to_string(),
        unit: "vB",
        remark: format!(
            "exit path, {} transactions above the channel",
            runs[0].exit_count
        ),
    });
    Ok(())
}

/// What a factory costs in the curve library's own calls for the same signatures.
fn above_the_library(
    name: &str,
    case: &signing::Case,
    rounds: u32,
) -> Result<Figure, Box<dyn Error>> {
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let before_s = library::signatures_s(case, 2 * round)?;
        let whole_s = signing::run(case, round)?.whole.cpu_s;
        let after_s = library::signatures_s(case, 2 * round + 1)?;
        ratios.push(2.0 * whole_s / (before_s + after_s));
    }
    Ok(Figure {
        figure: name.to_owned(),
        value: format!("{:.2}", median(ratios.into_iter())),
        unit: "ratio",
        remark:
            "to libsecp256k1's own calls for the same signatures and nothing else, measured in \
                 turns"
                .to_owned(),
    })
}

/// How many verifications a factory costs as much as.
fn in_verifications(
    name: &str,
    case: &signing::Case,
    rounds: u32,
) -> Result<Figure, Box<dyn Error>> {
    let yardstick = yardstick::Yardstick::new()?;
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let before_s = yardstick.verification_s()?;
        let whole_s = signing::run(case, round)?.whole.cpu_s;
        let after_s = yardstick.verification_s()?;
        ratios.push(2.0 * whole_s / (before_s + after_s));
    }
    Ok(Figure {
        figure: name.to_owned(),
        value: format!("{:.0}", median(ratios.into_iter())),
        unit: "verifications",
        remark: "as many BIP340 verifications by libsecp256k1 take as long, measured in turns"
            .to_owned(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long something took.
#[derive(Clone, Copy)]
struct Time {
    wall_s: f64,
    cpu_s: f64,
}

/// A stopwatch for wall and CPU time of this thread.
struct Clock {
    wall: Instant,
    cpu_ns: Option<u64>,
}

impl Clock {
    fn start() -> Clock {
        Clock {
            cpu_ns: cpu_ns(),
            wall: Instant::now(),
        }
    }

    /// CPU time is wall time where the system does not tell it.
    fn time(&self) -> Time {
        let wall_s = self.wall.elapsed().as_secs_f64();
        let cpu_s = match (self.cpu_ns, cpu_ns()) {
            (Some(before), Some(after)) => (after - before) as f64 / 1e9,
            _ => wall_s,
        };
        Time { wall_s, cpu_s }
    }
}

/// CPU time of this thread so far. Linux brings the number up to date when the thread gives up the
/// processor, so it does that first.
fn cpu_ns() -> Option<u64> {
    std::thread::yield_now();
    let stat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse().ok()
}

/// 32 bytes that differ for every label and number.
fn bytes(label: &str, number: u64) -> [u8; 32] {
    sha256::Hash::hash(format!("{label}/{number}").as_bytes()).to_byte_array()
}

fn key(label: &str, number: u64) -> Result<PublicKey, Box<dyn Error>> {
    let secret = SecretKey::from_slice(&bytes(label, number))?;
    Ok(secret.public_key(&Secp256k1::signing_only()))
}

fn payout(number: u64) -> ScriptBuf {
    let hash = sha256::Hash::hash(&number.to_be_bytes());
    let hash = WPubkeyHash::from_raw_hash(bitcoin::hashes::hash160::Hash::hash(hash.as_ref()));
    ScriptBuf::new_p2wpkh(&hash)
}
