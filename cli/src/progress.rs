//! Progress bars while pictures come, and how long each stage took.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use xomni_coordinator::pipeline::ImageEvent;
use xomni_worker::api::Progress;

/// Names a picture: its request and its index there.
pub type Picture = (usize, usize);

/// Follows the events of all pictures of a command.
pub struct Tracker {
    start: Instant,
    drawn: HashMap<Picture, usize>,
    /// Tokens of all pictures that have begun.
    expected: usize,
    last_token: Option<Instant>,
    /// The part that each picture's decoding is in, and since when.
    parts: HashMap<Picture, (Part, Instant)>,
    spent: [Duration; 3],
    tokens: ProgressBar,
    denoise: ProgressBar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Encode,
    Denoise,
    Vae,
}

impl Tracker {
    /// Bars for `tokens` tokens in all, and the denoising of all pictures in `steps` steps; they
    /// grow where more comes.
    pub fn new(tokens: usize, steps: usize) -> Self {
        let style = |unit: &str| {
            let template = format!("{{prefix:>8}} {{wide_bar}} {{pos}}/{{len}} {unit} {{eta}}");
            ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let bars = MultiProgress::new();
        let bar = |len: usize, name: &'static str, unit: &str| {
            let bar = ProgressBar::new(len as u64)
                .with_style(style(unit))
                .with_prefix(name);
            bars.add(bar)
        };
        Self {
            start: Instant::now(),
            drawn: HashMap::new(),
            expected: 0,
            last_token: None,
            parts: HashMap::new(),
            spent: [Duration::ZERO; 3],
            tokens: bar(tokens, "tokens", "tokens"),
            denoise: bar(steps, "denoise", "steps"),
        }
    }

    /// Takes one event of a request.
    pub fn on_event(&mut self, request: usize, event: &ImageEvent) {
        let now = Instant::now();
        match event {
            ImageEvent::Tokens { index, done, total } => {
                if self.drawn.insert((request, *index), *done).is_none() {
                    self.expected += total;
                    lengthen(&self.tokens, self.expected);
                }
                self.last_token = Some(now);
                self.tokens
                    .set_position(self.drawn.values().sum::<usize>() as u64);
            }
            ImageEvent::Decoding { index, stage } => {
                let part = match stage {
                    Progress::Encode => Part::Encode,
                    Progress::Denoise { of, .. } => {
                        lengthen(&self.denoise, of * self.drawn.len());
                        Part::Denoise
                    }
                    Progress::Vae => Part::Vae,
                };
                self.leave((request, *index), now);
                self.parts.insert((request, *index), (part, now));
            }
            // Only servers are asked for these.
            ImageEvent::Partial { .. } => {}
            ImageEvent::Done(image) => self.leave((request, image.index), now),
        }
    }

    /// Ends the part that a picture is in.
    fn leave(&mut self, picture: Picture, now: Instant) {
        if let Some((part, since)) = self.parts.remove(&picture) {
            self.spent[part as usize] += now - since;
            if part == Part::Denoise {
                self.denoise.inc(1);
            }
        }
    }

    /// Removes the bars and tells how long each stage took.
    pub fn finish(self, loaded_in: Duration) -> String {
        self.tokens.finish_and_clear();
        self.denoise.finish_and_clear();
        let drawn_in = self
            .last_token
            .map_or(Duration::ZERO, |last| last - self.start);
        let tokens: usize = self.drawn.values().sum();
        let speed = tokens as f64 / drawn_in.as_secs_f64().max(1e-9);
        let [encode, denoise, vae] = self.spent;
        let rows = [
            ("load", loaded_in, String::new()),
            ("tokens", drawn_in, format!("{tokens} tokens, {speed:.0}/s")),
            ("encode", encode, "text encoders and tokens".into()),
            (
                "denoise",
                denoise,
                format!("{} steps", self.denoise.position()),
            ),
            ("vae", vae, "latents to PNG".into()),
            ("total", loaded_in + self.start.elapsed(), String::new()),
        ];
        let line = |(name, time, note): &(&str, Duration, String)| {
            format!("{name:>8} {:7.2} s  {note}", time.as_secs_f64())
                .trim_end()
                .to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Makes room for `length` in a bar.
fn lengthen(bar: &ProgressBar, length: usize) {
    if bar.length().is_none_or(|shown| shown < length as u64) {
        bar.set_length(length as u64);
    }
}
