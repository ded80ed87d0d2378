//! Q5_0: 32 weights of 5 bits with one scale, 5.5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..6   qh  u32: bit i = bit 4 of q[i]
//! byte   6..22  qs  byte i: bits 3..0 = bits 3..0 of q[i], bits 7..4 = bits 3..0 of q[i + 16]
//!
//! w[i] = d * (q[i] - 16)
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at, spread_bits};

/// `Q5_0`: 22 bytes, 32 weights.
pub struct Q5_0;

impl Block for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 22] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let qh: [u64; 4] = array::<u8, 4>(&block[2..]).map(spread_bits);
        let qh = qh.map(u64::to_le_bytes);
        let qh: &[u8; 32] = array(qh.as_flattened());
        let qs: &[u8; 16] = array(&block[6..]);
        for i in 0..16 {
            out[i] = d * ((qs[i] & 15 | qh[i] << 4) as i8 - 16) as f32;
            out[i + 16] = d * ((qs[i] >> 4 | qh[i + 16] << 4) as i8 - 16) as f32;
        }
    }
}
