// Q4_K: 256 weights d * sc * q - dmin * m in 8 groups, q of 4 bits, sc and m of 6 (src/quant/q4_k.rs).
#pragma once

#include "packed6.cuh"

struct Q4_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 144;
    static constexpr int kRecordK = 256, kScaleBytes = kSuperScaleBytes<16, 2>, kGroupK = 32, kTop = 6;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 0, 2>;
    using Scales = SuperScales<16, 2>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales<16, 2, 0>(out, lane, rows, packed6_byte);
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return super_top<16, 2>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_super_scales<Q4_K, 16, 2>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales<16, 2>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int unit, int) { return packed6_affine<Q4_K>(scales, unit); }
};
