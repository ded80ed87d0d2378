//! Memory of the device: what the books of a model say beside what the driver gave, and what is freed.

use kigo::backend::cuda::context::Context;
use kigo::backend::{Device, Purpose};
use kigo::quant::QuantType;
use kigo::session::{Prompt, Session};

use super::folder::Folder;
use super::harness::*;
use super::models;
use super::random_model::{Shape, draft};

const N_LOADS: usize = 100;
/// Most that the driver may have given beyond the books, which it rounds, or less: this part of them.
const MAX_DEVIATION: f64 = 0.02;

/// 400 MB in Q8_0: enough that what the driver rounds is small beside it.
const LARGE: Shape = Shape {
    n_layer: 4,
    n_embd: 2048,
    n_head: 32,
    n_head_kv: 8,
    head_dim: 64,
    n_rot: 64,
    n_ff: 8192,
    n_vocab: 32000,
    tied: false,
    biases: false,
    norm_biases: false,
};

/// Free memory of the device under test, in bytes, as the driver says.
fn free_bytes() -> u64 {
    let Some(Device::Cuda(ordinal)) = Device::parse(&gpu()) else { panic!("{} is no GPU", gpu()) };
    Context::open(ordinal).and_then(|context| context.free_memory()).unwrap_or_else(|error| panic!("{error}"))
}

/// The driver hands out small allocations from blocks of 2 MiB, and at times keeps one. A model that leaked would leave a
/// chunk of its cache, 32 MiB, every time.
const DRIVER_KEEPS: u64 = 4 << 20;

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
fn the_books_are_what_the_driver_gave() {
    in_kept_context(|| {
        let folder = Folder::new();
        let path = folder.write("model.gguf", &draft(&LARGE, &[QuantType::Q8_0], 1).writer());
        // What the driver takes for itself when kernels first run is not the model's.
        let prompt: Vec<u32> = (0..3000).map(|i| i * 7919 % 32000).collect();
        let run = || {
            let engine = load(&path, &gpu(), 512);
            let mut session = Session::start(&engine, Prompt::Tokens(&prompt), &seeded(1, 4)).unwrap();
            session.peek_token().unwrap_or_else(|error| panic!("{error}"));
            (session, engine)
        };
        drop(run());
        let before = free_bytes();
        let (session, engine) = run();
        let taken = before.saturating_sub(free_bytes());

        let books = Purpose::ALL.map(|purpose| engine.memory().bytes(purpose));
        let all: u64 = books.iter().sum();
        println!("weights, cache, workspace: {books:?}; {all} in all, {taken} less are free");
        assert!((taken as f64 / all as f64 - 1.0).abs() <= MAX_DEVIATION, "books of {all}, the driver gave {taken}");
        let residency = engine.memory().residency().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(residency.device_bytes, all, "bytes that the driver says are on the device");
        let (weights, file) = (books[0] as f64, engine.weight_bytes() as f64);
        assert!((0.98..1.1).contains(&(weights / file)), "{weights} bytes of weights, {file} in the file");
        let values = 3000 * 2 * LARGE.n_layer * LARGE.n_head_kv * LARGE.head_dim;
        assert!(books[1] >= 2 * values as u64, "{} bytes hold {values} keys and values in f16", books[1]);

        drop((session, engine));
        assert!(free_bytes() + DRIVER_KEEPS >= before, "{} bytes are not free again", before - free_bytes());
    });
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
        (0..N_LOADS).for_each(|_| cycle());
        let later = free_bytes();
        println!("free before {before}, after {N_LOADS} loads {after}, after as many again {later}");
        assert!(after + DRIVER_KEEPS >= before, "{} bytes are missing after {N_LOADS} loads", before - after);
        assert!(later >= after, "{} bytes more are missing after as many loads again", after - later);
    });
}
