//! F16: IEEE 754 half precision.

/// `F16`: 2 bytes, one weight.
pub struct F16;

impl super::Block for F16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        out[0] = super::bits::f16_at(block, 0);
    }
}
