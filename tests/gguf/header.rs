//! Magic bytes, version, counts.

use super::*;

/// A file of 64 bytes that claims these counts.
fn counts(n_tensors: u64, n_pairs: u64) -> Vec<u8> {
    let mut bytes =
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_pairs.to_le_bytes()].concat();
    bytes.resize(64, 0);
    bytes
}

#[test]
fn g01_a_file_of_a_few_bytes_is_truncated() {
    for len in [0, 3, 4, 11] {
        refused(&sample().to_bytes()[..len], Status::Truncated, &["truncated", "fetch the file again"]);
    }
    refused(b"GGM", Status::NotGguf, &["GGM"]);
}

#[test]
fn g02_other_files_are_not_gguf() {
    refused(b"FUGG\x03\0\0\0", Status::NotGguf, &["GGUF", "\"FUGG\""]);
    refused(b"\x1b[2J\x07\r\n\0", Status::NotGguf, &["\\x1b[2J"]);
    refused(b"<!DOCTYPE html>\n<html>", Status::NotGguf, &["\"<!DO\""]);
}

#[test]
fn g03_other_versions_are_unsupported() {
    let version = |number| Writer::new().version(number).to_bytes();
    refused(&version(0), Status::UnsupportedVersion, &["version 0", "2 or 3"]);
    refused(&version(1), Status::UnsupportedVersion, &["version 1", "convert"]);
    refused(&version(4), Status::UnsupportedVersion, &["version 4"]);
    refused(&version(0x0300_0000), Status::UnsupportedVersion, &["50331648", "big-endian"]);
    loads(&version(2));
    loads(&version(3));
}

#[test]
fn g04_a_count_of_pairs_beyond_the_file_is_refused_at_once() {
    for n in [u64::MAX, 1 << 63, 1 << 40, 4] {
        refused(&counts(0, n), Status::Truncated, &["metadata_kv_count", &n.to_string()]);
    }
}

#[test]
fn g05_a_count_of_tensors_beyond_the_file_is_refused_at_once() {
    for n in [u64::MAX, 1 << 63, 1 << 40, 2] {
        refused(&counts(n, 0), Status::Truncated, &["tensor_count", &n.to_string()]);
    }
}

#[test]
fn counts_have_limits_on_both_sides_of_which_memory_is_bounded() {
    let pairs = |n: u32| (0..n).fold(Writer::new(), |w, i| w.pair(i.to_string(), Value::U8(0))).to_bytes();
    loads(&pairs(65_536));
    refused(&pairs(65_537), Status::Limit, &["65536", "metadata_kv_count"]);
    let tensors = |n: u32| {
        (0..n).fold(Writer::new(), |w, i| w.tensor(&i.to_string(), &[1], QuantType::F32, vec![0; 4])).to_bytes()
    };
    loads(&tensors(65_536));
    refused(&tensors(65_537), Status::Limit, &["65536", "tensor_count"]);
}
