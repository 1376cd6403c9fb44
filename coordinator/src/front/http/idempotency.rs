//! `Idempotency-Key`: the same key with the same request gives the same answer, made once. Who asks
//! while it is made reads along; who asks later reads it again, as long as it is kept.

mod log;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use tracing::Instrument;

pub use self::log::Spoilt;
use self::log::{Log, Recorder};
use super::{json, problem::Problem};
use crate::front::access::Pass;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is another request's.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest key, in bytes.
const MAX_KEY: usize = 255;
/// How long an answer is kept.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Answers that are kept.
const MAX_ANSWERS: usize = 4096;
/// Bytes of the answers that are kept.
const MAX_BYTES: usize = 256 << 20;

/// The answers by key.
#[derive(Clone)]
pub struct Answers {
    kept: Arc<Mutex<Kept>>,
    /// Largest body of a request, in bytes.
    limit: usize,
    patience: Duration,
}

/// Whose key, and the key.
type Name = (Option<String>, HeaderValue);

#[derive(Default)]
struct Kept {
    answers: HashMap<Name, Answer>,
    /// Complete ones, oldest first, with their sizes.
    order: VecDeque<(Name, Instant, usize)>,
    bytes: usize,
    begun: u64,
}

struct Answer {
    /// Tells it from others of its name.
    number: u64,
    /// Of the request.
    digest: [u8; 32],
    log: Log,
}

impl Answers {
    /// None yet. Bodies have at most `limit` bytes and arrive within `patience`.
    pub fn new(limit: usize, patience: Duration) -> Self {
        Self {
            kept: Arc::default(),
            limit,
            patience,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Every change is whole even if its thread then panics.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to read along, or else the number and the recorder of a new one.
    fn find(
        &self,
        name: &Name,
        digest: [u8; 32],
    ) -> Result<(log::Reader, Option<(u64, Recorder)>), Problem> {
        let mut kept = self.kept();
        kept.expire(Instant::now());
        if let Some(answer) = kept.answers.get(name)
            && let Some(reader) = answer.log.read()
        {
            if answer.digest != digest {
                return Err(Problem::key_reused());
            }
            return Ok((reader, None));
        }
        let (log, recorder, reader) = log::begin();
        kept.begun += 1;
        let number = kept.begun;
        let answer = Answer {
            number,
            digest,
            log,
        };
        kept.answers.insert(name.clone(), answer);
        Ok((reader, Some((number, recorder))))
    }

    /// Keeps a recorded answer, or forgets it if it is of no use to others.
    fn settle(&self, name: &Name, number: u64, size: Option<usize>) {
        let mut kept = self.kept();
        // One that was given up may have been begun anew since.
        if kept.answers.get(name).map(|answer| answer.number) != Some(number) {
            return;
        }
        match size.filter(|size| *size <= MAX_BYTES) {
            Some(size) => {
                kept.bytes += size;
                kept.order.push_back((name.clone(), Instant::now(), size));
                while kept.bytes > MAX_BYTES || kept.order.len() > MAX_ANSWERS {
                    kept.drop_oldest();
                }
            }
            None => drop(kept.answers.remove(name)),
        }
    }
}

impl Kept {
    fn expire(&mut self, now: Instant) {
        let old = |since: &Instant| now.duration_since(*since) >= EXPIRY;
        while self.order.front().is_some_and(|(_, since, _)| old(since)) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((name, _, size)) = self.order.pop_front() {
            self.answers.remove(&name);
            self.bytes -= size;
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept();
        f.debug_struct("Answers")
            .field("answers", &kept.answers.len())
            .field("bytes", &kept.bytes)
            .finish_non_exhaustive()
    }
}

/// Answers a request that has a key as that key's first request is answered.
pub async fn layer(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    match request.headers().get(KEY).cloned() {
        None => next.run(request).await,
        Some(key) => keyed(answers, key, request, next)
            .await
            .unwrap_or_else(IntoResponse::into_response),
    }
}

async fn keyed(
    answers: Answers,
    key: HeaderValue,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if !(1..=MAX_KEY).contains(&key.len()) || key.to_str().is_err() {
        return Err(Problem::wrong_type(
            "Idempotency-Key".into(),
            format!("must be 1 to {MAX_KEY} printable ASCII characters"),
            Some(format!("{} bytes", key.len())),
        ));
    }
    let (parts, body) = request.into_parts();
    let bytes = json::bytes(body, answers.limit, answers.patience).await?;
    let mut hash = Sha256::new();
    hash.update(parts.uri.path());
    hash.update([0]);
    hash.update(&bytes);
    let pass = parts.extensions.get::<Pass>();
    let name = (pass.and_then(Pass::name).map(str::to_owned), key);
    let (reader, recorder) = answers.find(&name, hash.finalize().into())?;
    let replayed = recorder.is_none();
    if let Some((number, recorder)) = recorder {
        let request = Request::from_parts(parts, Body::from(bytes));
        let task = async move {
            let size = recorder.record(next.run(request)).await;
            answers.settle(&name, number, size);
        };
        // Ends with the answer, or once nobody reads it any more.
        tokio::spawn(task.in_current_span());
    }
    let mut response = reader.response().await?;
    if replayed {
        let headers = response.headers_mut();
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
