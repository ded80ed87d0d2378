//! The tensor table and the data section.

use super::*;

/// A file with one tensor of these dimensions and type, and 64 bytes of data.
fn one_tensor(dims: &[u64], type_id: u32) -> Vec<u8> {
    Writer::new().raw_tensor("the.weight", dims, type_id, None, vec![1; 64]).to_bytes()
}

const F32: u32 = QuantType::F32 as u32;

#[test]
fn tensors_come_back_with_their_data() {
    for version in [2, 3] {
        let gguf = load(&sample().version(version).to_bytes()).unwrap();
        assert_eq!(gguf.version(), version);
        let names: Vec<_> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a.weight", "b.weight", "c.weight", "d.weight"]);
        let b = gguf.tensor("b.weight").unwrap();
        assert_eq!((b.dims(), b.dims, b.n_dims), (&[3, 1, 5][..], [3, 1, 5, 1], 3));
        assert_eq!((b.quant_type, b.shard, b.n_bytes, b.n_elements), (QuantType::F16, 0, 30, 15));
        let a = gguf.tensor("a.weight").unwrap();
        let mut data = vec![0; 32];
        gguf.read_tensor(a, &mut data).unwrap();
        assert_eq!(data, (0..32).collect::<Vec<u8>>());
        gguf.read_tensor_part(a, 30, &mut data[..2]).unwrap();
        assert_eq!(data[..2], [30, 31]);
        assert!(gguf.tensor("e.weight").is_none());
    }
}

#[test]
fn a_buffer_of_another_size_is_an_invalid_argument() {
    let gguf = load(&sample().to_bytes()).unwrap();
    let a = gguf.tensor("a.weight").unwrap();
    for len in [0, 31, 33] {
        let error = gguf.read_tensor(a, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains("32 bytes"), "{error}");
    }
    for start in [1, 32, u64::MAX] {
        assert_eq!(gguf.read_tensor_part(a, start, &mut [0; 32]).unwrap_err().status(), Status::InvalidArgument);
    }
    let mut forged = a.clone();
    forged.shard = 1;
    assert_eq!(gguf.read_tensor(&forged, &mut [0; 32]).unwrap_err().status(), Status::InvalidArgument);
}

#[test]
fn g14_a_tensor_name_has_1_to_64_bytes_and_is_unique() {
    let named = |name: &[u8]| Writer::new().raw_tensor(name, &[16], F32, None, vec![0; 64]).to_bytes();
    loads(&named(&[b'n'; 64]));
    refused(&named(&[b'n'; 65]), Status::BadFile, &["name of tensor number 0", "64", "found 65"]);
    refused(&named(b""), Status::BadFile, &["name of tensor number 0", "found 0"]);
    refused(&named(b"a\xffb"), Status::BadFile, &["name of tensor number 0", "UTF-8", "a\\xffb"]);
    refused(&named_twice("same", "same"), Status::BadFile, &["tensor same", "once"]);
}

fn named_twice(a: &str, b: &str) -> Vec<u8> {
    Writer::new().tensor(a, &[8], QuantType::F32, vec![0; 32]).tensor(b, &[8], QuantType::F32, vec![0; 32]).to_bytes()
}

#[test]
fn g15_a_tensor_has_1_to_4_dimensions() {
    loads(&one_tensor(&[2, 2, 2, 2], F32));
    refused(&one_tensor(&[1, 1, 1, 1, 1], F32), Status::BadFile, &["the.weight", "n_dimensions", "1 to 4", "5"]);
    refused(&one_tensor(&[], F32), Status::BadFile, &["the.weight", "n_dimensions", "found 0"]);
    let bytes = one_tensor(&[16], F32);
    let at = find(&bytes, b"the.weight") + 10;
    let bytes = patched(bytes, at, &u32::MAX.to_le_bytes());
    refused(&bytes, Status::BadFile, &["the.weight", "n_dimensions", "4294967295"]);
}

#[test]
fn g16_dimensions_are_positive() {
    refused(&one_tensor(&[u64::MAX], F32), Status::BadFile, &["the.weight", "dimensions[0]", "18446744073709551615"]);
    refused(&one_tensor(&[4, 0], F32), Status::BadFile, &["the.weight", "dimensions[1]", "found 0"]);
    refused(&one_tensor(&[0, 4], F32), Status::BadFile, &["the.weight", "dimensions[0]", "found 0"]);
}

#[test]
fn g17_a_product_of_dimensions_that_overflows_is_refused() {
    for dims in [[(1 << 42) + 1, 1 << 22], [4 * i32::MAX as u64, 4 * i32::MAX as u64], [1 << 62, 1 << 62]] {
        refused(&one_tensor(&dims, F32), Status::BadFile, &["the.weight", "2^63", &dims[0].to_string()]);
    }
}

#[test]
fn g18_bytes_of_blocks_that_overflow_are_refused() {
    // 2^63 - 32 weights of 34 bytes per 32.
    let dims = [(1 << 63) - 32];
    refused(&one_tensor(&dims, QuantType::Q8_0 as u32), Status::BadFile, &["the.weight", "2^63", "Q8_0"]);
    refused(&one_tensor(&[256, 1 << 56], QuantType::Q4_K as u32), Status::BadFile, &["the.weight", "Q4_K"]);
}

#[test]
fn g19_a_size_that_wraps_when_padded_is_refused() {
    refused(&one_tensor(&[(1 << 62) - 1], F32), Status::BadFile, &["the.weight", "2^63"]);
    refused(&one_tensor(&[(1 << 61) - 1], F32), Status::BadFile, &["the.weight", "2^63"]);
}

#[test]
fn g20_tensors_whose_sum_wraps_are_refused() {
    let two = |dim: u64, type_id: u32| {
        let writer = Writer::new().raw_tensor("the.weight", &[dim], type_id, Some(0), vec![1; 64]);
        writer.raw_tensor("b", &[dim], type_id, Some(dim), vec![1; 64]).to_bytes()
    };
    let i8 = 24;
    refused(&two(0x7FFF_FFFF_FFFF_FFC0, i8), Status::UnsupportedType, &["the.weight", "24 (I8)"]);
    // The largest whose own end does not overflow: it is beyond the end of the file.
    refused(&two(0x3FFF_FFFF_FFFF_FF00, QuantType::F16 as u32), Status::Truncated, &["the.weight"]);
}

#[test]
fn g21_unknown_types_are_named() {
    refused(&one_tensor(&[256], 16), Status::UnsupportedType, &["the.weight", "16 (IQ2_XXS)", "F16"]);
    refused(&one_tensor(&[256], 26), Status::UnsupportedType, &["the.weight", "26 (I32)"]);
    refused(&one_tensor(&[256], 34), Status::UnsupportedType, &["the.weight", "34 (TQ1_0)"]);
    refused(&one_tensor(&[256], 4), Status::UnsupportedType, &["the.weight", "4 (Q4_2)"]);
    refused(&one_tensor(&[256], 4096), Status::UnsupportedType, &["the.weight", "4096"]);
    refused(&one_tensor(&[256], u32::MAX), Status::UnsupportedType, &["the.weight", "4294967295"]);
}

#[test]
fn g22_rows_are_whole_blocks() {
    for dim in [31, 33, 16] {
        let bytes = one_tensor(&[dim, 32], QuantType::Q4_0 as u32);
        refused(&bytes, Status::BadFile, &["the.weight", "dimensions[0]", "multiple of 32", &dim.to_string()]);
    }
}

#[test]
fn g23_offsets_are_aligned_and_inside_the_file() {
    let at = |offset: u64| Writer::new().raw_tensor("the.weight", &[16], F32, Some(offset), vec![1; 64]).to_bytes();
    loads(&at(0));
    refused(&at(u64::MAX), Status::BadFile, &["the.weight", "offset", "18446744073709551615"]);
    refused(&at(u64::MAX - 31), Status::BadFile, &["the.weight", "2^63"]);
    refused(&at(1 << 62), Status::Truncated, &["the.weight", "64 bytes"]);
    for offset in [1, 8, 31] {
        refused(&at(offset), Status::BadFile, &["the.weight", "offset", "alignment 32", &offset.to_string()]);
    }
    let mut bytes = at(0);
    bytes.pop();
    refused(&bytes, Status::Truncated, &["the.weight", "64 bytes", "has 63"]);
}

#[test]
fn tensors_may_not_overlap_but_may_leave_gaps_and_come_in_any_order() {
    let two = |a: u64, b: u64| {
        let writer = Writer::new().raw_tensor("a", &[16], F32, Some(a), vec![1; 64]);
        writer.raw_tensor("b", &[16], F32, Some(b), vec![2; 128]).to_bytes()
    };
    for (a, b) in [(0, 64), (64, 0), (0, 128), (96, 32)] {
        loads(&two(a, b));
    }
    refused(&two(0, 0), Status::BadFile, &["expected an offset of at least", "where tensor"]);
    refused(&two(0, 32), Status::BadFile, &["tensor b", "where tensor a ends"]);
    refused(&two(96, 64), Status::BadFile, &["tensor a", "where tensor b ends"]);
}

#[test]
fn a_last_tensor_may_lack_its_padding() {
    let mut bytes = Writer::new().tensor("a", &[1], QuantType::F32, vec![1; 4]).to_bytes();
    bytes.truncate(bytes.len() - 28);
    loads(&bytes);
    bytes.pop();
    refused(&bytes, Status::Truncated, &["tensor a", "4 bytes", "has 3"]);
}
