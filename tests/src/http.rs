//! A plain HTTP client.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::timeout;
use tonic::{
    body::Body,
    codegen::{Bytes, http},
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(60);

/// Calls one server.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    /// Sent with every request.
    headers: Vec<(String, String)>,
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// An answer whose body arrives in pieces. Dropping it closes the connection.
#[derive(Debug)]
pub struct Streamed {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: http::HeaderMap,
    body: Body,
    unread: String,
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEvent {
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: Value,
}

impl Client {
    /// Calls the server at this address.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            pool: Pool::builder(TokioExecutor::new()).build_http(),
            address,
            headers: vec![],
        }
    }

    /// Sends this header with every request.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], vec![]).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let kind = [("content-type", "application/json")];
        self.send("POST", path, &kind, body.to_string().into())
            .await
    }

    /// Any request.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        self.open(method, path, headers, body).await.whole().await
    }

    /// Any request, whose answer is read as it comes.
    ///
    /// # Panics
    /// If there is no answer in time.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Streamed {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        let own = self.headers.iter().map(|(name, value)| (&**name, &**value));
        for (name, value) in own.chain(headers.iter().copied()) {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(body)).expect("a request");
        let answer = timeout(SOON, self.pool.request(request)).await;
        let answer = answer.expect("an answer in time").expect("an answer");
        let (parts, body) = answer.into_parts();
        Streamed {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: Body::new(body),
            unread: String::new(),
        }
    }

    /// `POST path` with a JSON body, whose answer is read as it comes.
    pub async fn stream(&self, path: &str, body: &Value) -> Streamed {
        let kind = [("content-type", "application/json")];
        self.open("POST", path, &kind, body.to_string().into())
            .await
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("text"))
    }
}

impl Streamed {
    /// The rest of it.
    ///
    /// # Panics
    /// If it breaks off or does not come in time.
    pub async fn whole(self) -> Answer {
        let body = timeout(SOON, self.body.collect()).await;
        Answer {
            status: self.status,
            headers: self.headers,
            body: body
                .expect("a body in time")
                .expect("a whole body")
                .to_bytes()
                .into(),
        }
    }

    /// The next server-sent event, skipping comments; `None` at the end and at OpenAI's `[DONE]`.
    ///
    /// # Panics
    /// If it breaks off or nothing comes in time.
    pub async fn event(&mut self) -> Option<ServerEvent> {
        loop {
            while let Some(end) = self.unread.find("\n\n") {
                let block: String = self.unread.drain(..end + 2).collect();
                let field = |name: &str| {
                    let lines = block.lines().filter_map(|line| line.strip_prefix(name));
                    lines.map(str::trim_start).collect::<Vec<_>>().join("\n")
                };
                let (event, data) = (field("event:"), field("data:"));
                if data == "[DONE]" {
                    return None;
                }
                if !data.is_empty() {
                    let data = serde_json::from_str(&data).expect("JSON");
                    return Some(ServerEvent { event, data });
                }
            }
            let frame = timeout(SOON, self.body.frame()).await.expect("in time")?;
            let data = frame
                .expect("a whole body")
                .into_data()
                .expect("no trailers");
            self.unread
                .push_str(std::str::from_utf8(&data).expect("whole characters"));
        }
    }
}
