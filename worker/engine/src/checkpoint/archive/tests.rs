use proptest::prelude::*;

use super::*;
use crate::checkpoint::testing::{golden, refusal, zip};

fn open(bytes: &[u8]) -> Result<StoredArchive<'_>> {
    StoredArchive::open(bytes, Path::new("a.pt"))
}

#[test]
fn entries_are_found_in_both_formats() {
    for wide in [false, true] {
        let bytes = zip(&[("a", b"first"), ("b/c", b""), ("d", b"third")], wide);
        let archive = open(&bytes).unwrap();
        assert_eq!(archive.names().count(), 3);
        for (name, data) in [("a", "first"), ("b/c", ""), ("d", "third")] {
            assert_eq!(&bytes[archive.get(name).unwrap()], data.as_bytes());
        }
        assert_eq!(archive.get("b"), None);
    }
}

#[test]
fn a_comment_may_follow() {
    let mut bytes = zip(&[("a", b"data")], false);
    let length = bytes.len();
    bytes[length - 2] = 3;
    assert!(open(&bytes).is_err());
    bytes.extend(b"abc");
    assert!(open(&bytes).is_ok());
}

#[test]
fn unsupported_entries_are_named() {
    let bytes = zip(&[("weights", b"data")], false);
    let header = bytes.windows(4).position(|at| at == b"PK\x01\x02").unwrap();
    let changed = |offset: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[header + offset] = value;
        let (_, item, reason) = refusal(open(&bytes));
        assert_eq!(item, "weights");
        reason
    };
    assert!(changed(8, 1).contains("encrypted"));
    assert!(changed(10, 8).contains("compression"));
    assert!(changed(20, 5).contains("compression"));
    assert!(changed(42, 1).contains("outside"));
    assert!(changed(45, 1).contains("outside"));

    let twice = zip(&[("weights", b"1"), ("weights", b"2")], false);
    assert!(refusal(open(&twice)).2.contains("two entries"));
}

#[test]
fn declared_sizes_are_not_believed() {
    let bytes = zip(&[("weights", b"data")], true);
    let field = bytes.windows(4).position(|at| at == [1, 0, 24, 0]).unwrap() + 4;
    for value in [5_u64, 1 << 40, u64::MAX] {
        let mut bytes = bytes.clone();
        bytes[field..][..8].copy_from_slice(&value.to_le_bytes());
        bytes[field + 8..][..8].copy_from_slice(&value.to_le_bytes());
        match value {
            // The next bytes are the directory's: inside of the file, so no harm is done.
            5 => assert!(open(&bytes).is_ok()),
            _ => assert!(refusal(open(&bytes)).2.contains("outside")),
        }
    }
    let record = bytes.windows(4).position(|at| at == b"PK\x06\x06").unwrap();
    for offset in [32, 40, 48] {
        let mut bytes = bytes.clone();
        bytes[record + offset..][..8].copy_from_slice(&(u64::MAX - 3).to_le_bytes());
        assert_eq!(refusal(open(&bytes)).1, "zip directory");
    }
}

#[test]
fn no_truncation_panics() {
    let bytes = std::fs::read(golden("x-omni/vq_projector.pt")).unwrap();
    let tail = bytes.len() - 6000;
    for length in (0..100).chain(tail..bytes.len()) {
        assert_eq!(refusal(open(&bytes[..length])).0, "a.pt");
    }
    assert!(open(&bytes).is_ok());
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(&bytes);
    }

    #[test]
    fn flipped_bits_do_not_panic(
        wide: bool,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4),
    ) {
        let mut bytes = zip(&[("a", b"first"), ("b", b"second")], wide);
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1u8 << bit;
        }
        if let Ok(archive) = open(&bytes) {
            for name in archive.names() {
                prop_assert!(archive.get(name).unwrap().end <= bytes.len());
            }
        }
    }
}
