//! Products of slots with the matrices of their experts.

use kigo::model::Experts;

use super::products::{Rows, no_product, shapes};
use super::*;

/// Elements of a row of the result that belong to nobody.
const GAP: usize = 13;

/// The matrices of all experts, each with tiles of its own.
struct Mixture {
    matrices: Vec<Matrix>,
    weights: DeviceBuffer,
    weight_scale: f32,
}

impl Mixture {
    /// Pairs of matrices whose tiles stand by turns, if `gated`.
    fn random(
        gpu: &Gpu,
        quant_type: QuantType,
        n_expert: usize,
        gated: bool,
        (rows, k): (usize, usize),
        random: &mut Random,
    ) -> Mixture {
        let each = if gated { 2 } else { 1 };
        let pool = blocks(quant_type, random, is_moderate);
        let matrix = |_| Matrix { quant_type, rows, cols: k, data: tensor(quant_type, rows * k, &pool, random) };
        let matrices: Vec<Matrix> = (0..n_expert * each).map(matrix).collect();
        let n_tiles = matrices[0].n_tiles();
        let place = |(i, matrix): (usize, &Matrix)| matrix.place(each, i / each * each * n_tiles + i % each);
        let parts: Vec<_> = matrices.iter().enumerate().map(|part| (part.1, place(part))).collect();
        let (weights, weight_scale) = gpu.repack(&parts, matrices.len() * n_tiles);
        Mixture { matrices, weights, weight_scale }
    }
}

/// The experts of each slot, different ones for each row; the first is used by all rows.
fn choose(experts: Experts, n: usize, random: &mut Random) -> Vec<u32> {
    let row = |_| {
        let mut others: Vec<u32> = (1..experts.n_expert as u32).collect();
        for i in (1..others.len()).rev() {
            others.swap(i, random.next() as usize % (i + 1));
        }
        let mut chosen = [&[0], &others[..experts.n_expert_used - 1]].concat();
        let at = random.next() as usize % chosen.len();
        chosen.swap(0, at);
        chosen
    };
    (0..n).flat_map(row).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn slots_in_groups_have_the_bits_of_single_ones() {
    let (gpu, random) = (Gpu::open(), &mut fresh("experts"));
    let mixtures = [((5, 2), 3), ((32, 4), 8), ((3, 3), 30), ((128, 8), 16), ((40, 1), 20), ((12, 4), 64)];
    let mut worst: f64 = 0.0;
    for (i, &quant_type) in QuantType::ALL.iter().enumerate() {
        for (j, shape) in shapes(quant_type).into_iter().enumerate() {
            let ((n_expert, n_expert_used), n) = mixtures[(i + j) % mixtures.len()];
            // Many experts are narrow.
            let shape = if n_expert > 12 { shapes(quant_type)[j % 2] } else { shape };
            for gated in [false, true] {
                let experts = Experts { n_expert, n_expert_used };
                worst = worst.max(check_groups(&gpu, quant_type, experts, n, shape, gated, random));
            }
        }
    }
    println!("squared error at most {worst:.1e}");
}

/// Of gate and up, which take a row for each of its slots, or of down, which take slots; the squared error.
fn check_groups(
    gpu: &Gpu,
    quant_type: QuantType,
    experts: Experts,
    n: usize,
    (n_rows, k): (usize, usize),
    gated: bool,
    random: &mut Random,
) -> f64 {
    let mixture = Mixture::random(gpu, quant_type, experts.n_expert, gated, (n_rows, k), random);
    let n_slots = n * experts.n_expert_used;
    let (share, norm) = if gated { (experts.n_expert_used, KIGO_NORM_RMS) } else { (1, KIGO_NORM_NONE) };
    let rows = Rows::random(gpu, n_slots / share, k, random);
    let chosen = choose(experts, n, random);
    let on_device = gpu.words(&chosen);
    let bias: Vec<Vec<f32>> = (0..2).map(|_| activations(experts.n_expert * n_rows, random)).collect();
    let biases: Vec<DeviceBuffer> = bias.iter().map(|bias| gpu.floats(bias)).collect();
    let card = Card::new(gpu.context().info());
    let params = KigoMatmul {
        input: rows.input(0, rows.n, norm),
        weights: mixture.weights.address(),
        weight_scale: mixture.weight_scale,
        bias: [biases[0].address(), if gated { biases[1].address() } else { 0 }, 0],
        n: n_slots as u32,
        n_rows: n_rows as u32,
        n_tiles: (mixture.matrices[0].n_tiles() * if gated { 2 } else { 1 }) as u32,
        n_records: mixture.matrices[0].n_records() as u32,
        out_stride: (n_rows + GAP) as u32,
        kind: if gated { KIGO_GATED } else { KIGO_STORE },
        experts: on_device.address(),
        share: share as u32,
        ..no_product()
    };
    let name = format!("{} [{n_rows}, {k}], {experts:?}, {n} rows", quant_type.name());

    // Each slot with the matrix of its expert.
    let job = Job {
        quant: quant_type,
        n: 1,
        k,
        has_norm: gated,
        n_tiles: params.n_tiles,
        gated,
        copies: n_slots as u32,
        each: 1,
    };
    let run = |blocks: Blocks, params: KigoMatmul| {
        let (out, magnitudes) = (gpu.floats(&poisoned((n_slots + 1) * (n_rows + GAP))), vec![0; n_slots + 1]);
        let magnitudes = gpu.words(&magnitudes);
        let params = KigoMatmul {
            out: out.address(),
            magnitudes: magnitudes.address(),
            n_slots: blocks.n_slots,
            sum_columns: blocks.sum_columns,
            ..params
        };
        let kernel = gpu.types().of(quant_type).unwrap().of(blocks.kernel);
        gpu.launch(kernel, blocks.grid, THREADS, blocks.shared_bytes, &params);
        gpu.synchronize();
        let (out, magnitudes) = (gpu.read_floats(&out), gpu.read_words(&magnitudes));
        let mut found = Vec::new();
        for (slot, out) in out.chunks_exact(n_rows + GAP).enumerate() {
            let (own, gap) = out.split_at(if slot < n_slots { n_rows } else { 0 });
            assert!(gap.iter().all(|x| x.to_bits() == POISON), "{name}: slot {slot} is written beyond its end");
            assert_eq!(magnitudes[slot], magnitude(own), "{name}: magnitude of slot {slot}");
            found.extend_from_slice(own);
        }
        found
    };
    let single = run(card.blocks(&job), params);

    let x = rows.normed(norm);
    let expert = |slot: usize| chosen[slot] as usize;
    let product = |matrix: &Matrix, part: usize, slot: usize| -> Vec<f64> {
        let product = matrix.product_f64(&x[slot / share * k..][..k]);
        product.iter().zip(&bias[part][expert(slot) * n_rows..]).map(|(x, &bias)| x + f64::from(bias)).collect()
    };
    let expected = |slot: usize| {
        if !gated {
            return product(&mixture.matrices[expert(slot)], 0, slot);
        }
        let [gate, up] = [0, 1].map(|part| product(&mixture.matrices[2 * expert(slot) + part], part, slot));
        gate.iter().zip(&up).map(|(&gate, up)| activated(gate, KIGO_SILU) * up).collect()
    };
    // Few of them, since that of the host takes long.
    let some: Vec<usize> = (0..n_slots).step_by(n_slots.div_ceil(12)).collect();
    let found: Vec<f32> = some.iter().flat_map(|slot| &single[slot * n_rows..][..n_rows]).copied().collect();
    let error = nmse(&found, &some.iter().flat_map(|&slot| expected(slot)).collect::<Vec<_>>());
    assert!(error <= MAX_QUANTISED, "{name}: squared error {error:e}");

    let n_prepared = rows.n.next_multiple_of(8);
    let bf16 = wants_bf16(quant_type);
    let records = gpu.filled(n_prepared / 8 * stride(k) / 64 * activation_bytes(bf16), 0xff);
    let factors = gpu.filled(n_prepared * 4, 0xff);
    let prepared = KigoPrep {
        input: params.input,
        records: records.address(),
        factors: factors.address(),
        bf16: u32::from(bf16),
        order: KIGO_ORDER_FRAGMENTS,
        is_rest: 0,
        pad: 0,
    };
    let shared_bytes = if gated { params.input.stride * 4 } else { 0 };
    gpu.launch_rows(gpu.prep(), n_prepared, shared_bytes, &prepared);
    let params = KigoMatmul { records: records.address(), factors: factors.address(), ..params };
    // As many blocks as there may be, and so few that they share multiprocessors and have several items.
    for card in [card, Card { n_sm: 3, ..card }] {
        let blocks = card.grouped(&job, n_slots as u32, experts.n_expert as u32).unwrap();
        assert!(bits(&run(blocks, params)) == bits(&single), "{name}: other bits in groups, {blocks:?}");
    }
    error
}
