//! Files, by owner, within bounds, until they expire. No clock: every call says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use xomni_engine::{Error, Result};

use super::Upload;

/// How much a [`Shelf`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of all files together.
    pub bytes: usize,
    /// Files.
    pub files: usize,
}

/// The files that are held.
#[derive(Debug)]
pub struct Shelf {
    room: Room,
    used: usize,
    /// By id, with their owners.
    files: BTreeMap<String, (String, Upload)>,
}

impl Shelf {
    /// An empty one.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            used: 0,
            files: BTreeMap::new(),
        }
    }

    /// Bytes held.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Holds a file.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it is larger than all the room, [`Error::Capacity`] if there is none
    /// now.
    pub fn put(&mut self, owner: &str, upload: Upload, now: SystemTime) -> Result<()> {
        let size = upload.bytes.len();
        if size > self.room.bytes {
            let limit = format!("must be at most {} bytes", self.room.bytes);
            return Err(Error::bad_input("file", limit, size));
        }
        self.forget_expired(now);
        if self.files.len() >= self.room.files || self.used + size > self.room.bytes {
            return Err(Error::Capacity {
                what: "upload store",
                limit: format!("{} files of {} bytes", self.room.files, self.room.bytes),
                needed: format!("one more, of {size} bytes"),
                retry_after: None,
            });
        }
        self.used += size;
        self.files
            .insert(upload.id.clone(), (owner.to_owned(), upload));
        Ok(())
    }

    /// An owner's file.
    pub fn get(&mut self, owner: &str, id: &str, now: SystemTime) -> Option<Upload> {
        self.forget_expired(now);
        let (of, upload) = self.files.get(id)?;
        (of == owner).then(|| upload.clone())
    }

    /// An owner's files, the newest first.
    pub fn list(&mut self, owner: &str, now: SystemTime) -> Vec<Upload> {
        self.forget_expired(now);
        let own = self.files.values().filter(|(of, _)| of == owner);
        let mut own: Vec<Upload> = own.map(|(_, upload)| upload.clone()).collect();
        own.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        own
    }

    /// Forgets an owner's file; `false` if there is none.
    pub fn remove(&mut self, owner: &str, id: &str, now: SystemTime) -> bool {
        let own = self.get(owner, id, now).is_some();
        if own && let Some((_, upload)) = self.files.remove(id) {
            self.used -= upload.bytes.len();
        }
        own
    }

    /// How long until so many bytes are free, and a place for them, by expiry alone.
    pub fn wait_for(&self, bytes: usize, now: SystemTime) -> Duration {
        let mut ends: Vec<_> = self.files.values().map(|(_, upload)| upload).collect();
        ends.sort_by_key(|upload| upload.expires);
        let (mut used, mut files) = (self.used, self.files.len());
        let mut at = now;
        for upload in ends {
            if used + bytes <= self.room.bytes && files < self.room.files {
                break;
            }
            used -= upload.bytes.len();
            files -= 1;
            at = upload.expires;
        }
        at.duration_since(now).unwrap_or_default()
    }

    fn forget_expired(&mut self, now: SystemTime) {
        self.files.retain(|_, (_, upload)| {
            let stays = upload.expires > now;
            if !stays {
                self.used -= upload.bytes.len();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ROOM: Room = Room {
        bytes: 100,
        files: 4,
    };

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn upload(id: &str, size: usize, created: u64, lifetime: u64) -> Upload {
        Upload {
            id: id.into(),
            name: "a.png".into(),
            purpose: "vision".into(),
            bytes: vec![0; size].into(),
            created: at(created),
            expires: at(created + lifetime),
        }
    }

    #[test]
    fn files_are_their_owners_until_they_expire() {
        let mut shelf = Shelf::new(ROOM);
        shelf.put("a", upload("1", 60, 0, 10), at(0)).expect("room");
        shelf.put("b", upload("2", 40, 1, 20), at(1)).expect("room");
        assert!(shelf.get("a", "1", at(9)).is_some());
        assert!(shelf.get("b", "1", at(9)).is_none() && !shelf.remove("b", "1", at(9)));
        assert!(shelf.get("a", "1", at(10)).is_none());
        assert_eq!(shelf.used(), 40);
        assert_eq!(shelf.list("b", at(10)).len(), 1);
        assert!(shelf.remove("b", "2", at(10)) && shelf.used() == 0);
    }

    #[test]
    fn a_refusal_says_when_there_is_room() {
        let mut shelf = Shelf::new(ROOM);
        let larger = shelf.put("a", upload("0", 101, 0, 1), at(0));
        assert!(matches!(larger, Err(Error::BadInput { field: "file", .. })));
        shelf.put("a", upload("1", 60, 0, 30), at(0)).expect("room");
        shelf.put("b", upload("2", 30, 0, 20), at(0)).expect("room");
        let full = shelf.put("b", upload("3", 50, 5, 9), at(5));
        assert!(matches!(full, Err(Error::Capacity { .. })), "{full:?}");
        let wait = shelf.wait_for(50, at(5));
        assert_eq!(wait, Duration::from_secs(25));
        shelf
            .put("b", upload("3", 50, 5, 9), at(5) + wait)
            .expect("room by then");
        assert_eq!(shelf.wait_for(10, at(30)), Duration::ZERO);
    }

    proptest! {
        /// Whatever comes and goes, the bounds hold and what is used is what is held.
        #[test]
        fn bounds_hold(steps in vec((0usize..70, 1u64..30, any::<bool>()), 0..60)) {
            let mut shelf = Shelf::new(ROOM);
            for (now, (size, lifetime, remove)) in steps.into_iter().enumerate() {
                let time = now as u64;
                let id = (now % 7).to_string();
                if remove {
                    shelf.remove("a", &id, at(time));
                } else {
                    let id = now.to_string();
                    let _ = shelf.put("a", upload(&id, size, time, lifetime), at(time));
                }
                let held = shelf.list("a", at(time));
                let bytes: usize = held.iter().map(|upload| upload.bytes.len()).sum();
                prop_assert_eq!(shelf.used(), bytes);
                prop_assert!(bytes <= ROOM.bytes && held.len() <= ROOM.files);
                prop_assert!(held.iter().all(|upload| upload.expires > at(time)));
            }
        }
    }
}
