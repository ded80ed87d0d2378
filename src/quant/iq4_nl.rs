//! IQ4_NL: 32 weights that are 4-bit indices into a fixed codebook, with one scale, 4.5 bits per weight.
//!
//! ```text
//! byte   0..2   d   half
//! byte   2..18  qs  byte i: bits 3..0 = q[i], bits 7..4 = q[i + 16]
//!
//! w[i] = d * CODEBOOK[q[i]]
//! ```

use super::{Block, array, array_mut, f16_at};

/// The 16 levels of IQ4_NL and IQ4_XS, denser around zero (`kvalues_iq4nl` of ggml).
pub(super) const CODEBOOK: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// `IQ4_NL`: 18 bytes, 32 weights.
pub struct Iq4Nl;

impl Block for Iq4Nl {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn dequantize(block: &[u8], out: &mut [f32]) {
        let block: &[u8; 18] = array(block);
        let out: &mut [f32; 32] = array_mut(out);
        let d = f16_at(block, 0);
        let qs: &[u8; 16] = array(&block[2..]);
        for i in 0..16 {
            out[i] = d * CODEBOOK[(qs[i] & 15) as usize];
        }
        for i in 0..16 {
            out[i + 16] = d * CODEBOOK[(qs[i] >> 4) as usize];
        }
    }
}
