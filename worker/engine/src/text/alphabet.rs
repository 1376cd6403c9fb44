//! GPT-2's printable alphabet: one character for each byte, so that byte-level tokens can be
//! written as strings.

/// The character that stands for `byte`.
pub(super) fn symbol(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        // The bytes that do not print are numbered upwards from U+0100, in byte order.
        0..=b' ' => shifted(u32::from(byte)),
        0x7F..=0xA0 => shifted(u32::from(byte) - 0x7F + 33),
        0xAD => shifted(67),
    }
}

/// The byte for which `symbol` stands.
pub(super) fn byte(symbol: char) -> Option<u8> {
    let code = u32::from(symbol);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes that a token string stands for; a string with a foreign character is literal.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    let mapped: Option<Vec<u8>> = token.chars().map(byte).collect();
    mapped.unwrap_or_else(|| token.as_bytes().to_vec())
}

fn shifted(index: u32) -> char {
    char::from_u32(0x100 + index).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_symbol() {
        let symbols: HashSet<char> = (0..=255).map(symbol).collect();
        assert_eq!(symbols.len(), 256);
        assert_eq!(symbols, tokenizers_alphabet());
        for value in 0..=255 {
            assert_eq!(byte(symbol(value)), Some(value));
        }
        assert_eq!((symbol(b' '), symbol(b'\n')), ('Ġ', 'Ċ'));
        assert_eq!(byte('€'), None);
    }

    fn tokenizers_alphabet() -> HashSet<char> {
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
            .into_iter()
            .collect()
    }
}
