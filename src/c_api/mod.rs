//! The C API.
#![allow(unsafe_code, reason = "C callers hand over raw pointers; every use of one is proved in place")]
#![allow(non_camel_case_types, reason = "types carry the names that C uses")]

mod boundary;
mod error;
mod handle;
mod inference;
mod library;
mod model;
mod options;
mod status;

pub use error::{kigo_error, kigo_error_free, kigo_error_message, kigo_error_status};
pub use inference::{kigo_inference, kigo_inference_cancel, kigo_inference_finish_reason, kigo_inference_free};
pub use inference::{kigo_inference_get_f64, kigo_inference_get_i64, kigo_inference_last_error, kigo_inference_start};
pub use inference::{kigo_inference_start_tokens, kigo_next_text, kigo_next_token};
pub use library::{kigo_abi_version, kigo_version};
pub use model::{kigo_model, kigo_model_free, kigo_model_get_i64, kigo_model_get_str, kigo_model_load};
pub use options::kigo_options_set_str;
pub use options::{kigo_options, kigo_options_free, kigo_options_new, kigo_options_set_f64, kigo_options_set_i64};
pub use status::kigo_status_name;
