// Activations as operands of the tensor cores.
//
// A row is rounded to halves; where its largest magnitude is not in [2^-8, 2^15), it is multiplied before with a power of two that
// brings it into [2^14, 2^15), and its products with the inverse. RMSNorm's factor is applied there too, since it is the same for
// the whole row.
// Types whose operands are bfloat16 take the sum of two bfloat16 instead, which needs no scale.
//
// For batches, `prep` writes records: 8 rows (columns of the product) by 64 columns, in the order of fragments. With
// g = row % 8 and t as in quant/layout.cuh, lane 4 g + t owns columns c = 16 a + 4 t + i (i < 4, a < 2) and 32 + c: pair i of
// products 2 a and 2 a + 1, at
//   byte a * 512 + lane * 16 + 4 i                 halves, that of column c first
// and of bfloat16 pairs
//   byte a * 512 + ...                             the larger parts
//   byte 1024 + a * 512 + ...                      the rests
//
// KIGO_ORDER_SWIZZLED has the same in other places, for the tensor cores to read from shared memory: for every unit of 64
// columns and every 8 rows the 1024 bytes of halves, or of the larger parts, then for all units those of the rests. The pair is at
// 128 g + 16 ((4 a + i) ^ g) + 4 t.
// Kernels whose results are rows of the next product write halves of them themselves. Of many rows, in this order, is left to `prep` what
// is to be multiplied; few (KIGO_ORDER_FRAGMENTS) have no `prep` then: the product sees to it.
//
// Squares of a row are added up by tiles, so that who computes one can begin with it: see Squares.
#pragma once

#include "common.cuh"
#include "quant/layout.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Bytes of a record of activations.
template <Operand kOperand>
constexpr int kActivationBytes = kOperand == Operand::kF16 ? 1024 : 2048;

// What one lane multiplies a unit of weights with.
template <Operand kOperand>
struct Activations {
    // Fragments of products 0..3, two registers each.
    alignas(16) uint32_t high[8];
    // The rests of bfloat16 pairs.
    alignas(16) uint32_t low[kOperand == Operand::kF16 ? 1 : 8];
};

// Where four neighbouring columns, a quad, of a row and those 32 further go: two pairs from the first quad's lane, two from the
// other's.
struct QuadPlace {
    uint32_t unit, a, t, i;

    __device__ __forceinline__ explicit QuadPlace(uint32_t quad)
        : unit(quad / 16), a(quad / 4 % 2), t(quad % 4), i(quad / 8 % 2 * 2) {}

    // In a unit's 128 bytes of a row: those of lane t, a after a.
    __device__ __forceinline__ uint32_t in_row() const { return a * 64 + t * 16 + i * 4; }
};

// The words of pairs i and i + 1 (i even) of lane t in the 128 bytes of row g, in KIGO_ORDER_SWIZZLED.
struct SwizzledPlace {
    uint32_t first, second;

    __device__ __forceinline__ SwizzledPlace(const QuadPlace& at, uint32_t g)
        : first((16 * (4 * at.a + at.i) ^ 16 * g) + 4 * at.t), second(first ^ 16) {}
};

// Pairs i and i + 1 of a place.
struct Quad {
    uint2 high;
    uint2 low;
};

__device__ __forceinline__ uint32_t pack_halves(float a, float b) {
    const __half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

// The bfloat16 nearest to `value`, as the upper half of an f32.
__device__ __forceinline__ float round_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return value;
    return __uint_as_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

__device__ __forceinline__ uint32_t pack_bf16(float a, float b) {
    return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}

// Pairs of what two lanes have of columns 32 apart: the lane of the first ones takes pairs 0 and 1, the other 2 and 3. Where the
// whole warp calls it, ptxas need not look up which lanes have the same mask.
template <bool kWholeWarp>
__device__ __forceinline__ uint2 pair_up(uint2 mine) {
    const bool second = threadIdx.x & 8;
    const uint32_t group = kWholeWarp ? ~0u : 0xffffu << (threadIdx.x % kWarp & 16);
    const uint32_t theirs = __shfl_xor_sync(group, second ? mine.x : mine.y, 8);
    const uint32_t first = second ? theirs : mine.x, other = second ? mine.y : theirs;
    return {__byte_perm(first, other, 0x5410), __byte_perm(first, other, 0x7632)};
}

// Called by aligned groups of 16 lanes, which hold a unit's 64 columns.
template <bool kBf16, bool kWholeWarp = false>
__device__ __forceinline__ Quad make_quad(float4 v) {
    if constexpr (kBf16) {
        const float4 r = {round_bf16(v.x), round_bf16(v.y), round_bf16(v.z), round_bf16(v.w)};
        const uint2 rests = {pack_bf16(round_bf16(v.x - r.x), round_bf16(v.y - r.y)), pack_bf16(round_bf16(v.z - r.z), round_bf16(v.w - r.w))};
        return {pair_up<kWholeWarp>({pack_bf16(r.x, r.y), pack_bf16(r.z, r.w)}), pair_up<kWholeWarp>(rests)};
    } else {
        return {pair_up<kWholeWarp>({pack_halves(v.x, v.y), pack_halves(v.z, v.w)}), {}};
    }
}

// Largest magnitudes of a row that is well within halves: from the first on, below the second.
constexpr float kLeastInRange = 0x1p-8f, kBeyondRange = 0x1p15f;

// Whether a row with this largest magnitude is multiplied with something: one that is well within halves is not, so that who computes
// the row can round it. Neither is one of zeros or subnormal numbers, or with a number that is none.
__device__ __forceinline__ bool has_range_scale(float magnitude) {
    return (magnitude >= 0x1p-126f && magnitude < kLeastInRange) || (magnitude >= kBeyondRange && magnitude < INFINITY);
}

// Whether a row whose largest magnitude is this as a half is certainly not multiplied with anything.
__device__ __forceinline__ bool keeps_range(float rounded) { return rounded > kLeastInRange && rounded < kBeyondRange; }

// The power of two that a row is multiplied with, and its inverse.
__device__ __forceinline__ void range_scale(float magnitude, float& scale, float& inverse) {
    const int exponent = __float_as_uint(magnitude) >> 23 & 255;
    // Both stay normal numbers.
    const int field = has_range_scale(magnitude) ? min(max(127 + 14 - (exponent - 127), 1), 253) : 127;
    scale = __uint_as_float(field << 23);
    inverse = __uint_as_float((254 - field) << 23);
}

// Sum and maximum over the block, in an order that only depends on the thread. All threads call it; `scratch` is free again
// after the next __syncthreads().
__device__ __forceinline__ float2 block_sum_max(float sum, float largest, float2* scratch) {
    const float2 mine = {warp_sum(sum), warp_max(largest)};
    __syncthreads();
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = mine;
    __syncthreads();
    float2 all = scratch[0];
    for (int warp = 1; warp < kWarps; warp++) {
        all.x = __fadd_rn(all.x, scratch[warp].x);
        all.y = fmaxf(all.y, scratch[warp].y);
    }
    return all;
}

// Brings the weight of the norm near, which does not depend on the kernels before.
__device__ __forceinline__ void prefetch_norm(const KigoInput& in) {
    if (in.norm == KIGO_NORM_NONE) return;
    for (uint32_t at = threadIdx.x * 128; at < in.stride * 4; at += kThreads * 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(in.norm_weight + at));
    }
}

// The sum of squares of a row. Those of a tile of 16 columns are added up first; tiles in 64 chains of every 64th; of these chains 8 w to
// 8 w + 7, by pairs 4, 2 and 1 apart; the eight sums of that in the same way.
struct Squares {
    __device__ __forceinline__ static float of_pair(float first, float second) { return __fmaf_rn(first, first, __fmul_rn(second, second)); }

    __device__ __forceinline__ static float of_quad(float4 v) { return __fadd_rn(of_pair(v.x, v.y), of_pair(v.z, v.w)); }

    // Of a tile of which each of four lanes has a quad, in all of these.
    __device__ __forceinline__ static float of_tile(float4 v) { return with(with(of_quad(v), 2), 1); }

    // Of a tile of which each of 16 lanes has a column.
    __device__ __forceinline__ static float of_tile(float value, uint32_t lanes) {
        const float other = __shfl_xor_sync(lanes, value, 1);
        const float pair = threadIdx.x % 2 ? of_pair(other, value) : of_pair(value, other);
        return with(with(with(pair, 2, lanes), 8, lanes), 4, lanes);
    }

    // Of eight chains of which four lanes have one each.
    __device__ __forceinline__ static float of_fours(float chain) { return with(with(with(chain, 16), 8), 4); }

    // Of all chains, of which a lane has its own and the one that is 32 further.
    __device__ __forceinline__ static float of_lanes(float lower, float upper) {
        lower = with(with(with(lower, 4), 2), 1);
        upper = with(with(with(upper, 4), 2), 1);
        return with(with(__fadd_rn(lower, upper), 16), 8);
    }

    __device__ __forceinline__ static float of_eights(const float (&sums)[8]) {
        const float even = __fadd_rn(__fadd_rn(sums[0], sums[4]), __fadd_rn(sums[2], sums[6]));
        return __fadd_rn(even, __fadd_rn(__fadd_rn(sums[1], sums[5]), __fadd_rn(sums[3], sums[7])));
    }

    // Of a row in shared memory, in all lanes of a warp.
    __device__ __forceinline__ static float of_row(const float4* x, uint32_t n_quads) {
        const uint32_t lane = threadIdx.x % kWarp;
        float chains[2] = {};
#pragma unroll 1
        for (uint32_t first = 0; first < n_quads / 4; first += 2 * kWarp) {
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                const uint32_t tile = first + half * kWarp + lane;
                float quads[4];
                // Eight lanes read from all banks; it does not matter which quad is the first.
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) quads[i] = tile < n_quads / 4 ? of_quad(x[4 * tile + (i + lane / 2) % 4]) : 0;
                chains[half] = __fadd_rn(chains[half], __fadd_rn(__fadd_rn(quads[0], quads[2]), __fadd_rn(quads[1], quads[3])));
            }
        }
        return of_lanes(chains[0], chains[1]);
    }

   private:
    __device__ __forceinline__ static float with(float value, int apart, uint32_t lanes = ~0u) {
        return __fadd_rn(value, __shfl_xor_sync(lanes, value, apart));
    }
};

// Those of a row whose tiles' are in memory: asked for before they are added up, by a warp.
struct TileSquares {
    static constexpr uint32_t kAtOnce = 8;
    const float* tiles;
    uint32_t n;
    float first[kAtOnce];

    __device__ __forceinline__ TileSquares(const float* tiles, uint32_t n) : tiles(tiles), n(n) {
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) first[i] = load(i);
    }

    __device__ __forceinline__ float load(uint32_t i) const {
        const uint32_t tile = threadIdx.x % kWarp + i * kWarp;
        return tile < n ? __ldcg(tiles + tile) : 0;
    }

    __device__ __forceinline__ float sum() const {
        float chains[2] = {};
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) chains[i % 2] = __fadd_rn(chains[i % 2], first[i]);
#pragma unroll 1
        for (uint32_t i = kAtOnce; i * kWarp < n; i += 2) {
            chains[0] = __fadd_rn(chains[0], load(i));
            chains[1] = __fadd_rn(chains[1], load(i + 1));
        }
        return Squares::of_lanes(chains[0], chains[1]);
    }
};

// Sum of squares and largest magnitude over the block, of the chains and quads that threads have. All threads call it; `scratch` is free
// again after the next __syncthreads().
__device__ __forceinline__ float2 block_squares_max(float chain, float largest, float2* scratch) {
    const float2 mine = {Squares::of_fours(chain), warp_max(largest)};
    __syncthreads();
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = mine;
    __syncthreads();
    float sums[kWarps], most = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; warp++) {
        sums[warp] = scratch[warp].x;
        most = fmaxf(most, scratch[warp].y);
    }
    return {Squares::of_eights(sums), most};
}

// Quads that a thread has under way at most. One after the other, each would wait for L2 by itself: that took most of the time.
constexpr int kMostAtOnce = 4;

// `use(number, x, weight)` for all quads of a thread, in their order, of which it takes every `step`th, kAtOnce at a time; before, `see(x)`
// with those as well that there are not, as zeros, so that whole warps call it.
template <bool kWeighs, int kAtOnce, class See, class Use>
__device__ __forceinline__ void each_quad(const KigoInput& in, uint32_t from, uint32_t number, uint32_t step, See see, Use use) {
    const uint32_t n_quads = in.stride / 4;
    const float4* x = reinterpret_cast<const float4*>(in.x) + size_t(from) * n_quads;
    const float4* weight = reinterpret_cast<const float4*>(in.norm_weight);
    for (uint32_t first = 0; first < n_quads; first += kAtOnce * step) {
        float4 v[kAtOnce] = {}, w[kAtOnce] = {};
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            const uint32_t quad = first + i * step + number;
            if (quad >= n_quads) continue;
            v[i] = __ldcg(x + quad);
            if constexpr (kWeighs) w[i] = __ldg(weight + quad);
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) see(v[i]);
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            const uint32_t quad = first + i * step + number;
            if (quad < n_quads) use(quad, v[i], w[i]);
        }
    }
}

// Squares and largest magnitude of a row that is normed; its quads times the weight go to `staging`.
__device__ __forceinline__ float2 weigh_row(const KigoInput& in, uint32_t from, float4* staging, float2* scratch) {
    float chain = 0, largest = 0;
    const auto see = [&](float4 v) { chain = __fadd_rn(chain, Squares::of_tile(v)); };
    const auto weigh = [&](uint32_t quad, float4 v, float4 w) {
        const float4 y = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
        largest = fmaxf(fmaxf(largest, fmaxf(fabsf(y.x), fabsf(y.y))), fmaxf(fabsf(y.z), fabsf(y.w)));
        staging[quad] = y;
    };
    // Those that there are not cost instructions.
    if (in.stride <= 2 * 4 * kThreads) {
        each_quad<true, 2>(in, from, threadIdx.x, kThreads, see, weigh);
    } else {
        each_quad<true, kMostAtOnce>(in, from, threadIdx.x, kThreads, see, weigh);
    }
    return block_squares_max(chain, largest, scratch);
}

// Turns one row into quads, `emit(quad number, quad)`, and returns the factor of its products. Called by all threads of a
// block; `staging` holds `stride` floats in shared memory where there is a norm.
template <bool kBf16, class Emit>
__device__ float activate_row(const KigoInput& in, uint32_t row, float4* staging, float2* scratch, Emit emit) {
    const uint32_t n_quads = in.stride / 4, from = in.select ? __ldcg(reinterpret_cast<const uint32_t*>(in.select) + row) : row;
    const float4* x = reinterpret_cast<const float4*>(in.x) + size_t(from) * n_quads;
    const float4* weight = reinterpret_cast<const float4*>(in.norm_weight);
    const float4* bias = reinterpret_cast<const float4*>(in.norm_bias);
    float scale = 1, inverse = 1;
    auto scaled = [&](float4 v) {
        return make_quad<kBf16>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
    };
    if (in.norm == KIGO_NORM_NONE) {
        if (!kBf16) range_scale(__uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(in.magnitudes) + from)), scale, inverse);
        for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) emit(q, scaled(__ldcg(x + q)));
        return inverse;
    }
    if (in.norm == KIGO_NORM_RMS) {
        const float2 all = weigh_row(in, from, staging, scratch);
        if (!kBf16) range_scale(all.y, scale, inverse);
        // A thread reads what it wrote.
        for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) emit(q, scaled(staging[q]));
        return __fmul_rn(inverse, norm_factor(all.x, in.k, in.eps));
    }
    float sum = 0;
    for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) {
        const float4 v = __ldcg(x + q);
        sum = __fadd_rn(sum, __fadd_rn(__fadd_rn(v.x, v.y), __fadd_rn(v.z, v.w)));
        staging[q] = v;
    }
    const float mean = __fdiv_rn(block_sum_max(sum, 0, scratch).x, float(in.k));
    float squares = 0;
    for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) {
        const float* v = reinterpret_cast<const float*>(staging + q);
        for (int i = 0; i < 4; i++) {
            const float d = 4 * q + i < in.k ? __fsub_rn(v[i], mean) : 0;
            squares = __fmaf_rn(d, d, squares);
        }
    }
    const float variance = __fdiv_rn(block_sum_max(squares, 0, scratch).x, float(in.k));
    const float shrink = __frcp_rn(__fsqrt_rn(__fadd_rn(variance, in.eps)));
    float largest = 0;
    for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) {
        float* v = reinterpret_cast<float*>(staging + q);
        const float4 weights = __ldg(weight + q), biases = bias ? __ldg(bias + q) : float4{0, 0, 0, 0};
        const float *w = &weights.x, *b = &biases.x;
        for (int i = 0; i < 4; i++) {
            v[i] = __fmaf_rn(__fmul_rn(__fsub_rn(v[i], mean), shrink), w[i], b[i]);
            largest = fmaxf(largest, fabsf(v[i]));
        }
    }
    const float2 all = block_sum_max(0, largest, scratch);
    if (!kBf16) range_scale(all.y, scale, inverse);
    for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) emit(q, scaled(staging[q]));
    return inverse;
}
