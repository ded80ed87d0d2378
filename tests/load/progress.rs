//! How far a load on the CPU is, and cancelling it.

use std::io::Result as IoResult;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Purpose};
use kigo::engine::Loading;
use kigo::gguf::{Gguf, Source};
use kigo::model::{Weights, arch};

use super::*;

/// A model in memory; read number `at` after the header cancels the load, and each notes how far it is.
struct Watched {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    at: usize,
    progress: Arc<Progress>,
}

impl Source for Watched {
    fn size(&self) -> IoResult<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> IoResult<usize> {
        let (done, total) = self.progress.bytes();
        assert!(done <= total);
        if total > 0 && self.reads.fetch_add(1, Relaxed) == self.at {
            assert!(done < total);
            self.progress.cancel();
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

#[test]
fn a_load_is_cancelled_before_any_read_x03() {
    let bytes = Draft::tiny().writer().to_bytes();
    let n_tensors = Draft::tiny().tensors.len();
    for at in 0..=n_tensors {
        let before = alloc::thread();
        let progress = Arc::new(Progress::default());
        let source = Watched { bytes: bytes.clone(), reads: AtomicUsize::new(0), at, progress: progress.clone() };
        let gguf = Gguf::from_source(Box::new(source)).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        let plan = Weights::plan(&gguf, &desc).unwrap();
        let outcome = CpuBackend::load(&gguf, &desc, &plan, (64, 1), &progress);
        let (done, total) = progress.bytes();
        assert_eq!(total, gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum::<u64>());
        // A cancellation during the last read comes too late.
        assert_eq!(outcome.is_ok(), at + 1 >= n_tensors);
        assert_eq!(done == total, at + 1 >= n_tensors);
        match outcome {
            Ok(backend) => assert_eq!(backend.memory().bytes(Purpose::Weights), total),
            Err(error) => {
                assert!(matches!(error, Error::LoadCancelled), "{error}");
                drop((gguf, desc, plan, progress));
                assert_eq!(alloc::thread(), before, "read {at}");
            }
        }
    }
}

#[test]
fn a_cancelled_load_names_no_file_and_one_that_was_cancelled_before_reads_none() {
    let progress = Progress::default();
    progress.cancel();
    let options = LoadOptions { device: "cpu".into(), ..Default::default() };
    let error = Engine::load_watched(Path::new("no/such/file"), &options, &progress).err().unwrap();
    assert_eq!((error.status(), error.to_string()), (Status::Cancelled, "the load was cancelled".to_string()));
    assert_eq!(progress.bytes(), (0, 0));
}

/// The tiny model with a feed-forward layer that makes it 100 MB.
fn large(folder: &Folder) -> std::path::PathBuf {
    const N_FF: u64 = 1 << 16;
    let path = folder.path("model.gguf");
    let mut draft = Draft::tiny().with("llama.feed_forward_length", Value::U64(N_FF));
    for tensor in draft.tensors.iter_mut().filter(|tensor| tensor.name.contains("ffn_") && tensor.dims.len() == 2) {
        let at = usize::from(!tensor.name.contains("ffn_down"));
        tensor.dims[at] = N_FF;
        tensor.data = vec![0; (tensor.dims[0] * tensor.dims[1] * 4) as usize];
    }
    draft.writer().write(&path).unwrap();
    path
}

#[test]
fn a_long_load_is_watched_and_cancelled_from_another_thread() {
    let folder = Folder::new();
    let path = large(&folder);
    let options = LoadOptions { device: "cpu".into(), n_threads: Some(1), ..Default::default() };
    let mut seen = 0;
    for _ in 0..20 {
        let loading = Loading::start(&path, &options).unwrap();
        while loading.is_running() && loading.bytes().0 == 0 {
            std::thread::yield_now();
        }
        loading.cancel();
        let outcome = loading.finish().unwrap();
        let (done, total) = loading.bytes();
        assert!(!loading.is_running() && loading.finish().is_none());
        match outcome {
            // The other thread was quicker.
            Ok(_) => assert_eq!(done, total),
            Err(error) => {
                assert!(matches!(error, Error::LoadCancelled), "{error}");
                assert!(done > 0 && done < total, "{done} of {total}");
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no load was cancelled on its way");
}
