//! Loading to device memory under a fake driver: what arrives, and what is left when something fails on the way.
//!
//! Each test runs an ignored one in a process of its own, because a driver is loaded once per process.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the device memory of the fake driver is host memory, which stands in for kernels")]

mod fake_driver;
#[path = "common/folder.rs"]
mod folder;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use fake_driver::{Run, run, say};
use folder::Folder;
use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::load::{Loaded, Opened, Piece, Plan, Repack, Space, Target};
use kigo::backend::cuda::stream::Stream;
use kigo::backend::{Memory, Progress, Purpose};
use kigo::gguf::{DirectIo, Gguf, Source, TensorInfo, Writer};
use kigo::quant::QuantType;
use kigo::{Error, Result};

const GROUP: u64 = 16;

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Copies rows to where they belong, as in the file. The "device" is the host.
struct CopyRows {
    /// What a launch that does not copy does.
    fault: Option<fn() -> Result<()>>,
    launches: AtomicUsize,
    /// Most bytes that were pinned, and that were on the device beside the weights.
    most: [AtomicU64; 2],
}

impl CopyRows {
    fn new() -> CopyRows {
        CopyRows { fault: None, launches: AtomicUsize::new(0), most: Default::default() }
    }
}

impl Repack for CopyRows {
    type Matrix = u64;
    fn rows(_: &Self::Matrix) -> u64 {
        GROUP
    }

    fn pads(info: &TensorInfo, _: &Self::Matrix) -> bool {
        !(info.n_elements / info.dims[0]).is_multiple_of(GROUP)
    }

    fn repack(
        &self,
        stream: &Stream,
        source: u64,
        rows: Range<u64>,
        info: &TensorInfo,
        offset: &u64,
        weights: u64,
    ) -> Result<()> {
        let n_rows = info.n_elements / info.dims[0];
        let row_bytes = info.n_bytes / n_rows;
        assert!(rows.start.is_multiple_of(GROUP) && rows.start < rows.end && rows.end <= n_rows);
        assert!(rows.end.is_multiple_of(GROUP) || rows.end == n_rows);
        if self.launches.fetch_add(1, Relaxed) == 2
            && let Some(fault) = self.fault
        {
            return fault();
        }
        let ledger = stream.context().ledger();
        self.most[0].fetch_max(ledger.pinned_bytes(), Relaxed);
        self.most[1].fetch_max(ledger.bytes(Purpose::Workspace), Relaxed);
        let to = (weights + offset + rows.start * row_bytes) as *mut u8;
        let bytes = ((rows.end - rows.start) * row_bytes) as usize;
        // SAFETY: both are parts of allocations of the fake driver, as the loader says.
        unsafe { std::ptr::copy_nonoverlapping(source as *const u8, to, bytes) };
        Ok(())
    }
}

/// Bytes in memory, of which read number `at` does something.
struct Watched<F> {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    at: usize,
    what: F,
}

impl<F: Fn() -> std::io::Result<()> + Send + Sync> Source for Watched<F> {
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.reads.fetch_add(1, Relaxed) == self.at {
            (self.what)()?;
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

fn noise(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// Matrices and vectors of every shape that is read differently: more than a slot, less than a group of rows, rows
/// that do not come out even.
fn file() -> Writer {
    let matrix = |writer: Writer, name: &str, cols: u64, rows: u64, kind: QuantType| {
        writer.tensor(name, &[cols, rows], kind, noise(kind.bytes(cols * rows).unwrap() as usize))
    };
    let vector = |writer: Writer, name: &str, n: usize| {
        let data = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        writer.tensor(name, &[n as u64], QuantType::F32, data)
    };
    let writer = matrix(Writer::new(), "large", 1024, 3003, QuantType::F32);
    let writer = vector(writer, "small", 7);
    let writer = matrix(writer, "few rows", 64, 3, QuantType::F16);
    let writer = vector(writer, "long", 200_001);
    let writer = matrix(writer, "blocks", 512, 5000, QuantType::Q4_K);
    let half: Vec<u8> = (0..640).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
    writer.tensor("half", &[640], QuantType::F16, half)
}

fn plan(gguf: &Gguf, n_readers: usize) -> Result<Plan<CopyRows>> {
    let mut space = Space::default();
    let pieces = gguf.tensors().iter().map(|info| {
        let target = match info.n_dims {
            1 => Target::Vector(space.place_vector(info)?),
            _ => Target::Matrix(space.place(Some(info.n_bytes), &info.name)?),
        };
        Ok(Piece { info: info.clone(), target })
    });
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    Plan::new(pieces, space, Some(n_readers))
}

/// Loads `gguf` and compares what is in device memory with the file.
fn load(gguf: &Gguf, n_readers: usize, kernels: CopyRows, progress: &Progress) -> Result<()> {
    let context = Context::open(0)?;
    let load = || {
        let plan = plan(gguf, n_readers)?;
        let opened = Opened { context: context.clone(), kernels, other_bytes: 1 << 20 };
        let Loaded { weights, kernels, .. } =
            plan.load(gguf, progress, || Ok(opened), |_, _| Ok(()), &mut || Ok(()))?;
        assert_eq!(weights.len() as u64, plan.weight_bytes());
        assert_eq!(context.bytes(Purpose::Weights), plan.weight_bytes());
        assert_eq!((context.bytes(Purpose::Workspace), context.ledger().pinned_bytes()), (0, 0), "slots are freed");
        let most = kernels.most.each_ref().map(|most| most.load(Relaxed));
        let bounds = [plan.host_bytes(), plan.staging_bytes()];
        let is_registered = std::env::var("FAKE_CUDA_FAIL_IN").as_deref() != Ok("cuMemHostRegister");
        let least = [if is_registered { 2 << 20 } else { 0 }, 2 << 20];
        let bounds = least.into_iter().zip(bounds).map(|(least, most)| least..=most);
        assert!(most.iter().zip(bounds).all(|(bytes, bounds)| bounds.contains(bytes)), "{most:?}");
        assert!(plan.host_bytes() <= (7 << 20) + (n_readers as u64) * (1 << 19));
        let mut found = vec![0; weights.len()];
        weights.download(&Stream::new(&context)?, 0, &mut found)?;
        let mut at = 0;
        for info in gguf.tensors() {
            let mut expected = vec![0; info.n_bytes as usize];
            gguf.read_tensor(info, &mut expected)?;
            if info.n_dims == 1 {
                let mut values = vec![0.0; info.n_elements as usize];
                info.quant_type.dequantize(&expected, &mut values);
                expected = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            }
            assert!(found[at..][..expected.len()] == expected, "{}", info.name);
            at += expected.len().next_multiple_of(256);
        }
        let file_bytes: u64 = gguf.tensors().iter().map(|info| info.n_bytes).sum();
        assert_eq!(progress.bytes(), (file_bytes, file_bytes));
        Ok(())
    };
    let outcome = load();
    assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0), "{outcome:?}");
    outcome
}

fn told(outcome: Result<()>) -> String {
    match outcome {
        Ok(()) => "OK".into(),
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            format!("{} {error}", error.status().name())
        }
    }
}

/// Loads twice, so that the second load meets what a failure of the first has left.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_load() {
    let gguf = Gguf::from_source(Box::new(std::io::Cursor::new(file().to_bytes()))).unwrap();
    let n_readers = variable("READERS").unwrap_or(2);
    for _ in 0..2 {
        say(told(load(&gguf, n_readers, CopyRows::new(), &Progress::default())));
    }
}

/// The same from a file that the system does not have in memory, past its cache.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_direct() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", &file());
    for n_readers in [1, 3] {
        let written = std::fs::File::open(&path).unwrap();
        rustix::fs::fsync(&written).unwrap();
        rustix::fs::fadvise(&written, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut gguf = Gguf::open(&path).unwrap();
        gguf.set_direct(DirectIo::On);
        say(told(load(&gguf, n_readers, CopyRows::new(), &Progress::default())));
    }
}

/// Read number `AT` fails or, with `CANCEL`, cancels.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_watched() {
    let bytes = file().to_bytes();
    for n_readers in [1, 3] {
        let cancels = variable("CANCEL").is_some();
        for at in 1.. {
            let progress = Arc::new(Progress::default());
            let theirs = progress.clone();
            let what = move || {
                if cancels {
                    theirs.cancel();
                    return Ok(());
                }
                Err(std::io::Error::from_raw_os_error(5))
            };
            let source = Watched { bytes: bytes.clone(), reads: AtomicUsize::new(0), at, what };
            let gguf = Gguf::from_source(Box::new(source)).unwrap();
            let outcome = load(&gguf, n_readers, CopyRows::new(), &progress);
            let (done, total) = progress.bytes();
            assert!(done <= total && total > 0);
            // That read was one of the comparison.
            if done == total {
                assert!(at > 10, "{at}");
                break;
            }
            match outcome {
                Err(Error::LoadCancelled) => assert!(cancels),
                Err(Error::Io { .. }) => assert!(!cancels),
                other => panic!("{other:?}"),
            }
        }
    }
    say("done");
}

/// Kernels that cannot be launched, or panic.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_kernels() {
    let gguf = Gguf::from_source(Box::new(std::io::Cursor::new(file().to_bytes()))).unwrap();
    for fault in [(|| panic!("no such tile")) as fn() -> Result<()>, || Err(Error::Internal("no such kernel".into()))] {
        let kernels = CopyRows { fault: Some(fault), ..CopyRows::new() };
        say(told(load(&gguf, 3, kernels, &Progress::default())));
    }
}

/// What is done beside the load fails, panics, or is done.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_meanwhile() {
    let gguf = Gguf::from_source(Box::new(std::io::Cursor::new(file().to_bytes()))).unwrap();
    let others = [(|| panic!("no such text")) as fn() -> Result<()>, || Err(Error::EmptyPrompt), || Ok(())];
    for mut meanwhile in others {
        let context = Context::open(0).unwrap();
        let plan = plan(&gguf, 3).unwrap();
        let opened = Opened { context: context.clone(), kernels: CopyRows::new(), other_bytes: 0 };
        let outcome = plan.load(&gguf, &Progress::default(), || Ok(opened), |_, _| Ok(()), &mut meanwhile);
        say(told(outcome.map(drop)));
        assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0));
    }
}

fn said(run: &Run) -> Vec<&str> {
    run.said.iter().map(String::as_str).collect()
}

#[test]
fn every_byte_arrives() {
    for n_readers in ["1", "3", "8"] {
        let run = run("child_load", &[("READERS", n_readers)]);
        assert_eq!(said(&run), ["OK", "OK"]);
        run.assert_clean(n_readers);
    }
    let run = run("child_direct", &[]);
    assert_eq!(said(&run), ["OK", "OK"]);
    run.assert_clean("direct");
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_anything_is_allocated_r09() {
    // 14 MiB of weights and, for two readers, 4 MiB of slots.
    let memory = 16 << 20;
    let run = run("child_load", &[("FAKE_CUDA_MEMORY", &memory.to_string())]);
    for text in said(&run) {
        assert!(text.starts_with("OUT_OF_MEMORY out of GPU memory: the model ("), "{text}");
        assert!(text.ends_with(&format!("device \"cuda:0\" has {memory} free")), "{text}");
        let needed = text.split_once(" needs ").unwrap().1.split_once(' ').unwrap().0;
        assert!((18 << 20..22 << 20).contains(&needed.parse::<u64>().unwrap()), "{text}");
    }
    run.assert_clean("refused");
}

#[test]
fn no_allocation_that_fails_leaves_anything_r07() {
    for function in ["cuMemAlloc", "cuStreamCreate", "cuEventCreate"] {
        for at in 1.. {
            let variables = [
                ("FAKE_CUDA_FAIL_IN", function),
                ("FAKE_CUDA_FAIL_AT", &at.to_string()),
                ("FAKE_CUDA_FAIL_CODE", "2"),
                ("READERS", "2"),
            ];
            let run = run("child_load", &variables);
            run.assert_clean(&format!("{function} {at}"));
            let said = said(&run);
            if said[0] == "OK" {
                // The one that fails comes in the second load, or not at all.
                assert!(at > 1, "{function}");
                break;
            }
            assert!(said[0].starts_with("OUT_OF_MEMORY ") && said[1] == "OK", "{function} {at}: {said:?}");
        }
    }
}

#[test]
fn where_memory_cannot_be_registered_it_is_copied_all_the_same() {
    let variables =
        [("FAKE_CUDA_FAIL_IN", "cuMemHostRegister"), ("FAKE_CUDA_FAIL_AT", "1"), ("FAKE_CUDA_FAIL_CODE", "801")];
    let run = run("child_load", &variables);
    assert_eq!(said(&run), ["OK", "OK"]);
    run.assert_clean("not registered");
}

#[test]
fn no_call_that_fails_leaves_anything_or_hangs_r11() {
    for (code, step) in [("1", 7), ("719", 13)] {
        // The first three calls start the driver; one that does not start is unloaded, and forgets what it counted.
        for at in (4..).step_by(step) {
            let variables = [("FAKE_CUDA_FAIL_AT", &*at.to_string()), ("FAKE_CUDA_FAIL_CODE", code), ("READERS", "2")];
            let run = run("child_calls", &variables);
            let said = said(&run);
            assert!(said.iter().all(|text| ["OK", "DEVICE_ERROR", "DEVICE_LOST"].contains(text)), "{said:?}");
            let lost = said[1] == "DEVICE_LOST";
            assert!(!lost || code == "719", "{at}: {said:?}");
            assert!(lost || said[1] == "OK" || said[0] == "OK", "{at}: {said:?}");
            assert!(run.took < Duration::from_secs(10), "{at}: {run:?}");
            if code == "1" {
                run.assert_clean(&format!("{code} at call {at}"));
            }
            assert_eq!((run.count("misuse"), run.count("unpopped")), (0, 0), "{at}: {run:?}");
            if said == ["OK", "OK"] && at as i64 > run.count("calls") {
                break;
            }
        }
    }
}

/// As [`child_load`], on a device that may be lost, whose memory nobody gets back.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_calls() {
    let gguf = Gguf::from_source(Box::new(std::io::Cursor::new(file().to_bytes()))).unwrap();
    for _ in 0..2 {
        let open = || Ok(Opened { context: Context::open(0)?, kernels: CopyRows::new(), other_bytes: 0 });
        let load = |plan: Plan<CopyRows>| {
            plan.load(&gguf, &Progress::default(), open, |_, _| Ok(()), &mut || Ok(())).map(drop)
        };
        let outcome = plan(&gguf, 2).and_then(load);
        say(outcome.map_or_else(|error| error.status().name(), |()| "OK"));
    }
}

#[test]
fn a_read_that_fails_ends_the_load() {
    let run = run("child_watched", &[]);
    assert_eq!(said(&run), ["done"]);
    run.assert_clean("failed reads");
}

#[test]
fn a_load_is_cancelled_between_any_two_reads() {
    let run = run("child_watched", &[("CANCEL", "1")]);
    assert_eq!(said(&run), ["done"]);
    run.assert_clean("cancelled");
}

#[test]
fn kernels_that_fail_or_panic_end_the_load() {
    let run = run("child_kernels", &[]);
    let said = said(&run);
    assert!(said[0].starts_with("INTERNAL internal error: no such tile (tests/cuda_load.rs:"), "{said:?}");
    assert_eq!(said[1], "INTERNAL internal error: no such kernel");
    run.assert_clean("kernels");
}

#[test]
fn what_is_done_meanwhile_may_end_the_load() {
    let run = run("child_meanwhile", &[]);
    let said = said(&run);
    assert!(said[0].starts_with("INTERNAL internal error: no such text (tests/cuda_load.rs:"), "{said:?}");
    assert!(said[1].starts_with("EMPTY_PROMPT"), "{said:?}");
    assert_eq!(said[2], "OK");
    run.assert_clean("meanwhile");
}
