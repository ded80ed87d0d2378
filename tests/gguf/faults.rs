//! Sources that fail, trickle, are interrupted, or shrink.

use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kigo::gguf::Source;

use super::*;

/// Bytes read at most `step` at a time, with a fault at read number `at`.
struct Faulty {
    bytes: Vec<u8>,
    step: usize,
    reads: AtomicUsize,
    at: usize,
    fault: Fault,
}

#[derive(Clone, Copy)]
enum Fault {
    /// The read fails with EIO.
    Eio,
    /// The read and each one after it finds the end of the file.
    Shrunk,
    /// Every read with a number divisible by `at` is interrupted.
    Interrupted,
}

impl Source for Faulty {
    fn size(&self) -> IoResult<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> IoResult<usize> {
        const EIO: i32 = 5;
        let read = self.reads.fetch_add(1, Relaxed);
        match self.fault {
            Fault::Eio if read == self.at => return Err(IoError::from_raw_os_error(EIO)),
            Fault::Shrunk if read >= self.at => return Ok(0),
            Fault::Interrupted if read.is_multiple_of(self.at) => return Err(ErrorKind::Interrupted.into()),
            _ => {}
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len()).min(self.step);
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

fn faulty(step: usize, at: usize, fault: Fault) -> Box<Faulty> {
    Box::new(Faulty { bytes: sample().to_bytes(), step, reads: AtomicUsize::new(0), at, fault })
}

/// Loads the source and reads every tensor.
fn load_all(source: Box<dyn Source>) -> Result<Gguf, Error> {
    let gguf = Gguf::from_source(source)?;
    for tensor in gguf.tensors() {
        gguf.read_tensor(tensor, &mut vec![0; tensor.n_bytes as usize])?;
    }
    Ok(gguf)
}

/// Injects `fault` at every read in turn, until a load needs fewer; returns how many failed.
fn sweep(step: usize, fault: Fault, status: Status) -> usize {
    for at in 0.. {
        let before = alloc::thread();
        match load_all(faulty(step, at, fault)) {
            Ok(_) => return at,
            Err(error) => {
                assert_eq!(error.status(), status, "{error}");
                gguf_bytes::check_message(&error);
            }
        }
        assert_eq!(alloc::thread(), before, "read {at}");
    }
    unreachable!()
}

#[test]
fn g44_every_read_that_fails_is_an_error_that_leaves_nothing() {
    // Whole: one read for the header, one for each of the four tensors.
    assert_eq!(sweep(usize::MAX, Fault::Eio, Status::Io), 5);
    assert!(sweep(7, Fault::Eio, Status::Io) > 100);
}

#[test]
fn g43_a_file_that_shrinks_at_any_read_is_truncated() {
    assert_eq!(sweep(usize::MAX, Fault::Shrunk, Status::Truncated), 5);
    assert!(sweep(7, Fault::Shrunk, Status::Truncated) > 100);
}

#[test]
fn g44_reads_of_one_byte_and_interrupted_reads_load() {
    let whole = load_all(faulty(usize::MAX, usize::MAX, Fault::Eio)).unwrap();
    for source in [faulty(1, usize::MAX, Fault::Eio), faulty(3, 2, Fault::Interrupted)] {
        let gguf = load_all(source).unwrap();
        assert_eq!(gguf.tensors(), whole.tensors());
        assert!(gguf.metadata().iter().eq(whole.metadata().iter()));
    }
}

#[test]
fn a_length_that_cannot_be_had_is_an_error() {
    struct NoLength;
    impl Source for NoLength {
        fn size(&self) -> IoResult<u64> {
            Err(IoError::other("no length"))
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> IoResult<usize> {
            Ok(0)
        }
    }
    let error = Gguf::from_source(Box::new(NoLength)).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.to_string().contains("length"), "{error}");
}

#[test]
fn memory_that_cannot_be_had_for_the_contents_is_an_error_that_leaves_nothing() {
    let strings = StringArray::try_from_iter((0..5_000u32).map(|i| i.to_string())).unwrap();
    let bytes = Writer::new()
        .pair("a", Value::String(vec![b'x'; 20_000].into()))
        .pair("b", Value::Array(Array::F64(vec![0.5; 5_000])))
        .pair("c", Value::Array(Array::Bool(vec![true; 20_000])))
        .pair("d", Value::Array(Array::String(strings)))
        .to_bytes();
    let bytes = (0..200)
        .fold(Writer::new(), |w, i| w.tensor(&i.to_string(), &[1], QuantType::F32, vec![0; 4]))
        .metadata(load(&bytes).unwrap().metadata())
        .to_bytes();
    let source: &'static [u8] = bytes.leak();
    for after in 0.. {
        let before = alloc::thread();
        // Smaller requests are for messages and names, whose size the file cannot choose.
        let load = || Gguf::from_source(Box::new(std::io::Cursor::new(source)));
        let (loaded, refused) = alloc::refusing(4096, after, load);
        match loaded {
            Ok(_) => {
                assert!(refused == 0 && after > 10, "{refused} refused after {after}");
                return;
            }
            Err(error) => assert_eq!(error.status(), Status::OutOfMemory, "{error}"),
        }
        assert_eq!(alloc::thread(), before, "request {after}");
    }
}
