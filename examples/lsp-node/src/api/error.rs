//! The one shape of every refusal: `{"code", "message", "retryable", "field"?}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use superscalar_sdk::WalletError;

/// Why a request was refused or failed; nothing has changed then.
#[derive(Debug, Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    /// Stable, for programs.
    code: &'static str,
    /// For people.
    message: String,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// The part of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

impl ApiError {
    /// A request that is not what this endpoint takes.
    pub(crate) fn bad_request(code: &'static str, message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> ApiError {
        ApiError {
            status,
            code,
            message: message.to_string(),
            retryable: false,
            field: None,
        }
    }

    pub(crate) fn field(mut self, field: impl Into<String>) -> ApiError {
        self.field = Some(field.into());
        self
    }

    pub(crate) fn retryable(mut self) -> ApiError {
        self.retryable = true;
        self
    }
}

impl From<WalletError> for ApiError {
    fn from(error: WalletError) -> ApiError {
        let code = error.code();
        let refused = ApiError::new(status(code), code, &error);
        let refused = match error.field() {
            Some(field) => refused.field(field),
            None => refused,
        };
        match error.retryable() {
            true => refused.retryable(),
            false => refused,
        }
    }
}

fn status(code: &str) -> StatusCode {
    match code {
        "invalid_argument"
        | "invalid_terms"
        | "place_not_cut_so"
        | "no_such_place"
        | "invalid_invoice"
        | "invalid_invoice_request" => StatusCode::BAD_REQUEST,
        "unknown_factory" => StatusCode::NOT_FOUND,
        "epochs_used_up" | "epoch_under_way" | "no_epoch" | "factory_opened"
        | "factory_not_active" | "sale_pending" | "member_has_left" | "channels_at_rest"
        | "not_connected" | "not_enough_members" | "no_path" | "no_distributions"
        | "factory_damaged" | "no_active_channel" | "already_paid" | "payment_failed"
        | "channel_failed" | "onchain_failed" | "insufficient_funds" => StatusCode::CONFLICT,
        "peer_unreachable" | "chain_unreachable" | "chain_unauthorized" | "chain_failed" => {
            StatusCode::BAD_GATEWAY
        }
        "stopped" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(code = self.code, message = self.message, "request failed");
        }
        (self.status, Json(self)).into_response()
    }
}
