//! GGUF files, good and bad. Test names start with the case they cover.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/alloc.rs"]
mod alloc;
#[path = "../common/folder.rs"]
mod folder;
#[path = "../common/gguf_bytes.rs"]
mod gguf_bytes;
#[path = "../common/models.rs"]
mod models;
#[path = "../common/time.rs"]
mod time;

mod faults;
mod files;
mod header;
mod metadata;
mod real;
mod sweeps;
mod tensors;

use std::time::Duration;

use gguf_bytes::load_and_read;
use kigo::gguf::{Array, Gguf, StringArray, Value, Writer};
use kigo::quant::QuantType;
use kigo::{Error, Status};

/// A small file with every value type, every element type, and tensors of several types.
fn sample() -> Writer {
    let strings = StringArray::try_from_iter(["", "a", "haiku"]).unwrap();
    Writer::new()
        .pair("general.architecture", "llama")
        .pair("general.alignment", Value::U32(32))
        .pair("t.u8", Value::U8(1))
        .pair("t.i8", Value::I8(-1))
        .pair("t.u16", Value::U16(2))
        .pair("t.i16", Value::I16(-2))
        .pair("t.u32", Value::U32(3))
        .pair("t.i32", Value::I32(-3))
        .pair("t.f32", Value::F32(0.5))
        .pair("t.bool", Value::Bool(true))
        .pair("t.u64", Value::U64(4))
        .pair("t.i64", Value::I64(-4))
        .pair("t.f64", Value::F64(0.25))
        .pair("t.u8s", Value::Array(Array::U8(vec![1, 2])))
        .pair("t.i8s", Value::Array(Array::I8(vec![-1])))
        .pair("t.u16s", Value::Array(Array::U16(vec![1, 2])))
        .pair("t.i16s", Value::Array(Array::I16(vec![-1])))
        .pair("t.u32s", Value::Array(Array::U32(vec![1, 2])))
        .pair("t.i32s", Value::Array(Array::I32(vec![-1])))
        .pair("t.f32s", Value::Array(Array::F32(vec![0.5])))
        .pair("t.bools", Value::Array(Array::Bool(vec![true, false])))
        .pair("t.strings", Value::Array(Array::String(strings)))
        .pair("t.u64s", Value::Array(Array::U64(vec![1, 2])))
        .pair("t.i64s", Value::Array(Array::I64(vec![-1])))
        .pair("t.f64s", Value::Array(Array::F64(vec![0.5])))
        .pair("t.none", Value::Array(Array::U32(vec![])))
        .tensor("a.weight", &[4, 2], QuantType::F32, (0..32).collect())
        .tensor("b.weight", &[3, 1, 5], QuantType::F16, vec![7; 30])
        .tensor("c.weight", &[32, 2], QuantType::Q4_1, vec![9; 40])
        .tensor("d.weight", &[32], QuantType::BF16, vec![1; 64])
}

/// A file with one pair.
fn one_pair(key: &str, value: impl Into<Value>) -> Vec<u8> {
    Writer::new().pair(key, value).to_bytes()
}

/// Where `needle` first is in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap()
}

/// `bytes` with `new` written over what is at `at`.
fn patched(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Runs `body`, which may take two seconds and `memory` bytes.
fn bounded<T>(memory: usize, body: impl FnOnce() -> T) -> T {
    let started = time::cpu();
    let (result, peak) = alloc::peak(body);
    let took = time::cpu() - started;
    assert!(took < Duration::from_secs(2), "took {took:?}");
    assert!(peak <= memory, "{peak} bytes, expected at most {memory}");
    result
}

/// Loads `bytes` and reads their tensors, in bounded time and memory.
fn load(bytes: &[u8]) -> Result<Gguf, Error> {
    let source = Box::new(std::io::Cursor::new(bytes.to_vec()));
    bounded((64 << 20) + 4 * bytes.len(), || Gguf::from_source(source).map(drop)).ok();
    load_and_read(bytes)
}

/// Checks that `bytes` are refused with `status`, that the message has all of `words`, and that nothing is left.
fn refused(bytes: &[u8], status: Status, words: &[&str]) {
    let before = alloc::thread();
    let error = load(bytes).expect_err("a bad file loaded");
    assert_eq!(error.status(), status, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    drop((error, text));
    assert_eq!(alloc::thread(), before);
}

/// Checks that `bytes` load, and that dropping the result leaves nothing.
fn loads(bytes: &[u8]) {
    let before = alloc::thread();
    drop(load(bytes).unwrap());
    assert_eq!(alloc::thread(), before);
}
