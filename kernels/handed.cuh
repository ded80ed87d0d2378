// Rows that kernels hand on as operands (activations.cuh), up to 8: what a product that writes them does, and one that takes them.
#pragma once

#include "epilogue.cuh"
#include "fragments.cuh"

// Of rows whose operands came from the kernel before, what their products are multiplied with, and in each warp whether some of them are
// not well within halves.
struct HandedRows {
    float factors[8];
    bool has_scales[kWarps];

    // Called by all warps; factors are there after the next barrier.
    __device__ __forceinline__ void find(const KigoMatmul& p) {
        const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, n_tiles = p.input.k / kTileRows;
        const float magnitude = lane < p.n ? __uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(p.input.magnitudes) + lane)) : 1;
        float scale, inverse;
        if (p.squares) {
            // A warp has a row.
            const TileSquares squares(reinterpret_cast<const float*>(p.squares) + size_t(warp) * n_tiles, warp < p.n ? n_tiles : 0);
            range_scale(__shfl_sync(~0u, magnitude, warp), scale, inverse);
            const float factor = __fmul_rn(inverse, norm_factor(squares.sum(), p.input.k, p.input.eps));
            if (lane == 0) factors[warp] = factor;
        } else if (warp == 0) {
            range_scale(magnitude, scale, inverse);
            if (lane < 8) factors[lane] = inverse;
        }
        const bool has_any = __any_sync(~0u, has_range_scale(magnitude));
        if (lane == 0) has_scales[warp] = has_any;
        __syncwarp();
    }
};

// The sums of a warp for an item anew, for rows that are not well within halves: from x itself, as prep would round it, and from the matrix
// in memory.
template <class Type, class Sums>
__device__ __noinline__ Sums multiply_scaled(const KigoMatmul& p, uint32_t item, Slice slice) {
    constexpr uint32_t kUnits = Type::kRecordK / kUnitK;
    Sums sums = {};
    const uint32_t lane = threadIdx.x % kWarp, row = lane / 4;
    float scale = 1, inverse;
    if (row < p.n) range_scale(__uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(p.input.magnitudes) + row)), scale, inverse);
    const float* weight = reinterpret_cast<const float*>(p.input.norm_weight);
    const auto value = [&](uint32_t column) {
        if (row >= p.n) return 0.0f;
        float v = __ldcg(reinterpret_cast<const float*>(p.input.x) + size_t(row) * p.input.stride + column);
        if (weight) v = __fmul_rn(v, __ldg(weight + column));
        return __fmul_rn(v, scale);
    };
#pragma unroll 1
    for (uint32_t of_slice = slice.first * kUnits; of_slice < slice.last * kUnits; of_slice++) {
        const uint32_t record = of_slice / kUnits, unit = of_slice % kUnits;
        Activations<Type::kOperand> x;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t column = of_slice * kUnitK + i / 4 * 16 + lane % 4 * 4 + i % 4;
            x.high[i] = pack_halves(value(column), value(column + 32));
        }
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const uint32_t tile = min(2 * item + side, p.n_tiles - 1), place = (record + tile) % p.n_records;
            const uint8_t* from = reinterpret_cast<const uint8_t*>(p.weights) + (size_t(tile) * p.n_records + place) * Record<Type>::kBytes;
            const auto w = make_fragments<Type>(load_unit<Type>(from, unit, lane), scales_of<Type>(from + Record<Type>::kScales, lane), unit);
            multiply_add<Type>(sums.of[side][0], w, x);
        }
    }
    return sums;
}

// Writes a result as operand of the next product, if that wants it, after a norm whose weight is `norm`; returns its magnitude. Called by the
// 16 lanes that have a tile of a column.
__device__ __forceinline__ float hand_on(const KigoMatmul& p, uint32_t row, uint32_t column, float value, float norm = 1) {
    if (!p.operands) return fabsf(value);
    if (p.out_norm) {
        const float squares = Squares::of_tile(value, 0xffffu << (threadIdx.x % kWarp & 16));
        if (row % kTileRows == 0) reinterpret_cast<float*>(p.out_squares)[(size_t(column) * p.n_rows + row) / kTileRows] = squares;
        value = __fmul_rn(value, norm);
    }
    uint8_t* to = reinterpret_cast<uint8_t*>(p.operands) + half_offset(column, row, p.n_rows / kUnitK);
    *reinterpret_cast<__half*>(to) = __float2half_rn(value);
    return fabsf(value);
}
