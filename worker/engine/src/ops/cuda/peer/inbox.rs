//! Where a rank receives what other ranks write to it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::rooms::{ROOM, ROOMS};
use crate::{
    Result,
    ops::cuda::{
        Cuda,
        driver::{Context, Memory, Pinned},
        lock,
    },
};

/// The word of a place that nobody has written to: `EMPTY` of `kernels/peer.cuh`.
const EMPTY: u32 = (-0.0f32).to_bits();

/// All inboxes of this process.
static ALL: Mutex<Vec<Weak<Inbox>>> = Mutex::new(Vec::new());
/// Tells processes apart, also those of other machines.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));

/// A rank's memory for an epoch, which lives as long as any rank may write to it.
#[derive(Debug)]
pub(super) struct Inbox {
    pub context: Arc<Context>,
    /// `[ROOMS, ranks, ROOM]` values.
    rooms: Memory,
    /// One word, not zero once kernels of its rank are not to wait any more.
    pub stop: Pinned,
    stopped: AtomicBool,
    id: u32,
    ranks: usize,
    /// Whether products of its rank may send planes themselves.
    pub sends: bool,
}

impl Inbox {
    /// An empty one for `ranks` ranks.
    ///
    /// # Errors
    /// [`crate::Error::Capacity`] if there is no memory for it.
    pub(super) fn new(cuda: &Cuda, ranks: usize) -> Result<Arc<Self>> {
        let mut all = lock(&ALL);
        all.retain(|inbox| inbox.strong_count() > 0);
        let taken = |id: &u32| {
            all.iter()
                .any(|other| other.upgrade().is_some_and(|other| other.id == *id))
        };
        let id = (0..).find(|id| !taken(id)).unwrap_or_default();
        let inbox = Arc::new(Self {
            context: cuda.context.clone(),
            rooms: Memory::new(&cuda.context, ROOMS * ranks * ROOM * 4, "the exchange")?,
            stop: Pinned::new(&cuda.context, 1)?,
            stopped: AtomicBool::default(),
            id,
            ranks,
            sends: cuda.tiled(),
        });
        all.push(Arc::downgrade(&inbox));
        drop(all);
        cuda.stream.fill(&inbox.rooms, EMPTY)?;
        cuda.stream.wait()?;
        Ok(inbox)
    }

    /// Ends the waiting of its rank's kernels.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.stop.set(0, 1);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// What finds it within the process.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// The inbox `id` of this process.
    pub(super) fn find(id: u32) -> Option<Arc<Self>> {
        let all = lock(&ALL);
        all.iter()
            .filter_map(Weak::upgrade)
            .find(|inbox| inbox.id == id)
    }

    /// Where room `room` begins.
    pub(super) fn room(&self, room: usize) -> u64 {
        self.rooms.address() + (room * self.ranks * ROOM * 4) as u64
    }
}

/// This process, as values that a gather carries.
pub(super) fn process() -> [f32; 8] {
    PROCESS.to_le_bytes().map(f32::from)
}
