//! Memory of the device: what is freed, as the driver sees it.

use kigo::backend::Device;
use kigo::backend::cuda::context::Context;

use super::harness::*;
use super::models;

const N_LOADS: usize = 100;

/// Free memory of the device under test, in bytes, as the driver says.
fn free_bytes() -> u64 {
    let Some(Device::Cuda(ordinal)) = Device::parse(&gpu()) else { panic!("{} is no GPU", gpu()) };
    Context::open(ordinal).and_then(|context| context.free_memory()).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `body` while another model holds the device's context, so that the driver's own memory does not come and go.
/// Nothing else may use the device meanwhile: run these tests with `--test-threads=1`.
fn in_kept_context(body: impl FnOnce()) {
    let kept = load(&models::data("tiny-llama.gguf"), &gpu(), 8);
    assert!(!generate(&kept, &[1, 2, 3], &seeded(1, 4)).is_empty());
    body();
    drop(kept);
}

#[test]
#[ignore = "needs a GPU"]
fn a_hundred_loads_leave_nothing() {
    in_kept_context(|| {
        let cycle = || {
            let engine = load(&models::data("tiny-llama-q8_0.gguf"), &gpu(), 64);
            assert!(!generate(&engine, &[1, 2, 3], &seeded(1, 4)).is_empty());
        };
        cycle();
        let before = free_bytes();
        (0..N_LOADS).for_each(|_| cycle());
        let after = free_bytes();
        println!("free before {before}, after {N_LOADS} loads {after}");
        assert!(after >= before, "{} bytes are missing after {N_LOADS} loads", before - after);
    });
}
