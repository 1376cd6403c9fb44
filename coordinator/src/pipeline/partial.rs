//! Pictures of images whose tokens are not all drawn: what is drawn so far, the rest filled up.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};
use tracing::Instrument;
use xomni_engine::{Error, Result, text::Grid};
use xomni_worker::api::{DecodeEvent, DecodeJob, Decoder};

use super::ImageEvent;

/// Denoising steps of a partial picture, at most.
const STEPS: usize = 4;

/// The partial pictures of one image: evenly spread over its tokens, one at a time. One that falls
/// due while the one before is being developed is left out.
#[derive(Debug)]
pub struct Partials {
    wanted: usize,
    total: usize,
    /// How many have fallen due.
    due: usize,
    /// How many were begun.
    begun: usize,
    developing: Option<AbortHandle>,
}

impl Partials {
    /// `wanted` pictures of an image of `total` tokens.
    pub fn new(wanted: usize, total: usize) -> Self {
        Self {
            wanted,
            total,
            due: 0,
            begun: 0,
            developing: None,
        }
    }

    /// The number of the picture to develop now that `done` tokens are drawn.
    fn next(&mut self, done: usize) -> Option<usize> {
        if done >= self.total {
            return None;
        }
        let due = done * (self.wanted + 1) / self.total;
        let falls_due = due > self.due;
        self.due = self.due.max(due);
        let busy = self.developing.as_ref();
        if !falls_due || busy.is_some_and(|before| !before.is_finished()) {
            return None;
        }
        self.begun += 1;
        Some(self.begun - 1)
    }

    /// Develops what is drawn of `job`'s image if a picture is due; a task of `tasks` reports it.
    pub fn develop<D: Decoder>(
        &mut self,
        codes: &[u32],
        job: &DecodeJob,
        decoder: &Arc<D>,
        events: &mpsc::Sender<ImageEvent>,
        tasks: &mut JoinSet<()>,
    ) {
        let Some(number) = self.next(codes.len()) else {
            return;
        };
        let job = DecodeJob {
            steps: Some(job.steps.map_or(STEPS, |steps| steps.min(STEPS))),
            ..job.clone()
        };
        let codes = fill(codes, job.grid);
        let (decoder, events) = (decoder.clone(), events.clone());
        let span = tracing::info_span!("partial", image = job.image_index, number);
        let task = async move {
            let index = job.image_index as usize;
            match picture(&*decoder, job, codes).await {
                // Whoever has left needs none.
                Ok(png) => drop(
                    events
                        .send(ImageEvent::Partial { index, number, png })
                        .await,
                ),
                Err(error) => tracing::info!(%error, "no partial picture"),
            }
        };
        self.developing = Some(tasks.spawn(task.instrument(span)));
    }
}

/// The last picture is on its way: no other holds it up.
impl Drop for Partials {
    fn drop(&mut self) {
        if let Some(developing) = self.developing.take() {
            developing.abort();
        }
    }
}

async fn picture<D: Decoder>(decoder: &D, job: DecodeJob, codes: Vec<u32>) -> Result<Vec<u8>> {
    let (tokens, forwarded) = oneshot::channel();
    let mut stream = decoder.decode(job, forwarded).await?;
    // A decode that is gone reports why in its stream.
    let _ = tokens.send(codes);
    while let Some(event) = stream.next().await? {
        if let DecodeEvent::Png(png) = event {
            return Ok(png);
        }
    }
    Err(Error::worker_lost("decoder", "it sent no picture"))
}

/// A whole grid of codes from those drawn so far, of which there is at least one: a place that is
/// not drawn takes the code of the place above it, in the first row that of the place before it.
fn fill(codes: &[u32], grid: Grid) -> Vec<u32> {
    let width = grid.width as usize;
    let mut whole = codes.to_vec();
    while let Some(last) = whole.last().copied()
        && whole.len() < grid.tokens()
    {
        let above = whole.len().checked_sub(width);
        whole.push(above.map_or(last, |above| whole[above]));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_are_not_drawn_repeat_what_is_above_or_before() {
        let grid = Grid::new(3, 3);
        assert_eq!(fill(&[1, 2], grid), [1, 2, 2, 1, 2, 2, 1, 2, 2]);
        assert_eq!(fill(&[1, 2, 3, 4], grid), [1, 2, 3, 4, 2, 3, 4, 2, 3]);
        let whole: Vec<_> = (0..9).collect();
        assert_eq!(fill(&whole, grid), whole);
    }

    #[test]
    fn pictures_fall_due_at_even_distances() {
        let due = |wanted: usize, total: usize, frames: &[usize]| {
            let mut partials = Partials::new(wanted, total);
            let due = frames.iter().filter_map(|done| {
                let number = partials.next(*done)?;
                Some((*done, number))
            });
            due.collect::<Vec<_>>()
        };
        let each: Vec<_> = (1..=16).collect();
        assert_eq!(due(0, 16, &each), []);
        assert_eq!(due(1, 16, &each), [(8, 0)]);
        assert_eq!(due(3, 16, &each), [(4, 0), (8, 1), (12, 2)]);
        // Only the last of those that a frame brings.
        assert_eq!(due(3, 16, &[13, 16]), [(13, 0)]);
        assert_eq!(due(3, 16, &[16]), []);
    }
}
