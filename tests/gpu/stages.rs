//! References for single stages: random matrices of any type, their products in f64, the error of what was computed.

use kigo::quant::QuantType;

use super::random_blocks::{Random, blocks, is_moderate, tensor};

/// What a buffer for results holds before they are written: a NaN that no arithmetic makes.
pub const POISON: u32 = 0xffff_dead;

/// A matrix `[rows, cols]` as it stands in a file.
pub struct Matrix {
    pub quant_type: QuantType,
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<u8>,
}

impl Matrix {
    /// Random blocks; `cols` is a multiple of their length.
    pub fn random(quant_type: QuantType, rows: usize, cols: usize, random: &mut Random) -> Matrix {
        assert!(cols.is_multiple_of(quant_type.block_len()));
        let pool = blocks(quant_type, random, is_moderate);
        Matrix { quant_type, rows, cols, data: tensor(quant_type, rows * cols, &pool, random) }
    }

    /// All weights.
    pub fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.cols];
        self.quant_type.dequantize(&self.data, &mut weights);
        weights
    }

    /// `[n, rows]`: x `[n, cols]` times the transpose, in f64.
    pub fn product(&self, x: &[f32]) -> Vec<f64> {
        let weights = self.weights();
        let dot = |x: &[f32], row: &[f32]| x.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        x.chunks_exact(self.cols).flat_map(|x| weights.chunks_exact(self.cols).map(move |row| dot(x, row))).collect()
    }
}

/// `n` numbers from -1 up to 1, one in 50 of them 30 times as large, as activations have them.
pub fn activations(n: usize, random: &mut Random) -> Vec<f32> {
    let scale = |random: &mut Random| if random.next().is_multiple_of(50) { 30.0 } else { 1.0 };
    (0..n).map(|_| random.uniform() * scale(random)).collect()
}

/// A buffer in which what nobody writes stays visible.
pub fn poisoned(n: usize) -> Vec<f32> {
    vec![f32::from_bits(POISON); n]
}

/// The squared error of all of `found` over the square of `expected`; infinite where one was never written or is not
/// finite.
pub fn nmse(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    if found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let error: f64 = found.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    error / expected.iter().map(|x| x * x).sum::<f64>()
}

#[test]
fn the_reference_product_is_that_of_the_weights() {
    let random = &mut Random(1);
    for &quant_type in QuantType::ALL {
        let matrix = Matrix::random(quant_type, 3, 512, random);
        let (weights, x) = (matrix.weights(), activations(2 * 512, random));
        let product = matrix.product(&x);
        assert_eq!(product.len(), 6);
        let unit: Vec<f32> = (0..512).map(|i| f32::from(u8::from(i == 77))).collect();
        let column: Vec<f64> = (0..3).map(|row| f64::from(weights[row * 512 + 77])).collect();
        assert_eq!(matrix.product(&unit), column, "{}", quant_type.name());
        let one: f64 = (0..512).map(|i| f64::from(weights[512 + i]) * f64::from(x[512 + i])).sum();
        assert_eq!(product[4], one);
    }
}

#[test]
fn the_error_sees_what_is_missing() {
    let expected = [3.0, -4.0];
    assert_eq!(nmse(&[3.0, -4.0], &expected), 0.0);
    assert_eq!(nmse(&[3.0, -3.0], &expected), 1.0 / 25.0);
    let mut partly = poisoned(2);
    partly[0] = 3.0;
    assert_eq!(nmse(&partly, &expected), f64::INFINITY);
    assert_eq!(nmse(&[f32::INFINITY, 0.0], &expected), f64::INFINITY);
}
