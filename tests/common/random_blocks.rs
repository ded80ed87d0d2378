//! Random blocks of every tensor type.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use kigo::quant::QuantType;

/// A fixed sequence of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 up to 1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() >> 32) as usize % from.len()]
    }
}

/// 500 blocks of random bits whose finite weights are `good`.
pub fn blocks(quant_type: QuantType, random: &mut Random, good: impl Fn(&[f32]) -> bool) -> Vec<Vec<u8>> {
    let mut weights = vec![0.0f32; quant_type.block_len()];
    let mut blocks = Vec::new();
    while blocks.len() < 500 {
        let block: Vec<u8> = (0..quant_type.block_bytes()).map(|_| random.next() as u8).collect();
        quant_type.dequantize(&block, &mut weights);
        if weights.iter().all(|weight| weight.is_finite()) && good(&weights) {
            blocks.push(block);
        }
    }
    blocks
}

/// `n` weights in blocks that are picked from `blocks`.
pub fn tensor(quant_type: QuantType, n: usize, blocks: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let pick = |_| &blocks[random.next() as usize % blocks.len()];
    (0..n / quant_type.block_len()).flat_map(pick).copied().collect()
}

/// Whether the root of the mean square of a block suits a model a few hundred wide: products neither vanish nor grow.
pub fn is_moderate(weights: &[f32]) -> bool {
    let square: f32 = weights.iter().map(|weight| weight * weight).sum();
    (0.025..0.1).contains(&(square / weights.len() as f32).sqrt())
}
