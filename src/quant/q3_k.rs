//! Q3_K: 256 weights of 3 bits in 16 groups, each with a 6-bit scale, 3.4375 bits per weight.
//!
//! ```text
//! byte   0..32   hmask   byte i: bit j = bit 2 of q[32 j + i]                      j < 8, i < 32
//! byte  32..96   qs      byte 32 h + i: bits 2 r + 1..2 r = bits 1..0 of q[128 h + 32 r + i]    h < 2, r < 4
//! byte  96..104  scales  byte g: bits 3..0 = bits 3..0 of sc[g], bits 7..4 = bits 3..0 of sc[g + 8]    g < 8
//! byte 104..108          byte k: bits 2 r + 1..2 r = bits 5..4 of sc[4 r + k]      k < 4, r < 4
//! byte 108..110  d       half
//!
//! w[i] = (d * (sc[g] - 32)) * (q[i] - 4)    g = i / 16
//! ```

use super::Block;
use super::bits::{array, array_mut, put_word, scale_at, splat, word_at};

/// `Q3_K`: 110 bytes, 256 weights.
pub struct Q3K;

impl Block for Q3K {
    const LEN: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 110] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let hmask: &[u8; 32] = array(block);
        let qs: &[u8; 64] = array(&block[32..]);
        let scales: &[u8; 12] = array(&block[96..]);
        let d = scale_at(block, 108);
        let mut q = [0; 256];
        for h in 0..2 {
            for i in (0..32).step_by(8) {
                let low = word_at(qs, 32 * h + i);
                let high = word_at(hmask, i) >> (4 * h);
                for r in 0..4 {
                    let word = low >> (2 * r) & splat(3) | (high >> r & splat(1)) << 2;
                    put_word(&mut q, 128 * h + 32 * r + i, word);
                }
            }
        }
        let mut sc = [0.0; 16];
        for g in 0..16 {
            let low = scales[g % 8] >> (g / 8 * 4) & 15;
            let high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
            sc[g] = d * ((low | high << 4) as i32 - 32) as f32;
        }
        for i in 0..256 {
            out[i] = sc[i / 16] * (q[i] as i32 - 4) as f32;
        }
    }
}
