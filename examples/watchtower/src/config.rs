//! The configuration file.
//!
//! What always holds: a [`Config`] that was read is complete and every value is in its range; paths
//! are absolute or start at the file's directory; an error names the file, the key and what is wrong
//! with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use serde::Deserialize;
use superscalar_sdk::tower::{Clients, TowerLimits};
use superscalar_sdk::{BitcoindAuth, ChainConfig, FeeCaps};

/// Everything a tower is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) network: bitcoin::Network,
    pub(crate) storage_dir: PathBuf,
    pub(crate) mnemonic_file: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) poll_interval: Duration,
    pub(crate) chain: ChainConfig,
    pub(crate) clients: Clients,
    pub(crate) limits: TowerLimits,
    pub(crate) fee_caps: FeeCaps,
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
    /// A key is unknown, missing or has a wrong value, or the file is not TOML.
    #[error("{}: {key}: {problem}", file.display())]
    Key {
        file: PathBuf,
        key: String,
        problem: String,
    },
}

/// A key and what is wrong with its value.
type Wrong = (&'static str, String);

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
        let wrong = |key: String, problem: String| ConfigError::Key {
            file: file.to_owned(),
            key,
            problem,
        };
        let toml = toml::Deserializer::parse(text);
        let toml = toml.map_err(|error| wrong("syntax".into(), error.to_string()))?;
        let raw: File = serde_path_to_error::deserialize(toml).map_err(|error| {
            let problem = error.inner().message().to_owned();
            wrong(error.path().to_string(), problem)
        })?;
        let folder = file.parent().unwrap_or(Path::new(""));
        raw.check(folder)
            .map_err(|(key, problem)| wrong(key.to_owned(), problem))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    network: bitcoin::Network,
    storage_dir: PathBuf,
    mnemonic_file: PathBuf,
    listen: SocketAddr,
    poll_interval_ms: Option<u64>,
    bitcoind: Bitcoind,
    clients: Admitted,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    fees: Fees,
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
struct Admitted {
    listed: Option<BTreeSet<PublicKey>>,
    anyone_up_to: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    appointments: Option<u32>,
    bytes: Option<u64>,
    requests_per_minute: Option<u32>,
    rescan_blocks: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fees {
    max_sat_per_vb: Option<u32>,
    percent_per_transaction: Option<u8>,
    percent_per_factory: Option<u8>,
}

impl File {
    fn check(self, folder: &Path) -> Result<Config, Wrong> {
        let poll = self.poll_interval_ms.unwrap_or(5_000);
        let usual = TowerLimits::default();
        let caps = FeeCaps::default();
        let Limits {
            appointments,
            bytes,
            requests_per_minute: requests,
            rescan_blocks: rescan,
        } = self.limits;
        let percent = |key, given: Option<u8>, usual| in_range(key, given.unwrap_or(usual), 0, 100);
        Ok(Config {
            network: self.network,
            storage_dir: folder.join(self.storage_dir),
            mnemonic_file: folder.join(self.mnemonic_file),
            listen: self.listen,
            poll_interval: Duration::from_millis(in_range("poll_interval_ms", poll, 10, 600_000)?),
            chain: self.bitcoind.check(folder)?,
            clients: self.clients.check()?,
            limits: TowerLimits {
                appointments: appointments.unwrap_or(usual.appointments),
                bytes: bytes.unwrap_or(usual.bytes),
                requests_per_minute: requests.unwrap_or(usual.requests_per_minute),
                rescan_blocks: rescan.unwrap_or(usual.rescan_blocks),
            },
            fee_caps: FeeCaps {
                max_sat_per_vb: in_range(
                    "fees.max_sat_per_vb",
                    self.fees.max_sat_per_vb.unwrap_or(caps.max_sat_per_vb),
                    1,
                    100_000,
                )?,
                percent_per_transaction: percent(
                    "fees.percent_per_transaction",
                    self.fees.percent_per_transaction,
                    caps.percent_per_transaction,
                )?,
                percent_per_exit: percent(
                    "fees.percent_per_factory",
                    self.fees.percent_per_factory,
                    caps.percent_per_exit,
                )?,
            },
        })
    }
}

impl Bitcoind {
    fn check(self, folder: &Path) -> Result<ChainConfig, Wrong> {
        let auth = match (self.cookie_file, self.user, self.password) {
            (Some(file), None, None) => BitcoindAuth::CookieFile(folder.join(file)),
            (None, Some(user), Some(password)) => BitcoindAuth::UserPassword { user, password },
            _ => {
                let problem = "give either this, or both user and password".to_owned();
                return Err(("bitcoind.cookie_file", problem));
            }
        };
        Ok(ChainConfig::Bitcoind {
            address: self.address,
            auth,
        })
    }
}

impl Admitted {
    fn check(self) -> Result<Clients, Wrong> {
        match (self.listed, self.anyone_up_to) {
            (Some(keys), None) => Ok(Clients::Listed(keys)),
            (None, Some(at_most)) => Ok(Clients::Anyone { at_most }),
            _ => {
                let problem = "give either this, or anyone_up_to".to_owned();
                Err(("clients.listed", problem))
            }
        }
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<T, Wrong> {
    match (&least..=&most).contains(&&value) {
        true => Ok(value),
        false => Err((key, format!("{value} is not between {least} and {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/tower/tower.toml"), text).map_err(|error| error.to_string())
    }

    const EXAMPLE: &str = include_str!("../tower.example.toml");

    #[test]
    fn the_example_is_a_configuration_with_the_defaults() {
        let config = read(EXAMPLE).unwrap();
        assert_eq!(config.limits, TowerLimits::default());
        assert_eq!(config.fee_caps, FeeCaps::default());
        assert_eq!(config.storage_dir, Path::new("/etc/tower/data"));
        assert_eq!(config.clients, Clients::Anyone { at_most: 100 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, named) in [
            ("network", "netwrk", "netwrk"),
            ("anyone_up_to = 100", "", "clients.listed"),
            ("anyone_up_to = 100", "listed = [\"02\"]", "clients.listed"),
            ("password = \"…\"", "", "bitcoind.cookie_file"),
            (
                "poll_interval_ms = 5000",
                "poll_interval_ms = 1",
                "poll_interval_ms",
            ),
            (
                "percent_per_factory = 25",
                "percent_per_factory = 101",
                "fees.percent_per_factory",
            ),
            ("listen = ", "listen ", "syntax"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = read(&EXAMPLE.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(named), "{from}: {error}");
        }
    }
}
