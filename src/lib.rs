//! kigo loads a GGUF language model and generates text, behind a C ABI that never takes its host down.
pub mod backend;
pub mod error;
pub mod gguf;
pub mod model;
pub mod panics;
pub mod quant;
pub mod tokenizer;
pub use error::{Error, Result, Status};
