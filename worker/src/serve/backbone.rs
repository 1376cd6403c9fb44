//! `Backbone.Generate` over any [`Backbone`].

use std::sync::Arc;

use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};
use tracing::{Instrument, field, info_span};
use xomni_proto::worker::{
    GenerateRequest, TokenFrame,
    backbone_server::{Backbone as Rpc, BackboneServer},
};

use super::{Responses, deadline, failed, refused};
use crate::{
    api::Backbone,
    convert::{Identity, MAX_MESSAGE, backbone as convert},
    telemetry,
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

#[tonic::async_trait]
impl<B: Backbone> Rpc for BackboneService<B> {
    type GenerateStream = Responses<TokenFrame>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let span = info_span!(
            "Backbone.Generate",
            otel.kind = "server",
            request_id = field::Empty,
            attempt = field::Empty,
            trace_id = field::Empty,
        );
        telemetry::adopt(&span, &metadata);
        let standing = *self.identity.standing.borrow();
        let refused = |refusal| refused(&span, refusal, standing.retry_after());
        let deadline = deadline(&metadata).map_err(|error| refused(error.into()))?;
        let job = convert::job(request, &self.identity, deadline).map_err(refused)?;
        span.record("request_id", &job.request_id);
        span.record("attempt", job.attempt);
        let accepted = self.backbone.generate(job).instrument(span.clone());
        let frames = accepted.await.map_err(|error| refused(error.into()))?;
        // The span ends with the call. A group that is lost ends its jobs, so all frames are of the epoch that took the job.
        let frames = frames.map(move |frame| {
            let _within = span.enter();
            let frame = frame.map_err(|error| failed(&span, &error))?;
            Ok(convert::wire_frame(frame, standing.epoch))
        });
        Ok(Response::new(Box::pin(frames)))
    }
}
