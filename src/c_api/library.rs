//! What C can learn about the library itself.

use std::ffi::{CStr, c_char};

/// The version of the package, for C.
pub(super) const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// Number of the binary interface; raised whenever a program built with an older header would no longer work.
pub(super) const ABI_VERSION: u32 = 0;

/// The version of the library that is loaded, such as "0.1.0"; the header's is KIGO_VERSION_STRING.
///
/// @returns A text that stays valid for ever; do not free it. Never NULL.
///
/// Any thread may call it at any time, also in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The number of the binary interface of the library that is loaded.
///
/// A program works with a library whose number equals the KIGO_ABI_VERSION it was built with, and whose version is
/// the same or later. The number is also the end of the library's file name, as in libkigo.so.0.
///
/// @returns The number.
///
/// Any thread may call it at any time, also in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_abi_version() -> u32 {
    ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_package() {
        assert_eq!(VERSION.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
        // SAFETY: the function returns a NUL-terminated text that lives for ever.
        assert_eq!(unsafe { CStr::from_ptr(kigo_version()) }, VERSION);
        assert_eq!(kigo_abi_version(), ABI_VERSION);
    }
}
