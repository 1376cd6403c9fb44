//! Whole images, from prompt to last token, by the scheduler.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Measured, Subject,
    subject::{SAMPLING, STEPS_AHEAD},
};
use crate::{
    Error, Result,
    sampling::SamplingParams,
    schedule::{Event, Mode, OutputSpec, Request, RequestId, Scheduler},
};

/// Images that are asked for at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageLoad {
    /// Tokens of each.
    pub tokens: usize,
    /// How many.
    pub concurrency: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Guidance; other than 1, an image takes two rows of a step.
    pub guidance_scale: f32,
    /// When to stop, done or not.
    pub limit: Duration,
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRun {
    /// Images that were drawn to their ends.
    pub finished: usize,
    /// Images that were drawn side by side, at most: fewer than were asked for where the K/V memory
    /// has no room for all.
    pub side_by_side: usize,
    /// Tokens of all images.
    pub drawn: usize,
    /// From the first request to the last token.
    pub seconds: f64,
    /// From the first request to the last image's first token; `None` if there was none.
    pub first_token_seconds: Option<f64>,
    /// From the first request to the last token of all images. Where the limit came first, it
    /// follows from how the time grew with the tokens; `None` if there were too few.
    pub all_seconds: Option<f64>,
}

impl ImageRun {
    /// Whether all images were drawn within the limit.
    pub fn complete(&self, load: &ImageLoad) -> bool {
        self.finished == load.concurrency
    }
}

impl<O: Measured> Subject<O> {
    /// Draws `load` until all of it is done or the limit has come.
    ///
    /// # Errors
    /// [`Error::BadInput`] for what no scheduler of these limits can run; what the device says.
    pub fn images(&self, load: &ImageLoad) -> Result<ImageRun> {
        self.group.reset_local()?;
        let mut scheduler = Scheduler::new(self.limits);
        let start = Instant::now();
        for id in 0..load.concurrency {
            scheduler.submit(self.image(load, id as RequestId))?;
        }
        let mut seen = Seen::default();
        loop {
            let more = start.elapsed() < load.limit;
            while more
                && scheduler.steps_in_flight() < STEPS_AHEAD
                && let Some(step) = scheduler.plan(start)
            {
                self.group.submit(&Arc::new(step))?;
            }
            if scheduler.steps_in_flight() == 0 {
                return Ok(seen.run(load));
            }
            let output = self.group.collect()?;
            scheduler.on_done(output.step, &output.drawn)?;
            seen.take(scheduler.take_events(), start.elapsed().as_secs_f64())?;
        }
    }

    /// A request for an image, of a prompt of random text tokens.
    fn image(&self, load: &ImageLoad, id: RequestId) -> Request {
        let token = |p: usize| {
            let noise = (id as u32 * 4001 + p as u32).wrapping_mul(0x9e37_79b9) >> 8;
            noise % self.config.text_vocab as u32
        };
        let sampling = SamplingParams {
            guidance_scale: load.guidance_scale,
            ..SAMPLING
        };
        Request {
            id,
            priority: 0,
            mode: Mode::Image,
            prompt: (0..load.prompt).map(token).collect(),
            negative_prompt: sampling
                .guided()
                .then(|| (0..load.prompt.div_ceil(2)).map(token).collect()),
            sampling,
            seed: id,
            outputs: vec![OutputSpec {
                image_index: 0,
                forced: vec![],
            }],
            max_tokens: load.tokens,
            stop_ids: vec![],
            deadline: None,
            log_probs: false,
        }
    }
}

/// What happened so far.
#[derive(Debug, Default)]
struct Seen {
    running: usize,
    side_by_side: usize,
    finished: usize,
    begun: usize,
    drawn: usize,
    first_token_seconds: f64,
    /// Tokens drawn and seconds, after each step.
    marks: Vec<(usize, f64)>,
}

impl Seen {
    fn take(&mut self, events: Vec<Event>, now: f64) -> Result<()> {
        for event in events {
            match event {
                Event::Admitted { .. } => {
                    self.running += 1;
                    self.side_by_side = self.side_by_side.max(self.running);
                }
                Event::Token { n, .. } => {
                    self.drawn += 1;
                    if n == 0 {
                        self.begun += 1;
                        self.first_token_seconds = now;
                    }
                }
                Event::Finished { .. } => {
                    self.running -= 1;
                    self.finished += 1;
                }
                Event::Aborted { request, reason } => {
                    return Err(Error::GroupLost(format!("image {request}: {reason:?}")));
                }
            }
        }
        self.marks.push((self.drawn, now));
        Ok(())
    }

    fn run(self, load: &ImageLoad) -> ImageRun {
        let seconds = self.marks.last().map_or(0.0, |mark| mark.1);
        let all = load.concurrency * load.tokens;
        let began_all = (self.begun == load.concurrency).then_some(self.first_token_seconds);
        let all_seconds = match self.drawn == all {
            true => Some(seconds),
            false => began_all.and_then(|began| {
                let first = self.marks.iter().position(|mark| mark.1 >= began)?;
                extrapolate(&self.marks[first..], all)
            }),
        };
        ImageRun {
            finished: self.finished,
            side_by_side: self.side_by_side,
            drawn: self.drawn,
            seconds,
            first_token_seconds: began_all,
            all_seconds,
        }
    }
}

/// When `all` tokens would be drawn, if a token's time goes on to grow evenly with the tokens before
/// it, as it does while the same images are drawn side by side: the time is then a quadratic function
/// of the tokens, here the one through the first of `marks`, the last, and one between.
fn extrapolate(marks: &[(usize, f64)], all: usize) -> Option<f64> {
    let (&(n0, t0), &(n2, t2)) = (marks.first()?, marks.last()?);
    let (n1, t1) = marks[marks.len() / 2];
    let since = |n: usize, t: f64| ((n - n0) as f64, t - t0);
    let ((x1, y1), (x2, y2)) = (since(n1, t1), since(n2, t2));
    if x1 <= 0.0 || x2 <= x1 {
        return None;
    }
    let curve = (y2 / x2 - y1 / x1) / (x2 - x1);
    let slope = y1 / x1 - curve * x1;
    let x = (all - n0) as f64;
    Some(t0 + slope * x + curve * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_grow_evenly_are_continued() {
        let time = |n: usize| 3.0 + 0.01 * (n - 64) as f64 + 1e-6 * ((n - 64) as f64).powi(2);
        let marks: Vec<_> = (64..2000).step_by(64).map(|n| (n, time(n))).collect();
        let got = extrapolate(&marks, 64 * 5184).expect("enough marks");
        assert!((got / time(64 * 5184) - 1.0).abs() < 1e-9, "{got}");
    }

    #[test]
    fn a_step_or_two_say_nothing_of_what_follows() {
        assert_eq!(extrapolate(&[], 100), None);
        assert_eq!(extrapolate(&[(1, 1.0)], 100), None);
        assert_eq!(extrapolate(&[(1, 1.0), (2, 2.0)], 100), None);
    }
}
