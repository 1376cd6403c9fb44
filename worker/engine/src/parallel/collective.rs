//! What ranks exchange.

use std::{ops::Range, time::Duration};

use super::Abort;
use crate::{
    Error, Result,
    ops::{Device, Residual, StepRows, TransformerOps},
};

/// Where sums over ranks are made that are not added to a residual stream as they come.
pub struct SumRoom<D: Device> {
    /// The values of all ranks `[ranks, len]`.
    pub all: D::Buffer,
    /// Their sum `[len]`.
    pub sum: D::Buffer,
}

/// A product with a rank's chunks of columns: a part of a sum over ranks.
pub struct RowProduct<'a, D: Device> {
    /// `[rows, in]`.
    pub x: &'a D::Buffer,
    /// `[out, in]`, made for `chunks` ([`TransformerOps::matrix_in_chunks`]).
    pub weight: &'a D::Matrix,
    /// Column ranges.
    pub chunks: &'a [Range<usize>],
}

/// The exchange between the ranks of a group. All ranks make the same calls in the same order.
pub trait Collective<D: Device>: Send {
    /// Number of ranks.
    fn size(&self) -> usize;

    /// `all` `[ranks, len]` becomes the first `len` values of every rank's `mine`, in order of rank; -0 may become 0.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank is gone or overdue; the group is of no use then.
    fn gather(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        all: &mut D::Buffer,
    ) -> Result<()>;

    /// `out` `[rows, Σ widths]` becomes every rank's `mine` `[rows, width]`, side by side in order of rank
    /// ([`TransformerOps::concat_columns`], for which `all` has room for `[ranks, rows, widths[0]]`).
    ///
    /// # Errors
    /// As [`Collective::gather`].
    fn gather_columns(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        widths: &[usize],
        rows: usize,
        all: &mut D::Buffer,
        out: &mut D::Buffer,
    ) -> Result<()>
    where
        D: TransformerOps,
    {
        self.gather(device, mine, rows * widths[0], all)?;
        device.concat_columns(all, widths, rows, out)
    }

    /// `out` `[len]` becomes the sum of the first `len` values of every rank's `mine`, as a balanced binary tree over the ranks
    /// ([`TransformerOps::tree_sum`], for which `all` has room for `[ranks, len]`). A step has an even number of sums.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    fn sum(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        all: &mut D::Buffer,
        out: &mut D::Buffer,
    ) -> Result<()>
    where
        D: TransformerOps,
    {
        self.gather(device, mine, len, all)?;
        device.tree_sum(all, self.size(), len, out)
    }

    /// [`Collective::sum`], added to a residual stream ([`TransformerOps::residual`]): one of the even number of sums of a step.
    /// What becomes of `mine` is what becomes of a `delta` there.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    fn sum_into(
        &mut self,
        device: &D,
        mine: &mut D::Buffer,
        room: &mut SumRoom<D>,
        to: Residual<'_, D>,
    ) -> Result<()>
    where
        D: TransformerOps,
    {
        let len = to.rows.len() * to.width;
        self.sum(device, mine, len, &mut room.all, &mut room.sum)?;
        device.residual(Some(&mut room.sum), to)
    }

    /// [`Collective::sum_into`] of what every rank's product makes, or, of a rank without one, of its zeros: one of the even number
    /// of sums of a step. `made` has room for what this rank makes; its values are of no use then.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    fn sum_product_into(
        &mut self,
        device: &D,
        product: RowProduct<'_, D>,
        made: &mut D::Buffer,
        room: &mut SumRoom<D>,
        to: Residual<'_, D>,
    ) -> Result<()>
    where
        D: TransformerOps,
    {
        let RowProduct { x, weight, chunks } = product;
        device.linear_chunked(x, to.rows.len(), weight, chunks, made)?;
        self.sum_into(device, made, room, to)
    }

    /// Whether values meet on the devices, in the order of their other operations, so that a device
    /// can record a gather as one of them. The host then learns of a failure by
    /// [`Collective::wait`] alone.
    fn on_device(&self) -> bool {
        self.size() == 1
    }

    /// Waits until `ended` says that the operations after some gathers have ended.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if a rank is gone or overdue; what was gathered is of no use then.
    fn wait(&mut self, ended: &mut dyn FnMut() -> Result<bool>) -> Result<()> {
        // Values that meet on the host have done so when a gather returns.
        let _ = ended;
        Ok(())
    }

    /// Looks, without waiting, whether the other ranks are there.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if one is known to be gone.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends the exchange, so that nothing on the device waits for other ranks. What was recorded is
    /// to be forgotten before this is dropped.
    fn abort(&mut self) {}
}

/// Ranks of an epoch that have met over the host.
pub struct Meeting<D> {
    /// This rank.
    pub rank: usize,
    /// The exchange through the host.
    pub host: Box<dyn Collective<D>>,
    /// How long connecting, and how long a step, may take.
    pub deadline: Duration,
    /// Ends the epoch from another thread.
    pub abort: Abort,
}

/// An exchange with copies of oneself: for a first step that nobody reads.
pub(crate) struct Alone(pub usize);

impl<D: Device> Collective<D> for Alone {
    fn size(&self) -> usize {
        self.0
    }

    fn gather(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        all: &mut D::Buffer,
    ) -> Result<()> {
        device.write(&device.read(mine, len)?.repeat(self.0), all)
    }
}

/// What a rank has between epochs.
pub(crate) struct Unconnected(pub usize);

impl<D: Device> Collective<D> for Unconnected {
    fn size(&self) -> usize {
        self.0
    }

    fn gather(&mut self, _: &D, _: &D::Buffer, _: usize, _: &mut D::Buffer) -> Result<()> {
        Err(Error::GroupLost("not connected".into()))
    }
}
