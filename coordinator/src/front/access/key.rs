//! One key: what is kept of it, and what it has used.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xomni_engine::{Error, Result};

use super::{super::failure::Failure, rate::Rate};

/// How keys begin, so that they are known for what they are wherever they turn up.
const PREFIX: &str = "sk-xomni-";
/// Random bytes of a key.
const SECRET_BYTES: usize = 32;
/// Longest name, in characters.
const MAX_NAME: usize = 128;

/// What is kept of a key: all but the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Who has it: the tenant whose share of the service its requests take.
    pub name: String,
    /// SHA-256 of the key, as 64 hexadecimal digits.
    pub sha256: String,
    /// Requests that are taken in a minute; no limit if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Pictures that are drawn or wait at once; no limit if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_images: Option<usize>,
    /// The most urgent (lowest) priority of its requests: those that ask for a more urgent one
    /// get this. Any if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether it sees what operators see.
    #[serde(default)]
    pub operator: bool,
}

impl Record {
    /// A new key, and its record without limits.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no random numbers.
    pub fn generate(name: String) -> Result<(String, Self)> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| {
            let error = std::io::Error::other(error);
            Error::io(std::path::Path::new("random numbers"), error)
        })?;
        let secret = format!("{PREFIX}{}", hex(&bytes));
        let record = Self {
            name,
            sha256: hex(&digest(&secret)),
            requests_per_minute: None,
            concurrent_images: None,
            priority: None,
            operator: false,
        };
        Ok((secret, record))
    }
}

/// A key and what it has used.
#[derive(Debug)]
pub struct Key {
    record: Record,
    digest: [u8; 32],
    rate: Option<Mutex<Rate>>,
    images: AtomicUsize,
}

impl Key {
    /// A key that was not used yet.
    ///
    /// # Errors
    /// What is wrong with its record.
    pub fn new(record: Record) -> Result<Self, String> {
        let length = record.name.chars().count();
        if !(1..=MAX_NAME).contains(&length) {
            return Err(format!("name: must be 1 to {MAX_NAME} characters"));
        }
        if record.requests_per_minute == Some(0) || record.concurrent_images == Some(0) {
            let limits = "requests_per_minute and concurrent_images: must be at least 1";
            return Err(limits.into());
        }
        let digest = unhex(&record.sha256).ok_or("sha256: must be 64 hexadecimal digits")?;
        Ok(Self {
            digest,
            rate: record.requests_per_minute.map(Rate::new).map(Mutex::new),
            images: AtomicUsize::new(0),
            record,
        })
    }

    /// What is known of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Who has it.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Whether `digest` is its own, found out in the same time for any other.
    pub fn is(&self, digest: &[u8; 32]) -> bool {
        let pairs = self.digest.iter().zip(digest);
        std::hint::black_box(pairs.fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
    }

    /// As [`super::Pass::count`].
    ///
    /// # Errors
    /// As there.
    pub fn count(&self) -> Result<(), Failure> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.take(Instant::now())
            .map_err(|retry_after| Failure::Limited {
                what: "requests_per_minute",
                limit: format!("must be at most {} for this key", rate.per_minute()),
                value: "one more".into(),
                retry_after,
            })
    }

    /// As [`super::Pass::hold`].
    ///
    /// # Errors
    /// As there.
    pub fn hold(self: &Arc<Self>, images: usize, retry_after: Duration) -> Result<Held, Failure> {
        let limit = self.record.concurrent_images.unwrap_or(usize::MAX);
        if images > limit {
            let limit = format!("must be at most {limit} for this key");
            return Err(Error::bad_input("n", limit, images).into());
        }
        let room = |held: usize| held.checked_add(images).filter(|sum| *sum <= limit);
        let (relaxed, key) = (Ordering::Relaxed, self.clone());
        match self.images.fetch_update(relaxed, relaxed, room) {
            Ok(_) => Ok(Held { key, images }),
            Err(held) => Err(Failure::Limited {
                what: "concurrent_images",
                limit: format!("must be at most {limit} for this key"),
                value: format!("{images} beside {held}"),
                retry_after,
            }),
        }
    }
}

/// Pictures that a key has drawn now; others can be once this is dropped.
#[derive(Debug)]
pub struct Held {
    key: Arc<Key>,
    images: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.key.images.fetch_sub(self.images, Ordering::Relaxed);
    }
}

/// SHA-256 of a key.
pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_held_until_dropped() {
        let (_, record) = Record::generate("a".into()).expect("random");
        let record = Record {
            concurrent_images: Some(3),
            ..record
        };
        let key = Arc::new(Key::new(record).expect("a key"));
        let wait = Duration::from_secs(5);
        let two = key.hold(2, wait).expect("room");
        match key.hold(2, wait) {
            Err(Failure::Limited {
                what, retry_after, ..
            }) => assert_eq!((what, retry_after), ("concurrent_images", wait)),
            other => panic!("{other:?}"),
        }
        let one = key.hold(1, wait).expect("room");
        drop(two);
        key.hold(2, wait).expect("room");
        drop(one);
        assert!(matches!(
            key.hold(4, wait),
            Err(Failure::Job(Error::BadInput { field: "n", .. }))
        ));
    }

    #[test]
    fn what_is_kept_of_a_key_is_its_hash() {
        let (secret, record) = Record::generate("a".into()).expect("random");
        assert_eq!(secret.len(), PREFIX.len() + 2 * SECRET_BYTES);
        assert_eq!(record.sha256, hex(&digest(&secret)));
        assert!(Key::new(record).expect("a key").is(&digest(&secret)));
    }
}
