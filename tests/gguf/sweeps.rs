//! Damage everywhere: every prefix, every byte, random files, and the corpus of the fuzz target.

use proptest::prelude::*;

use super::*;

/// Loads damaged bytes: they may load or be refused, within bounds and without a trace.
fn survives(bytes: &[u8]) {
    let before = alloc::thread();
    drop(load(bytes));
    assert_eq!(alloc::thread(), before);
}

#[test]
fn g24_every_prefix_is_truncated() {
    let bytes = sample().to_bytes();
    for len in 0..bytes.len() {
        refused(&bytes[..len], Status::Truncated, &["truncated"]);
    }
}

#[test]
fn g25_every_damaged_byte_loads_or_is_refused() {
    let bytes = sample().to_bytes();
    for at in 0..bytes.len() {
        for byte in [!bytes[at], 0, 0xff, bytes[at].wrapping_add(1), bytes[at] ^ 0x80] {
            survives(&patched(bytes.clone(), at, &[byte]));
        }
    }
}

#[test]
fn every_damaged_number_loads_or_is_refused() {
    let bytes = sample().to_bytes();
    let numbers = [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 32, 1 << 31, u64::from(u32::MAX), 1 << 61, !31];
    for at in 0..bytes.len() - 8 {
        for number in numbers {
            survives(&patched(bytes.clone(), at, &number.to_le_bytes()));
        }
    }
}

#[test]
fn the_fuzz_corpus_loads_or_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/gguf");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        survives(&std::fs::read(entry.unwrap().path()).unwrap());
        n += 1;
    }
    assert!(n >= 5, "{n} files in {folder}");
}

fn any_array() -> impl Strategy<Value = Array> {
    use proptest::collection::vec;
    let strings = vec(vec(any::<u8>(), 0..20), 0..20);
    prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Array::U8),
        vec(any::<i8>(), 0..20).prop_map(Array::I8),
        vec(any::<u16>(), 0..20).prop_map(Array::U16),
        vec(any::<i16>(), 0..20).prop_map(Array::I16),
        vec(any::<u32>(), 0..20).prop_map(Array::U32),
        vec(any::<i32>(), 0..20).prop_map(Array::I32),
        vec(any::<f32>(), 0..20).prop_map(Array::F32),
        vec(any::<bool>(), 0..20).prop_map(Array::Bool),
        strings.prop_map(|strings| Array::String(StringArray::try_from_iter(strings).unwrap())),
        vec(any::<u64>(), 0..20).prop_map(Array::U64),
        vec(any::<i64>(), 0..20).prop_map(Array::I64),
        vec(any::<f64>(), 0..20).prop_map(Array::F64),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        proptest::collection::vec(any::<u8>(), 0..50).prop_map(|bytes| Value::String(bytes.into())),
        any_array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn any_tensor() -> impl Strategy<Value = (QuantType, Vec<u64>)> {
    let dims = proptest::collection::vec(1u64..4, 1..5);
    (proptest::sample::select(QuantType::ALL), dims).prop_map(|(quant_type, mut dims)| {
        dims[0] *= quant_type.block_len() as u64;
        (quant_type, dims)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        version in 2u32..4,
        alignment in proptest::option::of(3u32..13),
        pairs in proptest::collection::btree_map("[a-z.\u{e9}]{1,12}", any_value(), 0..12),
        tensors in proptest::collection::btree_map(".{1,16}", any_tensor(), 0..8),
        seed in any::<u8>(),
    ) {
        let mut writer = Writer::new().version(version);
        if let Some(log2) = alignment {
            writer = writer.pair("general.alignment", Value::U32(1 << log2));
        }
        for (key, value) in &pairs {
            writer = writer.pair(key, value.clone());
        }
        let data = |name: &str, n: u64| (0..n).map(|i| seed ^ i as u8 ^ name.as_bytes()[0]).collect::<Vec<u8>>();
        for (name, (quant_type, dims)) in &tensors {
            let n_bytes = quant_type.bytes(dims.iter().product()).unwrap();
            writer = writer.tensor(name, dims, *quant_type, data(name, n_bytes));
        }
        let gguf = load(&writer.to_bytes()).unwrap();
        prop_assert_eq!(gguf.version(), version);
        prop_assert_eq!(gguf.alignment(), alignment.map_or(32, |log2| 1 << log2));
        prop_assert_eq!(gguf.metadata().len(), pairs.len() + usize::from(alignment.is_some()));
        for (key, value) in &pairs {
            prop_assert_eq!(gguf.metadata().get(key), Some(value));
        }
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (name, (quant_type, dims)) in &tensors {
            let tensor = gguf.tensor(name).unwrap();
            prop_assert_eq!((tensor.quant_type, tensor.dims()), (*quant_type, dims.as_slice()));
            let mut read = vec![0; tensor.n_bytes as usize];
            gguf.read_tensor(tensor, &mut read).unwrap();
            prop_assert_eq!(read, data(name, tensor.n_bytes));
        }
    }

    #[test]
    fn random_damage_loads_or_is_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample().to_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 8);
        survives(&bytes);
    }
}
