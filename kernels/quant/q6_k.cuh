// Q6_K: 256 weights of 6 bits in 16 groups, each with a scale d * sc, sc a signed byte (src/quant/q6_k.rs).
//
// A record has sc + 128.
#pragma once

#include "super_scales.cuh"

struct Q6_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 210;
    static constexpr int kRecordK = 256, kScaleBytes = kSuperScaleBytes<16, 1>, kGroupK = 16, kTop = 9;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 32;
    using Planes = PlanesOf<4, 2, 1>;
    using Scales = SuperScales<16, 1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        const int h = i / 128, r = i / 32 % 4;
        const uint32_t low = block[64 * h + i % 64] >> (r / 2 * 4) & 15;
        return low | (block[128 + 32 * h + i % 32] >> 2 * r & 3) << 4;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales<16, 1, 208>(out, lane, rows, [](const uint8_t* block, int i) { return uint8_t(block[192 + i] ^ 0x80); });
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return super_top<16, 1>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_super_scales<Q6_K, 16, 1>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales<16, 1>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int unit, int part) { return sixteens_affine<Planes, kZero, 128>(scales, unit, part); }
};
