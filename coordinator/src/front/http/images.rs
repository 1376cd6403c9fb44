//! Pictures over HTTP.

mod format;
mod generations;
mod request;
mod stream;

use axum::{
    extract::{Path, Request, State},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
pub use generations::generations;
use xomni_worker::api::{Backbone, Decoder};

use super::{Api, json, problem::Problem};

/// A picture that was answered with its address.
pub async fn file<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let file = api.files.get(&name).ok_or_else(Problem::expired)?;
    let seconds = api.files.expiry().as_secs();
    let headers = [
        (CONTENT_TYPE, file.media_type.to_owned()),
        (
            CACHE_CONTROL,
            format!("private, max-age={seconds}, immutable"),
        ),
    ];
    Ok((headers, file.bytes).into_response())
}

/// The model draws from text alone.
pub async fn edits<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    request: Request,
) -> Problem {
    // A client that is still sending would not read the answer.
    json::discard(request.into_body(), api.settings.read_timeout).await;
    let reason = "the model cannot edit or vary pictures: it draws them from text alone; use \
                  /v1/images/generations";
    api.refuse(Problem::unsupported(None, reason))
}
