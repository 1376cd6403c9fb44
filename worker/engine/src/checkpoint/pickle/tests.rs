use proptest::prelude::*;

use super::*;
use crate::checkpoint::testing;

fn reason(pickle: &[u8]) -> String {
    state_dict(pickle).unwrap_err().reason
}

#[test]
fn tensors_of_every_storage_type() {
    let classes = [
        ("FloatStorage", StorageType::Float),
        ("HalfStorage", StorageType::Half),
        ("BFloat16Storage", StorageType::BFloat16),
        ("DoubleStorage", StorageType::Double),
        ("LongStorage", StorageType::Long),
        ("IntStorage", StorageType::Int),
        ("BoolStorage", StorageType::Bool),
    ];
    for (class, kind) in classes {
        let pickle = testing::state_dict(&[("w", class, "7", 12, 2, &[2, 5], &[1, 2])]);
        let expected = TensorView {
            storage: Storage {
                kind,
                key: "7",
                elements: 12,
            },
            offset: 2,
            shape: vec![2, 5],
            strides: vec![1, 2],
        };
        assert_eq!(state_dict(&pickle).unwrap(), [("w", expected)]);
    }
}

/// What CPython 3 writes for `torch.save(OrderedDict(w=Parameter(...)))`, with protocol 4's
/// framing, memoisation and STACK_GLOBAL, and with the `_metadata` attribute of a module's state.
#[test]
fn parameters_metadata_and_protocol_4() {
    let pickle = [
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00".as_slice(),
        b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94(",
        b"\x8c\x01w\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_parameter\x94\x93\x94",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"((\x8c\x07storage\x94ctorch\nHalfStorage\n\x8c\x010\x94\x8c\x03cpu\x94K\x06tQ",
        b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89h\x02)RtR",
        b"\x88h\x02)R\x87R",
        b"u}\x8c\x09_metadata\x94h\x02)R(\x8c\x00}\x8c\x07version\x94K\x01su",
        b"sb.",
    ]
    .concat();
    let tensors = state_dict(&pickle).unwrap();
    assert_eq!(tensors.len(), 1);
    assert_eq!(tensors[0].0, "w");
    assert_eq!(tensors[0].1.shape, [2, 3]);
    assert_eq!(tensors[0].1.strides, [3, 1]);
}

#[test]
fn code_is_refused_by_name() {
    let system = reason(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.");
    assert_eq!(system, "os.system is no part of a state dict; refused");
    let stacked = reason(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.");
    assert!(stacked.starts_with("posix.system "), "{stacked}");
    for global in [
        "builtins\neval",
        "builtins\ngetattr",
        "torch\nload",
        "torch._utils\n_rebuild_tensor",
        "collections\nOrderedDict.update",
    ] {
        let name = global.replace('\n', ".");
        let found = reason(
            format!("\x02c{global}\n)R.")
                .replacen('\x02', "", 1)
                .as_bytes(),
        );
        assert!(found.starts_with(&name), "{found}");
    }
}

#[test]
fn opcodes_that_build_objects_are_refused() {
    for opcode in b"iodPI0123FGLSTUVaelg\x81\x82\x83\x84\x8b\x8e\x8f\x90\x91\x92\x96\x97\x98" {
        let found = reason(&[0x80, 2, b')', *opcode, b'.']);
        assert!(found.starts_with("opcode 0x"), "{found}");
    }
}

#[test]
fn known_constructors_take_known_arguments_only() {
    let cases: [(&[u8], &str); 8] = [
        (
            b"ccollections\nOrderedDict\nK\x01\x85R.",
            "OrderedDict called with unknown",
        ),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "RebuildTensor called with unknown",
        ),
        (
            b"ctorch._utils\n_rebuild_parameter\n}\x85R.",
            "RebuildParameter called",
        ),
        (
            b"ctorch\nFloatStorage\n)R.",
            "Storage(Float) called with unknown",
        ),
        (b"}}R.", "a dict called"),
        (b"K\x01Q.", "a persistent id"),
        (b")}b.", "attributes set on a tuple"),
        (b"})s.", "stack underflow"),
    ];
    for (pickle, expected) in cases {
        let found = reason(pickle);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn damage_is_refused() {
    let cases: [(&[u8], &str); 12] = [
        (b"", "truncated"),
        (b"\x80\x05.", "protocol"),
        (b".", "underflow"),
        (b"K\x01.", "must be a dict"),
        (
            b"}X\x01\x00\x00\x00aK\x01s.",
            "entry \"a\" must be a tensor, is an integer",
        ),
        (b"X\xff\xff\xff\xffa", "truncated"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", "truncated"),
        (b"h\x00.", "memo slot 0"),
        (b"K\x01(\x85.", "underflow"),
        (b"t.", "no mark"),
        (b"}(K\x01u.", "a key without a value"),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.", "64 bits"),
    ];
    for (pickle, expected) in cases {
        let found = reason(pickle);
        assert!(found.contains(expected), "{pickle:?}: {found}");
    }
    let pickle = testing::state_dict(&[("w", "FloatStorage", "0", 1, -1, &[1], &[1])]);
    assert!(reason(&pickle).contains("must not be negative, is -1"));
    let pickle = testing::state_dict(&[("w", "FloatStorage", "0", 1, 0, &[1], &[])]);
    assert!(reason(&pickle).contains("as many strides"));
    let pickle = testing::state_dict(&[("w", "FloatStorage", "0", 1, 0, &[1; 9], &[1; 9])]);
    assert!(reason(&pickle).contains("more than 8 dimensions"));
}

#[test]
fn long_integers() {
    let mut machine = Machine::new(b"\x8a\x00\x8a\x01\xff\x8a\x02\x00\x80\x8a\x03\x00\x00\x01");
    for expected in [0, -1, -32768, 65536] {
        machine.step().unwrap();
        assert!(matches!(machine.pop().unwrap(), Value::Int(found) if found == expected));
    }
}

#[test]
fn depth_and_cycles_do_not_matter() {
    let mut deep = b")".to_vec();
    deep.extend(b"\x85".repeat(1 << 20));
    deep.push(b'.');
    assert_eq!(reason(&deep), "must be a dict");
    let marks = b"(".repeat(1 << 20);
    assert_eq!(reason(&marks), "the pickle is truncated");
    let cyclic = b"}q\x00X\x01\x00\x00\x00ah\x00s.";
    assert_eq!(reason(cyclic), "entry \"a\" must be a tensor, is a dict");
    assert!(reason(&vec![b'N'; MAX_LENGTH + 1]).starts_with("longer than"));
}

fn opcode() -> impl Strategy<Value = Vec<u8>> {
    let whole: Vec<&[u8]> = vec![
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n",
        b"X\x07\x00\x00\x00storage",
        b"\x8c\x010",
        b"K\x01",
        b"q\x00",
        b"h\x00",
        b"J\xff\xff\xff\xff",
        b"\x8a\x01\x05",
    ];
    let single = b"(.NQR}bst)u\x85\x86\x87\x88\x89\x93\x94".to_vec();
    prop_oneof![
        prop::sample::select(whole).prop_map(<[u8]>::to_vec),
        prop::sample::select(single).prop_map(|code| vec![code]),
    ]
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = state_dict(&bytes);
    }

    #[test]
    fn random_programs_do_not_panic(codes in prop::collection::vec(opcode(), 0..200)) {
        let _ = state_dict(&codes.concat());
    }

    #[test]
    fn changed_bytes_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        length: prop::sample::Index,
    ) {
        let mut pickle = testing::state_dict(&[
            ("a", "FloatStorage", "0", 6, 0, &[2, 3], &[3, 1]),
            ("b", "HalfStorage", "1", 6, 0, &[6], &[1]),
        ]);
        for (place, byte) in changes {
            let place = place.index(pickle.len());
            pickle[place] = byte;
        }
        let _ = state_dict(&pickle);
        let _ = state_dict(&pickle[..length.index(pickle.len())]);
    }
}
