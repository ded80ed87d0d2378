//! A number that tells models apart: states that are saved belong to the model with the same.

use std::fmt::Write;

use super::ModelDesc;
use crate::Result;
use crate::checksum::Checksum;
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;

/// Bytes that are looked at in the middle of each tensor: models of one family differ in nothing else.
const SAMPLE: usize = 4096;

/// Of hyperparameters, tokens, the table of tensors, and a part of each tensor's data.
///
/// # Errors
/// When the file cannot be read.
pub fn fingerprint(gguf: &Gguf, desc: &ModelDesc, tokenizer: &Tokenizer, n_ctx: usize) -> Result<u64> {
    let mut sum = Checksum::new();
    // Writing to a checksum never fails.
    let _ = write!(sum, "{desc:?}");
    // Some models turn long contexts differently.
    let _ = write!(sum, "{}", n_ctx > desc.rope.n_ctx_orig);
    (0..tokenizer.n_vocab() as u32).for_each(|id| sum.add(tokenizer.token_bytes(id, true)));
    let mut sample = [0; SAMPLE];
    for tensor in gguf.tensors() {
        let _ = write!(sum, "{} {:?} {}", tensor.name, tensor.dims(), tensor.quant_type as u32);
        let n = tensor.n_bytes.min(SAMPLE as u64);
        let sample = &mut sample[..n as usize];
        gguf.read_tensor_part(tensor, (tensor.n_bytes - n) / 2, sample)?;
        sum.add(sample);
    }
    Ok(sum.value())
}
