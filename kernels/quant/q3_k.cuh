// Q3_K: 256 weights of 3 bits in 16 groups, each with a scale d * (sc - 32) of 6 bits (src/quant/q3_k.rs).
//
// The scales of a record are, each for g in 0..8 that of row g and of row g + 8: the 8 bytes of the low bits of sc, the 4
// bytes of the high bits, d.
#pragma once

#include "layout.cuh"

struct Q3_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 110;
    static constexpr int kRecordK = 256, kScaleBytes = 14 * kTileRows, kGroupK = 16;
    static constexpr bool kHasMin = false, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 4;
    using Planes = PlanesOf<2, 1>;

    struct Scales {
        uint32_t low[4];
        uint32_t high[2];
        uint32_t d;
    };

    static constexpr int kHighAt = 8 * kTileRows, kDAt = 12 * kTileRows;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        const uint32_t low = block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        return low | (block[i % 32] >> i / 32 & 1) << 2;
    }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<4>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        if (lane >= kTileRows) return;
        const uint8_t* row = rows(lane);
        const int at = 2 * (lane % 8) + lane / 8;
        for (int i = 0; i < 8; i++) out[8 * at + i] = row == nullptr ? 0 : row[96 + i];
        for (int i = 0; i < 4; i++) out[kHighAt + 4 * at + i] = row == nullptr ? 0 : row[104 + i];
        for (int i = 0; i < 2; i++) out[kDAt + 2 * at + i] = row == nullptr ? 0 : row[108 + i];
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<4>(out.low, scales + 16 * g);
        load_words<2>(out.high, scales + kHighAt + 8 * g);
        load_words<1>(&out.d, scales + kDAt + 4 * g);
        return out;
    }

    KIGO_FN static Float2 scale(const Scales& scales, int group) {
        const auto sc = [&](int row) {
            const uint32_t low = (group & 4 ? scales.low[2 * row + 1] : scales.low[2 * row]) >> (8 * (group % 4) + group / 8 * 4) & 15;
            const uint32_t high = scales.high[row] >> (8 * (group % 4) + group / 4 * 2) & 3;
            return float(int(low | high << 4) - 32);
        };
        return {half_to_float(scales.d & 0xffff) * sc(0), half_to_float(scales.d >> 16) * sc(1)};
    }
};
