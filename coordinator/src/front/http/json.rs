//! JSON bodies, whose faults name the field.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use http_body_util::BodyExt;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::problem::Problem;

/// Longest part of a value that an error repeats, in characters.
const SHOWN: usize = 80;
/// Bytes of a refused body that are read to be forgotten, at most.
const DISCARDED: usize = 64 << 20;

/// A number, which is not rounded to 0 for being close to it.
///
/// # Errors
/// If it is none.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    let value = Option::<f64>::deserialize(deserializer)?;
    Ok(value.map(|value| match value as f32 {
        0.0 if value > 0.0 => f32::MIN_POSITIVE,
        rounded => rounded,
    }))
}

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
    let mut body = body;
    let read = async {
        let mut bytes = vec![];
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem::broken_body(error.to_string()))?;
            let data = frame.into_data().unwrap_or_default();
            if bytes.len() + data.len() > limit {
                return Err(Problem::too_large(limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let read = tokio::time::timeout(patience, read).await;
    let read = read.map_err(|_| Problem::too_slow(patience))?;
    if read.is_err() {
        discard(body, patience).await;
    }
    read
}

/// Reads a body and forgets it, so that a client which is still sending gets to read its answer.
pub async fn discard(mut body: Body, patience: Duration) {
    let read = async {
        let mut left = DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, |data| data.len());
            match left.checked_sub(size) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Whoever sends more, or for longer, is cut off.
    let _ = tokio::time::timeout(patience, read).await;
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

/// Reads an object.
///
/// # Errors
/// What is wrong with it, by field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|error| Problem::not_json(error.to_string()))?;
    make_whole(&mut value);
    if !value.is_object() {
        let given = Some(shorten(&value.to_string()));
        return Err(Problem::wrong_type(
            "body".into(),
            "must be an object".into(),
            given,
        ));
    }
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let (path, reason) = (error.path(), error.inner().to_string());
        if let Some(name) = missing(&reason) {
            let field = match path.iter().next() {
                Some(_) => format!("{path}.{name}"),
                None => name.to_owned(),
            };
            return Problem::wrong_type(field, "must be given".into(), None);
        }
        // What comes before repeats the value, however long it is.
        let expected = reason
            .rfind("expected ")
            .map_or(&*reason, |at| &reason[at..]);
        Problem::wrong_type(path.to_string(), shorten(expected), given(&value, path))
    })
}

/// Makes integers of whole numbers: 1 and 1.0 are the same in JSON.
fn make_whole(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().filter(|float| float.fract() == 0.0);
            // The first float beyond each type is its bound rounded up.
            match float.unwrap_or(f64::NAN) {
                float if (0.0..u64::MAX as f64).contains(&float) => *number = (float as u64).into(),
                float if (i64::MIN as f64..0.0).contains(&float) => *number = (float as i64).into(),
                _ => {}
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The field that serde misses, if that is its reason.
fn missing(reason: &str) -> Option<&str> {
    reason.strip_prefix("missing field `")?.strip_suffix('`')
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
    Some(shorten(&value.to_string()))
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Outer {
        n: Option<u32>,
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
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
    fn whole_numbers_are_integers() {
        for (text, n) in [("1.0", 1), ("4e2", 400), ("-0.0", 0)] {
            let body = format!(r#"{{"n": {text}, "inner": []}}"#);
            let read: Outer = parse(body.as_bytes()).expect("an integer");
            assert_eq!(read.n, Some(n), "{text}");
        }
        let edge: Value =
            parse(br#"{"a": [18446744073709551616.0, -9.223372036854776e18]}"#).expect("read");
        assert_eq!(edge["a"][0].as_f64(), Some(18446744073709551616.0));
        assert_eq!(edge["a"][1].as_i64(), Some(i64::MIN));
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
            (r#"[]"#, "\"body\"", "must be an object", "[]"),
            (r#"{"n": 1}"#, "\"inner\"", "must be given", "None"),
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
