//! What ranks exchange.

use crate::{Result, ops::Device};

/// The exchange between the ranks of a group. All ranks make the same calls in the same order.
pub trait Collective<D: Device>: Send {
    /// Number of ranks.
    fn size(&self) -> usize;

    /// `parts[r]` becomes the first `len` values of rank `r`'s `mine`.
    ///
    /// # Errors
    /// [`crate::Error::GroupLost`] if a rank is gone or overdue; the group is of no use then.
    fn all_gather(
        &mut self,
        device: &D,
        mine: &D::Buffer,
        len: usize,
        parts: &mut [D::Buffer],
    ) -> Result<()>;
}
