//! The arguments of `xomni-coordinator`, and what they make.

use std::{env, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use xomni_cluster::Cluster;
use xomni_engine::{
    Error, Result,
    checkpoint::{GenerationConfig, XOmniConfig},
    text::{ChatTemplate, Tokenizer},
};
use xomni_worker::{
    process::{self, Tls},
    roles::arguments::served_name,
};

use crate::{
    admission::Bounds,
    front::{access::Access, http},
    metrics::Metrics,
    pool::ATTEMPTS,
    request::{ChatModel, Limits},
    server::Setup,
    uploads::Room,
};

/// Variable that holds the records of API keys.
const KEYS: &str = "XOMNI_API_KEYS";

/// Most files that clients can have uploaded at once.
const MAX_UPLOADS: usize = 4096;

/// Admits requests for pictures and chats and has the workers of a cluster draw them.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Config {
    /// X-Omni checkpoint directory; its weights are not read
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Name under which the workers serve it; the directory's by default
    #[arg(long, value_name = "NAME", visible_alias = "served-model-name")]
    pub model_name: Option<String>,
    /// Address of the HTTP and gRPC services; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address at which Prometheus reads metrics; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<SocketAddr>,
    /// etcd endpoints, separated by commas
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        required = true,
        env = "XOMNI_ETCD"
    )]
    pub etcd: Vec<String>,
    /// Name of the cluster: the part of etcd that it lives in
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster: String,
    /// Requests that run at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 256, value_parser = at_least_one)]
    pub max_in_flight: usize,
    /// Requests that may wait
    #[arg(long, value_name = "REQUESTS", default_value_t = 1024)]
    pub max_queue: usize,
    /// Attempts at each stage of a request
    #[arg(long, value_name = "ATTEMPTS", default_value_t = ATTEMPTS)]
    pub attempts: u32,
    /// Seconds that a request may take, its time in the queue included
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub timeout: u64,
    /// File with the API keys that are let in, a line of JSON each, as `xomni key` writes it;
    /// the lines themselves can be in the environment as XOMNI_API_KEYS. Everyone is let in
    /// without either
    #[arg(long, value_name = "FILE", env = "XOMNI_API_KEYS_FILE")]
    pub api_keys: Option<PathBuf>,
    /// Seconds that the body of a request may take to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub read_timeout: u64,
    /// How addresses of pictures begin, where clients know this coordinator by another name
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Seconds that a picture can be fetched by its address
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub url_expiry: u64,
    /// Memory for pictures that are fetched by their addresses
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub url_memory: usize,
    /// Seconds that requests may run without any of them getting on, before /readyz says so
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub stall_timeout: u64,
    /// Memory for pictures that clients upload, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub upload_memory: u32,
    /// Seconds that an upload is kept where its client says nothing else
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub upload_expiry: u64,
    /// Seconds that running requests may take after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain: u64,
    /// Encryption.
    #[command(flatten)]
    pub tls: Tls,
    /// End when the process that started this one does
    #[arg(long)]
    pub die_with_parent: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a number of at least 1".into()),
        Ok(number) => Ok(number),
    }
}

impl Config {
    /// Reads the model's tokenizer, chat template and limits.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming file and item, or [`Error::Io`].
    pub fn setup(&self) -> Result<Setup> {
        let mut registry = process::Metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let config = XOmniConfig::open(&self.model)?;
        let generation = GenerationConfig::open(&self.model, &config)?;
        let tokenizer = Arc::new(Tokenizer::open(&self.model, &config)?);
        let template = Arc::new(ChatTemplate::open(&self.model)?);
        Ok(Setup {
            model: served_name(self.model_name.as_deref(), &self.model)?,
            chat: Arc::new(ChatModel::new(&config, &generation, tokenizer, template)),
            limits: Limits::new(&config, &generation),
            steps: config.decoder.num_inference_steps,
            bounds: Bounds {
                in_flight: self.max_in_flight,
                queue: self.max_queue,
            },
            attempts: self.attempts,
            timeout: Duration::from_secs(self.timeout),
            drain: Duration::from_secs(self.drain),
            http: http::Settings {
                read_timeout: Duration::from_secs(self.read_timeout),
                url_expiry: Duration::from_secs(self.url_expiry),
                url_bytes: self.url_memory << 20,
                public_url: self.public_url.clone(),
            },
            access: self.access()?,
            dialer: self.tls.client.dialer()?,
            stall_timeout: Duration::from_secs(self.stall_timeout),
            upload_room: Room {
                bytes: (self.upload_memory as usize) << 20,
                files: MAX_UPLOADS,
            },
            upload_lifetime: Duration::from_secs(self.upload_expiry),
            metrics,
            registry: Arc::new(registry),
        })
    }

    /// Who may call.
    ///
    /// # Errors
    /// [`Error::Io`] if the file of keys cannot be read, [`Error::Unsupported`] naming a line that
    /// is no key's record.
    fn access(&self) -> Result<Access> {
        if let Some(file) = &self.api_keys {
            let text = fs::read_to_string(file).map_err(|error| Error::io(file, error))?;
            return Access::read(&file.display().to_string(), &text);
        }
        match env::var(KEYS) {
            Ok(text) if !text.trim().is_empty() => Access::read(KEYS, &text),
            _ => Ok(Access::open()),
        }
    }

    /// The cluster to serve.
    ///
    /// # Errors
    /// As [`Tls::cluster`].
    pub fn cluster(&self) -> Result<Cluster> {
        self.tls.cluster(&self.etcd, &self.cluster)
    }
}
