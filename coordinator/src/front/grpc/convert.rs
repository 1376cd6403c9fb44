//! Requests and events of `xomni.v1` as the pipeline knows them.

use tonic::codegen::Bytes;
use xomni_engine::{Error, Result};
use xomni_proto::images as wire;
use xomni_worker::api::Progress;

use crate::{pipeline::ImageEvent, request::ImageRequest};

/// Largest piece of a picture, in bytes.
const CHUNK: usize = 1 << 20;
/// Longest name of a tenant, in characters.
const MAX_TENANT: usize = 128;

/// A request for `model` and who makes it.
///
/// # Errors
/// [`Error::BadInput`] for another model, or a tenant's name that is too long.
pub fn request(
    message: wire::GenerateImagesRequest,
    model: &str,
) -> Result<(ImageRequest, String)> {
    check_model(&message.model, model)?;
    check_tenant(&message.tenant)?;
    let request = ImageRequest {
        prompt: message.prompt,
        size: message.size,
        n: count(message.n),
        seed: message.seed,
        temperature: message.temperature,
        top_k: count(message.top_k),
        top_p: message.top_p,
        min_p: message.min_p,
        guidance_scale: message.guidance_scale,
        num_inference_steps: count(message.num_inference_steps),
        partial_images: count(message.partial_images),
        priority: message.priority,
    };
    Ok((request, message.tenant))
}

/// Refuses another model than the one that is served.
pub fn check_model(asked: &str, served: &str) -> Result<()> {
    match asked.is_empty() || asked == served {
        true => Ok(()),
        false => Err(Error::bad_input(
            "model",
            format!("must be {served}"),
            asked,
        )),
    }
}

/// Refuses a tenant's name that is too long.
pub fn check_tenant(tenant: &str) -> Result<()> {
    match tenant.chars().count() <= MAX_TENANT {
        true => Ok(()),
        false => {
            let limit = format!("must be at most {MAX_TENANT} characters");
            Err(Error::bad_input("tenant", limit, tenant))
        }
    }
}

/// A number of things, as the wire counts them.
pub fn count(value: Option<u32>) -> Option<usize> {
    value.map(|value| value as usize)
}

/// An event of the pipeline, a picture in chunks.
pub fn events(event: ImageEvent) -> Vec<wire::ImageEvent> {
    match event {
        ImageEvent::Tokens { index, done, total } => {
            let drawing = wire::Drawing {
                index: index as u32,
                done: done as u32,
                total: total as u32,
            };
            vec![message(wire::image_event::Event::Drawing(drawing))]
        }
        ImageEvent::Decoding { index, stage } => {
            let decoding = decoding(index, stage);
            vec![message(wire::image_event::Event::Decoding(decoding))]
        }
        ImageEvent::Partial { index, png, .. } => {
            picture(index, png, wire::image_event::Event::Partial)
        }
        ImageEvent::Done(image) => {
            picture(image.index, image.png, wire::image_event::Event::Picture)
        }
    }
}

/// The first event of a request that runs.
pub fn accepted(request_id: String, seed: u64) -> wire::ImageEvent {
    let accepted = wire::Accepted { request_id, seed };
    message(wire::image_event::Event::Accepted(accepted))
}

fn decoding(index: usize, stage: Progress) -> wire::Decoding {
    let (part, step, steps) = match stage {
        Progress::Encode => (wire::DecodePart::Encode, 0, 0),
        Progress::Denoise { step, of } => (wire::DecodePart::Denoise, step, of),
        Progress::Vae => (wire::DecodePart::Vae, 0, 0),
    };
    wire::Decoding {
        index: index as u32,
        part: part.into(),
        step: step as u32,
        steps: steps as u32,
    }
}

fn picture(
    index: usize,
    png: Vec<u8>,
    event: impl Fn(wire::PictureChunk) -> wire::image_event::Event,
) -> Vec<wire::ImageEvent> {
    let png = Bytes::from(png);
    let chunks = (0..png.len()).step_by(CHUNK).map(|start| {
        let end = png.len().min(start + CHUNK);
        let chunk = wire::PictureChunk {
            index: index as u32,
            data: png.slice(start..end),
            last: end == png.len(),
        };
        message(event(chunk))
    });
    chunks.collect()
}

fn message(event: wire::image_event::Event) -> wire::ImageEvent {
    wire::ImageEvent { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pipeline::Image;

    #[test]
    fn pictures_go_in_chunks_that_end_with_the_last() {
        for length in [1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let png: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let image = Image {
                index: 2,
                png: png.clone(),
                codes: vec![],
                drawn_after: Duration::ZERO,
                decoded_in: Duration::ZERO,
            };
            let chunks: Vec<_> = events(ImageEvent::Done(image))
                .into_iter()
                .map(|event| match event.event {
                    Some(wire::image_event::Event::Picture(chunk)) => chunk,
                    other => panic!("{other:?}"),
                })
                .collect();
            let last: Vec<_> = chunks.iter().map(|chunk| chunk.last).collect();
            assert_eq!(last.iter().filter(|last| **last).count(), 1);
            assert_eq!(last.last(), Some(&true));
            assert!(
                chunks
                    .iter()
                    .all(|chunk| chunk.data.len() <= CHUNK && chunk.index == 2)
            );
            let data: Vec<u8> = chunks
                .iter()
                .flat_map(|chunk| chunk.data.to_vec())
                .collect();
            assert_eq!(data, png);
        }
    }

    #[test]
    fn another_model_and_endless_tenants_are_refused() {
        let wire = |model: &str, tenant: String| wire::GenerateImagesRequest {
            model: model.into(),
            tenant,
            ..Default::default()
        };
        for (message, name) in [
            (wire("b", String::new()), "model"),
            (wire("a", "x".repeat(MAX_TENANT + 1)), "tenant"),
        ] {
            match request(message, "a") {
                Err(Error::BadInput { field, .. }) => assert_eq!(field, name),
                other => panic!("{other:?}"),
            }
        }
        assert!(request(wire("", String::new()), "a").is_ok());
    }
}
