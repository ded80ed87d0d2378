//! Reading past the system's cache what is not in it: for files that the cache would not keep. Whole blocks go straight to
//! where they are wanted, so the bytes that are asked for lie in a buffer as they do in the blocks of their file.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::source::{Source, read_exact};
use crate::Result;

/// What offset, address and length of such a read are multiples of.
pub const BLOCK: usize = 4096;

/// Which files are read past the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// Those that would fill more than half of the memory that is available.
    #[default]
    Auto,
    /// All.
    On,
    /// None.
    Off,
}

impl DirectIo {
    /// What [`DirectIo::parse`] takes, for messages.
    pub const EXPECTED: &str = "\"auto\", \"on\" or \"off\"";

    /// The choice with this name.
    pub fn parse(name: &str) -> Option<DirectIo> {
        [DirectIo::Auto, DirectIo::On, DirectIo::Off].into_iter().find(|choice| choice.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            DirectIo::Auto => "auto",
            DirectIo::On => "on",
            DirectIo::Off => "off",
        }
    }

    /// Whether a model of so many bytes is read so.
    pub fn takes(self, bytes: u64) -> bool {
        match self {
            DirectIo::Auto => available_memory().is_some_and(|available| bytes > available / 2),
            DirectIo::On => true,
            DirectIo::Off => false,
        }
    }
}

/// Bytes of memory that programs can have, the cache's among them (`MemAvailable` of proc(5)).
fn available_memory() -> Option<u64> {
    // It stands in the third line.
    let mut start = [0; 256];
    let n = File::open("/proc/meminfo").ok()?.read(&mut start).ok()?;
    let text = std::str::from_utf8(start.get(..n)?).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A file on disk.
pub(super) struct DiskFile {
    file: File,
    /// The same past the cache, opened when it is first wanted; `None` where that cannot be had.
    direct: OnceLock<Option<File>>,
}

impl DiskFile {
    pub(super) fn new(file: File) -> DiskFile {
        DiskFile { file, direct: OnceLock::new() }
    }

    fn direct(&self) -> Option<&File> {
        let open = || {
            // The same file, whatever has its name by now.
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = rustix::fs::OFlags::DIRECT.bits();
            File::options().read(true).custom_flags(i32::try_from(flags).ok()?).open(path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

impl Source for DiskFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match preadv2(&self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(Some(n)),
            Err(Errno::AGAIN) => Ok(Some(0)),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read_direct(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(file) = self.direct() else { return Ok(None) };
        match file.read_at(offset, buf) {
            Ok(n) => Ok(Some(n)),
            // The file system wants larger blocks, or none of this.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads the bytes at `offset` into the part `place` of `buf`, which begins as far behind a block of the buffer as they do
/// behind one of the file: what is in the cache from there, the rest past it where that can be done. `buf` begins with a
/// block and has room for whole ones, else the cache reads them all.
pub(super) fn read_placed(
    source: &dyn Source,
    offset: u64,
    place: Range<usize>,
    buf: &mut [u8],
    what: &dyn Display,
) -> Result<()> {
    let Range { start, end } = place;
    let is_fit = buf.as_ptr().addr().is_multiple_of(BLOCK) && buf.len() >= end.next_multiple_of(BLOCK);
    let mut at = start;
    // Where byte `at` of the buffer is in the file.
    let offset_of = |at: usize| offset.saturating_add(at as u64).saturating_sub(start as u64);
    while at < end {
        match source.read_cached(offset_of(at), &mut buf[at..end]) {
            Ok(Some(n)) if n > 0 => {
                at += n.min(end - at);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(Some(_)) if is_fit => {}
            // What is wrong an ordinary read will say.
            _ => break,
        }
        let (first, last) = (at / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        match source.read_direct(offset_of(first), &mut buf[first..last]) {
            Ok(Some(n)) if first + n > at => at = (first + n).min(end),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    read_exact(source, offset_of(at), &mut buf[at..end], what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Status};
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// A part of `room` bytes that begins with a block.
    fn aligned(bytes: &mut [u8], room: usize) -> &mut [u8] {
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK) - bytes.as_ptr().addr();
        &mut bytes[start..start + room]
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// Has some of its blocks in memory, gives few bytes at a time, and may have no way past the cache.
    struct Disk {
        bytes: Vec<u8>,
        cached: u64,
        most: usize,
        can: (bool, bool),
        n_direct: AtomicUsize,
    }

    impl Disk {
        fn some(&self, offset: u64, buf: &mut [u8]) -> usize {
            let rest = self.bytes.get(offset as usize..).unwrap_or_default();
            let n = rest.len().min(buf.len()).min(self.most);
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }
    }

    impl Source for Disk {
        fn size(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            Ok(self.some(offset, buf))
        }

        fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
            let block = offset / BLOCK as u64;
            let left = BLOCK - (offset % BLOCK as u64) as usize;
            let n = if self.cached >> (block % 64) & 1 == 1 { left.min(buf.len()) } else { 0 };
            Ok(self.can.0.then(|| self.some(offset, &mut buf[..n])))
        }

        fn read_direct(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
            let all = [offset as usize, buf.as_ptr().addr(), buf.len()];
            assert!(all.iter().all(|n| n.is_multiple_of(BLOCK)), "{all:?}");
            self.n_direct.fetch_add(1, Relaxed);
            Ok(self.can.1.then(|| self.some(offset, buf)))
        }
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_read_wherever_it_is(
            offset in 0..40_000_usize,
            len in 0..30_000_usize,
            cached: u64,
            most in prop_oneof![1..5000_usize, Just(usize::MAX)],
            can: (bool, bool),
            shift in 0..2_usize,
        ) {
            let disk = Disk { bytes: bytes(50_000), cached, most, can, n_direct: AtomicUsize::new(0) };
            let start = offset % BLOCK;
            let room = (start + len).next_multiple_of(BLOCK);
            let mut memory = vec![0xee; room + 3 * BLOCK];
            let buf = &mut aligned(&mut memory, room + BLOCK)[shift..];
            let outcome = read_placed(&disk, offset as u64, start..start + len, buf, &"it");
            if offset + len > disk.bytes.len() {
                prop_assert_eq!(outcome.unwrap_err().status(), Status::Truncated);
            } else {
                outcome.unwrap();
                prop_assert!(buf[start..start + len] == disk.bytes[offset..offset + len]);
                prop_assert!(shift == 0 || disk.n_direct.into_inner() == 0);
            }
        }
    }

    #[test]
    fn a_file_is_read_past_the_cache_and_from_it() {
        let path = std::env::temp_dir().join(format!("kigo-direct-{}", std::process::id()));
        let all = bytes(3 << 20);
        std::fs::write(&path, &all).unwrap();
        let file = DiskFile::new(File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        for in_memory in [false, true] {
            if !in_memory {
                rustix::fs::fsync(&file.file).unwrap();
                rustix::fs::fadvise(&file.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            for (offset, len) in [(0, 4096), (5, 100), (4095, 2), (1_000_001, 1 << 20), ((3 << 20) - 10, 10), (77, 0)] {
                let start = (offset % BLOCK as u64) as usize;
                let room = (start + len).next_multiple_of(BLOCK);
                let mut memory = vec![0; room + BLOCK];
                let buf = aligned(&mut memory, room);
                read_placed(&file, offset, start..start + len, buf, &"it").unwrap();
                assert!(buf[start..start + len] == all[offset as usize..offset as usize + len], "{offset} {len}");
            }
            if !in_memory {
                std::io::copy(&mut &file.file, &mut std::io::sink()).unwrap();
            }
        }
        let mut buf = vec![0; 100];
        let outcome = read_placed(&file, 3 << 20, 0..100, &mut buf, &"it");
        assert!(matches!(outcome, Err(Error::Truncated { .. })));
    }

    #[test]
    fn only_what_would_fill_the_memory_is_read_past_the_cache_unasked() {
        assert!(available_memory().unwrap() > 1 << 20);
        assert!(DirectIo::Auto.takes(u64::MAX) && !DirectIo::Auto.takes(1 << 20));
        assert!(DirectIo::On.takes(0) && !DirectIo::Off.takes(u64::MAX));
    }
}
