//! Products of quantised matrices with f32 rows.
//!
//! Every output is one dot product, added up in the order of [`Sums`](super::vector::Sums), whichever loop
//! computes it: one row of x (decoding) takes the blocks of a matrix row through a small buffer; many rows (prompts)
//! dequantise a matrix row once and use it for all of them.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tensor::Linear;
use super::vector::{self, STEP, Sums};
use crate::Result;
use crate::error::try_vec;
use crate::quant::{Block, BlockVisitor};

/// Rows of x that share one pass over a matrix row when there are many.
const TILE: usize = 4;
/// Parts of a product per thread: enough to even out threads that start late.
const JOBS_PER_THREAD: usize = 2;
/// Longest block.
const MAX_BLOCK: usize = 256;

/// Buffers of the products and the machine's vector instructions.
pub struct MatMul {
    arch: Arch,
    /// One per thread: a dequantised row.
    rows: Vec<Mutex<Vec<f32>>>,
    /// Products before they are transposed: `[rows of all matrices, n]`.
    columns: Vec<f32>,
}

/// Part of a product: some rows of a matrix.
struct Job<'a> {
    /// Its bias is added later.
    weight: Linear<'a>,
    first_row: usize,
    /// `[rows of this job, n]`
    out: &'a mut [f32],
}

impl MatMul {
    /// For `n_threads` threads and matrices of at most `max_cols` columns.
    pub fn new(n_threads: usize, max_cols: usize) -> Result<MatMul> {
        let mut rows = try_vec(n_threads, "the workspace")?;
        for _ in 0..n_threads {
            let mut buffer = try_vec(max_cols, "the workspace")?;
            buffer.resize(max_cols, 0.0);
            rows.push(Mutex::new(buffer));
        }
        Ok(MatMul { arch: Arch::new(), rows, columns: Vec::new() })
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let cols = self.rows.first().map_or(0, |row| row.lock().unwrap_or_else(PoisonError::into_inner).capacity());
        (self.rows.len() * cols + self.columns.capacity()) * size_of::<f32>()
    }

    /// The machine's vector instructions.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// For each product: out `[n, rows]` = x `[n, cols]` times the transpose of the matrix `[rows, cols]`, plus its bias.
    /// All matrices have the same number of columns. Runs on the thread pool it is called in.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn run(&mut self, products: &mut [(Linear, &mut [f32])], x: &[f32]) -> Result<()> {
        let Some((first, _)) = products.first() else { return Ok(()) };
        let n = x.len() / first.tensor.cols();
        if n == 1 {
            let outs = products.iter_mut().map(|(weight, out)| (*weight, &mut **out));
            self.run_jobs(outs, x, n);
        } else {
            self.run_many(products, x, n)?;
        }
        for (weight, out) in products {
            if let Some(bias) = weight.bias {
                out.chunks_exact_mut(bias.len()).for_each(|row| vector::add(row, bias));
            }
        }
        Ok(())
    }

    /// The products of many rows, which are computed as columns.
    fn run_many(&mut self, products: &mut [(Linear, &mut [f32])], x: &[f32], n: usize) -> Result<()> {
        let mut columns = std::mem::take(&mut self.columns);
        let len = products.iter().map(|(_, out)| out.len()).sum();
        if columns.len() < len {
            drop(columns);
            columns = try_vec(len, "the workspace")?;
            columns.resize(len, 0.0);
        }
        let mut rest = &mut columns[..len];
        let outs = products.iter().map(|(weight, out)| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(out.len());
            rest = tail;
            (*weight, head)
        });
        self.run_jobs(outs, x, n);
        let mut rest = &columns[..len];
        for (weight, out) in products {
            let (product, tail) = rest.split_at(out.len());
            rest = tail;
            out.par_chunks_exact_mut(weight.n_rows).enumerate().for_each(|(i, out)| {
                out.iter_mut().zip(product.chunks_exact(n)).for_each(|(out, column)| *out = column[i]);
            });
        }
        self.columns = columns;
        Ok(())
    }

    /// Computes `[rows, n]` of every matrix, in jobs that the threads share.
    fn run_jobs<'a>(&self, products: impl Iterator<Item = (Linear<'a>, &'a mut [f32])>, x: &[f32], n: usize) {
        let products: Vec<_> = products.collect();
        let n_rows: usize = products.iter().map(|(weight, _)| weight.n_rows).sum();
        let rows_per_job = n_rows.div_ceil(JOBS_PER_THREAD * self.rows.len());
        let mut jobs = Vec::with_capacity(products.len() + JOBS_PER_THREAD * self.rows.len());
        for (weight, out) in products {
            for (i, out) in out.chunks_mut(rows_per_job * n).enumerate() {
                jobs.push(Job { weight, first_row: weight.first_row + i * rows_per_job, out });
            }
        }
        jobs.into_par_iter().with_max_len(1).for_each(|job| {
            if n == 1 {
                job.weight.tensor.quant_type().visit(Decode { arch: self.arch, job, x });
            } else {
                let thread = rayon::current_thread_index().unwrap_or(0) % self.rows.len();
                let mut row = self.rows[thread].lock().unwrap_or_else(PoisonError::into_inner);
                job.weight.tensor.quant_type().visit(Many { arch: self.arch, job, x, n, row: &mut row });
            }
        });
    }
}

/// One row of x: out `[rows]`.
struct Decode<'a> {
    arch: Arch,
    job: Job<'a>,
    x: &'a [f32],
}

impl BlockVisitor for Decode<'_> {
    type Output = ();

    fn visit<B: Block>(self) {
        struct Rows<'a, B>(Decode<'a>, PhantomData<B>);
        impl<B: Block> WithSimd for Rows<'_, B> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let Decode { job: Job { weight, first_row, out }, x, .. } = self.0;
                let data = weight.tensor.row_data(first_row..first_row + out.len());
                for (out, row) in out.iter_mut().zip(data.chunks_exact(weight.tensor.row_bytes())) {
                    *out = dot::<S, B>(simd, row, x);
                }
            }
        }
        self.arch.dispatch(Rows::<B>(self, PhantomData));
    }
}

/// The product of a row of blocks with x.
#[inline(always)]
fn dot<S: Simd, B: Block>(simd: S, row: &[u8], x: &[f32]) -> f32 {
    const { assert!(B::LEN <= MAX_BLOCK && (B::LEN == 1 || B::LEN.is_multiple_of(STEP))) };
    let step = B::LEN.max(STEP);
    let step_bytes = step / B::LEN * B::BYTES;
    let mut weights = [0.0; MAX_BLOCK];
    let weights = &mut weights[..step];
    let mut sums = Sums::new(simd);
    let (steps, tail) = x.split_at(x.len() - x.len() % step);
    for (blocks, x) in row.chunks_exact(step_bytes).zip(steps.chunks_exact(step)) {
        B::dequantize_run(blocks, weights);
        sums.add(simd, weights, x);
    }
    if B::LEN == 1 && !tail.is_empty() {
        let weights = &mut weights[..tail.len()];
        B::dequantize_run(&row[steps.len() / B::LEN * B::BYTES..], weights);
        sums.add(simd, weights, tail);
    }
    sums.total(simd)
}

/// Many rows of x: out `[rows, n]`.
struct Many<'a> {
    arch: Arch,
    job: Job<'a>,
    x: &'a [f32],
    n: usize,
    row: &'a mut [f32],
}

impl BlockVisitor for Many<'_> {
    type Output = ();

    fn visit<B: Block>(self) {
        struct Dispatch<'a, B>(Many<'a>, PhantomData<B>);
        impl<B: Block> WithSimd for Dispatch<'_, B> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let Many { job, x, n, row, .. } = self.0;
                let row = &mut row[..job.weight.tensor.cols()];
                for (i, out) in job.out.chunks_exact_mut(n).enumerate() {
                    let at = job.first_row + i;
                    B::dequantize_run(job.weight.tensor.row_data(at..at + 1), row);
                    dot_many(simd, row, x, out);
                }
            }
        }
        self.arch.dispatch(Dispatch::<B>(self, PhantomData));
    }
}

/// out `[n]` = weights `[cols]` times x `[n, cols]`, `TILE` rows of x at a time.
#[inline(always)]
fn dot_many<S: Simd>(simd: S, weights: &[f32], x: &[f32], out: &mut [f32]) {
    let cols = weights.len();
    let (tiles, rest) = out.as_chunks_mut::<TILE>();
    let (tiles_x, rest_x) = x.split_at(tiles.len() * TILE * cols);
    for (out, x) in tiles.iter_mut().zip(tiles_x.chunks_exact(TILE * cols)) {
        *out = dot_tile(simd, weights, x);
    }
    for (out, x) in rest.iter_mut().zip(rest_x.chunks_exact(cols)) {
        [*out] = dot_tile(simd, weights, x);
    }
}

/// The products of the weights `[cols]` with each row of x `[N, cols]`.
#[inline(always)]
fn dot_tile<S: Simd, const N: usize>(simd: S, weights: &[f32], x: &[f32]) -> [f32; N] {
    let cols = weights.len();
    let whole = cols - cols % STEP;
    let (pairs, _) = S::as_simd_f32s(&weights[..whole]).0.as_chunks::<2>();
    let rows: [&[f32]; N] = std::array::from_fn(|i| &x[i * cols..(i + 1) * cols]);
    let row_pairs: [&[[S::f32s; 2]]; N] =
        std::array::from_fn(|i| &S::as_simd_f32s(&rows[i][..whole]).0.as_chunks::<2>().0[..pairs.len()]);
    let mut sums = [Sums::new(simd); N];
    for (at, pair) in pairs.iter().enumerate() {
        for i in 0..N {
            sums[i].add_pair(simd, pair, &row_pairs[i][at]);
        }
    }
    let mut out = [0.0; N];
    for i in 0..N {
        sums[i].add(simd, &weights[whole..], &rows[i][whole..]);
        out[i] = sums[i].total(simd);
    }
    out
}

#[cfg(test)]
mod tests {
    use pulp::Scalar;

    use super::*;

    /// Blocks of one f32.
    struct Plain;

    impl Block for Plain {
        const LEN: usize = 1;
        const BYTES: usize = 4;
        fn dequantize(block: &[u8], out: &mut [f32]) {
            out[0] = f32::from_le_bytes(block.try_into().unwrap());
        }
    }

    /// Rows of f32 with every number of columns: one row of x at a time gives the bits that many give.
    #[test]
    fn one_row_and_many_give_the_same_bits() {
        struct Both<'a>(&'a [f32], &'a [f32]);
        impl WithSimd for Both<'_> {
            type Output = (Vec<f32>, Vec<f32>);
            fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
                let cols = self.0.len();
                let bytes: Vec<u8> = self.0.iter().flat_map(|w| w.to_le_bytes()).collect();
                let one = self.1.chunks_exact(cols).map(|x| dot::<S, Plain>(simd, &bytes, x)).collect();
                let mut many = vec![f32::NAN; self.1.len() / cols];
                dot_many(simd, self.0, self.1, &mut many);
                (one, many)
            }
        }
        for cols in 1..150 {
            let value = |i: usize| ((i * 7919 + cols) % 1000) as f32 / 500.0 - 1.0;
            let weights: Vec<f32> = (0..cols).map(value).collect();
            let x: Vec<f32> = (0..7 * cols).map(|i| value(i + 3)).collect();
            let mut outcomes =
                vec![Arch::new().dispatch(Both(&weights, &x)), Both(&weights, &x).with_simd(Scalar::new())];
            #[cfg(target_arch = "x86_64")]
            outcomes.extend(pulp::x86::V3::try_new().map(|avx2| Simd::vectorize(avx2, Both(&weights, &x))));
            for (one, many) in outcomes {
                assert_eq!(one, many, "{cols} columns");
                for (found, x) in one.iter().zip(x.chunks_exact(cols)) {
                    let exact: f64 = weights.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    assert!((f64::from(*found) - exact).abs() < 1e-4, "{cols} columns: {found} {exact}");
                }
            }
        }
    }
}
