//! Attention of heads of all widths, with windows, soft caps and sinks.

use std::ops::Range;

use super::heads::{HALF_POISON, PAGE, head_width, widened};
use super::products::{no_product, prepared};
use super::*;
use kigo::backend::cuda::blocks::AttentionBlocks;

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

/// Little enough for the sanitizers.
#[test]
#[ignore = "needs a GPU"]
fn parts_of_chunks_are_joined_to_the_same_bits() {
    let (gpu, random) = (Gpu::open(), &mut fresh("parts"));
    for (head_dim, group) in [(64, 3), (80, 1), (128, 4)] {
        let error = check_attention(&gpu, head_dim, group, Scores { window: 1000, softcap: 50.0, sinks: true }, random);
        assert!(error <= MAX_NMSE, "heads of {head_dim}: squared error {error:e}");
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

/// Which kernel attends: `attn_decode` with so many splits, or `attn_decode_lone` where there is one, or one for many rows.
#[derive(Debug, Clone, Copy)]
enum How {
    Decode(u32),
    Lone(u32),
    Prefill,
    Flash,
    /// With more tiles, the last of which is of another sequence with the same pages.
    FlashOfTiles,
    /// The same, so many chunks a turn, and of these so many a block.
    InParts(usize, usize),
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

    let card = Card::new(gpu.context().info());
    let blocks = card.attention(dp, group);
    decode.set_max_shared_bytes(blocks.shared_bytes).unwrap();
    let lone = card.lone_attention(dp, group).map(|blocks| (kernel("decode_lone"), blocks));
    if let Some((lone, blocks)) = &lone {
        lone.set_max_shared_bytes(blocks.shared_bytes).unwrap();
    }
    let flash = card.flashes(dp).then(|| gpu.function("flash", &format!("attn_flash_{dp}")));
    let of_parts = |name| gpu.function("flash", &format!("attn_{name}_{dp}"));
    let in_parts = card.flashes(dp).then(|| (of_parts("flash_parts"), of_parts("join")));
    for kernel in flash.iter().chain(in_parts.iter().map(|(kernel, _)| kernel)) {
        kernel.set_max_shared_bytes(KIGO_FLASH_SHARED).unwrap();
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
        let table: Vec<u8> = table.into_iter().flat_map(u64::to_le_bytes).collect();
        let [table, other_table] = [gpu.upload(&table), gpu.upload(&table)];
        let mut q = vec![0; n * n_head * dp];
        for (row, head) in (0..n).flat_map(|row| (0..n_head).map(move |head| (row, head))) {
            q[q_at(row, head)..][..head_dim].fill_with(|| half(random, q_scale));
        }
        let q_buffer = gpu.halves(&q);
        let n_of_other = n / 3;
        let row = |i: usize, n_of_other: usize| {
            let table = if i < n - n_of_other { &table } else { &other_table };
            KigoRow { token: 0, position: (first + i) as u32, pages: table.address(), slot: 0, pad: 0 }
        };
        let rows = gpu.structs(&(0..n).map(|i| row(i, 0)).collect::<Vec<_>>());
        let rows_of_two = gpu.structs(&(0..n).map(|i| row(i, n_of_other)).collect::<Vec<_>>());
        let tile = |range: Range<usize>| KigoTile { first_row: range.start as u32, n_rows: range.len() as u32 };
        let tile_of_all = gpu.structs(&[tile(0..n)]);
        let middle = n.div_ceil(4);
        let cut = [0..middle, middle..n - n_of_other, n - n_of_other..n].into_iter().filter(|rows| !rows.is_empty());
        let cut: Vec<KigoTile> = cut.map(tile).collect();
        let tiles = gpu.structs(&cut);
        let counters = gpu.filled(n_blocks * 4, 0);
        let width = stride(n_head * head_dim) + 64;

        let run = |first_row: usize, n: usize, how: How| -> Vec<Vec<f32>> {
            let hands_on = match (how, &flash) {
                (How::Decode(_) | How::Lone(_), _) => false,
                (How::Flash | How::FlashOfTiles | How::InParts(..), Some(_)) => [64, 128].contains(&head_dim),
                _ => head_dim == 64,
            };
            let operands = gpu.filled(n.next_multiple_of(8) * width * 2, 0xff);
            let out = gpu.floats(&poisoned((n + 1) * width));
            let mut magnitudes = vec![0; n];
            magnitudes.push(POISON);
            let magnitudes = gpu.words(&magnitudes);
            let (rows, tiles, n_tiles) = match how {
                How::FlashOfTiles | How::InParts(..) => (&rows_of_two, &tiles, cut.len() as u32),
                _ => (&rows, &tile_of_all, 1),
            };
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
                splits: if let How::Decode(splits) | How::Lone(splits) = how { splits } else { 1 },
                out_stride: width as u32,
                n_tiles,
                n: n as u32,
                pad: 0,
            };
            let alone = |kernel, blocks: &AttentionBlocks, splits| {
                let grid = [n_blocks as u32, n as u32, splits];
                gpu.launch(kernel, grid, blocks.threads, blocks.shared_bytes, &params);
            };
            let parts = |of_turn: usize, of_part: usize| {
                let (kernel, join) = in_parts.as_ref().unwrap();
                let n_chunks = n_pages.div_ceil(8);
                let partials = gpu.filled((of_turn + 1) * n_head * n * (dp + 2) * 4, 0xff);
                for first in (0..n_chunks).step_by(of_turn) {
                    let turn = u32::from(first == 0) * KIGO_FIRST_TURN
                        + u32::from(first + of_turn >= n_chunks) * KIGO_LAST_TURN;
                    let params = KigoAttentionParts {
                        attention: params,
                        partials: partials.address(),
                        first_chunk: first as u32,
                        n_chunks: of_turn.min(n_chunks - first) as u32,
                        of_part: of_part as u32,
                        turn,
                    };
                    gpu.launch(kernel, [3, 1, 1], 384, KIGO_FLASH_SHARED, &params);
                    gpu.launch(join, [(n * n_head).div_ceil(4) as u32, 1, 1], 128, 0, &params);
                }
            };
            match (how, &flash) {
                (How::Decode(splits), _) => alone(&decode, &blocks, splits),
                (How::InParts(of_turn, of_part), Some(_)) => parts(of_turn, of_part),
                (How::Lone(splits), _) => {
                    let (kernel, blocks) =
                        lone.as_ref().map_or((&decode, &blocks), |(kernel, blocks)| (kernel, blocks));
                    alone(kernel, blocks, splits);
                }
                // Fewer blocks than pairs of heads, so that a block has several.
                (How::Flash | How::FlashOfTiles, Some(flash)) => {
                    gpu.launch(flash, [2, 1, 1], 384, KIGO_FLASH_SHARED, &params);
                }
                _ => gpu.launch(&prefill, [n_tiles, n_head as u32, 1], 128, prefill_shared, &params),
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
        let in_parts =
            [(4, 1), (4, 3), (1, 1), (3, 2), (2, 1)].map(|(of_turn, of_part)| How::InParts(of_turn, of_part));
        for how in [How::Flash, How::FlashOfTiles].into_iter().chain(in_parts) {
            let same = run(0, n, how).iter().map(|row| bits(row)).eq(together.iter().map(|row| bits(row)));
            assert!(same, "{name}: other bits by {how:?} than in attn_prefill");
        }
        let mut checked = vec![0, n / 2, n - 1];
        checked.dedup();
        for row in checked {
            for how in [1, 3, 64].into_iter().flat_map(|splits| [How::Decode(splits), How::Lone(splits)]) {
                let alone = run(row, 1, how).remove(0);
                let same = bits(&alone) == bits(&together[row]);
                assert!(same, "{name}: other bits of row {row} by {how:?} than in prefill");
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
fn halves_are_cut_to_what_they_can_say() {
    let random = &mut Random(3);
    for _ in 0..1000 {
        let mut again = Random(random.0);
        let (value, found) = (again.uniform(), widened(half(random, 1.0)));
        assert!((f64::from(value) - found).abs() <= (f64::from(value).abs() / 1024.0).max(7e-5), "{value}: {found}");
    }
}
