// Scales of the types whose blocks have 32 weights and begin with a half d, or two halves d and m.
//
// A record has two blocks of each row. Its scales are, for g in 0..8, those of row g, block 0 and 1, then of row g + 8, block
// 0 and 1; zero where there is no such block.
#pragma once

#include "layout.cuh"

// `kHalves` is 1 for d, 2 for d and m.
template <int kHalves>
struct BlockScales {
    uint32_t words[2 * kHalves];

    KIGO_FN uint32_t half(int row, int block, int which) const {
        const int i = kHalves * (2 * row + block) + which;
        return words[i / 2] >> 16 * (i % 2) & 0xffff;
    }
};

template <int kHalves>
constexpr int kBlockScaleBytes = 2 * kHalves * 2 * kTileRows;

template <int kHalves>
KIGO_FN BlockScales<kHalves> load_block_scales(const uint8_t* scales, int g) {
    BlockScales<kHalves> out;
    load_words<2 * kHalves>(out.words, scales + 8 * kHalves * g);
    return out;
}

template <int kHalves>
KIGO_FN Float2 block_scale(const BlockScales<kHalves>& scales, int block) {
    return {half_to_float(scales.half(0, block, 0)), half_to_float(scales.half(1, block, 0))};
}

// The file adds m, a record's minimum is subtracted.
KIGO_FN Float2 block_min(const BlockScales<2>& scales, int block) {
    return {-half_to_float(scales.half(0, block, 1)), -half_to_float(scales.half(1, block, 1))};
}

// Copies the first `kBytes` of every block; every lane takes one.
template <class Type, int kBytes, class Rows>
KIGO_FN void pack_block_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
    const int row = lane % kTileRows, block = lane / kTileRows;
    const uint8_t* from = block * Type::kBlockLen < n_columns ? rows(row) : nullptr;
    out += kBytes * (4 * (row % 8) + 2 * (row / 8) + block);
    for (int i = 0; i < kBytes; i++) out[i] = from == nullptr ? 0 : from[block * Type::kBlockBytes + i];
}
