// Scales of the types whose blocks have 256 weights: a half d, in some types also dmin, and a small integer of each group that it is
// multiplied with.
//
// In a record these integers are bytes, `kBytes` of every row, row after row; then come, for g in 0..8, the halves of row g and
// of row g + 8.
#pragma once

#include "layout.cuh"

// `kBytes` is 8 or 16, `kHalves` 1 for d, 2 for d and dmin.
template <int kBytes, int kHalves>
struct SuperScales {
    uint32_t bytes[2][kBytes / 4];
    // Of both rows, each twice: d, dmin; where there is dmin, also both times -1024.
    uint32_t d[2], dmin[2];
    uint32_t d_bias[2], dmin_bias[2];
};

template <int kBytes, int kHalves>
constexpr int kSuperScaleBytes = (kBytes + 2 * kHalves) * kTileRows;

template <int kBytes, int kHalves>
KIGO_FN SuperScales<kBytes, kHalves> load_super_scales(const uint8_t* scales, int g) {
    constexpr uint32_t kMinus1024 = pack16(0xe400, 0xe400);
    SuperScales<kBytes, kHalves> out = {};
    load_words<kBytes / 4>(out.bytes[0], scales + kBytes * g);
    load_words<kBytes / 4>(out.bytes[1], scales + kBytes * (g + 8));
    uint32_t halves[kHalves];
    load_words<kHalves>(halves, scales + kBytes * kTileRows + 4 * kHalves * g);
    KIGO_UNROLL
    for (int row = 0; row < 2; row++) {
        if constexpr (kHalves == 2) {
            out.d[row] = low_twice(halves[row]);
            out.dmin[row] = high_twice(halves[row]);
            out.d_bias[row] = multiply_halves(out.d[row], kMinus1024);
            out.dmin_bias[row] = multiply_halves(out.dmin[row], kMinus1024);
        } else {
            out.d[row] = row == 0 ? low_twice(halves[0]) : high_twice(halves[0]);
        }
    }
    return out;
}

// d times two numbers n, given as 1024 + n. It has to stay below 64.
template <int kBytes>
KIGO_FN uint32_t super_scale(const SuperScales<kBytes, 2>& scales, int row, uint32_t numbers) {
    return multiply_add_halves(numbers, scales.d[row], scales.d_bias[row]);
}

// d times two numbers n - kBias: 1024 + kBias has too many bits for the above.
template <uint32_t kBias, int kBytes>
KIGO_FN uint32_t super_scale(const SuperScales<kBytes, 1>& scales, int row, uint32_t numbers) {
    return multiply_halves(subtract_halves(numbers, pack16(0x6400 + kBias, 0x6400 + kBias)), scales.d[row]);
}

// What dmin times such numbers is worth in a weight. The halves have the power of two of d.
template <class Type, int kBytes>
KIGO_FN uint32_t super_offset(const SuperScales<kBytes, 2>& scales, int row, uint32_t numbers) {
    const uint32_t min = multiply_add_halves(numbers, scales.dmin[row], scales.dmin_bias[row]);
    return multiply_halves(min, minus(tiny_pair(1 << Type::Planes::kShift)));
}

// What is made of the codes of a type with 16 groups and without minima, whose code `kZero` stands for 0 and whose bytes for n - kBias.
template <class Planes, uint32_t kZero, uint32_t kBias>
KIGO_FN Affine sixteens_affine(const SuperScales<16, 1>& scales, int unit, int part) {
    Affine out;
    KIGO_UNROLL
    for (int row = 0; row < 2; row++) {
        const uint32_t numbers = biased_bytes(select_word(scales.bytes[row], unit), part, part + 2);
        out.scale[row] = super_scale<kBias>(scales, row, numbers);
        out.offset[row] = offset_of<Planes>(out.scale[row], kZero, row);
    }
    return out;
}

// Where the halves of a row are.
template <int kBytes, int kHalves>
KIGO_FN int super_halves_at(int row) {
    return kBytes * kTileRows + 2 * kHalves * (2 * (row % 8) + row / 8);
}

// Writes the bytes that `byte(row, i)` says and the halves at `kFrom` of every row's block; lanes 0..15 take a row each.
template <int kBytes, int kHalves, int kFrom, class Rows, class Byte>
KIGO_FN void pack_super_scales(uint8_t* out, int lane, Rows rows, Byte byte) {
    if (lane >= kTileRows) return;
    const uint8_t* row = rows(lane);
    uint8_t* halves = out + super_halves_at<kBytes, kHalves>(lane);
    for (int i = 0; i < kBytes; i++) out[kBytes * lane + i] = row == nullptr ? 0 : byte(row, i);
    for (int i = 0; i < 2 * kHalves; i++) halves[i] = row == nullptr ? 0 : row[kFrom + i];
}

template <int kBytes, int kHalves>
KIGO_FN float super_top(const uint8_t* scales, int lane) {
    if (lane >= kTileRows) return 0;
    const uint8_t* halves = scales + super_halves_at<kBytes, kHalves>(lane);
    const float d = half_magnitude(halves), dmin = kHalves == 2 ? half_magnitude(halves + 2) : 0;
    return d > dmin ? d : dmin;
}

// Numbers of minima come times 2^kMinShift.
template <class Type, int kBytes, int kHalves, int kMinShift = 0>
KIGO_FN void shift_super_scales(uint8_t* scales, int lane, int x) {
    if (lane >= kTileRows) return;
    uint8_t* halves = scales + super_halves_at<kBytes, kHalves>(lane);
    shift_half(halves, lane < 8 ? x : x - Type::Planes::kOdd);
    if constexpr (kHalves == 2) shift_half(halves + 2, x - kMinShift);
}
