//! Single stages of the GPU against f64: random matrices of any type, their products, the error of what was computed.

use kigo::backend::cuda::blocks::{Card, Job, Kernel};
use kigo::backend::cuda::layout::{Place, THREADS, activation_bytes, stride, wants_bf16};
use kigo::backend::cuda::memory::DeviceBuffer;
use kigo::backend::cuda::params::*;
use kigo::model::QkNorm;
use kigo::quant::QuantType;

use super::launches::Gpu;
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

/// The device's card; the same with so few multiprocessors that blocks share one; one that is not of sm_90a; the smallest card.
fn cards(gpu: &Gpu) -> [Card; 4] {
    let card = Card::new(gpu.context().info());
    let old = Card { sm_90a: false, ..card };
    [card, Card { n_sm: 1, ..card }, old, Card { block_shared: 99 << 10, sm_shared: 100 << 10, crowds: false, ..old }]
}

/// Queues a product as on `card`, after what prepares its rows. `params` lacks only what depends on that.
fn multiply(gpu: &Gpu, card: &Card, quant: QuantType, mut params: KigoMatmul) {
    let kernels = gpu.types().of(quant).unwrap();
    let (n, input, bf16) = (params.n as usize, params.input, wants_bf16(quant));
    let (has_norm, gated) = (input.norm != KIGO_NORM_NONE, params.kind == KIGO_GATED);
    let job = Job {
        quant,
        n: params.n,
        k: input.k as usize,
        has_norm,
        n_tiles: params.n_tiles,
        gated,
        copies: 1,
        each: params.n,
    };
    let blocks = card.blocks(&job);
    (params.n_slots, params.sum_columns) = (blocks.n_slots, blocks.sum_columns);
    (params.n_wide, params.narrow_parts) = blocks.pieces;
    let mut grid = blocks.grid;
    match blocks.kernel {
        Kernel::Many | Kernel::ManyNarrow | Kernel::PrefillSplit => (),
        // Fewer blocks than tiles or items, so that a block has several.
        Kernel::Prefill | Kernel::PrefillWide => grid[0] = 2 * (grid[0] / 2).div_ceil(3),
        _ => grid[0] = grid[0].div_ceil(3),
    }
    if blocks.kernel == Kernel::One {
        return gpu.launch(kernels.of(blocks.kernel), grid, THREADS, blocks.shared_bytes, &params);
    }
    // The kernels of up to 32 rows read the records of 32, whatever is in those beyond n.
    let n_groups = n.div_ceil(8).max(4);
    let records = gpu.filled(n_groups * input.stride as usize / 64 * activation_bytes(true), 0xff);
    let order = blocks.kernel.order();
    let factors = gpu.filled(n_groups * 8 * 4, 0xff);
    let late = gpu.filled(grid[0] as usize * KIGO_LATE as usize * 4, 0xff);
    (params.records, params.factors, params.late) = (records.address(), factors.address(), late.address());
    let shared_bytes = if has_norm { input.stride * 4 } else { 0 };
    let prepared = KigoPrep {
        input,
        records: params.records,
        factors: params.factors,
        bf16: u32::from(bf16),
        order,
        is_rest: 0,
        pad: 0,
    };
    gpu.launch_rows(gpu.prep(), n.next_multiple_of(8), shared_bytes, &prepared);
    gpu.launch(kernels.of(blocks.kernel), grid, blocks.kernel.threads(), blocks.shared_bytes, &params);
    gpu.synchronize();
}

/// A product of nothing.
fn no_product() -> KigoMatmul {
    let input = KigoInput {
        x: 0,
        norm_weight: 0,
        norm_bias: 0,
        magnitudes: 0,
        select: 0,
        n: 0,
        k: 0,
        stride: 0,
        norm: KIGO_NORM_NONE,
        eps: EPS,
        pad: 0,
    };
    KigoMatmul {
        input,
        records: 0,
        factors: 0,
        weights: 0,
        out: 0,
        bias: [0; 3],
        magnitudes: 0,
        operands: 0,
        late: 0,
        n: 0,
        n_rows: 0,
        n_tiles: 0,
        n_records: 0,
        out_stride: 0,
        kind: KIGO_STORE,
        activation: KIGO_SILU,
        first_tile: 0,
        qkv: NO_HEADS,
        scale: 1.0,
        softcap: 0.0,
        experts: 0,
        starts: 0,
        share: 1,
        weight_scale: 1.0,
        is_told: 0,
        n_slots: 0,
        sum_columns: 0,
        n_wide: 0,
        narrow_parts: 1,
        n_expert: 0,
    }
}

const NO_HEADS: KigoQkv = KigoQkv {
    rows: 0,
    q: 0,
    turns: 0,
    turns_stride: 0,
    n_head: 0,
    n_head_kv: 0,
    head_dim: 0,
    dp: 0,
    n_rot: 0,
    halves: 0,
    table: 0,
    layer: 0,
    q_scale: 1.0,
};

/// Rows of activations on the device.
struct Rows {
    n: usize,
    k: usize,
    host: Vec<f32>,
    x: DeviceBuffer,
    magnitudes: DeviceBuffer,
    weight: Vec<f32>,
    bias: Vec<f32>,
    norm_weight: DeviceBuffer,
    norm_bias: DeviceBuffer,
}

impl Rows {
    fn random(gpu: &Gpu, n: usize, k: usize, random: &mut Random) -> Rows {
        let host = activations(n * k, random);
        let weight: Vec<f32> = (0..k).map(|_| 1.0 + 0.5 * random.uniform()).collect();
        let bias: Vec<f32> = (0..k).map(|_| 0.3 * random.uniform()).collect();
        let magnitudes: Vec<u32> = host.chunks_exact(k).map(magnitude).collect();
        Rows {
            x: gpu.floats(&padded(&host, k)),
            magnitudes: gpu.words(&magnitudes),
            norm_weight: gpu.floats(&padded(&weight, k)),
            norm_bias: gpu.floats(&padded(&bias, k)),
            n,
            k,
            host,
            weight,
            bias,
        }
    }

    /// `n` rows from `first` on.
    fn input(&self, first: usize, n: usize, norm: u32) -> KigoInput {
        assert!(first + n <= self.n);
        let has_norm = norm != KIGO_NORM_NONE;
        KigoInput {
            x: self.x.address() + (first * stride(self.k) * 4) as u64,
            norm_weight: if has_norm { self.norm_weight.address() } else { 0 },
            norm_bias: if norm == KIGO_NORM_LAYER { self.norm_bias.address() } else { 0 },
            magnitudes: if has_norm { 0 } else { self.magnitudes.address() + 4 * first as u64 },
            select: 0,
            n: n as u32,
            k: self.k as u32,
            stride: stride(self.k) as u32,
            norm,
            eps: EPS,
            pad: 0,
        }
    }

    fn normed(&self, norm: u32) -> Vec<f64> {
        normed(&self.host, self.k, norm, &self.weight, &self.bias)
    }
}

/// Rows and columns of matrices: odd ones of the type's own.
fn shapes(quant_type: QuantType) -> [(usize, usize); 3] {
    match quant_type.block_len() {
        1 => [(19, 37), (100, 100), (515, 544)],
        32 => [(19, 32), (100, 96), (515, 544)],
        _ => [(19, 256), (100, 768), (515, 2304)],
    }
}

/// Rows of the largest batch, which the others are part of.
const MOST: usize = 150;
/// Elements of a row of the result that belong to nobody.
const GAP: usize = 13;

#[test]
#[ignore = "needs a GPU"]
fn products_are_those_of_f64() {
    let (gpu, random) = (Gpu::open(), &mut fresh("products"));
    for &quant_type in QuantType::ALL {
        let mut worst: f64 = 0.0;
        for (n_rows, k) in shapes(quant_type) {
            worst = worst.max(check_products(&gpu, quant_type, n_rows, k, random));
        }
        println!("{:8} {worst:.1e}", quant_type.name());
        let bound = if quant_type.block_len() == 1 { MAX_NMSE } else { MAX_QUANTISED };
        assert!(worst <= bound, "{}: squared error {worst:e}", quant_type.name());
    }
}

/// Every kind of product and norm of one matrix; the largest error.
fn check_products(gpu: &Gpu, quant_type: QuantType, n_rows: usize, k: usize, random: &mut Random) -> f64 {
    let one = Matrix::random(quant_type, n_rows, k, random);
    let other = Matrix::random(quant_type, n_rows, k, random);
    let single = gpu.repack(&[(&one, one.place(1, 0))], one.n_tiles());
    let both = gpu.repack(&[(&one, one.place(2, 0)), (&other, other.place(2, 1))], 2 * one.n_tiles());
    let rows = Rows::random(gpu, MOST, k, random);
    let before = activations(MOST * n_rows, random);
    let bias = activations(n_rows, random);
    let bias_buffer = gpu.floats(&bias);
    let mut worst: f64 = 0.0;
    for norm in [KIGO_NORM_NONE, KIGO_NORM_RMS, KIGO_NORM_LAYER] {
        let x = rows.normed(norm);
        let (product, up) = (one.product_f64(&x), other.product_f64(&x));
        for (kind, activation, has_bias, (scale, softcap)) in [
            (KIGO_STORE, KIGO_SILU, false, (1.0, 0.0)),
            (KIGO_STORE, KIGO_SILU, true, (0.25, 0.0)),
            (KIGO_STORE, KIGO_SILU, false, (0.5, 20.0)),
            (KIGO_ADD, KIGO_SILU, true, (1.0, 0.0)),
            (KIGO_ADD, KIGO_SILU, false, (0.22, 0.0)),
            (KIGO_GATED, KIGO_SILU, false, (1.0, 0.0)),
            (KIGO_GATED, KIGO_GELU, false, (1.0, 0.0)),
            (KIGO_GATE, KIGO_SILU, false, (1.0, 0.0)),
            (KIGO_GATE, KIGO_GELU, false, (1.0, 0.0)),
        ] {
            let bias_of = |i: usize| if has_bias { f64::from(bias[i % n_rows]) } else { 0.0 };
            let capped = |x: f64| if softcap > 0.0 { f64::from(softcap) * (x / f64::from(softcap)).tanh() } else { x };
            let expected: Vec<f64> = (0..MOST * n_rows)
                .map(|i| match kind {
                    KIGO_GATED => activated(product[i], activation) * up[i],
                    KIGO_GATE => activated(f64::from(before[i]), activation) * product[i],
                    KIGO_ADD => f64::from(before[i]) + f64::from(scale) * (product[i] + bias_of(i)),
                    _ => capped(f64::from(scale) * (product[i] + bias_of(i))),
                })
                .collect();
            let in_place = matches!(kind, KIGO_ADD | KIGO_GATE);
            let run = |card: &Card, first: usize, n: usize| {
                let mut out = poisoned((n + 1) * (n_rows + GAP));
                for row in (0..n).filter(|_| in_place) {
                    let from = &before[(first + row) * n_rows..][..n_rows];
                    out[row * (n_rows + GAP)..][..n_rows].copy_from_slice(from);
                }
                let mut magnitudes = vec![0; n];
                magnitudes.push(POISON);
                let (out, magnitudes) = (gpu.floats(&out), gpu.words(&magnitudes));
                let params = KigoMatmul {
                    input: rows.input(first, n, norm),
                    weights: if kind == KIGO_GATED { both.0.address() } else { single.0.address() },
                    weight_scale: if kind == KIGO_GATED { both.1 } else { single.1 },
                    out: out.address(),
                    bias: [if has_bias { bias_buffer.address() } else { 0 }, 0, 0],
                    magnitudes: magnitudes.address(),
                    n: n as u32,
                    n_rows: n_rows as u32,
                    n_tiles: (one.n_tiles() * if kind == KIGO_GATED { 2 } else { 1 }) as u32,
                    n_records: one.n_records() as u32,
                    out_stride: (n_rows + GAP) as u32,
                    kind,
                    activation,
                    scale,
                    softcap,
                    ..no_product()
                };
                multiply(gpu, card, quant_type, params);
                let name = format!(
                    "{} [{n_rows}, {k}], kind {kind}, activation {activation}, norm {norm}, {n} rows from {first}",
                    quant_type.name()
                );
                let (out, magnitudes) = (gpu.read_floats(&out), gpu.read_words(&magnitudes));
                assert_eq!(magnitudes[n], POISON, "{name}: a magnitude beyond the last row");
                let mut found = Vec::new();
                for (row, out) in out.chunks_exact(n_rows + GAP).enumerate() {
                    let (own, gap) = out.split_at(if row < n { n_rows } else { 0 });
                    assert!(gap.iter().all(|x| x.to_bits() == POISON), "{name}: row {row} is written beyond its end");
                    if row < n {
                        assert_eq!(magnitudes[row], magnitude(own), "{name}: magnitude of row {row}");
                        found.extend_from_slice(own);
                    }
                }
                let error = nmse(&found, &expected[first * n_rows..][..n * n_rows]);
                assert!(error <= MAX_QUANTISED, "{name}: squared error {error:e}");
                (found, error)
            };
            let cards = cards(gpu);
            let (all, error) = run(&cards[0], 0, MOST);
            worst = worst.max(error);
            for (first, n) in [(0, 1), (77, 1), (MOST - 1, 1), (0, 5), (9, 8), (0, 9), (3, 32), (0, 33), (7, 130)] {
                for card in &cards {
                    let same = super::harness::bits(&run(card, first, n).0)
                        == super::harness::bits(&all[first * n_rows..][..n * n_rows]);
                    assert!(
                        same,
                        "{} [{n_rows}, {k}], kind {kind}, norm {norm}: other bits in {n} rows from {first}, {card:?}",
                        quant_type.name()
                    );
                }
            }
        }
    }
    worst
}

/// What `prep` writes of rows `x` `[n, k]` in the order of sm_90a, a word for two halves, and the factors: of all of them, or in what
/// `operands` has only of those that are multiplied with something.
fn prepared(gpu: &Gpu, input: KigoInput, operands: Option<&DeviceBuffer>) -> (Vec<u32>, Vec<u32>) {
    let n = input.n as usize;
    let (n_rows, units) = (n.next_multiple_of(8), input.stride as usize / 64);
    let own = gpu.filled(n_rows * units * 128, 0xff);
    let (records, factors) = (operands.unwrap_or(&own), gpu.filled(n_rows * 4, 0xff));
    let params = KigoPrep {
        input,
        records: records.address(),
        factors: factors.address(),
        bf16: 0,
        order: KIGO_ORDER_SWIZZLED,
        is_rest: u32::from(operands.is_some()),
        pad: 0,
    };
    gpu.launch_rows(gpu.prep(), if operands.is_some() { n_rows / 8 } else { n_rows }, 0, &params);
    let is_row = |i: usize| i / 256 % (n_rows / 8) * 8 + i % 256 / 32 < n;
    let words = gpu.read_words(records).into_iter().enumerate().filter(|(i, _)| is_row(*i)).map(|(_, word)| word);
    (words.collect(), gpu.read_words(&factors))
}

/// What a product hands on to the next, with what `prep` adds for rows that are multiplied, is what `prep` makes of its results.
#[test]
#[ignore = "needs a GPU"]
fn operands_are_those_that_prep_makes() {
    let (gpu, random) = (Gpu::open(), &mut fresh("operands"));
    if !Card::new(gpu.context().info()).sm_90a {
        println!("skipped: only products for sm_90a hand on operands");
        return;
    }
    for quant_type in [QuantType::F16, QuantType::Q4_K] {
        for (n_ff, n, activation) in
            [(64, 33, KIGO_SILU), (192, 130, KIGO_SILU), (192, 300, KIGO_GELU), (320, 150, KIGO_SILU_CLAMPED)]
        {
            let k = 512;
            let [gate, up] = [(); 2].map(|()| Matrix::random(quant_type, n_ff, k, random));
            let both = gpu.repack(&[(&gate, gate.place(2, 0)), (&up, up.place(2, 1))], 2 * gate.n_tiles());
            // Rows of all magnitudes.
            let scale = |i: usize| 10f32.powi((i / k) as i32 % 9 - 4);
            let x: Vec<f32> = activations(n * k, random).into_iter().enumerate().map(|(i, x)| x * scale(i)).collect();
            let of_x = gpu.words(&x.chunks_exact(k).map(magnitude).collect::<Vec<_>>());
            let (x, out, magnitudes) = (gpu.floats(&x), gpu.floats(&poisoned(n * n_ff)), gpu.words(&vec![0; n]));
            let operands = gpu.filled(n.next_multiple_of(8) * n_ff * 2, 0xff);
            let input = |x: u64, magnitudes: u64, k: usize| KigoInput {
                x,
                magnitudes,
                n: n as u32,
                k: k as u32,
                stride: k as u32,
                ..no_product().input
            };
            let params = KigoMatmul {
                input: input(x.address(), of_x.address(), k),
                weights: both.0.address(),
                weight_scale: both.1,
                out: out.address(),
                magnitudes: magnitudes.address(),
                operands: operands.address(),
                n: n as u32,
                n_rows: n_ff as u32,
                n_tiles: 2 * gate.n_tiles() as u32,
                n_records: gate.n_records() as u32,
                out_stride: n_ff as u32,
                kind: KIGO_GATED,
                activation,
                ..no_product()
            };
            for card in &cards(&gpu)[..2] {
                multiply(&gpu, card, quant_type, params);
                let of_out = input(out.address(), magnitudes.address(), n_ff);
                let (found, expected) = (prepared(&gpu, of_out, Some(&operands)), prepared(&gpu, of_out, None));
                let n_scaled = expected.1.iter().take(n).filter(|factor| f32::from_bits(**factor) != 1.0).count();
                assert!(n_scaled > 0 && n_scaled < n, "{n_scaled} of {n} rows are multiplied");
                assert!(found == expected, "{} [{n_ff}, {k}], {n} rows, activation {activation}", quant_type.name());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn embedded_rows_are_those_of_the_table() {
    let (gpu, random) = (Gpu::open(), &mut fresh("embed"));
    for &quant_type in QuantType::ALL {
        let mut worst: (f64, f64) = (0.0, 0.0);
        for (n, k) in shapes(quant_type) {
            let table = Matrix::random(quant_type, n, k, random);
            for (positions, scale) in [(None, 1.0), (Some(activations(7 * k, random)), 11.3)] {
                let (weights, turns) = check_embed(&gpu, &table, positions.as_deref(), scale);
                worst = (worst.0.max(weights), worst.1.max(turns));
            }
        }
        println!("{:8} weights {:.1e}, turns {:.1e}", quant_type.name(), worst.0, worst.1);
    }
}

/// Rows of `table`, scaled, with rows of `positions` added: the largest errors of them and of the turns.
fn check_embed(gpu: &Gpu, table: &Matrix, positions: Option<&[f32]>, scale: f32) -> (f64, f64) {
    const N_PAIRS: usize = 24;
    const N_MAGNITUDES: usize = 3;
    // Which of them are those of x, where they are wanted.
    const OF_X: usize = 1;
    let (n, k, width) = (table.rows, table.cols, stride(table.cols));
    let position = |row: usize| if positions.is_some() { row as u32 % 7 } else { [0, 1, 1000, 131_071][row % 4] };
    let (weights, weight_scale) = gpu.repack(&[(table, table.place(1, 0))], table.n_tiles());
    // The later pairs are of a kind of rope that grows what it turns.
    let pair = |i: usize| (10_000f64.powf(-(i as f64) / 24.0) / 3.0, if i < 20 { 1.0 } else { 1.25 });
    let angles = gpu
        .upload(&(0..N_PAIRS).flat_map(|i| <[f64; 2]>::from(pair(i))).flat_map(f64::to_le_bytes).collect::<Vec<u8>>());
    let row = |i: usize| KigoRow { token: i as u32, position: position(i), pages: 0, slot: 0, pad: 0 };
    let rows = gpu.structs(&(0..n).map(row).collect::<Vec<_>>());
    let x = gpu.floats(&poisoned((n + 1) * width));
    let turns = gpu.floats(&poisoned((n + 1) * N_PAIRS * 2));
    let magnitudes = gpu.words(&vec![POISON; N_MAGNITUDES * (n + 1)]);
    let learned = positions.map(|positions| gpu.floats(positions));
    let of_x = magnitudes.address() + (OF_X * (n + 1) * 4) as u64;
    let params = KigoEmbed {
        rows: rows.address(),
        weights: weights.address(),
        x: x.address(),
        positions: learned.as_ref().map_or(0, DeviceBuffer::address),
        angles: angles.address(),
        turns: turns.address(),
        magnitudes: magnitudes.address(),
        x_magnitudes: if positions.is_some() { of_x } else { 0 },
        number: 0,
        n_magnitudes: N_MAGNITUDES as u32,
        magnitudes_stride: n as u32 + 1,
        n_turns: N_PAIRS as u32,
        n_records: table.n_records() as u32,
        k: k as u32,
        stride: width as u32,
        scale: scale * weight_scale,
        pad: 0,
    };
    // Several blocks of a row, where none has to know what the others have.
    let n_blocks = if positions.is_some() { 1 } else { 3 };
    let kernel = &gpu.types().of(table.quant_type).unwrap().embed;
    gpu.launch(kernel, [n as u32, n_blocks, 1], THREADS, 0, &params);
    let (x, turns, magnitudes) = (gpu.read_floats(&x), gpu.read_floats(&turns), gpu.read_words(&magnitudes));
    let name = format!("{} [{n}, {k}], positions {}", table.quant_type.name(), positions.is_some());
    let (mut worst, mut worst_turn): (f64, f64) = (0.0, 0.0);
    for (token, (found, weights)) in x.chunks_exact(width).zip(table.weights().chunks_exact(k)).enumerate() {
        let learned = |i: usize| positions.map_or(0.0, |all| f64::from(all[position(token) as usize * k + i]));
        let expected: Vec<f64> =
            weights.iter().enumerate().map(|(i, &w)| f64::from(w) * f64::from(scale) + learned(i)).collect();
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        // Quantised weights become halves, as in products.
        let bound = if table.quant_type.block_len() == 1 { 1e-6 } else { 2f64.powi(-9) };
        for (i, (&found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / largest;
            assert!(error <= bound, "{name}: weight {i} of row {token} is {found}, expected {expected}");
        }
        let error = nmse(&found[..k], &expected);
        assert!(error <= MAX_NMSE, "{name}: squared error {error:e} in row {token}");
        worst = worst.max(error);
        assert!(found[k..].iter().all(|x| x.to_bits() == POISON), "{name}: row {token} beyond its end");
    }
    assert!(x[n * width..].iter().all(|x| x.to_bits() == POISON), "{name}: a row beyond the last");
    for (row, found) in turns.chunks_exact(2 * N_PAIRS).take(n).enumerate() {
        for i in 0..N_PAIRS {
            let (angle, growth) = pair(i);
            let (sine, cosine) = (angle * f64::from(position(row)) % 2.0 * std::f64::consts::PI).sin_cos();
            for (found, expected) in [(found[2 * i], cosine * growth), (found[2 * i + 1], sine * growth)] {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= 1e-7, "{name}: turn of pair {i} in row {row}: {found}, {expected}");
                worst_turn = worst_turn.max(error);
            }
        }
    }
    assert!(turns[2 * n * N_PAIRS..].iter().all(|x| x.to_bits() == POISON), "{name}: a turn too many");
    for (i, of_stage) in magnitudes.chunks_exact(n + 1).enumerate() {
        for (row, &found) in of_stage[..n].iter().enumerate() {
            let wanted = if i == OF_X && positions.is_some() { magnitude(&x[row * width..][..k]) } else { 0 };
            assert_eq!(found, wanted, "{name}: magnitude {i} of row {row}");
        }
        assert_eq!(of_stage[n], POISON, "{name}: a magnitude beyond the last row");
    }
    (worst, worst_turn)
}

/// Bits of a half that nobody wrote.
const HALF_POISON: u16 = 0xffff;
const PAGE: usize = KIGO_PAGE as usize;

/// Width of a head in q and the cache.
fn head_width(head_dim: usize) -> usize {
    [32, 64, 96, 128, 192, 256].into_iter().find(|width| *width >= head_dim).unwrap()
}

/// What a half stands for.
fn widened(bits: u16) -> f64 {
    let mut value = [0.0];
    QuantType::F16.dequantize(&bits.to_le_bytes(), &mut value);
    f64::from(value[0])
}

/// Halves against what they should be; a NaN there is a half that nobody may have written.
fn half_error(found: &[u16], expected: &[f64], name: &str) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut values, mut wanted) = (Vec::new(), Vec::new());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if expected.is_nan() {
            assert_eq!(found, HALF_POISON, "{name}: half {i} is written");
        } else {
            values.push(widened(found) as f32);
            wanted.push(expected);
        }
    }
    nmse(&values, &wanted)
}

/// Places of a head in q and K, and which elements stand there: pairs that rope turns are 8 apart.
fn head_places(head_dim: usize, n_rot: usize, halves: bool) -> Vec<(usize, usize, bool)> {
    let places = |pair: usize| {
        let turned = pair < n_rot / 2;
        let (low, high) = if turned && halves { (pair, pair + n_rot / 2) } else { (2 * pair, 2 * pair + 1) };
        let place = pair / 8 * 16 + pair % 8;
        [(place, low, turned), (place + 8, high, turned)]
    };
    (0..head_dim.div_ceil(16) * 8).flat_map(places).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn queries_keys_and_values_are_those_of_f64() {
    use QuantType::{F16, F32, Q4_K, Q6_K, Q8_0};
    let (gpu, random) = (Gpu::open(), &mut fresh("qkv"));
    for types in [[Q8_0; 3], [F16; 3], [Q4_K, Q4_K, Q6_K], [F32, F16, Q8_0]] {
        for head_dim in [20, 32, 48, 80, 128] {
            let mut worst: f64 = 0.0;
            for (n_rot, halves, has_bias, turns) in [
                (head_dim, false, true, true),
                (head_dim, true, false, true),
                (head_dim / 2, false, false, true),
                (head_dim / 2, true, true, true),
                (head_dim / 2, true, false, false),
                (0, false, true, false),
            ] {
                for (n, norm) in [(1, None), (5, Some(QkNorm::Head)), (5, None), (20, Some(QkNorm::Row)), (150, None)] {
                    let heads = Heads { head_dim, n_rot, halves, has_bias, turns, norm };
                    worst = worst.max(check_qkv(&gpu, types, heads, n, random));
                }
            }
            println!("{} heads of {head_dim}: {worst:.1e}", types.map(QuantType::name).join(" "));
            assert!(worst <= MAX_NMSE, "{types:?}, heads of {head_dim}: squared error {worst:e}");
        }
    }
}

#[derive(Clone, Copy)]
struct Heads {
    head_dim: usize,
    n_rot: usize,
    halves: bool,
    has_bias: bool,
    /// Whether this layer turns.
    turns: bool,
    norm: Option<QkNorm>,
}

/// The largest error of q, keys and values of `n` rows.
fn check_qkv(gpu: &Gpu, types: [QuantType; 3], heads: Heads, n: usize, random: &mut Random) -> f64 {
    const N_HEAD: [usize; 3] = [6, 2, 2];
    const K: usize = 256;
    // The first row is not the first of a page; layer 0 of the pages stays as it is.
    const FIRST: usize = 57;
    const LAYER: usize = 1;
    const Q_SCALE: f32 = 0.25;
    // Entries of the tables of another group of layers, and turns of another kind of rope before and after this one's.
    const TABLE: usize = 3;
    const OTHERS: usize = 5;
    let Heads { head_dim, n_rot, halves, has_bias, turns: has_turns, norm } = heads;
    let (dp, per_head) = (head_width(head_dim), head_dim.div_ceil(16));
    let rows = Rows::random(gpu, n, K, random);
    let x = rows.normed(KIGO_NORM_RMS);
    let turns: Vec<f32> = (0..n * n_rot).map(|_| random.uniform()).collect();
    let parts: Vec<Matrix> =
        (0..3).map(|part| Matrix::random(types[part], N_HEAD[part] * head_dim, K, random)).collect();
    let biases = N_HEAD.map(|n_head| activations(n_head * head_dim, random));

    let n_pages = (FIRST + n).div_ceil(PAGE);
    let page_halves = (LAYER + 1) * N_HEAD[1] * 2 * PAGE * dp;
    let pages = gpu.filled(n_pages * page_halves * 2, 0xff);
    let address = |page: usize| pages.address() + (page * page_halves * 2) as u64;
    let table: Vec<u64> = std::iter::repeat_n(0, TABLE).chain((0..n_pages).map(address)).collect();
    let table = gpu.upload(&table.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
    let row = |i: usize| KigoRow { token: 0, position: (FIRST + i) as u32, pages: table.address(), slot: 0, pad: 0 };
    let rows_buffer = gpu.structs(&(0..n).map(row).collect::<Vec<_>>());
    let q = gpu.filled((n + 1) * N_HEAD[0] * dp * 2, 0xff);
    let turns_stride = n_rot / 2 + 2 * OTHERS;
    let mut all_turns = poisoned(n * turns_stride * 2);
    for row in 0..n {
        all_turns[(row * turns_stride + OTHERS) * 2..][..n_rot].copy_from_slice(&turns[row * n_rot..][..n_rot]);
    }
    let turns_buffer = gpu.floats(&all_turns);
    let qkv = KigoQkv {
        rows: rows_buffer.address(),
        q: q.address(),
        turns: if has_turns { turns_buffer.address() + OTHERS as u64 * 8 } else { 0 },
        turns_stride: turns_stride as u32,
        n_head: N_HEAD[0] as u32,
        n_head_kv: N_HEAD[1] as u32,
        head_dim: head_dim as u32,
        dp: dp as u32,
        n_rot: n_rot as u32,
        halves: u32::from(halves),
        table: TABLE as u32,
        layer: LAYER as u32,
        q_scale: Q_SCALE,
    };
    // Where q, k and v wait for their norm, and its weights.
    let width = N_HEAD.iter().sum::<usize>() * per_head * 16;
    let stored = gpu.floats(&poisoned((n + 1) * width));
    let norm_len = |part: usize| if norm == Some(QkNorm::Row) { N_HEAD[part] * head_dim } else { head_dim };
    let norm_weights =
        [0, 1].map(|part| (0..norm_len(part)).map(|_| 1.0 + 0.5 * random.uniform()).collect::<Vec<f32>>());
    let norm_buffers = norm_weights.each_ref().map(|weights| gpu.floats(weights));
    let bias_buffers: Vec<DeviceBuffer> = biases.iter().map(|bias| gpu.floats(bias)).collect();
    let bias: [u64; 3] = std::array::from_fn(|part| if has_bias { bias_buffers[part].address() } else { 0 });

    let mut start = 0;
    while start < 3 {
        let end = start + types[start..].iter().take_while(|quant| **quant == types[start]).count();
        let mut n_tiles = 0;
        let placed: Vec<(&Matrix, Place)> = (start..end)
            .map(|part| {
                let order = if part < 2 { KIGO_ROWS_ROPE } else { KIGO_ROWS_HEADS };
                let place = Place { order, head_dim, n_rot, halves, ..parts[part].place(1, n_tiles) };
                n_tiles += N_HEAD[part] * per_head;
                (&parts[part], place)
            })
            .collect();
        let (weights, weight_scale) = gpu.repack(&placed, n_tiles);
        let first_tile = N_HEAD[..start].iter().sum::<usize>() * per_head;
        let params = KigoMatmul {
            input: rows.input(0, n, KIGO_NORM_RMS),
            weights: weights.address(),
            weight_scale,
            bias: if norm.is_some() { [0; 3] } else { bias },
            n: n as u32,
            n_rows: (n_tiles * 16) as u32,
            n_tiles: n_tiles as u32,
            n_records: parts[start].n_records() as u32,
            kind: if norm.is_some() { KIGO_STORE } else { KIGO_QKV },
            out: stored.address() + (first_tile * 16 * 4) as u64,
            out_stride: width as u32,
            first_tile: first_tile as u32,
            qkv,
            ..no_product()
        };
        multiply(gpu, &cards(gpu)[0], types[start], params);
        gpu.synchronize();
        start = end;
    }
    if let Some(norm) = norm {
        let whole = norm == QkNorm::Row;
        let params = KigoHeads {
            qkv,
            x: stored.address(),
            bias,
            norm_weight: norm_buffers.each_ref().map(DeviceBuffer::address),
            stride: width as u32,
            whole: u32::from(whole),
            eps: EPS,
            pad: 0,
        };
        let (n_blocks, n_heads) = if whole { (3, N_HEAD[0]) } else { (N_HEAD.iter().sum(), 1) };
        let threads = (n_heads * per_head * 8).next_multiple_of(32).min(256) as u32;
        gpu.launch(&gpu.function("rows", "heads"), [n as u32, n_blocks as u32, 1], threads, 0, &params);
        gpu.synchronize();
    }

    let mut q_expected = vec![f64::NAN; (n + 1) * N_HEAD[0] * dp];
    let mut cache_expected = vec![f64::NAN; n_pages * page_halves];
    for part in 0..3 {
        let products = parts[part].product_f64(&x);
        for row in 0..n {
            let (page, of_page) = ((FIRST + row) / PAGE, (FIRST + row) % PAGE);
            let turn = |pair: usize| [0, 1].map(|i| f64::from(turns[row * n_rot + 2 * pair + i]));
            let biased = |at: usize| {
                let bias = if has_bias { f64::from(biases[part][at]) } else { 0.0 };
                products[row * N_HEAD[part] * head_dim + at] + bias
            };
            // What the elements from `first` on are multiplied with.
            let factor = |first: usize, n: usize| {
                let squares = (first..first + n).map(|at| biased(at).powi(2)).sum::<f64>();
                1.0 / (squares / n as f64 + f64::from(EPS)).sqrt()
            };
            for head in 0..N_HEAD[part] {
                let normed = match norm.filter(|_| part < 2) {
                    None => vec![1.0; head_dim],
                    Some(QkNorm::Head) => {
                        let factor = factor(head * head_dim, head_dim);
                        norm_weights[part].iter().map(|&w| factor * f64::from(w)).collect()
                    }
                    Some(QkNorm::Row) => {
                        let factor = factor(0, N_HEAD[part] * head_dim);
                        let weights = &norm_weights[part][head * head_dim..][..head_dim];
                        weights.iter().map(|&w| factor * f64::from(w)).collect()
                    }
                };
                let element = |i: usize| biased(head * head_dim + i) * normed[i];
                let mut put = |place: usize, value: f64| match part {
                    0 => q_expected[(row * N_HEAD[0] + head) * dp + place] = value * f64::from(Q_SCALE),
                    _ => {
                        let base = page * page_halves + (LAYER * N_HEAD[1] + head) * 2 * PAGE * dp;
                        let at = if part == 1 { of_page * dp + place } else { PAGE * dp + place * PAGE + of_page };
                        cache_expected[base + at] = value;
                    }
                };
                if part == 2 {
                    (0..per_head * 16).for_each(|i| put(i, if i < head_dim { element(i) } else { 0.0 }));
                    continue;
                }
                let places = head_places(head_dim, n_rot, halves);
                for (pair, both) in places.chunks_exact(2).enumerate() {
                    let [low, high] = [0, 1].map(|i| if both[i].1 < head_dim { element(both[i].1) } else { 0.0 });
                    let [cosine, sine] = if both[0].2 && has_turns { turn(pair) } else { [1.0, 0.0] };
                    put(both[0].0, low * cosine - high * sine);
                    put(both[1].0, low * sine + high * cosine);
                }
            }
        }
    }
    let name = format!("{types:?}, heads of {head_dim}, {n_rot} turned, halves {halves}, norm {norm:?}, {n} rows");
    let q_error = half_error(&gpu.read_halves(&q), &q_expected, &format!("{name}: q"));
    let cache_error = half_error(&gpu.read_halves(&pages), &cache_expected, &format!("{name}: cache"));
    assert!(
        q_error.max(cache_error) <= MAX_NMSE,
        "{name}: squared error {q_error:e} of q, {cache_error:e} of the cache"
    );
    q_error.max(cache_error)
}

/// A number from -1 up to 1 as a half, rounded towards zero.
fn half(random: &mut Random, scale: f32) -> u16 {
    let bits = (random.uniform() * scale).to_bits();
    let magnitude = (bits & 0x7fff_ffff) >> 13;
    // Less than the smallest normal half is zero.
    (bits >> 16 & 0x8000) as u16 | magnitude.saturating_sub(112 << 10) as u16
}

#[test]
#[ignore = "needs a GPU"]
fn attention_is_that_of_f64() {
    let (gpu, random) = (Gpu::open(), &mut fresh("attention"));
    for head_dim in [20, 32, 64, 80, 96, 128, 192, 256] {
        let mut worst: f64 = 0.0;
        for group in [1, 3, 4, 8, 20] {
            worst = worst.max(check_attention(&gpu, head_dim, group, Scores::default(), random));
        }
        println!("heads of {head_dim:3}: {worst:.1e}");
        assert!(worst <= MAX_NMSE, "heads of {head_dim}: squared error {worst:e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn windows_soft_caps_and_sinks_are_those_of_f64() {
    let (gpu, random) = (Gpu::open(), &mut fresh("windows"));
    let mut all = vec![];
    // Within a page, at its edges, within a chunk of 512, at its edges, and longer than a position that is tried.
    for window in [1, 2, 63, 64, 65, 100, 511, 512, 513, 1000, 1990] {
        all.push(Scores { window, ..Scores::default() });
    }
    all.push(Scores { softcap: 3.0, ..Scores::default() });
    all.push(Scores { sinks: true, ..Scores::default() });
    for window in [0, 1, 70, 700] {
        all.push(Scores { window, softcap: 50.0, sinks: true });
    }
    for head_dim in [32, 64, 80, 128, 192, 256] {
        let mut worst: f64 = 0.0;
        for (&scores, group) in all.iter().zip([3, 1, 20, 8].into_iter().cycle()) {
            worst = worst.max(check_attention(&gpu, head_dim, group, scores, random));
        }
        println!("heads of {head_dim:3}: {worst:.1e}");
        assert!(worst <= MAX_NMSE, "heads of {head_dim}: squared error {worst:e}");
    }
}

/// What becomes of scores; zeros leave them as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Scores {
    window: usize,
    softcap: f32,
    sinks: bool,
}

/// Which kernel attends: `attn_decode` with so many splits, or one for many rows.
#[derive(Debug, Clone, Copy)]
enum How {
    Decode(u32),
    Prefill,
    Flash,
}

/// Decode and prefill at several positions: the same bits, and their largest error.
fn check_attention(gpu: &Gpu, head_dim: usize, group: usize, scores: Scores, random: &mut Random) -> f64 {
    // Entries of the tables of another group of layers.
    const TABLE: usize = 2;
    const N_HEAD_KV: usize = 2;
    const N_LAYER: usize = 2;
    const LAYER: usize = 1;
    const LAST: usize = 2000;
    const TILE: usize = 37;
    let (dp, n_head) = (head_width(head_dim), N_HEAD_KV * group);
    let n_blocks = N_HEAD_KV * group.div_ceil(16);
    // Scores have a deviation of about two.
    let q_scale = 6.0 * std::f32::consts::SQRT_2 / (head_dim as f32).sqrt();

    let n_pages = LAST / PAGE + 1;
    let page_halves = (N_LAYER * N_HEAD_KV * 2 * PAGE * dp).next_multiple_of(128);
    let q_at = |row: usize, head: usize| (row * n_head + head) * dp;
    let key_at = |position: usize, head: usize| {
        position / PAGE * page_halves + (LAYER * N_HEAD_KV + head) * 2 * PAGE * dp + position % PAGE * dp
    };
    let value_at = |position: usize, head: usize, i: usize| {
        let start = position / PAGE * page_halves + ((LAYER * N_HEAD_KV + head) * 2 + 1) * PAGE * dp;
        start + i * PAGE + position % PAGE
    };
    // What a real cache has beyond a head is zero; everything else that is not read is NaN.
    let mut cache = vec![HALF_POISON; n_pages * page_halves];
    for (position, head) in (0..=LAST).flat_map(|position| (0..N_HEAD_KV).map(move |head| (position, head))) {
        for i in 0..dp {
            let exists = i < head_dim;
            cache[key_at(position, head) + i] = if exists { half(random, 1.0) } else { 0 };
            cache[value_at(position, head, i)] = if exists { half(random, 1.0) } else { 0 };
        }
    }
    let kernel = |name: &str| gpu.function("attention", &format!("attn_{name}_{dp}"));
    let (decode, prefill) = (kernel("decode"), kernel("prefill"));
    let prefill_shared = dp as u32 * if dp <= 128 { 512 } else { 384 };
    prefill.set_max_shared_bytes(prefill_shared).unwrap();

    let flashes = Card::new(gpu.context().info()).flashes(dp);
    let flash = flashes.then(|| gpu.function("flash", &format!("attn_flash_{dp}")));
    if let Some(flash) = &flash {
        flash.set_max_shared_bytes(KIGO_FLASH_SHARED).unwrap();
    }

    let Scores { window, softcap, sinks } = scores;
    let first_key = |position: usize| if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
    let sink_values: Vec<f32> = (0..n_head).map(|_| 4.0 * random.uniform()).collect();
    let sink_buffer = gpu.floats(&sink_values);
    let log2_e = std::f32::consts::LOG2_E;
    let mut worst: f64 = 0.0;
    for position in [0, 63, 64, 500, LAST] {
        let name = format!("heads of {head_dim}, {group} a group, {scores:?}, position {position}");
        let n = TILE.min(position + 1);
        let first = position + 1 - n;
        // No key or value after the last row's has been written.
        let mut now = cache.clone();
        for (later, head) in (position + 1..=LAST).flat_map(|later| (0..N_HEAD_KV).map(move |head| (later, head))) {
            now[key_at(later, head)..][..dp].fill(HALF_POISON);
            (0..dp).for_each(|i| now[value_at(later, head, i)] = HALF_POISON);
        }
        // Nothing is read of pages before the window of the first row.
        let first_page = first_key(first) / PAGE;
        now[..first_page * page_halves].fill(HALF_POISON);
        let pages = gpu.halves(&now);
        // Those pages are not even there.
        let address =
            |page: usize| if page < first_page { 0 } else { pages.address() + (page * page_halves * 2) as u64 };
        let area_bytes = n_head * (dp + 2) * 4;
        let areas = gpu.filled(n_pages * area_bytes, 0xFF);
        let area = |page: usize| areas.address() + (page * area_bytes) as u64;
        let of_pages = (0..n_pages).map(address).chain((0..n_pages).map(area));
        let table: Vec<u64> = std::iter::repeat_n(0, TABLE).chain(of_pages).collect();
        let table = gpu.upload(&table.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
        let mut q = vec![0; n * n_head * dp];
        for (row, head) in (0..n).flat_map(|row| (0..n_head).map(move |head| (row, head))) {
            q[q_at(row, head)..][..head_dim].fill_with(|| half(random, q_scale));
        }
        let q_buffer = gpu.halves(&q);
        let row =
            |i: usize| KigoRow { token: 0, position: (first + i) as u32, pages: table.address(), slot: 0, pad: 0 };
        let rows = gpu.structs(&(0..n).map(row).collect::<Vec<_>>());
        let tiles = gpu.structs(&[KigoTile { first_row: 0, n_rows: n as u32 }]);
        let counters = gpu.filled(n_blocks * 4, 0);
        let width = stride(n_head * head_dim) + 64;

        let run = |first_row: usize, n: usize, how: How| -> Vec<Vec<f32>> {
            let hands_on = matches!((how, &flash), (How::Flash, Some(_))) && head_dim == dp && dp.is_multiple_of(64);
            let operands = gpu.filled(n.next_multiple_of(8) * width * 2, 0xff);
            let out = gpu.floats(&poisoned((n + 1) * width));
            let mut magnitudes = vec![0; n];
            magnitudes.push(POISON);
            let magnitudes = gpu.words(&magnitudes);
            let params = KigoAttention {
                rows: rows.address() + (first_row * size_of::<KigoRow>()) as u64,
                tiles: tiles.address(),
                q: q_buffer.address() + (q_at(first_row, 0) * 2) as u64,
                out: out.address(),
                magnitudes: magnitudes.address(),
                counters: counters.address(),
                sinks: if sinks { sink_buffer.address() } else { 0 },
                operands: if hands_on { operands.address() } else { 0 },
                n_head: n_head as u32,
                n_head_kv: N_HEAD_KV as u32,
                head_dim: head_dim as u32,
                table: TABLE as u32,
                layer: LAYER as u32,
                areas: (TABLE + n_pages) as u32,
                before: if window == 0 { KIGO_ALL_BEFORE } else { window as u32 - 1 },
                softcap: softcap * log2_e,
                softcap_rate: if softcap > 0.0 { 2.0 / softcap } else { 0.0 },
                splits: if let How::Decode(splits) = how { splits } else { 1 },
                out_stride: width as u32,
                n_tiles: 1,
                n: n as u32,
                pad: 0,
            };
            match (how, &flash) {
                (How::Decode(splits), _) => gpu.launch(&decode, [n_blocks as u32, n as u32, splits], 128, 0, &params),
                // Fewer blocks than pairs of heads, so that a block has several.
                (How::Flash, Some(flash)) => gpu.launch(flash, [2, 1, 1], 384, KIGO_FLASH_SHARED, &params),
                _ => gpu.launch(&prefill, [1, n_head as u32, 1], 128, prefill_shared, &params),
            }
            if hands_on {
                let input = KigoInput {
                    x: out.address(),
                    magnitudes: magnitudes.address(),
                    n: n as u32,
                    k: width as u32,
                    stride: width as u32,
                    ..no_product().input
                };
                let [found, expected] = [Some(&operands), None].map(|operands| prepared(gpu, input, operands));
                // Units from there on are of the gap between rows.
                let own = n_head * head_dim / 64 * n * 32;
                assert!(found.0[..own] == expected.0[..own] && found.1 == expected.1, "{name}: operands");
            }
            let (out, magnitudes) = (gpu.read_floats(&out), gpu.read_words(&magnitudes));
            assert_eq!(magnitudes[n], POISON, "{name}: a magnitude beyond the last row");
            assert!(gpu.read_words(&counters).iter().all(|&count| count == 0), "{name}: counters");
            let mut found = Vec::new();
            for (row, out) in out.chunks_exact(width).enumerate() {
                let (own, gap) = out.split_at(if row < n { n_head * head_dim } else { 0 });
                assert!(gap.iter().all(|x| x.to_bits() == POISON), "{name}: row {row} is written beyond its end");
                if row < n {
                    assert_eq!(magnitudes[row], magnitude(own), "{name}: magnitude of row {row}");
                    found.push(own.to_vec());
                }
            }
            found
        };
        let together = run(0, n, How::Prefill);
        if flashes {
            let same = run(0, n, How::Flash)
                .iter()
                .map(|row| super::harness::bits(row))
                .eq(together.iter().map(|row| super::harness::bits(row)));
            assert!(same, "{name}: other bits in attn_flash than in attn_prefill");
        }
        let mut checked = vec![0, n / 2, n - 1];
        checked.dedup();
        for row in checked {
            for splits in [1, 3, 64] {
                let alone = run(row, 1, How::Decode(splits)).remove(0);
                let same = super::harness::bits(&alone) == super::harness::bits(&together[row]);
                assert!(same, "{name}: other bits of row {row} in decode with {splits} splits than in prefill");
            }
            let heads: Vec<usize> = (0..n_head).collect();
            let expected = concurrently(&heads, |&head| {
                let (q, kv_head) = (&q[q_at(row, head)..][..head_dim], head / group);
                let q: Vec<f64> = q.iter().map(|&bits| widened(bits)).collect();
                let score = |at: usize| {
                    let key = &now[key_at(at, kv_head)..][..head_dim];
                    let score = q.iter().zip(key).map(|(q, &key)| q * widened(key)).sum::<f64>();
                    let cap = f64::from(softcap * log2_e);
                    if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                };
                let start = first_key(first + row);
                let scores: Vec<f64> = (start..=first + row).map(score).collect();
                let sink = if sinks { f64::from(sink_values[head] * log2_e) } else { f64::NEG_INFINITY };
                let largest = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp2()).collect();
                let sum: f64 = weights.iter().sum::<f64>() + (sink - largest).exp2();
                let mixed = |i: usize| {
                    let values = (start..).map(|at| widened(now[value_at(at, kv_head, i)]));
                    weights.iter().zip(values).map(|(w, value)| w * value).sum::<f64>() / sum
                };
                (0..head_dim).map(mixed).collect::<Vec<f64>>()
            })
            .concat();
            let error = nmse(&together[row], &expected);
            assert!(error <= MAX_NMSE, "{name}: squared error {error:e} of row {row}");
            worst = worst.max(error);
        }
    }
    worst
}

#[test]
#[ignore = "needs a GPU"]
fn normed_sums_are_those_of_f64() {
    const N: usize = 5;
    const SCALE: f32 = 0.22;
    let (gpu, random) = (Gpu::open(), &mut fresh("normed sums"));
    let kernel = gpu.function("rows", "add_normed");
    for k in [31, 64, 200, 2304] {
        let (delta, x) = (Rows::random(&gpu, N, k, random), activations(N * k, random));
        for norm in [KIGO_NORM_RMS, KIGO_NORM_LAYER] {
            let out = gpu.floats(&padded(&x, k));
            let magnitudes = gpu.words(&[0, 0, 0, 0, 0, POISON]);
            let params = KigoAddNormed {
                x: out.address(),
                delta: delta.x.address(),
                norm_weight: delta.norm_weight.address(),
                magnitudes: magnitudes.address(),
                k: k as u32,
                stride: stride(k) as u32,
                norm,
                eps: EPS,
                scale: SCALE,
                pad: 0,
            };
            gpu.launch_rows(&kernel, N, 0, &params);
            let (out, magnitudes) = (gpu.read_floats(&out), gpu.read_words(&magnitudes));
            let normed = normed(&delta.host, k, norm, &delta.weight, &vec![0.0; k]);
            for (row, out) in out.chunks_exact(stride(k)).enumerate() {
                let sums = x[row * k..][..k].iter().zip(&normed[row * k..][..k]);
                let expected: Vec<f64> = sums.map(|(&x, normed)| f64::from(x) + f64::from(SCALE) * normed).collect();
                let error = nmse(&out[..k], &expected);
                assert!(error <= 1e-12, "[{k}], norm {norm}: squared error {error:e} of row {row}");
                assert!(out[k..].iter().all(|&x| x == 0.0), "[{k}], norm {norm}: row {row} beyond its end");
                assert_eq!(magnitudes[row], magnitude(&out[..k]), "[{k}], norm {norm}: magnitude of row {row}");
            }
            assert_eq!(magnitudes[N], POISON);
        }
    }
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
fn every_element_of_a_head_has_one_place() {
    for (head_dim, n_rot, halves) in [(20, 20, true), (48, 24, false), (80, 40, true), (128, 128, true)] {
        let places = head_places(head_dim, n_rot, halves);
        let n = head_dim.div_ceil(16) * 16;
        let sorted = |mut all: Vec<usize>| {
            all.sort();
            all
        };
        assert_eq!(sorted(places.iter().map(|place| place.0).collect()), (0..n).collect::<Vec<_>>());
        assert_eq!(sorted(places.iter().map(|place| place.1).collect()), (0..n).collect::<Vec<_>>());
        assert_eq!(places.iter().filter(|place| place.2).count(), n_rot);
    }
}

#[test]
fn halves_are_cut_to_what_they_can_say() {
    let random = &mut Random(3);
    for _ in 0..1000 {
        let mut again = Random(random.0);
        let (value, found) = (again.uniform(), widened(half(random, 1.0)));
        assert!((f64::from(value) - found).abs() <= (f64::from(value).abs() / 1024.0).max(7e-5), "{value}: {found}");
    }
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
