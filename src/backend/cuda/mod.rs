//! Runs a model on an NVIDIA GPU, through the driver that the machine has.
//!
//! What a kernel does to memory is as much part of this module as its Rust code: addresses in kernel parameters are
//! plain numbers, and no type keeps a kernel from writing where it must not. Buffers are freed only when the streams
//! that use them are idle; every owner of both sees to that.
#![allow(unsafe_code, reason = "the driver is a C library; every use of it is proved in place")]

pub mod context;
pub mod driver;
pub mod kv_cache;
pub mod load;
pub mod memory;
pub mod module;
pub mod params;
pub mod sample;
pub mod stream;
