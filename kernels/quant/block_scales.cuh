// Scales of the types whose blocks have 32 weights and begin with a half d, or two halves d and m.
//
// A record has two blocks of each row. Its scales are, for g in 0..8, those of row g: d of block 0 and 1, then m of both; then
// the same of row g + 8. They are zero where there is no such block.
#pragma once

#include "layout.cuh"

// `kHalves` is 1 for d, 2 for d and m.
template <int kHalves>
struct BlockScales {
    uint32_t words[2 * kHalves];
};

template <int kHalves>
constexpr int kBlockScaleBytes = 2 * kHalves * 2 * kTileRows;

template <int kHalves>
KIGO_FN BlockScales<kHalves> load_block_scales(const uint8_t* scales, int g) {
    BlockScales<kHalves> out;
    load_words<2 * kHalves>(out.words, scales + 8 * kHalves * g);
    return out;
}

template <class Planes, uint32_t kZero>
KIGO_FN Affine block_affine(const BlockScales<1>& scales) {
    Affine out;
    KIGO_UNROLL
    for (int row = 0; row < 2; row++) {
        out.scale[row] = scales.words[row];
        out.offset[row] = offset_of<Planes>(scales.words[row], kZero, row);
    }
    return out;
}

// The file adds m.
KIGO_FN Affine block_affine(const BlockScales<2>& scales) {
    return {{scales.words[0], scales.words[2]}, {scales.words[1], scales.words[3]}};
}

// Where d of a row's block stands, in a lane for each; m follows 4 bytes later.
template <int kHalves>
KIGO_FN int block_scale_at(int lane) {
    const int row = lane % kTileRows, block = lane / kTileRows;
    return 4 * kHalves * (2 * (row % 8) + row / 8) + 2 * block;
}

// Copies the halves of every block; every lane takes one.
template <class Type, int kHalves, class Rows>
KIGO_FN void pack_block_scales(uint8_t* out, int lane, int n_columns, Rows rows) {
    const int block = lane / kTileRows;
    const uint8_t* from = block * Type::kBlockLen < n_columns ? rows(lane % kTileRows) : nullptr;
    out += block_scale_at<kHalves>(lane);
    for (int i = 0; i < 2 * kHalves; i++) out[4 * (i / 2) + i % 2] = from == nullptr ? 0 : from[block * Type::kBlockBytes + i];
}

// They are multiplied as they are, so that only a half's own range counts.
constexpr int kBlockTop = 15;

template <int kHalves>
KIGO_FN float block_top(const uint8_t* scales, int lane) {
    return half_magnitude(scales + block_scale_at<kHalves>(lane));
}

template <class Type, int kHalves>
KIGO_FN void shift_block_scales(uint8_t* scales, int lane, int x) {
    uint8_t* at = scales + block_scale_at<kHalves>(lane);
    shift_half(at, lane % kTileRows < 8 ? x : x - Type::Planes::kOdd);
    if constexpr (kHalves == 2) shift_half(at + 4, x - kPoint<Type>);
}
