//! Writes GGUF files, for tests and tools.

use std::path::Path;

use super::array::Array;
use super::metadata::{Metadata, Value};
use super::parse::DEFAULT_ALIGNMENT;
use crate::error::{Error, Result};
use crate::quant::QuantType;

/// Builds a file from pairs and tensors, in the order given. It writes what it is told, also what the reader
/// refuses: duplicate keys, names that are too long, types that do not exist.
#[derive(Debug, Clone)]
pub struct Writer {
    version: u32,
    pairs: Vec<(Vec<u8>, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    type_id: u32,
    /// Relative to the data section; `None` for after the tensor before.
    offset: Option<u64>,
    data: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { version: 3, pairs: Vec::new(), tensors: Vec::new() }
    }
}

impl Writer {
    /// An empty file of version 3.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Sets the version. All versions are written in the layout of 2 and 3.
    pub fn version(mut self, version: u32) -> Writer {
        self.version = version;
        self
    }

    /// Appends a pair. `general.alignment`, where it is a UINT32 that is a power of two, sets the alignment.
    pub fn pair(mut self, key: impl AsRef<[u8]>, value: impl Into<Value>) -> Writer {
        self.pairs.push((key.as_ref().to_vec(), value.into()));
        self
    }

    /// Appends all pairs of `metadata`.
    pub fn metadata(mut self, metadata: &Metadata) -> Writer {
        self.pairs.extend(metadata.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.clone())));
        self
    }

    /// Appends a tensor. `dims[0]` counts neighbours in memory; `data` is written as it is.
    pub fn tensor(self, name: &str, dims: &[u64], quant_type: QuantType, data: Vec<u8>) -> Writer {
        self.raw_tensor(name, dims, quant_type as u32, None, data)
    }

    /// Appends a tensor of any type number, whose row claims `offset` wherever its data lies.
    pub fn raw_tensor(
        mut self,
        name: impl AsRef<[u8]>,
        dims: &[u64],
        type_id: u32,
        offset: Option<u64>,
        data: Vec<u8>,
    ) -> Writer {
        self.tensors.push(Tensor { name: name.as_ref().to_vec(), dims: dims.to_vec(), type_id, offset, data });
        self
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let alignment = self.alignment();
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            put_string(&mut out, key);
            out.extend(value.type_id().to_le_bytes());
            put_value(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            put_numbers(&mut out, &tensor.dims, |dim| dim.to_le_bytes());
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(alignment), 0);
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(alignment), 0);
            out.extend(data);
        }
        out
    }

    /// Writes the file to `path`, replacing what is there.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::Io { operation: "write".to_string(), source }.in_file(path);
        std::fs::write(path, self.to_bytes()).map_err(failed)
    }

    fn alignment(&self) -> usize {
        let given = self.pairs.iter().find_map(|(key, value)| match value {
            Value::U32(n) if key == b"general.alignment" && n.is_power_of_two() => Some(u64::from(*n)),
            _ => None,
        });
        usize::try_from(given.unwrap_or(DEFAULT_ALIGNMENT)).unwrap_or(1)
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::U16(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::I16(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::U32(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::I32(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::F32(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::String(v) => v.iter().for_each(|string| put_string(out, string)),
        Array::U64(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::I64(v) => put_numbers(out, v, |n| n.to_le_bytes()),
        Array::F64(v) => put_numbers(out, v, |n| n.to_le_bytes()),
    }
}

fn put_numbers<T, const N: usize>(out: &mut Vec<u8>, numbers: &[T], bytes: impl Fn(&T) -> [u8; N]) {
    out.extend(numbers.iter().flat_map(bytes));
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string);
}
