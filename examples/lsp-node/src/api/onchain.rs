//! Coins: `GET /v1/onchain`, `POST /v1/onchain/address`.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use superscalar_sdk::OnchainCoins;

use super::Api;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/onchain", get(coins))
        .route("/v1/onchain/address", post(address))
}

async fn coins(State(api): State<Arc<Api>>) -> Result<Json<OnchainCoins>, ApiError> {
    Ok(Json(api.lsp.onchain().balance()?))
}

#[derive(Serialize)]
struct Fresh {
    address: String,
}

async fn address(State(api): State<Arc<Api>>) -> Result<Json<Fresh>, ApiError> {
    let address = api.lsp.onchain().address()?;
    Ok(Json(Fresh { address }))
}
