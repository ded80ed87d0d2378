// Q6_K: 256 weights of 6 bits in 16 groups, each with a scale d * sc, sc a signed byte (src/quant/q6_k.rs).
//
// The scales of a record are the 16 sc of every row, then for g in 0..8 d of row g and of row g + 8.
#pragma once

#include "layout.cuh"

struct Q6_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 210;
    static constexpr int kRecordK = 256, kScaleBytes = 18 * kTileRows, kGroupK = 16;
    static constexpr bool kHasMin = false, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 32;
    using Planes = PlanesOf<4, 2>;

    struct Scales {
        uint32_t sc[2][4];
        uint32_t d;
    };

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        const int h = i / 128, r = i / 32 % 4;
        const uint32_t low = block[64 * h + i % 64] >> (r / 2 * 4) & 15;
        return low | (block[128 + 32 * h + i % 32] >> 2 * r & 3) << 4;
    }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<32>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        if (lane >= kTileRows) return;
        const uint8_t* row = rows(lane);
        uint8_t* d = out + 16 * kTileRows + 4 * (lane % 8) + 2 * (lane / 8);
        for (int i = 0; i < 16; i++) out[16 * lane + i] = row == nullptr ? 0 : row[192 + i];
        for (int i = 0; i < 2; i++) d[i] = row == nullptr ? 0 : row[208 + i];
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<4>(out.sc[0], scales + 16 * g);
        load_words<4>(out.sc[1], scales + 16 * (g + 8));
        load_words<1>(&out.d, scales + 16 * kTileRows + 4 * g);
        return out;
    }

    KIGO_FN static Float2 scale(const Scales& scales, int group) {
        const auto sc = [&](int row) { return float(int8_t(select_word(scales.sc[row], group / 4) >> 8 * (group % 4))); };
        return {half_to_float(scales.d & 0xffff) * sc(0), half_to_float(scales.d >> 16) * sc(1)};
    }
};
