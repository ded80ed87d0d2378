//! Q6_K: 256 weights of 6 bits in 16 groups, each with an 8-bit scale, 6.5625 bits per weight.
//!
//! ```text
//! byte   0..128  ql      byte 64 h + i: bits 3..0 = bits 3..0 of q[128 h + i],     h < 2, i < 64
//!                                       bits 7..4 = bits 3..0 of q[128 h + 64 + i]
//! byte 128..192  qh      byte 32 h + i: bits 2 r + 1..2 r = bits 5..4 of q[128 h + 32 r + i]    r < 4, i < 32
//! byte 192..208  scales  16 signed bytes
//! byte 208..210  d       half
//!
//! w[i] = (d * scales[g]) * (q[i] - 32)    g = i / 16
//! ```

use super::{Block, array, array_mut, f16_at};

/// `Q6_K`: 210 bytes, 256 weights.
pub struct Q6K;

impl Block for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 210] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let ql: &[u8; 128] = array(block);
        let qh: &[u8; 64] = array(&block[128..]);
        let scales: &[u8; 16] = array(&block[192..]);
        let d = f16_at(block, 208);
        for g in 0..16 {
            let scale = d * scales[g] as i8 as f32;
            let ql: &[u8; 16] = array(&ql[g / 8 * 64 + g % 4 * 16..]);
            let qh: &[u8; 16] = array(&qh[g / 8 * 32 + g % 2 * 16..]);
            let (low_shift, high_shift) = (g % 8 / 4 * 4, g % 8 / 2 * 2);
            let out: &mut [f32; 16] = array_mut(&mut out[g * 16..]);
            for i in 0..16 {
                let q = (ql[i] >> low_shift) & 15 | ((qh[i] >> high_shift) & 3) << 4;
                out[i] = scale * (q as i32 - 32) as f32;
            }
        }
    }
}
