//! kigo loads a GGUF language model and generates text, behind a C ABI that never takes its host down.
pub mod c_api;
pub mod engine;
pub mod error;
pub mod panics;
pub mod quant;
pub mod sampler;
pub mod session;
pub use error::{Error, Result, Status};
