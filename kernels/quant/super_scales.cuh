// Scales of Q4_K and Q5_K, whose blocks begin with the same 16 bytes: d, dmin and the packed sc and m (src/quant/q4_k.rs).
//
// The scales of a record are these 16 bytes of every row.
#pragma once

#include "layout.cuh"

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
        load_words<4>(out.words[half], scales + 16 * (g + 8 * half));
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

KIGO_FN void super_code_scales(uint32_t out[2], const SuperScales& scales, int group) {
    for (int half = 0; half < 2; half++) out[half] = small_integers<0>((scale_min6(scales.words[half] + 1, group) & 63) * 0x00010001u);
}

KIGO_FN Float2 super_rest_scale(const SuperScales& scales) {
    return {half_to_float(scales.words[0][0] & 0xffff), half_to_float(scales.words[1][0] & 0xffff)};
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
