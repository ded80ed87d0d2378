// The 16 levels of IQ4_NL and IQ4_XS (src/quant/iq4_nl.rs) as halves: of four neighbouring codes at a time, by byte permutes.
#pragma once

#include "layout.cuh"

// Codes of 4 bits, those of the four registers of a product in one word: nibble 2 r + h is half h of register r.
struct CodebookPlanes : PlanesOf<4, 0> {
    KIGO_FN static void put(Unit& unit, int j, int r, int h, uint32_t code) {
        unit.low[j] |= code << (8 * r + 4 * h);
    }

    KIGO_FN static uint32_t pair(const Unit& unit, int j, int r) {
        const uint32_t two = unit.low[j] >> 8 * r;
        return (two & 15) | (two & 0xf0) << 12;
    }

    // Codes 0..7 are negative levels, 8..15 positive ones. A permute looks up the low three bits of a nibble; the fourth makes
    // it repeat the sign of the byte found, and no byte here has one: so of the two lookups one is the magnitude, the other 0.
    template <class Type>
    KIGO_FN static void operands(const Unit& unit, int j, uint32_t out[4]) {
        constexpr uint32_t kNegative[2] = {0x4153687f, 0x0a162331};  // 127 104 83 65, 49 35 22 10
        constexpr uint32_t kPositive[2] = {0x26190d01, 0x71594535};  // 1 13 25 38, 53 69 89 113
        const uint32_t codes = unit.low[j], flipped = codes ^ 0x88888888;
        KIGO_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t negative = permute(kNegative[0], kNegative[1], codes >> 16 * i);
            const uint32_t positive = permute(kPositive[0], kPositive[1], flipped >> 16 * i);
            // Four levels + 128, each a byte: nothing is carried from one into the next.
            const uint32_t levels = positive - negative + 0x80808080;
            out[2 * i] = without_bias<128>(permute(levels, k1024, 0x4140));
            out[2 * i + 1] = without_bias<128>(permute(levels, k1024, 0x4342));
        }
    }
};
