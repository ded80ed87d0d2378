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

use super::Block;
use super::bits::{array, array_mut, scale_at, spread_bits};

/// `Q5_1`: 24 bytes, 32 weights.
pub struct Q5_1;

impl Block for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 24] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let m = scale_at(block, 2);
        let qh: [u64; 4] = array::<u8, 4>(&block[4..]).map(spread_bits);
        let qh = qh.map(u64::to_le_bytes);
        let qh: &[u8; 32] = array(qh.as_flattened());
        let qs: &[u8; 16] = array(&block[8..]);
        for i in 0..16 {
            out[i] = d * (qs[i] & 15 | qh[i] << 4) as f32 + m;
            out[i + 16] = d * (qs[i] >> 4 | qh[i + 16] << 4) as f32 + m;
        }
    }
}
