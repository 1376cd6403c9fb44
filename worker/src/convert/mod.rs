//! The border between wire and domain: messages are validated into the types of [`crate::api`] and
//! written from them, and errors travel as statuses. Generated types go no further than here and
//! the services and clients that call this.

pub mod backbone;
pub mod decoder;
mod identity;
pub mod status;
#[cfg(test)]
mod tests;

pub use identity::{Identity, Standing};
pub use status::Refusal;
use xomni_engine::{Error, Result};

/// Longest name of a request, in bytes.
pub const MAX_REQUEST_ID: usize = 128;
/// Largest message that is read, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// A request's name is written into logs: short and printable.
///
/// # Errors
/// [`Error::BadInput`] for any other.
pub fn request_id(id: String) -> Result<String> {
    if id.is_empty() || id.len() > MAX_REQUEST_ID || !id.bytes().all(|byte| byte.is_ascii_graphic())
    {
        let limit = format!("must be 1 to {MAX_REQUEST_ID} printable ASCII characters");
        return Err(Error::bad_input("request_id", limit, format!("{id:?}")));
    }
    Ok(id)
}

/// A number of things, as the wire counts them.
fn wire_size(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
