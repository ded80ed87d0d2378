//! The C API.
#![allow(unsafe_code, reason = "C callers hand over raw pointers; every use of one is proved in place")]
#![allow(non_camel_case_types, reason = "types carry the names that C uses")]

mod boundary;
mod error;
mod handle;
mod status;

pub use error::{kigo_error, kigo_error_free, kigo_error_message, kigo_error_status};
pub use status::kigo_status_name;
