use super::*;

fn tensor(dtype: DType, bytes: &[u8]) -> HostTensor {
    let shape = [bytes.len() / dtype.size()];
    let bytes = TensorBytes::copy_of(bytes);
    HostTensor::new("t", &Path::new("f").into(), dtype, &shape, bytes)
}

#[test]
fn every_type_converts_exactly() {
    let values = [0.0f32, -1.5, 0.25];
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = values
        .iter()
        .flat_map(|v| f16::from_f32(*v).to_le_bytes())
        .collect();
    let bf16s: Vec<u8> = values
        .iter()
        .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
        .collect();
    for (dtype, bytes) in [(DType::F32, f32s), (DType::F16, f16s), (DType::Bf16, bf16s)] {
        let tensor = tensor(dtype, &bytes);
        assert_eq!(tensor.to_f32(), values);
        assert_eq!(tensor.bytes(), bytes);
        assert_eq!(
            tensor.elements::<f32>(),
            (dtype == DType::F32).then_some(&values[..])
        );
        assert_eq!(tensor.elements::<bf16>().is_some(), dtype == DType::Bf16);
    }
}

#[test]
fn unaligned_elements_are_not_lent() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0; 9]).unwrap();
    let map = crate::checkpoint::stored::map(file.path()).unwrap();
    for (offset, aligned) in [(0, true), (1, false)] {
        let (map, len) = (map.clone(), 8);
        let bytes = TensorBytes::Mapped { map, offset, len };
        let tensor = HostTensor::new("t", &file.path().into(), DType::F32, &[2], bytes);
        assert_eq!(tensor.elements::<f32>().is_some(), aligned);
        assert_eq!(tensor.to_f32(), [0.0, 0.0]);
    }
}

#[test]
fn the_first_non_finite_element_is_found() {
    let length = 3 * SCAN_CHUNK / 2 + 3;
    for (dtype, bad) in [
        (DType::F32, f32::NAN.to_le_bytes().to_vec()),
        (DType::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (DType::F16, f16::INFINITY.to_le_bytes().to_vec()),
        (DType::Bf16, bf16::NAN.to_le_bytes().to_vec()),
    ] {
        let size = dtype.size();
        let largest = [0xff, 0x7f, 0x7f, 0x7f];
        let mut bytes = largest[4 - size..].repeat(length);
        if dtype == DType::F16 {
            bytes.fill(0x3b);
        }
        assert_eq!(tensor(dtype, &bytes).first_non_finite(), None);
        for position in [length - 1, length / 2, SCAN_CHUNK / size, 1] {
            bytes[position * size..][..size].copy_from_slice(&bad);
            assert_eq!(tensor(dtype, &bytes).first_non_finite(), Some(position));
        }
    }
    assert_eq!(tensor(DType::F32, &[]).first_non_finite(), None);
}
