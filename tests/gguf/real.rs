//! A published model.

use super::*;

#[test]
fn smollm2_loads() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let gguf = bounded(8 << 20, || Gguf::open(&path).unwrap());
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
    let rewritten = gguf.tensors().iter().fold(Writer::new().metadata(m), |writer, tensor| {
        let mut data = vec![0; tensor.n_bytes as usize];
        gguf.read_tensor(tensor, &mut data).unwrap();
        writer.tensor(&tensor.name, tensor.dims(), tensor.quant_type, data)
    });
    assert!(rewritten.to_bytes() == std::fs::read(&path).unwrap(), "written again, the file differs");
}
