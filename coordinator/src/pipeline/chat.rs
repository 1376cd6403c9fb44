//! Answers in text, in pictures, or in both at once.

use std::future::Future;

use tokio::sync::mpsc;
use xomni_engine::{Error, Result};
use xomni_worker::api::{Backbone, Decoder, Encoder};

use super::{ImageEvent, Pipeline, TextEvent};
use crate::request::ChatJob;

/// Events of one kind of work that the other's may hold up.
const EVENTS: usize = 64;

/// What happens on the way, in order for the text and for the picture of each answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatEvent {
    /// An answer's text goes on.
    Text(TextEvent),
    /// An answer's picture does.
    Image(ImageEvent),
}

impl<B: Backbone, D: Decoder + Encoder> Pipeline<B, D> {
    /// Answers a chat as it asks, in texts by [`Pipeline::answer`] and in pictures by
    /// [`Pipeline::draw`]. Dropping the future, or the receiver of `events`, cancels what is left.
    ///
    /// # Errors
    /// The first error of either; nothing else of the job goes on then.
    pub async fn chat(&self, job: ChatJob, events: mpsc::Sender<ChatEvent>) -> Result<()> {
        let answer = async {
            match job.text {
                Some(text) => told(|to| self.answer(text, to), ChatEvent::Text, &events).await,
                None => Ok(()),
            }
        };
        let draw = async {
            match job.image {
                Some(image) => told(|to| self.draw(image, to), ChatEvent::Image, &events).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(answer, draw)?;
        Ok(())
    }
}

/// Does `work` and tells its events as `event` has them.
async fn told<E, W: Future<Output = Result<()>>>(
    work: impl FnOnce(mpsc::Sender<E>) -> W,
    event: fn(E) -> ChatEvent,
    events: &mpsc::Sender<ChatEvent>,
) -> Result<()> {
    let (sender, mut inbox) = mpsc::channel(EVENTS);
    let tell = async {
        while let Some(told) = inbox.recv().await {
            let sent = events.send(event(told)).await;
            sent.map_err(|_| Error::Cancelled)?;
        }
        Ok(())
    };
    tokio::try_join!(work(sender), tell)?;
    Ok(())
}
