//! JSON bodies, whose faults name the field.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::problem::Problem;

/// Longest part of a value that an error repeats, in characters.
const SHOWN: usize = 80;

/// Reads the body of a request, of at most `limit` bytes and within `patience`.
///
/// # Errors
/// What is wrong with it, by field.
pub async fn read<T: DeserializeOwned>(
    request: Request,
    limit: usize,
    patience: Duration,
) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    declared(&parts.headers)?;
    parse(&bytes(body, limit, patience).await?)
}

/// The bytes of a body, of at most `limit` and within `patience`.
///
/// # Errors
/// What is wrong with it.
pub async fn bytes(body: Body, limit: usize, patience: Duration) -> Result<Vec<u8>, Problem> {
    let read = tokio::time::timeout(patience, Limited::new(body, limit).collect());
    let read = read.await.map_err(|_| Problem::too_slow(patience))?;
    let body = read.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => Problem::too_large(limit),
        None => Problem::broken_body(error.to_string()),
    })?;
    Ok(body.to_bytes().into())
}

/// Checks that a body is said to be JSON.
///
/// # Errors
/// [`Problem::media_type`] if not.
pub fn declared(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(CONTENT_TYPE);
    let given = given.map_or("", |given| given.to_str().unwrap_or_default());
    let kind = given.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(Problem::media_type(given)),
    }
}

/// Reads a value.
///
/// # Errors
/// What is wrong with it, by field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| Problem::not_json(error.to_string()))?;
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let given = given(&value, error.path());
        let field = match error.path().iter().next() {
            Some(_) => error.path().to_string(),
            None => "body".into(),
        };
        Problem::wrong_type(field, error.inner().to_string(), given)
    })
}

/// What stands at `path`, shortened.
fn given(value: &Value, path: &Path) -> Option<String> {
    let mut value = value;
    for segment in path {
        value = match segment {
            Segment::Map { key } => value.get(key)?,
            Segment::Seq { index } => value.get(index)?,
            Segment::Enum { .. } | Segment::Unknown => break,
        };
    }
    let text = value.to_string();
    Some(match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Outer {
        n: Option<u32>,
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        kind: Kind,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Png,
    }

    fn refused(text: &str) -> String {
        let problem = parse::<Outer>(text.as_bytes()).expect_err("refused");
        format!("{problem:?}")
    }

    #[test]
    fn faults_name_field_limit_and_value() {
        for (text, field, limit, value) in [
            (
                r#"{"n": "x", "inner": []}"#,
                "\"n\"",
                "expected u32",
                "\\\"x\\\"",
            ),
            (r#"{"n": -1, "inner": []}"#, "\"n\"", "expected u32", "-1"),
            (
                r#"{"n": 1e400, "inner": []}"#,
                "None",
                "out of range",
                "None",
            ),
            (r#"{"n": NaN, "inner": []}"#, "None", "not JSON", "None"),
            (r#"{"n": 1"#, "None", "EOF", "None"),
            (r#"[]"#, "\"body\"", "invalid", "[]"),
            (r#"{"n": 1}"#, "\"body\"", "missing field `inner`", "{"),
            (
                r#"{"inner": [{"kind": "png"}, {"kind": "gif"}]}"#,
                "\"inner[1].kind\"",
                "expected `png`",
                "\\\"gif\\\"",
            ),
        ] {
            let problem = refused(text);
            for part in [field, limit, value] {
                assert!(problem.contains(part), "{text}: {part} in {problem}");
            }
        }
        let long = format!(r#"{{"n": "{}", "inner": []}}"#, "é".repeat(500));
        assert!(refused(&long).len() < 1000);
    }
}
