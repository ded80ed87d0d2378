//! Q5_1: 32 weights of 5 bits with a scale and a minimum, 6 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..4   m   half
//! byte   4..8   qh  u32: bit i = bit 4 of q[i]
//! byte   8..24  qs  byte i: bits 3..0 = bits 3..0 of q[i], bits 7..4 = bits 3..0 of q[i + 16]
//!
//! w[i] = d * q[i] + m
//! ```

use super::{Block, array, array_mut, f16_at};

/// `Q5_1`: 24 bytes, 32 weights.
pub struct Q5_1;

impl Block for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 24] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = f16_at(block, 0);
        let m = f16_at(block, 2);
        let qh = u32::from_le_bytes(*array(&block[4..]));
        let qs: &[u8; 16] = array(&block[8..]);
        for i in 0..16 {
            let q = (qs[i] & 15) as u32 | ((qh >> i) & 1) << 4;
            out[i] = d * q as i32 as f32 + m;
        }
        for i in 0..16 {
            let q = (qs[i] >> 4) as u32 | ((qh >> (i + 16)) & 1) << 4;
            out[i + 16] = d * q as i32 as f32 + m;
        }
    }
}
