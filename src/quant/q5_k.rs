//! Q5_K: 256 weights of 5 bits in 8 groups, each with a 6-bit scale and minimum, 5.5 bits per weight.
//!
//! ```text
//! byte   0..2    d       half
//! byte   2..4    dmin    half
//! byte   4..16   scales  see `q4_k::scale_min`
//! byte  16..48   qh      byte i: bit g = bit 4 of q[32 g + i]                      g < 8, i < 32
//! byte  48..176  qs      byte 32 p + i: bits 3..0 = bits 3..0 of q[64 p + i],      p < 4
//!                                       bits 7..4 = bits 3..0 of q[64 p + 32 + i]
//!
//! w[i] = (d * sc[g]) * q[i] - dmin * m[g]    g = i / 32
//! ```

use super::Block;
use super::bits::{array, array_mut, put_word, scale_at, splat, split_nibbles, word_at};
use super::q4_k::scale_min;

/// `Q5_K`: 176 bytes, 256 weights.
pub struct Q5K;

impl Block for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 176] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let d = scale_at(block, 0);
        let dmin = scale_at(block, 2);
        let scales: &[u8; 12] = array(&block[4..]);
        let qh: &[u8; 32] = array(&block[16..]);
        let qs: &[u8; 128] = array(&block[48..]);
        let mut q = [0; 256];
        for p in 0..4 {
            split_nibbles(&qs[32 * p..32 * p + 32], &mut q[64 * p..]);
        }
        for i in (0..32).step_by(8) {
            let high = word_at(qh, i);
            for g in 0..8 {
                let word = word_at(&q, 32 * g + i) | (high >> g & splat(1)) << 4;
                put_word(&mut q, 32 * g + i, word);
            }
        }
        let mut sc = [0.0; 8];
        let mut m = [0.0; 8];
        for g in 0..8 {
            let (scale, min) = scale_min(scales, g);
            sc[g] = d * scale as f32;
            m[g] = dmin * min as f32;
        }
        for i in 0..256 {
            out[i] = sc[i / 32] * q[i] as f32 - m[i / 32];
        }
    }
}
