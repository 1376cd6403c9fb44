//! SentencePiece's precompiled character map.
//!
//! The `tokenizers` crate walks its double-array trie without bounds checks of its own, so the
//! trie is checked here, once, for every byte that a text could hold.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use tokenizers::normalizers::precompiled::Precompiled;

use crate::{Error, Result};

const ITEM: &str = "precompiled_charsmap";

/// The normaliser of a base64 character map, safe to apply to any text.
pub(super) fn parse(file: &Path, base64: &str) -> Result<Precompiled> {
    let error = |reason: String| Error::checkpoint(file, ITEM, reason);
    let bytes = STANDARD
        .decode(base64)
        .map_err(|e| error(format!("not base64: {e}")))?;
    check(&bytes).ok_or_else(|| error("a character map that leads outside itself".to_owned()))?;
    Precompiled::from(&bytes).map_err(|e| error(e.to_string()))
}

/// The layout is `[u32: bytes of the trie][trie of u32 units][NUL-terminated replacements]`; a unit
/// holds label, offset to its children and whether the first child is a replacement's position.
fn check(bytes: &[u8]) -> Option<()> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()? / 4 * 4;
    let (trie, replacements) = rest.split_at_checked(size)?;
    let replacements = std::str::from_utf8(replacements).ok()?;
    let units: Vec<u32> = trie
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]))
        .collect();
    units.first()?;
    for (place, &unit) in units.iter().enumerate() {
        // A position is never a node: its top bit keeps it from matching a label.
        if unit >> 31 == 1 && place != 0 {
            continue;
        }
        let unit = usize::try_from(unit).ok()?;
        let children = place ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6));
        if children | 0xFF >= units.len() {
            return None;
        }
        if (unit >> 8) & 1 == 1 {
            let position = usize::try_from(units[children] & (u32::MAX >> 1)).ok()?;
            replacements.get(position..)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charsmap(units: &[u32], replacements: &str) -> Vec<u8> {
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(replacements.as_bytes());
        bytes
    }

    #[test]
    fn a_map_that_leads_outside_itself_is_refused() {
        let good = vec![0u32; 256];
        assert!(check(&charsmap(&good, "a\0")).is_some());
        assert!(check(&charsmap(&[], "")).is_none());
        assert!(check(&charsmap(&good[..255], "")).is_none());
        assert!(check(&u32::MAX.to_le_bytes()).is_none());

        let mut far = good.clone();
        far[5] = 1 << 20;
        assert!(check(&charsmap(&far, "a\0")).is_none());

        let mut beyond_text = good;
        beyond_text[0] = 1 << 8 | 1 << 10;
        beyond_text[1] = 1 << 31 | 7;
        assert!(check(&charsmap(&beyond_text, "a\0")).is_none());
    }
}
