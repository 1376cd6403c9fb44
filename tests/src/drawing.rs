//! Pictures, drawn by a coordinator or by one process.

use std::{fs, process::Command};

use tonic::{Status, Streaming, transport::Channel};
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent, image_event::Event, images_client::ImagesClient,
};

use crate::{golden::Fixture, process::binary};

/// The seed of all pictures.
pub const SEED: u64 = 3;

/// One picture of `prompt`.
pub fn request(prompt: &str, size: &str) -> GenerateImagesRequest {
    GenerateImagesRequest {
        prompt: prompt.into(),
        size: Some(size.into()),
        seed: Some(SEED),
        ..GenerateImagesRequest::default()
    }
}

/// A request that was taken. Dropping it cancels it.
#[derive(Debug)]
pub struct Drawing {
    events: Streaming<ImageEvent>,
    png: Vec<u8>,
}

impl Drawing {
    /// Begins to draw.
    ///
    /// # Errors
    /// The refusal.
    pub async fn begin(channel: &Channel, request: GenerateImagesRequest) -> Result<Self, Status> {
        let mut client = ImagesClient::new(channel.clone());
        let events = client.generate(request).await?.into_inner();
        Ok(Self {
            events,
            png: vec![],
        })
    }

    /// Waits until a picture has so many tokens, or the request its end.
    ///
    /// # Errors
    /// What ended the request.
    pub async fn tokens(&mut self, least: u32) -> Result<(), Status> {
        while let Some(event) = self.next().await? {
            if matches!(event, Event::Drawing(drawing) if drawing.done >= least) {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the picture; those of a request for several come one after the other.
    ///
    /// # Errors
    /// What ended the request.
    pub async fn picture(mut self) -> Result<Vec<u8>, Status> {
        while self.next().await?.is_some() {}
        Ok(self.png)
    }

    async fn next(&mut self) -> Result<Option<Event>, Status> {
        let event = self.events.message().await?.and_then(|event| event.event);
        if let Some(Event::Picture(chunk)) = &event {
            self.png.extend_from_slice(&chunk.data);
        }
        Ok(event)
    }
}

/// Draws a request to its end.
///
/// # Errors
/// What ended it.
pub async fn draw(channel: &Channel, request: GenerateImagesRequest) -> Result<Vec<u8>, Status> {
    Drawing::begin(channel, request).await?.picture().await
}

/// The pictures of `prompts`, drawn by one process.
///
/// # Panics
/// If it fails.
pub fn one_process(prompts: &[String], size: &str) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    let line = |prompt: &String| serde_json::json!({ "prompt": prompt }).to_string();
    let lines: Vec<_> = prompts.iter().map(line).collect();
    let file = folder.path().join("prompts.jsonl");
    fs::write(&file, lines.join("\n")).expect("written");
    let fixture = Fixture::open();
    let output = Command::new(binary("xomni"))
        .args(["generate", "--seed", &SEED.to_string(), "--size", size])
        .arg("--model")
        .arg(fixture.x_omni())
        .arg("--flux")
        .arg(fixture.flux())
        .arg("--prompts")
        .arg(&file)
        .args(["-o", "p.png"])
        .current_dir(folder.path())
        .output()
        .expect("xomni runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let name = |index| match prompts.len() {
        1 => folder.path().join("p.png"),
        _ => folder.path().join(format!("p-{index}.png")),
    };
    (0..prompts.len())
        .map(|index| fs::read(name(index)).expect("picture"))
        .collect()
}

/// The picture of one prompt, drawn by one process.
///
/// # Panics
/// If it fails.
pub fn alone(prompt: &str, size: &str) -> Vec<u8> {
    one_process(&[prompt.to_owned()], size).remove(0)
}
