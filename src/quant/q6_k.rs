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

use super::Block;
use super::bits::{array, array_mut, put_word, scale_at, splat, word_at};

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
        let d = scale_at(block, 208);
        let mut q = [0; 256];
        for h in 0..2 {
            for i in (0..32).step_by(8) {
                let low = [word_at(ql, 64 * h + i), word_at(ql, 64 * h + 32 + i)];
                let high = word_at(qh, 32 * h + i);
                for r in 0..4 {
                    let bits_0_3 = low[r % 2] >> (r / 2 * 4) & splat(15);
                    let bits_4_5 = high >> (2 * r) & splat(3);
                    put_word(&mut q, 128 * h + 32 * r + i, bits_0_3 | bits_4_5 << 4);
                }
            }
        }
        let scales = scales.map(|sc| d * sc as i8 as f32);
        for i in 0..256 {
            out[i] = scales[i / 16] * (q[i] as i32 - 32) as f32;
        }
    }
}
