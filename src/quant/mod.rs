//! Quantisation types: one row of a table and one file each. A file describes the block layout and turns one
//! block into f32; everything else (sizes, names, dispatch) is derived from the table.
//!
//! Numbers and layouts are those of ggml (`ggml-common.h`, `ggml_type`). All integers are little-endian.

mod bf16;
mod f16;
mod f32;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

/// The layout of one block: `LEN` weights in `BYTES` bytes.
pub trait Block: 'static {
    /// Weights in a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Writes the `LEN` weights of `block` (`BYTES` bytes) to `out`.
    ///
    /// Implementations are `#[inline(always)]`, without early exits, so that the compiler turns the loop of a
    /// caller that enabled wide vectors into wide vector code.
    fn dequantize(block: &[u8], out: &mut [f32]);
}

/// Code that is compiled once for every block type.
pub trait BlockVisitor {
    /// What it computes.
    type Output;
    /// Runs for the block type `B`.
    fn visit<B: Block>(self) -> Self::Output;
}

/// One row per type: Rust name, ggml number, block type.
macro_rules! quant_types {
    ($($name:ident = $id:literal, $block:ty;)*) => {
        /// A tensor type that kigo can compute with. Names and numbers are ggml's.
        #[allow(non_camel_case_types, reason = "ggml's own names")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum QuantType {
            $(
                #[doc = concat!("ggml type ", $id, ", `", stringify!($name), "`.")]
                $name = $id,
            )*
        }

        impl QuantType {
            /// Every type, in the order of the table.
            pub const ALL: &[QuantType] = &[$(QuantType::$name,)*];

            /// The type with this ggml number.
            pub fn from_ggml_id(id: u32) -> Option<QuantType> {
                match id { $($id => Some(QuantType::$name),)* _ => None }
            }

            /// The name that ggml gives it.
            pub fn name(self) -> &'static str {
                match self { $(QuantType::$name => stringify!($name),)* }
            }

            /// Weights in a block.
            pub fn block_len(self) -> usize {
                match self { $(QuantType::$name => <$block as Block>::LEN,)* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self { $(QuantType::$name => <$block as Block>::BYTES,)* }
            }

            /// Runs `visitor` for the block type of this row.
            pub fn visit<V: BlockVisitor>(self, visitor: V) -> V::Output {
                match self { $(QuantType::$name => visitor.visit::<$block>(),)* }
            }
        }
    };
}

quant_types! {
    F32 = 0, f32::F32;
    F16 = 1, f16::F16;
    Q4_0 = 2, q4_0::Q4_0;
    Q4_1 = 3, q4_1::Q4_1;
    Q5_0 = 6, q5_0::Q5_0;
    Q5_1 = 7, q5_1::Q5_1;
    Q8_0 = 8, q8_0::Q8_0;
    Q2_K = 10, q2_k::Q2K;
    Q3_K = 11, q3_k::Q3K;
    Q4_K = 12, q4_k::Q4K;
    Q5_K = 13, q5_k::Q5K;
    Q6_K = 14, q6_k::Q6K;
    IQ4_NL = 20, iq4_nl::Iq4Nl;
    IQ4_XS = 23, iq4_xs::Iq4Xs;
    MXFP4 = 39, mxfp4::Mxfp4;
    BF16 = 30, bf16::Bf16;
}

impl QuantType {
    /// The names of all types, for messages.
    pub fn known() -> String {
        Self::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
    }

    /// Bytes of `n` weights, where `n` is a multiple of the block length; `None` when it is not or on overflow.
    pub fn bytes(self, n: u64) -> Option<u64> {
        let len = self.block_len() as u64;
        if !n.is_multiple_of(len) {
            return None;
        }
        (n / len).checked_mul(self.block_bytes() as u64)
    }

    /// Writes the weights of `blocks` to `out`; `blocks` holds exactly as many whole blocks as `out` takes.
    ///
    /// # Panics
    /// When the two lengths do not belong together.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(self.bytes(out.len() as u64), Some(blocks.len() as u64), "{} weights of {}", out.len(), self.name());
        struct Dequantize<'a>(&'a [u8], &'a mut [f32]);
        impl BlockVisitor for Dequantize<'_> {
            type Output = ();
            fn visit<B: Block>(self) {
                for (block, out) in self.0.chunks_exact(B::BYTES).zip(self.1.chunks_exact_mut(B::LEN)) {
                    B::dequantize(block, out);
                }
            }
        }
        self.visit(Dequantize(blocks, out));
    }
}

/// The first `N` items of `slice`. The one bounds check of a block; it folds away where the length is known.
#[inline(always)]
fn array<T, const N: usize>(slice: &[T]) -> &[T; N] {
    &slice.as_chunks().0[0]
}

/// Like [`array`], to write.
#[inline(always)]
fn array_mut<T, const N: usize>(slice: &mut [T]) -> &mut [T; N] {
    &mut slice.as_chunks_mut().0[0]
}

/// The little-endian half at byte `at` of `block`, widened exactly. Branch-free, so that it vectorises, and
/// without arithmetic on subnormals, so that a host that flushes them to zero changes nothing.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]) as u32;
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    let normal = f32::from_bits((magnitude << 13) + ((127 - 15) << 23));
    let subnormal = magnitude as f32 * f32::from_bits((127 - 24) << 23);
    let special = f32::from_bits((magnitude << 13) | 0x7f80_0000);
    let value = if magnitude < 0x0400 {
        subnormal
    } else if magnitude >= 0x7c00 {
        special
    } else {
        normal
    };
    f32::from_bits(value.to_bits() | sign)
}
