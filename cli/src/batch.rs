//! Several requests at once, followed to their pictures.

use std::{future::Future, path::PathBuf, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};
use xomni_coordinator::pipeline::{Image, ImageEvent};

use crate::{error::CliError, output, progress::Tracker, terminal::Terminal};

/// Events of one request that may wait for the screen.
const EVENTS: usize = 256;

/// What to draw and where to write it.
#[derive(Debug)]
pub struct Batch {
    /// Pictures of each request.
    pub counts: Vec<usize>,
    /// The file, numbered if there are several pictures.
    pub output: PathBuf,
    /// Requests that run at once.
    pub concurrency: usize,
}

impl Batch {
    /// Has `draw` draw every request by its number; it tells the events it is given a sender for
    /// and returns the seed. Saves and shows the pictures, and how long each stage took.
    pub async fn run<F>(
        &self,
        mut tracker: Tracker,
        loaded_in: Duration,
        draw: impl Fn(usize, mpsc::Sender<ImageEvent>) -> F,
    ) -> Result<(), CliError>
    where
        F: Future<Output = Result<u64, CliError>> + Send + 'static,
    {
        let first = self
            .counts
            .iter()
            .scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n)));
        let first: Vec<usize> = first.collect();
        let pictures: usize = self.counts.iter().sum();
        let mut waiting = 0..self.counts.len();
        let (events, mut inbox) = mpsc::channel(EVENTS);
        let mut requests = JoinSet::new();
        let mut done: Vec<Option<Image>> = vec![None; pictures];
        let mut seed = None;
        while seed.is_none() || done.iter().any(Option::is_none) {
            while requests.len() < self.concurrency
                && let Some(request) = waiting.next()
            {
                let (sender, receiver) = mpsc::channel(EVENTS);
                requests.spawn(follow(
                    request,
                    draw(request, sender),
                    receiver,
                    events.clone(),
                ));
            }
            tokio::select! {
                Some((request, event)) = inbox.recv() => {
                    tracker.on_event(request, &event);
                    if let ImageEvent::Done(image) = event {
                        let picture = first[request] + image.index;
                        output::write(&self.file(picture), &image.png)?;
                        done[picture] = Some(image);
                    }
                }
                Some(result) = requests.join_next() => seed = Some(result??),
            }
        }
        let summary = tracker.finish(loaded_in);
        if let Some(terminal) = Terminal::of_stdout() {
            for image in done.iter().flatten() {
                terminal.show(&image.png);
            }
        }
        println!("{summary}");
        for picture in 0..pictures {
            println!("{}", self.file(picture).display());
        }
        println!("seed {}", seed.unwrap_or_default());
        Ok(())
    }

    fn file(&self, picture: usize) -> PathBuf {
        output::numbered(&self.output, picture, self.counts.iter().sum())
    }
}

/// Draws one request, telling its events under its number.
async fn follow(
    request: usize,
    draw: impl Future<Output = Result<u64, CliError>>,
    mut receiver: mpsc::Receiver<ImageEvent>,
    events: mpsc::Sender<(usize, ImageEvent)>,
) -> Result<u64, CliError> {
    let forward = async {
        while let Some(event) = receiver.recv().await {
            if events.send((request, event)).await.is_err() {
                return;
            }
        }
    };
    let (seed, ()) = tokio::join!(draw, forward);
    seed
}
