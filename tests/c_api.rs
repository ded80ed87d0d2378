//! The C API from outside: the header, the export list and C programs.

#[path = "c_api/header.rs"]
mod header;
