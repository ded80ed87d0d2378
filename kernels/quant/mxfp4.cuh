// MXFP4: 32 weights of 4 bits (E2M1) with a power of two 2^(e - 127) as scale (src/quant/mxfp4.rs).
//
// As in the file's definition by ggml, twice the value is multiplied with half the scale, so that no e overflows. The scales
// of a record are, for g in 0..8, e of row g, block 0 and 1, then of row g + 8, block 0 and 1. Where there is no block, its
// codes are zero.
#pragma once

#include "block_scales.cuh"

struct MXFP4 {
    static constexpr int kBlockLen = 32, kBlockBytes = 17;
    static constexpr int kRecordK = 64, kScaleBytes = 2 * kTileRows, kGroupK = 32;
    static constexpr bool kHasMin = false, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 0>;

    struct Scales {
        uint32_t e;
    };

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[1 + i % 16] >> (i / 16 * 4) & 15; }

    // With its exponent and mantissa at the top of a half's, an E2M1 float is 2^-14 of its value.
    KIGO_FN static uint32_t operand(uint32_t pair) {
        constexpr uint32_t k2Pow15 = 0x7800;
        return multiply_halves((pair << 9 & 0x0e000e00) | (pair << 12 & 0x80008000), pack16(k2Pow15, k2Pow15));
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        pack_block_scales<MXFP4, 1>(out, lane, n_columns, rows);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<1>(&out.e, scales + 4 * g);
        return out;
    }

    // 2^(e - 128); the two smallest are subnormal.
    KIGO_FN static Float2 scale(const Scales& scales, int group) {
        const auto of = [&](int row) {
            const uint32_t e = scales.e >> (16 * row + 8 * group) & 255;
            return bits_to_float(e < 2 ? 0x00200000 << e : (e - 1) << 23);
        };
        return {of(0), of(1)};
    }
};
