//! Where the bytes of a file come from: a file, memory, or a test that injects faults.

use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Random access to the bytes of one file, from any thread.
pub trait Source: Send + Sync {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads some bytes at `offset` into `buf` and says how many: at least one unless `buf` is empty or `offset`
    /// is at the end. May be short, may fail with [`ErrorKind::Interrupted`]; the callers continue and retry.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads what the system has in memory from `offset` on and says how many bytes: 0 when it has none there, `None` when
    /// that cannot be told.
    ///
    /// # Errors
    /// Those of reading.
    fn read_cached(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    /// As [`Source::read_at`] past the system's cache, `None` where that cannot be done. Offset, length and address of `buf`
    /// are multiples of [`BLOCK`](super::BLOCK).
    ///
    /// # Errors
    /// Those of reading.
    fn read_direct(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }
}

impl<T: AsRef<[u8]> + Send + Sync> Source for io::Cursor<T> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.get_ref().as_ref().len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.get_ref().as_ref();
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// Opens a regular file for reading. Directories, devices, FIFOs and sockets are refused without blocking.
pub(crate) fn open(path: &Path) -> Result<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const O_NONBLOCK: i32 = 0o4000;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const O_NONBLOCK: i32 = 0o4;

    let failed = |source| Error::Io { operation: "open".to_string(), source };
    // Looking before opening: merely opening a device or FIFO can have effects. Looking again after: the path may
    // have changed in between, and O_NONBLOCK keeps that open from waiting for the other end of a FIFO.
    check_regular(&path.metadata().map_err(failed)?)?;
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path).map_err(failed)?;
    check_regular(&file.metadata().map_err(failed)?)?;
    Ok(file)
}

fn check_regular(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() { ErrorKind::IsADirectory } else { ErrorKind::InvalidInput };
    let source = io::Error::new(kind, if metadata.is_dir() { "is a directory" } else { "not a regular file" });
    Err(Error::Io { operation: "open".to_string(), source })
}

/// One read at `offset`, retried when a signal interrupts it. `what` is being read.
pub(super) fn read_some(source: &dyn Source, offset: u64, buf: &mut [u8], what: &dyn Display) -> Result<usize> {
    loop {
        match source.read_at(offset, buf) {
            Ok(n) => return Ok(n.min(buf.len())),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Io { operation: format!("read {what} at offset {offset}"), source }),
        }
    }
}

/// Fills `buf` from `offset`. A file that ends before, because it shrank since its length was taken, is
/// [`Error::Truncated`].
pub(super) fn read_exact(source: &dyn Source, offset: u64, buf: &mut [u8], what: &dyn Display) -> Result<()> {
    let needed = buf.len() as u64;
    let mut done = 0;
    while done < buf.len() {
        match read_some(source, offset.saturating_add(done as u64), &mut buf[done..], what)? {
            0 => return Err(Error::Truncated { what: what.to_string(), offset, needed, available: done as u64 }),
            n => done += n,
        }
    }
    Ok(())
}
