//! The exchange between GPUs of one process that reach each other's memory: one kernel, which also adds up the planes of
//! what it sends, and makes of what comes whatever is made of it. Products of few rows send their planes themselves. Ranks that
//! shared a GPU would keep each other from running while they wait.

mod inbox;
mod receivers;
mod rooms;

pub(super) use receivers::Receivers;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use inbox::{Inbox, process};
use rooms::{ROOM, Rooms, pieces};

use super::{
    Buffer, Cuda, Element, Pending, Sums, kernels::Argument, mismatch, product::FEW_ROWS,
    residual::Segments, wait, want,
};
use crate::{
    Result,
    ops::{Device, Residual, StepRows, TransformerOps, column_parts},
    parallel::{CHUNKS, Collective, Meeting, RowProduct, SumRoom, abort::ended},
};

/// As `kernels/peer.cuh` and `kernels/exchange.cu` have them.
const RANKS: usize = 8;
const THREADS: usize = 256;
/// Blocks at most, so that what follows is set up beside them.
const BLOCKS: usize = 128;

/// `struct Exchange` of `kernels/exchange.cu`.
#[repr(C)]
struct Exchange {
    mine: Sums,
    rooms: [u64; RANKS],
    stop: u64,
    len: usize,
    rank: i32,
    ranks: i32,
    planes: i32,
    sent: i32,
}

// As the kernels assert it.
const _: () = assert!(size_of::<Exchange>() == 128);

#[allow(unsafe_code, reason = "kernel parameters are passed as bytes")]
mod layouts {
    // SAFETY: fields and order are those of the kernel's struct.
    unsafe impl super::Argument for super::Exchange {}
    // SAFETY: as above.
    unsafe impl super::Argument for super::Columns {}
}

/// `struct Columns` of `kernels/exchange.cu`: where what is gathered goes. Sums go nowhere.
#[repr(C)]
#[derive(Default)]
struct Columns {
    rows: i32,
    each: i32,
    total: i32,
}

impl Columns {
    /// `rows` rows of `total` columns, `each` of a rank.
    fn new(rows: usize, each: usize, total: usize) -> Self {
        let [rows, each, total] = [rows, each, total].map(|size| size as i32);
        Self { rows, each, total }
    }
}

/// The inboxes of all ranks of an epoch, which each of them reaches.
pub(super) struct Peers(Vec<Arc<Inbox>>);

/// One rank's end of a group of GPUs.
pub(super) struct PeerCollective {
    rank: usize,
    inboxes: Vec<Arc<Inbox>>,
    rooms: Rooms,
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
            rooms: Rooms::default(),
            host: meeting.host,
            deadline: meeting.deadline,
        }
    }

    /// Planes of a rank that products may send of `rows` rows, `len` values, if they may: as many on every rank.
    fn planes(&self, rows: usize, len: usize) -> Option<usize> {
        let ranks = self.inboxes.len();
        let fits = rows <= FEW_ROWS && CHUNKS * len <= ranks * ROOM;
        let sends = fits && self.inboxes.iter().all(|inbox| inbox.sends);
        sends.then_some(CHUNKS / ranks)
    }

    /// Where this rank's planes go, so many of `len` values, through room `room`.
    fn receivers(&self, planes: usize, len: usize, room: usize) -> Receivers {
        let first = (self.rank * planes * len * 4) as u64;
        Receivers::new(self.inboxes.iter().map(|inbox| inbox.room(room) + first))
    }

    /// What a kernel has to know to exchange `len` values through room `room`.
    fn exchange(&self, mine: Sums, len: usize, room: usize) -> Exchange {
        let mut exchange = Exchange {
            mine,
            rooms: [0; RANKS],
            stop: self.inboxes[self.rank].stop.address(),
            len,
            rank: self.rank as i32,
            ranks: self.inboxes.len() as i32,
            planes: 1,
            sent: 0,
        };
        for (to, inbox) in exchange.rooms.iter_mut().zip(&self.inboxes) {
            *to = inbox.room(room);
        }
        exchange
    }

    /// Exchanges values, of which `kind` makes what is at `out`.
    fn run(
        &self,
        cuda: &Cuda,
        kind: &str,
        exchange: &Exchange,
        out: u64,
        columns: &Columns,
    ) -> Result<()> {
        let (each, total) = (columns.each as usize, columns.total as usize);
        let even = [exchange.len, each, total, out as usize / 4];
        let (suffix, values) = match even.iter().all(|of| of.is_multiple_of(4)) {
            true => ("f32x4", 4),
            false => ("f32", 1),
        };
        let name = format!("exchange_{kind}_{}_{suffix}", exchange.ranks);
        let blocks = (exchange.len / values).div_ceil(THREADS).clamp(1, BLOCKS);
        let (grid, block) = ([blocks, 1, 1], [THREADS, 1]);
        cuda.launch(&name, grid, block, 0, true, &[exchange, &out, columns])
    }

    /// Makes `segments` of the sum over the planes of all ranks.
    fn add(&self, cuda: &Cuda, exchange: &Exchange, segments: &Segments) -> Result<()> {
        let name = format!("exchange_segments_{}", exchange.ranks * exchange.planes);
        let blocks = segments.units().div_ceil(THREADS / 32).min(BLOCKS);
        let (grid, block) = ([blocks, 1, 1], [THREADS, 1]);
        cuda.launch(&name, grid, block, 0, true, &[exchange, segments])
    }

    /// What a rank gives: planes that lie `len` values apart, if nothing else is to be added.
    fn given(cuda: &Cuda, mine: &Buffer, len: usize) -> Result<Sums> {
        mine.check("exchange")?;
        if Self::are_planes(mine, len) {
            return Ok(mine.sums());
        }
        cuda.settle(mine)?;
        Ok(Sums::of(mine.memory.address()))
    }

    fn are_planes(mine: &Buffer, len: usize) -> bool {
        let even = |pending: Pending| pending.count == 1 || pending.rows * pending.width == len;
        mine.pending
            .is_none_or(|pending| pending.bias == 0 && even(pending))
    }

    /// `part` of the values that a rank gives, from `first` on; if that is not all, they have been added up.
    fn piece(cuda: &Cuda, mine: &Buffer, len: usize, first: usize, part: usize) -> Result<Sums> {
        match part == len {
            true => Self::given(cuda, mine, len),
            false => Ok(Sums::of(mine.memory.address() + 4 * first as u64)),
        }
    }
}

impl Collective<Cuda> for PeerCollective {
    fn size(&self) -> usize {
        self.inboxes.len()
    }

    fn gather(&mut self, cuda: &Cuda, mine: &Buffer, len: usize, all: &mut Buffer) -> Result<()> {
        want("gather", "mine", mine, Element::F32, len)?;
        want("gather", "all", all, Element::F32, self.size() * len)?;
        let rooms = self.rooms.of_gather(all.memory.address())?;
        all.hold_values();
        if len > ROOM {
            cuda.settle(mine)?;
        }
        let columns = Columns::new(1, len, self.size() * len);
        for (piece, (first, part)) in pieces(len).enumerate() {
            let sent = Self::piece(cuda, mine, len, first, part)?;
            let exchange = self.exchange(sent, part, rooms[piece % 2]);
            let out = all.memory.address() + 4 * first as u64;
            self.run(cuda, "gather", &exchange, out, &columns)?;
        }
        Ok(())
    }

    fn gather_columns(
        &mut self,
        cuda: &Cuda,
        mine: &Buffer,
        widths: &[usize],
        rows: usize,
        all: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        let uneven = || mismatch("gather_columns", format!("parts of widths {widths:?}"));
        let (total, each) = column_parts(widths).ok_or_else(uneven)?;
        let len = rows * each;
        if len > ROOM || widths.len() != self.size() {
            self.gather(cuda, mine, len, all)?;
            return cuda.join_columns(all, widths, rows, out);
        }
        want("gather_columns", "mine", mine, Element::F32, len)?;
        want("gather_columns", "out", out, Element::F32, rows * total)?;
        let [room, _] = self.rooms.of_gather(all.memory.address())?;
        out.hold_values();
        let exchange = self.exchange(Self::given(cuda, mine, len)?, len, room);
        let columns = Columns::new(rows, each, total);
        self.run(cuda, "gather", &exchange, out.memory.address(), &columns)
    }

    fn sum(
        &mut self,
        cuda: &Cuda,
        mine: &Buffer,
        len: usize,
        _: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        want("sum", "mine", mine, Element::F32, len)?;
        want("sum", "out", out, Element::F32, len)?;
        out.hold_values();
        if len > ROOM {
            cuda.settle(mine)?;
        }
        for (first, part) in pieces(len) {
            let sent = Self::piece(cuda, mine, len, first, part)?;
            let room = self.rooms.of_sum();
            let exchange = self.exchange(sent, part, room);
            let out = out.memory.address() + 4 * first as u64;
            self.run(cuda, "sum", &exchange, out, &Columns::default())?;
        }
        Ok(())
    }

    fn sum_into(
        &mut self,
        cuda: &Cuda,
        mine: &mut Buffer,
        room: &mut SumRoom<Cuda>,
        mut to: Residual<'_, Cuda>,
    ) -> Result<()> {
        let len = to.rows.len() * to.width;
        want("sum", "mine", mine, Element::F32, len)?;
        if len <= ROOM
            && let Some(segments) = cuda.segments(&mut to)?
        {
            mine.check("sum")?;
            let sent = match Self::are_planes(mine, len) {
                true => mine.spend(to.width),
                false => Self::given(cuda, mine, len)?,
            };
            let room = self.rooms.of_sum();
            let exchange = Exchange {
                planes: self.planes(to.rows.len(), len).unwrap_or(1) as i32,
                ..self.exchange(sent, len, room)
            };
            return self.add(cuda, &exchange, &segments);
        }
        self.sum(cuda, mine, len, &mut room.all, &mut room.sum)?;
        cuda.add(Some(&mut room.sum), to)
    }

    fn sum_product_into(
        &mut self,
        cuda: &Cuda,
        product: RowProduct<'_, Cuda>,
        made: &mut Buffer,
        room: &mut SumRoom<Cuda>,
        mut to: Residual<'_, Cuda>,
    ) -> Result<()> {
        let RowProduct { x, weight, chunks } = product;
        let (rows, len) = (to.rows.len(), to.rows.len() * to.width);
        let is_sum = rows > 0 && weight.outs() == to.width && weight.is_tiled();
        if let Some(planes) = self.planes(rows, len)
            && is_sum
            && chunks.len() == planes
            && let Some(segments) = cuda.segments(&mut to)?
        {
            weight.check_chunks(chunks)?;
            // For steps of more rows. Reserved at once, since other ranks may wait later.
            made.room(cuda, planes * made.len * 4)?;
            let room = self.rooms.of_sum();
            cuda.send_product(x, rows, weight, self.receivers(planes, len, room))?;
            let exchange = Exchange {
                planes: planes as i32,
                sent: 1,
                ..self.exchange(Sums::NONE, len, room)
            };
            return self.add(cuda, &exchange, &segments);
        }
        cuda.linear_chunked(x, rows, weight, chunks, made)?;
        self.sum_into(cuda, made, room, to)
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
