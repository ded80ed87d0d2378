//! Q8_0: 32 weights of 8 bits with one scale, 8.5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..34  q   32 signed bytes
//!
//! w[i] = q[i] * d
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at};

/// `Q8_0`: 34 bytes, 32 weights.
pub struct Q8_0;

impl Block for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 34] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let qs: &[u8; 32] = array(&block[2..]);
        for i in 0..32 {
            out[i] = qs[i] as i8 as f32 * d;
        }
    }
}
