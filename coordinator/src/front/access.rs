//! Who may call, and how much each may ask for.

mod key;
mod rate;

use std::{fmt, sync::Arc, time::Duration};

pub use key::{Held, Key, Record};
use xomni_engine::{Error, Result};

use super::failure::Failure;

/// What a key comes as in an `authorization` header.
const SCHEME: &str = "Bearer ";

/// The keys of a coordinator.
#[derive(Clone, Default)]
pub struct Access {
    /// Everyone may call if there are none.
    keys: Option<Arc<[Arc<Key>]>>,
}

impl Access {
    /// Everyone may call.
    pub fn open() -> Self {
        Self::default()
    }

    /// Those may call who have a key of which a line of `text`, which comes from `source`, is the
    /// record in JSON. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the line.
    pub fn read(source: &str, text: &str) -> Result<Self> {
        let mut keys: Vec<Arc<Key>> = vec![];
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refuse = |reason: String| Error::Unsupported {
                what: format!("{source} line {}", number + 1),
                reason,
            };
            let record: Record =
                serde_json::from_str(line).map_err(|error| refuse(error.to_string()))?;
            let key = Key::new(record).map_err(refuse)?;
            if keys.iter().any(|other| other.name() == key.name()) {
                return Err(refuse(format!("{:?} has a key already", key.name())));
            }
            keys.push(Arc::new(key));
        }
        Ok(Self {
            keys: Some(keys.into()),
        })
    }

    /// Whether callers need a key.
    pub fn is_closed(&self) -> bool {
        self.keys.is_some()
    }

    /// Lets a caller in by the value of its `authorization` header.
    ///
    /// # Errors
    /// [`Failure::Unauthenticated`] without a key that is known here.
    pub fn pass(&self, authorization: Option<&str>) -> Result<Pass, Failure> {
        let Some(keys) = &self.keys else {
            return Ok(Pass::default());
        };
        let given = authorization.ok_or(Failure::Unauthenticated(
            "an API key is needed: Authorization: Bearer KEY",
        ))?;
        let secret = given
            .get(SCHEME.len()..)
            .filter(|_| given[..SCHEME.len()].eq_ignore_ascii_case(SCHEME));
        let digest = key::digest(secret.unwrap_or_default().trim());
        // Every key is compared, whichever is the one.
        let mut found = None;
        for key in keys.iter() {
            if key.is(&digest) {
                found = Some(key.clone());
            }
        }
        match found {
            Some(key) => Ok(Pass { key: Some(key) }),
            None => Err(Failure::Unauthenticated("the API key is not known here")),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.as_ref().map(|keys| keys.len());
        f.debug_struct("Access").field("keys", &keys).finish()
    }
}

/// A caller that was let in.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    key: Option<Arc<Key>>,
}

impl Pass {
    /// The name of its key.
    pub fn name(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.name())
    }

    /// Whether it may see what operators see.
    ///
    /// # Errors
    /// [`Failure::Forbidden`] if not.
    pub fn operator(&self) -> Result<(), Failure> {
        match &self.key {
            Some(key) if !key.record().operator => {
                Err(Failure::Forbidden("the API key is not an operator's"))
            }
            _ => Ok(()),
        }
    }

    /// The priority that its request runs with if it asks for `asked`.
    pub fn priority(&self, asked: i32) -> i32 {
        let best = self.key.as_ref().and_then(|key| key.record().priority);
        best.map_or(asked, |best| asked.max(best))
    }

    /// Takes `images` pictures of those that it may have drawn at once. Where there are too many
    /// now, `retry_after` is when some should be done.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it may never have so many, [`Failure::Limited`] if not now.
    pub fn hold(&self, images: usize, retry_after: Duration) -> Result<Option<Held>, Failure> {
        let key = self.key.as_ref();
        key.map(|key| key.hold(images, retry_after)).transpose()
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`Failure::Limited`] if it has made too many.
    pub fn count(&self) -> Result<(), Failure> {
        self.key.as_ref().map_or(Ok(()), |key| key.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, more: &str) -> (String, String) {
        let (secret, record) = Record::generate(name.into()).expect("random");
        let json = serde_json::to_string(&record).expect("json");
        let json = json.replacen('{', &format!("{{{more}"), 1);
        (secret, json)
    }

    #[test]
    fn only_known_keys_are_let_in() {
        let (alice, first) = line("alice", "");
        let (bob, second) = line("bob", r#""operator": true,"#);
        let second = second.replace(r#""operator":false"#, r#""priority":3"#);
        let access = Access::read("test", &format!("# keys\n{first}\n\n{second}\n"));
        let access = access.expect("read");
        let pass = access
            .pass(Some(&format!("Bearer {alice}")))
            .expect("let in");
        assert_eq!(pass.name(), Some("alice"));
        assert!(matches!(pass.operator(), Err(Failure::Forbidden(_))));
        let pass = access.pass(Some(&format!("bearer {bob}"))).expect("let in");
        assert!(pass.operator().is_ok());
        assert_eq!((pass.priority(0), pass.priority(9)), (3, 9));
        let wrong = format!("Bearer {alice}x");
        for given in [
            None,
            Some(""),
            Some("Bearer "),
            Some("é"),
            Some(&*wrong),
            Some(&*alice),
        ] {
            let refused = access.pass(given);
            assert!(
                matches!(refused, Err(Failure::Unauthenticated(_))),
                "{given:?}"
            );
        }
    }

    #[test]
    fn without_keys_everyone_is_let_in() {
        let pass = Access::open().pass(None).expect("let in");
        assert!(pass.name().is_none() && pass.operator().is_ok() && pass.count().is_ok());
    }

    #[test]
    fn wrong_records_are_named() {
        let (_, good) = line("a", "");
        for (text, part) in [
            ("{", "line 1"),
            (r#"{"name": "a", "sha256": "00"}"#, "64 hexadecimal digits"),
            (&good.replace(r#""name":"a""#, r#""name":"""#), "name"),
            (
                &good.replace('{', r#"{"colour": 1,"#),
                "unknown field `colour`",
            ),
            (&format!("{good}\n{good}"), "line 2"),
            (
                &good.replace('{', r#"{"requests_per_minute": 0,"#),
                "requests_per_minute",
            ),
        ] {
            let error = Access::read("keys", text).expect_err("refused").to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
