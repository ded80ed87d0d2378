//! Single stages of the GPU against f64: random matrices of any type, their products, the error of what was computed.

use kigo::backend::cuda::blocks::{Blocks, Card, Job, Kernel};
use kigo::backend::cuda::layout::{Place, THREADS, TILE_ROWS, activation_bytes, stride, wants_bf16};
use kigo::backend::cuda::memory::DeviceBuffer;
use kigo::backend::cuda::module::Function;
use kigo::backend::cuda::params::*;
use kigo::model::QkNorm;
use kigo::quant::QuantType;

use super::harness::bits;
use super::launches::Gpu;
use super::random_blocks::{Random, blocks, is_moderate, tensor};

mod attention;
mod experts;
mod heads;
mod products;
mod rows;

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

    /// The same of wider numbers, with all cores.
    fn product_f64(&self, x: &[f64]) -> Vec<f64> {
        let weights: Vec<f64> = self.weights().into_iter().map(f64::from).collect();
        let rows: Vec<&[f64]> = x.chunks_exact(self.cols).collect();
        concurrently(&rows, |x| weights.chunks_exact(self.cols).map(|row| dot(x, row)).collect::<Vec<f64>>()).concat()
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

/// Most that the squared error may be of the square: of products of quantised types, and of everything else.
const MAX_QUANTISED: f64 = 5e-4;

const MAX_NMSE: f64 = 1e-6;

const EPS: f32 = 1e-5;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, so that additions need not wait for each other.
    let mut sums = [0.0; 4];
    let (a_fours, b_fours) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a_fours.remainder().iter().zip(b_fours.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_fours.zip(b_fours) {
        for i in 0..4 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `compute` of every item, in order.
fn concurrently<T: Sync, R: Send>(items: &[T], compute: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(n_threads).max(1));
        let compute = &compute;
        let threads: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(compute).collect::<Vec<R>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Random numbers that no earlier run had; the seed is printed.
fn fresh(test: &str) -> Random {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("KIGO_TEST_SEED").map_or(now.as_nanos() as u64, |seed| seed.parse().unwrap());
    println!("{test}: KIGO_TEST_SEED={seed}");
    Random(seed)
}

/// Bits of the largest magnitude.
fn magnitude(values: &[f32]) -> u32 {
    values.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0)
}

/// Rows of `k` values with zeros up to whole units.
fn padded(values: &[f32], k: usize) -> Vec<f32> {
    let pad = vec![0.0; stride(k) - k];
    values.chunks_exact(k).flat_map(|row| row.iter().chain(&pad)).copied().collect()
}

/// Rows `x` `[n, k]` after a norm.
fn normed(x: &[f32], k: usize, norm: u32, weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if norm == KIGO_NORM_NONE {
            return x;
        }
        let layer = norm == KIGO_NORM_LAYER;
        let mean = if layer { x.iter().sum::<f64>() / k as f64 } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k as f64;
        let factor = 1.0 / (square + f64::from(EPS)).sqrt();
        let bias = |i: usize| if layer { f64::from(bias[i]) } else { 0.0 };
        (0..k).map(|i| (x[i] - mean) * factor * f64::from(weight[i]) + bias(i)).collect()
    };
    x.chunks_exact(k).flat_map(row).collect()
}

fn activated(gate: f64, kind: u32) -> f64 {
    if kind == KIGO_SILU {
        return gate / (1.0 + (-gate).exp());
    }
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
    0.5 * gate * (1.0 + inner.tanh())
}

#[test]
fn wide_products_are_those_of_the_narrow() {
    let random = &mut Random(2);
    let (matrix, x) = (Matrix::random(QuantType::F16, 5, 37, random), activations(3 * 37, random));
    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let (found, expected) = (matrix.product_f64(&wide), matrix.product(&x));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12) && found.len() == 15);
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
