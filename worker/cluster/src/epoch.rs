//! Taking the next epoch of a group.

use std::fmt::Write;

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};

use crate::backoff::Backoff;
use crate::error::ClusterError;
use crate::etcd::Members;
use crate::record::EpochRecord;

/// Tries that others may win before this one gives up.
const ATTEMPTS: u32 = 32;
/// Tries that etcd may leave unanswered.
const FAILURES: u32 = 4;
const SECRET_BYTES: usize = 32;

/// 32 random bytes, in hexadecimal.
///
/// # Errors
/// [`ClusterError::Random`]
pub(crate) fn secret() -> Result<String, ClusterError> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(ClusterError::Random)?;
    Ok(bytes
        .iter()
        .fold(String::with_capacity(2 * SECRET_BYTES), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

/// Writes `proposal` under the number after the one that stands there, if nobody else does so
/// first. Its secret tells it from all others, so that a try whose answer was lost is recognised.
///
/// # Errors
/// As [`crate::Cluster::next_epoch`].
pub(crate) async fn take_next(
    members: &Members,
    group: &str,
    key: &str,
    proposal: EpochRecord,
) -> Result<EpochRecord, ClusterError> {
    let mut backoff = Backoff::new();
    let mut failures = 0;
    for _ in 0..ATTEMPTS {
        match try_next(members, key, &proposal).await {
            Ok(Some(taken)) => return Ok(taken),
            Ok(None) => {}
            Err(error) if error.retryable() && failures < FAILURES => {
                failures += 1;
                backoff.wait().await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(ClusterError::Contended {
        group: group.into(),
        attempts: ATTEMPTS,
    })
}

/// One try; `None` if another was first.
async fn try_next(
    members: &Members,
    key: &str,
    proposal: &EpochRecord,
) -> Result<Option<EpochRecord>, ClusterError> {
    let answer = members
        .call(|mut client| async move { client.get(key, None).await })
        .await?;
    let current = answer.kvs().first();
    let (number, revision) = match current {
        // No key has the revision 0: the comparison is that there is none.
        None => (0, 0),
        Some(entry) => {
            let standing = epoch_of(key, entry)?;
            if standing.secret == proposal.secret {
                return Ok(Some(standing));
            }
            (standing.number, entry.mod_revision())
        }
    };
    let unreadable = |reason: String| ClusterError::Record {
        key: key.into(),
        reason,
    };
    let number = number
        .checked_add(1)
        .ok_or_else(|| unreadable("no number is left".into()))?;
    let next = EpochRecord {
        number,
        ..proposal.clone()
    };
    let value = serde_json::to_vec(&next).map_err(|error| unreadable(error.to_string()))?;
    let transaction = Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
        .and_then([TxnOp::put(key, value, None)]);
    let answer = members
        .call(|mut client| async move { client.txn(transaction).await })
        .await?;
    Ok(answer.succeeded().then_some(next))
}

fn epoch_of(key: &str, entry: &KeyValue) -> Result<EpochRecord, ClusterError> {
    serde_json::from_slice(entry.value()).map_err(|error| ClusterError::Record {
        key: key.into(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_differ() {
        let (one, other) = (secret().expect("random"), secret().expect("random"));
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }
}
