//! GGUF: the file format of the models.

mod array;
mod metadata;
mod text;

pub use array::{Array, StringArray};
pub use metadata::{Metadata, Value};
