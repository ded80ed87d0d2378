//! kigo loads a GGUF language model and generates text, behind a C ABI that never takes its host down.
pub mod c_api;
pub mod session;
pub mod engine;
pub mod model;
pub mod backend;
pub mod sampler;
pub mod tokenizer;
pub mod gguf;
pub mod quant;
pub mod error;
pub mod panics;
pub use error::{Error, Result, Status};
