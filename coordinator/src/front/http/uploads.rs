//! `/v1/files`: pictures that are uploaded once and shown in chats by their id.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{
    Extension, Json,
    extract::{
        DefaultBodyLimit, FromRequest, Multipart, Path, Request, State, multipart::MultipartError,
    },
    http::header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde::Serialize;
use tokio::time::timeout;
use xomni_engine::{Error, picture::preprocess};
use xomni_worker::api::{Backbone, Decoder};

use super::{Api, problem::Problem};
use crate::{
    front::{access::Pass, failure::Failure},
    request::MAX_PICTURE_BYTES,
    uploads::{NewUpload, Upload},
};

/// What a form has besides its file, in bytes.
const FORM: usize = 64 << 10;
/// Longest value of a field that is no file, in bytes.
const MAX_VALUE: usize = 1024;
/// What a picture can be uploaded for.
const PURPOSES: [&str; 2] = ["vision", "user_data"];

/// A file as OpenAI describes it.
#[derive(Debug, Serialize)]
pub struct File {
    id: String,
    object: &'static str,
    bytes: usize,
    created_at: u64,
    expires_at: u64,
    filename: String,
    purpose: String,
    status: &'static str,
}

/// Files, the newest first.
#[derive(Debug, Serialize)]
pub struct Files {
    object: &'static str,
    data: Vec<File>,
    has_more: bool,
}

/// A file that is forgotten.
#[derive(Debug, Serialize)]
pub struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

impl From<Upload> for File {
    fn from(upload: Upload) -> Self {
        Self {
            id: upload.id,
            object: "file",
            bytes: upload.bytes.len(),
            created_at: seconds(upload.created),
            expires_at: seconds(upload.expires),
            filename: upload.name,
            purpose: upload.purpose,
            status: "processed",
        }
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The routes of all files.
pub fn all<B: Backbone, D: Decoder>() -> MethodRouter<Api<B, D>> {
    let limit = DefaultBodyLimit::max(MAX_PICTURE_BYTES + FORM);
    post(upload::<B, D>).get(list::<B, D>).layer(limit)
}

/// The routes of one file.
pub fn one<B: Backbone, D: Decoder>() -> MethodRouter<Api<B, D>> {
    get(describe::<B, D>).delete(remove::<B, D>)
}

/// The route of one file's bytes.
pub fn content<B: Backbone, D: Decoder>() -> MethodRouter<Api<B, D>> {
    get(download::<B, D>)
}

/// Keeps a picture: its header is read, and what no chat could show is refused.
async fn upload<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
    request: Request,
) -> Result<Json<File>, Problem> {
    let front = &api.front;
    front.serving()?;
    let form = Multipart::from_request(request, &())
        .await
        .map_err(|error| Problem::broken_body(error.body_text()))?;
    let read = timeout(api.settings.read_timeout, read(form)).await;
    let new = read.map_err(|_| Problem::too_slow(api.settings.read_timeout))??;
    preprocess::grid(&new.bytes, &front.chat.limits.transform)?;
    let size = new.bytes.len();
    let kept = front.uploads.keep(owner(&pass), new);
    let kept = kept.map_err(|error| match error {
        Error::Capacity { .. } => Failure::Busy {
            error,
            retry_after: front.uploads.wait_for(size),
        },
        error => error.into(),
    })?;
    Ok(Json(kept.into()))
}

/// The file of a form and what is said about it.
async fn read(mut form: Multipart) -> Result<NewUpload, Problem> {
    let mut new = NewUpload::default();
    let mut file = None;
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        let limit = match name.as_str() {
            "file" => MAX_PICTURE_BYTES,
            _ => MAX_VALUE,
        };
        let given = field.file_name().map(str::to_owned);
        let mut bytes = Vec::new();
        while let Some(chunk) = field.chunk().await.map_err(broken)? {
            if bytes.len() + chunk.len() > limit {
                return Err(Problem::too_large(limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        match name.as_str() {
            "file" => {
                new.name = given.unwrap_or_default();
                file = Some(bytes);
            }
            "purpose" => new.purpose = String::from_utf8_lossy(&bytes).into_owned(),
            "expires_after[seconds]" => new.lifetime = Some(lifetime(&bytes)?),
            "expires_after[anchor]" if bytes == b"created_at" => {}
            other => {
                let limit = "must be file, purpose, expires_after[anchor], which is created_at, \
                             and expires_after[seconds]";
                return Err(Error::bad_input("form", limit, other).into());
            }
        }
    }
    let Some(file) = file else {
        return Err(Error::bad_input("file", "must be given", "none").into());
    };
    if !PURPOSES.contains(&new.purpose.as_str()) {
        let limit = format!("must be {}", PURPOSES.join(" or "));
        return Err(Error::bad_input("purpose", limit, new.purpose).into());
    }
    new.bytes = file.into();
    Ok(new)
}

fn lifetime(text: &[u8]) -> Result<Duration, Problem> {
    let text = String::from_utf8_lossy(text);
    let seconds = text
        .parse()
        .map_err(|_| Error::bad_input("expires_after", "must be a number of seconds", text))?;
    Ok(Duration::from_secs(seconds))
}

fn broken(error: MultipartError) -> Problem {
    match error.status() {
        axum::http::StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(MAX_PICTURE_BYTES),
        _ => Problem::broken_body(error.body_text()),
    }
}

async fn list<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
) -> Json<Files> {
    let files = api.front.uploads.list(owner(&pass));
    Json(Files {
        object: "list",
        data: files.into_iter().map(File::from).collect(),
        has_more: false,
    })
}

async fn describe<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
    Path(id): Path<String>,
) -> Result<Json<File>, Problem> {
    let upload = find(&api, &pass, &id)?;
    Ok(Json(upload.into()))
}

async fn download<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let upload = find(&api, &pass, &id)?;
    // Nothing that a stranger has uploaded is shown as a page of this server.
    let headers = [
        (CONTENT_TYPE, "application/octet-stream"),
        (CONTENT_DISPOSITION, "attachment"),
    ];
    Ok((headers, upload.bytes).into_response())
}

async fn remove<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Extension(pass): Extension<Pass>,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, Problem> {
    let removed = api.front.uploads.remove(owner(&pass), &id);
    removed.map_err(|error| Problem::missing(&error))?;
    Ok(Json(Deleted {
        id,
        object: "file",
        deleted: true,
    }))
}

/// Whose files a caller sees.
fn owner(pass: &Pass) -> &str {
    pass.name().unwrap_or_default()
}

fn find<B, D>(api: &Api<B, D>, pass: &Pass, id: &str) -> Result<Upload, Problem> {
    let found = api.front.uploads.get(owner(pass), id);
    found.map_err(|error| Problem::missing(&error))
}
