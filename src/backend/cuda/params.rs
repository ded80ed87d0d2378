//! Parameters of the kernels: Rust mirrors of `kernels/launch.h`, where they are described; a test holds one against the
//! other.
#![allow(missing_docs, reason = "kernels/launch.h describes the fields")]

use super::module::KernelParams;

/// Defines the structs, and a table of their layouts.
macro_rules! mirrors {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of `kernels/launch.h`.")]
            #[derive(Debug, Clone, Copy)]
            #[repr(C)]
            pub struct $name { $(pub $field: $type,)* }

            // SAFETY: the layout is that of launch.h, which a test shows; addresses are what who fills it in answers for.
            unsafe impl KernelParams for $name {}
        )*

        /// Name, size, and name, offset and size of each field.
        #[cfg(test)]
        const LAYOUTS: &[(&str, usize, &[(&str, usize, usize)])] = &[$((
            stringify!($name),
            size_of::<$name>(),
            &[$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$type>()),)*],
        ),)*];
    };
}

/// Defines the constants, and a table of them.
macro_rules! constants {
    ($($name:ident = $value:literal,)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of `kernels/launch.h`.")]
            pub const $name: u32 = $value;
        )*

        #[cfg(test)]
        const CONSTANTS: &[(&str, u32)] = &[$((stringify!($name), $value),)*];
    };
}

constants! {
    KIGO_PAGE = 64,
    KIGO_PIECE = 3456,
    KIGO_ALL_BEFORE = 0x7FFF_0000,
    KIGO_NO_SLOT = 0xFFFF_FFFF,
    KIGO_SAMPLE_CHUNK = 128,
    KIGO_SAMPLE_SLICE = 2048,
    KIGO_SAMPLE_BINS = 1024,
    KIGO_SAMPLE_SORTED = 2048,
    KIGO_SAMPLE_OUTCOMES = 64,
    KIGO_SAMPLE_FAILED = 0x8000_0000,
    KIGO_NORM_NONE = 0,
    KIGO_NORM_RMS = 1,
    KIGO_NORM_LAYER = 2,
    KIGO_STORE = 0,
    KIGO_ADD = 1,
    KIGO_GATED = 2,
    KIGO_GATE = 3,
    KIGO_QKV = 4,
    KIGO_UNGATED = 5,
    KIGO_SILU = 0,
    KIGO_GELU = 1,
    KIGO_SILU_CLAMPED = 2,
    KIGO_MAX_EXPERTS_USED = 32,
    KIGO_NO_ROW = 0xFFFF_FFFF,
    KIGO_ROUTE_MOST_EXPERTS = 1024,
    KIGO_ORDER_FRAGMENTS = 0,
    KIGO_ORDER_SWIZZLED = 1,
    KIGO_ROWS_PLAIN = 0,
    KIGO_ROWS_HEADS = 1,
    KIGO_ROWS_ROPE = 2,
    KIGO_MAX_SLOTS = 16,
    KIGO_TYPE_F16 = 0,
    KIGO_TYPE_Q4_0 = 1,
    KIGO_TYPE_Q4_1 = 2,
    KIGO_TYPE_Q5_0 = 3,
    KIGO_TYPE_Q5_1 = 4,
    KIGO_TYPE_Q8_0 = 5,
    KIGO_TYPE_Q2_K = 6,
    KIGO_TYPE_Q3_K = 7,
    KIGO_TYPE_Q4_K = 8,
    KIGO_TYPE_Q5_K = 9,
    KIGO_TYPE_Q6_K = 10,
    KIGO_TYPE_IQ4_NL = 11,
    KIGO_TYPE_IQ4_XS = 12,
    KIGO_TYPE_MXFP4 = 13,
    KIGO_TYPE_BF16 = 14,
    KIGO_TYPE_F32 = 15,
    KIGO_STAGE_ATTENTION = 0,
    KIGO_STAGE_VALUES = 1,
    KIGO_STAGE_GATED = 2,
    KIGO_STAGE_UNGATED = 3,
    KIGO_STAGE_LOGITS = 4,
    KIGO_STAGE_ROUTER = 5,
    KIGO_STAGE_MIXED = 6,
    KIGO_TAKE_SAME = 0,
    KIGO_TAKE_RESIDUAL = 1,
    KIGO_TAKE_WORDS = 2,
    KIGO_TAKE_ROUTE = 3,
    KIGO_TAKE_EXPERTS = 4,
    KIGO_STEP_THREADS = 384,
    KIGO_STEP_SLOTS = 12,
    KIGO_NO_ATTENTION = 0xFFFF_FFFF,
    KIGO_STEP_PAGES = 64,
    KIGO_STEP_MOST_COLUMNS = 16384,
    KIGO_STEP_EXPERTS = 256,
    KIGO_STEP_APART = 4,
    KIGO_STEP_STATIC = 9216,
    KIGO_STEP_ROWS_STATIC = 6144,
    KIGO_STEP_ROWS = 8,
    KIGO_STEP_PAGES_AT_ONCE = 4,
    KIGO_STEP_MIX_TURNS = 2,
    KIGO_STEP_ATTENTION = 10112,
    KIGO_STEP_PAGES_ATTENTION = 896,
    KIGO_STEP_PAGE_PIECE = 2048,
    KIGO_STEP_PAGES_OF_ROUND = 8,
    KIGO_STEP_PAGES_PAD = 8,
    KIGO_FLASH_SHARED = 232448,
    KIGO_FIRST_TURN = 1,
    KIGO_LAST_TURN = 2,
    KIGO_LATE = 8192,
}

mirrors! {
    KigoRow {
        token: u32,
        position: u32,
        pages: u64,
        slot: u32,
        pad: u32,
    }

    KigoTile {
        first_row: u32,
        n_rows: u32,
    }

    KigoAttention {
        rows: u64,
        tiles: u64,
        q: u64,
        out: u64,
        magnitudes: u64,
        counters: u64,
        sinks: u64,
        operands: u64,
        n_head: u32,
        n_head_kv: u32,
        head_dim: u32,
        table: u32,
        layer: u32,
        areas: u32,
        before: u32,
        softcap: f32,
        softcap_rate: f32,
        splits: u32,
        out_stride: u32,
        n_tiles: u32,
        n: u32,
        pad: u32,
    }

    KigoAttentionParts {
        attention: KigoAttention,
        partials: u64,
        first_chunk: u32,
        n_chunks: u32,
        of_part: u32,
        turn: u32,
    }

    KigoInput {
        x: u64,
        norm_weight: u64,
        norm_bias: u64,
        magnitudes: u64,
        select: u64,
        n: u32,
        k: u32,
        stride: u32,
        norm: u32,
        eps: f32,
        pad: u32,
    }

    KigoPrep {
        input: KigoInput,
        records: u64,
        factors: u64,
        bf16: u32,
        order: u32,
        is_rest: u32,
        pad: u32,
    }

    KigoQkv {
        rows: u64,
        q: u64,
        turns: u64,
        turns_stride: u32,
        n_head: u32,
        n_head_kv: u32,
        head_dim: u32,
        dp: u32,
        n_rot: u32,
        halves: u32,
        table: u32,
        layer: u32,
        q_scale: f32,
    }

    KigoMatmul {
        input: KigoInput,
        records: u64,
        factors: u64,
        weights: u64,
        out: u64,
        bias: [u64; 3],
        magnitudes: u64,
        operands: u64,
        out_norm: u64,
        out_squares: u64,
        squares: u64,
        is_handed: u32,
        pad: u32,
        late: u64,
        n: u32,
        n_rows: u32,
        n_tiles: u32,
        n_records: u32,
        out_stride: u32,
        kind: u32,
        activation: u32,
        first_tile: u32,
        qkv: KigoQkv,
        scale: f32,
        softcap: f32,
        n_slots: u32,
        sum_columns: u32,
        n_wide: u32,
        narrow_parts: u32,
        experts: u64,
        starts: u64,
        share: u32,
        weight_scale: f32,
        n_expert: u32,
        is_told: u32,
    }

    KigoHeads {
        qkv: KigoQkv,
        x: u64,
        bias: [u64; 3],
        norm_weight: [u64; 2],
        stride: u32,
        whole: u32,
        eps: f32,
        pad: u32,
    }

    KigoAddNormed {
        x: u64,
        delta: u64,
        norm_weight: u64,
        magnitudes: u64,
        k: u32,
        stride: u32,
        norm: u32,
        eps: f32,
        scale: f32,
        pad: u32,
    }

    KigoRoute {
        logits: u64,
        experts: u64,
        weights: u64,
        places: u64,
        magnitudes: u64,
        n: u32,
        n_expert: u32,
        n_used: u32,
        n_products: u32,
    }

    KigoRouteFew {
        input: KigoInput,
        weights: u64,
        bias: u64,
        sums: u64,
        counters: u64,
        route: KigoRoute,
        n_tiles: u32,
        n_records: u32,
        weight_scale: f32,
        pad: u32,
    }

    KigoGroup {
        experts: u64,
        places: u64,
        rows: u64,
        starts: u64,
        n_slots: u32,
        n_used: u32,
        n_expert: u32,
        n_products: u32,
    }

    KigoMixExperts {
        products: u64,
        weights: u64,
        places: u64,
        out: u64,
        scale: f32,
        store: u32,
        n_used: u32,
        n_columns: u32,
        in_stride: u32,
        out_stride: u32,
    }

    KigoEmbed {
        rows: u64,
        weights: u64,
        x: u64,
        positions: u64,
        angles: u64,
        turns: u64,
        magnitudes: u64,
        x_magnitudes: u64,
        number: u64,
        n_magnitudes: u32,
        magnitudes_stride: u32,
        n_turns: u32,
        n_records: u32,
        k: u32,
        stride: u32,
        scale: f32,
        pad: u32,
    }

    KigoStage {
        weights: u64,
        input: u64,
        post_norm: u64,
        norm_weight: u64,
        out: u64,
        input_halves: u64,
        out_halves: u64,
        bias: [u64; 2],
        route_bias: u64,
        kind: u32,
        take: u32,
        quant: u32,
        weight_scale: f32,
        n_rows: u32,
        n_records: u32,
        record_bytes: u32,
        per_item: u32,
        n_items: u32,
        first_block: u32,
        k: u32,
        stride: u32,
        activation: u32,
        residual_scale: f32,
        eps: f32,
        scale: f32,
        softcap: f32,
        attention: u32,
        mixture: u32,
        n_expert: u32,
        n_used: u32,
        n_tiles: u32,
        per_expert: u32,
        n_slices: u32,
        n_turns: u32,
        out_stride: u32,
    }

    KigoStageAttention {
        attention: KigoAttention,
        heads: KigoHeads,
        input: u64,
        out: u64,
        out_halves: u64,
    }

    KigoStep {
        stages: u64,
        attentions: u64,
        number: u64,
        rows: u64,
        x: u64,
        logits: u64,
        partials: u64,
        n_stages: u32,
        stride: u32,
        n_slots: u32,
        slot_bytes: u32,
        under_way: u32,
        most_ahead: u32,
        pace: u32,
        delay: u32,
        set_bytes: u32,
        router_at: u32,
        n_rows: u32,
        partials_stride: u32,
        operands_stride: u32,
        sums_at: u32,
    }

    KigoRepack {
        source: u64,
        row_bytes: u64,
        out: u64,
        first_row: u32,
        n_source_rows: u32,
        k: u32,
        n_records: u32,
        first_tile: u32,
        n_tiles: u32,
        tile_step: u32,
        tile_offset: u32,
        order: u32,
        head_dim: u32,
        n_rot: u32,
        halves: u32,
    }

    KigoScales {
        weights: u64,
        n_records: u64,
        top: u64,
        shift: i32,
        pad: u32,
    }

    KigoRead {
        from: u64,
        n: u64,
        sink: u64,
    }

    KigoSampler {
        seed: u64,
        drawn: u64,
        window: u64,
        ln_min_p: f64,
        temperature: f32,
        top_p: f32,
        repeat_penalty: f32,
        top_k: u32,
        window_len: u32,
        n_tokens: u32,
        serial: u32,
        weigh: u32,
    }

    KigoSampled {
        outcome: u64,
        found: u64,
    }

    KigoSampleChunk {
        best: u64,
        worst: u32,
        pad: u32,
        window: [u32; KIGO_SAMPLE_CHUNK as usize / 32],
    }

    KigoSampleWork {
        best: u64,
        worst: u32,
        scanned: u32,
        weighed: u32,
        gathered: u32,
        complement: u64,
        sums: [[u64; KIGO_SAMPLE_BINS as usize]; 3],
        marks: [u32; KIGO_SAMPLE_BINS as usize / 32],
        n_keys: u32,
        pad: [u32; 7],
        keys: [u64; KIGO_SAMPLE_SORTED as usize],
    }

    KigoSample {
        logits: u64,
        row_of: u64,
        rows: u64,
        samplers: u64,
        outcomes: u64,
        work: u64,
        work_bytes: u64,
        n_vocab: u32,
        pad: u32,
    }
}

/// The bytes of `params`, to be copied to the device.
pub fn bytes_of<P: KernelParams>(params: &P) -> &[u8] {
    // SAFETY: the type is one of those above, which have no padding: every byte is initialised.
    unsafe { std::slice::from_raw_parts((&raw const *params).cast(), size_of::<P>()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Size, alignment, and name, offset and size of each field.
    type Layout = (usize, usize, Vec<(String, usize, usize)>);

    /// What `launch.h` says.
    #[derive(Default)]
    struct Header {
        constants: HashMap<String, u32>,
        structs: HashMap<String, Layout>,
    }

    impl Header {
        fn parse(text: &str) -> Header {
            let mut header = Header::default();
            let mut code = String::new();
            for (i, part) in text.split("/*").enumerate() {
                code += if i == 0 { part } else { part.split_once("*/").unwrap().1 };
            }
            for line in code.lines().filter_map(|line| line.strip_prefix("#define ")) {
                // Macros that take arguments are no constants.
                if let Some((name, value)) = line.split_once(' ').filter(|(name, _)| !name.contains('(')) {
                    let value = value.trim().trim_end_matches('u');
                    let value = match value.strip_prefix("0x") {
                        Some(digits) => u32::from_str_radix(digits, 16),
                        None => value.parse(),
                    };
                    header.constants.insert(name.to_string(), value.unwrap());
                }
            }
            for part in code.split("typedef struct {").skip(1) {
                let (fields, rest) = part.split_once('}').unwrap();
                header.define(rest.split_once(';').unwrap().0.trim(), fields);
            }
            header
        }

        fn define(&mut self, name: &str, fields: &str) {
            let (mut end, mut align, mut places) = (0usize, 1, Vec::new());
            for field in fields.split(';').map(str::trim).filter(|field| !field.is_empty()) {
                let (kind, declared) = field.split_once(' ').unwrap();
                let (size, own_align) = match kind {
                    "uint32_t" | "int32_t" | "float" => (4, 4),
                    "uint64_t" | "double" => (8, 8),
                    _ => self.structs.get(kind).map(|found| (found.0, found.1)).unwrap(),
                };
                let mut dimensions = declared.trim().split('[');
                let field = dimensions.next().unwrap();
                let count: usize = dimensions.map(|length| self.product(length.trim_end_matches(']'))).product();
                let start = end.next_multiple_of(own_align);
                assert_eq!(start, end, "{name}.{field} comes after a gap");
                places.push((field.to_string(), start, size * count));
                end = start + size * count;
                align = align.max(own_align);
            }
            assert_eq!(end.next_multiple_of(align), end, "{name} ends in a gap");
            self.structs.insert(name.to_string(), (end, align, places));
        }

        /// A number, a constant, or one divided by another.
        fn product(&self, text: &str) -> usize {
            let value = |word: &str| match self.constants.get(word.trim()) {
                Some(value) => *value as usize,
                None => word.trim().parse().unwrap(),
            };
            text.split('/').map(value).reduce(|a, b| a / b).unwrap()
        }
    }

    #[test]
    fn mirrors_are_those_of_the_header() {
        let header = Header::parse(include_str!("../../../kernels/launch.h"));
        for (name, value) in CONSTANTS {
            assert_eq!(header.constants.get(*name), Some(value), "{name}");
        }
        for (name, size, fields) in LAYOUTS {
            let (found_size, _, found) = header.structs.get(*name).unwrap();
            let found: Vec<(&str, usize, usize)> = found.iter().map(|f| (f.0.as_str(), f.1, f.2)).collect();
            assert_eq!((found_size, found.as_slice()), (size, *fields), "{name}");
        }
    }
}
