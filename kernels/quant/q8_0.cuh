// Q8_0: 32 weights d * q, q a signed byte; the code is q + 128 (src/quant/q8_0.rs).
#pragma once

#include "block_scales.cuh"

struct Q8_0 {
    static constexpr int kBlockLen = 32, kBlockBytes = 34;
    static constexpr int kRecordK = 64, kScaleBytes = kBlockScaleBytes<1>, kGroupK = 32, kTop = kBlockTop;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 128;
    using Planes = PlanesOf<8, 0>;
    using Scales = BlockScales<1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[2 + i] ^ 0x80; }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<Q8_0, 1>(out, lane, n_columns, rows);
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return block_top<1>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_block_scales<Q8_0, 1>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_block_scales<1>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int, int) { return block_affine<Planes, kZero>(scales); }
};
