//! Chats and their events on the wire.

use xomni_engine::{Error, Result, schedule::FinishReason, text::Role};
use xomni_proto::{
    chat::{self as wire, ChatRole, Modality, TextEnd, chat_event::Event, content_part::Part},
    images::image_event::Event as ImageEvent,
};

use super::super::convert::{self as images, count};
use crate::{
    front::chat::Asked,
    pipeline::{ChatEvent, TextEvent},
    request::{ChatMessage, ChatRequest, Content, ImageRequest},
    uploads::Uploads,
};

/// A chat with `model` and who begins it; pictures that `owner`, or else the tenant, has uploaded are
/// fetched.
///
/// # Errors
/// [`Error::BadInput`] for another model, a tenant's name that is too long, an unknown role, part,
/// modality or file.
pub fn request(
    message: wire::CompleteRequest,
    model: &str,
    owner: Option<&str>,
    uploads: &Uploads,
) -> Result<(ChatRequest, String)> {
    images::check_model(&message.model, model)?;
    images::check_tenant(&message.tenant)?;
    let [mut text, mut image] = [message.modalities.is_empty(), false];
    for modality in &message.modalities {
        match Modality::try_from(*modality) {
            Ok(Modality::Text) => text = true,
            Ok(Modality::Image) => image = true,
            Ok(Modality::Unspecified) | Err(_) => {
                return Err(Error::bad_input("modalities", "must be known", modality));
            }
        }
    }
    if message.image.is_some() && !image {
        let limit = "must be among the modalities if its settings are given";
        return Err(Error::bad_input("image", limit, "absent"));
    }
    let messages = message.messages.into_iter();
    let owner = owner.unwrap_or(&message.tenant);
    let messages = messages.map(|turn| turn_of(turn, owner, uploads));
    let request = ChatRequest {
        messages: messages.collect::<Result<_>>()?,
        n: count(message.n),
        seed: message.seed,
        max_tokens: count(message.max_tokens),
        temperature: message.temperature,
        top_k: count(message.top_k),
        top_p: message.top_p,
        min_p: message.min_p,
        stop: message.stop,
        text,
        image: image.then(|| settings(message.image.unwrap_or_default())),
        priority: message.priority,
    };
    Ok((request, message.tenant))
}

fn turn_of(turn: wire::ChatMessage, owner: &str, uploads: &Uploads) -> Result<ChatMessage> {
    let refusal = |limit, value: String| Error::bad_input("messages", limit, value);
    let role = match ChatRole::try_from(turn.role) {
        Ok(ChatRole::System) => Role::System,
        Ok(ChatRole::User) => Role::User,
        Ok(ChatRole::Assistant) => Role::Assistant,
        Ok(ChatRole::Unspecified) | Err(_) => {
            let limit = "roles must be system, user or assistant";
            return Err(refusal(limit, format!("role {}", turn.role)));
        }
    };
    let content = turn.content.into_iter().map(|part| match part.part {
        Some(Part::Text(text)) => Ok(Content::Text(text)),
        Some(Part::Picture(picture)) => Ok(Content::Picture(picture)),
        Some(Part::FileId(id)) => Ok(Content::Picture(uploads.get(owner, &id)?.bytes)),
        None => {
            let limit = "parts must be text or a picture";
            Err(refusal(limit, "an empty part".into()))
        }
    });
    Ok(ChatMessage {
        role,
        content: content.collect::<Result<_>>()?,
    })
}

fn settings(image: wire::ChatImage) -> ImageRequest {
    ImageRequest {
        size: image.size,
        temperature: image.temperature,
        top_k: count(image.top_k),
        top_p: image.top_p,
        min_p: image.min_p,
        guidance_scale: image.guidance_scale,
        num_inference_steps: count(image.num_inference_steps),
        ..ImageRequest::default()
    }
}

/// The first event of a chat that runs.
pub fn accepted(asked: &Asked) -> wire::ChatEvent {
    message(Event::Accepted(wire::ChatAccepted {
        request_id: asked.request_id.clone(),
        seed: asked.seed,
        prompt_tokens: asked.prompt_tokens as u32,
    }))
}

/// An event of the pipeline, a picture in chunks.
pub fn events(event: ChatEvent) -> Vec<wire::ChatEvent> {
    let event = match event {
        ChatEvent::Text(event) => return vec![message(Event::Text(delta(event)))],
        ChatEvent::Image(event) => event,
    };
    let events = images::events(event).into_iter();
    let events = events.filter_map(|event| match event.event? {
        ImageEvent::Accepted(_) | ImageEvent::Partial(_) => None,
        ImageEvent::Drawing(drawing) => Some(message(Event::Drawing(drawing))),
        ImageEvent::Decoding(decoding) => Some(message(Event::Decoding(decoding))),
        ImageEvent::Picture(chunk) => Some(message(Event::Picture(chunk))),
    });
    events.collect()
}

fn delta(event: TextEvent) -> wire::TextDelta {
    let finished = match event.finished {
        None => TextEnd::Unspecified,
        Some(FinishReason::Stop) => TextEnd::Stop,
        Some(FinishReason::Length) => TextEnd::Length,
    };
    wire::TextDelta {
        index: event.index as u32,
        text: event.text,
        tokens: event.tokens as u32,
        finished: finished.into(),
    }
}

fn message(event: Event) -> wire::ChatEvent {
    wire::ChatEvent { event: Some(event) }
}
