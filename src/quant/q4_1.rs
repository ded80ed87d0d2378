//! Q4_1: 32 weights of 4 bits with a scale and a minimum, 5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..4   m   half
//! byte   4..20  qs  byte i: bits 3..0 = q[i], bits 7..4 = q[i + 16]
//!
//! w[i] = d * q[i] + m
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at};

/// `Q4_1`: 20 bytes, 32 weights.
pub struct Q4_1;

impl Block for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 20] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let m = scale_at(block, 2);
        let qs: &[u8; 16] = array(&block[4..]);
        for i in 0..16 {
            out[i] = d * (qs[i] & 15) as f32 + m;
            out[i + 16] = d * (qs[i] >> 4) as f32 + m;
        }
    }
}
