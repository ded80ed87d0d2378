// Q2_K: 256 weights of 2 bits in 16 groups, each with a scale d * sc and a minimum dmin * m of 4 bits (src/quant/q2_k.rs).
//
// A record has the bytes of sc and m of the file. m is taken where it stands, 16 times too large.
#pragma once

#include "super_scales.cuh"

struct Q2_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 84;
    static constexpr int kRecordK = 256, kScaleBytes = kSuperScaleBytes<16, 2>, kGroupK = 16, kTop = 6;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<2, 0, 4>;
    using Scales = SuperScales<16, 2>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales<16, 2, 80>(out, lane, rows, [](const uint8_t* block, int i) { return block[i]; });
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return super_top<16, 2>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_super_scales<Q2_K, 16, 2, 4>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales<16, 2>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int unit, int part) {
        Affine out;
        KIGO_UNROLL
        for (int row = 0; row < 2; row++) {
            const uint32_t both = biased_bytes(select_word(scales.bytes[row], unit), part, part + 2);
            out.scale[row] = super_scale(scales, row, both & 0xff0fff0f);
            out.offset[row] = super_offset<Q2_K>(scales, row, both & 0xfff0fff0);
        }
        return out;
    }
};
