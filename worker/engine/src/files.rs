//! Reading text files of a checkpoint without trusting their size.

use std::{fs::File, io, io::Read, path::Path};

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The text of `path`, which must be UTF-8 and at most `limit` bytes long.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        let reason = format!("larger than {limit} bytes");
        return Err(Error::checkpoint(path, "file size", reason));
    }
    String::from_utf8(bytes).map_err(|e| Error::checkpoint(path, "encoding", e.to_string()))
}

/// The JSON of `path`, which may be at most `limit` bytes long.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let text = read_text(path, limit)?;
    serde_json::from_str(&text).map_err(|e| Error::checkpoint(path, "content", e.to_string()))
}

/// `None` in place of an error that says that the file does not exist.
pub(crate) fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
