//! The server's own invoices and payments: `POST /v1/invoices`, `GET` and `POST /v1/payments`,
//! `GET /v1/payments/{hash}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use superscalar_sdk::Payment;

use super::Api;
use super::body::Body;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/invoices", post(invoice))
        .route("/v1/payments", get(list).post(pay))
        .route("/v1/payments/{hash}", get(one))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    /// Absent: the payer decides.
    #[serde(default)]
    amount_msat: Option<u64>,
    #[serde(default)]
    description: String,
    #[serde(default = "an_hour")]
    expiry_secs: u32,
}

fn an_hour() -> u32 {
    3_600
}

#[derive(Serialize)]
struct Invoice {
    invoice: String,
}

async fn invoice(
    State(api): State<Arc<Api>>,
    Body(ask): Body<Ask>,
) -> Result<(StatusCode, Json<Invoice>), ApiError> {
    let invoice = api
        .lsp
        .lightning()
        .receive(ask.amount_msat, &ask.description, ask.expiry_secs)
        .await?;
    Ok((StatusCode::CREATED, Json(Invoice { invoice })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pay {
    invoice: String,
    /// For an invoice without an amount.
    #[serde(default)]
    amount_msat: Option<u64>,
}

#[derive(Serialize)]
struct Begun {
    payment_hash: String,
}

/// Begins a payment; how it ends is in `GET /v1/payments/{hash}` and the events.
async fn pay(
    State(api): State<Arc<Api>>,
    Body(pay): Body<Pay>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let payment_hash = api
        .lsp
        .lightning()
        .send(&pay.invoice, pay.amount_msat)
        .await?;
    Ok((StatusCode::ACCEPTED, Json(Begun { payment_hash })))
}

async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<Payment>>, ApiError> {
    Ok(Json(api.lsp.lightning().payments()?))
}

async fn one(
    State(api): State<Arc<Api>>,
    Path(hash): Path<String>,
) -> Result<Json<Payment>, ApiError> {
    let unknown = || {
        let message = format!("no payment has the hash {hash}");
        ApiError::new(StatusCode::NOT_FOUND, "unknown_payment", message)
    };
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        return Err(unknown());
    }
    let payment = api.lsp.lightning().payment(&hash)?;
    payment.map(Json).ok_or_else(unknown)
}
