//! BF16: the upper half of an IEEE 754 single.

/// `BF16`: 2 bytes, one weight.
pub struct Bf16;

impl super::Block for Bf16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        out[0] = f32::from_bits((u16::from_le_bytes([block[0], block[1]]) as u32) << 16);
    }
}
