// Types whose codes of 4 bits stand for one of 16 levels, negative or not: looked up by byte permutes, four at a time.
#pragma once

#include "layout.cuh"

// Levels of codes 0..7 and 8..15, magnitudes as bytes of two words each, and which of the two are negative. A code comes out as
// its level + 128. Codes of the four registers of a product are in one word: nibble 2 r + h is half h of register r.
template <uint32_t kFirst0, uint32_t kFirst1, uint32_t kSecond0, uint32_t kSecond1, bool kFirstNegative>
struct CodebookPlanes : PlanesOf<4, 0> {
    static constexpr int kOdd = 0;
    // What stands for 0.
    static constexpr uint32_t kLevel0 = 128;

    KIGO_FN static void put(Unit& unit, int j, int r, int h, uint32_t code) {
        unit.low[j] |= code << (8 * r + 4 * h);
    }

    // A permute looks up the low three bits of a nibble; the fourth makes it repeat the sign of the byte found, and no byte here
    // has one: so of the two lookups one is the magnitude, the other 0.
    KIGO_FN static void codes(const Unit& unit, int j, uint32_t out[4]) {
        const uint32_t codes = unit.low[j], flipped = codes ^ 0x88888888;
        KIGO_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t first = permute(kFirst0, kFirst1, codes >> 16 * i), second = permute(kSecond0, kSecond1, flipped >> 16 * i);
            // Four levels + 128, each a byte: nothing is carried from one into the next.
            const uint32_t levels = (kFirstNegative ? second - first : first - second) + 0x80808080;
            out[2 * i] = permute(levels, 0, 0x4140);
            out[2 * i + 1] = permute(levels, 0, 0x4342);
        }
    }
};

// The 16 levels of IQ4_NL and IQ4_XS (src/quant/iq4_nl.rs): -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113.
using Iq4Planes = CodebookPlanes<0x4153687f, 0x0a162331, 0x26190d01, 0x71594535, true>;
