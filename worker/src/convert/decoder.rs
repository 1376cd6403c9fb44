//! Decode jobs, their events, and encoded pictures.

use bytes::Bytes;
use xomni_engine::{Error, Result, decode::MAX_STEPS, text::grid::Grid};
use xomni_proto::{PROTOCOL_VERSION, worker as wire};

use super::{
    Refusal,
    backbone::Target,
    identity::{Identity, Wanted},
    request_id, wire_size,
};
use crate::api::{DecodeJob, Progress};

/// Most rows or columns of tokens: 4096 pixels.
pub const MAX_SIDE: u32 = 256;
/// Longest prompt, in bytes.
pub const MAX_PROMPT: usize = 256 << 10;
/// Largest piece of a file, in bytes.
pub const MAX_CHUNK: usize = 1 << 20;

/// Validates a job against what `identity` serves.
///
/// # Errors
/// [`Refusal::Precondition`] or [`Refusal::Unavailable`] if another worker must be asked,
/// [`Error::BadInput`] naming the field.
pub fn job(job: wire::DecodeJob, identity: &Identity) -> Result<DecodeJob, Refusal> {
    identity.check(&Wanted {
        protocol_version: job.protocol_version,
        model: &job.model,
        fingerprint: &job.fingerprint,
        weights_version: "",
        epoch: 0,
    })?;
    let request_id = request_id(job.request_id)?;
    if job.prompt.len() > MAX_PROMPT {
        let limit = format!("must be at most {MAX_PROMPT} bytes");
        return Err(Error::bad_input("prompt", limit, job.prompt.len()).into());
    }
    let grid = grid(job.height, job.width)?;
    let steps = job.steps as usize;
    if steps > MAX_STEPS {
        let limit = format!("must be at most {MAX_STEPS}");
        return Err(Error::bad_input("steps", limit, steps).into());
    }
    Ok(DecodeJob {
        request_id,
        attempt: job.attempt,
        prompt: job.prompt,
        grid,
        seed: job.seed,
        image_index: job.image_index,
        steps: (steps > 0).then_some(steps),
    })
}

/// The message that asks `target` to do `job`.
pub fn wire_job(job: DecodeJob, target: &Target) -> wire::DecodeJob {
    wire::DecodeJob {
        protocol_version: PROTOCOL_VERSION,
        request_id: job.request_id,
        model: target.model.clone(),
        fingerprint: target.fingerprint.clone(),
        attempt: job.attempt,
        prompt: job.prompt,
        height: job.grid.height,
        width: job.grid.width,
        seed: job.seed,
        image_index: job.image_index,
        steps: job.steps.map_or(0, wire_size),
    }
}

/// Validates what the first message of a picture says against what `identity` serves; returns the job's name, if it has one.
///
/// # Errors
/// As of [`job`].
pub fn picture_head(head: &wire::PictureInput, identity: &Identity) -> Result<String, Refusal> {
    // Senders of earlier versions say neither.
    if head.protocol_version != 0 {
        identity.check(&Wanted {
            protocol_version: head.protocol_version,
            model: &head.model,
            fingerprint: &head.fingerprint,
            weights_version: "",
            epoch: 0,
        })?;
    }
    match head.request_id.is_empty() {
        true => Ok(String::new()),
        false => Ok(request_id(head.request_id.clone())?),
    }
}

/// The first message of a picture, without any of its file.
pub fn wire_picture_head(request_id: String, target: &Target) -> wire::PictureInput {
    wire::PictureInput {
        chunk: Bytes::new(),
        request_id,
        protocol_version: PROTOCOL_VERSION,
        model: target.model.clone(),
        fingerprint: target.fingerprint.clone(),
    }
}

/// Checks that there is one code a cell of `grid`. Their values are for the codebook to check.
///
/// # Errors
/// [`Error::BadInput`] naming both numbers.
pub fn codes(tokens: wire::ImageTokens, grid: Grid) -> Result<Vec<u32>> {
    if tokens.codes.len() == grid.tokens() {
        return Ok(tokens.codes);
    }
    let limit = format!("must be {}, one a cell", grid.tokens());
    Err(Error::bad_input("codes", limit, tokens.codes.len()))
}

/// Writes the beginning of a part.
pub fn wire_progress(progress: Progress) -> wire::DecodeProgress {
    use wire::decode_progress::Part;
    let (part, step, steps) = match progress {
        Progress::Encode => (Part::Encode, 0, 0),
        Progress::Denoise { step, of } => (Part::Denoise, step, of),
        Progress::Vae => (Part::Vae, 0, 0),
    };
    wire::DecodeProgress {
        part: part.into(),
        step: wire_size(step),
        steps: wire_size(steps),
    }
}

/// Reads the beginning of a part.
///
/// # Errors
/// [`Error::BadInput`] for an unknown part, or a step that is none of its steps.
pub fn progress(progress: wire::DecodeProgress) -> Result<Progress> {
    use wire::decode_progress::Part;
    match Part::try_from(progress.part) {
        Ok(Part::Encode) => Ok(Progress::Encode),
        Ok(Part::Denoise) if progress.step < progress.steps => {
            let (step, of) = (progress.step as usize, progress.steps as usize);
            Ok(Progress::Denoise { step, of })
        }
        Ok(Part::Denoise) => {
            let limit = format!("must be below {}", progress.steps);
            Err(Error::bad_input("step", limit, progress.step))
        }
        Ok(Part::Vae) => Ok(Progress::Vae),
        Ok(Part::Unspecified) | Err(_) => {
            Err(Error::bad_input("part", "must be known", progress.part))
        }
    }
}

/// Writes the tokens of a picture.
pub fn wire_picture(grid: Grid, codes: Vec<u32>) -> wire::EncodedPicture {
    wire::EncodedPicture {
        height: grid.height,
        width: grid.width,
        codes,
    }
}

/// Reads the tokens of a picture.
///
/// # Errors
/// [`Error::BadInput`] for a size out of range, or another number of codes.
pub fn picture(picture: wire::EncodedPicture) -> Result<(Grid, Vec<u32>)> {
    let grid = grid(picture.height, picture.width)?;
    let codes = codes(
        wire::ImageTokens {
            codes: picture.codes,
        },
        grid,
    )?;
    Ok((grid, codes))
}

fn grid(height: u32, width: u32) -> Result<Grid> {
    for (field, side) in [("height", height), ("width", width)] {
        if !(1..=MAX_SIDE).contains(&side) {
            return Err(Error::bad_input(
                field,
                format!("must be 1 to {MAX_SIDE} tokens"),
                side,
            ));
        }
    }
    Ok(Grid::new(height, width))
}
