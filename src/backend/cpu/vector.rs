//! Small loops over f32, written so that the compiler vectorises them: `LANES` independent sums, then a tree.

use pulp::{Arch, Simd, WithSimd};

use crate::model::RopePairing;

/// Independent partial sums of a dot product: two registers of AVX-512, four of AVX2, eight of NEON, enough to
/// hide the latency of a fused multiply-add.
pub const LANES: usize = 32;

/// Partial sums.
pub type Sums = [f32; LANES];

/// `a * b + c`, fused where the machine fuses.
#[inline(always)]
pub fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// `sums += a * b`, lane by lane.
#[inline(always)]
pub fn mul_add_lanes<S: Simd>(sums: &mut Sums, a: &Sums, b: &Sums) {
    for lane in 0..LANES {
        sums[lane] = mul_add::<S>(a[lane], b[lane], sums[lane]);
    }
}

/// Adds the products of `a` and `b` to the sums; the tail goes to the first lanes.
#[inline(always)]
pub fn dot_into<S: Simd>(sums: &mut Sums, a: &[f32], b: &[f32]) {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        mul_add_lanes::<S>(sums, a, b);
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_tail).zip(b_tail) {
        *sum = mul_add::<S>(*a, *b, *sum);
    }
}

/// The sum of the lanes, halves first.
#[inline(always)]
pub fn total(sums: &Sums) -> f32 {
    let mut s = *sums;
    let mut n = LANES / 2;
    while n > 0 {
        for lane in 0..n {
            s[lane] += s[lane + n];
        }
        n /= 2;
    }
    s[0]
}

/// `a += b`
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `out = x * weight / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
pub fn rms_norm(arch: Arch, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    struct Norm<'a>(&'a [f32], &'a [f32], f32, &'a mut [f32]);
    impl WithSimd for Norm<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Norm(x, weight, eps, out) = self;
            let mut sums = [0.0; LANES];
            dot_into::<S>(&mut sums, x, x);
            let scale = 1.0 / (total(&sums) / x.len() as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
    }
    arch.dispatch(Norm(x, weight, eps, out));
}

/// `gate = silu(gate) * up`
pub fn silu_mul(arch: Arch, gate: &mut [f32], up: &[f32]) {
    struct SiluMul<'a>(&'a mut [f32], &'a [f32]);
    impl WithSimd for SiluMul<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            for (gate, up) in self.0.iter_mut().zip(self.1) {
                *gate = *gate / (1.0 + exp::<S>(-*gate)) * up;
            }
        }
    }
    arch.dispatch(SiluMul(gate, up));
}

/// e^x to within 2 units in the last place, without branches so that it vectorises: x = n ln 2 + r with the
/// constant in two parts, 2^n from bits, e^r by its Taylor polynomial of degree 7 (error 3e-9 for |r| <= ln 2 / 2).
#[inline(always)]
pub fn exp<S: Simd>(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = mul_add::<S>(n, -LN_2_LOW, mul_add::<S>(n, -LN_2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = mul_add::<S>(p, r, coefficient);
    }
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Turns the pairs of a head by `(cos, sin)`.
pub fn rope(pairing: RopePairing, head: &mut [f32], angles: &[(f32, f32)]) {
    let half = angles.len();
    for (i, &(cos, sin)) in angles.iter().enumerate() {
        let (a, b) = match pairing {
            RopePairing::Adjacent => (2 * i, 2 * i + 1),
            RopePairing::Halves => (i, i + half),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cos - y * sin;
        head[b] = x * sin + y * cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_adds_every_lane_once() {
        let sums: Sums = std::array::from_fn(|i| (1 << (i % 16)) as f32);
        assert_eq!(total(&sums), 2.0 * 65535.0);
    }

    #[test]
    fn dot_handles_tails() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let mut sums = [0.0; LANES];
            dot_into::<pulp::Scalar>(&mut sums, &a, &a);
            assert_eq!(total(&sums), a.iter().map(|x| x * x).sum::<f32>());
        }
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp::<pulp::Scalar>(x)) - expected).abs() / expected;
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
        }
        assert!(exp::<pulp::Scalar>(-1e30) < 1e-37);
        assert!(exp::<pulp::Scalar>(1e30).is_finite());
        assert!(exp::<pulp::Scalar>(f32::NAN).is_nan());
    }

    #[test]
    fn rope_pairings_turn_the_same_pairs() {
        let angles = [(0.6, 0.8), (0.0, 1.0)];
        let mut adjacent = [1.0, 2.0, 3.0, 4.0];
        let mut halves = [1.0, 3.0, 2.0, 4.0];
        rope(RopePairing::Adjacent, &mut adjacent, &angles);
        rope(RopePairing::Halves, &mut halves, &angles);
        assert_eq!(adjacent, [1.0 * 0.6 - 2.0 * 0.8, 1.0 * 0.8 + 2.0 * 0.6, -4.0, 3.0]);
        assert_eq!(halves, [adjacent[0], adjacent[2], adjacent[1], adjacent[3]]);
    }
}
