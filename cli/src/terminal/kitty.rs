//! kitty's graphics protocol.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Most base64 characters in one escape code.
const CHUNK: usize = 4096;

/// What shows a PNG over so many columns and rows from the cursor, without an answer.
pub fn codes(png: &[u8], (columns, rows): (u32, u32)) -> String {
    let mut rest = STANDARD.encode(png);
    let mut codes = String::with_capacity(rest.len() + rest.len() / 256 + 64);
    let mut keys = format!("a=T,f=100,q=2,c={columns},r={rows},");
    while !rest.is_empty() {
        let next = rest.split_off(rest.len().min(CHUNK));
        let more = u8::from(!next.is_empty());
        codes.push_str(&format!("\x1b_G{keys}m={more};{rest}\x1b\\"));
        (keys, rest) = (String::new(), next);
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pictures_come_in_chunks() {
        let png: Vec<u8> = (0..7000).map(|i| (i % 251) as u8).collect();
        let codes = codes(&png, (64, 32));
        let parts: Vec<&str> = codes.split("\x1b_G").skip(1).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts[0].starts_with("a=T,f=100,q=2,c=64,r=32,m=1;"));
        assert!(parts[1].starts_with("m=1;") && parts[2].starts_with("m=0;"));
        let data = parts.iter().map(|part| {
            let (_, data) = part.split_once(';').expect("data");
            data.strip_suffix("\x1b\\").expect("end")
        });
        let data: Vec<&str> = data.collect();
        assert!(data.iter().all(|part| part.len() <= CHUNK));
        assert_eq!(STANDARD.decode(data.concat()).expect("base64"), png);
    }
}
