// What Q4_K and Q5_K share: blocks that begin with d, dmin, and sc and m of 8 groups, numbers of 6 bits packed into 12 bytes.
// A record has the 8 sc of a row, then its 8 m.
#pragma once

#include "super_scales.cuh"

// sc of group i, or m of group i - 8, of a block.
KIGO_FN uint8_t packed6_byte(const uint8_t* block, int i) {
    const uint8_t* packed = block + 4;
    const int group = i % 8, is_min = i / 8;
    if (group < 4) return packed[group + 4 * is_min] & 63;
    return (packed[group + 4] >> 4 * is_min & 15) | packed[group - 4 + 4 * is_min] >> 6 << 4;
}

template <class Type>
KIGO_FN Affine packed6_affine(const SuperScales<16, 2>& scales, int unit) {
    Affine out;
    const int first = unit % 2 * 2;
    KIGO_UNROLL
    for (int row = 0; row < 2; row++) {
        const uint32_t* bytes = scales.bytes[row];
        const uint32_t sc = unit < 2 ? bytes[0] : bytes[1], m = unit < 2 ? bytes[2] : bytes[3];
        out.scale[row] = super_scale(scales, row, biased_bytes(sc, first, first + 1));
        out.offset[row] = super_offset<Type>(scales, row, biased_bytes(m, first, first + 1));
    }
    return out;
}
