//! Any bytes as a model file: they load or are refused, within the bounds of memory and time that the command
//! line sets: `cargo +nightly fuzz run gguf -- -rss_limit_mb=512 -timeout=2 -max_len=8192`.

#![no_main]

#[path = "../../tests/common/gguf_bytes.rs"]
mod gguf_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = gguf_bytes::load_and_read(bytes);
});
