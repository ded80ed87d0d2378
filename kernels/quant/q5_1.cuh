// Q5_1: 32 weights d * q + m, q of 5 bits (src/quant/q5_1.rs).
#pragma once

#include "block_scales.cuh"

struct Q5_1 {
    static constexpr int kBlockLen = 32, kBlockBytes = 24;
    static constexpr int kRecordK = 64, kScaleBytes = kBlockScaleBytes<2>, kGroupK = 32, kTop = kBlockTop;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 1>;
    using Scales = BlockScales<2>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return (block[8 + i % 16] >> (i / 16 * 4) & 15) | (block[4 + i / 8] >> i % 8 & 1) << 4;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<Q5_1, 2>(out, lane, n_columns, rows);
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return block_top<2>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_block_scales<Q5_1, 2>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_block_scales<2>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int, int) { return block_affine(scales); }
};
