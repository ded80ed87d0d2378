//! The C API from outside: the header, the export list, and C programs that use and misuse the library.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "c_api/abi.rs"]
mod abi;
#[path = "c_api/exports.rs"]
mod exports;
#[path = "c_api/header.rs"]
mod header;
#[path = "c_api/nulls.rs"]
mod nulls;
#[path = "c_api/programs.rs"]
mod programs;
#[path = "c_api/toolchain.rs"]
mod toolchain;
#[path = "c_api/valgrind.rs"]
mod valgrind;
#[cfg(feature = "worker-abi")]
#[path = "c_api/worker.rs"]
mod worker;
