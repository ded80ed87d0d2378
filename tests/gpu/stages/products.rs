//! Products of every type, kind and number of rows.

use super::*;

/// The device's card; the same with so few multiprocessors that blocks share one; one that is not of sm_90a; the smallest card.
pub(super) fn cards(gpu: &Gpu) -> [Card; 4] {
    let card = Card::new(gpu.context().info());
    let old = Card { sm_90a: false, ..card };
    [card, Card { n_sm: 1, ..card }, old, Card { block_shared: 99 << 10, sm_shared: 100 << 10, crowds: false, ..old }]
}

/// Queues a product as on `card`, after what prepares its rows where they are not handed on. `params` lacks only what depends on that.
pub(super) fn multiply(gpu: &Gpu, card: &Card, quant: QuantType, mut params: KigoMatmul) {
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
    if blocks.kernel == Kernel::One || params.is_handed == 1 {
        return gpu.launch(kernels.of(blocks.kernel), grid, blocks.kernel.threads(quant), blocks.shared_bytes, &params);
    }
    // The kernels of up to 32 rows read the records of 32, whatever is in those beyond n.
    let n_groups = n.div_ceil(8).max(4);
    let records = gpu.filled(n_groups * input.stride as usize / 64 * activation_bytes(true), 0xff);
    let order = blocks.kernel.order();
    let factors = gpu.filled(n_groups * 8 * 4, 0xff);
    let splits = blocks.kernel == Kernel::PrefillSplit;
    let n_late = if splits { job.sums() as usize } else { grid[0] as usize * KIGO_LATE as usize };
    let late = gpu.filled(n_late * 4, 0xff);
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
    gpu.launch(kernels.of(blocks.kernel), grid, blocks.kernel.threads(quant), blocks.shared_bytes, &params);
    if splits {
        gpu.launch(&gpu.function("slices", "add_slices"), Card::adders(params.n, params.n_tiles), THREADS, 0, &params);
    }
    gpu.synchronize();
}

/// A product of nothing.
pub(super) fn no_product() -> KigoMatmul {
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
        out_norm: 0,
        out_squares: 0,
        squares: 0,
        is_handed: 0,
        pad: 0,
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

pub(super) const NO_HEADS: KigoQkv = KigoQkv {
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
pub(super) struct Rows {
    pub n: usize,
    pub k: usize,
    pub host: Vec<f32>,
    pub x: DeviceBuffer,
    pub magnitudes: DeviceBuffer,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub norm_weight: DeviceBuffer,
    pub norm_bias: DeviceBuffer,
}

impl Rows {
    pub fn random(gpu: &Gpu, n: usize, k: usize, random: &mut Random) -> Rows {
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
    pub fn input(&self, first: usize, n: usize, norm: u32) -> KigoInput {
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

    pub fn normed(&self, norm: u32) -> Vec<f64> {
        normed(&self.host, self.k, norm, &self.weight, &self.bias)
    }
}

/// Rows and columns of matrices: odd ones of the type's own.
pub(super) fn shapes(quant_type: QuantType) -> [(usize, usize); 3] {
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
                    let same = bits(&run(card, first, n).0) == bits(&all[first * n_rows..][..n * n_rows]);
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

/// Products that sm_90a splits along k have the bits of the others. Of 19 records there are seven slices, so that blocks which have a
/// slice each may have none; 56 tiles are not whole pairs of blocks.
#[test]
#[ignore = "needs a GPU"]
fn slices_of_products_are_added_as_elsewhere() {
    let (gpu, random) = (Gpu::open(), &mut fresh("slices"));
    let [card, _, old, _] = cards(&gpu);
    let shapes =
        [(QuantType::Q4_K, 19 * 256), (QuantType::Q8_0, 4096), (QuantType::BF16, 4096), (QuantType::F16, 4096)];
    for (quant, k) in shapes {
        for (n_rows, n, kind) in [
            (896, 128, KIGO_STORE),
            (896, 33, KIGO_ADD),
            (250, 150, KIGO_ADD),
            (448, 60, KIGO_GATED),
            (448, 128, KIGO_GATED),
        ] {
            let gated = kind == KIGO_GATED;
            let matrices = [(); 2].map(|()| Matrix::random(quant, n_rows, k, random));
            let sides: Vec<_> = (0..if gated { 2 } else { 1 }).collect();
            let placed: Vec<_> = sides.iter().map(|&i| (&matrices[i], matrices[i].place(sides.len(), i))).collect();
            let n_tiles = sides.len() * matrices[0].n_tiles();
            let weights = gpu.repack(&placed, n_tiles);
            let rows = Rows::random(&gpu, n, k, random);
            let before = activations(n * n_rows, random);
            let run = |card: &Card| {
                let (out, magnitudes) = (gpu.floats(&before), gpu.words(&vec![0; n]));
                let params = KigoMatmul {
                    input: rows.input(0, n, KIGO_NORM_NONE),
                    weights: weights.0.address(),
                    weight_scale: weights.1,
                    out: out.address(),
                    magnitudes: magnitudes.address(),
                    n: n as u32,
                    n_rows: n_rows as u32,
                    n_tiles: n_tiles as u32,
                    n_records: matrices[0].n_records() as u32,
                    out_stride: n_rows as u32,
                    kind,
                    ..no_product()
                };
                multiply(&gpu, card, quant, params);
                (gpu.read_floats(&out), gpu.read_words(&magnitudes))
            };
            let (found, expected) = (run(&card), run(&old));
            let name = format!("{} [{n_rows}, {k}], {n} rows, kind {kind}", quant.name());
            assert!(bits(&found.0) == bits(&expected.0) && found.1 == expected.1, "{name}: other bits");
            if kind == KIGO_STORE {
                let error = nmse(&found.0, &matrices[0].product_f64(&rows.normed(KIGO_NORM_NONE)));
                assert!(error <= MAX_QUANTISED, "{name}: squared error {error:e}");
            }
        }
    }
}

/// What `prep` writes of rows `x` `[n, k]` in the order of sm_90a, a word for two halves, and the factors: of all of them, or in what
/// `operands` has only of those that are multiplied with something.
pub(super) fn prepared(gpu: &Gpu, input: KigoInput, operands: Option<&DeviceBuffer>) -> (Vec<u32>, Vec<u32>) {
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

/// `n` rows of whole units, as they are.
fn plain_rows(n: usize, x: &DeviceBuffer, magnitudes: &DeviceBuffer, k: usize) -> KigoInput {
    KigoInput {
        x: x.address(),
        magnitudes: magnitudes.address(),
        n: n as u32,
        k: k as u32,
        stride: k as u32,
        ..no_product().input
    }
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
            let params = KigoMatmul {
                input: plain_rows(n, &x, &of_x, k),
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
                let of_out = plain_rows(n, &out, &magnitudes, n_ff);
                let (found, expected) = (prepared(&gpu, of_out, Some(&operands)), prepared(&gpu, of_out, None));
                let n_scaled = expected.1.iter().take(n).filter(|factor| f32::from_bits(**factor) != 1.0).count();
                assert!(n_scaled > 0 && n_scaled < n, "{n_scaled} of {n} rows are multiplied");
                assert!(found == expected, "{} [{n_ff}, {k}], {n} rows, activation {activation}", quant_type.name());
            }
        }
    }
}

/// What a product of few rows hands on to the next gives the results that `prep` would give: of gate and up, and of what is added to rows
/// that are normed next.
#[test]
#[ignore = "needs a GPU"]
fn few_rows_are_handed_on_as_prep_would() {
    const WIDTHS: (usize, usize, usize) = (512, 832, 100);
    let (gpu, random) = (Gpu::open(), &mut fresh("handed"));
    let (k, width, n_rows) = WIDTHS;
    for (quant, next) in
        [(QuantType::F16, QuantType::Q8_0), (QuantType::Q4_K, QuantType::F16), (QuantType::BF16, QuantType::Q4_0)]
    {
        let [gate, up] = [(); 2].map(|()| Matrix::random(quant, width, k, random));
        let both = gpu.repack(&[(&gate, gate.place(2, 0)), (&up, up.place(2, 1))], 2 * gate.n_tiles());
        let single = gpu.repack(&[(&gate, gate.place(1, 0))], gate.n_tiles());
        let behind = Matrix::random(next, n_rows, width, random);
        let of_behind = gpu.repack(&[(&behind, behind.place(1, 0))], behind.n_tiles());
        let weight: Vec<f32> = (0..width).map(|_| 1.0 + 0.5 * random.uniform()).collect();
        let weight = gpu.floats(&weight);
        for (n, kind, any_size) in [2, 3, 5, 7, 8].into_iter().flat_map(|n| {
            [KIGO_GATED, KIGO_ADD].into_iter().flat_map(move |kind| [false, true].map(|any_size| (n, kind, any_size)))
        }) {
            let name =
                format!("{} before {}, {n} rows, kind {kind}, of any size: {any_size}", quant.name(), next.name());
            // Rows well within halves, or of all magnitudes.
            let size = |row: usize| if any_size { 10f32.powi(row as i32 % 9 - 4) } else { 1.0 };
            let of_size = |values: Vec<f32>, width: usize| -> Vec<f32> {
                values.into_iter().enumerate().map(|(i, x)| x * size(i / width)).collect()
            };
            let x = of_size(activations(n * k, random), k);
            let before = of_size(activations(n * width, random), width);
            let of_x = gpu.words(&x.chunks_exact(k).map(magnitude).collect::<Vec<_>>());
            let x = gpu.floats(&x);
            for card in &cards(&gpu) {
                let (out, magnitudes) = (gpu.floats(&before), gpu.words(&vec![0; n]));
                let operands = gpu.filled(8 * width * 2, 0xff);
                let squares = gpu.filled(n * width / TILE_ROWS * 4, 0xff);
                let (is_gated, is_normed) = (kind == KIGO_GATED, kind == KIGO_ADD);
                let (weights, weight_scale) =
                    if is_gated { (both.0.address(), both.1) } else { (single.0.address(), single.1) };
                let params = KigoMatmul {
                    input: plain_rows(n, &x, &of_x, k),
                    weights,
                    weight_scale,
                    out: out.address(),
                    magnitudes: magnitudes.address(),
                    operands: operands.address(),
                    out_norm: if is_normed { weight.address() } else { 0 },
                    out_squares: if is_normed { squares.address() } else { 0 },
                    n: n as u32,
                    n_rows: width as u32,
                    n_tiles: (gate.n_tiles() * if is_gated { 2 } else { 1 }) as u32,
                    n_records: gate.n_records() as u32,
                    out_stride: width as u32,
                    kind,
                    scale: 0.5,
                    ..no_product()
                };
                multiply(&gpu, card, quant, params);
                let of_out = KigoInput {
                    norm: if is_normed { KIGO_NORM_RMS } else { KIGO_NORM_NONE },
                    norm_weight: if is_normed { weight.address() } else { 0 },
                    ..plain_rows(n, &out, &magnitudes, width)
                };
                let results = |is_handed: u32| {
                    let results = gpu.floats(&poisoned(n * n_rows));
                    let params = KigoMatmul {
                        input: of_out,
                        records: operands.address(),
                        squares: if is_normed { squares.address() } else { 0 },
                        is_handed,
                        weights: of_behind.0.address(),
                        weight_scale: of_behind.1,
                        out: results.address(),
                        n: n as u32,
                        n_rows: n_rows as u32,
                        n_tiles: behind.n_tiles() as u32,
                        n_records: behind.n_records() as u32,
                        out_stride: n_rows as u32,
                        ..no_product()
                    };
                    multiply(&gpu, card, next, params);
                    gpu.synchronize();
                    gpu.read_floats(&results)
                };
                let (found, expected) = (results(1), results(0));
                assert!(found.iter().all(|x| x.is_finite()), "{name}");
                assert!(bits(&found) == bits(&expected), "{name}, {card:?}");
            }
        }
    }
}
