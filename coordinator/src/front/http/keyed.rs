//! Lets in those who have a key.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem::Problem;
use crate::front::{
    access::{Access, Pass},
    failure::Failure,
    grpc::status,
};

/// Goes before routes that speak OpenAI's HTTP.
pub async fn http(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    match pass(&access, request.headers()) {
        Ok(pass) => {
            request.extensions_mut().insert(pass);
            next.run(request).await
        }
        Err(failure) => Problem::from(failure).into_response(),
    }
}

/// Goes before routes that speak gRPC.
pub async fn grpc(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    match pass(&access, request.headers()) {
        Ok(pass) => {
            request.extensions_mut().insert(pass);
            next.run(request).await
        }
        Err(failure) => status(failure).into_http(),
    }
}

fn pass(access: &Access, headers: &HeaderMap) -> Result<Pass, Failure> {
    let given = headers.get(AUTHORIZATION);
    // What is not text is no key.
    access.pass(given.map(|given| given.to_str().unwrap_or_default()))
}
