//! Quantisation types: one row of a table and one file each. A file describes the block layout and turns one
//! block into f32; everything else (sizes, names, dispatch) is derived from the table.
//!
//! Numbers and layouts are those of ggml (`ggml-common.h`, `ggml_type`). All integers are little-endian.

mod bf16;
mod bits;
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

    /// Writes the weights of a run of blocks to `out`, which takes exactly those of `blocks`.
    ///
    /// Types of one weight per block have their own, because a run is where they vectorise: dequantise at least
    /// 32 weights at a time, a constant number where speed matters.
    #[inline(always)]
    fn dequantize_run(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(Self::BYTES).zip(out.chunks_exact_mut(Self::LEN)) {
            Self::dequantize(block, out);
        }
    }
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
                B::dequantize_run(self.0, self.1);
            }
        }
        self.visit(Dequantize(blocks, out));
    }
}
