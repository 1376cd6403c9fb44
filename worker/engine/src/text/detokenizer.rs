//! Text from tokens as they are drawn.

use super::Tokenizer;

/// Turns tokens into text as they come: never half a character, and in all the text that
/// [`Tokenizer::decode`] gives for the tokens at once, special ones skipped.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    /// The beginning of a character whose other bytes are still to come: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Appends to `text` what is certain once `token` follows those before it.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) {
        self.append(tokenizer.token_bytes(token, true), text);
    }

    /// Ends the text: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !std::mem::take(&mut self.pending).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn append(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut certain = 0;
        for chunk in self.pending.utf8_chunks() {
            let invalid = chunk.invalid();
            text.push_str(chunk.valid());
            certain += chunk.valid().len();
            let last = certain + invalid.len() == self.pending.len();
            if invalid.is_empty() || (last && may_be_completed(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            certain += invalid.len();
        }
        self.pending.drain(..certain);
    }
}

/// Whether more bytes can make a character of these.
fn may_be_completed(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The pieces of text that pieces of bytes give, the end's included.
    fn pieces(bytes: &[Vec<u8>]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut pieces: Vec<String> = bytes
            .iter()
            .map(|bytes| {
                let mut text = String::new();
                detokenizer.append(bytes, &mut text);
                assert!(detokenizer.pending.len() < 4, "at most a character's bytes");
                text
            })
            .collect();
        let mut end = String::new();
        detokenizer.finish(&mut end);
        pieces.push(end);
        pieces
    }

    #[test]
    fn characters_come_whole() {
        let bytes: Vec<Vec<u8>> = "é€😀".bytes().map(|byte| vec![byte]).collect();
        let expected = ["", "é", "", "", "€", "", "", "", "😀", ""];
        assert_eq!(pieces(&bytes), expected);
    }

    #[test]
    fn what_can_be_no_character_is_replaced_at_once() {
        let bytes = [
            vec![0xf0, 0x9f],
            b"a".to_vec(),
            vec![0xff],
            vec![0xe2, 0x82],
        ];
        assert_eq!(
            pieces(&bytes),
            ["", "\u{fffd}a", "\u{fffd}", "", "\u{fffd}"]
        );
    }

    /// Bytes of characters of every length, and bytes of none, cut anywhere.
    fn any_pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let text = any::<String>().prop_map(String::into_bytes);
        let noise = vec(any::<u8>(), 0..6);
        let wide = "[é€😀\u{10ffff}一]{0,4}".prop_map(String::into_bytes);
        let runs = vec(prop_oneof![text, noise, wide], 0..8).prop_map(|runs| runs.concat());
        (runs, vec(any::<prop::sample::Index>(), 0..12)).prop_map(|(bytes, cuts)| {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let ends = cuts.iter().scan(0, |from, &to| {
                Some(bytes[std::mem::replace(from, to)..to].to_vec())
            });
            ends.collect()
        })
    }

    proptest! {
        /// However bytes are cut, the pieces together are the lossy decoding of all of them, and a
        /// piece ends within a character only where its bytes can be none.
        #[test]
        fn pieces_are_in_all_the_whole(bytes in any_pieces()) {
            let whole = bytes.concat();
            prop_assert_eq!(pieces(&bytes).concat(), String::from_utf8_lossy(&whole));
        }

        /// Of valid text no piece holds a replacement that the text does not.
        #[test]
        fn valid_text_is_never_broken(text: String, size in 1usize..5) {
            let bytes: Vec<_> = text.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
            let pieces = pieces(&bytes);
            let replaced = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
            prop_assert_eq!(pieces.iter().map(|piece| replaced(piece)).sum::<usize>(), replaced(&text));
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
