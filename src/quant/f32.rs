//! F32: IEEE 754 single precision.

/// `F32`: 4 bytes, one weight.
pub struct F32;

impl super::Block for F32 {
    const LEN: usize = 1;
    const BYTES: usize = 4;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }
}
