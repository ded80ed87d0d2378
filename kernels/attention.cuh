// What attention over the paged KV cache computes from a page, and how pages are put together: shared by all kernels that attend.
//
// A row's result has the same bits from all of them, whatever runs beside it. The functions here fix the order of every sum:
// a page (64 keys) gives a fresh partial (largest score, sum of weights,
// mix of values), the pages of a chunk (8 pages, 512 positions, the first at a multiple of 512) are folded in ascending
// order into the partial of the chunk, the chunks in ascending order into the result, and last the head's sink. The chunks
// bound what a decode block must fold at its end.
// With a window a row starts at the page of the first key that it sees, within that page's chunk: a page without a key for a
// row changes no bit of its state, so that it does not matter whether pages before are folded, as they are where a tile's
// first row sees them, or not even read. They may hold other positions by then: see src/backend/cuda/kv_cache.rs.
// Byte counts, times and what was tried: attention.md.
#pragma once

#include "common.cuh"

namespace {

constexpr uint32_t kChunk = 8;  // pages
constexpr uint32_t kOnes = 0x3c003c00;  // two f16

// Lane (g, t) of a warp has, of 16 q vectors, numbers g and g+8. The order of k inside a product is free as long as both
// operands agree, and is chosen so that a lane reads 16 contiguous bytes: of a q vector or key, elements 32j + 8t ..+7 are
// steps 2j and 2j+1 of the dot product; of the 64 keys, those in [32h + 8t, +8) are steps 2h and 2h+1 of the mix.

// The key that is column c of score tile i.
__device__ __forceinline__ uint32_t key_of(uint32_t i, uint32_t c) {
    return (i >> 2) * 32 + (c >> 1) * 8 + (i & 3) * 2 + (c & 1);
}

// Scores of kTiles tiles of 8 keys. query(j, r): 16 bytes of q vector g + 8r; key(i, j): 16 bytes of tile i's key of column g.
template <int kDp, int kTiles, class Query, class Key>
__device__ __forceinline__ void scores(float (*s)[4], Query query, Key key) {
#pragma unroll
    for (int i = 0; i < kTiles; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
#pragma unroll
    for (int j = 0; j < kDp / 32; j++) {
        uint4 q0 = query(j, 0), q1 = query(j, 1);
        uint4 k[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; i++) k[i] = key(i, j);
        uint32_t a[4] = {q0.x, q1.x, q0.y, q1.y}, b[4] = {q0.z, q1.z, q0.w, q1.w};
#pragma unroll
        for (int i = 0; i < kTiles; i++) mma_f16(s[i], a, &k[i].x);
#pragma unroll
        for (int i = 0; i < kTiles; i++) mma_f16(s[i], b, &k[i].z);
    }
}

// c tanh(score / c) of scores in units of log2(e).
template <int kTiles>
__device__ __forceinline__ void cap_scores(const KigoAttention& p, float (&s)[kTiles][4]) {
    if (p.softcap == 0) return;
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            // tanh(x) = 1 - 2 / (e^2x + 1), which is off by less than 1e-6 for any x.
            const float power = exp2_approx(__fmul_rn(s[i][c], p.softcap_rate));
            s[i][c] = __fmaf_rn(-2.0f * reciprocal_approx(__fadd_rn(power, 1.0f)), p.softcap, p.softcap);
        }
    }
}

// Takes away the keys beyond the last one of each of the two rows, and those more than `before` before it; tile i of s is
// score tile first + i.
template <int kTiles>
__device__ __forceinline__ void mask(float (&s)[kTiles][4], uint32_t first, uint32_t t, int32_t last0, int32_t last1, uint32_t before) {
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int32_t key = static_cast<int32_t>(key_of(first + i, 2 * t + c));
            // Unsigned: keys beyond the last one are far before it.
            if (static_cast<uint32_t>(last0 - key) > before) s[i][c] = -INFINITY;
            if (static_cast<uint32_t>(last1 - key) > before) s[i][2 + c] = -INFINITY;
        }
    }
}

// Largest score of each of the two rows over kTiles tiles.
template <int kTiles>
__device__ __forceinline__ void largest(const float (&s)[kTiles][4], float (&m)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        m[r] = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
        for (int i = 1; i < kTiles; i++) m[r] = fmaxf(m[r], fmaxf(s[i][2 * r], s[i][2 * r + 1]));
        m[r] = fmaxf(m[r], __shfl_xor_sync(~0u, m[r], 1));
        m[r] = fmaxf(m[r], __shfl_xor_sync(~0u, m[r], 2));
    }
}

// Weights 2^(s - m) of score tiles 2j and 2j+1, as the left operand of step j of the mix. A row without a key weighs 0.
__device__ __forceinline__ void weigh(uint32_t w[4], const float (*s)[4], const float (&m)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float base = m[r] == -INFINITY ? 0.0f : m[r];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            __half2 pair = __floats2half2_rn(exp2_approx(__fsub_rn(s[i][2 * r], base)),
                                             exp2_approx(__fsub_rn(s[i][2 * r + 1], base)));
            w[2 * i + r] = *reinterpret_cast<uint32_t*>(&pair);
        }
    }
}

// Sums of the rounded weights of each of the two rows: the mix of ones.
__device__ __forceinline__ void sum_weights(float (&l)[2], const uint32_t (&w)[4][4]) {
    const uint32_t ones[2] = {kOnes, kOnes};
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 4; j++) mma_f16(d, w[j], ones);
    l[0] = d[0];
    l[1] = d[2];
}

// Mix of kTiles tiles of 8 dimensions. value(n, h): 16 bytes, keys 32h + 8t ..+7 of the tile's dimension g.
template <int kTiles, class Value>
__device__ __forceinline__ void mix(float (&o)[kTiles][4], const uint32_t (&w)[4][4], Value value) {
#pragma unroll
    for (int n = 0; n < kTiles; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint4 v[kTiles];
#pragma unroll
        for (int n = 0; n < kTiles; n++) v[n] = value(n, h);
#pragma unroll
        for (int n = 0; n < kTiles; n++) mma_f16(o[n], w[2 * h], &v[n].x);
#pragma unroll
        for (int n = 0; n < kTiles; n++) mma_f16(o[n], w[2 * h + 1], &v[n].z);
    }
}

// Folding a partial (m, l, o) into a state (M, L, O): rescale(M, m), then L = fold(L, l, f), O = fold(O, o, f).
// The empty state is (-inf, -0, -0), to which folding adds exactly. A page partial without a key (m = -inf, l = o = +0)
// changes no bit of the state.
struct Factors {
    float state, partial;
};

__device__ __forceinline__ Factors rescale(float& M, float m) {
    float before = M;
    M = fmaxf(before, m);
    if (m == -INFINITY) return {1.0f, -0.0f};
    return {exp2_approx(__fsub_rn(before, M)), exp2_approx(__fsub_rn(m, M))};
}

__device__ __forceinline__ float fold(float state, float partial, Factors f) {
    return __fmaf_rn(state, f.state, __fmul_rn(partial, f.partial));
}

// The largest of a lane's value and those of the lanes before it.
__device__ __forceinline__ float largest_so_far(float value, uint32_t lane) {
#pragma unroll
    for (uint32_t apart = 1; apart < kWarp; apart *= 2) {
        const float of_lower = __shfl_up_sync(~0u, value, apart);
        if (lane >= apart) value = fmaxf(value, of_lower);
    }
    return value;
}

// A head's sink, an unscaled score that stands for no key, if there is one.
struct Sink {
    bool has;
    float score;

    __device__ __forceinline__ Sink(const KigoAttention& p, uint32_t head)
        : has(p.sinks), score(p.sinks ? __ldg(reinterpret_cast<const float*>(p.sinks) + head) : 0) {}
};

// What the mix of values O is multiplied with at the end: the state's sum of weights, with the sink folded in, divides it.
__device__ __forceinline__ float last_factor(const Sink& sink, float M, float L) {
    if (!sink.has) return __frcp_rn(L);
    const Factors f = rescale(M, __fmul_rn(sink.score, kLog2E));
    return __fmul_rn(f.state, __frcp_rn(fold(L, 1.0f, f)));
}

__device__ __forceinline__ float last_factor(const KigoAttention& p, uint32_t head, float M, float L) {
    return last_factor(Sink(p, head), M, L);
}

// The page of the first key that the row at `position` sees.
__device__ __forceinline__ uint32_t first_page_of(uint32_t position, uint32_t before) {
    return position > before ? (position - before) / KIGO_PAGE : 0;
}

__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

// Bytes from the start of a page to K of this layer and kv head; V follows after 64 * dp f16.
__device__ __forceinline__ uint64_t page_offset(const KigoAttention& p, uint32_t dp, uint32_t head_kv) {
    return (static_cast<uint64_t>(p.layer) * p.n_head_kv + head_kv) * 2 * KIGO_PAGE * dp * sizeof(__half);
}

template <class T>
__device__ __forceinline__ T* at(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

// Multiplies two neighbouring elements.
__device__ __forceinline__ float2 scale_pair(float* pair, float by) {
    pair[0] = __fmul_rn(pair[0], by);
    pair[1] = __fmul_rn(pair[1], by);
    return {pair[0], pair[1]};
}

// Where a head of a row goes as operands, which has whole units.
struct HeadOperands {
    uint8_t* to;

    __device__ __forceinline__ HeadOperands(const KigoAttention& p, uint32_t row, uint32_t head)
        : to(at<uint8_t>(p.operands) + half_offset(row, head * p.head_dim, p.n_head * p.head_dim / 64)) {}

    // Puts elements d and d + 1.
    __device__ __forceinline__ void put(uint32_t d, float2 x) const {
        __half* pair = reinterpret_cast<__half*>(to + half_offset(0, d, 0));
        pair[0] = __float2half_rn(x.x);
        pair[2] = __float2half_rn(x.y);
    }
};

// Where element `x` of all heads of row `row` and the one 32 further go as operands in KIGO_ORDER_SWIZZLED; heads have whole units.
__device__ __forceinline__ __half2* swizzled_operands(const KigoAttention& p, uint32_t row, uint32_t x) {
    const uint32_t a = x / 16 % 2, t = x / 4 % 4, i = x % 4;
    uint8_t* to = at<uint8_t>(p.operands) + static_cast<uint64_t>(x / 64) * ((p.n + 7) / 8) * 1024 + row * 128;
    return reinterpret_cast<__half2*>(to + ((4 * a + i) ^ row % 8) * 16 + 4 * t);
}

// Puts elements `x` and x + 1 of all heads, and those 32 further.
__device__ __forceinline__ void put_operands(const KigoAttention& p, uint32_t row, uint32_t x, float2 low, float2 high) {
    *swizzled_operands(p, row, x) = __floats2half2_rn(low.x, high.x);
    *swizzled_operands(p, row, x + 1) = __floats2half2_rn(low.y, high.y);
}

// Zeroes the keys from `valid` on in 8 values: unwritten cache may hold NaN, which a weight of 0 does not silence.
__device__ __forceinline__ void trim(uint4& v, int32_t valid) {
    uint32_t* word = &v.x;
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] &= valid >= 2 * i + 2 ? ~0u : valid == 2 * i + 1 ? 0xffffu : 0u;
}

}  // namespace
