//! F32: IEEE 754 single precision.

/// `F32`: 4 bytes, one weight.
pub struct F32;

impl super::Block for F32 {
    const LEN: usize = 1;
    const BYTES: usize = 4;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        Self::dequantize_run(block, out);
    }

    #[inline(always)]
    fn dequantize_run(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<4>().0.iter().zip(out) {
            *out = f32::from_le_bytes(*block);
        }
    }
}
