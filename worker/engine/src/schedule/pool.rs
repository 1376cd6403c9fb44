//! A fixed set of numbered things (K/V blocks, sequence slots), lent out and returned on drop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The numbers `0..size`, each either free or in exactly one [`Lease`].
#[derive(Debug, Clone)]
pub struct Pool {
    size: usize,
    free: Arc<Mutex<Vec<u32>>>,
}

/// Some numbers of a pool; they are free again when this is dropped.
#[derive(Debug)]
pub struct Lease {
    ids: Vec<u32>,
    free: Arc<Mutex<Vec<u32>>>,
}

impl Pool {
    /// All of `0..size` free.
    pub fn new(size: usize) -> Self {
        let free = (0..size as u32).rev().collect();
        Self {
            size,
            free: Arc::new(Mutex::new(free)),
        }
    }

    /// How many numbers there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many are free.
    pub fn available(&self) -> usize {
        lock(&self.free).len()
    }

    /// `count` numbers, or `None` if fewer are free.
    pub fn reserve(&self, count: usize) -> Option<Lease> {
        let mut free = lock(&self.free);
        let rest = free.len().checked_sub(count)?;
        let ids = free.split_off(rest);
        Some(Lease {
            ids,
            free: self.free.clone(),
        })
    }
}

impl Lease {
    /// The lent numbers.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.free).append(&mut self.ids);
    }
}

/// A list of free numbers is valid whatever a panicking holder did.
fn lock(free: &Mutex<Vec<u32>>) -> MutexGuard<'_, Vec<u32>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}
