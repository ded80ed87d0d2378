//! kigo loads a GGUF language model and generates text, behind a C ABI that never takes its host down.
pub mod error;
pub mod quant;
pub mod sampler;
pub mod tokenizer;
pub use error::{Error, Result, Status};
