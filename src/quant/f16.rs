//! F16: IEEE 754 half precision.

/// `F16`: 2 bytes, one weight.
pub struct F16;

impl super::Block for F16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        Self::dequantize_run(block, out);
    }

    #[inline(always)]
    fn dequantize_run(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *out = super::bits::f16_at(block, 0);
        }
    }
}
