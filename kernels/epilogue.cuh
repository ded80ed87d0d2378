// What becomes of the products of a tile: bias, residual, gate, rope, cache.
#pragma once

#include "common.cuh"

// Elements of a head that stand at rows 8 * (pair / 8) * 2 + pair % 8 and 8 further: see KIGO_ROWS_ROPE.
struct HeadPair {
    uint32_t low, high;
};

__host__ __device__ __forceinline__ HeadPair head_pair(uint32_t pair, uint32_t n_rot, bool halves) {
    if (pair >= n_rot / 2) return {2 * pair, 2 * pair + 1};
    if (halves) return {pair, pair + n_rot / 2};
    return {2 * pair, 2 * pair + 1};
}

// The tanh form of GELU, as ggml computes it.
__device__ __forceinline__ float gelu(float x) {
    const float inner = 0.7978845608028654f * x * (1 + 0.044715f * x * x);
    return 0.5f * x * (1 + tanhf(inner));
}

// x / (1 + e^(-slope x)) up to a factor of 1 + (|x| + 4) 2^-22: six instructions without a branch, as all results of gate and up come here.
__device__ __forceinline__ float swish(float x, float slope) {
    return __fmul_rn(x, reciprocal_approx(__fadd_rn(exp2_approx(__fmul_rn(x, -slope * kLog2E)), 1)));
}

// What becomes of gate and up; see Activation in src/model/desc.rs.
__device__ __forceinline__ float gated(float gate, float up, uint32_t kind) {
    if (kind == KIGO_SILU_CLAMPED) {
        const float u = fminf(fmaxf(up, -7.0f), 7.0f);
        return __fmul_rn(swish(fminf(gate, 7.0f), 1.702f), __fadd_rn(u, 1));
    }
    return __fmul_rn(kind == KIGO_SILU ? swish(gate, 1) : gelu(gate), up);
}

// The nearest half, without infinities.
__device__ __forceinline__ __half saturated_half(float value) {
    const float limit = 65504;
    return __float2half_rn(value > limit ? limit : value < -limit ? -limit : value);
}

// Where the keys and values of a row go.
struct CachePlace {
    __half* page;
    uint32_t position;
};

__device__ __forceinline__ CachePlace cache_place(const KigoQkv& p, uint32_t column) {
    const KigoRow* row = reinterpret_cast<const KigoRow*>(p.rows) + column;
    const uint32_t position = __ldcg(&row->position);
    const auto* pages = reinterpret_cast<const unsigned long long*>(__ldcg(reinterpret_cast<const unsigned long long*>(&row->pages)));
    return {reinterpret_cast<__half*>(__ldcg(pages + p.table + position / KIGO_PAGE)), position % KIGO_PAGE};
}

// Two elements of a head, at rows g (`low`) and g + 8 (`high`) of tile `tile` of all of q, k and v.
struct HeadElements {
    // 0 for q, 1 for k, 2 for v; the head of it.
    uint32_t part, head;
    // Which elements of the head they are; those from head_dim on do not exist.
    HeadPair dims;
    // The pair that rope turns, from n_rot / 2 on none; the place of `low` in q and the cache, 8 before that of `high`.
    uint32_t pair, place;
};

__device__ __forceinline__ HeadElements head_elements(const KigoQkv& p, uint32_t tile, uint32_t g) {
    const uint32_t per_head = (p.head_dim + 15) / 16, head = tile / per_head, of_head = tile % per_head;
    HeadElements e;
    e.part = head < p.n_head ? 0 : head < p.n_head + p.n_head_kv ? 1 : 2;
    e.head = head - (e.part == 0 ? 0 : e.part == 1 ? p.n_head : p.n_head + p.n_head_kv);
    e.pair = 8 * of_head + g;
    e.place = 16 * of_head + g;
    e.dims = e.part < 2 ? head_pair(e.pair, p.n_rot, p.halves) : HeadPair{e.place, e.place + 8};
    return e;
}

// Adds the elements' of `vector` [heads][head_dim].
__device__ __forceinline__ void add_bias(const KigoQkv& p, const HeadElements& e, uint64_t vector, float& low, float& high) {
    const float* bias = reinterpret_cast<const float*>(vector) + e.head * p.head_dim;
    if (e.dims.low < p.head_dim) low = __fadd_rn(low, __ldg(bias + e.dims.low));
    if (e.dims.high < p.head_dim) high = __fadd_rn(high, __ldg(bias + e.dims.high));
}

// Whether rope turns the elements, and by what in row `column`.
__device__ __forceinline__ bool has_turn(const KigoQkv& p, const HeadElements& e) {
    return e.part < 2 && p.turns && e.pair < p.n_rot / 2;
}

__device__ __forceinline__ float2 load_turn(const KigoQkv& p, const HeadElements& e, uint32_t column) {
    return __ldcg(reinterpret_cast<const float2*>(p.turns) + size_t(column) * p.turns_stride + e.pair);
}

__device__ __forceinline__ void turn_pair(float2 turn, float& low, float& high) {
    const float turned = __fmaf_rn(low, turn.x, -__fmul_rn(high, turn.y));
    high = __fmaf_rn(low, turn.y, __fmul_rn(high, turn.x));
    low = turned;
}

// The keys of head `head` in a page; the values follow.
__device__ __forceinline__ __half* cached_keys(const KigoQkv& p, const CachePlace& at, uint32_t head) {
    return at.page + size_t(p.layer * p.n_head_kv + head) * 2 * KIGO_PAGE * p.dp;
}

// Turns two elements of row `column` and puts them where attention looks for them.
__device__ __forceinline__ void put_elements(const KigoQkv& p, const HeadElements& e, uint32_t column, CachePlace at_cache, float2 turn,
                                             float low, float high) {
    if (has_turn(p, e)) turn_pair(turn, low, high);
    if (e.part == 0) {
        __half* q = reinterpret_cast<__half*>(p.q) + (size_t(column) * p.n_head + e.head) * p.dp;
        q[e.place] = saturated_half(__fmul_rn(low, p.q_scale));
        q[e.place + 8] = saturated_half(__fmul_rn(high, p.q_scale));
        return;
    }
    __half* keys = cached_keys(p, at_cache, e.head);
    if (e.part == 1) {
        keys[at_cache.position * p.dp + e.place] = saturated_half(low);
        keys[at_cache.position * p.dp + e.place + 8] = saturated_half(high);
    } else {
        __half* values = keys + KIGO_PAGE * p.dp + at_cache.position;
        values[e.place * KIGO_PAGE] = saturated_half(low);
        values[(e.place + 8) * KIGO_PAGE] = saturated_half(high);
    }
}

__device__ __forceinline__ void put_elements(const KigoQkv& p, const HeadElements& e, uint32_t column, CachePlace at_cache, float low,
                                             float high) {
    put_elements(p, e, column, at_cache, has_turn(p, e) ? load_turn(p, e, column) : float2{}, low, high);
}

// Takes two elements of a head in column `column`, with the turn that they have, if any.
__device__ __forceinline__ void finish_qkv(const KigoMatmul& p, const HeadElements& e, uint32_t column, CachePlace at_cache, float2 turn,
                                           float low, float high) {
    const uint64_t bias = e.part == 0 ? p.bias[0] : e.part == 1 ? p.bias[1] : p.bias[2];
    if (bias) add_bias(p.qkv, e, bias, low, high);
    put_elements(p.qkv, e, column, at_cache, turn, low, high);
}

// Takes rows g (`low`) and g + 8 (`high`) of tile `tile`, in column `column`.
__device__ __forceinline__ void finish_qkv(const KigoMatmul& p, uint32_t tile, uint32_t g, uint32_t column, CachePlace at_cache,
                                           float low, float high) {
    const HeadElements e = head_elements(p.qkv, tile + p.first_tile, g);
    finish_qkv(p, e, column, at_cache, has_turn(p.qkv, e) ? load_turn(p.qkv, e, column) : float2{}, low, high);
}

// What the sums of a column are multiplied with.
__device__ __forceinline__ float factor_of(const KigoMatmul& p, uint32_t column) {
    return __fmul_rn(__ldcg(reinterpret_cast<const float*>(p.factors) + column), p.weight_scale);
}

// value + the bias of row `row`; experts have their biases one after the other.
__device__ __forceinline__ float biased(const KigoMatmul& p, int part, uint32_t expert, uint32_t row, float value) {
    if (!p.bias[part]) return value;
    return __fadd_rn(value, __ldg(reinterpret_cast<const float*>(p.bias[part]) + size_t(expert) * p.n_rows + row));
}

// What becomes of a result with its bias; `before` is what `out` has, for the kinds that change it.
__device__ __forceinline__ float row_value(const KigoMatmul& p, uint32_t kind, float softcap, float value, float before) {
    if (kind == KIGO_STORE) {
        value = __fmul_rn(value, p.scale);
        if (softcap > 0) value = __fmul_rn(softcap, tanhf(__fdiv_rn(value, softcap)));
    }
    if (kind == KIGO_ADD) value = __fmaf_rn(p.scale, value, before);
    if (kind == KIGO_GATE) value = gated(before, value, p.activation);
    if (kind == KIGO_UNGATED) value = gelu(value);
    return value;
}

__device__ __forceinline__ float* out_at(const KigoMatmul& p, uint32_t row, uint32_t column) {
    return reinterpret_cast<float*>(p.out) + size_t(column) * p.out_stride + row;
}

// What `out` has of a row, if that is changed.
__device__ __forceinline__ float load_before(const KigoMatmul& p, uint32_t row, uint32_t column) {
    return row < p.n_rows && (p.kind == KIGO_ADD || p.kind == KIGO_GATE) ? __ldcg(out_at(p, row, column)) : 0;
}

// One row of a product; returns what went to `out`, or 0 beyond the matrix.
__device__ __forceinline__ float finish_row(const KigoMatmul& p, uint32_t expert, uint32_t row, uint32_t column, float value, float before) {
    if (row >= p.n_rows) return 0;
    value = row_value(p, p.kind, p.softcap, biased(p, 0, expert, row, value), before);
    *out_at(p, row, column) = value;
    return value;
}

__device__ __forceinline__ float finish_row(const KigoMatmul& p, uint32_t expert, uint32_t row, uint32_t column, float value) {
    return finish_row(p, expert, row, column, value, load_before(p, row, column));
}

__device__ __forceinline__ float gated_value(const KigoMatmul& p, uint32_t expert, uint32_t row, float gate, float up) {
    return gated(biased(p, 0, expert, row, gate), biased(p, 1, expert, row, up), p.activation);
}

__device__ __forceinline__ float finish_gated(const KigoMatmul& p, uint32_t expert, uint32_t row, uint32_t column, float gate, float up) {
    if (row >= p.n_rows) return 0;
    const float value = gated_value(p, expert, row, gate, up);
    *out_at(p, row, column) = value;
    return value;
}
