//! Each request as calls of the SDK.

use std::time::Duration;

use bitcoin::hex::DisplayHex as _;
use serde::Serialize;
use serde_json::{Value, json};
use superscalar_sdk::Wallet;

use crate::protocol::{Failure, Request, Response};

/// Longest wait of one request for events.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

pub(super) async fn answer(wallet: &Wallet, request: Request) -> Response {
    match call(wallet, request).await {
        Ok(value) => Response::Done(value),
        Err(failure) => Response::Failed(failure),
    }
}

async fn call(wallet: &Wallet, request: Request) -> Result<Value, Failure> {
    match request {
        Request::Status {} => done(&wallet.status()),
        Request::Join(request) => {
            wallet.factories().join_with(request).await?;
            Ok(json!({}))
        }
        Request::Receive {
            amount_msat,
            description,
            expiry_secs,
        } => {
            let lightning = wallet.lightning();
            let invoice = lightning.receive(amount_msat, &description, expiry_secs);
            Ok(json!({ "invoice": invoice.await? }))
        }
        Request::ReceiveJit {
            amount_msat,
            description,
            expiry_secs,
            max_fee_msat,
        } => {
            let lightning = wallet.lightning();
            let bought =
                lightning.receive_jit(amount_msat, &description, expiry_secs, max_fee_msat);
            done(&bought.await?)
        }
        Request::QuoteJit { amount_msat } => {
            done(&wallet.lightning().quote_jit(amount_msat).await?)
        }
        Request::Channels {} => done(&wallet.lightning().channels()?),
        Request::CloseChannel { channel, how } => {
            wallet.lightning().close_channel(&channel, how)?;
            Ok(json!({}))
        }
        Request::Send {
            invoice,
            amount_msat,
        } => {
            let hash = wallet.lightning().send(&invoice, amount_msat).await?;
            Ok(json!({ "payment_hash": hash }))
        }
        Request::Payment { payment_hash } => {
            let unknown = || {
                let message = format!("no payment has the hash {payment_hash}");
                Failure::new("unknown_payment", message).hint("`payments` lists them")
            };
            let is_hash = payment_hash.len() == 64
                && payment_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_hash {
                return Err(unknown());
            }
            let found = wallet.lightning().payment(&payment_hash)?;
            done(&found.ok_or_else(unknown)?)
        }
        Request::Payments {} => done(&wallet.lightning().payments()?),
        Request::Balance {} => done(&wallet.balance()?),
        Request::Towers {} => done(&wallet.towers()?),
        Request::TowerId { tower } => {
            let tower = tower.parse();
            let tower = tower.map_err(|error| Failure::new("bad_uri", error))?;
            Ok(json!({ "tower_client_id": wallet.tower_client_id(&tower)? }))
        }
        Request::Factories {} => done(&wallet.factories().list().await?),
        Request::Tree { factory } => done(&wallet.factories().tree(&factory).await?),
        Request::InboundQuote {
            factory,
            capacity_sat,
            max_price_msat,
        } => {
            let factories = wallet.factories();
            let quoted = factories.quote_inbound(&factory, capacity_sat, max_price_msat);
            done(&quoted.await?)
        }
        Request::InboundBuy(quote) => {
            wallet.factories().buy_inbound(&quote).await?;
            done(&quote)
        }
        Request::Consent { factory, consent } => {
            let factories = wallet.factories();
            factories.set_epoch_consent(&factory, consent).await?;
            Ok(json!({}))
        }
        Request::ExitPlan { factory } => done(&wallet.exit().plan(&factory).await?),
        Request::ExitStart {
            factory,
            mode,
            accept_restored_state,
        } => {
            let exit = wallet.exit();
            if accept_restored_state {
                exit.accept_restored_state().await?;
            }
            exit.start(&factory, mode).await?;
            Ok(json!({}))
        }
        Request::ExitStatus {} => done(&wallet.exit().status().await?),
        Request::ExitSpeedUp {
            factory,
            feerate_sat_per_vb,
        } => {
            let exit = wallet.exit();
            exit.speed_up(&factory, feerate_sat_per_vb).await?;
            Ok(json!({}))
        }
        Request::ExitExport { passphrase } => {
            let package = wallet.exit().export_package(passphrase.expose()).await?;
            Ok(json!({ "package": package.to_lower_hex_string() }))
        }
        Request::Address {} => Ok(json!({ "address": wallet.onchain().address()? })),
        Request::Coins {} => done(&wallet.onchain().balance()?),
        Request::SendCoins {
            address,
            amount_sat,
            feerate_sat_per_vb,
        } => {
            let onchain = wallet.onchain();
            let sent = onchain.send(&address, amount_sat, feerate_sat_per_vb);
            Ok(json!({ "txid": sent.await? }))
        }
        Request::Events {
            after,
            limit,
            wait_ms,
        } => {
            let wait = Duration::from_millis(wait_ms).min(MAX_WAIT);
            if let Ok(waited) = tokio::time::timeout(wait, wallet.wait_for_event(after)).await {
                waited?;
            }
            done(&wallet.events(after, limit)?)
        }
        Request::Connect {} => {
            wallet.connect().await?;
            done(&wallet.status())
        }
        Request::Sync {} => Ok(json!({ "height": wallet.sync().await? })),
        // Answered by the connection, which ends with it.
        Request::Stop {} => Ok(json!({})),
    }
}

fn done(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new("internal", error))
}
