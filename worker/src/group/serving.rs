//! A group as the rest of its leading process sees it, from epoch to epoch.

use tokio::sync::watch;
use xomni_engine::{Error, Result};

use crate::{
    api::{Backbone, GenerateJob, JobStream, TokenFrame},
    backbone::BackboneHandle,
};

/// The backbone of whichever epoch is ready. Between epochs, and while the process drains, jobs
/// are refused with [`Error::GroupLost`], which is for their callers to take elsewhere.
#[derive(Debug, Clone)]
pub struct GroupBackbone(watch::Receiver<Option<BackboneHandle>>);

impl GroupBackbone {
    /// Follows what a leader serves.
    pub fn new(serving: watch::Receiver<Option<BackboneHandle>>) -> Self {
        Self(serving)
    }
}

impl Backbone for GroupBackbone {
    async fn generate(&self, job: GenerateJob) -> Result<JobStream<TokenFrame>> {
        let handle = self.0.borrow().clone();
        match handle {
            Some(handle) => handle.generate(job).await,
            None => Err(Error::GroupLost("the group takes no jobs now".into())),
        }
    }
}
