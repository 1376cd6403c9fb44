//! `xomni chat`: a conversation, in this process or on a server.

mod console;

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use xomni_coordinator::{
    pipeline::{Pipeline, TextEvent},
    request::{ChatMessage, ChatModel, ChatRequest, Content, Limits},
};
use xomni_engine::{Error, ops::cpu::Cpu, schedule::FinishReason, text::Role};
use xomni_worker::{
    backbone::LocalBackbone,
    decoder::{DecoderNode, LocalDecoder, LocalEncoder},
    local::PreparedModel,
    process::ClientTls,
};

use self::console::{Input, Line};
use crate::{client, error::CliError, local::LocalArguments};

/// Events of an answer that may wait for the screen.
const EVENTS: usize = 64;
/// Pictures that may wait to be read: more than a request can hold.
const PICTURES: usize = 64;

/// Arguments of `xomni chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// What to say; without it, lines are read and answered one by one
    message: Option<String>,
    /// Picture to show with the first message, PNG or JPEG; can be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Instructions to the model
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,
    /// Sampling temperature; 0, the default, is greedy
    #[arg(long)]
    temperature: Option<f32>,
    /// Candidates kept by score; 0 keeps all
    #[arg(long)]
    top_k: Option<usize>,
    /// Nucleus mass
    #[arg(long)]
    top_p: Option<f32>,
    /// Smallest kept probability relative to the largest
    #[arg(long)]
    min_p: Option<f32>,
    /// Key of all randomness
    #[arg(long)]
    seed: Option<u64>,
    /// String that ends an answer; can be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    local: LocalArguments,
    /// Ask a coordinator instead of a model in this process
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["model", "flux", "tp", "kv_memory"])]
    server: Option<String>,
    #[command(flatten)]
    tls: ClientTls,
}

type LocalNode = DecoderNode<LocalDecoder, LocalEncoder<Cpu>>;
type LocalPipeline = Pipeline<LocalBackbone, LocalNode>;

/// Who answers.
enum Partner {
    Local {
        pipeline: Box<LocalPipeline>,
        chat: Arc<ChatModel>,
        limits: Box<Limits>,
    },
    Server(Channel),
}

impl Chat {
    /// Answers the message, or every line of the input until it ends.
    pub async fn run(self) -> Result<(), CliError> {
        let mut request = self.request();
        let mut shown = Vec::new();
        for image in &self.images {
            shown.push(picture(image)?);
        }
        let partner = match &self.server {
            Some(server) => Partner::Server(client::channel(server, &self.tls)?),
            None => self.load(&request, &shown).await?,
        };
        if let Some(message) = &self.message {
            shown.push(Content::Text(message.clone()));
            return partner.turn(&mut request, shown).await;
        }
        let mut input = Input::open();
        while let Some(line) = input.next().await? {
            match line {
                Line::Picture(path) => match picture(&path) {
                    Ok(picture) => shown.push(picture),
                    Err(error) => input.complain(error)?,
                },
                Line::Text(text) => {
                    let mut content = std::mem::take(&mut shown);
                    content.push(Content::Text(text));
                    if let Err(error) = partner.turn(&mut request, content).await {
                        input.complain(error)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What every turn asks for; the messages grow.
    fn request(&self) -> ChatRequest {
        let system = self.system.iter().map(|text| ChatMessage {
            role: Role::System,
            content: vec![Content::Text(text.clone())],
        });
        ChatRequest {
            messages: system.collect(),
            seed: self.seed,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            stop: self.stop.clone(),
            ..ChatRequest::default()
        }
    }

    /// Loads the model, after checking what is known of the first turn.
    async fn load(&self, request: &ChatRequest, shown: &[Content]) -> Result<Partner, CliError> {
        let local = self.local.config()?;
        let opened = tokio::task::spawn_blocking(|| PreparedModel::open(local)).await;
        let model = opened??;
        let (tokenizer, template) = (model.tokenizer.clone(), model.template.clone());
        let chat = ChatModel::new(&model.config, &model.generation, tokenizer, template);
        let limits = Limits::new(&model.config, &model.generation);
        let mut first = request.clone();
        let mut content = shown.to_vec();
        content.push(Content::Text(self.message.clone().unwrap_or("?".into())));
        first.messages.push(user(content));
        if let Some(text) = chat.validate(first, &limits)?.text {
            model.check(chat.generate_job(&text, &[])?)?;
        }
        self.local.model.announce();
        let model = tokio::task::spawn_blocking(|| model.load()).await??;
        let chat = Arc::new(chat);
        let node = DecoderNode {
            decoder: model.decoder,
            encoder: LocalEncoder::new(model.encoder, PICTURES),
        };
        let pipeline = Pipeline::new(chat.clone(), model.backbone, Arc::new(node));
        Ok(Partner::Local {
            pipeline: Box::new(pipeline),
            chat,
            limits: Box::new(limits),
        })
    }
}

impl Partner {
    /// Says `content`, shows the answer as it comes, and adds both to what was said; neither where
    /// there is no answer.
    async fn turn(&self, request: &mut ChatRequest, content: Vec<Content>) -> Result<(), CliError> {
        request.messages.push(user(content));
        let (events, mut inbox) = mpsc::channel::<TextEvent>(EVENTS);
        let show = async {
            let mut answer = String::new();
            let mut last = None;
            while let Some(event) = inbox.recv().await {
                console::show(&event.text);
                answer += &event.text;
                last = event.finished.or(last);
            }
            console::show("\n");
            (answer, last)
        };
        let (answered, (answer, last)) = tokio::join!(self.answer(request.clone(), events), show);
        if let Err(error) = answered {
            request.messages.pop();
            return Err(error);
        }
        if last == Some(FinishReason::Length) {
            eprintln!("(the answer has reached its longest length)");
        }
        request.messages.push(ChatMessage {
            role: Role::Assistant,
            content: vec![Content::Text(answer)],
        });
        Ok(())
    }

    async fn answer(
        &self,
        request: ChatRequest,
        events: mpsc::Sender<TextEvent>,
    ) -> Result<(), CliError> {
        match self {
            Self::Server(channel) => client::chat(channel.clone(), request, events).await,
            Self::Local {
                pipeline,
                chat,
                limits,
            } => match chat.validate(request, limits)?.text {
                Some(job) => Ok(pipeline.answer(job, events).await?),
                None => Err(Error::bad_input("modalities", "must include text", "none").into()),
            },
        }
    }
}

fn user(content: Vec<Content>) -> ChatMessage {
    ChatMessage {
        role: Role::User,
        content,
    }
}

fn picture(path: &std::path::Path) -> Result<Content, CliError> {
    let bytes = std::fs::read(path).map_err(CliError::file(path))?;
    Ok(Content::Picture(bytes.into()))
}
