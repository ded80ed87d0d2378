//! The tensor table, and the one place where sizes are computed from the numbers of a file.

use std::collections::HashMap;

use super::text::{owned, shown};
use crate::error::{Error, Result, try_vec};
use crate::quant::QuantType;

/// Dimensions that a tensor may have.
pub const MAX_DIMS: usize = 4;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// 1 to 64 bytes, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Sizes in ggml's order: `dims[0]` counts neighbours in memory. Unused dimensions are 1.
    pub dims: [u64; MAX_DIMS],
    /// How many of `dims` the file gives, 1 to 4.
    pub n_dims: usize,
    /// How the weights are stored.
    pub quant_type: QuantType,
    /// Which file of a split model holds the data; 0 when there is one file.
    pub shard: usize,
    /// Where the data starts in its file, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes of data, without padding.
    pub n_bytes: u64,
    /// Weights: the product of `dims`.
    pub n_elements: u64,
}

impl TensorInfo {
    /// The dimensions that the file gives.
    pub fn dims(&self) -> &[u64] {
        self.dims.get(..self.n_dims).unwrap_or(&self.dims)
    }

    /// Elements `first .. first + n` along the last dimension, as a tensor of their own. `None` when they reach beyond it, or
    /// are no whole blocks.
    pub fn part(&self, first: u64, n: u64) -> Option<TensorInfo> {
        let (&last, others) = self.dims().split_last()?;
        let reaches = first.checked_add(n).is_some_and(|end| end <= last);
        let each: u64 = others.iter().product();
        let block = self.quant_type.block_len() as u64;
        let whole = |n: u64| n.checked_mul(each).filter(|n| n.is_multiple_of(block));
        let (start, n_elements) = (whole(first)?, whole(n)?);
        let mut part = TensorInfo { n_elements, n_bytes: self.quant_type.bytes(n_elements)?, ..self.clone() };
        part.offset = self.offset.checked_add(self.quant_type.bytes(start)?)?;
        *part.dims.get_mut(self.n_dims.checked_sub(1)?)? = n;
        reaches.then_some(part)
    }

    /// The same data with all dimensions from number `from` on as one, counted from 0.
    pub fn flattened(&self, from: usize) -> TensorInfo {
        let mut flat = TensorInfo { n_dims: self.n_dims.min(from + 1), ..self.clone() };
        // The product of all is `n_elements`.
        if let Some((kept, rest)) = flat.dims.get_mut(from..).and_then(<[u64]>::split_first_mut) {
            *kept *= rest.iter().product::<u64>();
            rest.fill(1);
        }
        flat
    }
}

/// How far a tensor reaches. See [`extent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Weights.
    pub n_elements: u64,
    /// Bytes of data.
    pub n_bytes: u64,
    /// Where the data ends.
    pub end: u64,
    /// `end` rounded up to the alignment: the first byte where another tensor may start.
    pub padded_end: u64,
}

/// The extent of a tensor whose data starts at `start`. `dims` are at least 1, `dims[0]` is a multiple of the block
/// length and `alignment` a power of two; `None` when any number exceeds 2^63 - 1.
pub(super) fn extent(dims: &[u64], quant_type: QuantType, start: u64, alignment: u64) -> Option<Extent> {
    let n_elements = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))?;
    let n_bytes = quant_type.bytes(n_elements)?;
    let end = start.checked_add(n_bytes)?;
    let padded_end = align_up(end, alignment)?;
    // ggml counts in i64, so what does not fit there is damage even where u64 would hold it.
    [n_elements, padded_end].iter().all(|&n| i64::try_from(n).is_ok()).then_some(())?;
    Some(Extent { n_elements, n_bytes, end, padded_end })
}

/// `offset` rounded up to a multiple of `alignment`, a power of two.
pub(super) fn align_up(offset: u64, alignment: u64) -> Option<u64> {
    offset.checked_next_multiple_of(alignment)
}

/// The name that ggml gives tensor type `id`, for messages about types that kigo does not know.
pub(super) fn ggml_type_name(id: u32) -> Option<&'static str> {
    const NAMES: [&str; 42] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
        "NVFP4",
        "Q1_0",
    ];
    NAMES.get(usize::try_from(id).ok()?).copied()
}

/// Tensors in the order of the file, found by name in constant time.
#[derive(Debug, Default)]
pub(super) struct TensorTable {
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl TensorTable {
    pub(super) fn as_slice(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensors, to be placed; their names stay as they are.
    pub(super) fn as_mut_slice(&mut self) -> &mut [TensorInfo] {
        &mut self.tensors
    }

    pub(super) fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&at| self.tensors.get(at))
    }

    /// Appends a tensor whose name is new.
    pub(super) fn push(&mut self, tensor: TensorInfo) -> Result<()> {
        if self.index.contains_key(&tensor.name) {
            return Err(Error::bad_file(field(&tensor.name), "each tensor name once", "a second tensor of this name"));
        }
        let out_of_memory = |_| Error::OutOfMemory { what: "the tensor table".to_string(), bytes: 256 };
        self.tensors.try_reserve(1).map_err(out_of_memory)?;
        self.index.try_reserve(1).map_err(out_of_memory)?;
        let name = owned(&tensor.name)?;
        self.index.insert(name, self.tensors.len());
        self.tensors.push(tensor);
        Ok(())
    }

    /// Appends the tensors of another file of the same model.
    pub(super) fn append(&mut self, other: TensorTable) -> Result<()> {
        other.tensors.into_iter().try_for_each(|tensor| self.push(tensor))
    }

    /// Checks that no two tensors of this table, which is that of one file, share a byte.
    pub(super) fn check_overlap(&self) -> Result<()> {
        let mut order = try_vec(self.tensors.len(), "the order of the tensors")?;
        order.extend(&self.tensors);
        order.sort_unstable_by_key(|tensor| tensor.offset);
        for pair in order.windows(2) {
            let [a, b] = pair else { continue };
            let end = a.offset.saturating_add(a.n_bytes);
            if b.offset < end {
                let expected = format!("an offset of at least {end}, where tensor {} ends", shown(a.name.as_bytes()));
                return Err(Error::bad_file(field(&b.name), expected, b.offset));
            }
        }
        Ok(())
    }
}

/// How messages name a tensor.
pub(super) fn field(name: &str) -> String {
    format!("tensor {}", shown(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_computes_and_refuses_overflow() {
        let e = extent(&[3, 5], QuantType::F16, 64, 32).unwrap();
        assert_eq!((e.n_elements, e.n_bytes, e.end, e.padded_end), (15, 30, 94, 96));
        for (dims, start) in [
            (&[(1 << 42) + 1, 1 << 22][..], 0),
            (&[4 * (i32::MAX as u64), 4 * (i32::MAX as u64)], 0),
            (&[(1 << 62) - 1], 0),
            (&[1 << 61], 0),
            (&[u64::MAX], 0),
            (&[1], u64::MAX),
            (&[1], i64::MAX as u64),
        ] {
            assert_eq!(extent(dims, QuantType::F32, start, 32), None, "{dims:?} at {start}");
        }
    }

    #[test]
    fn parts_and_flattened_tensors_keep_the_books() {
        let whole = TensorInfo {
            name: "x".into(),
            dims: [64, 6, 5, 1],
            n_dims: 3,
            quant_type: QuantType::Q8_0,
            shard: 0,
            offset: 1000,
            n_bytes: 64 * 30 / 32 * 34,
            n_elements: 64 * 30,
        };
        let flat = whole.flattened(1);
        assert_eq!((flat.dims(), flat.n_bytes), (&[64, 30][..], whole.n_bytes));
        assert_eq!(whole.flattened(0).dims(), [64 * 30]);
        assert_eq!(whole.flattened(2), whole);
        let part = flat.part(10, 20).unwrap();
        assert_eq!((part.dims(), part.offset), (&[64, 20][..], 1000 + 10 * 68));
        assert_eq!((part.n_elements, part.n_bytes), (64 * 20, 20 * 68));
        assert_eq!(flat.part(0, 30).unwrap(), flat);
        assert!(flat.part(11, 20).is_none() && flat.part(u64::MAX, 2).is_none());
        let row = whole.flattened(0);
        assert!(row.part(32, 64).is_some() && row.part(16, 64).is_none() && row.part(32, 65).is_none());
    }

    #[test]
    fn names_agree_with_the_table_of_quant_types() {
        for &t in QuantType::ALL {
            assert_eq!(ggml_type_name(t as u32), Some(t.name()));
        }
        assert_eq!(ggml_type_name(16), Some("IQ2_XXS"));
        assert_eq!(ggml_type_name(39), Some("MXFP4"));
        assert_eq!(ggml_type_name(u32::MAX), None);
    }
}
