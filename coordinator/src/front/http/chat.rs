//! `POST /v1/chat/completions`.

mod answer;
mod body;
mod chunk;
mod data_url;

use std::convert::Infallible;

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use xomni_worker::api::{Backbone, Decoder, Encoder};

use self::{
    answer::{Answer, Completion},
    body::ChatBody,
    chunk::Chunks,
};
use super::{Api, context::Context, json, problem::Problem};
use crate::front::{Event, access::Pass, chat::Chatting};

/// Largest body, in bytes: some pictures as base64 and some text.
const MAX_BODY: usize = 64 << 20;
/// What ends a stream.
const DONE: &str = "[DONE]";

/// Answers a chat, whole or as server-sent events.
pub async fn complete<B: Backbone, D: Decoder + Encoder>(
    State(api): State<Api<B, D>>,
    Extension(context): Extension<Context>,
    Extension(pass): Extension<Pass>,
    request: Request,
) -> Result<Response, Problem> {
    let read = json::read(request, MAX_BODY, api.settings.read_timeout).await;
    let body: ChatBody = read.map_err(|problem| api.refuse(problem))?;
    let caller = context.caller(pass);
    let streamed = body.streamed();
    let request = body.request(&api.front.model, caller.tenant(), &api.front.uploads);
    let request = request.map_err(|error| api.refuse(error.into()))?;
    let chatting = api.front.chat(request, caller).await?;
    let answer = Answer::new(&api.front.model, &chatting.asked);
    match streamed {
        None => whole(answer, chatting)
            .await
            .map(IntoResponse::into_response),
        Some(usage) => {
            let events = events(Chunks::new(answer, usage), chatting, context);
            Ok(Sse::new(events)
                .keep_alive(KeepAlive::default())
                .into_response())
        }
    }
}

/// The answer once all of it is there.
async fn whole(mut answer: Answer, mut chatting: Chatting) -> Result<Json<Completion>, Problem> {
    while let Some(event) = chatting.events.next().await {
        if let Event::Work(event) = event? {
            answer.on_event(event);
        }
    }
    Ok(Json(answer.completion()))
}

/// The answer as it comes: chunks, then `[DONE]`, or the problem that ends it.
fn events(
    mut chunks: Chunks,
    chatting: Chatting,
    context: Context,
) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static {
    let ended = [None];
    let events = chatting.events.map(Some).chain(stream::iter(ended));
    let events = events.scan(false, move |failed, event| {
        let data = match event {
            _ if *failed => vec![],
            Some(Ok(Event::Started)) => chunks.begin(),
            Some(Ok(Event::Work(event))) => chunks.on_event(event),
            Some(Err(failure)) => {
                *failed = true;
                vec![json_of(&Problem::from(failure).envelope(&context))]
            }
            None => {
                let mut last = chunks.end();
                last.push(DONE.into());
                last
            }
        };
        std::future::ready(Some(data))
    });
    events.flat_map(|data| {
        stream::iter(
            data.into_iter()
                .map(|data| Ok(sse::Event::default().data(data))),
        )
    })
}

/// What is sent is made of strings and numbers, of which all are JSON.
fn json_of(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
