//! The bearer token. Every route asks for it, also those that do not exist.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::Api;
use super::error::ApiError;

/// Lets a request pass that carries the token.
pub(crate) async fn require_token(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(AUTHORIZATION);
    if given.is_some_and(|given| is_token(given, &api.token)) {
        return next.run(request).await;
    }
    let message = "this API wants the header \"Authorization: Bearer <token>\"";
    let refused = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message);
    let mut response = refused.into_response();
    let scheme = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    response
}

/// Takes the same time for every wrong token of the right length.
fn is_token(header: &HeaderValue, token: &str) -> bool {
    let given = header.as_bytes();
    let Some((scheme, given)) = given.split_at_checked(b"Bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_passes() {
        let token = "0123456789abcdef0123456789abcdef";
        let check = |header: &str| is_token(&HeaderValue::from_str(header).unwrap(), token);
        assert!(check(&format!("Bearer {token}")));
        assert!(check(&format!("bearer {token}")));
        for wrong in [
            String::new(),
            "Bearer ".to_owned(),
            token.to_owned(),
            format!("Basic {token}"),
            format!("Bearer {}", &token[1..]),
            format!("Bearer {token}0"),
            format!("Bearer {}", token.to_uppercase()),
        ] {
            assert!(!check(&wrong), "{wrong}");
        }
    }
}
