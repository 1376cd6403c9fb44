//! Pictures that clients have uploaded to show them later: held in memory, bounded, and only for
//! a while. [`Shelf`] is what is held, without a clock; [`Uploads`] shares it among calls.

mod shelf;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use xomni_engine::{Error, Result};

pub use shelf::{Room, Shelf};

use crate::request::random_id;

/// Longest file name, in characters.
const MAX_NAME: usize = 255;
/// Shortest and longest time that a client can have a file kept for: OpenAI's.
const LIFETIMES: (Duration, Duration) = (
    Duration::from_secs(3600),
    Duration::from_secs(30 * 24 * 3600),
);

/// A file that was uploaded. Clones share its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Names it.
    pub id: String,
    /// What the client calls it.
    pub name: String,
    /// What the client wants it for.
    pub purpose: String,
    /// The file.
    pub bytes: Bytes,
    /// When it came.
    pub created: SystemTime,
    /// When it is forgotten.
    pub expires: SystemTime,
}

/// A file to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewUpload {
    /// What the client calls it.
    pub name: String,
    /// What the client wants it for.
    pub purpose: String,
    /// The file.
    pub bytes: Bytes,
    /// How long it is kept, where the client says so.
    pub lifetime: Option<Duration>,
}

/// All uploads of a process, each its owner's alone. Clones are the same.
#[derive(Debug, Clone)]
pub struct Uploads {
    shelf: Arc<Mutex<Shelf>>,
    lifetime: Duration,
}

impl Uploads {
    /// None yet. Files are kept for `lifetime` where their clients say nothing else.
    pub fn new(room: Room, lifetime: Duration) -> Self {
        Self {
            shelf: Arc::new(Mutex::new(Shelf::new(room))),
            lifetime,
        }
    }

    /// Keeps a file of `owner`.
    ///
    /// # Errors
    /// [`Error::BadInput`] for a name or a lifetime out of bounds, and for a file larger than all
    /// the room; [`Error::Capacity`] if there is no room now.
    pub fn keep(&self, owner: &str, new: NewUpload) -> Result<Upload> {
        let chars = new.name.chars().count();
        if chars > MAX_NAME {
            let limit = format!("must be at most {MAX_NAME} characters");
            return Err(Error::bad_input(
                "filename",
                limit,
                format!("{chars} characters"),
            ));
        }
        let lifetime = match new.lifetime {
            None => self.lifetime,
            Some(asked) if (LIFETIMES.0..=LIFETIMES.1).contains(&asked) => asked,
            Some(asked) => {
                let (least, most) = (LIFETIMES.0.as_secs(), LIFETIMES.1.as_secs());
                let limit = format!("must be {least} to {most} seconds");
                return Err(Error::bad_input("expires_after", limit, asked.as_secs()));
            }
        };
        let created = SystemTime::now();
        let upload = Upload {
            id: format!("file-{}", random_id()),
            name: new.name,
            purpose: new.purpose,
            bytes: new.bytes,
            created,
            expires: created + lifetime,
        };
        self.shelf().put(owner, upload.clone(), created)?;
        Ok(upload)
    }

    /// The file of `owner` with this id, unless it has expired.
    ///
    /// # Errors
    /// [`Error::BadInput`] if there is none.
    pub fn get(&self, owner: &str, id: &str) -> Result<Upload> {
        let found = self.shelf().get(owner, id, SystemTime::now());
        found.ok_or_else(|| unknown(id))
    }

    /// All files of `owner`, the newest first.
    pub fn list(&self, owner: &str) -> Vec<Upload> {
        self.shelf().list(owner, SystemTime::now())
    }

    /// Forgets a file of `owner`.
    ///
    /// # Errors
    /// [`Error::BadInput`] if there is none.
    pub fn remove(&self, owner: &str, id: &str) -> Result<()> {
        let removed = self.shelf().remove(owner, id, SystemTime::now());
        removed.then_some(()).ok_or_else(|| unknown(id))
    }

    /// How long until there is room for so many bytes, if nobody removes a file before.
    pub fn wait_for(&self, bytes: usize) -> Duration {
        self.shelf().wait_for(bytes, SystemTime::now())
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Every change of the shelf is whole even if its thread then panics.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: &str) -> Error {
    Error::bad_input(
        "file_id",
        "must name a file that you uploaded here and that has not expired",
        id,
    )
}
