//! Any bytes as a whole model: hyperparameters, vocabulary, template and weights load and run, or are refused:
//! `cargo +nightly fuzz run model -- -rss_limit_mb=1024 -timeout=5 -max_len=16384 -detect_leaks=0` (the thread of a
//! backend may end after it; tests/leaks.rs counts exactly).

#![no_main]

#[path = "../../tests/common/gguf_bytes.rs"]
mod gguf_bytes;
#[path = "../../tests/common/model_bytes.rs"]
mod model_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = model_bytes::load_and_run(bytes);
});
