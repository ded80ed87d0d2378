//! Q4_0: 32 weights of 4 bits with one scale, 4.5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..18  qs  byte i: bits 3..0 = q[i], bits 7..4 = q[i + 16]
//!
//! w[i] = d * (q[i] - 8)
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at};

/// `Q4_0`: 18 bytes, 32 weights.
pub struct Q4_0;

impl Block for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 18] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let qs: &[u8; 16] = array(&block[2..]);
        for i in 0..16 {
            out[i] = d * ((qs[i] & 15) as i8 - 8) as f32;
            out[i + 16] = d * ((qs[i] >> 4) as i8 - 8) as f32;
        }
    }
}
