//! The worker functions on a GPU, as far as a fake driver goes: which device is found, what it holds, what is lost.
#![cfg(all(feature = "cuda", feature = "worker-abi", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the functions take pointers")]

#[allow(dead_code, reason = "shared with other tests")]
mod fake_driver;

use std::ffi::CString;

use fake_driver::{fresh_folder, run, run_with, say};
use kigo::c_api::worker::*;

/// Opens the device `ORDINAL` and, if that works, loads the tiny model and asks all there is to ask.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child() {
    let ordinal = std::env::var("ORDINAL").map_or(0, |text| text.parse().unwrap());
    let path = CString::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-llama.gguf")).unwrap();
    let (mut code, mut bytes) = (-1, 0);
    say(cuda_get_device_count());
    // SAFETY: the code is a local.
    let context = unsafe { cuda_init(ordinal, &raw mut code) };
    say(format!("init {code}"));
    assert_eq!(context.is_null(), code != 0);
    // SAFETY: the path ends with a NUL, the code and the bytes are locals.
    let model = unsafe { cuda_load_model(context, path.as_ptr(), &raw mut bytes, &raw mut code) };
    say(format!("load {code}"));
    if !model.is_null() {
        assert!(bytes > 0);
        assert_eq!(cuda_model_get_vram_usage(model), bytes);
        assert_eq!(cuda_get_vram_usage(model), bytes);
        assert_eq!(cuda_get_process_vram_usage(context), bytes);
        // SAFETY: the code is a local.
        let resident = unsafe { cuda_check_vram_residency(model, &raw mut code) };
        say(format!("resident {resident} {code}"));
    }
    // SAFETY: the code is a local.
    let healthy = unsafe { cuda_check_device_health(context, &raw mut code) };
    say(format!("healthy {healthy} {code}"));
    cuda_unload_model(model);
    assert_eq!(cuda_get_process_vram_usage(context), 0);
    cuda_destroy(context);
}

fn said(variables: &[(&str, &str)]) -> Vec<String> {
    let cleared = [("KIGO_DEVICE", ""), ("KIGO_WORKER_N_CTX", "128")];
    run("child", &[&cleared[..], variables].concat()).said
}

#[test]
fn a_model_is_loaded_counted_and_looked_at() {
    let run = run("child", &[("KIGO_DEVICE", ""), ("FAKE_CUDA_DEVICES", "90,86"), ("ORDINAL", "1")]);
    assert_eq!(run.said, ["2", "init 0", "load 0", "resident true 0", "healthy true 0"]);
    run.assert_clean("a model");
}

#[test]
fn a_device_that_is_not_there_is_not_found_or_invalid() {
    let none =
        |count, code| vec![format!("{count}"), format!("init {code}"), "load 5".into(), "healthy false 5".into()];
    assert_eq!(said(&[("FAKE_CUDA_DEVICES", "")]), none(0, 8));
    assert_eq!(said(&[("FAKE_CUDA_VERSION", "12030")]), none(0, 8));
    assert_eq!(said(&[("FAKE_CUDA_DEVICES", "75")]), none(1, 1));
    for ordinal in ["1", "-1", "2147483647"] {
        assert_eq!(said(&[("FAKE_CUDA_DEVICES", "90"), ("ORDINAL", ordinal)]), none(1, 1));
    }
    let folder = fresh_folder("worker-no-driver");
    std::fs::write(folder.join("libcuda.so.1"), "not a library").unwrap();
    assert_eq!(run_with(&folder, "child", &[("KIGO_DEVICE", "")]).said, none(0, 8));
}

#[test]
fn memory_elsewhere_and_lost_devices_have_codes_of_their_own() {
    let fail =
        |call, at, code| said(&[("FAKE_CUDA_FAIL_IN", call), ("FAKE_CUDA_FAIL_AT", at), ("FAKE_CUDA_FAIL_CODE", code)]);
    // 2 is out of memory, 719 an error after which nothing works in this process.
    assert_eq!(fail("cuMemAlloc", "1", "2"), ["1", "init 0", "load 2", "healthy true 0"]);
    assert_eq!(fail("cuMemAlloc", "1", "719"), ["1", "init 0", "load 6", "healthy false 6"]);
    let lost = fail("cuPointerGetAttribute", "1", "719");
    assert_eq!(lost, ["1", "init 0", "load 0", "resident false 6", "healthy false 6"]);
}
