// IQ4_XS: 256 weights in 8 groups, each with a scale d * (sc - 32) of 6 bits; weights as in IQ4_NL (src/quant/iq4_xs.rs).
//
// A record has sc.
#pragma once

#include "codebook.cuh"
#include "super_scales.cuh"

struct IQ4_XS {
    static constexpr int kBlockLen = 256, kBlockBytes = 136;
    static constexpr int kRecordK = 256, kScaleBytes = kSuperScaleBytes<8, 1>, kGroupK = 32, kTop = 11;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = Iq4Planes;
    using Scales = SuperScales<8, 1>;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[8 + i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales<8, 1, 0>(out, lane, rows, [](const uint8_t* block, int i) {
            const uint32_t low = block[4 + i / 2] >> i % 2 * 4 & 15, high = load16(block + 2) >> 2 * i & 3;
            return uint8_t(low | high << 4);
        });
    }

    KIGO_FN static float top(const uint8_t* scales, int lane) { return super_top<8, 1>(scales, lane); }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) { shift_super_scales<IQ4_XS, 8, 1>(scales, lane, x); }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales<8, 1>(scales, g); }

    KIGO_FN static Affine affine(const Scales& scales, int unit, int) {
        Affine out;
        const int first = unit % 2 * 2;
        KIGO_UNROLL
        for (int row = 0; row < 2; row++) {
            const uint32_t numbers = biased_bytes(unit < 2 ? scales.bytes[row][0] : scales.bytes[row][1], first, first + 1);
            out.scale[row] = super_scale<32>(scales, row, numbers);
            out.offset[row] = offset_of<Planes>(out.scale[row], Planes::kLevel0, row);
        }
        return out;
    }
};
