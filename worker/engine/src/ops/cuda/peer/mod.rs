//! The exchange between GPUs of one process that reach each other's memory: one kernel, which also adds up the planes of
//! what it sends. Ranks that shared a GPU would keep each other from running while they wait.
//!
//! Values lie where a rank receives them until the exchange after the next; who reads them adds them up.

mod inbox;

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use inbox::{FIRST_GATHERED, Inbox, ROOM, SPARE, process};

use super::{Buffer, Cuda, Element, Pending, Sums, kernels::Argument, mismatch, wait, want};
use crate::{
    Result,
    ops::Device,
    parallel::{Collective, Meeting, abort::ended},
};

/// As `kernels/exchange.cu` has them.
const RANKS: usize = 8;
const BLOCKS: usize = 64;
const THREADS: usize = 256;

/// `struct Exchange` of `kernels/exchange.cu`.
#[repr(C)]
struct Exchange {
    mine: Sums,
    rooms: [u64; RANKS],
    arrived: [u64; RANKS],
    turns: u64,
    stop: u64,
    len: usize,
    rank: i32,
    ranks: i32,
}

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernel's struct.
    unsafe impl super::Argument for super::Exchange {}
}

/// The inboxes of all ranks of an epoch, which each of them reaches.
pub(super) struct Peers(Vec<Arc<Inbox>>);

/// One rank's end of a group of GPUs.
pub(super) struct PeerCollective {
    rank: usize,
    inboxes: Vec<Arc<Inbox>>,
    /// Sums so far, which take two rooms in turn.
    sums: usize,
    /// Buffers that are gathered into, each in a room of its own.
    gathered: Vec<u64>,
    host: Box<dyn Collective<Cuda>>,
    deadline: Duration,
}

/// Finds the GPUs of all ranks, if all are of this process and reach each other's memory.
///
/// # Errors
/// [`crate::Error::GroupLost`] if a rank is gone or overdue, or the epoch is ended.
pub(super) fn find(cuda: &Cuda, meeting: &mut Meeting<Cuda>) -> Result<Option<Peers>> {
    let processes = share(cuda, &mut *meeting.host, &process())?;
    if processes.len() > RANKS || processes.iter().any(|other| other[..] != process()) {
        return Ok(None);
    }
    // What fails for one rank is not done by any.
    let own = Inbox::new(cuda, processes.len()).ok();
    let id = own.as_ref().map_or(-1.0, |inbox| inbox.id() as f32);
    let mut inboxes = vec![];
    for id in share(cuda, &mut *meeting.host, &[id])? {
        if let Some(inbox) = (id[0] >= 0.0).then(|| Inbox::find(id[0] as u32)).flatten() {
            inboxes.push(inbox);
        }
    }
    let reached = |inbox: &Arc<Inbox>| match &own {
        Some(own) if own.id() == inbox.id() => true,
        _ => cuda.context.reaches(&inbox.context).unwrap_or(false),
    };
    let all = inboxes.len() == processes.len() && inboxes.iter().all(reached);
    let verdicts = share(cuda, &mut *meeting.host, &[f32::from(u8::from(all))])?;
    if verdicts.iter().any(|verdict| verdict[0] == 0.0) {
        return Ok(None);
    }
    let stopped: Vec<_> = inboxes.iter().map(Arc::downgrade).collect();
    meeting.abort.on_abort(move || {
        stopped
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|inbox| inbox.stop())
    })?;
    Ok(Some(Peers(inboxes)))
}

/// The values of every rank.
fn share(cuda: &Cuda, host: &mut dyn Collective<Cuda>, values: &[f32]) -> Result<Vec<Vec<f32>>> {
    let (len, ranks) = (values.len(), host.size());
    let mut all = cuda.buffer(ranks * len)?;
    host.gather(cuda, &cuda.upload(values)?, len, &mut all)?;
    let all = cuda.read(&all, ranks * len)?;
    Ok(all.chunks(len).map(<[f32]>::to_vec).collect())
}

impl PeerCollective {
    /// Connects this rank to those that it has found.
    pub(super) fn new(meeting: Meeting<Cuda>, peers: Peers) -> Self {
        Self {
            rank: meeting.rank,
            inboxes: peers.0,
            sums: 0,
            gathered: vec![],
            host: meeting.host,
            deadline: meeting.deadline,
        }
    }

    /// Brings `len` values of every rank to room `room` and returns where it is: `[ranks, len]`.
    fn exchange(&self, cuda: &Cuda, mine: Sums, len: usize, room: usize) -> Result<u64> {
        let own = &self.inboxes[self.rank];
        let mut exchange = Exchange {
            mine,
            rooms: [0; RANKS],
            arrived: [0; RANKS],
            turns: own.turns.address() + (self.inboxes.len() * BLOCKS * 4) as u64,
            stop: own.stop.address(),
            len,
            rank: self.rank as i32,
            ranks: self.inboxes.len() as i32,
        };
        for (rank, inbox) in self.inboxes.iter().enumerate() {
            exchange.rooms[rank] = inbox.rooms.address() + 4 * inbox.room(room) as u64;
            exchange.arrived[rank] = inbox.turns.address();
        }
        let (name, values) = match len.is_multiple_of(4) {
            true => ("exchange_f32x4", 4),
            false => ("exchange_f32", 1),
        };
        let blocks = (len / values).div_ceil(THREADS).clamp(1, BLOCKS);
        cuda.launch(name, [blocks, 1, 1], [THREADS, 1], 0, true, &[&exchange])?;
        Ok(exchange.rooms[self.rank])
    }

    /// What a rank sends: planes that lie `len` values apart, if nothing else is to be added.
    fn sent(cuda: &Cuda, mine: &Buffer, len: usize) -> Result<Sums> {
        let even = |pending: Pending| pending.count == 1 || pending.rows * pending.width == len;
        if mine
            .pending
            .is_some_and(|pending| pending.bias != 0 || !even(pending))
        {
            cuda.settle(mine)?;
            return Ok(Sums::of(mine.memory.address()));
        }
        Ok(mine.sums())
    }

    /// The room of what is gathered into `all`.
    fn room_of(&mut self, all: &Buffer) -> Result<usize> {
        let address = all.memory.address();
        let known = self.gathered.iter().position(|&other| other == address);
        let number = known.unwrap_or(self.gathered.len());
        if known.is_none() {
            self.gathered.push(address);
        }
        let room = FIRST_GATHERED + number;
        if room == SPARE {
            return Err(mismatch("gather", "a third buffer".into()));
        }
        Ok(room)
    }

    /// Gathers what no room holds, in pieces that each go to `room_of(piece)`.
    fn gather_pieces(
        &self,
        cuda: &Cuda,
        mine: &Buffer,
        len: usize,
        all: &mut Buffer,
        room_of: impl Fn(usize) -> usize,
    ) -> Result<()> {
        want("gather", "all", all, Element::F32, self.size() * len)?;
        cuda.settle(mine)?;
        all.pending = None;
        let own = &self.inboxes[self.rank];
        for (piece, first) in (0..len).step_by(ROOM).enumerate() {
            let (part, room) = (ROOM.min(len - first), room_of(piece));
            let address = mine.memory.address() + 4 * first as u64;
            self.exchange(cuda, Sums::of(address), part, room)?;
            for rank in 0..self.size() {
                let (from, to) = (own.room(room) + rank * part, rank * len + first);
                let stream = &cuda.stream;
                stream.copy(&own.rooms, 4 * from, &all.memory, 4 * to, 4 * part)?;
            }
            // The next kernel waits for copies like for an exchange.
            cuda.exchanged.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Collective<Cuda> for PeerCollective {
    fn size(&self) -> usize {
        self.inboxes.len()
    }

    fn gather(&mut self, cuda: &Cuda, mine: &Buffer, len: usize, all: &mut Buffer) -> Result<()> {
        want("gather", "mine", mine, Element::F32, len)?;
        want("gather", "all", all, Element::F32, self.size() * len)?;
        let own = self.room_of(all)?;
        if len > ROOM {
            return self.gather_pieces(cuda, mine, len, all, |piece| [own, SPARE][piece % 2]);
        }
        all.pending = Some(Pending {
            planes: self.exchange(cuda, Self::sent(cuda, mine, len)?, len, own)?,
            bias: 0,
            count: 1,
            rows: self.size(),
            width: len,
        });
        Ok(())
    }

    fn sum(
        &mut self,
        cuda: &Cuda,
        mine: &Buffer,
        len: usize,
        all: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        want("sum", "mine", mine, Element::F32, len)?;
        want("sum", "out", out, Element::F32, len)?;
        let first = self.sums;
        if len > ROOM {
            self.sums += len.div_ceil(ROOM);
            self.gather_pieces(cuda, mine, len, all, |piece| (first + piece) % 2)?;
            return cuda.sum_parts(all, self.size(), len, out);
        }
        self.sums += 1;
        out.pending = Some(Pending {
            planes: self.exchange(cuda, Self::sent(cuda, mine, len)?, len, first % 2)?,
            bias: 0,
            count: self.size(),
            rows: 1,
            width: len,
        });
        Ok(())
    }

    fn on_device(&self) -> bool {
        true
    }

    fn wait(&mut self, has_ended: &mut dyn FnMut() -> Result<bool>) -> Result<()> {
        wait::until(has_ended, self.deadline, || self.check())?;
        // A step that an abort has ended has gathered nothing.
        match self.inboxes[self.rank].is_stopped() {
            true => Err(ended()),
            false => Ok(()),
        }
    }

    fn check(&mut self) -> Result<()> {
        match self.inboxes[self.rank].is_stopped() {
            true => Err(ended()),
            false => self.host.check(),
        }
    }

    fn abort(&mut self) {
        // Others would wait for this rank until they know.
        self.inboxes.iter().for_each(|inbox| inbox.stop());
    }
}

impl Drop for PeerCollective {
    fn drop(&mut self) {
        self.abort();
    }
}
