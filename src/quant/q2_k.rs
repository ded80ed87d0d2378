//! Q2_K: 256 weights of 2 bits in 16 groups, each with a 4-bit scale and minimum, 2.625 bits per weight.
//!
//! ```text
//! byte   0..16  scales  byte g: bits 3..0 = sc[g], bits 7..4 = m[g]
//! byte  16..80  qs      byte 32 h + i: bits 2 r + 1..2 r = q[128 h + 32 r + i]    h < 2, r < 4, i < 32
//! byte  80..82  d       half
//! byte  82..84  dmin    half
//!
//! w[i] = (d * sc[g]) * q[i] - dmin * m[g]    g = i / 16
//! ```

use super::Block;
use super::bits::{array, array_mut, put_word, scale_at, splat, word_at};

/// `Q2_K`: 84 bytes, 256 weights.
pub struct Q2K;

impl Block for Q2K {
    const LEN: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 84] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let scales: &[u8; 16] = array(block);
        let qs: &[u8; 64] = array(&block[16..]);
        let d = scale_at(block, 80);
        let dmin = scale_at(block, 82);
        let mut q = [0; 256];
        for h in 0..2 {
            for i in (0..32).step_by(8) {
                let word = word_at(qs, 32 * h + i);
                for r in 0..4 {
                    put_word(&mut q, 128 * h + 32 * r + i, word >> (2 * r) & splat(3));
                }
            }
        }
        let sc = scales.map(|s| d * (s & 15) as f32);
        let m = scales.map(|s| dmin * (s >> 4) as f32);
        for i in 0..256 {
            out[i] = sc[i / 16] * q[i] as f32 - m[i / 16];
        }
    }
}
