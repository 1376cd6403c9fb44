//! A backbone on a thread of this process: continuous batching over a group of ranks.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc as sync_mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use xomni_engine::{
    Error, Result,
    group::ThreadGroup,
    schedule::{AbortReason, Event, Request, RequestId, Scheduler, SchedulerConfig},
};

use crate::api::{Backbone, GenerateJob, JobStream, TokenFrame, worker_gone};

/// Frames that a slow reader may leave unread before they are merged on this side.
const FRAMES_IN_FLIGHT: usize = 64;
/// How often a slow reader's channel is tried again while nothing else happens.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

struct Submission {
    job: GenerateJob,
    frames: mpsc::Sender<Result<TokenFrame>>,
    accepted: oneshot::Sender<Result<()>>,
}

/// A scheduler and its group of ranks on one thread. Dropping it cancels everything and joins.
#[derive(Debug)]
pub struct LocalBackbone {
    submissions: Option<sync_mpsc::Sender<Submission>>,
    thread: Option<JoinHandle<()>>,
}

impl LocalBackbone {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if the system gives no thread.
    pub fn start(config: SchedulerConfig, group: ThreadGroup) -> Result<Self> {
        let (submissions, inbox) = sync_mpsc::channel();
        let service = Service {
            scheduler: Scheduler::new(config),
            group,
            inbox,
            next_id: 0,
            clients: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("backbone".into())
            .spawn(move || service.run())
            .map_err(|error| Error::GroupLost(format!("no thread for the backbone: {error}")))?;
        Ok(Self {
            submissions: Some(submissions),
            thread: Some(thread),
        })
    }
}

impl Backbone for LocalBackbone {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let (frames, stream) = mpsc::channel(FRAMES_IN_FLIGHT);
        let (accepted, answer) = oneshot::channel();
        let submission = Submission {
            job,
            frames,
            accepted,
        };
        let inbox = self.submissions.as_ref();
        if inbox.is_none_or(|submissions| submissions.send(submission).is_err()) {
            return Err(worker_gone("backbone"));
        }
        answer.await.map_err(|_| worker_gone("backbone"))??;
        Ok(JobStream::new(stream))
    }
}

impl Drop for LocalBackbone {
    fn drop(&mut self) {
        self.submissions = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a request's tokens go.
struct Client {
    frames: mpsc::Sender<Result<TokenFrame>>,
    log_probs: bool,
    /// Frames that the channel has no room for yet, at most one an output.
    pending: Vec<TokenFrame>,
    unfinished: usize,
}

impl Client {
    /// The pending frame that continues `output`.
    fn frame(&mut self, output: usize, first: u32) -> &mut TokenFrame {
        let found = self.pending.iter().position(|frame| frame.output == output);
        let index = found.unwrap_or_else(|| {
            let (tokens, log_probs) = (vec![], vec![]);
            self.pending.push(TokenFrame {
                output,
                first,
                tokens,
                log_probs,
                finished: None,
            });
            self.pending.len() - 1
        });
        &mut self.pending[index]
    }

    /// Hands over what the channel takes; `false` once everything is delivered or unwanted.
    fn flush(&mut self) -> bool {
        while let Some(frame) = self.pending.first() {
            match self.frames.try_send(Ok(frame.clone())) {
                Ok(()) => drop(self.pending.remove(0)),
                Err(mpsc::error::TrySendError::Full(_)) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
            }
        }
        self.unfinished > 0
    }
}

struct Service {
    scheduler: Scheduler,
    group: ThreadGroup,
    inbox: sync_mpsc::Receiver<Submission>,
    next_id: RequestId,
    clients: HashMap<RequestId, Client>,
}

impl Service {
    fn run(mut self) {
        while self.receive() {
            if let Err(error) = self.step() {
                tracing::error!(%error, "backbone group lost");
                self.fail(&error);
                return;
            }
        }
    }

    /// Takes new submissions, waiting while there is nothing else to do; `false` at the end.
    fn receive(&mut self) -> bool {
        if self.scheduler.load() == (0, 0) {
            let first = if self.clients.is_empty() {
                self.inbox
                    .recv()
                    .map_err(|_| sync_mpsc::RecvTimeoutError::Disconnected)
            } else {
                self.inbox.recv_timeout(FLUSH_INTERVAL)
            };
            match first {
                Ok(submission) => self.submit(submission),
                Err(sync_mpsc::RecvTimeoutError::Timeout) => {}
                Err(sync_mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.submit(submission),
                Err(sync_mpsc::TryRecvError::Empty) => return true,
                Err(sync_mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn submit(
        &mut self,
        Submission {
            job,
            frames,
            accepted,
        }: Submission,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let client = Client {
            frames,
            log_probs: job.log_probs,
            pending: vec![],
            unfinished: job.outputs.len(),
        };
        let answer = self.scheduler.submit(Request {
            id,
            priority: job.priority,
            mode: job.mode,
            prompt: job.prompt,
            negative_prompt: job.negative_prompt,
            sampling: job.sampling,
            seed: job.seed,
            outputs: job.outputs,
            max_tokens: job.max_tokens,
            stop_ids: job.stop_ids,
            deadline: job.deadline,
        });
        if answer.is_ok() {
            self.clients.insert(id, client);
        }
        if accepted.send(answer).is_err() {
            self.scheduler.cancel(id);
        }
    }

    /// Drops the requests that nobody waits for, then runs one step.
    fn step(&mut self) -> Result<()> {
        for (&id, client) in &self.clients {
            if client.frames.is_closed() {
                self.scheduler.cancel(id);
            }
        }
        if let Some(step) = self.scheduler.plan(Instant::now()) {
            let output = self.group.run(Arc::new(step))?;
            self.scheduler.on_done(output.step, &output.drawn)?;
        }
        for event in self.scheduler.take_events() {
            self.on_event(event);
        }
        self.clients.retain(|_, client| client.flush());
        Ok(())
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Token {
                request,
                output,
                n,
                token,
                log_prob,
            } => {
                let Some(client) = self.clients.get_mut(&request) else {
                    return;
                };
                let with_log_prob = client.log_probs;
                let frame = client.frame(output, n);
                frame.tokens.push(token);
                if with_log_prob {
                    frame.log_probs.push(log_prob);
                }
            }
            Event::Finished {
                request,
                output,
                reason,
            } => {
                let Some(client) = self.clients.get_mut(&request) else {
                    return;
                };
                client.unfinished -= 1;
                client.frame(output, 0).finished = Some(reason);
            }
            Event::Aborted { request, reason } => {
                let Some(client) = self.clients.remove(&request) else {
                    return;
                };
                let error = match reason {
                    AbortReason::Cancelled => Error::Cancelled,
                    AbortReason::Deadline => Error::DeadlineExceeded,
                };
                let _ = client.frames.try_send(Err(error));
            }
        }
    }

    /// Ends every request with the reason the group was lost.
    fn fail(&mut self, error: &Error) {
        for (_, client) in self.clients.drain() {
            let _ = client
                .frames
                .try_send(Err(Error::GroupLost(error.to_string())));
        }
    }
}
