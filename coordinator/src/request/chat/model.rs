//! Chats as a served model takes them: checked, and as tokens.

use std::sync::Arc;

use xomni_engine::{
    Error, Result,
    checkpoint::{GenerationConfig, XOmniConfig},
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec},
    text::{ChatTemplate, Grid, Message, Part, Role, Tokenizer},
};
use xomni_worker::api::GenerateJob;

use super::{
    ChatJob, ChatLimits, ChatMessage, ChatRequest, Content, TextJob, limits::check_messages,
};
use crate::request::{ImageJob, ImageRequest, Limits, random_id, random_seed};

/// What stands between two parts of a message.
const BETWEEN_PARTS: &str = "\n";

/// What a served model makes of chats: its limits, template and tokenizer.
#[derive(Debug)]
pub struct ChatModel {
    /// The backbone's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What can be asked.
    pub limits: ChatLimits,
    template: Arc<ChatTemplate>,
}

impl ChatModel {
    /// Chats of a checkpoint.
    pub fn new(
        config: &XOmniConfig,
        generation: &GenerationConfig,
        tokenizer: Arc<Tokenizer>,
        template: Arc<ChatTemplate>,
    ) -> Self {
        let limits = ChatLimits::new(config, generation, tokenizer.eos());
        Self {
            tokenizer,
            limits,
            template,
        }
    }

    /// Checks every field, and that prompt and answer fit, before any work; of pictures only the
    /// header is read. `images` are the limits of pictures drawn.
    ///
    /// # Errors
    /// [`Error::BadInput`] naming the field, its limit and the value.
    pub fn validate(&self, request: ChatRequest, images: &Limits) -> Result<ChatJob> {
        let limits = &self.limits;
        check_messages(&request.messages)?;
        limits.check_text(&request.messages)?;
        let n = request.n.unwrap_or(1);
        if !(1..=limits.max_choices).contains(&n) {
            let limit = format!("must be 1 to {}", limits.max_choices);
            return Err(Error::bad_input("n", limit, n));
        }
        if !request.text && request.image.is_none() {
            let limit = "must name text, image or both";
            return Err(Error::bad_input("modalities", limit, "neither"));
        }
        let seed = request.seed.unwrap_or_else(random_seed);
        let request_id = random_id();
        let mut prompt_tokens = 0;
        let image = match &request.image {
            Some(image) => {
                let image = ImageRequest {
                    prompt: drawn_from(&request.messages)?,
                    n: Some(n),
                    seed: Some(seed),
                    priority: request.priority,
                    ..image.clone()
                };
                let job = image.validate(images).map_err(of_image)?;
                prompt_tokens += self.tokenizer.image_prompt(&job.prompt, job.grid)?.len();
                Some(ImageJob {
                    request_id: request_id.clone(),
                    ..job
                })
            }
            None => None,
        };
        let text = match request.text {
            true => Some(self.text_job(request, request_id.clone(), n, seed)?),
            false => None,
        };
        prompt_tokens += text.as_ref().map_or(0, |text| text.prompt.len());
        Ok(ChatJob {
            request_id,
            n,
            seed,
            prompt_tokens,
            text,
            image,
        })
    }

    fn text_job(
        &self,
        request: ChatRequest,
        request_id: String,
        n: usize,
        seed: u64,
    ) -> Result<TextJob> {
        let limits = &self.limits;
        let sampling = SamplingParams {
            temperature: request.temperature.unwrap_or(limits.sampling.temperature),
            top_k: request.top_k.unwrap_or(limits.sampling.top_k),
            top_p: request.top_p.unwrap_or(limits.sampling.top_p),
            min_p: request.min_p.unwrap_or(limits.sampling.min_p),
            guidance_scale: 1.0,
        };
        sampling.validate()?;
        limits.check_stop(&request.stop)?;
        let grids = limits.grids(&request.messages)?;
        let blank: Vec<_> = grids.iter().map(|grid| vec![0; grid.tokens()]).collect();
        let prompt = self.prompt(&request.messages, &grids, &blank)?;
        Ok(TextJob {
            request_id,
            priority: request.priority,
            max_tokens: limits.max_tokens(prompt.len(), request.max_tokens)?,
            messages: request.messages,
            grids,
            prompt,
            n,
            seed,
            sampling,
            stop: request.stop,
            deadline: None,
        })
    }

    /// The tokens of a chat whose pictures are these.
    fn prompt(
        &self,
        messages: &[ChatMessage],
        grids: &[Grid],
        codes: &[Vec<u32>],
    ) -> Result<Vec<u32>> {
        let mut pictures = grids.iter().zip(codes);
        let mut part = |content: &Content| match content {
            Content::Text(text) => Some(Part::Text(text.clone())),
            Content::Picture(_) => pictures.next().map(|(grid, codes)| Part::Picture {
                grid: *grid,
                codes: codes.clone(),
            }),
        };
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| {
                let mut content = Vec::new();
                for part in message.content.iter().filter_map(&mut part) {
                    if !content.is_empty() {
                        content.push(Part::Text(BETWEEN_PARTS.into()));
                    }
                    content.push(part);
                }
                let role = message.role;
                Message { role, content }
            })
            .collect();
        self.template.encode(&self.tokenizer, &messages, true)
    }

    /// What a backbone is asked for a job whose pictures, read as tokens, have these codes.
    ///
    /// # Errors
    /// [`Error::BadInput`] for codes that do not fit the job or the codebook.
    pub fn generate_job(&self, job: &TextJob, codes: &[Vec<u32>]) -> Result<GenerateJob> {
        let prompt = match codes {
            [] => job.prompt.clone(),
            codes => self.prompt(&job.messages, &job.grids, codes)?,
        };
        let outputs = (0..job.n as u32).map(|image_index| OutputSpec {
            image_index,
            forced: vec![],
        });
        Ok(GenerateJob {
            request_id: job.request_id.clone(),
            attempt: 0,
            priority: job.priority,
            mode: Mode::Text,
            prompt,
            negative_prompt: None,
            sampling: job.sampling,
            seed: job.seed,
            outputs: outputs.collect(),
            max_tokens: job.max_tokens,
            stop_ids: self.limits.stop_ids.clone(),
            deadline: job.deadline,
            log_probs: false,
        })
    }
}

/// The text that a picture is drawn from: the last user message's.
fn drawn_from(messages: &[ChatMessage]) -> Result<String> {
    let last = messages.iter().rfind(|message| message.role == Role::User);
    let content = last.map_or(&[][..], |message| &message.content);
    let texts: Option<Vec<&str>> = content
        .iter()
        .map(|part| match part {
            Content::Text(text) => Some(text.as_str()),
            Content::Picture(_) => None,
        })
        .collect();
    let texts = texts.ok_or_else(|| {
        let limit = "pictures are drawn from text alone: the last user message must hold none";
        Error::bad_input("modalities", limit, "image, with a picture in that message")
    })?;
    Ok(texts.join(BETWEEN_PARTS))
}

/// A refusal of what is nested in `image`, as the field is named there.
fn of_image(error: Error) -> Error {
    match error {
        Error::BadInput {
            field,
            limit,
            value,
        } => {
            let field = match field {
                "prompt" => "messages",
                "size" => "image.size",
                "num_inference_steps" => "image.num_inference_steps",
                "temperature" => "image.temperature",
                "top_k" => "image.top_k",
                "top_p" => "image.top_p",
                "min_p" => "image.min_p",
                "guidance_scale" => "image.guidance_scale",
                other => other,
            };
            Error::BadInput {
                field,
                limit,
                value,
            }
        }
        other => other,
    }
}
