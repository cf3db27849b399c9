//! Factories: `GET /v1/waiting`, `GET` and `POST /v1/factories`, `GET /v1/factories/{name}` and
//! `/v1/factories/{name}/tree`, `GET /v1/exits`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use superscalar_sdk::{BuildRequest, ExitInfo, FactoryInfo, TreeNodeInfo};

use super::Api;
use super::body::Body;
use super::error::ApiError;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/waiting", get(waiting))
        .route("/v1/factories", get(list).post(create))
        .route("/v1/factories/{name}", get(one))
        .route("/v1/factories/{name}/tree", get(tree))
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

async fn exits(State(api): State<Arc<Api>>) -> Result<Json<Vec<ExitInfo>>, ApiError> {
    Ok(Json(api.lsp.exits().await?))
}
