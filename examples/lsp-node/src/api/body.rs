//! JSON bodies, read strictly: what is wrong is named by its field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// A request's body as `T`, whatever its content type says.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, ApiError> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|refused| match refused.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::new(status, "body_too_large", refused.body_text())
            }
            _ => ApiError::bad_request("unreadable_body", refused.body_text()),
        })?;
        parse(&bytes).map(Body)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would also read a list of all fields in order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_request("invalid_body", "expected an object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let message = error.inner().to_string();
        if !error.inner().is_data() {
            return ApiError::bad_request("invalid_json", message);
        }
        let field = field(&error.path().to_string(), &message);
        let refused = ApiError::bad_request("invalid_body", message);
        match field {
            Some(field) => refused.field(field),
            None => refused,
        }
    })?;
    json.end()
        .map_err(|error| ApiError::bad_request("invalid_json", error))?;
    Ok(value)
}

/// Serde reports a missing or repeated field at its object.
fn field(path: &str, message: &str) -> Option<String> {
    let at_object = message.starts_with("missing field") || message.starts_with("duplicate field");
    let named = message.split('`').nth(1).filter(|_| at_object);
    match (path, named) {
        (".", named) => named.map(str::to_owned),
        (path, Some(named)) => Some(format!("{path}.{named}")),
        (path, None) => Some(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use superscalar_sdk::BuildRequest;

    #[test]
    fn a_bad_body_is_refused_with_its_field() {
        let good = r#"{"members":4,"capacity_sat":500000,"life_blocks":2000}"#;
        assert_eq!(parse::<BuildRequest>(good.as_bytes()).unwrap().members, 4);
        let cases = [
            ("", "invalid_json", None),
            ("{", "invalid_json", None),
            ("null", "invalid_body", None),
            (" [4, 500000, 0, 2000]", "invalid_body", None),
            (&format!("{good} 7"), "invalid_json", None),
            (
                &good.replace("\"members\":4,", ""),
                "invalid_body",
                Some("members"),
            ),
            (
                &good.replace(":4,", ":70000,"),
                "invalid_body",
                Some("members"),
            ),
            (
                &good.replace(":4,", ":-1,"),
                "invalid_body",
                Some("members"),
            ),
            (
                &good.replace(":4,", ":\"4\","),
                "invalid_body",
                Some("members"),
            ),
            (
                &good.replace("members", "mambers"),
                "invalid_body",
                Some("mambers"),
            ),
            (
                &good.replace("}", ",\"shape\":[2,300]}"),
                "invalid_body",
                Some("shape[1]"),
            ),
            (
                &good.replace("}", ",\"preset\":\"slow\"}"),
                "invalid_body",
                Some("preset"),
            ),
            (
                &good.replace("}", ",\"members\":4}"),
                "invalid_body",
                Some("members"),
            ),
        ];
        for (body, code, field) in cases {
            let error = parse::<BuildRequest>(body.as_bytes()).unwrap_err();
            let error = serde_json::to_value(error).unwrap();
            assert_eq!(error["code"], code, "{body}: {error}");
            assert_eq!(error["field"].as_str(), field, "{body}: {error}");
        }
    }
}
