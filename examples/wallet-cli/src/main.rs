//! A desktop wallet on the public API a phone uses.
//!
//! `wallet-cli --dir DIR run …` is the wallet; every other command is a short conversation with it
//! over a socket in `DIR`. Answers go to stdout, as tables or as one line of JSON; errors go to
//! stderr with a code and a hint, and the exit status is 1 (2 for a wrong command line).

mod args;
mod client;
mod daemon;
mod export;
mod protocol;
mod seed;
mod show;
mod wait;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use bitcoin::hex::FromHex as _;
use clap::Parser;
use serde_json::{Value, json};
use superscalar_sdk::{
    Closing, Departure, EpochConsent, InboundQuote, JoinRequest, Policy, WordCount,
};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, Exit, Inbound, Words};
use client::Client;
use export::Passphrase;
use protocol::{Failure, Request};
use show::Kind;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_json = cli.json;
    match execute(cli).await {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some((kind, answer))) => {
            let shown = match is_json {
                true => format!("{answer}\n"),
                false => show::table(kind, &answer),
            };
            // A reader that closed early has seen what it wanted.
            let _ = std::io::stdout().write_all(shown.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let mut shown = match is_json {
                true => json!({ "error": failure }).to_string(),
                false => format!("error[{}]: {}", failure.code, failure.message),
            };
            if let (false, Some(hint)) = (is_json, &failure.hint) {
                shown.push_str(&format!("\nhint: {hint}"));
            }
            let _ = writeln!(std::io::stderr(), "{shown}");
            ExitCode::FAILURE
        }
    }
}

/// Carries a command out; what is to be shown, if anything.
async fn execute(cli: Cli) -> Result<Option<(Kind, Value)>, Failure> {
    let dir = &cli.dir;
    let kept = || {
        let kept = json!({ "mnemonic_file": seed::file(dir) });
        let note = "The seed stands in this file, unencrypted, and nowhere else: whoever reads it \
                    can take the money, whoever loses it has lost the money. Keep a copy of its \
                    words in a safe place.";
        let _ = writeln!(std::io::stderr(), "{note}");
        Ok(Some((Kind::Object, kept)))
    };
    match cli.command {
        Command::Create { words } => {
            let words = match words {
                Words::Twelve => WordCount::Twelve,
                Words::TwentyFour => WordCount::TwentyFour,
            };
            seed::create(dir, words)?;
            kept()
        }
        Command::Restore => {
            seed::restore(dir, std::io::stdin())?;
            kept()
        }
        Command::Run(run) => {
            let filter = EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| EnvFilter::new("info,ldk=warn"));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .init();
            daemon::run(dir, run).await?;
            Ok(None)
        }
        command => {
            let mut client = Client::connect(dir).await?;
            converse(&mut client, command).await.map(Some)
        }
    }
}

/// Carries out a command that asks the running wallet.
async fn converse(client: &mut Client, command: Command) -> Result<(Kind, Value), Failure> {
    let (kind, request) = match command {
        Command::Join {
            capacity,
            lsp_reclaims,
            route_limit,
            wait,
        } => {
            let after = client.newest_event().await?;
            let mut request = JoinRequest {
                route_limit_blocks: route_limit,
                ..JoinRequest::standard(capacity)
            };
            request
                .policies
                .extend(lsp_reclaims.then_some(Policy::LspReclaims));
            let asked = client.call(&Request::Join(request)).await?;
            if !wait {
                return Ok((Kind::Object, asked));
            }
            let factory = wait::for_factory(client, after).await?;
            return Ok((Kind::Factories, json!([factory])));
        }
        Command::Send {
            invoice,
            amount_msat,
            wait,
        } => {
            let request = Request::Send {
                invoice,
                amount_msat,
            };
            let begun = client.call(&request).await?;
            let hash = begun["payment_hash"].as_str().unwrap_or_default();
            if !wait {
                return Ok((Kind::Object, begun));
            }
            let payment = wait::for_payment(client, hash).await?;
            return Ok((Kind::Object, json!(payment)));
        }
        Command::Inbound(Inbound::Quote { factory, capacity }) => {
            let request = Request::InboundQuote {
                factory,
                capacity_sat: capacity,
                max_price_msat: u64::MAX,
            };
            (Kind::Object, request)
        }
        Command::Inbound(Inbound::Buy {
            factory,
            capacity,
            max_price_msat,
            wait,
        }) => {
            let after = client.newest_event().await?;
            let request = Request::InboundQuote {
                factory,
                capacity_sat: capacity,
                max_price_msat,
            };
            let quote: InboundQuote = client.ask(&request).await?;
            let bought = client.call(&Request::InboundBuy(quote.clone())).await?;
            if wait {
                wait::for_inbound(client, after, &quote.factory).await?;
            }
            return Ok((Kind::Object, bought));
        }
        Command::Exit(Exit::Start {
            factory,
            reclaim,
            accept_restored_state,
            wait,
        }) => {
            let request = Request::ExitStart {
                factory: factory.clone(),
                mode: Exit::mode(reclaim),
                accept_restored_state,
            };
            client.call(&request).await?;
            let exit = match wait {
                true => wait::for_exit(client, &factory).await?,
                false => wait::exit_of(client, &factory).await?,
            };
            return Ok((Kind::Object, json!(exit)));
        }
        Command::Exit(Exit::Status { factory, watch }) => {
            let exit = match watch {
                true => wait::for_exit(client, &factory).await?,
                false => wait::exit_of(client, &factory).await?,
            };
            return Ok((Kind::Object, json!(exit)));
        }
        Command::Exit(Exit::SpeedUp { factory, feerate }) => {
            let request = Request::ExitSpeedUp {
                factory: factory.clone(),
                feerate_sat_per_vb: feerate,
            };
            client.call(&request).await?;
            let exit = wait::exit_of(client, &factory).await?;
            return Ok((Kind::Object, json!(exit)));
        }
        Command::Exit(Exit::Export { file }) => {
            let passphrase = Passphrase::read(std::io::stdin())?;
            let answer = client.call(&Request::ExitExport { passphrase }).await?;
            let package = Vec::from_hex(answer["package"].as_str().unwrap_or_default())
                .map_err(|error| Failure::new("unexpected_answer", error))?;
            export::write(&file, &package)?;
            let written = json!({ "file": file, "bytes": package.len() });
            return Ok((Kind::Object, written));
        }
        Command::Consent {
            factory,
            min_capacity,
            leave,
            forgo,
        } => {
            let consent = EpochConsent {
                min_capacity_sat: min_capacity,
                departure: match leave {
                    true => Departure::Leaves,
                    false => Departure::Stays,
                },
                forgo_sat: forgo,
            };
            (Kind::Object, Request::Consent { factory, consent })
        }
        Command::Exit(Exit::Plan { factory }) => (Kind::Object, Request::ExitPlan { factory }),
        Command::Status => (Kind::Object, Request::Status {}),
        Command::Receive {
            amount_msat,
            description,
            expiry_secs,
            open_channel_for,
        } => {
            let request = match (amount_msat, open_channel_for) {
                (Some(amount_msat), Some(max_fee_msat)) => Request::ReceiveJit {
                    amount_msat,
                    description,
                    expiry_secs,
                    max_fee_msat,
                },
                (amount_msat, _) => Request::Receive {
                    amount_msat,
                    description,
                    expiry_secs,
                },
            };
            (Kind::Object, request)
        }
        Command::QuoteChannel { amount_msat } => (Kind::Object, Request::QuoteJit { amount_msat }),
        Command::Channels => (Kind::Channels, Request::Channels {}),
        Command::CloseChannel { channel, alone } => {
            let how = match alone {
                true => Closing::Alone,
                false => Closing::Together,
            };
            (Kind::Object, Request::CloseChannel { channel, how })
        }
        Command::Payment { payment_hash } => (Kind::Object, Request::Payment { payment_hash }),
        Command::Payments => (Kind::Payments, Request::Payments {}),
        Command::Balance => (Kind::Object, Request::Balance {}),
        Command::Factories => (Kind::Factories, Request::Factories {}),
        Command::Tree { factory } => (Kind::Tree, Request::Tree { factory }),
        Command::Address => (Kind::Object, Request::Address {}),
        Command::Towers => (Kind::Towers, Request::Towers {}),
        Command::TowerId { tower } => {
            let tower = tower.to_string();
            (Kind::Object, Request::TowerId { tower })
        }
        Command::Coins => (Kind::Object, Request::Coins {}),
        Command::SendCoins {
            address,
            amount_sat,
            feerate,
        } => {
            let request = Request::SendCoins {
                address,
                amount_sat,
                feerate_sat_per_vb: feerate,
            };
            (Kind::Object, request)
        }
        Command::Events { after, limit, wait } => {
            let wait_ms = wait.unwrap_or(0).saturating_mul(1_000);
            let request = Request::Events {
                after,
                limit,
                wait_ms,
            };
            (Kind::Events, request)
        }
        Command::Connect => (Kind::Object, Request::Connect {}),
        Command::Sync => (Kind::Object, Request::Sync {}),
        Command::Stop => (Kind::Object, Request::Stop {}),
        Command::Create { .. } | Command::Restore | Command::Run(_) => {
            return Err(Failure::new(
                "internal",
                "this command asks no running wallet",
            ));
        }
    };
    let answer = client.call(&request).await?;
    Ok((kind, answer))
}
