//! The description of the API, as it is served.

use axum::{http::header::CONTENT_TYPE, response::IntoResponse};

/// OpenAPI 3.1.
const DOCUMENT: &str = include_str!("openapi.json");

/// The description.
pub async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT)
}
