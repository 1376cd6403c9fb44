//! How two ranks show each other that they belong to the same epoch.
//!
//! ```text
//! higher → lower   magic, version, epoch, size of the group, rank of each end, nonce
//! lower → higher   nonce, proof("lower", hello, nonce)
//! higher → lower   proof("higher", hello, nonce)
//! ```
//!
//! A proof is the HMAC-SHA256, keyed by the epoch's secret, of all that came before it.

use std::{sync::Arc, time::Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Link, NetConfig};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"xomninet";
/// Version of the handshake and of the frames; there is no older one to work with.
const VERSION: u32 = 1;
const NONCE: usize = 16;
const PROOF: usize = 32;
/// Magic, version, epoch, size, two ranks.
const CLAIM: usize = 8 + 4 + 8 + 4 + 4 + 4;
const RANK: std::ops::Range<usize> = 24..28;

/// The two ends of a connection in their epoch.
pub(super) struct Identity {
    claim: [u8; CLAIM],
    secret: Arc<[u8]>,
}

impl Identity {
    /// Rank `higher`, which connects to `lower`.
    pub fn new(config: &NetConfig, higher: usize, lower: usize) -> Self {
        let mut claim = [0; CLAIM];
        claim[..8].copy_from_slice(&MAGIC);
        claim[8..12].copy_from_slice(&VERSION.to_le_bytes());
        claim[12..20].copy_from_slice(&config.epoch.to_le_bytes());
        claim[20..24].copy_from_slice(&(config.addresses.len() as u32).to_le_bytes());
        claim[RANK].copy_from_slice(&(higher as u32).to_le_bytes());
        claim[28..].copy_from_slice(&(lower as u32).to_le_bytes());
        Self {
            claim,
            secret: config.secret.clone(),
        }
    }

    /// The higher rank's side.
    ///
    /// # Errors
    /// [`Error::GroupLost`] if the other end refuses this one or cannot prove itself.
    pub fn introduce(&self, link: &mut Link, overdue: Instant) -> Result<()> {
        let mine = nonce()?;
        link.write(&[&self.claim[..], &mine].concat(), overdue)?;
        let (mut theirs, mut proof) = ([0; NONCE], [0; PROOF]);
        link.read(&mut theirs, overdue)?;
        link.read(&mut proof, overdue)?;
        self.verify(b"lower", &mine, &theirs, &proof)?;
        link.write(&self.proof(b"higher", &mine, &theirs)?, overdue)
    }

    fn mac(&self, side: &[u8], higher: &[u8], lower: &[u8]) -> Result<Hmac<Sha256>> {
        let mut mac = Hmac::new_from_slice(&self.secret).map_err(|_| refused("no secret"))?;
        for part in [side, &self.claim, higher, lower] {
            mac.update(part);
        }
        Ok(mac)
    }

    fn proof(&self, side: &[u8], higher: &[u8], lower: &[u8]) -> Result<[u8; PROOF]> {
        Ok(self
            .mac(side, higher, lower)?
            .finalize()
            .into_bytes()
            .into())
    }

    fn verify(&self, side: &[u8], higher: &[u8], lower: &[u8], proof: &[u8]) -> Result<()> {
        self.mac(side, higher, lower)?
            .verify_slice(proof)
            .map_err(|_| refused("the other end does not know the epoch's secret"))
    }
}

/// The lower rank's side; returns the rank that has connected.
///
/// # Errors
/// [`Error::GroupLost`] if the other end is of another protocol, epoch or group, or cannot prove
/// itself; only this connection is of no use then.
pub(super) fn welcome(config: &NetConfig, link: &mut Link, overdue: Instant) -> Result<usize> {
    let (mut claim, mut theirs) = ([0; CLAIM], [0; NONCE]);
    link.read(&mut claim, overdue)?;
    let mut rank = [0; 4];
    rank.copy_from_slice(&claim[RANK]);
    let rank = u32::from_le_bytes(rank) as usize;
    if !(config.rank + 1..config.addresses.len()).contains(&rank) {
        return Err(refused("no rank above this one"));
    }
    let expected = Identity::new(config, rank, config.rank);
    if claim != expected.claim {
        return Err(refused("another protocol, epoch or group"));
    }
    link.read(&mut theirs, overdue)?;
    let mine = nonce()?;
    let proof = expected.proof(b"lower", &theirs, &mine)?;
    link.write(&[&mine[..], &proof].concat(), overdue)?;
    let mut proof = [0; PROOF];
    link.read(&mut proof, overdue)?;
    expected.verify(b"higher", &theirs, &mine, &proof)?;
    Ok(rank)
}

fn nonce() -> Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)
        .map_err(|error| Error::GroupLost(format!("no random numbers: {error}")))?;
    Ok(nonce)
}

fn refused(reason: &str) -> Error {
    Error::GroupLost(format!("handshake: {reason}"))
}
