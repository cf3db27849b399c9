//! The configuration file.
//!
//! What always holds: a [`Config`] that was read is complete and every value is in its range;
//! paths are absolute or start at the working directory; an error names the file, the key and what
//! is wrong with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::Amount;
use serde::Deserialize;
use superscalar_sdk::hosting::{JitPolicy, LspPolicy, OrdinaryOpens};
use superscalar_sdk::{BitcoindAuth, ChainConfig, FeeCaps, LspUri, SalePolicy, UriError};

/// Everything `lsp-node` is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) network: bitcoin::Network,
    pub(crate) storage_dir: PathBuf,
    pub(crate) mnemonic_file: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) public_address: Option<String>,
    pub(crate) poll_interval: Duration,
    pub(crate) chain: ChainConfig,
    pub(crate) api_listen: SocketAddr,
    pub(crate) token_file: PathBuf,
    pub(crate) policy: LspPolicy,
    pub(crate) backup_dir: Option<PathBuf>,
    pub(crate) birthday: Option<u32>,
    pub(crate) fee_caps: FeeCaps,
    pub(crate) sales: Option<SalePolicy>,
    pub(crate) towers: Vec<LspUri>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    /// A key is unknown, missing or has a wrong value.
    #[error("{}: {key}: {problem}", file.display())]
    Key {
        file: PathBuf,
        key: String,
        problem: String,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {problem}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn read(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Config::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        let syntax = |error: toml::de::Error| {
            let before = error.span().map_or(0, |span| span.start);
            let before = text.get(..before).unwrap_or_default();
            ConfigError::Syntax {
                file: file.to_owned(),
                line: before.matches('\n').count() + 1,
                problem: error.message().to_owned(),
            }
        };
        let toml = toml::Deserializer::parse(text).map_err(syntax)?;
        let raw: File = serde_path_to_error::deserialize(toml).map_err(|error| {
            let problem = error.inner().message().to_owned();
            ConfigError::Key {
                file: file.to_owned(),
                key: full_key(&error.path().to_string(), &problem),
                problem,
            }
        })?;
        let folder = file.parent().unwrap_or(Path::new(""));
        raw.check(folder)
            .map_err(|(key, problem)| ConfigError::Key {
                file: file.to_owned(),
                key: key.to_owned(),
                problem,
            })
    }
}

/// Serde reports an unknown or missing key at the table that should not, or should, have it.
fn full_key(path: &str, problem: &str) -> String {
    let is_about_a_key =
        problem.starts_with("missing field") || problem.starts_with("unknown field");
    let named = problem.split('`').nth(1).filter(|_| is_about_a_key);
    match (path, named) {
        (".", Some(key)) => key.to_owned(),
        (path, Some(key)) if path != key && !path.ends_with(&format!(".{key}")) => {
            format!("{path}.{key}")
        }
        (path, _) => path.to_owned(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    network: bitcoin::Network,
    storage_dir: PathBuf,
    mnemonic_file: PathBuf,
    listen: SocketAddr,
    public_address: Option<String>,
    poll_interval_ms: Option<u64>,
    backup_dir: Option<PathBuf>,
    birthday: Option<u32>,
    #[serde(default)]
    towers: Vec<String>,
    bitcoind: Bitcoind,
    api: Api,
    #[serde(default)]
    fees: Fees,
    #[serde(default)]
    channels: Channels,
    #[serde(default)]
    exit_fees: ExitFees,
    sales: Option<Sales>,
    #[serde(default)]
    lsps2: Lsps2,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bitcoind {
    address: String,
    cookie_file: Option<PathBuf>,
    user: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Api {
    listen: SocketAddr,
    #[serde(default)]
    allow_remote: bool,
    token_file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fees {
    base_msat: Option<u32>,
    ppm: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channels {
    accept_ordinary: Option<bool>,
    delta_blocks: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExitFees {
    max_sat_per_vb: Option<u32>,
    percent_per_transaction: Option<u8>,
    percent_per_exit: Option<u8>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sales {
    base_msat: Option<u64>,
    ppm_per_month: Option<u32>,
    min_sat: Option<u64>,
    valid_blocks: Option<u16>,
    min_life_blocks: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lsps2 {
    enabled: Option<bool>,
    min_fee_msat: Option<u64>,
    fee_ppm: Option<u32>,
    valid_for_secs: Option<u32>,
    min_lifetime_blocks: Option<u32>,
    max_client_delay_blocks: Option<u16>,
    min_payment_msat: Option<u64>,
    max_payment_msat: Option<u64>,
    headroom_sat: Option<u64>,
    max_opening: Option<u16>,
}

/// A key and what is wrong with its value.
type Wrong = (&'static str, String);

impl File {
    fn check(self, folder: &Path) -> Result<Config, Wrong> {
        if !self.api.listen.ip().is_loopback() && !self.api.allow_remote {
            let problem = format!(
                "{} is not a loopback address; the API speaks plain HTTP, set api.allow_remote \
                 = true only behind a proxy or tunnel",
                self.api.listen
            );
            return Err(("api.listen", problem));
        }
        if let Some(address) = &self.public_address {
            host_and_port(address).map_err(|problem| ("public_address", problem))?;
        }
        let poll_interval_ms = self.poll_interval_ms.unwrap_or(1_000);
        Ok(Config {
            network: self.network,
            storage_dir: folder.join(self.storage_dir),
            mnemonic_file: folder.join(self.mnemonic_file),
            listen: self.listen,
            public_address: self.public_address,
            poll_interval: Duration::from_millis(in_range(
                "poll_interval_ms",
                poll_interval_ms,
                10..=600_000,
            )?),
            chain: self.bitcoind.check(folder)?,
            api_listen: self.api.listen,
            token_file: folder.join(self.api.token_file),
            policy: policy(&self.fees, &self.channels, &self.lsps2)?,
            backup_dir: self.backup_dir.map(|dir| folder.join(dir)),
            birthday: self.birthday,
            fee_caps: fee_caps(&self.exit_fees)?,
            sales: self.sales.as_ref().map(sales).transpose()?,
            towers: self
                .towers
                .iter()
                .map(|it| tower(it))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Bitcoind {
    fn check(self, folder: &Path) -> Result<ChainConfig, Wrong> {
        host_and_port(&self.address).map_err(|problem| ("bitcoind.address", problem))?;
        let auth = match (self.cookie_file, self.user, self.password) {
            (Some(file), None, None) => BitcoindAuth::CookieFile(folder.join(file)),
            (None, Some(user), Some(password)) => BitcoindAuth::UserPassword { user, password },
            (None, Some(_), None) => {
                return Err(("bitcoind.password", "missing beside user".to_owned()));
            }
            (None, None, Some(_)) => {
                return Err(("bitcoind.user", "missing beside password".to_owned()));
            }
            (None, None, None) => {
                let problem = "missing; give this, or user and password".to_owned();
                return Err(("bitcoind.cookie_file", problem));
            }
            (Some(_), _, _) => {
                let problem = "give either this, or user and password".to_owned();
                return Err(("bitcoind.cookie_file", problem));
            }
        };
        Ok(ChainConfig::Bitcoind {
            address: self.address,
            auth,
        })
    }
}

fn policy(fees: &Fees, channels: &Channels, lsps2: &Lsps2) -> Result<LspPolicy, Wrong> {
    let usual = LspPolicy::default();
    let ppm = fees.ppm.unwrap_or(usual.fee_ppm);
    let delta = channels.delta_blocks.unwrap_or(usual.ordinary_delta_blocks);
    Ok(LspPolicy {
        ordinary_opens: match channels.accept_ordinary {
            Some(false) => OrdinaryOpens::Refuse,
            Some(true) => OrdinaryOpens::Accept,
            None => usual.ordinary_opens,
        },
        fee_base_msat: fees.base_msat.unwrap_or(usual.fee_base_msat),
        fee_ppm: in_range("fees.ppm", ppm, 0..=1_000_000)?,
        ordinary_delta_blocks: in_range("channels.delta_blocks", delta, 34..=2_016)?,
        jit: match lsps2.enabled.unwrap_or(false) {
            true => Some(jit_policy(lsps2)?),
            false => None,
        },
    })
}

fn jit_policy(lsps2: &Lsps2) -> Result<JitPolicy, Wrong> {
    /// All the bitcoin there is, in msat.
    const MOST_MSAT: u64 = 21_000_000 * 100_000_000 * 1_000;
    let usual = JitPolicy::default();
    let min_fee = lsps2.min_fee_msat.unwrap_or(usual.min_fee_msat);
    let ppm = lsps2.fee_ppm.unwrap_or(usual.fee_ppm);
    let valid_for = lsps2.valid_for_secs.unwrap_or(usual.valid_for_secs);
    let lifetime = lsps2
        .min_lifetime_blocks
        .unwrap_or(usual.min_lifetime_blocks);
    let delay = lsps2
        .max_client_delay_blocks
        .unwrap_or(usual.max_client_delay_blocks);
    let min_payment = lsps2.min_payment_msat.unwrap_or(usual.min_payment_msat);
    let max_payment = lsps2.max_payment_msat.unwrap_or(usual.max_payment_msat);
    let headroom = lsps2.headroom_sat.unwrap_or(usual.headroom_sat);
    let opening = lsps2.max_opening.unwrap_or(usual.max_opening);
    let max_payment = in_range("lsps2.max_payment_msat", max_payment, 1..=MOST_MSAT)?;
    Ok(JitPolicy {
        min_fee_msat: in_range("lsps2.min_fee_msat", min_fee, 0..=MOST_MSAT)?,
        fee_ppm: in_range("lsps2.fee_ppm", ppm, 0..=1_000_000)?,
        valid_for_secs: in_range("lsps2.valid_for_secs", valid_for, 120..=604_800)?,
        min_lifetime_blocks: in_range("lsps2.min_lifetime_blocks", lifetime, 0..=52_560)?,
        max_client_delay_blocks: in_range("lsps2.max_client_delay_blocks", delay, 144..=2_016)?,
        min_payment_msat: in_range("lsps2.min_payment_msat", min_payment, 1..=max_payment)?,
        max_payment_msat: max_payment,
        headroom_sat: in_range("lsps2.headroom_sat", headroom, 0..=100_000_000)?,
        max_opening: in_range("lsps2.max_opening", opening, 1..=1_000)?,
    })
}

fn fee_caps(fees: &ExitFees) -> Result<FeeCaps, Wrong> {
    let usual = FeeCaps::default();
    let percent = |key, percent| in_range(key, percent, 0..=100);
    Ok(FeeCaps {
        max_sat_per_vb: in_range(
            "exit_fees.max_sat_per_vb",
            fees.max_sat_per_vb.unwrap_or(usual.max_sat_per_vb),
            1..=100_000,
        )?,
        percent_per_transaction: percent(
            "exit_fees.percent_per_transaction",
            fees.percent_per_transaction
                .unwrap_or(usual.percent_per_transaction),
        )?,
        percent_per_exit: percent(
            "exit_fees.percent_per_exit",
            fees.percent_per_exit.unwrap_or(usual.percent_per_exit),
        )?,
    })
}

fn sales(sales: &Sales) -> Result<SalePolicy, Wrong> {
    let usual = SalePolicy::default();
    let min_sat = sales.min_sat.unwrap_or(usual.min_amount.to_sat());
    Ok(SalePolicy {
        base_msat: sales.base_msat.unwrap_or(usual.base_msat),
        ppm_per_month: in_range(
            "sales.ppm_per_month",
            sales.ppm_per_month.unwrap_or(usual.ppm_per_month),
            0..=1_000_000,
        )?,
        min_amount: Amount::from_sat(in_range("sales.min_sat", min_sat, 1_000..=1_000_000_000)?),
        valid_blocks: in_range(
            "sales.valid_blocks",
            sales.valid_blocks.unwrap_or(usual.valid_blocks),
            1..=144,
        )?,
        min_life_blocks: sales.min_life_blocks.unwrap_or(usual.min_life_blocks),
    })
}

fn tower(text: &str) -> Result<LspUri, Wrong> {
    let parsed = text.parse();
    parsed.map_err(|error: UriError| ("towers", format!("\"{text}\": {error}")))
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
) -> Result<T, Wrong> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (allowed.start(), allowed.end());
    Err((key, format!("{value} is not between {least} and {most}")))
}

fn host_and_port(text: &str) -> Result<(), String> {
    let parts = text.rsplit_once(':');
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match parts {
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(()),
        _ => Err(format!("\"{text}\" is not host:port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../lsp.example.toml");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/lsp/lsp.toml"), text)
    }

    #[test]
    fn the_example_shows_the_defaults_and_paths_start_at_the_file() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.storage_dir, Path::new("/etc/lsp/data"));
        assert_eq!(config.mnemonic_file, Path::new("/etc/lsp/mnemonic"));
        assert_eq!(config.policy, LspPolicy::default());
        assert_eq!(config.fee_caps, FeeCaps::default());
        assert_eq!(config.sales, None);
        assert_eq!(config.backup_dir, None);
        assert_eq!(config.birthday, None);
        let born = EXAMPLE.replace("# birthday", "birthday");
        assert_eq!(parse(&born).unwrap().birthday, Some(850_000));
        let backed = EXAMPLE.replace("# backup_dir", "backup_dir");
        let backup_dir = parse(&backed).unwrap().backup_dir.unwrap();
        assert_eq!(backup_dir, Path::new("/mnt/disk/lsp-backup"));
        let spelled_out = EXAMPLE
            .replacen("# base_msat", "base_msat", 1)
            .replacen("# ppm", "ppm", 1)
            .replace("# accept_ordinary", "accept_ordinary")
            .replace("# delta_blocks", "delta_blocks")
            .replace("# max_sat_per_vb", "max_sat_per_vb")
            .replace("# percent_per_transaction", "percent_per_transaction")
            .replace("# percent_per_exit", "percent_per_exit")
            .replace("# poll_interval_ms", "poll_interval_ms")
            .replace("# allow_remote", "allow_remote")
            .replace("# towers", "towers");
        assert_eq!(parse(&spelled_out).unwrap(), config);
        let uri = format!("02{}@tower:1", "ab".repeat(32));
        let watched = EXAMPLE.replace("# towers = []", &format!("towers = [\"{uri}\"]"));
        assert_eq!(parse(&watched).unwrap().towers, [uri.parse().unwrap()]);
        let sells = EXAMPLE.replace("# [sales]", "[sales]");
        assert_eq!(parse(&sells).unwrap().sales, Some(SalePolicy::default()));
        let spelled_out = sells
            .replace("# ppm_per_month", "ppm_per_month")
            .replace("# min_sat", "min_sat")
            .replace("# valid_blocks", "valid_blocks")
            .replace("# min_life_blocks", "min_life_blocks")
            .replace("# base_msat", "base_msat");
        assert_eq!(
            parse(&spelled_out).unwrap().sales,
            parse(&sells).unwrap().sales
        );
    }

    #[test]
    fn channels_are_sold_for_payments_where_it_is_said() {
        assert_eq!(parse(EXAMPLE).unwrap().policy.jit, None);
        let keys = EXAMPLE.split("[lsps2]").nth(1).unwrap();
        let on = keys
            .replace("# enabled = false", "enabled = true")
            .replace("\n# ", "\n");
        let values = on.lines().filter(|line| line.contains(" = "));
        let values: Vec<&str> = values.collect();
        let file = EXAMPLE.split("[lsps2]").next().unwrap();
        let text = format!("{file}[lsps2]\n{}\n", values.join("\n"));
        let jit = parse(&text).unwrap().policy.jit;
        assert_eq!(jit, Some(JitPolicy::default()));
    }

    #[test]
    fn the_name_and_password_of_bitcoind_take_the_place_of_the_cookie() {
        let text = EXAMPLE
            .replace("cookie_file =", "# cookie_file =")
            .replace("# user =", "user =")
            .replace("# password =", "password =");
        let ChainConfig::Bitcoind { auth, .. } = parse(&text).unwrap().chain else {
            panic!("another chain source")
        };
        let expected = BitcoindAuth::UserPassword {
            user: "lsp".to_owned(),
            password: "secret".to_owned(),
        };
        assert_eq!(auth, expected);
    }

    #[test]
    fn a_bad_value_is_refused_with_file_key_and_problem() {
        let cases = [
            (
                "network = \"regtest\"",
                "network = \"moon\"",
                "network",
                "moon",
            ),
            ("network = \"regtest\"", "", "network", "missing"),
            ("network =", "nettwork =", "nettwork", "unknown"),
            ("storage_dir = \"data\"", "", "storage_dir", "missing"),
            (
                "storage_dir = \"data\"",
                "storage_dir = 1",
                "storage_dir",
                "integer",
            ),
            (
                "mnemonic_file = \"mnemonic\"",
                "",
                "mnemonic_file",
                "missing",
            ),
            ("127.0.0.1:9735", "here", "listen", "invalid socket address"),
            (
                "# public_address = \"lsp.example:9735\"",
                "public_address = \"lsp\"",
                "public_address",
                "host:port",
            ),
            (
                "# towers = []",
                "towers = [\"tower:9911\"]",
                "towers",
                "node_id@host:port",
            ),
            (
                "# poll_interval_ms = 1000",
                "poll_interval_ms = 9",
                "poll_interval_ms",
                "9 is not between 10 and 600000",
            ),
            (
                "# poll_interval_ms = 1000",
                "poll_interval_ms = -1",
                "poll_interval_ms",
                "-1",
            ),
            (
                "127.0.0.1:18443",
                "127.0.0.1",
                "bitcoind.address",
                "host:port",
            ),
            (
                "cookie_file =",
                "# cookie_file =",
                "bitcoind.cookie_file",
                "missing",
            ),
            ("# user =", "user =", "bitcoind.cookie_file", "either"),
            ("cookie_file = ", "user =", "bitcoind.password", "missing"),
            ("cookie_file = ", "password =", "bitcoind.user", "missing"),
            ("cookie_file =", "cookie =", "bitcoind.cookie", "unknown"),
            (
                "127.0.0.1:3030",
                "0.0.0.0:3030",
                "api.listen",
                "not a loopback",
            ),
            (
                "127.0.0.1:3030",
                "127.0.0.1",
                "api.listen",
                "invalid socket address",
            ),
            (
                "# allow_remote = false",
                "allow_remote = \"no\"",
                "api.allow_remote",
                "string",
            ),
            (
                "token_file = \"api-token\"",
                "",
                "api.token_file",
                "missing",
            ),
            (
                "# base_msat = 1000",
                "base_msat = -5",
                "fees.base_msat",
                "-5",
            ),
            ("# ppm = 100", "ppm = 1000001", "fees.ppm", "1000001"),
            ("# ppm = 100", "pppm = 1", "fees.pppm", "unknown"),
            (
                "# accept_ordinary = true",
                "accept_ordinary = 1",
                "channels.accept_ordinary",
                "1",
            ),
            (
                "# delta_blocks = 72",
                "delta_blocks = 6",
                "channels.delta_blocks",
                "between 34",
            ),
            (
                "# max_sat_per_vb = 500",
                "max_sat_per_vb = 0",
                "exit_fees.max_sat_per_vb",
                "between 1",
            ),
            (
                "# percent_per_exit = 25",
                "percent_per_exit = 101",
                "exit_fees.percent_per_exit",
                "between 0",
            ),
            (
                "# enabled = false",
                "enabled = true\nmin_payment_msat = 1000000001",
                "lsps2.min_payment_msat",
                "between 1 and 1000000000",
            ),
            (
                "# enabled = false",
                "enabled = true\nmax_client_delay_blocks = 2017",
                "lsps2.max_client_delay_blocks",
                "between 144",
            ),
            ("[fees]", "[feees]", "feees", "unknown"),
        ];
        for (from, to, key, problem) in cases {
            assert!(EXAMPLE.contains(from), "{from} is not in the example");
            let text = EXAMPLE.replacen(from, to, 1);
            let error = parse(&text).unwrap_err().to_string();
            let start = format!("/etc/lsp/lsp.toml: {key}: ");
            assert!(error.starts_with(&start), "{from} -> {to}: {error}");
            assert!(error.contains(problem), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let error = parse("network = \"regtest\"\nlisten = = 3\n").unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("/etc/lsp/lsp.toml:2: "), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::read(Path::new("/nonexistent/lsp.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/lsp.toml: "));
    }
}
