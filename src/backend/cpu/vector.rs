//! Small loops over f32 in the vectors of the machine.

use pulp::{Arch, Simd, WithSimd};

use crate::model::RopePairing;

/// Partial sums of a dot product: two vectors, so that one multiply-add need not wait for the other. Which product
/// goes to which sum depends on its place in the row alone, as long as the pieces of a row that are added are
/// multiples of [`STEP`] long, except the last.
#[derive(Clone, Copy)]
pub struct Sums<S: Simd>([S::f32s; 2]);

/// A multiple of two vectors on every machine.
pub const STEP: usize = 32;

impl<S: Simd> Sums<S> {
    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Sums([simd.splat_f32s(0.0); 2])
    }

    /// Adds the products of `a` and `b`.
    #[inline(always)]
    pub fn add(&mut self, simd: S, a: &[f32], b: &[f32]) {
        let (a, a_tail) = S::as_simd_f32s(a);
        let (b, b_tail) = S::as_simd_f32s(b);
        let (a_pairs, a_rest) = a.as_chunks::<2>();
        let (b_pairs, b_rest) = b.as_chunks::<2>();
        for (a, b) in a_pairs.iter().zip(b_pairs) {
            self.add_pair(simd, a, b);
        }
        for (a, b) in a_rest.iter().zip(b_rest) {
            self.0[0] = simd.mul_add_e_f32s(*a, *b, self.0[0]);
        }
        if !a_tail.is_empty() {
            let (a, b) = (simd.partial_load_f32s(a_tail), simd.partial_load_f32s(b_tail));
            self.0[1] = simd.mul_add_e_f32s(a, b, self.0[1]);
        }
    }

    /// Adds the products of two vectors.
    #[inline(always)]
    pub fn add_pair(&mut self, simd: S, a: &[S::f32s; 2], b: &[S::f32s; 2]) {
        for i in 0..2 {
            self.0[i] = simd.mul_add_e_f32s(a[i], b[i], self.0[i]);
        }
    }

    /// The sum of all.
    #[inline(always)]
    pub fn total(self, simd: S) -> f32 {
        simd.reduce_sum_f32s(simd.add_f32s(self.0[0], self.0[1]))
    }
}

/// `a * b + c`, fused where the machine fuses.
#[inline(always)]
pub fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// `a += b * scale`
pub fn add_scaled(a: &mut [f32], b: &[f32], scale: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b * scale;
    }
}

/// `x *= factor`
pub fn scale(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// `a += b`
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `x = x * weight / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
pub fn rms_norm(arch: Arch, x: &mut [f32], weight: &[f32], eps: f32) {
    struct Norm<'a>(&'a mut [f32], &'a [f32], f32);
    impl WithSimd for Norm<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Norm(x, weight, eps) = self;
            let mut squares = Sums::new(simd);
            squares.add(simd, x, x);
            let scale = 1.0 / (squares.total(simd) / x.len() as f32 + eps).sqrt();
            x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
        }
    }
    arch.dispatch(Norm(x, weight, eps));
}

/// `x = (x - mean(x)) * weight / sqrt(var(x) + eps)` (Ba et al. 2016), the bias to be added. The mean is summed in f64.
pub fn layer_norm(arch: Arch, x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = (x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64) as f32;
    x.iter_mut().for_each(|x| *x -= mean);
    rms_norm(arch, x, weight, eps);
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

    /// The dot product of `a` with itself, added in pieces of `piece`.
    struct Square<'a>(&'a [f32], usize);

    impl WithSimd for Square<'_> {
        type Output = f32;
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let mut sums = Sums::new(simd);
            self.0.chunks(self.1).for_each(|piece| sums.add(simd, piece, piece));
            sums.total(simd)
        }
    }

    #[test]
    fn sums_take_every_product_once_in_whatever_pieces() {
        for len in 1..200 {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let exact: f64 = a.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let whole = Arch::new().dispatch(Square(&a, len));
            assert!((f64::from(whole) - exact).abs() < 1e-5 * exact.max(1.0), "{len}: {whole} {exact}");
            for piece in [STEP, 2 * STEP] {
                assert_eq!(Arch::new().dispatch(Square(&a, piece)).to_bits(), whole.to_bits(), "{len} in {piece}");
            }
            let scalar = Square(&a, STEP).with_simd(pulp::Scalar::new());
            assert!((f64::from(scalar) - exact).abs() < 1e-5 * exact.max(1.0));
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

    /// Rows with every number of columns, with a mean far from zero.
    #[test]
    fn norms_equal_their_formulas() {
        for len in 1..150 {
            let x: Vec<f32> = (0..len).map(|i| 3.0 + (i as f32 * 0.37).sin()).collect();
            let weight: Vec<f32> = (0..len).map(|i| 1.0 + (i as f32 * 0.11).cos()).collect();
            let n = len as f64;
            let mean = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(f64::from(x))).sum::<f64>() / n;
            let (mu, eps) = (mean(&|x| x), f64::from(1e-5f32));
            let (variance, square) = (mean(&|x| (x - mu).powi(2)), mean(&|x| x * x));
            let (mut layer, mut rms) = (x.clone(), x.clone());
            layer_norm(Arch::new(), &mut layer, &weight, 1e-5);
            rms_norm(Arch::new(), &mut rms, &weight, 1e-5);
            for i in 0..len {
                let (x, weight) = (f64::from(x[i]), f64::from(weight[i]));
                let expected = (x - mu) / (variance + eps).sqrt() * weight;
                assert!((f64::from(layer[i]) - expected).abs() < 2e-5, "{len}: {} {expected}", layer[i]);
                let expected = x / (square + eps).sqrt() * weight;
                assert!((f64::from(rms[i]) - expected).abs() < 2e-6, "{len}: {} {expected}", rms[i]);
            }
        }
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
