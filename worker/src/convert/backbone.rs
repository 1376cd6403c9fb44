//! Generation jobs and token frames.

use std::time::Instant;

use xomni_engine::{
    Error, Result,
    sampling::SamplingParams,
    schedule::{FinishReason, Mode, OutputSpec},
};
use xomni_proto::{PROTOCOL_VERSION, worker as wire};

use super::{
    Refusal,
    identity::{Identity, Wanted},
    request_id, wire_size,
};
use crate::api::{GenerateJob, TokenFrame};

/// Most outputs of a job.
pub const MAX_OUTPUTS: usize = 64;
/// Most ids that end a text answer.
pub const MAX_STOP_IDS: usize = 64;

/// Validates a request against what `identity` serves.
///
/// # Errors
/// [`Refusal::Precondition`] or [`Refusal::Unavailable`] if another worker must be asked,
/// [`Error::BadInput`] naming the field.
pub fn job(
    request: wire::GenerateRequest,
    identity: &Identity,
    deadline: Option<Instant>,
) -> Result<GenerateJob, Refusal> {
    identity.check(&Wanted {
        protocol_version: request.protocol_version,
        model: &request.model,
        fingerprint: &request.fingerprint,
        weights_version: &request.weights_version,
        epoch: request.epoch,
    })?;
    let request_id = request_id(request.request_id)?;
    if !request.adapter.is_empty() {
        return Err(Error::bad_input("adapter", "must be empty", request.adapter).into());
    }
    let mode = mode(request.mode)?;
    let sampling = sampling(request.sampling)?;
    let ids_of = |field, ids: &[u32]| known_ids(field, ids, identity.vocabulary);
    if request.prompt.is_empty() {
        return Err(Error::bad_input("prompt", "must not be empty", "0 tokens").into());
    }
    ids_of("prompt", &request.prompt)?;
    if sampling.guided() == request.negative_prompt.is_empty() {
        let limit = "must be given exactly if guidance_scale is not 1";
        let given = format!("{} tokens", request.negative_prompt.len());
        return Err(Error::bad_input("negative_prompt", limit, given).into());
    }
    ids_of("negative_prompt", &request.negative_prompt)?;
    if request.max_tokens == 0 {
        return Err(Error::bad_input("max_tokens", "must be at least 1", 0).into());
    }
    between("outputs", request.outputs.len(), 1, MAX_OUTPUTS)?;
    for output in &request.outputs {
        between(
            "forced",
            output.forced.len(),
            0,
            request.max_tokens as usize,
        )?;
        ids_of("forced", &output.forced)?;
    }
    between("stop_ids", request.stop_ids.len(), 0, MAX_STOP_IDS)?;
    ids_of("stop_ids", &request.stop_ids)?;
    let output = |output: wire::Output| OutputSpec {
        image_index: output.image_index,
        forced: output.forced,
    };
    Ok(GenerateJob {
        request_id,
        attempt: request.attempt,
        priority: request.priority,
        mode,
        prompt: request.prompt,
        negative_prompt: Some(request.negative_prompt).filter(|ids| !ids.is_empty()),
        sampling,
        seed: request.seed,
        outputs: request.outputs.into_iter().map(output).collect(),
        max_tokens: request.max_tokens as usize,
        stop_ids: request.stop_ids,
        deadline,
        log_probs: request.log_probs,
    })
}

/// What a request asks of the worker that takes it; empty or 0: any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Name of the model.
    pub model: String,
    /// Numerics fingerprint.
    pub fingerprint: String,
    /// Version of the weights.
    pub weights_version: String,
    /// Epoch of the group.
    pub epoch: u64,
}

/// The request that asks `target` to do `job`. The deadline travels beside it.
pub fn request(job: GenerateJob, target: &Target) -> wire::GenerateRequest {
    let mode = match job.mode {
        Mode::Image => wire::Mode::Image,
        Mode::Text => wire::Mode::Text,
    };
    let output = |output: OutputSpec| wire::Output {
        image_index: output.image_index,
        forced: output.forced,
    };
    wire::GenerateRequest {
        protocol_version: PROTOCOL_VERSION,
        request_id: job.request_id,
        model: target.model.clone(),
        adapter: String::new(),
        weights_version: target.weights_version.clone(),
        fingerprint: target.fingerprint.clone(),
        epoch: target.epoch,
        attempt: job.attempt,
        mode: mode.into(),
        prompt: job.prompt,
        negative_prompt: job.negative_prompt.unwrap_or_default(),
        sampling: Some(wire::Sampling {
            temperature: job.sampling.temperature,
            top_k: wire_size(job.sampling.top_k),
            top_p: job.sampling.top_p,
            min_p: job.sampling.min_p,
            guidance_scale: job.sampling.guidance_scale,
        }),
        seed: job.seed,
        outputs: job.outputs.into_iter().map(output).collect(),
        max_tokens: wire_size(job.max_tokens),
        stop_ids: job.stop_ids,
        log_probs: job.log_probs,
        priority: job.priority,
    }
}

/// Writes a frame of the group's `epoch`.
pub fn wire_frame(frame: TokenFrame, epoch: u64) -> wire::TokenFrame {
    let finished = match frame.finished {
        None => wire::FinishReason::Unspecified,
        Some(FinishReason::Length) => wire::FinishReason::Length,
        Some(FinishReason::Stop) => wire::FinishReason::Stop,
    };
    wire::TokenFrame {
        epoch,
        output: wire_size(frame.output),
        first: frame.first,
        tokens: frame.tokens,
        log_probs: frame.log_probs,
        finished: finished.into(),
    }
}

/// Reads a frame. Whether it continues what came before is for the receiver to check.
///
/// # Errors
/// [`Error::BadInput`] for an unknown reason to finish, or log-probabilities that are not numbers
/// or not one a token.
pub fn frame(frame: wire::TokenFrame) -> Result<TokenFrame> {
    let finished = match wire::FinishReason::try_from(frame.finished) {
        Ok(wire::FinishReason::Unspecified) => None,
        Ok(wire::FinishReason::Length) => Some(FinishReason::Length),
        Ok(wire::FinishReason::Stop) => Some(FinishReason::Stop),
        Err(unknown) => return Err(Error::bad_input("finished", "must be known", unknown.0)),
    };
    if !frame.log_probs.is_empty() && frame.log_probs.len() != frame.tokens.len() {
        let limit = format!("must be {}, one a token", frame.tokens.len());
        return Err(Error::bad_input("log_probs", limit, frame.log_probs.len()));
    }
    if let Some(value) = frame.log_probs.iter().find(|value| value.is_nan()) {
        return Err(Error::bad_input("log_probs", "must be numbers", value));
    }
    Ok(TokenFrame {
        output: frame.output as usize,
        first: frame.first,
        tokens: frame.tokens,
        log_probs: frame.log_probs,
        finished,
    })
}

fn mode(mode: i32) -> Result<Mode> {
    match wire::Mode::try_from(mode) {
        Ok(wire::Mode::Image) => Ok(Mode::Image),
        Ok(wire::Mode::Text) => Ok(Mode::Text),
        Ok(wire::Mode::Unspecified) | Err(_) => Err(Error::bad_input(
            "mode",
            "must be MODE_IMAGE or MODE_TEXT",
            mode,
        )),
    }
}

fn sampling(sampling: Option<wire::Sampling>) -> Result<SamplingParams> {
    let missing = || Error::bad_input("sampling", "must be given", "nothing");
    let sampling = sampling.ok_or_else(missing)?;
    let sampling = SamplingParams {
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        guidance_scale: sampling.guidance_scale,
    };
    sampling.validate()?;
    Ok(sampling)
}

fn known_ids(field: &'static str, ids: &[u32], vocabulary: u32) -> Result<()> {
    match ids.iter().find(|id| **id >= vocabulary) {
        Some(id) => Err(Error::bad_input(
            field,
            format!("token ids below {vocabulary}"),
            id,
        )),
        None => Ok(()),
    }
}

fn between(field: &'static str, value: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::bad_input(
        field,
        format!("must be {least} to {most} of them"),
        value,
    ))
}
