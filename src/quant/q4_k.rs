//! Q4_K: 256 weights of 4 bits in 8 groups, each with a 6-bit scale and minimum, 4.5 bits per weight.
//!
//! ```text
//! byte   0..2    d       half
//! byte   2..4    dmin    half
//! byte   4..16   scales  see `scale_min`
//! byte  16..144  qs      byte 32 p + i: bits 3..0 = q[64 p + i], bits 7..4 = q[64 p + 32 + i]    p < 4, i < 32
//!
//! w[i] = (d * sc[g]) * q[i] - dmin * m[g]    g = i / 32
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at, split_nibbles};

/// `Q4_K`: 144 bytes, 256 weights.
pub struct Q4K;

impl Block for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 144] = array(block);
        let out: &mut [f32; 256] = array_mut(out);
        let d = scale_at(block, 0);
        let dmin = scale_at(block, 2);
        let scales: &[u8; 12] = array(&block[4..]);
        let qs: &[u8; 128] = array(&block[16..]);
        let mut q = [0; 256];
        for p in 0..4 {
            split_nibbles(&qs[32 * p..32 * p + 32], &mut q[64 * p..]);
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

/// The 6-bit scale and minimum of group `g` of 8, in the 12 bytes that Q4_K and Q5_K share.
///
/// ```text
/// byte k      bits 5..0 = sc[k]    bits 7..6 = bits 5..4 of sc[k + 4]                  k < 4
/// byte k + 4  bits 5..0 = m[k]     bits 7..6 = bits 5..4 of m[k + 4]
/// byte k + 8  bits 3..0 = bits 3..0 of sc[k + 4]    bits 7..4 = bits 3..0 of m[k + 4]
/// ```
#[inline(always)]
pub(super) fn scale_min(scales: &[u8; 12], g: usize) -> (u8, u8) {
    if g < 4 {
        (scales[g] & 63, scales[g + 4] & 63)
    } else {
        (scales[g + 4] & 15 | scales[g - 4] >> 6 << 4, scales[g + 4] >> 4 | scales[g] >> 6 << 4)
    }
}
