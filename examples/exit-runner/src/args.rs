//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Brings a wallet's channels on chain from its exit package, asking nobody and without its keys.
///
/// The package says what to publish, bitcoind what has happened already. Run it as often as you
/// like: each run goes on where the chain is. What arrives is the channel (or with --reclaim the
/// payout) on chain; moving it on is the wallet's business.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The file the wallet exported.
    #[arg(long, value_name = "FILE")]
    pub(crate) package: PathBuf,
    /// A file whose first line is the passphrase. Without it: the first line of standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// bitcoind's RPC server, host:port or http://host:port.
    #[arg(long, value_name = "URL")]
    pub(crate) bitcoind: String,
    /// The file bitcoind writes at every start.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rpc_user", "rpc_password"],
          required_unless_present = "rpc_user")]
    pub(crate) cookie: Option<PathBuf>,
    /// Name of bitcoind's `rpcauth`, instead of a cookie.
    #[arg(long, value_name = "NAME", requires = "rpc_password")]
    pub(crate) rpc_user: Option<String>,
    /// Its password. Others on this machine can read command lines: better in the environment.
    #[arg(
        long,
        value_name = "PASSWORD",
        env = "BITCOIND_RPC_PASSWORD",
        hide_env_values = true
    )]
    pub(crate) rpc_password: Option<String>,
    /// Only the factory whose instance begins so.
    #[arg(long, value_name = "HEX")]
    pub(crate) factory: Option<String>,
    /// After expiry, when the LSP is gone: the distribution, which pays capacity and stock to the
    /// wallet, instead of the channel.
    #[arg(long)]
    pub(crate) reclaim: bool,
    /// Go on until everything is on chain, this many blocks deep.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Blocks, its own included, after which --watch takes something as settled.
    #[arg(long, value_name = "BLOCKS", default_value_t = 6,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) depth: u32,
    /// Milliseconds between two looks for new blocks.
    #[arg(long, value_name = "MS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) poll_interval_ms: u64,
    /// Search blocks from this height on, instead of where the package says.
    #[arg(long, value_name = "HEIGHT")]
    pub(crate) from_height: Option<u32>,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// Host and port, whatever way the address was written.
    pub(crate) fn address(&self) -> &str {
        let address = self.bitcoind.trim_end_matches('/');
        address.strip_prefix("http://").unwrap_or(address)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("exit-runner").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for bitcoind in ["127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1/"] {
            let args = parse(&format!("--package p --cookie c --bitcoind {bitcoind}"));
            assert_eq!(args.unwrap().address(), "127.0.0.1:1");
        }
    }

    #[test]
    fn bad_lines_are_refused_with_the_argument() {
        for (line, named) in [
            ("--bitcoind h:1 --cookie c", "--package"),
            ("--package p --cookie c", "--bitcoind"),
            ("--package p --bitcoind h:1", "--cookie"),
            ("--package p --bitcoind h:1 --rpc-user u", "--rpc-password"),
            ("--package p --bitcoind h:1 --cookie c --depth 0", "--depth"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
