//! Where tests find models: small ones in the tree, real ones in the cache folder that `make fetch` fills.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::path::PathBuf;

pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

/// The folder that `make gpu-bundle` fills, where the tests run out of one.
pub fn bundle() -> Option<PathBuf> {
    std::env::var_os("KIGO_BUNDLE").map(PathBuf::from)
}

/// A file of `tests/data`.
pub fn data(file: &str) -> PathBuf {
    let here = || concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data").into();
    bundle().map_or_else(here, |bundle| bundle.join("data")).join(file)
}

/// A file of the cache folder; `None`, and a line that says so, when models are skipped on request.
///
/// # Panics
/// When the file is missing and nobody asked to skip it.
pub fn cached(file: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("KIGO_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("kigo")))
        .or_else(|| Some(variable("HOME")?.join(".cache/kigo")));
    let path = cache.unwrap_or_default().join(file);
    if !path.exists() && std::env::var("KIGO_SKIP_MODELS").as_deref() == Ok("1") {
        println!("skipped: {} is missing", path.display());
        return None;
    }
    assert!(path.exists(), "{} is missing: run `make fetch`, or set KIGO_SKIP_MODELS=1", path.display());
    Some(path)
}
