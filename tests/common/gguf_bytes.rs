//! One body for the fuzz target, its corpus and the sweeps over damaged files.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::io::Cursor;

use kigo::gguf::{Gguf, Metadata, Writer};
use kigo::{Error, Result};

/// Loads `bytes` as a model file, reads all its tensors, and checks what must hold whatever the bytes are.
pub fn load_and_read(bytes: &[u8]) -> Result<Gguf> {
    let loaded = Gguf::from_source(Box::new(Cursor::new(bytes.to_vec())));
    match &loaded {
        Ok(gguf) => check(gguf, bytes.len() as u64),
        Err(error) => check_message(error),
    }
    loaded
}

fn check(gguf: &Gguf, len: u64) {
    let mut sum = 0u64;
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        assert_eq!(tensor.dims().iter().product::<u64>(), tensor.n_elements);
        assert_eq!(tensor.quant_type.bytes(tensor.n_elements), Some(tensor.n_bytes));
        assert!(tensor.offset.is_multiple_of(8) && tensor.offset + tensor.n_bytes <= len);
        sum += tensor.n_bytes;
        let mut data = vec![0; tensor.n_bytes as usize];
        gguf.read_tensor(tensor, &mut data).unwrap();
    }
    assert!(sum <= len, "tensors of {sum} bytes in a file of {len} must overlap");
    check_getters(gguf.metadata());
    let rewritten = Writer::new().metadata(gguf.metadata()).to_bytes();
    let again = parsed_metadata(&rewritten);
    assert_eq!(Writer::new().metadata(&again).to_bytes(), rewritten);
}

fn parsed_metadata(bytes: &[u8]) -> Metadata {
    Gguf::from_source(Box::new(Cursor::new(bytes.to_vec()))).unwrap().metadata().clone()
}

fn check_getters(metadata: &Metadata) {
    for (key, value) in metadata.iter() {
        assert_eq!(metadata.get(key).map(|v| v.type_id()), Some(value.type_id()));
        let refusals = [
            metadata.u32(key).err(),
            metadata.i64(key).err(),
            metadata.f32(key).err(),
            metadata.bool(key).err(),
            metadata.str(key).err(),
            metadata.strings(key).err(),
            metadata.f32s(key).err(),
            metadata.i32s(key).err(),
        ];
        refusals.iter().flatten().for_each(check_message);
    }
}

/// Checks that the message of `error` is one line of at most 512 printable bytes.
pub fn check_message(error: &Error) {
    let text = error.to_string();
    assert!(text.len() <= 512, "{} bytes: {text}", text.len());
    assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "not printable: {text:?}");
}
