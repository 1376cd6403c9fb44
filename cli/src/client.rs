//! A coordinator seen from the command line.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tonic::{Request, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use xomni_coordinator::{
    pipeline::{Image, ImageEvent, TextEvent},
    request::{ChatMessage, ChatRequest, Content, ImageRequest},
};
use xomni_engine::{schedule::FinishReason, text::Role};
use xomni_proto::{
    chat::{
        self as wire, ChatRole, CompleteRequest, ContentPart, TextEnd, chat_client::ChatClient,
        chat_event, content_part::Part,
    },
    images::{DecodePart, GenerateImagesRequest, image_event::Event, images_client::ImagesClient},
};
use xomni_worker::{api::Progress, process::ClientTls};

use crate::error::CliError;

/// Variable that holds the API key for a server.
const API_KEY: &str = "XOMNI_API_KEY";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to `HOST:PORT`, made on first use.
pub fn channel(server: &str, tls: &ClientTls) -> Result<Channel, CliError> {
    let endpoint = tls
        .dialer()?
        .endpoint(server)
        .map_err(|error| CliError::Argument(format!("--server: {server}: {error}")))?;
    Ok(endpoint.connect_timeout(CONNECT).connect_lazy())
}

/// A call with the API key of the environment, if there is one.
pub fn request<T>(message: T) -> Result<Request<T>, CliError> {
    let mut request = Request::new(message);
    if let Ok(key) = std::env::var(API_KEY) {
        let value = format!("Bearer {}", key.trim()).parse();
        let value = value.map_err(|_| CliError::Argument(format!("{API_KEY}: is no API key")))?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

/// Whether the coordinator has a backbone and a decoder.
pub async fn is_serving(channel: &Channel) -> bool {
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let answer = HealthClient::new(channel.clone()).check(request).await;
    answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
}

/// Draws the pictures of one request on a server, reporting as the local pipeline does; returns the
/// seed in use.
pub async fn draw(
    channel: Channel,
    request: ImageRequest,
    events: mpsc::Sender<ImageEvent>,
) -> Result<u64, CliError> {
    let message = GenerateImagesRequest {
        prompt: request.prompt,
        model: String::new(),
        size: request.size,
        n: request.n.map(saturate),
        seed: request.seed,
        temperature: request.temperature,
        top_k: request.top_k.map(saturate),
        top_p: request.top_p,
        min_p: request.min_p,
        guidance_scale: request.guidance_scale,
        num_inference_steps: request.num_inference_steps.map(saturate),
        partial_images: None,
        priority: request.priority,
        tenant: String::new(),
    };
    let mut stream = ImagesClient::new(channel)
        .generate(self::request(message)?)
        .await?
        .into_inner();
    let start = Instant::now();
    let mut seed = 0;
    let mut pictures: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut drawn_after: BTreeMap<u32, Duration> = BTreeMap::new();
    while let Some(event) = stream.message().await? {
        let event = match event.event {
            None | Some(Event::Partial(_)) => continue,
            Some(Event::Accepted(accepted)) => {
                seed = accepted.seed;
                continue;
            }
            Some(Event::Drawing(drawing)) => {
                drawn_after.insert(drawing.index, start.elapsed());
                let (done, total) = (drawing.done as usize, drawing.total as usize);
                ImageEvent::Tokens {
                    index: drawing.index as usize,
                    done,
                    total,
                }
            }
            Some(Event::Decoding(decoding)) => {
                let stage = match decoding.part() {
                    DecodePart::Unspecified | DecodePart::Encode => Progress::Encode,
                    DecodePart::Vae => Progress::Vae,
                    DecodePart::Denoise => Progress::Denoise {
                        step: decoding.step as usize,
                        of: decoding.steps as usize,
                    },
                };
                ImageEvent::Decoding {
                    index: decoding.index as usize,
                    stage,
                }
            }
            Some(Event::Picture(chunk)) => {
                pictures
                    .entry(chunk.index)
                    .or_default()
                    .extend_from_slice(&chunk.data);
                if !chunk.last {
                    continue;
                }
                let drawn_after = drawn_after.remove(&chunk.index).unwrap_or_default();
                ImageEvent::Done(Image {
                    index: chunk.index as usize,
                    png: pictures.remove(&chunk.index).unwrap_or_default(),
                    codes: vec![],
                    drawn_after,
                    decoded_in: start.elapsed() - drawn_after,
                })
            }
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    Ok(seed)
}

/// Has a server answer a chat in text, reporting as the local pipeline does.
pub async fn chat(
    channel: Channel,
    request: ChatRequest,
    events: mpsc::Sender<TextEvent>,
) -> Result<(), CliError> {
    let request = CompleteRequest {
        messages: request.messages.into_iter().map(turn).collect(),
        n: request.n.map(saturate),
        seed: request.seed,
        max_tokens: request.max_tokens.map(saturate),
        temperature: request.temperature,
        top_k: request.top_k.map(saturate),
        top_p: request.top_p,
        min_p: request.min_p,
        stop: request.stop,
        priority: request.priority,
        ..CompleteRequest::default()
    };
    let request = self::request(request)?;
    let answer = ChatClient::new(channel).complete(request).await?;
    let mut stream = answer.into_inner();
    while let Some(event) = stream.message().await? {
        let Some(chat_event::Event::Text(delta)) = event.event else {
            continue;
        };
        let finished = match delta.finished() {
            TextEnd::Unspecified => None,
            TextEnd::Stop => Some(FinishReason::Stop),
            TextEnd::Length => Some(FinishReason::Length),
        };
        let event = TextEvent {
            index: delta.index as usize,
            text: delta.text,
            tokens: delta.tokens as usize,
            finished,
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn turn(message: ChatMessage) -> wire::ChatMessage {
    let role = match message.role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    };
    let part = |content| ContentPart {
        part: Some(match content {
            Content::Text(text) => Part::Text(text),
            Content::Picture(picture) => Part::Picture(picture),
        }),
    };
    wire::ChatMessage {
        role: role.into(),
        content: message.content.into_iter().map(part).collect(),
    }
}

/// The server refuses what is too large by name.
fn saturate(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
