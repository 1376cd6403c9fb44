//! Reading a zip archive of uncompressed entries in place, as `torch.save` writes it.
//!
//! Format: PKWARE's APPNOTE.TXT, sections 4.3 (records) and 4.5.3 (zip64).

use std::{collections::HashMap, ops::Range, path::Path};

use crate::{Error, Result};

const LOCAL_HEADER: u32 = 0x0403_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;

const END_LEN: usize = 22;
const END_64_LOCATOR_LEN: usize = 20;
const LOCAL_HEADER_LEN: usize = 30;
const MAX_COMMENT: usize = u16::MAX as usize;
const ENCRYPTED: u16 = 1;
const ZIP64_EXTRA: u16 = 1;

/// Where the data of every entry lies in the archive.
#[derive(Debug)]
pub(super) struct StoredArchive<'a> {
    entries: HashMap<&'a str, Range<usize>>,
}

impl<'a> StoredArchive<'a> {
    /// Reads the central directory of `bytes`, the contents of `file`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if `bytes` is no zip archive, or an entry is compressed, encrypted,
    /// out of bounds or present twice.
    pub fn open(bytes: &'a [u8], file: &Path) -> Result<Self> {
        let refuse = |item: &str, reason: &str| Error::checkpoint(file, item, reason);
        let (count, mut directory) = find_directory(bytes).ok_or_else(|| {
            let reason = "not a complete zip archive (the legacy format of torch.save is not read)";
            refuse("zip directory", reason)
        })?;
        let mut entries = HashMap::new();
        for _ in 0..count {
            let entry = CentralHeader::read(&mut directory)
                .ok_or_else(|| refuse("zip directory", "truncated or damaged"))?;
            let name = entry.name;
            if entry.flags & ENCRYPTED != 0 {
                return Err(refuse(name, "must not be encrypted"));
            }
            if entry.method != 0 || entry.compressed != entry.size {
                return Err(refuse(name, "must be stored without compression"));
            }
            let data = entry
                .data(bytes)
                .ok_or_else(|| refuse(name, "the entry's data is outside of the archive"))?;
            if entries.insert(name, data).is_some() {
                return Err(refuse(name, "the archive has two entries of this name"));
            }
        }
        Ok(Self { entries })
    }

    /// Where the data of the entry `name` lies.
    pub fn get(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// The names of all entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().copied()
    }
}

/// The number of entries and the central directory.
fn find_directory(bytes: &[u8]) -> Option<(u64, Reader<'_>)> {
    let last = bytes.len().checked_sub(END_LEN)?;
    let end = (last.saturating_sub(MAX_COMMENT)..=last)
        .rev()
        .find(|&at| is_end(bytes, at))?;
    let mut record = Reader(bytes.get(end + 10..)?);
    let mut count = u64::from(record.u16()?);
    let mut length = u64::from(record.u32()?);
    let mut offset = u64::from(record.u32()?);
    if count == u64::from(u16::MAX) || [length, offset].contains(&u64::from(u32::MAX)) {
        let mut locator = Reader(bytes.get(end.checked_sub(END_64_LOCATOR_LEN)?..)?);
        if locator.u32()? == END_64_LOCATOR {
            locator.skip(4)?;
            let at = usize::try_from(locator.u64()?).ok()?;
            let mut record = Reader(bytes.get(at..)?);
            if record.u32()? != END_64 {
                return None;
            }
            record.skip(28)?;
            (count, length, offset) = (record.u64()?, record.u64()?, record.u64()?);
        }
    }
    let start = usize::try_from(offset).ok()?;
    let stop = start.checked_add(usize::try_from(length).ok()?)?;
    Some((count, Reader(bytes.get(start..stop)?)))
}

/// Whether the end record starts at `at`: its comment reaches to the end of the file.
fn is_end(bytes: &[u8], at: usize) -> bool {
    let signature = Reader(&bytes[at..]).u32();
    let comment = Reader(&bytes[at + END_LEN - 2..]).u16();
    signature == Some(END) && comment.map(usize::from) == Some(bytes.len() - at - END_LEN)
}

/// What the central directory says about an entry.
struct CentralHeader<'a> {
    name: &'a str,
    flags: u16,
    method: u16,
    compressed: u64,
    size: u64,
    local_header: u64,
}

impl<'a> CentralHeader<'a> {
    fn read(directory: &mut Reader<'a>) -> Option<Self> {
        if directory.u32()? != CENTRAL_HEADER {
            return None;
        }
        directory.skip(4)?;
        let flags = directory.u16()?;
        let method = directory.u16()?;
        directory.skip(8)?;
        let compressed = directory.u32()?;
        let size = directory.u32()?;
        let name = directory.u16()?;
        let extra = directory.u16()?;
        let comment = directory.u16()?;
        directory.skip(8)?;
        let local_header = directory.u32()?;
        let name = std::str::from_utf8(directory.take(name.into())?).ok()?;
        let mut wide = zip64_extra(directory.take(extra.into())?);
        directory.skip(comment.into())?;
        // The wide values follow each other in this order, those that do not fit only.
        let mut widen = |narrow: u32| match narrow {
            u32::MAX => wide.u64(),
            narrow => Some(narrow.into()),
        };
        Some(Self {
            name,
            flags,
            method,
            size: widen(size)?,
            compressed: widen(compressed)?,
            local_header: widen(local_header)?,
        })
    }

    /// Where the data lies; known only from the local header, whose extra fields may differ.
    fn data(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let header = usize::try_from(self.local_header).ok()?;
        let mut local = Reader(bytes.get(header..)?);
        if local.u32()? != LOCAL_HEADER {
            return None;
        }
        local.skip(22)?;
        let variable = usize::from(local.u16()?) + usize::from(local.u16()?);
        let start = header.checked_add(LOCAL_HEADER_LEN + variable)?;
        let stop = start.checked_add(usize::try_from(self.size).ok()?)?;
        (stop <= bytes.len()).then_some(start..stop)
    }
}

/// The contents of the zip64 field among the extra fields; empty if there is none.
fn zip64_extra(extra: &[u8]) -> Reader<'_> {
    let mut fields = Reader(extra);
    while let (Some(id), Some(length)) = (fields.u16(), fields.u16()) {
        match fields.take(length.into()) {
            Some(field) if id == ZIP64_EXTRA => return Reader(field),
            Some(_) => {}
            None => break,
        }
    }
    Reader(&[])
}

/// Little-endian numbers off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
