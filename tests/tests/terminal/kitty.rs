//! kitty's graphics protocol, read as a terminal does.

use base64::{Engine, engine::general_purpose::STANDARD};

/// A picture that was sent, with the cells it is to take.
#[derive(Debug)]
pub struct Picture {
    pub png: Vec<u8>,
    pub columns: u32,
    pub rows: u32,
}

/// The one picture that is shown.
pub fn picture(bytes: &[u8]) -> Picture {
    let text = String::from_utf8_lossy(bytes);
    let codes = text.split("\x1b_G").skip(1);
    let codes = codes.map(|code| code.split_once("\x1b\\").expect("an end").0);
    let mut keys = None;
    let (mut data, mut more) = (String::new(), true);
    for code in codes {
        let (control, payload) = code.split_once(';').expect("a payload");
        if control.contains("a=q") {
            continue; // the question whether it is understood
        }
        assert!(more, "one picture");
        keys.get_or_insert(control.to_owned());
        assert!(payload.len() <= 4096, "chunks as the protocol allows");
        data += payload;
        more = control.split(',').any(|key| key == "m=1");
    }
    assert!(!more, "the last chunk");
    let keys = keys.expect("a picture");
    let value = |key: &str| {
        let found = keys.split(',').find_map(|part| part.strip_prefix(key));
        found.unwrap_or_else(|| panic!("{key} in {keys}"))
    };
    assert_eq!((value("a="), value("f=")), ("T", "100"));
    Picture {
        png: STANDARD.decode(data).expect("base64"),
        columns: value("c=").parse().expect("columns"),
        rows: value("r=").parse().expect("rows"),
    }
}
