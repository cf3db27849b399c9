//! The REST API: JSON over HTTP, one file for each group of endpoints.
//!
//! What always holds: every request carries the token; every refusal is an [`ApiError`] and has
//! changed nothing; a body is at most [`MAX_BODY_BYTES`] long.

mod auth;
mod body;
mod channels;
mod error;
mod events;
mod factories;
mod lightning;
mod node;
mod onchain;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use superscalar_sdk::Lsp;
use tokio::net::TcpListener;
use tokio::sync::watch;

use error::ApiError;

/// Longest body taken. The largest sensible one is an invoice.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What endpoints work with.
pub(crate) struct Api {
    lsp: Arc<Lsp>,
    public_address: Option<String>,
    token: String,
    /// True once the server is to stop.
    stopping: watch::Sender<bool>,
}

impl Api {
    pub(crate) fn new(
        lsp: Arc<Lsp>,
        public_address: Option<String>,
        token: String,
        stopping: watch::Sender<bool>,
    ) -> Api {
        Api {
            lsp,
            public_address,
            token,
            stopping,
        }
    }

    /// What members connect to.
    pub(crate) fn uri(&self) -> Option<String> {
        match &self.public_address {
            Some(address) => Some(format!("{}@{address}", self.lsp.node_id())),
            None => self.lsp.uri(),
        }
    }

    /// Returns when the server is to stop.
    async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error means that nobody can ask for it any more.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// Serves until [`Api::stopping`] turns true and all requests are answered.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>) -> std::io::Result<()> {
    let stopped = Arc::clone(&api);
    axum::serve(listener, router(api))
        .with_graceful_shutdown(async move { stopped.stopped().await })
        .await
}

fn router(api: Arc<Api>) -> Router {
    Router::new()
        .merge(node::routes())
        .merge(factories::routes())
        .merge(channels::routes())
        .merge(onchain::routes())
        .merge(lightning::routes())
        .merge(events::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Arc::clone(&api), auth::require_token))
        .with_state(api)
}

async fn unknown_route(uri: Uri) -> ApiError {
    let message = format!("there is no {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_route", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}
