//! IQ4_NL: 32 weights that are 4-bit indices into a fixed codebook, with one scale, 4.5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..18  qs  byte i: bits 3..0 = q[i], bits 7..4 = q[i + 16]
//!
//! w[i] = d * CODEBOOK[q[i]]
//! ```

use super::Block;
use super::bits::{array, array_mut, scale_at};

/// The 16 levels of IQ4_NL and IQ4_XS, denser around zero (`kvalues_iq4nl` of ggml).
const CODEBOOK: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The level of index `q`. Each bit of the index halves the choice; unlike a load from a table, this vectorises.
#[inline(always)]
pub(super) fn level(q: u8) -> i8 {
    let mut choice = CODEBOOK;
    for bit in 0..4 {
        let mask = (q as i8) << (7 - bit) >> 7;
        for i in 0..8 >> bit {
            let (if_0, if_1) = (choice[2 * i], choice[2 * i + 1]);
            choice[i] = if_0 ^ (if_0 ^ if_1) & mask;
        }
    }
    choice[0]
}

/// `IQ4_NL`: 18 bytes, 32 weights.
pub struct Iq4Nl;

impl Block for Iq4Nl {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 18] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = scale_at(block, 0);
        let qs: &[u8; 16] = array(&block[2..]);
        let mut q = [0; 32];
        for i in 0..16 {
            q[i] = level(qs[i] & 15);
            q[i + 16] = level(qs[i] >> 4);
        }
        for i in 0..32 {
            out[i] = d * q[i] as f32;
        }
    }
}
