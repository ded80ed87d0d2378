// Q3_K: 256 weights of 3 bits in 16 groups, each with a scale d * (sc - 32) of 6 bits (src/quant/q3_k.rs).
//
// A record has sc.
#pragma once

#include "super_scales.cuh"

struct Q3_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 110;
    static constexpr int kRecordK = 256, kScaleBytes = kSuperScaleBytes<16, 1>, kGroupK = 16, kTop = 11;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 4;
    using Planes = PlanesOf<2, 1, 4>;
    using Scales = SuperScales<16, 1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        const uint32_t low = block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        return low | (block[i % 32] >> i / 32 & 1) << 2;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales<16, 1, 108>(out, lane, rows, [](const uint8_t* block, int i) {
            const uint32_t low = block[96 + i % 8] >> i / 8 * 4 & 15, high = block[104 + i % 4] >> i / 4 * 2 & 3;
            return uint8_t(low | high << 4);
        });
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return super_top<16, 1>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_super_scales<Q3_K, 16, 1>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales<16, 1>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int unit, int part) { return sixteens_affine<Planes, kZero, 32>(scales, unit, part); }
};
