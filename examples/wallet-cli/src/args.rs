//! The command line.

use std::path::PathBuf;

use bitcoin::Network;
use clap::{Args, Parser, Subcommand, ValueEnum};
use superscalar_sdk::{Begin, DEFAULT_ROUTE_LIMIT_BLOCKS, ExitMode, FeeCaps, LspUri};

/// A desktop wallet whose channels live in SuperScalar factories.
///
/// `create` makes a seed, `run` starts the wallet; the other commands talk to the running one.
/// This program is the application that keeps the seed: it stands in the file `mnemonic` of the
/// wallet's directory, readable by you only, and nowhere else.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// Directory of the wallet.
    #[arg(long, value_name = "DIR", env = "SUPERSCALAR_WALLET_DIR")]
    pub(crate) dir: PathBuf,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new seed.
    Create {
        /// Words of the mnemonic.
        #[arg(long, value_enum, default_value = "12")]
        words: Words,
    },
    /// Take over a seed: reads its words from standard input. What the wallet held comes back with
    /// `run --backup-dir DIR --begin restore`; without a backup its coins do, with
    /// `run --birthday HEIGHT`.
    Restore,
    /// Run the wallet until it is stopped.
    Run(RunArgs),
    /// How the wallet is.
    Status,
    /// Connect to the LSP now. A running wallet does so by itself; this says why it cannot.
    Connect,
    /// Ask the LSP for a place in a factory.
    Join {
        /// Capacity wanted, in satoshi.
        #[arg(long, value_name = "SAT")]
        capacity: u64,
        /// Accept a factory that ends in the LSP's favour too: the wallet leaves it by itself in
        /// time, and has to be running then.
        #[arg(long)]
        lsp_reclaims: bool,
        /// CLTV that payers allow a route in total; what ordinary LDK payers allow unless set.
        #[arg(long, value_name = "BLOCKS", default_value_t = DEFAULT_ROUTE_LIMIT_BLOCKS)]
        route_limit: u32,
        /// Wait until payments can be received.
        #[arg(long)]
        wait: bool,
    },
    /// Make an invoice.
    Receive {
        /// Amount; without it the payer decides.
        #[arg(long, value_name = "MSAT")]
        amount_msat: Option<u64>,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
        /// Seconds until it expires.
        #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
        expiry_secs: u32,
        /// Have the LSP open a channel on chain with the payment, if it keeps no more than this.
        /// Until that is confirmed it is the LSP's word.
        #[arg(long, value_name = "MSAT", requires = "amount_msat")]
        open_channel_for: Option<u64>,
    },
    /// What the LSP would keep of a payment for opening a channel with it.
    QuoteChannel {
        /// The payment's amount.
        #[arg(long, value_name = "MSAT")]
        amount_msat: u64,
    },
    /// Channels that are on chain by themselves, in no factory.
    Channels,
    /// Close one of them; what is ours becomes coins.
    CloseChannel {
        /// Its id.
        channel: String,
        /// Without the LSP, by our own commitment.
        #[arg(long)]
        alone: bool,
    },
    /// Pay an invoice.
    Send {
        /// A BOLT 11 invoice.
        invoice: String,
        /// Amount, for an invoice without one.
        #[arg(long, value_name = "MSAT")]
        amount_msat: Option<u64>,
        /// Wait until the payment has arrived or failed.
        #[arg(long)]
        wait: bool,
    },
    /// One payment.
    Payment {
        /// Its payment hash, hex.
        payment_hash: String,
    },
    /// All payments.
    Payments,
    /// What the wallet holds.
    Balance,
    /// All factories.
    Factories,
    /// The own path of a factory, transaction by transaction.
    Tree {
        /// The factory's name.
        factory: String,
    },
    /// Buy more to receive on, out of the stock beside the own channel.
    #[command(subcommand)]
    Inbound(Inbound),
    /// Say what a new epoch may make of the own place. What is not given is as in the beginning: a
    /// channel of all that its channels hold, in a place that is kept.
    Consent {
        /// The factory's name.
        factory: String,
        /// Least capacity of the new channel.
        #[arg(long, value_name = "SAT")]
        min_capacity: Option<u64>,
        /// Give the place up, once no more of the wallet's is in its channels than it would lose.
        #[arg(long)]
        leave: bool,
        /// The most to lose by giving the place up: a channel's reserve cannot be sent.
        #[arg(long, value_name = "SAT", requires = "leave", default_value_t = 0)]
        forgo: u64,
    },
    /// Leave a factory alone, asking nobody.
    #[command(subcommand)]
    Exit(Exit),
    /// A fresh on-chain address.
    Address,
    /// How each watchtower is: what it keeps, what it was not given yet, how far it has looked.
    Towers,
    /// Who this wallet is to a watchtower: what the tower's operator has to admit.
    TowerId {
        /// The tower, node_id@host:port.
        tower: LspUri,
    },
    /// Coins on chain.
    Coins,
    /// Send coins.
    SendCoins {
        /// Where to.
        address: String,
        /// How much, in satoshi.
        amount_sat: u64,
        /// Feerate in sat/vB; estimated if absent.
        #[arg(long, value_name = "SAT/VB")]
        feerate: Option<u64>,
    },
    /// What happened.
    Events {
        /// Cursor of the last event known.
        #[arg(long, value_name = "CURSOR", default_value_t = 0)]
        after: u64,
        /// How many at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// Wait this many seconds for the next one (60 if no number is given).
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60",
              value_parser = clap::value_parser!(u64).range(0..=3_600))]
        wait: Option<u64>,
    },
    /// Look for new blocks now.
    Sync,
    /// Stop the running wallet.
    Stop,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inbound {
    /// What a channel costs. Buys nothing.
    Quote {
        /// The factory's name.
        factory: String,
        /// Capacity of the channel, in satoshi.
        #[arg(long, value_name = "SAT")]
        capacity: u64,
    },
    /// Buy a channel, if it costs no more than the limit.
    Buy {
        /// The factory's name.
        factory: String,
        /// Capacity of the channel, in satoshi.
        #[arg(long, value_name = "SAT")]
        capacity: u64,
        /// The most it may cost.
        #[arg(long, value_name = "MSAT")]
        max_price_msat: u64,
        /// Wait until it is there and paid for.
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Exit {
    /// What it costs, how long it takes, what arrives. Begins nothing.
    Plan {
        /// The factory's name.
        factory: String,
    },
    /// Begin. The channel carries nothing from then on.
    Start {
        /// The factory's name.
        factory: String,
        /// After expiry, when the LSP is gone: be paid by the distribution.
        #[arg(long)]
        reclaim: bool,
        /// Take a restored state for the newest although no LSP has confirmed it. If it is an older
        /// one, the LSP may take the whole channel.
        #[arg(long)]
        accept_restored_state: bool,
        /// Wait until everything is in the wallet.
        #[arg(long)]
        wait: bool,
    },
    /// Want at least this feerate for what the exit publishes from now on; own coins pay it.
    SpeedUp {
        /// The factory's name.
        factory: String,
        /// Feerate of each transaction together with its child, in sat/vB.
        #[arg(value_name = "SAT/VB", value_parser = clap::value_parser!(u64).range(1..))]
        feerate: u64,
    },
    /// Write the ways out of all factories to a file that `exit-runner` brings on chain without
    /// this wallet. It holds no key. Reads a passphrase for it from standard input.
    Export {
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// How far it is.
    Status {
        /// The factory's name.
        factory: String,
        /// Follow it until everything is in the wallet.
        #[arg(long)]
        watch: bool,
    },
}

/// How to run the wallet.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Chain: bitcoin, testnet, testnet4, signet or regtest.
    #[arg(long)]
    pub(crate) network: Network,
    /// Host and port of bitcoind's RPC server.
    #[arg(long, value_name = "HOST:PORT")]
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
    /// The LSP, node_id@host:port.
    #[arg(long, value_name = "URI")]
    pub(crate) lsp: LspUri,
    /// Milliseconds between two looks for new blocks.
    #[arg(long, value_name = "MS", default_value_t = 5_000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) poll_interval_ms: u64,
    /// Existing directory, on another disk or a mounted share, where everything is written before
    /// it counts. From then on the wallet runs with it only.
    #[arg(long, value_name = "DIR")]
    pub(crate) backup_dir: Option<PathBuf>,
    /// What to do where this wallet's directory and the backup are not the same.
    #[arg(long, value_enum, default_value = "continue", requires = "backup_dir")]
    pub(crate) begin: BeginWith,
    /// Height of a block from which on the seed may have coins: looked for at the first start of a
    /// seed that was taken over without its backup.
    #[arg(long, value_name = "HEIGHT")]
    pub(crate) birthday: Option<u32>,
    /// A watchtower, node_id@host:port, which should not be the LSP's; may be given several times.
    /// Its operator has to admit what `tower-id` shows.
    #[arg(long = "tower", value_name = "URI")]
    pub(crate) towers: Vec<LspUri>,
    #[command(flatten)]
    fee_caps: FeeCapArgs,
}

/// What own coins may be spent on exits.
#[derive(Clone, Copy, Debug, Args)]
struct FeeCapArgs {
    /// Highest feerate an exit's transactions may pay with own coins.
    #[arg(long, value_name = "SAT/VB", default_value_t = FeeCaps::default().max_sat_per_vb,
          value_parser = clap::value_parser!(u32).range(1..))]
    exit_max_feerate: u32,
    /// Most that one transaction of an exit may cost, in percent of the amount leaving.
    #[arg(long, value_name = "PERCENT", default_value_t = FeeCaps::default().percent_per_transaction,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    exit_percent_per_transaction: u8,
    /// Most that a whole exit may cost, in percent of the amount leaving.
    #[arg(long, value_name = "PERCENT", default_value_t = FeeCaps::default().percent_per_exit,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    exit_percent: u8,
}

impl RunArgs {
    /// What own coins may be spent on exits.
    pub(crate) fn fee_caps(&self) -> FeeCaps {
        FeeCaps {
            max_sat_per_vb: self.fee_caps.exit_max_feerate,
            percent_per_transaction: self.fee_caps.exit_percent_per_transaction,
            percent_per_exit: self.fee_caps.exit_percent,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BeginWith {
    /// Refuse: only an empty backup is begun.
    Continue,
    /// Bring the wallet from the backup into an empty directory. It ends on the device it was on.
    Restore,
    /// The old backup is lost for good: begin anew in this empty one.
    Move,
}

impl From<BeginWith> for Begin {
    fn from(begin: BeginWith) -> Begin {
        match begin {
            BeginWith::Continue => Begin::Continue,
            BeginWith::Restore => Begin::Restore,
            BeginWith::Move => Begin::Move,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Words {
    #[value(name = "12")]
    Twelve,
    #[value(name = "24")]
    TwentyFour,
}

impl Exit {
    /// How to leave, as the SDK calls it.
    pub(crate) fn mode(reclaim: bool) -> ExitMode {
        match reclaim {
            true => ExitMode::Reclaim,
            false => ExitMode::Leave,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = line.split_whitespace().map(|word| word.replace("KEY", KEY));
        Cli::try_parse_from(std::iter::once("wallet-cli".to_owned()).chain(words))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn good_lines_are_taken() {
        let run = "--dir d run --network regtest --bitcoind 127.0.0.1:1 --lsp KEY@h:1";
        for line in [
            "--dir d create --words 24",
            "--dir d restore",
            &format!("{run} --cookie c"),
            &format!("{run} --rpc-user u --rpc-password p"),
            "--dir d join --capacity 500000 --wait",
            "--dir d join --capacity 500000 --lsp-reclaims --route-limit 2016",
            "--dir d receive --amount-msat 1 --description two",
            "--dir d send lnbcrt1 --wait",
            "--dir d --json balance",
            "--dir d balance --json",
            "--dir d exit start ab --reclaim",
            "--dir d exit status ab --watch",
            "--dir d exit speed-up ab 25",
            "--dir d exit export file",
            "--dir d events --after 5 --wait",
            "--dir d events --wait 3",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn bad_lines_are_refused_with_the_argument() {
        let run = "--dir d run --network regtest --bitcoind 127.0.0.1:1";
        for (line, named) in [
            ("balance", "--dir"),
            ("--dir d", "Usage"),
            ("--dir d fly", "fly"),
            ("--dir d create --words 13", "--words"),
            (&format!("{run} --cookie c"), "--lsp"),
            (
                &format!("{run} --cookie c --lsp nonsense"),
                "node_id@host:port",
            ),
            (
                &format!("{run} --cookie c --lsp 02@h:1"),
                "not a public key",
            ),
            (&format!("{run} --lsp KEY@h:1"), "--cookie"),
            (
                &format!("{run} --lsp KEY@h:1 --rpc-user u"),
                "--rpc-password",
            ),
            (
                &format!("{run} --lsp KEY@h:1 --cookie c --rpc-user u"),
                "--cookie",
            ),
            ("--dir d run --network moon", "--network"),
            ("--dir d join", "--capacity"),
            ("--dir d join --capacity -5", "-5"),
            (
                "--dir d join --capacity 5 --route-limit far",
                "--route-limit",
            ),
            ("--dir d join --capacity lots", "--capacity"),
            ("--dir d receive --amount-msat 1.5", "--amount-msat"),
            ("--dir d send", "INVOICE"),
            ("--dir d payment", "PAYMENT_HASH"),
            ("--dir d tree", "FACTORY"),
            ("--dir d exit plan", "FACTORY"),
            ("--dir d exit speed-up ab", "SAT/VB"),
            ("--dir d exit export", "FILE"),
            ("--dir d exit speed-up ab 0", "SAT/VB"),
            ("--dir d send-coins addr", "AMOUNT_SAT"),
            ("--dir d events --limit 0", "--limit"),
            ("--dir d events --after x", "--after"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
