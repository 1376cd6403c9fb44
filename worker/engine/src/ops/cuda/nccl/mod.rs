//! The exchange between GPUs: gathers that NCCL runs on the stream of the rank, recorded with everything else.
//!
//! NCCL only carries values; they are added by the kernels that read them, in the order that does not depend on the
//! number of ranks. Ranks first meet over the host, whose connections prove that they belong to the epoch: there
//! rank 0 tells the others the id of the communicator, and there a rank is missed that has gone.

mod communicator;
mod library;

use std::{sync::Arc, time::Duration};

use cudarc::nccl::sys::ncclUniqueId;

pub use library::forbid_multicast;

use communicator::{Communicator, Watch};
use library::Library;

use super::{Buffer, Cuda, Element, wait, want};
use crate::{
    Result,
    ops::Device,
    parallel::{Collective, Meeting},
};

/// One rank's end of a group of GPUs.
pub(super) struct NcclCollective {
    communicator: Arc<Communicator>,
    host: Box<dyn Collective<Cuda>>,
    deadline: Duration,
    /// Once this rank leaves.
    watch: Option<Watch>,
}

impl NcclCollective {
    /// Connects the GPU of this rank to those of all others.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] without NCCL; [`Error::GroupLost`] if a rank is gone or overdue, or the epoch is ended.
    pub(super) fn connect(cuda: &Cuda, meeting: Meeting<Cuda>) -> Result<Self> {
        let Meeting {
            rank,
            mut host,
            deadline,
            abort,
        } = meeting;
        let library = Library::get()?;
        let size = host.size();
        let id = share_id(cuda, &mut *host, rank == 0, library)?;
        let communicator = Communicator::begin(&cuda.context, library, id, (rank, size))?;
        // From here on its end is that of the communicator.
        let mut this = Self {
            communicator: Arc::new(communicator),
            host,
            deadline,
            watch: None,
        };
        let aborted = this.communicator.clone();
        abort.on_abort(move || aborted.abort())?;
        this.settle()?;
        Ok(this)
    }

    fn settle(&mut self) -> Result<()> {
        self.communicator
            .settle(self.deadline, || self.host.check())
    }
}

/// The id that rank 0 makes, on every rank: a value a byte.
fn share_id(
    cuda: &Cuda,
    host: &mut dyn Collective<Cuda>,
    first: bool,
    library: &Library,
) -> Result<ncclUniqueId> {
    let mut id = ncclUniqueId { internal: [0; 128] };
    if first {
        id = library.unique_id()?;
    }
    let len = id.internal.len();
    let mine = cuda.upload(&id.internal.map(f32::from))?;
    let mut all = cuda.buffer(host.size() * len)?;
    host.gather(cuda, &mine, len, &mut all)?;
    for (byte, value) in id.internal.iter_mut().zip(cuda.read(&all, len)?) {
        *byte = value as _;
    }
    Ok(id)
}

impl Collective<Cuda> for NcclCollective {
    fn size(&self) -> usize {
        self.host.size()
    }

    fn gather(&mut self, cuda: &Cuda, mine: &Buffer, len: usize, all: &mut Buffer) -> Result<()> {
        want("gather", "mine", mine, Element::F32, len)?;
        want("gather", "all", all, Element::F32, self.size() * len)?;
        cuda.settle(mine)?;
        all.hold_values();
        cuda.profiled(
            || "gather".to_owned(),
            || {
                let (communicator, stream) = (&self.communicator, &cuda.stream);
                communicator
                    .all_gather(stream, &mine.memory, len, &all.memory)
                    .and_then(|()| communicator.settle(self.deadline, || self.host.check()))
                    .inspect_err(|_| communicator.leave())
            },
        )?;
        // What comes next waits for all of it.
        cuda.set_apart();
        Ok(())
    }

    fn on_device(&self) -> bool {
        true
    }

    fn wait(&mut self, has_ended: &mut dyn FnMut() -> Result<bool>) -> Result<()> {
        wait::until(has_ended, self.deadline, || self.check())?;
        // A step that an abort has ended has gathered nothing.
        self.communicator.check().map(drop)
    }

    fn check(&mut self) -> Result<()> {
        self.communicator.check()?;
        self.host.check()
    }

    fn abort(&mut self) {
        self.watch.get_or_insert_with(Watch::begin);
        self.communicator.abort();
    }
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        self.abort();
        self.communicator.join();
    }
}
