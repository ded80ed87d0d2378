//! Products of quantised matrices with f32 rows.
//!
//! Every output is one dot product in the order of [`vector::dot_into`](super::vector::dot_into), whichever
//! loop computes it: one row of x at a time (decoding) streams blocks through a small buffer; many rows
//! (prompts) dequantise a matrix row once and use it for all of them.

use std::sync::{Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::tensor::Tensor;
use super::vector::{LANES, dot_into, mul_add_lanes, total};
use crate::Result;
use crate::error::try_vec;
use crate::quant::{Block, BlockVisitor};

/// Matrix rows that share one pass over x when decoding.
const DECODE_ROWS: usize = 4;
/// Rows of x that share one pass over a matrix row when there are many.
const TILE: usize = 4;
/// Parts of a product per thread: enough to even out threads that start late.
const JOBS_PER_THREAD: usize = 4;
/// Weights that are dequantised at a time when decoding: a multiple of every block length and of `LANES`.
const RUN: usize = 256;

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
    weight: &'a Tensor,
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

    /// The machine's vector instructions.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// For each product: out `[n, rows]` = x `[n, cols]` times the transpose of the matrix `[rows, cols]`.
    /// All matrices have the same number of columns. Runs on the thread pool it is called in.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn run(&mut self, products: &mut [(&Tensor, &mut [f32])], x: &[f32]) -> Result<()> {
        let Some((first, _)) = products.first() else { return Ok(()) };
        let n = x.len() / first.cols();
        if n == 1 {
            let outs = products.iter_mut().map(|(weight, out)| (*weight, &mut **out));
            self.run_jobs(outs, x, n);
            return Ok(());
        }
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
            out.par_chunks_exact_mut(weight.rows()).enumerate().for_each(|(i, out)| {
                out.iter_mut().zip(product.chunks_exact(n)).for_each(|(out, column)| *out = column[i]);
            });
        }
        self.columns = columns;
        Ok(())
    }

    /// Computes `[rows, n]` of every matrix, in jobs that the threads share.
    fn run_jobs<'a>(&self, products: impl Iterator<Item = (&'a Tensor, &'a mut [f32])>, x: &[f32], n: usize) {
        let products: Vec<_> = products.collect();
        let n_rows: usize = products.iter().map(|(weight, _)| weight.rows()).sum();
        let rows_per_job = n_rows.div_ceil(JOBS_PER_THREAD * self.rows.len()).next_multiple_of(DECODE_ROWS);
        let mut jobs = Vec::with_capacity(products.len() + JOBS_PER_THREAD * self.rows.len());
        for (weight, out) in products {
            for (i, out) in out.chunks_mut(rows_per_job * n).enumerate() {
                jobs.push(Job { weight, first_row: i * rows_per_job, out });
            }
        }
        jobs.into_par_iter().with_max_len(1).for_each(|job| {
            if n == 1 {
                job.weight.quant_type().visit(Decode { arch: self.arch, job, x });
            } else {
                let thread = rayon::current_thread_index().unwrap_or(0) % self.rows.len();
                let mut row = self.rows[thread].lock().unwrap_or_else(PoisonError::into_inner);
                job.weight.quant_type().visit(Many { arch: self.arch, job, x, n, row: &mut row });
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
        struct Rows<'a, B>(&'a [u8], &'a [f32], &'a mut [f32], std::marker::PhantomData<B>);
        impl<B: Block> WithSimd for Rows<'_, B> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) {
                let row_bytes = self.0.len() / self.2.len();
                let (groups, rest) = self.2.as_chunks_mut::<DECODE_ROWS>();
                let (group_data, rest_data) = self.0.split_at(groups.len() * DECODE_ROWS * row_bytes);
                for (out, data) in groups.iter_mut().zip(group_data.chunks_exact(DECODE_ROWS * row_bytes)) {
                    *out = dot_rows::<S, B, DECODE_ROWS>(data, self.1);
                }
                for (out, data) in rest.iter_mut().zip(rest_data.chunks_exact(row_bytes)) {
                    [*out] = dot_rows::<S, B, 1>(data, self.1);
                }
            }
        }
        let Decode { arch, job, x } = self;
        let data = job.weight.row_data(job.first_row..job.first_row + job.out.len());
        arch.dispatch(Rows::<B>(data, x, job.out, std::marker::PhantomData));
    }
}

/// The products of `R` rows, whose blocks follow one another in `data`, with x.
#[inline(always)]
fn dot_rows<S: Simd, B: Block, const R: usize>(data: &[u8], x: &[f32]) -> [f32; R] {
    let row_bytes = data.len() / R;
    let run_bytes = RUN / B::LEN * B::BYTES;
    let mut sums = [[0.0; LANES]; R];
    let mut weights = [0.0; RUN];
    for (i, x) in x.chunks(RUN).enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let blocks = &data[row * row_bytes + i * run_bytes..][..x.len() / B::LEN * B::BYTES];
            dequantize_run::<B>(blocks, &mut weights[..x.len()]);
            dot_into::<S>(sums, &weights[..x.len()], x);
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = total(&sums[r]);
    }
    out
}

#[inline(always)]
fn dequantize_run<B: Block>(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(B::BYTES).zip(out.chunks_exact_mut(B::LEN)) {
        B::dequantize(block, out);
    }
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
        struct Dispatch<'a, B>(Many<'a>, std::marker::PhantomData<B>);
        impl<B: Block> WithSimd for Dispatch<'_, B> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) {
                let Many { job, x, n, row, .. } = self.0;
                let row = &mut row[..job.weight.cols()];
                for (i, out) in job.out.chunks_exact_mut(n).enumerate() {
                    let at = job.first_row + i;
                    dequantize_run::<B>(job.weight.row_data(at..at + 1), row);
                    dot_many::<S>(row, x, out);
                }
            }
        }
        self.arch.dispatch(Dispatch::<B>(self, std::marker::PhantomData));
    }
}

/// out `[n]` = weights `[cols]` times x `[n, cols]`, `TILE` rows of x at a time.
#[inline(always)]
fn dot_many<S: Simd>(weights: &[f32], x: &[f32], out: &mut [f32]) {
    let cols = weights.len();
    let (tiles, rest) = out.as_chunks_mut::<TILE>();
    let (tiles_x, rest_x) = x.split_at(tiles.len() * TILE * cols);
    for (out, x) in tiles.iter_mut().zip(tiles_x.chunks_exact(TILE * cols)) {
        *out = dot_tile::<S, TILE>(weights, x);
    }
    for (out, x) in rest.iter_mut().zip(rest_x.chunks_exact(cols)) {
        [*out] = dot_tile::<S, 1>(weights, x);
    }
}

/// The products of the weights `[cols]` with each row of x `[N, cols]`.
#[inline(always)]
fn dot_tile<S: Simd, const N: usize>(weights: &[f32], x: &[f32]) -> [f32; N] {
    let cols = weights.len();
    let (chunks, tail) = weights.as_chunks::<LANES>();
    let mut sums = [[0.0; LANES]; N];
    let mut rows: [_; N] = [x; N];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &x[i * cols..(i + 1) * cols];
    }
    let chunked = rows.map(|row| &row.as_chunks::<LANES>().0[..chunks.len()]);
    for (at, chunk) in chunks.iter().enumerate() {
        for i in 0..N {
            mul_add_lanes::<S>(&mut sums[i], chunk, &chunked[i][at]);
        }
    }
    let mut out = [0.0; N];
    for i in 0..N {
        dot_into::<S>(&mut sums[i], tail, &rows[i][cols - tail.len()..]);
        out[i] = total(&sums[i]);
    }
    out
}
