//! How fast one core multiplies rows of quantised weights with an f32 vector: `cargo bench --bench quant`.
//!
//! One table: type, row length, and for each level of vectors the weights per ns and the GB of blocks per second
//! (best of many runs; 64 rows, in cache). `cargo bench --bench quant -- Q4_K` runs the types whose name holds `Q4_K`.

use kigo::quant::{Block, BlockVisitor, QuantType};
use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::time::{Duration, Instant};

const N_ROWS: usize = 64;

/// The dot products of rows with `x`.
struct Rows<'a> {
    blocks: &'a [u8],
    x: &'a [f32],
    out: &'a mut [f32],
}

struct Dispatch<'a>(Rows<'a>, Level);

#[derive(Clone, Copy)]
enum Level {
    Best,
    Avx2,
    Scalar,
}

impl BlockVisitor for Dispatch<'_> {
    type Output = Option<()>;
    fn visit<B: Block>(self) -> Option<()> {
        struct Vectors<'a, B>(Rows<'a>, std::marker::PhantomData<B>);
        impl<B: Block> WithSimd for Vectors<'_, B> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let Rows { blocks, x, out } = self.0;
                let row_bytes = x.len() / B::LEN * B::BYTES;
                for (row, out) in blocks.chunks_exact(row_bytes).zip(out) {
                    *out = dot::<B, S>(simd, row, x);
                }
            }
        }
        let vectors = Vectors::<B>(self.0, std::marker::PhantomData);
        match self.1 {
            Level::Best => Arch::new().dispatch(vectors),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Simd::vectorize(pulp::x86::V3::try_new()?, vectors),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 => return None,
            Level::Scalar => Arch::Scalar.dispatch(vectors),
        }
        Some(())
    }
}

#[inline(always)]
fn dot<B: Block, S: Simd>(simd: S, row: &[u8], x: &[f32]) -> f32 {
    let step = B::LEN.max(32);
    let mut buf = [0.0; 256];
    let buf = &mut buf[..step];
    let mut sums = [simd.splat_f32s(0.0); 2];
    for (blocks, x) in row.chunks_exact(step / B::LEN * B::BYTES).zip(x.chunks_exact(step)) {
        B::dequantize_run(blocks, buf);
        let (w, _) = S::as_simd_f32s(buf);
        let (x, _) = S::as_simd_f32s(x);
        let (w, _) = w.as_chunks::<2>();
        let (x, _) = x.as_chunks::<2>();
        for (w, x) in w.iter().zip(x) {
            for i in 0..2 {
                sums[i] = simd.mul_add_e_f32s(w[i], x[i], sums[i]);
            }
        }
    }
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]))
}

fn best_of(mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    while start.elapsed() < Duration::from_millis(150) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    println!("{:8} {:>5}   {:>16} {:>16} {:>16}", "", "", "best", "AVX2", "scalar");
    println!("{:8} {:>5} {}", "type", "row", "      w/ns   GB/s".repeat(3));
    for &t in QuantType::ALL.iter().filter(|t| t.name().contains(&filter)) {
        for n in [576, 4096].into_iter().filter(|n| n % t.block_len() == 0) {
            let row_bytes = n / t.block_len() * t.block_bytes();
            let blocks: Vec<u8> = (0..N_ROWS * row_bytes).map(|i| (i * 37 % 101) as u8).collect();
            let x = vec![1.0; n];
            let mut out = vec![0.0; N_ROWS];
            print!("{:8} {n:5} ", t.name());
            for level in [Level::Best, Level::Avx2, Level::Scalar] {
                let mut known = true;
                let ns = best_of(|| {
                    let rows = Rows { blocks: black_box(&blocks), x: black_box(&x), out: black_box(&mut out) };
                    known &= t.visit(Dispatch(rows, level)).is_some();
                })
                .as_nanos() as f64;
                if known {
                    print!(" {:9.2} {:6.1}", (N_ROWS * n) as f64 / ns, blocks.len() as f64 / ns);
                } else {
                    print!(" {:>9} {:>6}", "-", "-");
                }
            }
            println!();
        }
    }
}
