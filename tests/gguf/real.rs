//! A published model.

use std::path::PathBuf;

use super::*;

/// SmolLM2-135M-Instruct in Q4_1: the path in `KIGO_MODEL_SMOLLM2`, or in the cache.
fn smollm2() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("KIGO_MODEL_SMOLLM2") {
        return Some(path.into());
    }
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = var("KIGO_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|path| path.join("kigo")))
        .or_else(|| var("HOME").map(|path| path.join(".cache/kigo")))?;
    let path = cache.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    path.exists().then_some(path)
}

#[test]
fn smollm2_loads() {
    let Some(path) = smollm2() else {
        eprintln!("skipped: no SmolLM2-135M-Instruct.Q4_1.gguf; set KIGO_MODEL_SMOLLM2 to its path");
        return;
    };
    let started = Instant::now();
    let (gguf, peak) = alloc::peak(|| Gguf::open(&path).unwrap());
    println!("{} bytes opened in {:?} with {peak} bytes", gguf.file_bytes(), started.elapsed());
    let m = gguf.metadata();
    assert_eq!(m.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(m.u32("llama.block_count").unwrap(), Some(30));
    assert_eq!(m.u32("llama.embedding_length").unwrap(), Some(576));
    assert_eq!(m.u32("llama.attention.head_count").unwrap(), Some(9));
    assert_eq!(m.u32("llama.attention.head_count_kv").unwrap(), Some(3));
    assert_eq!(m.strings("tokenizer.ggml.tokens").unwrap().map(StringArray::len), Some(49_152));
    assert_eq!(m.i32s("tokenizer.ggml.token_type").unwrap().map(|v| v.len()), Some(49_152));
    assert_eq!(m.strings("tokenizer.ggml.merges").unwrap().map(StringArray::len), Some(48_900));
    assert_eq!(gguf.tensors().len(), 272);
    let embd = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embd.dims(), [576, 49_152]);
    let q = gguf.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.dims(), q.quant_type), (&[576, 576][..], QuantType::Q4_1));
    let norm = gguf.tensor("output_norm.weight").unwrap();
    assert_eq!((norm.dims(), norm.quant_type), (&[576][..], QuantType::F32));
    let mut data = vec![0; norm.n_bytes as usize];
    gguf.read_tensor(norm, &mut data).unwrap();
    let mut weights = vec![0.0; 576];
    norm.quant_type.dequantize(&data, &mut weights);
    assert!(weights.iter().all(|w| w.is_finite() && (0.0..100.0).contains(&w.abs())));
    let end = gguf.tensors().iter().map(|t| t.offset + t.n_bytes).max();
    assert_eq!(end, Some(gguf.file_bytes()));
}
