//! Channels: `GET` and `POST /v1/channels`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use superscalar_sdk::{ChannelInfo, LspUri};

use super::Api;
use super::body::Body;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/channels", get(list).post(open))
}

async fn list(State(api): State<Arc<Api>>) -> Json<Vec<ChannelInfo>> {
    Json(api.lsp.channels())
}

/// An ordinary channel to a Lightning node, paid from the server's coins.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    /// `node_id@host:port`.
    peer: String,
    capacity_sat: u64,
    /// What the peer gets of it at once.
    #[serde(default)]
    push_msat: u64,
}

#[derive(Serialize)]
struct Opening {
    peer: String,
}

async fn open(
    State(api): State<Arc<Api>>,
    Body(open): Body<Open>,
) -> Result<(StatusCode, Json<Opening>), ApiError> {
    let peer: LspUri = open.peer.parse().map_err(|error| {
        ApiError::bad_request("invalid_argument", format!("peer: {error}")).field("peer")
    })?;
    api.lsp
        .open_channel(&peer, open.capacity_sat, open.push_msat)
        .await?;
    let opening = Opening {
        peer: peer.node_id(),
    };
    Ok((StatusCode::ACCEPTED, Json(opening)))
}
