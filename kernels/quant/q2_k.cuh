// Q2_K: 256 weights of 2 bits in 16 groups, each with a scale d * sc and a minimum dmin * m of 4 bits (src/quant/q2_k.rs).
//
// The scales of a record are the 16 bytes of sc and m of every row, then for g in 0..8 d and dmin of row g and of row g + 8.
#pragma once

#include "layout.cuh"

struct Q2_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 84;
    static constexpr int kRecordK = 256, kScaleBytes = 20 * kTileRows, kGroupK = 16;
    static constexpr bool kHasMin = true, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<2, 0>;

    struct Scales {
        uint32_t sc_m[2][4];
        uint32_t d_dmin[2];
    };

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<0>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        if (lane >= kTileRows) return;
        const uint8_t* row = rows(lane);
        uint8_t* d_dmin = out + 16 * kTileRows + 8 * (lane % 8) + 4 * (lane / 8);
        for (int i = 0; i < 16; i++) out[16 * lane + i] = row == nullptr ? 0 : row[i];
        for (int i = 0; i < 4; i++) d_dmin[i] = row == nullptr ? 0 : row[80 + i];
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<4>(out.sc_m[0], scales + 16 * g);
        load_words<4>(out.sc_m[1], scales + 16 * (g + 8));
        load_words<2>(out.d_dmin, scales + 16 * kTileRows + 8 * g);
        return out;
    }

    KIGO_FN static Float2 scale(const Scales& scales, int group) {
        const auto of = [&](int row) {
            const uint32_t sc = select_word(scales.sc_m[row], group / 4) >> 8 * (group % 4) & 15;
            return half_to_float(scales.d_dmin[row] & 0xffff) * float(sc);
        };
        return {of(0), of(1)};
    }

    KIGO_FN static Float2 min(const Scales& scales, int group) {
        const auto of = [&](int row) {
            const uint32_t m = select_word(scales.sc_m[row], group / 4) >> (8 * (group % 4) + 4) & 15;
            return half_to_float(scales.d_dmin[row] >> 16) * float(m);
        };
        return {of(0), of(1)};
    }
};
