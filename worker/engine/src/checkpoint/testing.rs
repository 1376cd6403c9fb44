//! What the tests of this folder share: the golden checkpoint, and files built by hand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Error, Result};

/// A file or folder of the committed fixture.
pub fn golden(path: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/xomni-tiny"
    ))
    .join(path)
}

/// The golden JSON file `path`.
pub fn golden_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(path)).unwrap()).unwrap()
}

/// Copies the files of a golden folder, but none of its folders.
pub fn copy_golden(folder: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(folder)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

/// The file name, item and reason of a checkpoint error.
#[track_caller]
pub fn refusal<T>(result: Result<T>) -> (String, String, String) {
    match result.err() {
        Some(Error::Checkpoint { file, item, reason }) => {
            let file = file.file_name().unwrap().to_string_lossy().into_owned();
            (file, item, reason)
        }
        Some(other) => panic!("not a checkpoint error: {other}"),
        None => panic!("accepted"),
    }
}

/// Sets or, with `None`, removes the field at a path such as `a.b`.
pub fn set(json: &mut Value, path: &str, value: Option<Value>) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let pointer = if parent.is_empty() {
        String::new()
    } else {
        format!("/{}", parent.replace('.', "/"))
    };
    let object = json.pointer_mut(&pointer).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(field.into(), value),
        None => object.remove(field),
    };
}

/// The paths of all fields below `json`, those of objects included.
pub fn paths(json: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for (name, value) in json.as_object().unwrap() {
        all.push(name.clone());
        if value.is_object() {
            all.extend(
                paths(value)
                    .into_iter()
                    .map(|below| format!("{name}.{below}")),
            );
        }
    }
    all
}

/// Calls `parse` with every field of `json` absent and of every odd value: an error must be a
/// checkpoint error, and nothing may panic.
pub fn mutate<T>(json: &Value, parse: impl Fn(&str) -> Result<T>) {
    let odd = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(1_u64 << 40),
        json!(u64::MAX),
        json!(""),
        json!("../x"),
        json!("relu"),
        json!([]),
        json!([0, 0, 0]),
        json!([u64::MAX, 2, 2, 2]),
        json!({}),
    ];
    for path in paths(json) {
        for value in odd.iter().cloned().map(Some).chain([None]) {
            let mut changed = json.clone();
            set(&mut changed, &path, value);
            if let Err(error) = parse(&changed.to_string()) {
                assert!(matches!(error, Error::Checkpoint { .. }), "{path}: {error}");
            }
        }
    }
}

/// A zip archive of stored entries, in the zip64 format if `wide`.
pub fn zip(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in entries {
        let offset = bytes.len();
        // Offsets 4 to 26 (version to sizes) are of no interest to a reader of the directory.
        bytes.extend(b"PK\x03\x04");
        bytes.extend([0; 22]);
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend(3u16.to_le_bytes());
        bytes.extend(name.bytes());
        bytes.extend(b"pad");
        bytes.extend(*data);

        let extra: Vec<u8> = if wide {
            let sizes = [data.len(), data.len(), offset];
            let mut extra = vec![1, 0, 24, 0];
            extra.extend(sizes.iter().flat_map(|size| (*size as u64).to_le_bytes()));
            extra
        } else {
            Vec::new()
        };
        let narrow = |value: usize| if wide { u32::MAX } else { value as u32 };
        directory.extend(b"PK\x01\x02");
        directory.extend([0; 16]);
        directory.extend(narrow(data.len()).to_le_bytes());
        directory.extend(narrow(data.len()).to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow(offset).to_le_bytes());
        directory.extend(name.bytes());
        directory.extend(extra);
    }
    let start = bytes.len();
    bytes.extend(&directory);
    if wide {
        let end = bytes.len() as u64;
        bytes.extend(b"PK\x06\x06");
        bytes.extend([0; 20]);
        for value in [entries.len(), entries.len(), directory.len(), start] {
            bytes.extend((value as u64).to_le_bytes());
        }
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend(end.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
    }
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    if wide {
        bytes.extend([0xff; 12]);
    } else {
        bytes.extend((entries.len() as u16).to_le_bytes());
        bytes.extend((entries.len() as u16).to_le_bytes());
        bytes.extend((directory.len() as u32).to_le_bytes());
        bytes.extend((start as u32).to_le_bytes());
    }
    bytes.extend([0; 2]);
    bytes
}

/// Name, storage class, storage key, storage elements, offset, shape, strides.
pub type PickledTensor<'a> = (&'a str, &'a str, &'a str, i32, i32, &'a [i32], &'a [i32]);

/// A pickle (protocol 2) of a dict from names to tensors.
pub fn state_dict(tensors: &[PickledTensor<'_>]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (name, class, key, elements, offset, shape, strides) in tensors {
        push_text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        push_text(&mut pickle, "storage");
        pickle.extend(format!("ctorch\n{class}\n").bytes());
        push_text(&mut pickle, key);
        push_text(&mut pickle, "cpu");
        push_int(&mut pickle, *elements);
        pickle.extend(b"tQ");
        push_int(&mut pickle, *offset);
        for list in [shape, strides] {
            pickle.push(b'(');
            list.iter()
                .for_each(|number| push_int(&mut pickle, *number));
            pickle.push(b't');
        }
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    pickle
}

fn push_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

fn push_int(pickle: &mut Vec<u8>, number: i32) {
    pickle.push(b'J');
    pickle.extend(number.to_le_bytes());
}
