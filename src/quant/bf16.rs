//! BF16: the upper half of an IEEE 754 single.

/// `BF16`: 2 bytes, one weight.
pub struct Bf16;

impl super::Block for Bf16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        Self::dequantize_run(block, out);
    }

    #[inline(always)]
    fn dequantize_run(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *out = f32::from_bits(u32::from_le_bytes([0, 0, block[0], block[1]]));
        }
    }
}
