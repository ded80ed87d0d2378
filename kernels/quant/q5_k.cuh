// Q5_K: 256 weights of 5 bits in 8 groups, with the scales of Q4_K (src/quant/q5_k.rs).
#pragma once

#include "super_scales.cuh"

struct Q5_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 176;
    static constexpr int kRecordK = 256, kScaleBytes = 16 * kTileRows, kGroupK = 32;
    static constexpr bool kHasMin = true, kScalesCodes = true;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 1>;
    using Scales = SuperScales;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        const uint32_t low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        return low | (block[16 + i % 32] >> i / 32 & 1) << 4;
    }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<0>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales(out, lane, rows);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales(scales, g); }

    KIGO_FN static Float2 scale(const Scales& scales, int group) { return super_scale(scales, group); }

    KIGO_FN static Float2 min(const Scales& scales, int group) { return super_min(scales, group); }

    KIGO_FN static void code_scales(uint32_t out[2], const Scales& scales, int group) { super_code_scales(out, scales, group); }

    KIGO_FN static Float2 rest_scale(const Scales& scales) { return super_rest_scale(scales); }
};
