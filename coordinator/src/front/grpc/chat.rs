//! `xomni.v1.Chat` over the front.

mod convert;

use std::{pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use xomni_proto::chat::{
    ChatEvent, CompleteRequest,
    chat_server::{Chat, ChatServer},
};
use xomni_worker::{
    api::{Backbone, Decoder, Encoder},
    serve::deadline,
};

use super::status::status;
use crate::front::{Event, Front, access::Pass, caller::Caller, chat::Chatting, failure::Failure};

/// Largest request, in bytes: all its pictures and some text.
const MAX_REQUEST: usize = 64 << 20;

/// The service of a front, to be added to a server. Ending a call cancels its request.
pub fn chat_service<B: Backbone, D: Decoder + Encoder>(
    front: Arc<Front<B, D>>,
) -> ChatServer<ChatService<B, D>> {
    ChatServer::new(ChatService { front }).max_decoding_message_size(MAX_REQUEST)
}

/// A front that answers chats.
#[derive(Debug)]
pub struct ChatService<B, D> {
    front: Arc<Front<B, D>>,
}

#[tonic::async_trait]
impl<B: Backbone, D: Decoder + Encoder> Chat for ChatService<B, D> {
    type CompleteStream = Pin<Box<dyn Stream<Item = Result<ChatEvent, Status>> + Send>>;

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let (metadata, mut extensions, message) = request.into_parts();
        let pass = extensions.remove().unwrap_or_default();
        let chatting = self.chat(message, &metadata, pass).await.map_err(status)?;
        let Chatting { asked, events } = chatting;
        let messages = move |event| match event {
            Ok(Event::Started) => vec![Ok(convert::accepted(&asked))],
            Ok(Event::Work(event)) => convert::events(event).into_iter().map(Ok).collect(),
            Err(failure) => vec![Err(status(failure))],
        };
        let stream = events.flat_map(move |event| stream::iter(messages(event)));
        Ok(Response::new(stream.boxed()))
    }
}

impl<B: Backbone, D: Decoder + Encoder> ChatService<B, D> {
    async fn chat(
        &self,
        message: CompleteRequest,
        metadata: &MetadataMap,
        pass: Pass,
    ) -> Result<Chatting, Failure> {
        let front = &self.front;
        let read = convert::request(message, &front.model, pass.name(), &front.uploads)
            .and_then(|read| Ok((read, deadline(metadata)?)));
        let ((request, tenant), deadline) = read.map_err(|error| front.refuse(error.into()))?;
        let caller = Caller {
            pass,
            tenant,
            deadline,
            request_id: None,
            span: Caller::span(metadata),
        };
        front.chat(request, caller).await
    }
}
