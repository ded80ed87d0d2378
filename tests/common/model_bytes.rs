//! One body for the fuzz target of models and the sweep over a damaged one: any bytes as a whole model.

use std::io::Cursor;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{Weights, arch};
use kigo::tokenizer::chat::ChatTemplate;
use kigo::tokenizer::{EncodeOptions, Tokenizer};
use kigo::{Error, Result};

/// Loads `bytes` as a model, encodes and decodes a text, compiles the template and runs two tokens.
///
/// # Errors
/// What loading answers; its message has been checked.
pub fn load_and_run(bytes: &[u8]) -> Result<()> {
    let outcome = run(bytes);
    outcome.as_ref().err().into_iter().for_each(super::gguf_bytes::check_message);
    outcome
}

fn run(bytes: &[u8]) -> Result<()> {
    let gguf = Gguf::from_source(Box::new(Cursor::new(bytes.to_vec())))?;
    let desc = arch::describe(gguf.metadata())?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let plan = Weights::plan(&gguf, &desc)?;
    let mut backend = CpuBackend::load(&gguf, &desc, &plan, (64, 1), &Progress::default())?;
    let options = EncodeOptions { add_special: true, parse_special: true, broken_by: None };
    let tokens = tokenizer.encode("The <|im_start|> 42nd h\u{e9}\u{1F338}\n\n  of spring's ", options)?;
    assert!(tokens.iter().all(|&token| (token as usize) < tokenizer.n_vocab()));
    tokenizer.decode(&tokens, true)?;
    if let Some(source) = tokenizer.chat_template() {
        let _ = ChatTemplate::new(source);
    }
    let row = |position: u32, token| Row { token, position, sequence: 0, logits: true };
    let token = |at: usize| tokens.get(at).copied().unwrap_or(0);
    backend.sequence_reserve(0, 2)?;
    backend.forward(&[row(0, token(0)), row(1, token(1))])?;
    match backend.logits(1)?.len() == tokenizer.n_vocab() {
        true => Ok(()),
        false => Err(Error::Internal("the logits are not as many as the tokens".into())),
    }
}
