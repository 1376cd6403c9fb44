//! Chats through the front.

use std::sync::Arc;

use xomni_engine::Error;
use xomni_worker::api::{Backbone, Decoder, Encoder};

use super::{Counted, Events, Front, access::Held, caller::Caller, failure::Failure};
use crate::{
    admission::{Demand, Waiting},
    pipeline::ChatEvent,
    request::{ChatJob, ChatRequest},
    routing::Stage,
};

/// A chat that was taken.
#[derive(Debug)]
pub struct Chatting {
    /// What it is about.
    pub asked: Asked,
    /// What happens to it.
    pub events: Events<ChatEvent>,
}

/// What was asked of a chat, without what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Names the request in logs and traces.
    pub request_id: String,
    /// Key of all randomness.
    pub seed: u64,
    /// Number of answers.
    pub n: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Whether answers are text.
    pub text: bool,
    /// Whether answers are pictures.
    pub image: bool,
}

impl Asked {
    fn of(job: &ChatJob) -> Self {
        Self {
            request_id: job.request_id.clone(),
            seed: job.seed,
            n: job.n,
            prompt_tokens: job.prompt_tokens,
            text: job.text.is_some(),
            image: job.image.is_some(),
        }
    }
}

impl<B: Backbone, D: Decoder + Encoder> Front<B, D> {
    /// Checks a chat and has it answered as soon as it is admitted.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be taken now.
    pub async fn chat(
        self: &Arc<Self>,
        request: ChatRequest,
        caller: Caller,
    ) -> Result<Chatting, Failure> {
        let call = self.calls.begin();
        let (front, asks) = (self.clone(), caller.clone());
        // Long chats are tokenised for longer than other calls should wait.
        let admit = move || asks.span.in_scope(|| front.admit_chat(request, &asks));
        let admitted = tokio::task::spawn_blocking(admit)
            .await
            .unwrap_or_else(|error| {
                Err(Error::worker_lost("coordinator", error.to_string()).into())
            });
        let (job, waiting, held) = match admitted {
            Ok(admitted) => admitted,
            Err(failure) => return Err(call.refuse(failure)),
        };
        let asked = Asked::of(&job);
        let deadline = self.deadline(&caller);
        let front = self.clone();
        let work = |events| async move {
            let _held = held;
            front.pipeline.chat(job, events).await
        };
        let events = self.run(call, waiting, deadline, caller, work);
        Ok(Chatting { asked, events })
    }

    /// Validates a chat and takes it or has it wait.
    fn admit_chat(
        &self,
        request: ChatRequest,
        caller: &Caller,
    ) -> Result<(ChatJob, Waiting, Option<Held>), Failure> {
        self.serving()?;
        let priority = caller.pass.priority(request.priority);
        let request = ChatRequest {
            priority,
            ..request
        };
        let mut job = self.chat.validate(request, &self.limits)?;
        if let Some(id) = &caller.request_id {
            job.set_request_id(id);
        }
        let deadline = self.deadline(caller);
        job.set_deadline(deadline);
        caller.span.record("request_id", &job.request_id);
        match job.needs_decoder() {
            true => self.ready(&[Stage::Backbone, Stage::Decoder])?,
            false => self.ready(&[Stage::Backbone])?,
        }
        let held = match &job.image {
            Some(image) => caller.pass.hold(image.n, self.retry_after())?,
            None => None,
        };
        let waiting = self.enter(Demand {
            tenant: caller.tenant().to_owned(),
            priority,
            cost: job.cost(),
            deadline,
        })?;
        // Last, so that only what is taken counts.
        caller.pass.count()?;
        Ok((job, waiting, held))
    }
}

impl Counted for ChatEvent {
    fn pictures(&self) -> u64 {
        match self {
            Self::Text(_) => 0,
            Self::Image(event) => event.pictures(),
        }
    }
}
