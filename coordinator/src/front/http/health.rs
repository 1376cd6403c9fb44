//! Whether the process answers, and whether work gets on.

use axum::extract::State;
use xomni_worker::api::{Backbone, Decoder};

use super::{Api, problem::Problem};
use crate::{front::Front, routing::Stage};

/// The process answers.
pub async fn alive() -> &'static str {
    "ok\n"
}

/// Requests are taken, and those that run get on.
pub async fn ready<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
) -> Result<&'static str, Problem> {
    let front: &Front<B, D> = &api.front;
    front.serving()?;
    front.ready(&[Stage::Backbone, Stage::Decoder])?;
    let (running, _) = front.gate.load();
    match front.progress.stalled(running) {
        Some(still) => Err(Problem::stalled(running, still)),
        None => Ok("ready\n"),
    }
}
