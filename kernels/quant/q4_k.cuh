// Q4_K: 256 weights of 4 bits in 8 groups of 32, each with a scale d * sc and a minimum dmin * m of 6 bits (src/quant/q4_k.rs).
//
// The scales of a record are, for every row, the first 16 bytes of its block: d, dmin and the packed sc and m.
#pragma once

#include "layout.cuh"

// Scales of Q4_K and Q5_K, which have the same 16 bytes.
struct SuperScales {
    uint32_t words[2][4];
};

// sc (bits 5..0) and m (bits 13..8) of group `group`, from the three words of 6-bit numbers.
KIGO_FN uint32_t scale_min6(const uint32_t* packed, int group) {
    const int shift = 8 * (group % 4);
    if (group < 4) return (packed[0] >> shift & 63) | (packed[1] >> shift & 63) << 8;
    const uint32_t low = packed[2] >> shift;
    return (low & 15) | (packed[0] >> shift >> 6 & 3) << 4 | (low >> 4 & 15) << 8 | (packed[1] >> shift >> 6 & 3) << 12;
}

KIGO_FN SuperScales load_super_scales(const uint8_t* scales, int g) {
    SuperScales out;
    for (int half = 0; half < 2; half++) {
#ifdef __CUDA_ARCH__
        *reinterpret_cast<uint4*>(out.words[half]) = *reinterpret_cast<const uint4*>(scales + 16 * (g + 8 * half));
#else
        __builtin_memcpy(out.words[half], scales + 16 * (g + 8 * half), 16);
#endif
    }
    return out;
}

KIGO_FN Float2 super_scale(const SuperScales& scales, int group) {
    float out[2];
    for (int half = 0; half < 2; half++) {
        const uint32_t* words = scales.words[half];
        out[half] = half_to_float(words[0] & 0xffff) * float(scale_min6(words + 1, group) & 63);
    }
    return {out[0], out[1]};
}

KIGO_FN Float2 super_min(const SuperScales& scales, int group) {
    float out[2];
    for (int half = 0; half < 2; half++) {
        const uint32_t* words = scales.words[half];
        out[half] = half_to_float(words[0] >> 16) * float(scale_min6(words + 1, group) >> 8);
    }
    return {out[0], out[1]};
}

// Copies the first 16 bytes of every row's block; lanes 0..15 take a row each.
template <class Rows>
KIGO_FN void pack_super_scales(uint8_t* out, int lane, Rows rows) {
    if (lane >= kTileRows) return;
    const uint8_t* row = rows(lane);
    for (int i = 0; i < 16; i++) out[16 * lane + i] = row == nullptr ? 0 : row[i];
}

struct Q4_K {
    static constexpr int kBlockLen = 256, kBlockBytes = 144;
    static constexpr int kRecordK = 256, kScaleBytes = 16 * kTileRows, kGroupK = 32;
    static constexpr bool kHasMin = true;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<4, 0>;
    using Scales = SuperScales;

    KIGO_FN static uint32_t code(const uint8_t* block, int i) {
        return block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    }

    KIGO_FN static uint32_t operand(uint32_t pair) { return small_integers<0>(pair); }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int, Rows rows) {
        pack_super_scales(out, lane, rows);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) { return load_super_scales(scales, g); }

    KIGO_FN static Float2 scale(const Scales& scales, int group) { return super_scale(scales, group); }

    KIGO_FN static Float2 min(const Scales& scales, int group) { return super_min(scales, group); }
};
