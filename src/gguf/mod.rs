//! GGUF: the file format of the models. [`Gguf`] reads versions 2 and 3, in one file or split into several;
//! [`Writer`] writes them for tests and tools.
//!
//! A file is input from strangers. Nothing here panics, recurses on it, or believes a number before comparing it
//! with the length of the file; a refused file costs less than 64 MiB plus four times its metadata in memory.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md> is the specification.

mod array;
mod direct;
mod json;
mod metadata;
mod parse;
mod reader;
mod shards;
mod source;
mod tensor;
mod text;
mod writer;

use std::path::{Path, PathBuf};

pub use array::{Array, StringArray};
pub use direct::{BLOCK, DirectIo};
pub use metadata::{Metadata, Value};
pub use parse::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_PAIRS, MAX_TENSORS};
pub use reader::MAX_HEADER_BYTES;
pub use source::Source;
pub(crate) use source::open as open_regular;
pub use tensor::{MAX_DIMS, TensorInfo};
pub use writer::Writer;

use crate::error::{Error, Result};
use direct::DiskFile;
use parse::{Parsed, parse};
use shards::Split;
use tensor::{TensorTable, field};

/// A model file, or all files of a split model: what they say, and their tensor data on request.
///
/// The files stay open, so that one that is replaced on disk is still read as it was checked.
pub struct Gguf {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: TensorTable,
    shards: Vec<Shard>,
    /// Whether what is not in memory is read past the system's cache, where that can be done.
    is_direct: bool,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let paths: Vec<_> = self.shards.iter().map(|shard| &shard.path).collect();
        let (n_pairs, n_tensors) = (self.metadata.len(), self.tensors().len());
        write!(f, "Gguf {{ version: {}, {n_pairs} pairs, {n_tensors} tensors, paths: {paths:?} }}", self.version)
    }
}

/// One file.
struct Shard {
    source: Box<dyn Source>,
    /// `None` when the bytes do not come from a file.
    path: Option<PathBuf>,
    /// Bytes of the file.
    len: u64,
}

impl Gguf {
    /// Opens the model at `path`, which may be any part of a split model; the other parts are then found by their
    /// names in the same folder.
    ///
    /// # Errors
    /// Each names the file. [`Error::Io`] when one cannot be opened or read or is not a regular file;
    /// [`Error::NotGguf`], [`Error::Truncated`], [`Error::UnsupportedVersion`], [`Error::BadFile`],
    /// [`Error::UnsupportedType`] and [`Error::UnsupportedValue`] about its contents; [`Error::Limit`] beyond
    /// [`MAX_PAIRS`], [`MAX_TENSORS`] or [`MAX_HEADER_BYTES`]; [`Error::OutOfMemory`].
    pub fn open(path: &Path) -> Result<Gguf> {
        let in_path = |error: Error| error.in_file(path);
        let (shard, parsed) = open_shard(path, 0).map_err(in_path)?;
        let Some(split) = Split::of(&parsed.metadata).map_err(in_path)? else {
            return Ok(Gguf::of(shard, parsed));
        };
        let mut siblings = split.siblings(path).map_err(in_path)?;
        // The part given is opened a second time in its turn: its tensors are then numbered like all others.
        drop((shard, parsed));
        let Some((first_split, first_path)) = siblings.next() else {
            return Err(in_path(Error::Internal("a split model without parts".to_string())));
        };
        let in_first = |error: Error| error.in_file(&first_path);
        let (shard, first) = open_shard(&first_path, 0).map_err(in_first)?;
        shards::check_part(&first.metadata, &first, first_split).map_err(in_first)?;
        let mut gguf = Gguf::of(shard, first);
        for (split, path) in siblings {
            gguf.add(&path, split).map_err(|error| error.in_file(&path))?;
        }
        shards::check_total(&gguf.metadata, gguf.tensors().len()).map_err(in_first)?;
        Ok(gguf)
    }

    /// Reads a model in one file from `source`.
    ///
    /// # Errors
    /// Those of [`Gguf::open`]; [`Error::BadFile`] when the file is one part of several.
    pub fn from_source(source: Box<dyn Source>) -> Result<Gguf> {
        let parsed = parse(&*source, 0)?;
        if let Some(split) = Split::of(&parsed.metadata)? {
            return Err(Error::bad_file(
                "split.count",
                "a model in one file; open a split one by its path",
                split.count,
            ));
        }
        let len = parsed.len;
        Ok(Gguf::of(Shard { source, path: None, len }, parsed))
    }

    fn of(shard: Shard, parsed: Parsed) -> Gguf {
        let Parsed { version, alignment, metadata, tensors, len: _ } = parsed;
        Gguf { version, alignment, metadata, tensors, shards: vec![shard], is_direct: false }
    }

    /// Adds the next part of a split model.
    fn add(&mut self, path: &Path, split: Split) -> Result<()> {
        let (shard, parsed) = open_shard(path, self.shards.len())?;
        shards::check_part(&self.metadata, &parsed, split)?;
        if (self.tensors().len() + parsed.tensors.as_slice().len()) as u64 > MAX_TENSORS {
            return Err(Error::Limit { what: "tensors in all parts", limit: MAX_TENSORS });
        }
        self.tensors.append(parsed.tensors)?;
        self.shards.push(shard);
        Ok(())
    }

    /// The version of the format, 2 or 3; of the first file where there are several.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensor offsets are multiples of, in bytes; of the first file where there are several.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata; of the first file where there are several.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The metadata, when nothing else is needed any more.
    pub fn into_metadata(self) -> Metadata {
        self.metadata
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.tensors.as_slice()
    }

    /// The tensor of this name, in constant time.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// How many files the model is in.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.len))
    }

    /// Lets [`Gguf::read_tensor_placed`] read past the system's cache what is not in it, or not.
    pub fn set_direct(&mut self, choice: DirectIo) {
        self.is_direct = choice.takes(self.file_bytes());
    }

    /// Reads the data of `tensor`, which is one of [`Gguf::tensors`]. `buf` has `n_bytes` bytes.
    ///
    /// # Errors
    /// Each names file and tensor. [`Error::Truncated`] when the file has shrunk since it was opened,
    /// [`Error::Io`], [`Error::InvalidArgument`] when `buf` has another length.
    pub fn read_tensor(&self, tensor: &TensorInfo, buf: &mut [u8]) -> Result<()> {
        if buf.len() as u64 != tensor.n_bytes {
            let expected = format!("{} bytes, the size of {}", tensor.n_bytes, field(&tensor.name));
            return Err(Error::invalid_argument("buf", expected, buf.len()));
        }
        self.read_tensor_part(tensor, 0, buf)
    }

    /// Reads `buf.len()` bytes of the data of `tensor`, from byte `start` of it. Any thread may call it.
    ///
    /// # Errors
    /// Those of [`Gguf::read_tensor`]; [`Error::InvalidArgument`] when the part reaches beyond the tensor.
    pub fn read_tensor_part(&self, tensor: &TensorInfo, start: u64, buf: &mut [u8]) -> Result<()> {
        self.read_part(tensor, start, buf.len(), |source, offset| {
            source::read_exact(source, offset, buf, &format_args!("{}", field(&tensor.name)))
        })
    }

    /// Reads `len` bytes of the data of `tensor` from byte `start` of it into `buf`, where they begin as many bytes after its
    /// start as they do in their [`BLOCK`] of the file. `buf` has room for whole blocks and begins with one; where it does
    /// not, nothing is read past the system's cache. Any thread may call it.
    ///
    /// # Errors
    /// Those of [`Gguf::read_tensor_part`]; [`Error::InvalidArgument`] when `buf` is too short.
    pub fn read_tensor_placed(&self, tensor: &TensorInfo, start: u64, len: usize, buf: &mut [u8]) -> Result<()> {
        self.read_part(tensor, start, len, |source, offset| {
            let first = (offset % BLOCK as u64) as usize;
            let place = first..first.saturating_add(len);
            if place.end > buf.len() {
                return Err(Error::invalid_argument("buf", format!("{} bytes or more", place.end), buf.len()));
            }
            let what = format_args!("{}", field(&tensor.name));
            if self.is_direct {
                return direct::read_placed(source, offset, place, buf, &what);
            }
            source::read_exact(source, offset, &mut buf[place], &what)
        })
    }

    /// Finds part of a tensor in its file for `read`.
    fn read_part<T>(
        &self,
        tensor: &TensorInfo,
        start: u64,
        len: usize,
        read: impl FnOnce(&dyn Source, u64) -> Result<T>,
    ) -> Result<T> {
        let shard = self.shards.get(tensor.shard).filter(|_| start.checked_add(len as u64) <= Some(tensor.n_bytes));
        let (Some(shard), Some(offset)) = (shard, tensor.offset.checked_add(start)) else {
            let found = format!("{len} bytes from byte {start}");
            return Err(Error::invalid_argument("part", format!("a part of {}", field(&tensor.name)), found));
        };
        read(&*shard.source, offset).map_err(|error| match &shard.path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }
}

fn open_shard(path: &Path, number: usize) -> Result<(Shard, Parsed)> {
    let file = DiskFile::new(source::open(path)?);
    let parsed = parse(&file, number)?;
    Ok((Shard { source: Box::new(file), path: Some(path.to_path_buf()), len: parsed.len }, parsed))
}
