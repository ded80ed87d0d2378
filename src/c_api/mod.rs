//! kigo loads a GGUF language model and generates text.
//!
//! This is the whole C API. It works in C99 and later, in C++11 and later, and through any foreign function
//! interface: there are no structs, no variable arguments, no `bool`, and no callback that you must have.
//!
//! ## A program in ten lines
//!
//! ```c
//! kigo_model *model = NULL;
//! kigo_inference *inference = NULL;
//! kigo_error *error = NULL;
//! char text[256];
//! int32_t n = kigo_model_load("model.gguf", NULL, &model, &error);
//! if (n == 0) n = kigo_inference_start(model, "Once", KIGO_NUL_TERMINATED, NULL, &inference, &error);
//! while (n >= 0 && (n = kigo_next_text(inference, text, sizeof text, &error)) > 0) fputs(text, stdout);
//! if (n < 0) fprintf(stderr, "%s\n", kigo_error_message(error));
//! kigo_error_free(error);
//! kigo_inference_free(inference);
//! kigo_model_free(model);
//! ```
//!
//! ## Answers
//!
//! A function that can fail returns an `int32_t`: a negative number is a status, listed below with what to do about
//! it; KIGO_OK, which is 0, or a positive number is success. No status number ever changes its meaning, and later
//! versions may add some, so treat a negative number that you do not know as a failure.
//!
//! Most functions end with `kigo_error **error`. Pass NULL, or the address of a pointer: on failure, and only then,
//! an error object with a message is written there, which you free with kigo_error_free(). What was there before is
//! overwritten without being freed. There is no "last error" of a thread.
//!
//! Whatever else a function writes for you, it writes on success only. A call that failed changed nothing, unless its
//! description says otherwise.
//!
//! ## Handles and ownership
//!
//! `kigo_model *` and its like are handles. They look like pointers, but are numbers that stand for nothing in memory:
//! compare and copy them, never follow them. Each handle that a function wrote for you is yours until you free it
//! with the function of its kind. A NULL, freed or made-up handle, or one of another kind, is answered with
//! KIGO_INVALID_HANDLE and does no harm; freeing NULL does nothing. At most 1048576 handles of a kind live at a time.
//!
//! A function keeps no pointer that you pass, except kigo_options_set_progress() and kigo_log_set_sink(): texts and
//! options are copied during the call. Texts that kigo returns are written into your buffers. Only kigo_error_message(), kigo_version() and
//! kigo_status_name() return pointers to memory of kigo; their descriptions say how long that lasts.
//!
//! ## Pointers and NULL
//!
//! A pointer may be NULL only where its description says so; otherwise the call returns KIGO_INVALID_ARGUMENT and the
//! message names the argument. Pointers that are neither NULL nor valid for their purpose are the one thing that kigo
//! cannot detect. Of a buffer only the bytes that the answer needs are touched.
//!
//! ## Text
//!
//! All text is UTF-8, except paths, which are what the system takes. Texts that go in end with a NUL, except prompts,
//! which have a length and may hold NULs. Invalid UTF-8 is answered with KIGO_INVALID_UTF8. Text that comes out is
//! complete UTF-8: a character is never cut in two. Messages may quote model files, with control characters escaped;
//! print them with "%s".
//!
//! ## Chats
//!
//! With the option prompt_format=chat a prompt is JSON: an array of messages, each with "role" and "content" as
//! servers for chats take them, or an object with the messages and what else the chat template is to see:
//!
//! ```json
//! {"messages": [{"role": "user", "content": "Hello"}],
//!  "tools": [{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}],
//!  "documents": [{"title": "...", "text": "..."}],
//!  "chat_template_kwargs": {"enable_thinking": false},
//!  "add_generation_prompt": true,
//!  "continue_final_message": false}
//! ```
//!
//! Only "messages" has to be there; another key is an error. "chat_template_kwargs" are variables of the template.
//! With "continue_final_message" the prompt ends inside the last message, and the model goes on with it. Arguments
//! of tool calls may be objects or strings that are the JSON of one. Only the template makes control tokens: no text
//! of a message, tool or variable becomes one.
//!
//! The template is the model's own, or that of the option "chat_template": a Jinja program that may use what Hugging
//! Face's transformers offers; its strftime_now() tells the time in UTC. Its work, memory, depth and output have
//! bounds, and it reaches nothing but the chat. kigo_model_chat_render() shows what it makes of a chat.
//!
//! kigo_inference_append() takes the chat further.
//!
//! ## Threads
//!
//! Every function may be called from any thread, and a handle may move between threads. A model and an options object
//! may be used by many threads at once. An inference generates for one thread at a time; a second one gets KIGO_BUSY
//! and does no harm. Cancelling, asking and freeing are possible at all times and do not wait. Inferences of one model
//! run side by side.
//!
//! ## Processes
//!
//! After fork(), the child of a process that used kigo gets KIGO_FORKED from every function, and frees do nothing;
//! parent and child are not harmed. Use kigo first after fork(), or call exec(). Once loaded, the library stays in the
//! process: dlclose() is allowed and has no effect. kigo prints nothing, handles no signal, changes no locale or
//! environment variable and never ends the process, with one exception: when the system refuses a small allocation
//! on the host, of less than 4 KiB or for a chat template, a grammar or JSON.
//!
//! ## Log
//!
//! kigo_log_set_sink() names a function of yours that is told what kigo does; kigo_log_set_queue() opens a queue that
//! kigo_log_next() takes it from, with no function needed. Neither is there at first. What is told is for people and may
//! change with any version; what a program must know is in statuses and facts. Nothing is told for a token.
//!
//! ## Versions
//!
//! Functions, statuses and keys are added, never changed or removed, while KIGO_ABI_VERSION stays the same.
//! kigo_abi_check() compares the header with the library that was loaded.
#![allow(unsafe_code, reason = "C callers hand over raw pointers; every use of one is proved in place")]
#![allow(non_camel_case_types, reason = "types carry the names that C uses")]

mod boundary;
mod chat;
mod device;
mod error;
mod generation;
mod handle;
pub mod header;
mod inference;
mod info;
mod library;
mod load;
mod log;
mod metadata;
mod model;
mod option_row;
mod option_table;
mod options;
mod sampling_table;
mod settings;
mod status;
mod tokens;
mod turns;
#[cfg(feature = "worker-abi")]
pub mod worker;

pub use chat::kigo_model_chat_render;
pub use device::{kigo_device_count, kigo_device_get_i64, kigo_device_get_str, kigo_device_list};
pub use error::{kigo_error, kigo_error_free, kigo_error_message, kigo_error_status};
pub use inference::{kigo_inference, kigo_inference_cancel, kigo_inference_finish_reason, kigo_inference_free};
pub use inference::{kigo_inference_get_f64, kigo_inference_get_i64, kigo_inference_last_error, kigo_inference_start};
pub use inference::{kigo_inference_logits, kigo_inference_logprobs};
pub use inference::{kigo_inference_start_tokens, kigo_next_text, kigo_next_token};
pub use info::{kigo_file_info, kigo_model_info};
pub use library::{kigo_abi_check, kigo_abi_version, kigo_build_info, kigo_version};
pub use load::{kigo_load, kigo_load_cancel, kigo_load_finish, kigo_load_free, kigo_load_progress, kigo_load_start};
pub use log::{kigo_log_next, kigo_log_set_queue, kigo_log_set_sink, kigo_log_sink};
pub use metadata::{kigo_model_metadata_count, kigo_model_metadata_key, kigo_model_metadata_type};
pub use metadata::{kigo_model_metadata_get_f64, kigo_model_metadata_get_i64};
pub use metadata::{kigo_model_metadata_get_json, kigo_model_metadata_get_str};
pub use model::{kigo_model, kigo_model_free, kigo_model_load};
pub use model::{kigo_model_clear_prompt_cache, kigo_model_verify_residency};
pub use model::{kigo_model_get_f64, kigo_model_get_i64, kigo_model_get_str};
pub use options::{kigo_options, kigo_options_free, kigo_options_new, kigo_options_set_f64, kigo_options_set_i64};
pub use options::{kigo_options_keys, kigo_options_set_progress, kigo_options_set_str, kigo_progress};
pub use status::kigo_status_name;
pub use tokens::{kigo_model_detokenize, kigo_model_special_token, kigo_model_token_attributes};
pub use tokens::{kigo_model_token_bytes, kigo_model_tokenize};
pub use turns::{kigo_inference_append, kigo_inference_append_tokens, kigo_inference_fork, kigo_inference_load};
pub use turns::{kigo_inference_rewind, kigo_inference_save};
