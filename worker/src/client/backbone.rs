//! A backbone in another process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};
use xomni_engine::{Error, Result};
use xomni_proto::worker::{self as wire, backbone_client::BackboneClient};

use super::{Calls, EVENTS_IN_FLIGHT, lost, sequence::Sequence, within};
use crate::{
    api::{Backbone, GenerateJob, JobStream, TokenFrame},
    convert::{MAX_MESSAGE, backbone as convert, status},
};

/// A backbone behind a channel. Clones share the channel and the newest epoch seen.
#[derive(Debug, Clone)]
pub struct RemoteBackbone {
    client: BackboneClient<Channel>,
    calls: Calls,
    newest_epoch: Arc<AtomicU64>,
}

impl RemoteBackbone {
    /// A backbone that is called over `channel`, which may connect later.
    pub fn new(channel: Channel, calls: Calls) -> Self {
        let client = BackboneClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let newest_epoch = Arc::new(AtomicU64::new(calls.target.epoch));
        Self {
            client,
            calls,
            newest_epoch,
        }
    }
}

impl Backbone for RemoteBackbone {
    /// A worker that is lost, silent for too long, or breaks the protocol ends the stream with
    /// [`Error::WorkerLost`].
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let deadline = job.deadline;
        let sequence = Sequence::new(&job);
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let request = self
            .calls
            .request(convert::request(job, &self.calls.target), left);
        let mut client = self.client.clone();
        let patience = self.calls.patience.accept;
        let answer = within(patience, "the answer to a job", client.generate(request)).await?;
        let frames = answer
            .map_err(|status| ended(&status, deadline))?
            .into_inner();
        let (events, stream) = mpsc::channel(EVENTS_IN_FLIGHT);
        let reader = Reader {
            frames,
            sequence,
            deadline,
            backbone: self.clone(),
        };
        // Ends with its stream: when the job does, or when nobody reads it.
        tokio::spawn(reader.run(events));
        Ok(JobStream::new(stream))
    }
}

/// Carries the frames of one job. Dropping it ends the call.
struct Reader {
    frames: Streaming<wire::TokenFrame>,
    sequence: Sequence,
    deadline: Option<Instant>,
    backbone: RemoteBackbone,
}

impl Reader {
    async fn run(mut self, events: mpsc::Sender<Result<TokenFrame>>) {
        loop {
            let frame = tokio::select! {
                () = events.closed() => return,
                frame = self.next() => frame.transpose(),
            };
            let Some(frame) = frame else { return };
            let last = frame.is_err();
            if events.send(frame).await.is_err() || last {
                return;
            }
        }
    }

    async fn next(&mut self) -> Result<Option<TokenFrame>> {
        let patience = self.backbone.calls.patience;
        let patience = if self.sequence.runs() {
            patience.progress
        } else {
            patience.first
        };
        let message = within(patience, "a frame", self.frames.message()).await?;
        let Some(frame) = message.map_err(|status| ended(&status, self.deadline))? else {
            return match self.sequence.is_complete() {
                true => Ok(None),
                false => Err(lost("the stream ended before its last frame")),
            };
        };
        let newest = self
            .backbone
            .newest_epoch
            .fetch_max(frame.epoch, Ordering::AcqRel);
        if frame.epoch < newest {
            return Err(lost(format!(
                "a frame of epoch {} after {newest}",
                frame.epoch
            )));
        }
        let frame = convert::frame(frame).map_err(|error| lost(error.to_string()))?;
        self.sequence.accept(&frame)?;
        Ok(Some(frame))
    }
}

/// The error of a call that ended. The transport tells of a deadline in several ways.
fn ended(status: &tonic::Status, deadline: Option<Instant>) -> Error {
    if deadline.is_some_and(|at| at <= Instant::now()) {
        return Error::DeadlineExceeded;
    }
    status::error(status)
}
