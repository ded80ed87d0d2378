// Q4_1: 32 weights d * q + m, q of 4 bits (src/quant/q4_1.rs).
#pragma once

#include "block_scales.cuh"

struct Q4_1 {
    static constexpr int kBlockLen = 32, kBlockBytes = 20;
    static constexpr int kRecordK = 64, kScaleBytes = kBlockScaleBytes<2>, kGroupK = 32;
    static constexpr bool kHasMin = true, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 0>;
    using Scales = BlockScales<2>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[4 + i % 16] >> (i / 16 * 4) & 15; }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<0>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<Q4_1, 4>(out, lane, n_columns, rows);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_block_scales<2>(scales, g); }

    KIGO_FN static Float2 scale(const Scales& scales, int group) { return block_scale(scales, group); }

    KIGO_FN static Float2 min(const Scales& scales, int group) { return block_min(scales, group); }
};
