//! A counter-based random number generator: draw `n` of a seed is a pure function of both, on every device.

/// The step of splitmix64's state, 2^64 over the golden ratio, odd.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64 bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Draw `n` (from 0) of `seed`: 64 even bits.
///
/// `mix(mix(seed + GAMMA) + (n + 1) * GAMMA)` modulo 2^64; `mix` is splitmix64's finaliser. The inner `mix` keeps the
/// sequences of seeds that differ by a multiple of `GAMMA` from being shifts of each other.
pub fn draw(seed: u64, n: u64) -> u64 {
    let start = mix(seed.wrapping_add(GAMMA));
    mix(start.wrapping_add(n.wrapping_add(1).wrapping_mul(GAMMA)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outputs of splitmix64 seeded with 0 are published with its reference code.
    #[test]
    fn mix_is_splitmix64() {
        let outputs = [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F];
        for (n, output) in outputs.into_iter().enumerate() {
            assert_eq!(mix((n as u64 + 1).wrapping_mul(GAMMA)), output);
        }
    }

    #[test]
    fn draws_are_even() {
        for seed in [0, 1, 42, u64::MAX] {
            let mut counts = [0u32; 64];
            for n in 0..64_000 {
                counts[(draw(seed, n) >> 58) as usize] += 1;
            }
            // Chi-square with 63 degrees of freedom: 5 standard deviations above the mean are 63 + 5 * sqrt(126).
            let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi2 < 119.1, "seed {seed}: chi-square {chi2}");
        }
    }

    #[test]
    fn neighbouring_seeds_and_draws_differ() {
        assert_ne!(draw(0, 0), draw(0, 1));
        assert_ne!(draw(0, 1), draw(1, 0));
        assert_ne!(draw(0, 1), draw(GAMMA, 0));
        assert!((0..1000).all(|n| draw(7, n) != draw(8, n)));
    }
}
