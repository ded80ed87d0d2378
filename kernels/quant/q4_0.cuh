// Q4_0: 32 weights d * (q - 8), q of 4 bits (src/quant/q4_0.rs).
#pragma once

#include "block_scales.cuh"

struct Q4_0 {
    static constexpr int kBlockLen = 32, kBlockBytes = 18;
    static constexpr int kRecordK = 64, kScaleBytes = kBlockScaleBytes<1>, kGroupK = 32;
    static constexpr bool kHasMin = false, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 8;
    using Planes = PlanesOf<4, 0>;
    using Scales = BlockScales<1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[2 + i % 16] >> (i / 16 * 4) & 15; }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<8>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<Q4_0, 2>(out, lane, n_columns, rows);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_block_scales<1>(scales, g); }

    KIGO_FN static Float2 scale(const Scales& scales, int group) { return block_scale(scales, group); }
};
