//! Rotary position embedding (Su et al. 2021): at position p pair i of a head turns by `p * angle(i)`, and grows by a factor.

use std::f64::consts::PI;

use crate::gguf::Metadata;
use crate::{Error, Result};

use super::desc::in_range;

/// How q and k turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which elements of a head make a pair.
    pub pairing: RopePairing,
    /// Elements of a head that turn (`rope.dimension_count`); even, at most `head_dim`; 0 where no layer turns any.
    pub n_rot: usize,
    /// Positions in training before the context was stretched (`rope.scaling.original_context_length`). Longer contexts take
    /// the divisors `rope_factors_long` where a file has them, others `rope_factors_short`.
    pub n_ctx_orig: usize,
    /// The kinds that layers choose from.
    pub kinds: Vec<RopeKind>,
}

/// Which elements of a head make a rope pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Elements `2i` and `2i + 1`.
    Adjacent,
    /// Elements `i` and `i + n_rot / 2`.
    Halves,
}

/// How fast pairs turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeKind {
    /// `rope.freq_base`; HF `rope_theta`: pair i turns by `freq_base^(-2i / n_rot)` per position, before scaling.
    pub freq_base: f32,
    /// How the angles are stretched for longer contexts.
    pub scaling: RopeScaling,
    /// Factor on what was turned (`rope.scaling.attn_factor`), besides that of YaRN.
    pub attn_factor: f32,
}

/// How angles are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All are divided by this factor; 1 changes nothing (Chen et al. 2023).
    Linear(f32),
    /// YaRN (Peng et al. 2023): slow pairs are divided by the factor, fast ones are not.
    Yarn {
        /// `rope.scaling.factor`.
        factor: f32,
        /// `rope.scaling.yarn_beta_fast`: pairs with more turns than this over [`Rope::n_ctx_orig`] keep their angle.
        beta_fast: f32,
        /// `rope.scaling.yarn_beta_slow`: pairs with fewer turns than this are divided by the whole factor.
        beta_slow: f32,
    },
}

/// What a layer turns q and k by.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// Turn of every pair per position, in radians: `[n_rot / 2]`.
    pub angles: Vec<f64>,
    /// Factor on what was turned.
    pub magnitude: f32,
}

impl Rope {
    /// One table for each kind. `divisors` of the angles, where a file has them, are `[n_rot / 2]`.
    pub fn tables(&self, divisors: Option<&[f32]>) -> Vec<RopeTable> {
        let table = |kind: &RopeKind| {
            let angle = |i: usize| {
                let divisor = divisors.and_then(|divisors| divisors.get(i)).map_or(1.0, |&divisor| f64::from(divisor));
                let exponent = -2.0 * i as f64 / self.n_rot as f64;
                f64::from(kind.freq_base).powf(exponent) / divisor / self.stretch(kind, i)
            };
            RopeTable { angles: (0..self.n_rot / 2).map(angle).collect(), magnitude: kind.magnitude() }
        };
        self.kinds.iter().map(table).collect()
    }

    /// What the angle of pair `i` is divided by.
    fn stretch(&self, kind: &RopeKind, i: usize) -> f64 {
        match kind.scaling {
            RopeScaling::Linear(factor) => f64::from(factor),
            RopeScaling::Yarn { factor, beta_fast, beta_slow } => {
                // The pair that makes so many turns over the original context; ggml rounds outwards to whole pairs.
                let pair = |turns: f32| {
                    let base = f64::from(kind.freq_base).ln();
                    self.n_rot as f64 * (self.n_ctx_orig as f64 / (f64::from(turns) * 2.0 * PI)).ln() / (2.0 * base)
                };
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(self.n_rot as f64 - 1.0);
                let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                1.0 / (ramp / f64::from(factor) + (1.0 - ramp))
            }
        }
    }
}

impl RopeKind {
    /// Factor on what was turned; that of YaRN keeps the sharpness of the attention over longer contexts.
    fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { factor, .. } => self.attn_factor * (1.0 + 0.1 * factor.max(1.0).ln()),
            RopeScaling::Linear(_) => self.attn_factor,
        }
    }

    /// Reads `rope.freq_base` and the keys of the scaling.
    ///
    /// # Errors
    /// A value of a wrong type, out of its range, or an unknown kind of scaling, naming the key.
    pub(super) fn from_metadata(metadata: &Metadata, prefix: &str) -> Result<RopeKind> {
        let key = |name: &str| format!("{prefix}.rope.{name}");
        let range = |key: &str, default: f32| in_range(metadata, key, Some(default), 1e-3, 1e6);
        // Older files have the factor under the second name.
        let factor = range(&key("scaling.factor"), range(&key("scale_linear"), 1.0)?)?;
        let type_key = key("scaling.type");
        let scaling = match metadata.str(&type_key)? {
            Some("none") => RopeScaling::Linear(1.0),
            // A factor without a type is linear. The divisors of longrope are tensors.
            None | Some("linear" | "longrope") => RopeScaling::Linear(factor),
            Some("yarn") => RopeScaling::Yarn {
                factor,
                beta_fast: range(&key("scaling.yarn_beta_fast"), 32.0)?,
                beta_slow: range(&key("scaling.yarn_beta_slow"), 1.0)?,
            },
            Some(other) => {
                let found = crate::error::quoted(other.as_bytes());
                return Err(Error::bad_file(type_key, "none, linear, longrope or yarn", found));
            }
        };
        let freq_base = in_range(metadata, &key("freq_base"), Some(10_000.0), 1.0, 1e12)?;
        Ok(RopeKind { freq_base, scaling, attn_factor: range(&key("scaling.attn_factor"), 1.0)? })
    }

    /// Turns that nothing stretches.
    pub(super) fn unscaled(freq_base: f32) -> RopeKind {
        RopeKind { freq_base, scaling: RopeScaling::Linear(1.0), attn_factor: 1.0 }
    }
}

/// `rope.scaling.original_context_length`, or the context length in training.
///
/// # Errors
/// A value of a wrong type, or 0.
pub(super) fn n_ctx_orig(metadata: &Metadata, prefix: &str, n_ctx_train: usize) -> Result<usize> {
    let key = format!("{prefix}.rope.scaling.original_context_length");
    match metadata.u64(&key)? {
        Some(0) => Err(Error::bad_file(key, "at least 1", 0)),
        Some(n) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
        None => Ok(n_ctx_train),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(freq_base: f32, scaling: RopeScaling) -> Rope {
        let kinds = vec![RopeKind { freq_base, scaling, attn_factor: 1.0 }];
        Rope { pairing: RopePairing::Halves, n_rot: 64, n_ctx_orig: 4096, kinds }
    }

    #[test]
    fn linear_scaling_and_divisors_divide() {
        let rope = rope(10_000.0, RopeScaling::Linear(4.0));
        let divisors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        let table = &rope.tables(Some(&divisors))[0];
        for (i, angle) in table.angles.iter().enumerate() {
            let expected = 10_000f64.powf(-(i as f64) / 32.0) / 4.0 / (1.0 + i as f64);
            assert!((angle / expected - 1.0).abs() < 1e-12);
        }
        assert_eq!(table.magnitude, 1.0);
    }

    /// The numbers of gpt-oss: fast pairs as they are, slow ones divided, and a magnitude of 1 + 0.1 ln 32.
    #[test]
    fn yarn_leaves_fast_pairs_and_divides_slow_ones() {
        let scaling = RopeScaling::Yarn { factor: 32.0, beta_fast: 32.0, beta_slow: 1.0 };
        let (yarn, plain) = (rope(150_000.0, scaling), rope(150_000.0, RopeScaling::Linear(1.0)));
        let (stretched, plain) = (&yarn.tables(None)[0], &plain.tables(None)[0]);
        let ratio = |i: usize| plain.angles[i] / stretched.angles[i];
        assert!((0..=8).all(|i| (ratio(i) - 1.0).abs() < 1e-12));
        assert!((18..32).all(|i| (ratio(i) - 32.0).abs() < 1e-9));
        assert!((8..18).all(|i| ratio(i) < ratio(i + 1)));
        assert!((stretched.magnitude - 1.346_573_6).abs() < 1e-6);
    }
}
