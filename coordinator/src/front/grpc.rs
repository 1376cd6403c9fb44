//! `xomni.v1` over the front: `Images` here, `Chat` in [`chat`].

mod chat;
mod convert;
mod status;

use std::{pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::Span;
use xomni_proto::images::{
    GenerateImagesRequest, ImageEvent,
    images_server::{Images, ImagesServer},
};
use xomni_worker::{
    api::{Backbone, Decoder},
    serve::deadline,
    telemetry,
};

pub use self::{chat::chat_service, status::status};
use super::{Drawing, Event, Front, access::Pass, caller::Caller, failure::Failure};

/// The service of a front, to be added to a server. Ending a call cancels its request.
pub fn images_service<B: Backbone, D: Decoder>(
    front: Arc<Front<B, D>>,
) -> ImagesServer<ImagesService<B, D>> {
    ImagesServer::new(ImagesService { front })
}

/// A front that answers calls.
#[derive(Debug)]
pub struct ImagesService<B, D> {
    front: Arc<Front<B, D>>,
}

#[tonic::async_trait]
impl<B: Backbone, D: Decoder> Images for ImagesService<B, D> {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<ImageEvent, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateImagesRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (metadata, mut extensions, message) = request.into_parts();
        let pass = extensions.remove().unwrap_or_default();
        let span = Caller::span(&metadata);
        let told = span.clone();
        let ended = move |failure| {
            let mut status = status(failure);
            telemetry::tell(&told, status.metadata_mut());
            status
        };
        let drawing = self.draw(message, &metadata, pass, &span).map_err(&ended)?;
        let Drawing { job, events } = drawing;
        let messages = move |event| match event {
            Ok(Event::Started) => vec![Ok(convert::accepted(job.request_id.clone(), job.seed))],
            Ok(Event::Work(event)) => convert::events(event).into_iter().map(Ok).collect(),
            Err(failure) => vec![Err(ended(failure))],
        };
        let stream = events.flat_map(move |event| stream::iter(messages(event)));
        let mut response = Response::new(stream.boxed());
        telemetry::tell(&span, response.metadata_mut());
        Ok(response)
    }
}

impl<B: Backbone, D: Decoder> ImagesService<B, D> {
    fn draw(
        &self,
        message: GenerateImagesRequest,
        metadata: &MetadataMap,
        pass: Pass,
        span: &Span,
    ) -> Result<Drawing, Failure> {
        let read = convert::request(message, &self.front.model)
            .and_then(|read| Ok((read, deadline(metadata)?)));
        let ((request, tenant), deadline) =
            read.map_err(|error| span.in_scope(|| self.front.refuse(error.into())))?;
        let caller = Caller {
            pass,
            tenant,
            deadline,
            request_id: None,
            span: span.clone(),
        };
        self.front.draw(request, caller)
    }
}
