//! PEM files, checked when they are read so that an error names the file and not a call.

use std::path::Path;

use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use xomni_engine::{Error, Result};

/// The text of a file with at least one certificate.
///
/// # Errors
/// [`Error::Io`] or [`Error::Unsupported`], naming the option and the file.
pub fn certificates(option: &str, path: &Path) -> Result<Vec<u8>> {
    let text = read(path)?;
    parse_certificates(option, path, &text)?;
    Ok(text)
}

/// The certificates of a file, at least one.
///
/// # Errors
/// As [`certificates`].
pub fn parse_certificates(
    option: &str,
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>> {
    let parsed: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    match parsed {
        Ok(certificates) if certificates.is_empty() => {
            Err(refused(option, path, "has no certificate"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(refused(option, path, error)),
    }
}

/// The text of a file with a private key.
///
/// # Errors
/// As [`certificates`].
pub fn key(option: &str, path: &Path) -> Result<Vec<u8>> {
    let text = read(path)?;
    parse_key(option, path, &text)?;
    Ok(text)
}

/// The private key of a file.
///
/// # Errors
/// As [`certificates`].
pub fn parse_key(option: &str, path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| refused(option, path, error))
}

/// # Errors
/// [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

/// The error of a file that does not do.
pub fn refused(option: &str, path: &Path, reason: impl ToString) -> Error {
    Error::Unsupported {
        what: format!("{option} {}", path.display()),
        reason: reason.to_string(),
    }
}
