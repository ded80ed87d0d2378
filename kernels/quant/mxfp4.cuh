// MXFP4: 32 weights of 4 bits (E2M1) with a power of two 2^(e - 127) as scale (src/quant/mxfp4.rs).
//
// As in the file's definition by ggml, twice the value is multiplied with half the scale, so that no e overflows. The scales
// of a record are, for g in 0..8, a byte of row g for block 0 and 1, then of row g + 8: e, and when it is shifted the upper byte of
// the half that is the scale, or 0 where that would be too small. Where there is no block they are 0.
#pragma once

#include "codebook.cuh"

struct MXFP4 {
    static constexpr int kBlockLen = 32, kBlockBytes = 17;
    static constexpr int kRecordK = 64, kScaleBytes = 2 * kTileRows, kGroupK = 32, kTop = 15;
    static constexpr Operand kOperand = Operand::kF16;
    static constexpr uint32_t kZero = 0;
    // 0 1 2 3 4 6 8 12, and the same with a minus.
    using Planes = CodebookPlanes<0x03020100, 0x0c080604, 0x03020100, 0x0c080604, false>;

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
        const uint32_t first = permute(scales.bytes, 0, 0x1404), second = permute(scales.bytes, 0, 0x3424);
        return {{first, second}, {offset_of<Planes>(first, Planes::kLevel0, 0), offset_of<Planes>(second, Planes::kLevel0, 1)}};
    }
};
