//! The server itself: `GET /v1/status`, `GET /v1/balance`, `GET /v1/towers`, `POST /v1/sync`,
//! `POST /v1/stop`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use superscalar_sdk::{Balance, TowerHealth};

use super::Api;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/balance", get(balance))
        .route("/v1/towers", get(towers))
        .route("/v1/sync", post(sync))
        .route("/v1/stop", post(stop))
}

#[derive(Serialize)]
struct Status {
    node_id: String,
    /// What members connect to, `node_id@host:port`.
    uri: Option<String>,
    /// Height of the chain as this server has seen it.
    height: u32,
    version: &'static str,
}

async fn status(State(api): State<Arc<Api>>) -> Json<Status> {
    Json(Status {
        node_id: api.lsp.node_id(),
        uri: api.uri(),
        height: api.lsp.height(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

async fn balance(State(api): State<Arc<Api>>) -> Json<Balance> {
    Json(api.lsp.balance())
}

/// How the watchtowers are, in the order of the configuration.
async fn towers(State(api): State<Arc<Api>>) -> Json<Vec<TowerHealth>> {
    Json(api.lsp.towers())
}

#[derive(Serialize)]
struct Synced {
    height: u32,
}

/// Looks for new blocks now; the answer comes when everything has reacted to them.
async fn sync(State(api): State<Arc<Api>>) -> Result<Json<Synced>, ApiError> {
    let height = api.lsp.sync().await?;
    Ok(Json(Synced { height }))
}

#[derive(Serialize)]
struct Stopping {
    stopping: bool,
}

async fn stop(State(api): State<Arc<Api>>) -> (StatusCode, Json<Stopping>) {
    api.stopping.send_replace(true);
    (StatusCode::ACCEPTED, Json(Stopping { stopping: true }))
}
