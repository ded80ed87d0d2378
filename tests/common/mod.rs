//! What integration tests share.
#![allow(dead_code, reason = "each test uses a part")]
pub fn smollm2() -> Option<std::path::PathBuf> { Some("/root/.cache/kigo/SmolLM2-135M-Instruct.Q4_1.gguf".into()) }
