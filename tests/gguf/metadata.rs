//! Keys and values.

use super::*;

#[test]
fn every_value_comes_back_in_the_order_of_the_file() {
    let bytes = sample().to_bytes();
    let gguf = load(&bytes).unwrap();
    let m = gguf.metadata();
    assert_eq!((gguf.version(), gguf.alignment(), gguf.n_shards()), (3, 32, 1));
    assert_eq!((m.len(), gguf.tensors().len(), gguf.file_bytes()), (26, 4, bytes.len() as u64));
    assert_eq!(
        m.iter().map(|(key, _)| key).take(3).collect::<Vec<_>>(),
        ["general.architecture", "general.alignment", "t.u8"]
    );
    assert_eq!(m.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(m.u32("t.u16").unwrap(), Some(2));
    assert_eq!(m.i64("t.i64").unwrap(), Some(-4));
    assert_eq!(m.f32("t.f64").unwrap(), Some(0.25));
    assert_eq!(m.bool("t.bool").unwrap(), Some(true));
    assert_eq!(m.strings("t.strings").unwrap().unwrap().iter().collect::<Vec<_>>(), [&b""[..], b"a", b"haiku"]);
    assert_eq!(m.i32s("t.i32s").unwrap().unwrap().as_ref(), [-1]);
    assert_eq!(m.get("t.bools"), Some(&Value::Array(Array::Bool(vec![true, false]))));
    assert_eq!(m.get("t.none"), Some(&Value::Array(Array::U32(vec![]))));
}

#[test]
fn g06_a_key_length_is_checked() {
    let bytes = one_pair("some.key", Value::U8(1));
    let at = find(&bytes, b"some.key") - 8;
    let with_length = |n: u64| patched(bytes.clone(), at, &n.to_le_bytes());
    refused(&with_length(u64::MAX), Status::BadFile, &["key number 0", "65535", "18446744073709551615"]);
    refused(&with_length(65_536), Status::BadFile, &["key number 0", "65536"]);
    refused(&with_length(60), Status::Truncated, &["key number 0", "60"]);
    loads(&one_pair(&"k".repeat(65_535), Value::U8(1)));
    refused(&one_pair(&"k".repeat(65_536), Value::U8(1)), Status::BadFile, &["key number 0", "65536"]);
}

#[test]
fn g07_an_empty_key_is_refused() {
    // A byte of value more than a pair needs at least, so that the count itself is plausible.
    refused(&one_pair("", Value::U16(1)), Status::BadFile, &["key number 0", "found 0"]);
}

#[test]
fn keys_must_be_utf8() {
    let bytes = Writer::new().pair(b"a\xff\nb", Value::U8(1)).to_bytes();
    refused(&bytes, Status::BadFile, &["key number 0", "UTF-8", "a\\xff\\nb"]);
    let bytes = Writer::new().pair("schl\u{fc}ssel\u{202e}\n", "x").pair("schl\u{fc}ssel\u{202e}\n", "x").to_bytes();
    refused(&bytes, Status::BadFile, &["schl\\xc3\\xbcssel\\xe2\\x80\\xae\\n"]);
}

#[test]
fn g08_a_duplicate_key_is_refused() {
    for second in [Value::U8(1), Value::U8(2), Value::from("x")] {
        let bytes = Writer::new().pair("k", Value::U8(1)).pair("other", Value::U8(1)).pair("k", second).to_bytes();
        refused(&bytes, Status::BadFile, &["k: expected each key once"]);
    }
}

#[test]
fn g09_unknown_types_are_refused() {
    let scalar = one_pair("the.key", Value::U8(1));
    let at = find(&scalar, b"the.key") + 7;
    for id in [13u32, u32::MAX] {
        let bytes = patched(scalar.clone(), at, &id.to_le_bytes());
        refused(&bytes, Status::BadFile, &["the.key", "0 to 12", &id.to_string()]);
        let bytes = patched(one_pair("the.key", Value::Array(Array::U8(vec![1]))), at + 4, &id.to_le_bytes());
        refused(&bytes, Status::BadFile, &["the.key", "element type", &id.to_string()]);
    }
}

#[test]
fn g10_a_string_length_beyond_the_file_is_refused_at_once() {
    let bytes = one_pair("the.key", "a");
    let at = find(&bytes, b"the.key") + 11;
    for len in [u64::MAX, 1 << 31, 1 << 30, 2] {
        let bytes = patched(bytes.clone(), at, &len.to_le_bytes());
        bounded(1 << 20, || refused(&bytes, Status::Truncated, &["the.key", &len.to_string()]));
    }
}

#[test]
fn g11_an_array_length_beyond_the_file_is_refused_at_once() {
    let strings = Array::String(StringArray::try_from_iter(["a"]).unwrap());
    for array in [Array::U8(vec![1]), Array::F64(vec![1.0]), Array::Bool(vec![true]), strings] {
        let bytes = one_pair("the.key", Value::Array(array));
        let at = find(&bytes, b"the.key") + 15;
        for len in [u64::MAX, 1 << 61, u32::MAX.into(), 3] {
            let bytes = patched(bytes.clone(), at, &len.to_le_bytes());
            bounded(1 << 20, || refused(&bytes, Status::Truncated, &["the.key", &len.to_string()]));
        }
    }
}

#[test]
fn g12_an_array_of_arrays_is_unsupported() {
    let bytes = one_pair("the.key", Value::Array(Array::U8(vec![0; 13])));
    let at = find(&bytes, b"the.key") + 11;
    refused(&patched(bytes, at, &9u32.to_le_bytes()), Status::UnsupportedType, &["the.key", "array of arrays"]);
}

#[test]
fn g13_an_alignment_must_be_a_power_of_two_from_8() {
    let alignment = |value: Value| sample_with_alignment(value).to_bytes();
    let bytes = alignment(Value::U32(32));
    let at = find(&bytes, b"general.alignment") + 21;
    for n in [0u32, 1, 4, 12, 13, 24, 96, 1 << 21, 1 << 31, u32::MAX] {
        let bytes = patched(bytes.clone(), at, &n.to_le_bytes());
        refused(&bytes, Status::BadFile, &["general.alignment", "power of two", &n.to_string()]);
    }
    for value in [Value::I32(32), Value::U64(32), Value::from("32")] {
        refused(&alignment(value), Status::BadFile, &["general.alignment", "UINT32", "32"]);
    }
    for n in [8, 16, 64, 4096, 1 << 20] {
        loads(&alignment(Value::U32(n)));
    }
}

fn sample_with_alignment(value: Value) -> Writer {
    Writer::new().pair("general.alignment", value).tensor("a", &[3], QuantType::F32, vec![1; 12]).tensor(
        "b",
        &[1],
        QuantType::F16,
        vec![2; 2],
    )
}

#[test]
fn g45_bools_are_0_or_1_and_strings_are_escaped() {
    let bytes = one_pair("the.key", Value::Bool(true));
    let at = find(&bytes, b"the.key") + 11;
    refused(&patched(bytes, at, &[2]), Status::BadFile, &["the.key", "0 or 1", "found 2"]);
    let bytes = one_pair("the.key", Value::Array(Array::Bool(vec![true; 3])));
    let at = find(&bytes, b"the.key") + 25;
    refused(&patched(bytes, at, &[255]), Status::BadFile, &["the.key", "0 or 1", "found 255"]);

    let bytes = one_pair("general.name", Value::String(b"a\xff\x1b[0m"[..].into()));
    let error = load(&bytes).unwrap().metadata().str("general.name").unwrap_err();
    assert_eq!(error.status(), Status::BadFile);
    let text = "general.name: expected a STRING in UTF-8, found STRING \"a\\xff\\x1b[0m\"";
    assert_eq!(error.to_string(), text);
}

#[test]
fn long_hostile_names_and_values_keep_messages_short() {
    let bytes = Writer::new().pair("\u{7}".repeat(65_535), Value::String(vec![0xff; 1 << 20].into())).to_bytes();
    let gguf = load(&bytes).unwrap();
    let (key, _) = gguf.metadata().iter().next().unwrap();
    gguf_bytes::check_message(&gguf.metadata().u32(key).unwrap_err());
}

/// The most memory that loading `bytes` takes, beside the bytes themselves.
fn peak_of(bytes: &[u8]) -> usize {
    let source = Box::new(std::io::Cursor::new(bytes.to_vec()));
    alloc::peak(|| Gguf::from_source(source).map(drop)).1
}

#[test]
fn memory_is_at_most_four_times_the_metadata_whatever_they_hold() {
    let strings = |string: &str, n| Array::String(StringArray::try_from_iter((0..n).map(|_| string)).unwrap());
    let long = "x".repeat(1000);
    for value in [
        Value::Array(strings("", 200_000)),
        Value::Array(strings("a", 200_000)),
        Value::Array(strings(&long, 1000)),
        Value::Array(Array::Bool(vec![true; 1_000_000])),
        Value::Array(Array::U64(vec![7; 200_000])),
        Value::String(vec![b'x'; 1_000_000].into()),
    ] {
        let bytes = one_pair("the.key", value);
        for bytes in [&bytes[..], &bytes[..bytes.len() - 1]] {
            let peak = peak_of(bytes);
            // What is fixed is the window of the reader.
            assert!(peak < (128 << 10) + 4 * bytes.len(), "{peak} bytes for {}", bytes.len());
        }
    }
    let pairs = (0..65_536).fold(Writer::new(), |w, i| w.pair(format!("{i:x}"), Value::U8(0))).to_bytes();
    let peak = peak_of(&pairs);
    assert!(peak < 32 << 20, "{peak} bytes for {} of small pairs", pairs.len());
}

#[test]
fn a_vocabulary_takes_less_memory_than_in_the_file() {
    let strings = StringArray::try_from_iter((0..200_000u32).map(|i| i.to_string())).unwrap();
    let bytes = one_pair("tokenizer.ggml.tokens", Value::Array(Array::String(strings)));
    let source = Box::new(std::io::Cursor::new(bytes.clone()));
    let before = alloc::thread();
    let gguf = Gguf::from_source(source).unwrap();
    let held = alloc::thread().bytes - before.bytes;
    assert_eq!(gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap().get(199_999), Some(&b"199999"[..]));
    assert!((held as usize) < bytes.len(), "{held} bytes for {}", bytes.len());
}
