//! Rows of the residual stream: from a table, and the norms of what is added to them.

use super::products::{Rows, shapes};
use super::*;

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
#[ignore = "needs a GPU"]
fn few_rows_are_prepared_as_any_are() {
    let (gpu, random) = (Gpu::open(), &mut fresh("prep"));
    let (few, few_normed) = (gpu.function("prep_few", "prep_few"), gpu.function("prep_few", "prep_few_normed"));
    for k in [37, 64, 1000, 1024, 2048, 4096, 4100, 8192] {
        let rows = Rows::random(&gpu, 8, k, random);
        for (n, norm, bf16) in [
            (8, KIGO_NORM_NONE, 0),
            (8, KIGO_NORM_RMS, 0),
            (3, KIGO_NORM_NONE, 1),
            (3, KIGO_NORM_RMS, 1),
            (5, KIGO_NORM_NONE, 0),
            (5, KIGO_NORM_RMS, 0),
        ] {
            // Five of them are other rows than the first five, and one is none.
            let select = gpu.words(&[7, 2, KIGO_NO_ROW, 0, 4]);
            let mut input = rows.input(0, n, norm);
            input.select = if n == 5 { select.address() } else { 0 };
            let (quads, shared_bytes) = (input.stride / 4, if norm == KIGO_NORM_NONE { 0 } else { input.stride * 4 });
            let written = |kernel: &Function, blocks: u32, threads: u32| {
                let records = gpu.filled(input.stride as usize / 64 * activation_bytes(bf16 == 1), 0xff);
                let factors = gpu.filled(8 * 4, 0xff);
                let (to, of) = (records.address(), factors.address());
                let params =
                    KigoPrep { input, records: to, factors: of, bf16, order: KIGO_ORDER_FRAGMENTS, is_rest: 0, pad: 0 };
                gpu.launch(kernel, [8, blocks, 1], threads, shared_bytes, &params);
                gpu.synchronize();
                (gpu.read_words(&records), gpu.read_words(&factors))
            };
            let expected = written(gpu.prep(), 1, THREADS);
            let found = if norm == KIGO_NORM_NONE {
                written(&few, quads.div_ceil(THREADS), THREADS)
            } else {
                written(&few_normed, 1, quads.next_multiple_of(32).clamp(THREADS, 1024))
            };
            assert!(found == expected, "{n} rows of {k} columns, norm {norm}, bf16 {bf16}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn normed_rows_are_prepared_as_any_are() {
    let (gpu, random) = (Gpu::open(), &mut fresh("normed"));
    let kernel = gpu.function("prep", "prep_normed");
    for k in [37, 64, 1000, 1536, 2048, 2880, 4096, 5120, 8192] {
        let rows = Rows::random(&gpu, 29, k, random);
        for n in [5, 24, 29] {
            // Five of them are other rows than the first five, and one is none.
            let select = gpu.words(&[7, 2, KIGO_NO_ROW, 0, 4]);
            let mut input = rows.input(0, n, KIGO_NORM_RMS);
            input.select = if n == 5 { select.address() } else { 0 };
            let n_rows = n.next_multiple_of(8);
            let written = |kernel: &Function, blocks: usize, shared_bytes: u32| {
                let records = gpu.filled(n_rows / 8 * input.stride as usize / 64 * activation_bytes(false), 0xff);
                let factors = gpu.filled(n_rows * 4, 0xff);
                let (to, of) = (records.address(), factors.address());
                let params = KigoPrep {
                    input,
                    records: to,
                    factors: of,
                    bf16: 0,
                    order: KIGO_ORDER_SWIZZLED,
                    is_rest: 0,
                    pad: 0,
                };
                gpu.launch(kernel, [blocks as u32, 1, 1], THREADS, shared_bytes, &params);
                gpu.synchronize();
                (gpu.read_words(&records), gpu.read_words(&factors))
            };
            let expected = written(gpu.prep(), n_rows, input.stride * 4);
            assert!(written(&kernel, n_rows, 0) == expected, "{n} rows of {k} columns");
        }
    }
}
