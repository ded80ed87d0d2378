//! The file of a saved state: pieces, each of a known size or with its length before it, and a checksum of all.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checksum::Checksum;
use crate::error::try_vec;
use crate::{Error, Result};

/// What such a file begins with, and the version of what follows.
const MAGIC: [u8; 8] = *b"KIGOSTAT";
const VERSION: u32 = 1;

/// Numbers the files that this process writes.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

fn io(operation: &str) -> impl FnOnce(std::io::Error) -> Error {
    let operation = operation.to_owned();
    |source| Error::Io { operation, source }
}

/// The file that is being read is not what it should be.
pub fn bad(what: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::BadState { what: what.to_owned(), expected: expected.to_string(), found: found.to_string() }
}

/// Writes a file beside the one that it will replace when it is complete.
pub struct StateWriter {
    file: File,
    sum: Checksum,
    /// Where it is written, and where it goes.
    partial: PathBuf,
    path: PathBuf,
}

impl StateWriter {
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<StateWriter> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}-{}.partial", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed)));
        let partial = PathBuf::from(name);
        let file = File::options().write(true).create_new(true).open(&partial).map_err(io("create"))?;
        let mut writer = StateWriter { file, sum: Checksum::new(), partial, path: path.to_owned() };
        writer.raw(&MAGIC)?;
        writer.u32(VERSION)?;
        Ok(writer)
    }

    /// Bytes whose number the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum.add(bytes);
        self.file.write_all(bytes).map_err(io("write"))
    }

    pub fn u32(&mut self, number: u32) -> Result<()> {
        self.raw(&number.to_le_bytes())
    }

    pub fn u64(&mut self, number: u64) -> Result<()> {
        self.raw(&number.to_le_bytes())
    }

    /// Numbers with their count before them.
    pub fn numbers<const N: usize>(&mut self, numbers: impl ExactSizeIterator<Item = [u8; N]>) -> Result<()> {
        let mut bytes = try_vec(numbers.len() * N, "the state")?;
        numbers.for_each(|number| bytes.extend_from_slice(&number));
        self.bytes(&bytes)
    }

    /// Bytes with their number before them.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.u64(bytes.len() as u64)?;
        self.raw(bytes)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there before is still there.
    pub fn finish(mut self) -> Result<()> {
        let sum = self.sum.value();
        self.file.write_all(&sum.to_le_bytes()).map_err(io("write"))?;
        std::fs::rename(&self.partial, &self.path).map_err(io("rename"))
    }
}

impl Drop for StateWriter {
    fn drop(&mut self) {
        // Nothing is there any more when it has been put in its place.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Reads such a file. No length is believed that the file does not have.
pub struct StateReader {
    file: File,
    sum: Checksum,
    /// Bytes that have not been read, without the checksum.
    left: u64,
}

impl StateReader {
    /// # Errors
    /// [`Error::Io`]; [`Error::BadState`] when it is no such file, or of another version.
    pub fn open(path: &Path) -> Result<StateReader> {
        let file = crate::gguf::open_regular(path)?;
        let len = file.metadata().map_err(io("read"))?.len();
        let mut reader = StateReader { file, sum: Checksum::new(), left: len.saturating_sub(8) };
        let mut magic = [0; 8];
        reader.raw(&mut magic, "the first bytes")?;
        if magic != MAGIC {
            return Err(bad("the first bytes", "those of a saved state", crate::error::quoted(&magic)));
        }
        match reader.u32("version")? {
            VERSION => Ok(reader),
            found => Err(bad("version", VERSION, found)),
        }
    }

    /// Bytes that are left, without the checksum.
    pub fn left(&self) -> u64 {
        self.left
    }

    pub fn raw(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| bad(what, format!("{} bytes", bytes.len()), format!("{} bytes", self.left)))?;
        self.file.read_exact(bytes).map_err(io("read"))?;
        self.sum.add(bytes);
        Ok(())
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        let mut bytes = [0; 4];
        self.raw(&mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        let mut bytes = [0; 8];
        self.raw(&mut bytes, what)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A number that is at most `most`.
    pub fn size(&mut self, most: usize, what: &str) -> Result<usize> {
        let found = self.u64(what)?;
        let size = usize::try_from(found).ok().filter(|size| *size <= most);
        size.ok_or_else(|| bad(what, format!("at most {most}"), found))
    }

    /// Up to `most` bytes with their number before them.
    pub fn bytes(&mut self, most: usize, what: &str) -> Result<Vec<u8>> {
        let most = most.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.size(most, what)?;
        let mut bytes = try_vec(n, "the state")?;
        bytes.resize(n, 0);
        self.raw(&mut bytes, what)?;
        Ok(bytes)
    }

    /// Checks that nothing is left, and that the checksum is that of what was read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadState`].
    pub fn finish(mut self) -> Result<()> {
        let mut sum = [0; 8];
        if self.left > 0 {
            return Err(bad("the end", "a checksum", format!("{} more bytes", self.left)));
        }
        self.file.read_exact(&mut sum).map_err(io("read"))?;
        if u64::from_le_bytes(sum) != self.sum.value() {
            return Err(bad("checksum", "that of the contents", "another; the file is damaged"));
        }
        Ok(())
    }
}
