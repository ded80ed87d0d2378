// IQ4_NL: 32 weights d * level, the level one of 16 (src/quant/iq4_nl.rs).
#pragma once

#include "block_scales.cuh"
#include "codebook.cuh"

struct IQ4_NL {
    static constexpr int kBlockLen = 32, kBlockBytes = 18;
    static constexpr int kRecordK = 64, kScaleBytes = kBlockScaleBytes<1>, kGroupK = 32, kTop = kBlockTop;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = Iq4Planes;
    using Scales = BlockScales<1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[2 + i % 16] >> (i / 16 * 4) & 15; }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<IQ4_NL, 1>(out, lane, n_columns, rows);
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return block_top<1>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_block_scales<IQ4_NL, 1>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_block_scales<1>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int, int) { return block_affine<Planes, Planes::kLevel0>(scales); }
};
