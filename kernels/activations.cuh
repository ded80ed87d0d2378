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
// Kernels whose results are rows of the next product write halves of them in this order too, and of `prep` is left what is to be
// multiplied.
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
        float sum = 0, largest = 0;
        auto weigh = [&](uint32_t q) {
            const float4 v = __ldcg(x + q), w = __ldg(weight + q);
            sum = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, sum))));
            const float4 y = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
            largest = fmaxf(fmaxf(largest, fmaxf(fabsf(y.x), fabsf(y.y))), fmaxf(fabsf(y.z), fabsf(y.w)));
            return y;
        };
        for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) staging[q] = weigh(q);
        const float2 all = block_sum_max(sum, largest, scratch);
        if (!kBf16) range_scale(all.y, scale, inverse);
        // A thread reads what it wrote.
        for (uint32_t q = threadIdx.x; q < n_quads; q += kThreads) emit(q, scaled(staging[q]));
        return __fmul_rn(inverse, __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(all.x, float(in.k)), in.eps))));
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
