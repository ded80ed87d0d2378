//! Queries, keys and values: from a product to their places.

use super::products::{Rows, cards, multiply, no_product};
use super::*;

/// Bits of a half that nobody wrote.
pub(super) const HALF_POISON: u16 = 0xffff;

pub(super) const PAGE: usize = KIGO_PAGE as usize;

/// Width of a head in q and the cache.
pub(super) fn head_width(head_dim: usize) -> usize {
    [32, 64, 96, 128, 192, 256].into_iter().find(|width| *width >= head_dim).unwrap()
}

/// What a half stands for.
pub(super) fn widened(bits: u16) -> f64 {
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
    // The first row is not the first of a page; layer 0 of the pages stays as it is.
    const FIRST: usize = 57;
    const LAYER: usize = 1;
    const Q_SCALE: f32 = 0.25;
    // Entries of the tables of another group of layers, and turns of another kind of rope before and after this one's.
    const TABLE: usize = 3;
    const OTHERS: usize = 5;
    let Heads { head_dim, n_rot, halves, has_bias, turns: has_turns, norm } = heads;
    // Columns enough that the product of many rows is split along them.
    let k = if n > 32 && types[0] == QuantType::F16 { 2048 } else { 256 };
    let (dp, per_head) = (head_width(head_dim), head_dim.div_ceil(16));
    let rows = Rows::random(gpu, n, k, random);
    let x = rows.normed(KIGO_NORM_RMS);
    let turns: Vec<f32> = (0..n * n_rot).map(|_| random.uniform()).collect();
    let parts: Vec<Matrix> =
        (0..3).map(|part| Matrix::random(types[part], N_HEAD[part] * head_dim, k, random)).collect();
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
