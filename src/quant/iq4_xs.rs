//! IQ4_XS: 256 weights that are 4-bit indices into the codebook of IQ4_NL, in 8 groups with a 6-bit scale each,
//! 4.25 bits per weight.
//!
//! ```text
//! byte   0..2    d         half
//! byte   2..4    scales_h  u16: bits 2 g + 1..2 g = bits 5..4 of sc[g]               g < 8
//! byte   4..8    scales_l  byte k: bits 3..0 = bits 3..0 of sc[2 k], bits 7..4 = bits 3..0 of sc[2 k + 1]
//! byte   8..136  qs        byte 16 g + i: bits 3..0 = q[32 g + i], bits 7..4 = q[32 g + 16 + i]    i < 16
//!
//! w[i] = (d * (sc[g] - 32)) * CODEBOOK[q[i]]    g = i / 32
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at, split_nibbles};
use super::iq4_nl::level;

/// `IQ4_XS`: 136 bytes, 256 weights.
pub struct Iq4Xs;

impl Block for Iq4Xs {
    const LEN: usize = 256;
    const BYTES: usize = 136;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 136] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let d = scale_at(block, 0);
        let scales_h = u16::from_le_bytes(*array(&block[2..]));
        let scales_l: &[u8; 4] = array(&block[4..]);
        let qs: &[u8; 128] = array(&block[8..]);
        let mut q = [0; 256];
        let mut sc = [0.0; 8];
        for g in 0..8 {
            split_nibbles(&qs[16 * g..16 * g + 16], &mut q[32 * g..]);
            let low = scales_l[g / 2] >> (g % 2 * 4) & 15;
            let high = (scales_h >> (2 * g)) as u8 & 3;
            sc[g] = d * ((low | high << 4) as i32 - 32) as f32;
        }
        for q in &mut q {
            *q = level(*q) as u8;
        }
        for i in 0..256 {
            out[i] = sc[i / 32] * (q[i] as i8) as f32;
        }
    }
}
