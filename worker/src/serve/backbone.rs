//! `Backbone.Generate` over any [`Backbone`].

use std::sync::Arc;

use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};
use xomni_proto::worker::{
    GenerateRequest, TokenFrame,
    backbone_server::{Backbone as Rpc, BackboneServer},
};

use super::{Responses, deadline};
use crate::{
    api::{Backbone, GenerateJob, JobStream},
    convert::{Identity, MAX_MESSAGE, Refusal, backbone as convert, status},
};

/// A backbone that answers calls.
#[derive(Debug)]
pub struct BackboneService<B> {
    backbone: Arc<B>,
    identity: Identity,
}

/// The service of `backbone`, to be added to a server. Ending a call cancels its job.
pub fn backbone_service<B: Backbone>(
    backbone: Arc<B>,
    identity: Identity,
) -> BackboneServer<BackboneService<B>> {
    BackboneServer::new(BackboneService { backbone, identity })
        .max_decoding_message_size(MAX_MESSAGE)
}

impl<B: Backbone> BackboneService<B> {
    async fn accept(&self, job: GenerateJob) -> Result<JobStream<crate::api::TokenFrame>, Refusal> {
        tracing::debug!(request = job.request_id, attempt = job.attempt, "generate");
        Ok(self.backbone.generate(job).await?)
    }
}

#[tonic::async_trait]
impl<B: Backbone> Rpc for BackboneService<B> {
    type GenerateStream = Responses<TokenFrame>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let standing = *self.identity.standing.borrow();
        let refused = |refusal| status::refused(refusal, standing.retry_after());
        let deadline = deadline(request.metadata()).map_err(|error| refused(error.into()))?;
        let job = convert::job(request.into_inner(), &self.identity, deadline).map_err(refused)?;
        let frames = self.accept(job).await.map_err(refused)?;
        // A group that is lost ends its jobs, so all frames are of the epoch that took the job.
        let frames = frames.map(move |frame| match frame {
            Ok(frame) => Ok(convert::wire_frame(frame, standing.epoch)),
            Err(error) => Err(status::failed(&error)),
        });
        Ok(Response::new(Box::pin(frames)))
    }
}
