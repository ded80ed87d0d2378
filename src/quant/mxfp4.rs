//! MXFP4: 32 weights of 4-bit floats (E2M1) with one power of two as scale, 4.25 bits per weight (OCP
//! Microscaling Formats, version 1.0).
//!
//! ```text
//! byte   0      e   E8M0: the scale is 2^(e - 127)
//! byte   1..17  qs  byte i: bits 3..0 = q[i], bits 7..4 = q[i + 16]
//!
//! q:  bit 3 = sign, bits 2..0 = magnitude: 0, 0.5, 1, 1.5, 2, 3, 4, 6
//! w[i] = 2^(e - 128) * (2 * value of q[i])
//! ```
//!
//! As in ggml, twice the value (an integer) is multiplied with half the scale, minus zero is zero, and `e` = 255,
//! which the standard reserves for NaN, is the power of two that follows 254.

use super::Block;
use super::bits::{array, array_mut};

/// `MXFP4`: 17 bytes, 32 weights.
pub struct Mxfp4;

impl Block for Mxfp4 {
    const LEN: usize = 32;
    const BYTES: usize = 17;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 17] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = half_scale(block[0]);
        let qs: &[u8; 16] = array(&block[1..]);
        for i in 0..16 {
            out[i] = d * doubled(qs[i] & 15) as f32;
        }
        for i in 0..16 {
            out[i + 16] = d * doubled(qs[i] >> 4) as f32;
        }
    }
}

/// 2^(e - 128); the two smallest are subnormal.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    let e = e as u32;
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// Twice the value of the E2M1 float `q`: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives. Sums of ramps instead of a
/// table, because those vectorise.
#[inline(always)]
fn doubled(q: u8) -> i8 {
    let magnitude = q & 7;
    let value = (magnitude + magnitude.saturating_sub(4) + 2 * magnitude.saturating_sub(6)) as i8;
    if q & 8 == 0 { value } else { -value }
}
