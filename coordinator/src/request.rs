//! What a client asks for, and its validated form.

mod chat;

use std::time::Instant;

use xomni_engine::{
    Error, Result,
    checkpoint::{GenerationConfig, XOmniConfig},
    sampling::SamplingParams,
    text::grid::Grid,
};

pub use chat::{
    ChatJob, ChatLimits, ChatMessage, ChatModel, ChatRequest, Content, MAX_PICTURE_BYTES, TextJob,
};

/// Limits and defaults of pictures drawn by a served model.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Longest prompt, in characters.
    pub max_prompt_chars: usize,
    /// Most images of one request.
    pub max_images: usize,
    /// Longest picture side, in pixels.
    pub max_side: u32,
    /// Pixels per token side.
    pub pixels_per_token: u32,
    /// Prompt and image tokens together.
    pub max_positions: usize,
    /// Most pictures of an image before it is complete.
    pub max_partial_images: usize,
    /// Most denoising steps.
    pub max_steps: usize,
    /// Side of the square picture drawn where no size is given, in pixels.
    pub default_side: u32,
    /// Sampling where nothing is given: the checkpoint's.
    pub sampling: SamplingParams,
}

impl Limits {
    /// The limits of a checkpoint.
    pub fn new(config: &XOmniConfig, generation: &GenerationConfig) -> Self {
        let unit = config.decoder.upscale_factor as u32;
        let largest = config.transform.long_size as u32 / unit * unit;
        Self {
            max_prompt_chars: 32_000,
            max_images: 10,
            max_side: 2048,
            pixels_per_token: unit,
            max_positions: config.backbone.max_positions,
            max_partial_images: 3,
            max_steps: 1000,
            default_side: largest.clamp(unit, 1152),
            sampling: generation.sampling(),
        }
    }
}

/// A request for pictures as a client states it; what is `None` takes the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageRequest {
    /// What to draw.
    pub prompt: String,
    /// `WIDTHxHEIGHT` in pixels, or `auto`.
    pub size: Option<String>,
    /// Number of pictures.
    pub n: Option<usize>,
    /// Key of all randomness; random where not given.
    pub seed: Option<u64>,
    /// Sampling temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Candidates kept by score; 0 keeps all.
    pub top_k: Option<usize>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Smallest kept probability relative to the largest.
    pub min_p: Option<f32>,
    /// Guidance in token space.
    pub guidance_scale: Option<f32>,
    /// Denoising steps of the decoder.
    pub num_inference_steps: Option<usize>,
    /// Pictures of each image before it is complete; none by default.
    pub partial_images: Option<usize>,
    /// Lower runs first.
    pub priority: i32,
}

/// A request that can run.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageJob {
    /// Names the request in logs and traces: 32 hexadecimal digits.
    pub request_id: String,
    /// Lower runs first.
    pub priority: i32,
    /// What to draw.
    pub prompt: String,
    /// Size in tokens.
    pub grid: Grid,
    /// Number of pictures.
    pub n: usize,
    /// Key of all randomness.
    pub seed: u64,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Denoising steps; the checkpoint's where `None`.
    pub steps: Option<usize>,
    /// Pictures of each image before it is complete.
    pub partial_images: usize,
    /// When to give up; [`ImageRequest::validate`] sets none.
    pub deadline: Option<Instant>,
}

impl ImageJob {
    /// Rows that draw its tokens, as admission counts them.
    pub fn cost(&self) -> u64 {
        let sequences = 1 + u64::from(self.sampling.guided());
        (self.n * self.grid.tokens()) as u64 * sequences
    }
}

impl ImageRequest {
    /// Checks every field against `limits`, before any work.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limit and the value.
    pub fn validate(self, limits: &Limits) -> Result<ImageJob> {
        let chars = self.prompt.chars().count();
        if self.prompt.trim().is_empty() {
            return Err(Error::bad_input(
                "prompt",
                "must not be empty",
                format!("{:?}", self.prompt),
            ));
        }
        if chars > limits.max_prompt_chars {
            let limit = format!("must be at most {} characters", limits.max_prompt_chars);
            return Err(Error::bad_input(
                "prompt",
                limit,
                format!("{chars} characters"),
            ));
        }
        let grid = grid(self.size.as_deref(), limits)?;
        let n = self.n.unwrap_or(1);
        if !(1..=limits.max_images).contains(&n) {
            return Err(Error::bad_input(
                "n",
                format!("must be 1 to {}", limits.max_images),
                n,
            ));
        }
        if let Some(steps) = self.num_inference_steps
            && !(1..=limits.max_steps).contains(&steps)
        {
            let limit = format!("must be 1 to {}", limits.max_steps);
            return Err(Error::bad_input("num_inference_steps", limit, steps));
        }
        let partial_images = self.partial_images.unwrap_or(0);
        if partial_images > limits.max_partial_images {
            let limit = format!("must be 0 to {}", limits.max_partial_images);
            return Err(Error::bad_input("partial_images", limit, partial_images));
        }
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(limits.sampling.temperature),
            top_k: self.top_k.unwrap_or(limits.sampling.top_k),
            top_p: self.top_p.unwrap_or(limits.sampling.top_p),
            min_p: self.min_p.unwrap_or(limits.sampling.min_p),
            guidance_scale: self
                .guidance_scale
                .unwrap_or(limits.sampling.guidance_scale),
        };
        sampling.validate()?;
        Ok(ImageJob {
            request_id: random_id(),
            priority: self.priority,
            prompt: self.prompt,
            grid,
            n,
            seed: self.seed.unwrap_or_else(random_seed),
            sampling,
            steps: self.num_inference_steps,
            partial_images,
            deadline: None,
        })
    }
}

/// The token grid of `WIDTHxHEIGHT` pixels.
fn grid(size: Option<&str>, limits: &Limits) -> Result<Grid> {
    let unit = limits.pixels_per_token;
    let size = match size {
        None | Some("auto") => format!("{0}x{0}", limits.default_side),
        Some(size) => size.to_owned(),
    };
    let refuse = |limit: String| Error::bad_input("size", limit, &size);
    let sides = size.split_once('x').and_then(|(width, height)| {
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u32>().ok(),
            false => None,
        };
        Some((number(width)?, number(height)?))
    });
    let Some((width, height)) = sides else {
        return Err(refuse("must be WIDTHxHEIGHT in pixels, or auto".into()));
    };
    for side in [width, height] {
        if side % unit != 0 || !(unit..=limits.max_side).contains(&side) {
            return Err(refuse(format!(
                "sides must be multiples of {unit} from {unit} to {}",
                limits.max_side
            )));
        }
    }
    let grid = Grid::new(height / unit, width / unit);
    if grid.tokens() >= limits.max_positions {
        let limit = format!(
            "must be fewer than {} tokens of {unit}x{unit}",
            limits.max_positions
        );
        return Err(refuse(limit));
    }
    Ok(grid)
}

/// A name for a request: 32 hexadecimal digits.
pub fn random_id() -> String {
    format!("{:016x}{:016x}", random_seed(), random_seed())
}

/// A seed for a request that gives none.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            max_prompt_chars: 100,
            max_images: 4,
            max_side: 256,
            pixels_per_token: 16,
            max_positions: 200,
            max_partial_images: 3,
            max_steps: 50,
            default_side: 64,
            sampling: SamplingParams {
                temperature: 1.0,
                top_k: 50,
                top_p: 1.0,
                min_p: 0.03,
                guidance_scale: 1.0,
            },
        }
    }

    fn with(change: impl FnOnce(&mut ImageRequest)) -> Result<ImageJob> {
        let mut request = ImageRequest {
            prompt: "a cat".into(),
            ..ImageRequest::default()
        };
        change(&mut request);
        request.validate(&limits())
    }

    #[test]
    fn defaults_are_the_models() {
        let job = with(|_| {}).expect("valid");
        assert_eq!(job.grid, Grid::new(4, 4));
        assert_eq!(
            (job.n, job.sampling, job.steps),
            (1, limits().sampling, None)
        );
    }

    #[test]
    fn size_is_width_by_height_and_the_grid_height_first() {
        let job = with(|r| r.size = Some("128x64".into())).expect("valid");
        assert_eq!(job.grid, Grid::new(4, 8));
    }

    #[test]
    fn bad_values_name_field_limit_and_value() {
        type Change = fn(&mut ImageRequest);
        let cases: [(&str, &str, Change); 21] = [
            ("prompt", "empty", |r| r.prompt = " \n".into()),
            ("prompt", "100 characters", |r| r.prompt = "x".repeat(101)),
            ("size", "multiples of 16", |r| r.size = Some("60x64".into())),
            ("size", "multiples of 16", |r| r.size = Some("0x64".into())),
            ("size", "to 256", |r| r.size = Some("272x64".into())),
            ("size", "200 tokens", |r| r.size = Some("256x256".into())),
            ("size", "WIDTHxHEIGHT", |r| r.size = Some("64".into())),
            ("size", "WIDTHxHEIGHT", |r| r.size = Some("64x".into())),
            ("size", "WIDTHxHEIGHT", |r| r.size = Some("+64x64".into())),
            ("size", "WIDTHxHEIGHT", |r| r.size = Some("64x64x64".into())),
            ("size", "WIDTHxHEIGHT", |r| {
                r.size = Some("99999999999999999999x64".into())
            }),
            ("n", "1 to 4", |r| r.n = Some(0)),
            ("n", "1 to 4", |r| r.n = Some(5)),
            ("num_inference_steps", "1 to 50", |r| {
                r.num_inference_steps = Some(0)
            }),
            ("num_inference_steps", "1 to 50", |r| {
                r.num_inference_steps = Some(51)
            }),
            ("partial_images", "0 to 3", |r| r.partial_images = Some(4)),
            ("temperature", "0 to", |r| r.temperature = Some(f32::NAN)),
            ("temperature", "0 to", |r| r.temperature = Some(-1.0)),
            ("top_p", "above 0", |r| r.top_p = Some(0.0)),
            ("min_p", "0 to 1", |r| r.min_p = Some(1.01)),
            ("guidance_scale", "0 to", |r| {
                r.guidance_scale = Some(f32::INFINITY)
            }),
        ];
        for (name, part, change) in cases {
            match with(change) {
                Err(Error::BadInput {
                    field,
                    limit,
                    value,
                }) => {
                    assert_eq!(field, name);
                    assert!(limit.contains(part), "{name}: {limit}");
                    assert!(!value.is_empty(), "{name}: {limit}");
                }
                other => panic!("{name} {part}: {other:?}"),
            }
        }
    }
}
