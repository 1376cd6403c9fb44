//! Pictures as server-sent events, as OpenAI names them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event as SseEvent, KeepAlive, Sse},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use serde_json::{Value, json};
use xomni_worker::api::Progress;

use super::{generations::Facts, request::Delivery};
use crate::{
    front::{
        Event, Events,
        failure::Failure,
        http::{context::Context, idempotency::Spoilt, problem::Problem},
    },
    pipeline::ImageEvent,
};

/// Between two signs of life.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

const PARTIAL: &str = "image_generation.partial_image";
const COMPLETED: &str = "image_generation.completed";
const PROGRESS: &str = "image_generation.progress";

/// Writes a call's events.
#[derive(Debug)]
struct Writer {
    /// Set where the stream fails.
    spoilt: Spoilt,
    context: Context,
    delivery: Delivery,
    facts: Facts,
}

/// The answer that tells of `events` as they come, with comments between them as signs of life.
pub fn answer(
    context: Context,
    delivery: Delivery,
    facts: Facts,
    events: Events<ImageEvent>,
) -> Response {
    let spoilt = Spoilt::default();
    let writer = Arc::new(Writer {
        spoilt: spoilt.clone(),
        context,
        delivery,
        facts,
    });
    let events = events.filter_map(move |event| {
        let writer = writer.clone();
        async move { writer.write(event).await.map(Ok::<_, Infallible>) }
    });
    let signs = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(signs).into_response();
    response.extensions_mut().insert(spoilt);
    response
}

impl Writer {
    async fn write(&self, event: Result<Event<ImageEvent>, Failure>) -> Option<SseEvent> {
        let written = match event {
            Ok(Event::Started) => Ok(self.started()),
            Ok(Event::Work(event)) => self.work(event).await,
            Err(failure) => Err(failure),
        };
        match written {
            Ok(written) => written.map(|data| {
                let name = data["type"].as_str().unwrap_or_default();
                SseEvent::default().event(name).data(data.to_string())
            }),
            Err(failure) => Some(self.failed(failure)),
        }
    }

    fn started(&self) -> Option<Value> {
        self.progress(json!({"stage": "started", "seed": self.facts.seed}))
    }

    async fn work(&self, event: ImageEvent) -> Result<Option<Value>, Failure> {
        Ok(match event {
            ImageEvent::Tokens { index, done, total } => self.progress(
                json!({"stage": "drawing", "index": index, "done": done, "total": total}),
            ),
            ImageEvent::Decoding { index, stage } => self.progress(match stage {
                Progress::Encode => json!({"stage": "encoding", "index": index}),
                Progress::Denoise { step, of } => {
                    json!({"stage": "denoising", "index": index, "done": step, "total": of})
                }
                Progress::Vae => json!({"stage": "finishing", "index": index}),
            }),
            ImageEvent::Partial { index, number, png } => {
                let mut data = self.picture(PARTIAL, index, png).await?;
                data["partial_image_index"] = number.into();
                Some(data)
            }
            ImageEvent::Done(image) => {
                let mut data = self.picture(COMPLETED, image.index, image.png).await?;
                data["usage"] = json!(self.facts.usage(1));
                data["seed"] = self.facts.seed.into();
                Some(data)
            }
        })
    }

    /// An event that only those who asked for it get.
    fn progress(&self, mut data: Value) -> Option<Value> {
        data["type"] = PROGRESS.into();
        self.delivery.progress.then_some(data)
    }

    async fn picture(&self, kind: &str, index: usize, png: Vec<u8>) -> Result<Value, Failure> {
        let encoding = self.delivery.encoding;
        let picture = encoding.encode(png).await?;
        Ok(json!({
            "type": kind,
            "index": index,
            "b64_json": BASE64_STANDARD.encode(picture),
            "created_at": self.facts.created,
            "size": self.facts.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": encoding.format(),
        }))
    }

    /// The last event of a stream that fails: the envelope, which OpenAI's clients raise.
    fn failed(&self, failure: Failure) -> SseEvent {
        self.spoilt.set();
        let envelope = Problem::from(failure).envelope(&self.context);
        SseEvent::default()
            .event("error")
            .data(json!(envelope).to_string())
    }
}
