//! An authority for a test, and certificates that it vouches for.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Names that every certificate is for: this machine's.
const HOSTS: [&str; 2] = ["127.0.0.1", "localhost"];

/// An authority nobody else knows. Its files go when it is dropped.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// The PEM files of a certificate of this machine, for servers and clients alike.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    #[allow(clippy::new_without_default, reason = "it makes files and keys")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder for certificates");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "authority of a test";
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let authority = Self {
            folder,
            issuer: Issuer::new(params, key),
        };
        fs::write(authority.file(), certificate.pem()).expect("written");
        authority
    }

    /// The PEM file of its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// A certificate of this machine, in files of this name.
    pub fn certificate(&self, name: &str) -> Certificate {
        let mut params = CertificateParams::new(HOSTS.map(str::to_owned)).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}.pem"));
        let files = Certificate {
            certificate: path("certificate"),
            key: path("key"),
        };
        fs::write(&files.certificate, certificate.pem()).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}
