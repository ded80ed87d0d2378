// IQ4_XS: 256 weights in 8 groups, each with a scale d * (sc - 32) of 6 bits; weights as in IQ4_NL (src/quant/iq4_xs.rs).
//
// The scales of a record are, for g in 0..8, the first 8 bytes of the blocks of row g and of row g + 8: d and the packed sc.
#pragma once

#include "codebook.cuh"

struct IQ4_XS {
    static constexpr int kBlockLen = 256, kBlockBytes = 136;
    static constexpr int kRecordK = 256, kScaleBytes = 8 * kTileRows, kGroupK = 32;
    static constexpr bool kHasMin = false, kScalesCodes = false;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = CodebookPlanes;

    struct Scales {
        uint32_t words[4];
    };

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[8 + i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        if (lane >= kTileRows) return;
        const uint8_t* row = rows(lane);
        for (int i = 0; i < 8; i++) out[16 * (lane % 8) + 8 * (lane / 8) + i] = row == nullptr ? 0 : row[i];
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<4>(out.words, scales + 16 * g);
        return out;
    }

    KIGO_FN static Float2 scale(const Scales& scales, int group) {
        const auto of = [&](int row) {
            const uint32_t d_high = scales.words[2 * row];
            const uint32_t low = scales.words[2 * row + 1] >> 4 * group & 15;
            const uint32_t high = d_high >> (16 + 2 * group) & 3;
            return half_to_float(d_high & 0xffff) * float(int(low | high << 4) - 32);
        };
        return {of(0), of(1)};
    }
};
