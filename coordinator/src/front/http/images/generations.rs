//! `POST /v1/images/generations`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use serde::Serialize;
use xomni_engine::Error;
use xomni_worker::api::{Backbone, Decoder};

use super::{
    format::OutputFormat,
    request::{Delivery, GenerationRequest, ResponseFormat},
    stream,
};
use crate::{
    front::{
        Drawing, Event, Events,
        access::Pass,
        failure::Failure,
        http::{Api, context::Context, files::File, json, problem::Problem},
    },
    pipeline::ImageEvent,
    request::ImageJob,
};

/// Largest body, in bytes: a prompt of the longest, all of it escaped.
const MAX_BODY: usize = 1 << 20;

/// What an answer says of its pictures, whole or streamed.
#[derive(Debug)]
pub struct Facts {
    /// Seconds since 1970.
    pub created: u64,
    /// Width and height of each, as a request states them.
    pub size: String,
    /// Key of their randomness.
    pub seed: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of each.
    pub image_tokens: usize,
}

/// Tokens that were read and drawn.
#[derive(Debug, Serialize)]
pub struct Usage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    total_tokens: usize,
}

#[derive(Debug, Serialize)]
struct InputTokens {
    text_tokens: usize,
    image_tokens: usize,
}

#[derive(Debug, Serialize)]
struct Answer {
    created: u64,
    data: Vec<Datum>,
    size: String,
    output_format: OutputFormat,
    quality: &'static str,
    background: &'static str,
    seed: u64,
    usage: Usage,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Datum {
    B64Json(String),
    Url(String),
}

impl Facts {
    fn new(job: &ImageJob, unit: u32, prompt_tokens: usize) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            created: created.map_or(0, |since| since.as_secs()),
            size: format!("{}x{}", job.grid.width * unit, job.grid.height * unit),
            seed: job.seed,
            prompt_tokens,
            image_tokens: job.grid.tokens(),
        }
    }

    /// What `pictures` of them cost.
    pub fn usage(&self, pictures: usize) -> Usage {
        let output_tokens = pictures * self.image_tokens;
        Usage {
            input_tokens: self.prompt_tokens,
            input_tokens_details: InputTokens {
                text_tokens: self.prompt_tokens,
                image_tokens: 0,
            },
            output_tokens,
            total_tokens: self.prompt_tokens + output_tokens,
        }
    }
}

/// Draws pictures. A client that leaves ends their work.
pub async fn generations<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(context): Extension<Context>,
    Extension(pass): Extension<Pass>,
    request: Request,
) -> Result<Response, Problem> {
    let base = api.base_url(request.uri(), request.headers());
    let read = json::read(request, MAX_BODY, api.settings.read_timeout).await;
    let body: GenerationRequest = read.map_err(|problem| api.refuse(problem))?;
    let read = body.read(&api.front.model);
    let (request, delivery) = read.map_err(|error| api.refuse(error.into()))?;
    let Drawing { job, events } = api.front.draw(request, context.caller(pass))?;
    let prompt_tokens = api.front.pipeline.prompt_tokens(&job)?;
    let facts = Facts::new(&job, api.front.limits.pixels_per_token, prompt_tokens);
    if delivery.stream {
        return Ok(stream::answer(context, delivery, facts, events));
    }
    let pictures = whole(events, &job, delivery).await?;
    let count = pictures.len();
    let data = match delivery.response {
        ResponseFormat::B64Json => {
            let encode = |picture| Datum::B64Json(BASE64_STANDARD.encode(picture));
            pictures.into_iter().map(encode).collect()
        }
        ResponseFormat::Url => addresses(&api, &base, pictures, delivery.encoding.format())?,
    };
    let answer = Answer {
        created: facts.created,
        data,
        output_format: delivery.encoding.format(),
        quality: "auto",
        background: "opaque",
        seed: facts.seed,
        usage: facts.usage(count),
        size: facts.size,
    };
    Ok(Json(answer).into_response())
}

/// All pictures of a request, in its formats.
async fn whole(
    mut events: Events<ImageEvent>,
    job: &ImageJob,
    delivery: Delivery,
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut pictures = vec![None; job.n];
    while let Some(event) = events.next().await {
        if let Event::Work(ImageEvent::Done(image)) = event?
            && let Some(place) = pictures.get_mut(image.index)
        {
            *place = Some(delivery.encoding.encode(image.png).await?);
        }
    }
    let pictures: Option<Vec<_>> = pictures.into_iter().collect();
    pictures.ok_or_else(|| Error::worker_lost("pipeline", "a picture is missing").into())
}

/// Keeps pictures to be fetched, and says where.
fn addresses<B, D>(
    api: &Api<B, D>,
    base: &str,
    pictures: Vec<Vec<u8>>,
    format: OutputFormat,
) -> Result<Vec<Datum>, Error> {
    let file = |picture: Vec<u8>| File {
        bytes: picture.into(),
        media_type: format.media_type(),
    };
    let pictures = pictures.into_iter().map(file).collect();
    let names = api.files.keep(pictures, format.extension())?;
    let address = |name| Datum::Url(format!("{base}/v1/images/files/{name}"));
    Ok(names.into_iter().map(address).collect())
}
