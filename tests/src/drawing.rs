//! Pictures, drawn by a coordinator or by one process.

use std::{collections::BTreeMap, fs, process::Command};

use tonic::{Status, Streaming, transport::Channel};
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent, image_event::Event, images_client::ImagesClient,
};

use crate::{cluster::TURN, golden::Fixture, process::binary};

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
    pictures: BTreeMap<u32, Vec<u8>>,
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
            pictures: BTreeMap::new(),
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

    /// Waits for the pictures of the request, in order.
    ///
    /// # Errors
    /// What ended the request.
    pub async fn pictures(mut self) -> Result<Vec<Vec<u8>>, Status> {
        while self.next().await?.is_some() {}
        Ok(self.pictures.into_values().collect())
    }

    async fn next(&mut self) -> Result<Option<Event>, Status> {
        let event = self.events.message().await?.and_then(|event| event.event);
        if let Some(Event::Picture(chunk)) = &event {
            let picture = self.pictures.entry(chunk.index).or_default();
            picture.extend_from_slice(&chunk.data);
        }
        Ok(event)
    }
}

/// Draws a request to its end.
///
/// # Errors
/// What ended it.
pub async fn draw(
    channel: &Channel,
    request: GenerateImagesRequest,
) -> Result<Vec<Vec<u8>>, Status> {
    Drawing::begin(channel, request).await?.pictures().await
}

/// The pictures of `request` by X-Omni-nano, drawn by one process while no cluster of this program runs.
///
/// # Panics
/// If it fails.
pub async fn alone(request: &GenerateImagesRequest) -> Vec<Vec<u8>> {
    let _turn = TURN.lock().await;
    let folder = tempfile::tempdir().expect("folder");
    let fixture = Fixture::nano();
    let count = request.n.unwrap_or(1);
    let output = Command::new(binary("xomni"))
        .args(["generate", &request.prompt])
        .args(["--seed", &request.seed().to_string()])
        .args(["--size", request.size()])
        .args(["--n", &count.to_string()])
        .arg("--model")
        .arg(fixture.x_omni())
        .arg("--flux")
        .arg(fixture.flux())
        .args(["-o", "p.png"])
        .current_dir(folder.path())
        .output()
        .expect("xomni runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let name = |index| match count {
        1 => folder.path().join("p.png"),
        _ => folder.path().join(format!("p-{index}.png")),
    };
    (0..count)
        .map(|index| fs::read(name(index)).expect("picture"))
        .collect()
}
