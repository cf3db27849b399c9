//! What happened: `GET /v1/events?after=&limit=&wait_ms=`.
//!
//! `after` is the cursor of the last event known, 0 for none. With `wait_ms` an answer without
//! events comes only after that time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use superscalar_sdk::EventPage;

use super::Api;
use super::error::ApiError;

const MAX_LIMIT: u64 = 1_000;
const MAX_WAIT_MS: u64 = 60_000;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/events", get(events))
}

async fn events(
    State(api): State<Arc<Api>>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<EventPage>, ApiError> {
    let asked = Asked::parse(&pairs)?;
    let wait = Duration::from_millis(asked.wait_ms);
    tokio::select! {
        waited = tokio::time::timeout(wait, api.lsp.wait_for_event(asked.after)) => {
            if let Ok(failed @ Err(_)) = waited {
                failed?;
            }
        }
        () = api.stopped() => {}
    }
    Ok(Json(api.lsp.events(asked.after, asked.limit)?))
}

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    after: u64,
    limit: u32,
    wait_ms: u64,
}

impl Asked {
    fn parse(pairs: &[(String, String)]) -> Result<Asked, ApiError> {
        let mut asked = Asked {
            after: 0,
            limit: 100,
            wait_ms: 0,
        };
        for (key, value) in pairs {
            let wrong = |problem: String| {
                let message = format!("{key}: {problem}");
                ApiError::bad_request("invalid_argument", message).field(key.as_str())
            };
            let number = |most: u64| match value.parse::<u64>() {
                Ok(number) if number <= most => Ok(number),
                _ => Err(wrong(format!("{value} is no number from 0 to {most}"))),
            };
            match key.as_str() {
                "after" => asked.after = number(u64::MAX)?,
                "limit" => asked.limit = number(MAX_LIMIT)? as u32,
                "wait_ms" => asked.wait_ms = number(MAX_WAIT_MS)?,
                _ => return Err(wrong("unknown; after, limit and wait_ms are".to_owned())),
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Asked, ApiError> {
        let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
        Asked::parse(&pairs.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_query_has_defaults_and_bounds() {
        let asked = parse(&[("after", "7"), ("limit", "1000"), ("wait_ms", "60000")]);
        let (after, limit, wait_ms) = (7, 1_000, 60_000);
        assert_eq!(
            asked.unwrap(),
            Asked {
                after,
                limit,
                wait_ms
            }
        );
        assert_eq!(parse(&[]).unwrap().limit, 100);
        for (key, value) in [
            ("after", "-1"),
            ("after", "x"),
            ("limit", "1001"),
            ("limit", ""),
            ("wait_ms", "60001"),
            ("wait", "1"),
        ] {
            let error = serde_json::to_value(parse(&[(key, value)]).unwrap_err()).unwrap();
            assert_eq!(error["field"], key);
        }
    }
}
