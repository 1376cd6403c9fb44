//! Pictures that are fetched by an address, for a while.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use xomni_engine::{Error, Result};

/// Random bytes of a name.
const NAME_BYTES: usize = 24;

/// A picture to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub bytes: Bytes,
    /// What they are.
    pub media_type: &'static str,
}

/// The pictures that can be fetched now: in memory, each until it expires or newer ones need its
/// place.
pub struct Files {
    expiry: Duration,
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    files: HashMap<String, File>,
    /// Names and when they expire, oldest first.
    order: VecDeque<(Instant, String)>,
    bytes: usize,
}

impl Files {
    /// Keeps up to `capacity` bytes, each file for as long as `expiry`.
    pub fn new(capacity: usize, expiry: Duration) -> Self {
        Self {
            expiry,
            capacity,
            kept: Mutex::default(),
        }
    }

    /// How long a file can be fetched.
    pub fn expiry(&self) -> Duration {
        self.expiry
    }

    /// Keeps the files of one answer and returns their names, which nobody can guess.
    ///
    /// # Errors
    /// [`Error::Capacity`] if they do not fit all together, [`Error::Io`] without random numbers.
    pub fn keep(&self, files: Vec<File>, extension: &str) -> Result<Vec<String>> {
        let needed: usize = files.iter().map(|file| file.bytes.len()).sum();
        if needed > self.capacity {
            return Err(Error::Capacity {
                what: "picture store",
                limit: format!("{} bytes", self.capacity),
                needed: format!("{needed} bytes; ask for b64_json"),
            });
        }
        let names = files.iter().map(|_| name(extension));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        let now = Instant::now();
        let mut kept = self.kept();
        kept.expire(now);
        while kept.bytes + needed > self.capacity && kept.drop_oldest() {}
        for (name, file) in names.iter().zip(files) {
            kept.bytes += file.bytes.len();
            kept.order.push_back((now + self.expiry, name.clone()));
            kept.files.insert(name.clone(), file);
        }
        Ok(names)
    }

    /// The file of a name, unless it has expired.
    pub fn get(&self, name: &str) -> Option<File> {
        let mut kept = self.kept();
        kept.expire(Instant::now());
        kept.files.get(name).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Every change is whole even if its thread then panics.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest();
        }
    }

    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let Some((_, name)) = self.order.pop_front() else {
            return false;
        };
        let file = self.files.remove(&name);
        self.bytes -= file.map_or(0, |file| file.bytes.len());
        true
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept();
        f.debug_struct("Files")
            .field("files", &kept.files.len())
            .field("bytes", &kept.bytes)
            .finish_non_exhaustive()
    }
}

fn name(extension: &str) -> Result<String> {
    let mut bytes = [0; NAME_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::io(
            std::path::Path::new("random numbers"),
            std::io::Error::other(error),
        )
    })?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{digits}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn file(size: usize) -> File {
        File {
            bytes: vec![7; size].into(),
            media_type: "image/png",
        }
    }

    #[test]
    fn files_are_found_by_their_names_alone() {
        let files = Files::new(100, LONG);
        let names = files.keep(vec![file(10), file(20)], "png").expect("kept");
        assert_ne!(names[0], names[1]);
        assert_eq!(names[0].len(), 2 * NAME_BYTES + ".png".len());
        assert_eq!(files.get(&names[1]), Some(file(20)));
        assert_eq!(files.get("nothing.png"), None);
    }

    #[test]
    fn the_oldest_make_place_and_too_much_is_refused() {
        let files = Files::new(100, LONG);
        let first = files.keep(vec![file(60)], "png").expect("kept");
        let second = files.keep(vec![file(30), file(30)], "png").expect("kept");
        assert_eq!(files.get(&first[0]), None);
        assert!(second.iter().all(|name| files.get(name).is_some()));
        assert!(matches!(
            files.keep(vec![file(101)], "png"),
            Err(Error::Capacity { .. })
        ));
        assert!(files.get(&second[0]).is_some());
    }

    #[test]
    fn expired_files_are_gone() {
        let files = Files::new(100, Duration::ZERO);
        let names = files.keep(vec![file(60)], "png").expect("kept");
        assert_eq!(files.get(&names[0]), None);
        assert_eq!(files.kept().bytes, 0);
    }
}
