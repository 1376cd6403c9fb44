//! Pictures as data URLs.

use std::fmt;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use serde::{
    Deserializer,
    de::{self, Visitor},
};

use crate::request::MAX_PICTURE_BYTES;

/// Base64 as clients write it: with its padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const KINDS: [&str; 3] = ["image/png", "image/jpeg", "image/jpg"];

/// The bytes of `data:image/png;base64,…`; a URL of any other kind is refused by name.
fn decode(url: &str) -> Result<Bytes, String> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err("must be a data URL, as in data:image/png;base64,…".into());
    };
    if !scheme.eq_ignore_ascii_case("data") {
        return Err(format!(
            "must be a data URL or an uploaded file: {scheme} URLs are not fetched"
        ));
    }
    let (head, data) = rest
        .split_once(',')
        .ok_or("must have a comma before its data")?;
    let mut head = head.split(';');
    let kind = head.next().unwrap_or_default().trim();
    if !KINDS.iter().any(|known| known.eq_ignore_ascii_case(kind)) {
        return Err(format!("must be image/png or image/jpeg, got {kind:?}"));
    }
    if !head.any(|option| option.trim().eq_ignore_ascii_case("base64")) {
        return Err("must be base64".into());
    }
    let length = data.trim_end_matches('=').len() as u64 * 3 / 4;
    if length > MAX_PICTURE_BYTES as u64 {
        return Err(format!(
            "must be at most {MAX_PICTURE_BYTES} bytes, got {length}"
        ));
    }
    let bytes = BASE64
        .decode(data)
        .map_err(|error| format!("must be base64: {error}"))?;
    Ok(bytes.into())
}

/// Reads the bytes of a data URL.
///
/// # Errors
/// For any other URL, another kind of file, and one that is too large.
pub fn picture<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    struct Url;

    impl Visitor<'_> for Url {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a data URL")
        }

        fn visit_str<E: de::Error>(self, url: &str) -> Result<Bytes, E> {
            decode(url).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Url)
}

/// Reads a data URL where there is one.
///
/// # Errors
/// As [`picture`].
pub fn optional_picture<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Bytes>, D::Error> {
    picture(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_read_as_clients_write_them() {
        for url in [
            "data:image/png;base64,aGk=",
            "data:image/png;base64,aGk",
            "DATA:IMAGE/JPEG;charset=x;BASE64,aGk=",
            "data:image/jpg;base64,aGk=",
        ] {
            assert_eq!(decode(url).as_deref(), Ok(&b"hi"[..]), "{url}");
        }
    }

    #[test]
    fn other_urls_are_refused_by_name() {
        let large = format!("data:image/png;base64,{}", "A".repeat(28 << 20));
        for (url, reason) in [
            ("https://example.com/a.png", "https URLs are not fetched"),
            ("http://example.com/a.png", "http URLs are not fetched"),
            ("file:///etc/passwd", "file URLs are not fetched"),
            ("a.png", "must be a data URL"),
            ("data:image/png;base64", "comma"),
            ("data:image/gif;base64,aGk=", "got \"image/gif\""),
            ("data:text/html;base64,aGk=", "got \"text/html\""),
            ("data:,hi", "got \"\""),
            ("data:image/png,hi", "must be base64"),
            ("data:image/png;base64,a*==", "must be base64: "),
            (&large, "at most 20971520 bytes, got 22020096"),
        ] {
            let refused = decode(url).expect_err(reason);
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
