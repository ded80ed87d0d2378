//! A bounded, buffered reader of the part of a file before its tensor data. Every length is compared with the
//! bytes that are left before memory is asked for.

use std::fmt::Display;

use super::source::{Source, read_exact, read_some};
use crate::error::{Error, Result, try_vec};

/// Bytes read ahead at once.
const WINDOW: usize = 64 << 10;

/// The metadata and tensor table of one file may take at most this many bytes; those of real models take less
/// than 50 MB. Keeps the memory that a sparse file can cost within bounds.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;

/// Reads forward from the start of a file.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    /// Length of the file.
    len: u64,
    /// Where in the file the next byte of the caller is.
    offset: u64,
    /// Bytes read ahead; the next one of the caller is at `at`.
    window: Vec<u8>,
    at: usize,
}

/// Fixed-size little-endian numbers as they stand in the file.
pub(super) trait Number: Sized {
    /// Bytes that it takes.
    const BYTES: usize;
    /// The number in the first `BYTES` of `bytes`.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Number for $type {
            const BYTES: usize = size_of::<$type>();
            fn from_le(bytes: &[u8]) -> Self {
                let mut le = [0; size_of::<$type>()];
                le.copy_from_slice(&bytes[..size_of::<$type>()]);
                <$type>::from_le_bytes(le)
            }
        })*
    };
}
numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl<'a> Reader<'a> {
    /// A reader at the start of `source`.
    pub(super) fn new(source: &'a dyn Source) -> Result<Reader<'a>> {
        let failed = |source| Error::Io { operation: "find the length of the file".to_string(), source };
        let len = source.size().map_err(failed)?;
        Ok(Reader { source, len, offset: 0, window: try_vec(WINDOW, "the reader")?, at: 0 })
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where in the file the next byte is.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file that have not been read.
    pub(super) fn remaining(&self) -> u64 {
        self.len.saturating_sub(self.offset)
    }

    /// Checks that `count` items of at least `bytes` bytes each can follow, and returns how many bytes they take.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the file is too short for them, [`Error::Limit`] when they lie beyond
    /// [`MAX_HEADER_BYTES`].
    pub(super) fn expect(&self, count: u64, bytes: u64, what: &dyn Display) -> Result<usize> {
        // A product beyond 2^64 is beyond every file as well.
        let needed = count.saturating_mul(bytes);
        let available = self.remaining();
        if needed > available {
            return Err(Error::Truncated { what: what.to_string(), offset: self.offset, needed, available });
        }
        let limit = || Error::Limit { what: "bytes of metadata and tensor table", limit: MAX_HEADER_BYTES };
        if self.offset.saturating_add(needed) > MAX_HEADER_BYTES {
            return Err(limit());
        }
        usize::try_from(needed).map_err(|_| limit())
    }

    /// One number.
    pub(super) fn number<T: Number>(&mut self, what: &dyn Display) -> Result<T> {
        Ok(T::from_le(self.take(T::BYTES, what)?))
    }

    /// `count` numbers.
    pub(super) fn numbers<T: Number>(&mut self, count: u64, what: &dyn Display) -> Result<Vec<T>> {
        let len = self.expect(count, T::BYTES as u64, what)? / T::BYTES;
        let mut out = try_vec(len, "an array of metadata")?;
        while out.len() < len {
            let some = (len - out.len()).min(WINDOW / T::BYTES);
            out.extend(self.take(some * T::BYTES, what)?.chunks_exact(T::BYTES).map(T::from_le));
        }
        Ok(out)
    }

    /// `len` bytes.
    pub(super) fn bytes(&mut self, len: u64, what: &dyn Display) -> Result<Vec<u8>> {
        let len = self.expect(len, 1, what)?;
        let mut out = try_vec(len, "a string of metadata")?;
        out.resize(len, 0);
        self.fill(&mut out, what)?;
        Ok(out)
    }

    /// Fills `out`; the caller has checked with [`Reader::expect`] that the file can hold that much.
    pub(super) fn fill(&mut self, out: &mut [u8], what: &dyn Display) -> Result<()> {
        let buffered = (self.window.len() - self.at).min(out.len());
        let (head, tail) = out.split_at_mut(buffered);
        head.copy_from_slice(&self.window[self.at..self.at + buffered]);
        self.advance(buffered);
        if tail.len() < WINDOW {
            tail.copy_from_slice(self.take(tail.len(), what)?);
        } else {
            read_exact(self.source, self.offset, tail, what)?;
            self.advance(tail.len());
        }
        Ok(())
    }

    /// The next `len` bytes, at most [`WINDOW`].
    #[inline]
    fn take(&mut self, len: usize, what: &dyn Display) -> Result<&[u8]> {
        if self.window.len() - self.at < len {
            self.read_ahead(len, what)?;
        }
        let start = self.at;
        self.advance(len);
        Ok(&self.window[start..start + len])
    }

    /// Makes the window hold the next `len` bytes, at most [`WINDOW`].
    #[cold]
    fn read_ahead(&mut self, len: usize, what: &dyn Display) -> Result<()> {
        self.expect(len as u64, 1, what)?;
        self.window.drain(..self.at);
        self.at = 0;
        while self.window.len() < len {
            let have = self.window.len();
            // Not beyond the limit either: what is in the window has passed every check.
            let within = self.remaining().min(MAX_HEADER_BYTES.saturating_sub(self.offset));
            self.window.resize(usize::try_from(within).unwrap_or(WINDOW).min(WINDOW), 0);
            let read = read_some(self.source, self.offset + have as u64, &mut self.window[have..], what);
            self.window.truncate(have + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                let (needed, available) = (len as u64, have as u64);
                return Err(Error::Truncated { what: what.to_string(), offset: self.offset, needed, available });
            }
        }
        Ok(())
    }

    /// Moves past `len` bytes, of the window as far as it holds them.
    fn advance(&mut self, len: usize) {
        self.at = (self.at + len).min(self.window.len());
        self.offset += len as u64;
    }
}
