//! One file: header, metadata, tensor table. Follows the GGUF specification, versions 2 and 3, and says in each
//! doc comment where it is stricter.

use super::array::{Array, StringArray};
use super::metadata::{Metadata, Value, type_name};
use super::reader::Reader;
use super::source::Source;
use super::tensor::{MAX_DIMS, TensorInfo, TensorTable, align_up, extent, field, ggml_type_name};
use super::text::shown;
use crate::error::{Error, Result, quoted};
use crate::quant::QuantType;

/// Pairs that the metadata of a file may have; those of real models have fewer than 100.
pub const MAX_PAIRS: u64 = 65_536;
/// Tensors that a model may have; the largest published ones have some thousands.
pub const MAX_TENSORS: u64 = 65_536;
/// Bytes of a key, by the specification.
pub const MAX_KEY_BYTES: u64 = 65_535;
/// Bytes of a tensor name, by the specification.
pub const MAX_NAME_BYTES: u64 = 64;
/// Where tensor data is aligned, when the file does not say.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment: beyond it padding only wastes space.
pub const MAX_ALIGNMENT: u64 = 1 << 20;

/// Bytes of the smallest pair: length and one byte of key, type, one byte of value.
const MIN_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// Bytes of the smallest row of the tensor table: length and one byte of name, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// What one file says before its tensor data.
#[derive(Debug)]
pub(super) struct Parsed {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: TensorTable,
    /// Length of the file in bytes.
    pub len: u64,
}

/// Reads all but the tensor data of `source`. Its tensors are checked against the length of the file and get
/// `shard` as their shard.
pub(super) fn parse(source: &dyn Source, shard: usize) -> Result<Parsed> {
    let reader = &mut Reader::new(source)?;
    magic(reader)?;
    let version = version(reader)?;
    let n_tensors: u64 = reader.number(&"tensor_count")?;
    let n_pairs: u64 = reader.number(&"metadata_kv_count")?;
    reader.expect(n_tensors, MIN_TENSOR_BYTES, &format_args!("a tensor_count of {n_tensors}"))?;
    reader.expect(n_pairs, MIN_PAIR_BYTES, &format_args!("a metadata_kv_count of {n_pairs}"))?;
    if n_tensors > MAX_TENSORS {
        return Err(Error::Limit { what: "tensors (tensor_count)", limit: MAX_TENSORS });
    }
    if n_pairs > MAX_PAIRS {
        return Err(Error::Limit { what: "pairs of metadata (metadata_kv_count)", limit: MAX_PAIRS });
    }
    let mut metadata = Metadata::new();
    for number in 0..n_pairs {
        pair(reader, number, &mut metadata)?;
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = TensorTable::default();
    for number in 0..n_tensors {
        tensors.push(tensor(reader, number, shard)?)?;
    }
    let tensors = place(tensors, reader.offset(), alignment, reader.len())?;
    Ok(Parsed { version, alignment, metadata, tensors, len: reader.len() })
}

fn magic(reader: &mut Reader) -> Result<()> {
    const MAGIC: &[u8] = b"GGUF";
    let found = reader.bytes(reader.remaining().min(4), &"the magic bytes \"GGUF\"")?;
    if !MAGIC.starts_with(&found) {
        return Err(Error::NotGguf { found: quoted(&found) });
    }
    if found.len() < MAGIC.len() {
        let (needed, available) = (MAGIC.len() as u64, found.len() as u64);
        return Err(Error::Truncated { what: "the magic bytes \"GGUF\"".to_string(), offset: 0, needed, available });
    }
    Ok(())
}

/// Versions 2 and 3 differ only in that 3 may be big-endian, which shows in the version itself.
fn version(reader: &mut Reader) -> Result<u32> {
    let version: u32 = reader.number(&"the version")?;
    let note = match version {
        2 | 3 => return Ok(version),
        1 => " (of August 2023); convert the model again",
        _ if matches!(version.swap_bytes(), 1..=3) => " (a big-endian file); convert the model for little-endian",
        _ => "",
    };
    Err(Error::UnsupportedVersion { found: version, note })
}

/// Keys must be UTF-8 of 1 to 65535 bytes; the specification asks for ASCII. Duplicates are refused.
fn pair(reader: &mut Reader, number: u64, metadata: &mut Metadata) -> Result<()> {
    let what = format!("key number {number} of the metadata");
    let key = name(reader, &what, MAX_KEY_BYTES)?;
    let value = value(reader, &shown(key.as_bytes()))?;
    metadata.insert(&key, value)
}

fn name(reader: &mut Reader, what: &str, max_bytes: u64) -> Result<String> {
    let offset = reader.offset();
    let len: u64 = reader.number(&format_args!("the length of {what}"))?;
    let field = || format!("{what}, at offset {offset}");
    if !(1..=max_bytes).contains(&len) {
        return Err(Error::bad_file(field(), format!("a length of 1 to {max_bytes} bytes"), len));
    }
    let bytes = reader.bytes(len, &what)?;
    String::from_utf8(bytes).map_err(|e| Error::bad_file(field(), "UTF-8", quoted(e.as_bytes())))
}

fn value(reader: &mut Reader, key: &str) -> Result<Value> {
    let type_id: u32 = reader.number(&format_args!("the value type of {key}"))?;
    Ok(match type_id {
        0 => Value::U8(reader.number(&key)?),
        1 => Value::I8(reader.number(&key)?),
        2 => Value::U16(reader.number(&key)?),
        3 => Value::I16(reader.number(&key)?),
        4 => Value::U32(reader.number(&key)?),
        5 => Value::I32(reader.number(&key)?),
        6 => Value::F32(reader.number(&key)?),
        7 => Value::Bool(bool_of(reader.number(&key)?, key)?),
        8 => Value::String(string(reader, key)?.into_boxed_slice()),
        9 => Value::Array(array(reader, key)?),
        10 => Value::U64(reader.number(&key)?),
        11 => Value::I64(reader.number(&key)?),
        12 => Value::F64(reader.number(&key)?),
        _ => return Err(Error::bad_file(key, "a value type from 0 to 12", type_id)),
    })
}

fn string(reader: &mut Reader, key: &str) -> Result<Vec<u8>> {
    let len: u64 = reader.number(&format_args!("the length of {key}"))?;
    reader.bytes(len, &format_args!("{key}, a STRING of {len} bytes"))
}

fn bool_of(byte: u8, key: &str) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::bad_file(key, "a BOOL of 0 or 1", byte)),
    }
}

/// Arrays of arrays, which the specification allows, are refused.
fn array(reader: &mut Reader, key: &str) -> Result<Array> {
    let type_id: u32 = reader.number(&format_args!("the element type of {key}"))?;
    let n: u64 = reader.number(&format_args!("the length of {key}"))?;
    let what = &format_args!("{key}, an ARRAY of {n} {}", type_name(type_id).unwrap_or("elements"));
    Ok(match type_id {
        0 => Array::U8(reader.numbers(n, what)?),
        1 => Array::I8(reader.numbers(n, what)?),
        2 => Array::U16(reader.numbers(n, what)?),
        3 => Array::I16(reader.numbers(n, what)?),
        4 => Array::U32(reader.numbers(n, what)?),
        5 => Array::I32(reader.numbers(n, what)?),
        6 => Array::F32(reader.numbers(n, what)?),
        7 => Array::Bool(bools(reader, key, n)?),
        8 => Array::String(strings(reader, key, n)?),
        9 => return Err(Error::UnsupportedValue { key: key.to_string(), found: "an array of arrays" }),
        10 => Array::U64(reader.numbers(n, what)?),
        11 => Array::I64(reader.numbers(n, what)?),
        12 => Array::F64(reader.numbers(n, what)?),
        _ => return Err(Error::bad_file(key, "an element type from 0 to 12", type_id)),
    })
}

fn bools(reader: &mut Reader, key: &str, n: u64) -> Result<Vec<bool>> {
    let bytes: Vec<u8> = reader.numbers(n, &format_args!("{key}, an ARRAY of {n} BOOL"))?;
    let mut out = crate::error::try_vec(bytes.len(), "an array of metadata")?;
    for byte in bytes {
        out.push(bool_of(byte, key)?);
    }
    Ok(out)
}

fn strings(reader: &mut Reader, key: &str, n: u64) -> Result<StringArray> {
    /// Bytes of the length before each string.
    const LEN_BYTES: u64 = 8;
    reader.expect(n, LEN_BYTES, &format_args!("{key}, an ARRAY of {n} STRING"))?;
    let mut out = StringArray::with_capacity(usize::try_from(n).unwrap_or(usize::MAX))?;
    for i in 0..n {
        let what = &format_args!("{key}, element {i} of {n}");
        let len: u64 = reader.number(what)?;
        out.push_with(reader.expect(len, 1, what)?, |room| reader.fill(room, what))?;
    }
    out.shrink();
    Ok(out)
}

/// `general.alignment` must be UINT32, as the specification says, and a power of two from 8 to [`MAX_ALIGNMENT`].
fn alignment(metadata: &Metadata) -> Result<u64> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(n)) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&n.into()) => Ok(n.into()),
        Some(value) => {
            let expected = format!("UINT32, a power of two from 8 to {MAX_ALIGNMENT}");
            Err(Error::bad_file(KEY, expected, value.describe()))
        }
    }
}

/// One row of the tensor table. `offset` of the result is still relative to the data section, and the extent is
/// not known yet. Dimensions of 0 and tensors without dimensions are refused.
fn tensor(reader: &mut Reader, number: u64, shard: usize) -> Result<TensorInfo> {
    let name = name(reader, &format!("name of tensor number {number}"), MAX_NAME_BYTES)?;
    let tensor = field(&name);
    let n_dims: u32 = reader.number(&format_args!("{tensor}: n_dimensions"))?;
    let n_dims = match usize::try_from(n_dims) {
        Ok(n) if (1..=MAX_DIMS).contains(&n) => n,
        _ => return Err(Error::bad_file(format!("{tensor}: n_dimensions"), format!("1 to {MAX_DIMS}"), n_dims)),
    };
    let mut dims = [1u64; MAX_DIMS];
    for (i, dim) in dims.iter_mut().take(n_dims).enumerate() {
        *dim = reader.number(&format_args!("{tensor}: dimensions[{i}]"))?;
        if !i64::try_from(*dim).is_ok_and(|dim| dim > 0) {
            return Err(Error::bad_file(format!("{tensor}: dimensions[{i}]"), "1 to 2^63 - 1", *dim));
        }
    }
    let type_id: u32 = reader.number(&format_args!("{tensor}: type"))?;
    let quant_type = QuantType::from_ggml_id(type_id).ok_or_else(|| Error::UnsupportedType {
        tensor: tensor.trim_start_matches("tensor ").to_string(),
        found: ggml_type_name(type_id).map_or_else(|| type_id.to_string(), |name| format!("{type_id} ({name})")),
        known: QuantType::known(),
    })?;
    let block_len = quant_type.block_len() as u64;
    if !dims[0].is_multiple_of(block_len) {
        let expected = format!("a multiple of {block_len}, the block of {}", quant_type.name());
        return Err(Error::bad_file(format!("{tensor}: dimensions[0]"), expected, dims[0]));
    }
    let offset = reader.number(&format_args!("{tensor}: offset"))?;
    Ok(TensorInfo { name, dims, n_dims, quant_type, shard, offset, n_bytes: 0, n_elements: 0 })
}

/// Places the tensors of a table that ends at `table_end` in their file of `len` bytes: offsets become absolute,
/// must be aligned, inside the file, and must not overlap. Gaps are allowed, and so is a last tensor whose padding
/// is missing.
fn place(mut tensors: TensorTable, table_end: u64, alignment: u64, len: u64) -> Result<TensorTable> {
    let data_start = align_up(table_end, alignment).unwrap_or(u64::MAX);
    for tensor in tensors.as_mut_slice() {
        let what = field(&tensor.name);
        if !tensor.offset.is_multiple_of(alignment) {
            let expected = format!("a multiple of the alignment {alignment}");
            return Err(Error::bad_file(format!("{what}: offset"), expected, tensor.offset));
        }
        let dims = tensor.dims();
        let start = data_start.checked_add(tensor.offset);
        let placed = start.and_then(|start| Some((start, extent(dims, tensor.quant_type, start, alignment)?)));
        let Some((start, extent)) = placed else {
            let found = format!("dimensions {dims:?} of {} at offset {}", tensor.quant_type.name(), tensor.offset);
            return Err(Error::bad_file(what, "data that ends below 2^63", found));
        };
        if extent.end > len {
            let available = len.saturating_sub(start);
            return Err(Error::Truncated { what, offset: start, needed: extent.n_bytes, available });
        }
        tensor.offset = start;
        tensor.n_bytes = extent.n_bytes;
        tensor.n_elements = extent.n_elements;
    }
    tensors.check_overlap()?;
    Ok(tensors)
}
