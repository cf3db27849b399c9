//! Factories: `GET /v1/waiting`, `GET` and `POST /v1/factories`, `GET /v1/factories/{name}` and
//! `/v1/factories/{name}/tree`, `POST` and `DELETE /v1/factories/{name}/epoch`, `GET /v1/exits`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use superscalar_sdk::{BuildRequest, EpochRequest, ExitInfo, FactoryInfo, TreeNodeInfo};

use super::Api;
use super::body::Body;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/waiting", get(waiting))
        .route("/v1/factories", get(list).post(create))
        .route("/v1/factories/{name}", get(one))
        .route("/v1/factories/{name}/tree", get(tree))
        .route(
            "/v1/factories/{name}/epoch",
            post(begin_epoch).delete(abandon_epoch),
        )
        .route("/v1/exits", get(exits))
}

#[derive(Serialize)]
struct Waiting {
    /// Node ids of members that are connected and wait for a place.
    members: Vec<String>,
}

async fn waiting(State(api): State<Arc<Api>>) -> Result<Json<Waiting>, ApiError> {
    let members = api.lsp.waiting().await?;
    Ok(Json(Waiting { members }))
}

#[derive(Serialize)]
struct Created {
    /// Name of the factory that is being built.
    factory: String,
}

async fn create(
    State(api): State<Arc<Api>>,
    Body(request): Body<BuildRequest>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let factory = api.lsp.create_factory(request).await?;
    tracing::info!(factory, "building");
    Ok((StatusCode::ACCEPTED, Json(Created { factory })))
}

async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<FactoryInfo>>, ApiError> {
    Ok(Json(api.lsp.factories().await?))
}

async fn one(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<FactoryInfo>, ApiError> {
    let all = api.lsp.factories().await?;
    let found = all.into_iter().find(|it| it.factory == name);
    let unknown = || {
        let message = format!("no factory is called {name}");
        ApiError::new(StatusCode::NOT_FOUND, "unknown_factory", message)
    };
    found.map(Json).ok_or_else(unknown)
}

async fn tree(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<TreeNodeInfo>>, ApiError> {
    Ok(Json(api.lsp.tree(&name).await?))
}

#[derive(Serialize)]
struct Begun {
    /// Which epoch of which node; what becomes of it are events.
    epoch: String,
}

async fn begin_epoch(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(request): Body<EpochRequest>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let epoch = api.lsp.begin_epoch(&name, request).await?;
    tracing::info!(factory = name, epoch, "a new epoch begins");
    Ok((StatusCode::ACCEPTED, Json(Begun { epoch })))
}

async fn abandon_epoch(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.lsp.abandon_epoch(&name).await?;
    tracing::info!(factory = name, "the new epoch is abandoned");
    Ok(StatusCode::NO_CONTENT)
}

async fn exits(State(api): State<Arc<Api>>) -> Result<Json<Vec<ExitInfo>>, ApiError> {
    Ok(Json(api.lsp.exits().await?))
}
