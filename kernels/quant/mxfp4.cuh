// MXFP4: 32 weights of 4 bits (E2M1) with a power of two 2^(e - 127) as scale (src/quant/mxfp4.rs).
//
// As in the file's definition by ggml, twice the value is multiplied with half the scale, so that no e overflows. The scales
// of a record are, for g in 0..8, a byte of row g for block 0 and 1, then of row g + 8: e, and when it is shifted the upper byte of
// the half that is the scale, or 0 where that would be too small. Where there is no block they are 0.
#pragma once

#include "layout.cuh"

// Codes of 4 bits, s e e m, become the half with these bits in places 15 and 11 to 9, which is their value times 2^-14. In a word
// of codes of the four registers of a product half h is in bits 16 h to 16 h + 15: register 0 where it is wanted, register 1 three
// bits lower; of registers 2 and 3 e e m six and nine bits lower and s one and two, so that a multiplication brings both where they
// are wanted, and what it brings elsewhere carries into no place that is.
struct E2m1Planes : PlanesOf<4, 0> {
    static constexpr int kShift = 9, kOdd = 0;
    static constexpr uint32_t kSign = 0x80008000u, kRest = 0x0e000e00u;

    KIGO_FN static constexpr uint32_t place(int r, uint32_t sign, uint32_t rest) {
        return r < 2 ? (sign | rest) >> 3 * r : sign >> (r - 1) | rest >> 3 * r;
    }

    KIGO_FN static void put(Unit& unit, int j, int r, int h, uint32_t code) {
        unit.low[j] |= place(r, (code & 8) << 12, (code & 7) << 9) << 16 * h;
    }

    KIGO_FN static void codes(const Unit& unit, int j, uint32_t out[4]) {
        const uint32_t word = unit.low[j];
        out[0] = word & (kSign | kRest);
        out[1] = word << 3 & (kSign | kRest);
        out[2] = (word & place(2, kSign, kRest)) * ((1 << 6) + (1 << 1)) & (kSign | kRest);
        out[3] = (word & place(3, kSign, kRest)) * ((1 << 9) + (1 << 2)) & (kSign | kRest);
    }
};

struct MXFP4 {
    static constexpr int kBlockLen = 32, kBlockBytes = 17;
    static constexpr int kRecordK = 64, kScaleBytes = 2 * kTileRows, kGroupK = 32, kTop = 15;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    using Planes = E2m1Planes;

    struct Scales {
        uint32_t bytes;
    };

    KIGO_FN static uint32_t code(const uint8_t* block, int i) { return block[1 + i % 16] >> (i / 16 * 4) & 15; }

    // Of lane's row and block.
    KIGO_FN static int scale_at(int lane) {
        const int row = lane % kTileRows;
        return 4 * (row % 8) + 2 * (row / 8) + lane / kTileRows;
    }

    template <class Rows>
    KIGO_FN static void pack_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
        const int block = lane / kTileRows;
        const uint8_t* from = block * kBlockLen < n_columns ? rows(lane % kTileRows) : nullptr;
        out[scale_at(lane)] = from == nullptr ? 0 : from[block * kBlockBytes];
    }

    // 2^(e - 128); the two smallest are subnormal.
    KIGO_FN static float top(const uint8_t* scales, int lane) {
        const uint32_t e = scales[scale_at(lane)];
        return bits_to_float(e < 2 ? 0x00200000 << e : (e - 1) << 23);
    }

    KIGO_FN static void shift(uint8_t* scales, int lane, int x) {
        uint8_t& at = scales[scale_at(lane)];
        const int exponent = int(at) - 128 + x + 15;
        at = uint8_t(exponent < 1 ? 0 : exponent > 30 ? 30 << 2 : exponent << 2);
    }

    KIGO_FN static Scales load_scales(const uint8_t* scales, int g) {
        Scales out;
        load_words<1>(&out.bytes, scales + 4 * g);
        return out;
    }

    KIGO_FN static Affine affine(const Scales& scales, int, int) {
        return {{permute(scales.bytes, 0, 0x1404), permute(scales.bytes, 0, 0x3424)}, {0, 0}};
    }
};
