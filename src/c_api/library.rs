//! What C can learn about the library itself.

use super::boundary::{Buffer, export, text};
use super::error::kigo_error;
use crate::error::quoted;
use crate::model::arch::ARCHITECTURES;
use crate::quant::QuantType;
use crate::{Error, Result};
use serde_json::{Value as Json, json};
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

/// Whether the library that is loaded serves a program that was built with this header. Call it once, before all else:
/// `kigo_abi_check(KIGO_ABI_VERSION, KIGO_VERSION_STRING, &error)`.
///
/// @param abi      KIGO_ABI_VERSION of the header.
/// @param version  KIGO_VERSION_STRING of the header.
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_ABI_MISMATCH: the library has another binary interface, or is older than the header and may lack some of its
///     functions; the message has both numbers.
///   - KIGO_INVALID_ARGUMENT: `version` is NULL or no version, such as "0.1.0".
///   - KIGO_INVALID_UTF8: `version` is not UTF-8.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `version` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_abi_check(abi: u32, version: *const c_char, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        // SAFETY: `version` is NULL or NUL-terminated by this function's contract.
        let version = unsafe { text(version, "version") }?;
        check(abi, version)?;
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// What `kigo_abi_check` says.
fn check(abi: u32, version: &str) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let asked = numbers(version)
        .ok_or_else(|| Error::invalid_argument("version", format!("one such as {own}"), quoted(version.as_bytes())))?;
    if abi != ABI_VERSION {
        let (found, expected) = (format!("the ABI {abi}"), format!("the ABI {ABI_VERSION}"));
        let remedy = "load the library that the program was built for, or build it anew";
        return Err(Error::AbiMismatch { argument: "abi", found, expected, remedy });
    }
    if numbers(own).is_some_and(|own| own < asked) {
        let (found, expected) = (format!("version {version}"), format!("version {own}"));
        let remedy = "load that version or a later one";
        return Err(Error::AbiMismatch { argument: "version", found, expected, remedy });
    }
    Ok(())
}

/// The three numbers of a version; what follows a hyphen or a plus is left out.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split(['-', '+']).next()?.split('.').map(str::parse);
    let numbers = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    parts.next().is_none().then_some(numbers)
}

/// How the library that is loaded was built, as a JSON object.
///
/// - "version", "abi_version": as kigo_version() and kigo_abi_version() tell them.
/// - "features": an array of the parts that a build may lack: "cuda", "regex", "worker-abi".
/// - "devices": the values of the option "device" that this build has code for.
/// - "architectures": what general.architecture of a file may be.
/// - "tensor_types": the types of tensors that it reads, by their names in GGUF.
/// - "target": for which processor and system it was built.
///
/// Later versions may add keys.
///
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `buffer` is NULL though `size` is not 0.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_build_info(buffer: *mut c_char, size: usize, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        Ok(buffer.answer(&build_info().to_string())?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

fn build_info() -> Json {
    let features = [
        ("cuda", cfg!(feature = "cuda")),
        ("regex", cfg!(feature = "regex")),
        ("worker-abi", cfg!(feature = "worker-abi")),
    ];
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi_version": ABI_VERSION,
        "features": features.iter().filter(|(_, built)| *built).map(|(name, _)| *name).collect::<Json>(),
        "devices": crate::backend::Device::BUILT.split(", ").collect::<Json>(),
        "architectures": ARCHITECTURES.iter().map(|architecture| architecture.name).collect::<Json>(),
        "tensor_types": QuantType::ALL.iter().map(|kind| kind.name()).collect::<Json>(),
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_this_or_an_earlier_version_is_served() {
        for version in [env!("CARGO_PKG_VERSION"), "0.0.9", "0.1.0-rc.1", "0.0.0+x"] {
            check(ABI_VERSION, version).unwrap();
        }
        for (abi, version) in
            [(ABI_VERSION + 1, "0.0.1"), (u32::MAX, "0.1.0"), (ABI_VERSION, "0.99.0"), (ABI_VERSION, "7.0.0")]
        {
            let error = check(abi, version).unwrap_err();
            assert_eq!(error.status(), crate::Status::AbiMismatch, "{error}");
        }
        for version in ["", "1", "0.1", "0.1.0.0", "a.b.c", "-1.0.0", "0.1.99999999999"] {
            assert_eq!(check(ABI_VERSION, version).unwrap_err().status(), crate::Status::InvalidArgument, "{version}");
        }
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        assert_eq!(VERSION.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
        // SAFETY: the function returns a NUL-terminated text that lives for ever.
        assert_eq!(unsafe { CStr::from_ptr(kigo_version()) }, VERSION);
        assert_eq!(kigo_abi_version(), ABI_VERSION);
    }
}
