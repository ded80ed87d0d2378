// What becomes of results that the product with very many rows (prefill.cuh) has in shared memory, a warp at a time.
//
// A scheduler has one such warp, so that what counts is how many instructions wait for each other: what is usual has paths of
// its own, without branches and with four rows for a lane.
#pragma once

#include "activations.cuh"
#include "epilogue.cuh"

namespace prefill {

// Tiles of an item of a block, their rows; columns of a part of it.
constexpr int kItemTiles = 8, kItemRows = kItemTiles * kTileRows;
constexpr int kPartColumns = 64;

// Where the result of row `row` and column `column` of a part stands: so that the rows of a lane's columns are in all banks.
__device__ __forceinline__ uint32_t result_place(uint32_t row, uint32_t column) { return column * kItemRows + (row ^ column / 2 % 4 * 8); }

// Sums of slice `slice` of the rows of a block whose first tile is `tile`, in column `column`: a product that is split has them in
// memory, those of each slice and each block of tiles as columns of kItemRows.
__device__ __forceinline__ float* slice_sums(const KigoMatmul& p, uint32_t slice, uint32_t tile, uint32_t column) {
    const uint32_t n_blocks = (p.n_tiles + kItemTiles - 1) / kItemTiles, n_columns = (p.n + kPartColumns - 1) / kPartColumns * kPartColumns;
    return reinterpret_cast<float*>(p.late) + ((size_t(slice) * n_blocks + tile / kItemTiles) * n_columns + column) * kItemRows;
}

// Four neighbouring rows of a column of `out`.
struct FourRows {
    float* at;
    // How many of them exist; whether they may be moved as one.
    uint32_t n;
    bool whole;

    __device__ __forceinline__ FourRows(const KigoMatmul& p, uint32_t row, uint32_t column, uint32_t last)
        : at(reinterpret_cast<float*>(p.out) + size_t(column) * p.out_stride + row),
          n(column < last && row < p.n_rows ? min(p.n_rows - row, 4) : 0),
          whole(n == 4 && reinterpret_cast<uint64_t>(at) % 16 == 0) {}

    __device__ __forceinline__ float4 load() const {
        if (whole) return __ldcg(reinterpret_cast<const float4*>(at));
        float4 v = {0, 0, 0, 0};
        if (n > 0) v.x = __ldcg(at);
        if (n > 1) v.y = __ldcg(at + 1);
        if (n > 2) v.z = __ldcg(at + 2);
        if (n > 3) v.w = __ldcg(at + 3);
        return v;
    }

    __device__ __forceinline__ void store(float4 v) const {
        if (whole) {
            *reinterpret_cast<float4*>(at) = v;
            return;
        }
        if (n > 0) at[0] = v.x;
        if (n > 1) at[1] = v.y;
        if (n > 2) at[2] = v.z;
        if (n > 3) at[3] = v.w;
    }

    // The largest magnitude of those that exist.
    __device__ __forceinline__ float largest(float4 v) const {
        float out = n > 0 ? fabsf(v.x) : 0;
        if (n > 1) out = fmaxf(out, fabsf(v.y));
        if (n > 2) out = fmaxf(out, fabsf(v.z));
        if (n > 3) out = fmaxf(out, fabsf(v.w));
        return out;
    }
};

// What becomes of some columns' results of a block, as a warp; the first column is `first`.
template <int kColumns, bool kManyRegisters>
struct Finisher {
    const KigoMatmul& p;
    uint32_t expert, tile, first, last, lane;
    // Columns that exist; whether all rows do, and those of a lane may be moved as one, and columns in eights or all of them.
    uint32_t n_columns;
    bool whole;
    // Of column lane % kColumns.
    float factor;
    CachePlace place;

    __device__ __forceinline__ Finisher(const KigoMatmul& p, uint32_t expert, uint32_t tile, uint32_t first, uint32_t last, uint32_t lane)
        : p(p), expert(expert), tile(tile), first(first), last(last), lane(lane), n_columns(first < last ? min(last - first, kColumns) : 0),
          factor(0), place{} {
        const bool rows_whole = p.out % 16 == 0 && p.out_stride % 4 == 0 &&
                                (tile + kItemTiles) * kTileRows <= (p.kind == KIGO_GATED ? 2 * p.n_rows : p.n_rows);
        whole = p.kind == KIGO_QKV ? n_columns == kColumns && tile + kItemTiles <= p.n_tiles
                                   : (n_columns == kColumns || n_columns % 8 == 0) && rows_whole;
        const uint32_t column = first + lane % kColumns;
        if (column >= last) return;
        factor = factor_of(p, column);
        if (p.kind == KIGO_QKV && !only_q()) place = cache_place(p.qkv, column);
    }

    // Whether all rows of the block are of q.
    __device__ __forceinline__ bool only_q() const {
        return tile + kItemTiles + p.first_tile <= p.qkv.n_head * ((p.qkv.head_dim + kTileRows - 1) / kTileRows);
    }

    // Brings what results are added to near, which may have left L2: for each column four lines.
    __device__ __forceinline__ void prefetch() const {
        if (!whole || p.kind != KIGO_ADD) return;
        for (uint32_t line = lane; line < 4 * n_columns; line += kWarp) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(out(tile * kTileRows + line % 4 * kWarp, line / 4)));
        }
    }

    // `results` are those of the first column; `i` counts from it.
    __device__ __forceinline__ float4 four(const float* results, uint32_t row, uint32_t i) const {
        return four(results, row, i, __shfl_sync(~0u, factor, i));
    }

    __device__ __forceinline__ static float4 four(const float* results, uint32_t row, uint32_t i, float by) {
        const float4 v = *reinterpret_cast<const float4*>(results + result_place(row, i));
        return {__fmul_rn(v.x, by), __fmul_rn(v.y, by), __fmul_rn(v.z, by), __fmul_rn(v.w, by)};
    }

    __device__ __forceinline__ float* out(uint32_t row, uint32_t i) const {
        return reinterpret_cast<float*>(p.out) + size_t(first + i) * p.out_stride + row;
    }

    __device__ __forceinline__ static float largest_of(float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

    // Brings the largest magnitude of column i, of which each kLanes lanes have one, to the lanes that have it in `most`: those of
    // column lane % kColumns.
    template <int kLanes>
    __device__ __forceinline__ void collect(float& most, float largest, uint32_t i) const {
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        const uint32_t own = lane % kColumns;
        if constexpr (kLanes == 16) {
            const float other = __shfl_xor_sync(~0u, largest, 16);
            if (own == (i ^ 1)) most = other;
        }
        if (own == i) most = largest;
    }

    // The same of columns start, start + 2 and so on for the lower 16 lanes, of those between for the upper ones: while lanes have
    // several, each keeps every second of them.
    template <int kTogether>
    __device__ __forceinline__ void collect_pairs(float& most, float (&largest)[kTogether], uint32_t start) const {
#pragma unroll
        for (int step = 1; step < kTogether; step *= 2) {
#pragma unroll
            for (int i = 0; i < kTogether / 2 / step; i++) {
                const bool second = lane & step;
                const float kept = second ? largest[2 * i + 1] : largest[2 * i], given = second ? largest[2 * i] : largest[2 * i + 1];
                largest[i] = fmaxf(kept, __shfl_xor_sync(~0u, given, step));
            }
        }
#pragma unroll
        for (int step = kTogether; step < 16; step *= 2) largest[0] = fmaxf(largest[0], __shfl_xor_sync(~0u, largest[0], step));
        const uint32_t own = lane % kColumns - start;
        const float value = __shfl_sync(~0u, largest[0], own % 2 * 16 + own / 2 % kTogether);
        if (own < 2 * kTogether) most = value;
    }

    // Raises the magnitudes of all columns. One by one, blocks that end at a time would wait for each other: a line has 32 of them.
    __device__ __forceinline__ void raise(float most) const {
        if (lane < n_columns) raise_magnitude(reinterpret_cast<uint32_t*>(p.magnitudes) + first + lane, most);
    }

    // Writes rows `row` to `row` + 3 of column i as operands, by 16 lanes that have the fours of 64 rows.
    __device__ __forceinline__ void put_operands(uint32_t row, uint32_t i, float4 v) const {
        const uint32_t column = first + i;
        const Quad quad = make_quad<false>(v);
        if (column >= last) return;
        const QuadPlace at(row / 4);
        const SwizzledPlace place(at, column % 8);
        uint8_t* to = reinterpret_cast<uint8_t*>(p.operands) + size_t(at.unit) * ((p.n + 7) / 8) * 1024 + column * 128;
        *reinterpret_cast<uint32_t*>(to + place.first) = quad.high.x;
        *reinterpret_cast<uint32_t*>(to + place.second) = quad.high.y;
    }

    // Of bias `part`, those of four neighbouring rows.
    __device__ __forceinline__ float4 biases(int part, uint32_t row) const {
        const float* at = reinterpret_cast<const float*>(p.bias[part]) + size_t(expert) * p.n_rows + row;
        return {__ldg(at), __ldg(at + 1), __ldg(at + 2), __ldg(at + 3)};
    }

    __device__ __forceinline__ static float4 plus(float4 v, float4 b) {
        return {__fadd_rn(v.x, b.x), __fadd_rn(v.y, b.y), __fadd_rn(v.z, b.z), __fadd_rn(v.w, b.w)};
    }

    // What is usual, apart: without branches between them, so that values are computed at a time. A lane's rows are the same in
    // all columns, of which it has every second.
    template <uint32_t kKind, bool kBiased>
    __device__ __forceinline__ void finish_gated(const float* results) const {
        constexpr int kTogether = kManyRegisters && kColumns > 4 ? 4 : 2;
        const uint32_t pair = lane % 16 / 4, of_pair = lane % 4 * 4, odd = lane / 16;
        const uint32_t row = (tile / 2 + pair) * kTileRows + of_pair, column = first + odd;
        float4 bias[2] = {};
        if (kBiased) bias[0] = biases(0, row), bias[1] = biases(1, row);
        const QuadPlace at(row / 4);
        const SwizzledPlace place(at, column % 8);
        uint8_t* operands = reinterpret_cast<uint8_t*>(p.operands) + size_t(at.unit) * ((p.n + 7) / 8) * 1024 + size_t(column) * 128;
        float* to = out(row, odd);
        float most = 0;
#pragma unroll 1
        for (uint32_t start = 0; start < n_columns; start += 2 * kTogether) {
            float4 v[kTogether], up[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; j++) {
                const uint32_t i = start + 2 * j + odd;
                const float by = __shfl_sync(~0u, factor, i);
                v[j] = four(results, 32 * pair + of_pair, i, by);
                up[j] = four(results, 32 * pair + 16 + of_pair, i, by);
                if (kBiased) v[j] = plus(v[j], bias[0]), up[j] = plus(up[j], bias[1]);
            }
#pragma unroll
            for (int j = 0; j < kTogether; j++, to += 2 * size_t(p.out_stride)) {
                v[j] = {gated(v[j].x, up[j].x, kKind), gated(v[j].y, up[j].y, kKind), gated(v[j].z, up[j].z, kKind), gated(v[j].w, up[j].w, kKind)};
                *reinterpret_cast<float4*>(to) = v[j];
            }
            if (p.operands) {
#pragma unroll
                for (int j = 0; j < kTogether; j++, operands += 256) {
                    // The column's number in its eight differs in bits 1 and 2.
                    const uint32_t by = (start + 2 * j) % 8 * 16;
                    const Quad quad = make_quad<false, true>(v[j]);
                    *reinterpret_cast<uint32_t*>(operands + (place.first ^ by)) = quad.high.x;
                    *reinterpret_cast<uint32_t*>(operands + (place.second ^ by)) = quad.high.y;
                }
            }
            if (p.magnitudes) {
                float largest[kTogether];
#pragma unroll
                for (int j = 0; j < kTogether; j++) largest[j] = largest_of(v[j]);
                collect_pairs(most, largest, start);
            }
        }
        if (p.magnitudes) raise(most);
    }

    template <bool kAdds, bool kBiased>
    __device__ __forceinline__ void finish_whole(const float* results) const {
        constexpr int kTogether = kManyRegisters && kColumns > 4 ? 8 : 4;
        const uint32_t row = tile * kTileRows + 4 * lane;
        const float4 bias = kBiased ? biases(0, row) : float4{};
        float most = 0;
#pragma unroll 1
        for (uint32_t start = 0; start < n_columns; start += kTogether) {
            float4 before[kTogether] = {};
#pragma unroll
            for (int i = 0; kAdds && i < kTogether; i++) before[i] = __ldcg(reinterpret_cast<const float4*>(out(row, start + i)));
#pragma unroll
            for (int i = 0; i < kTogether; i++) {
                constexpr uint32_t kKind = kAdds ? KIGO_ADD : KIGO_STORE;
                float4 v = four(results, 4 * lane, start + i);
                if (kBiased) v = plus(v, bias);
                const float4 b = before[i];
                before[i] = {row_value(p, kKind, 0, v.x, b.x), row_value(p, kKind, 0, v.y, b.y), row_value(p, kKind, 0, v.z, b.z),
                             row_value(p, kKind, 0, v.w, b.w)};
                *reinterpret_cast<float4*>(out(row, start + i)) = before[i];
            }
#pragma unroll
            for (int i = 0; i < kTogether; i++) {
                if (p.magnitudes) collect<kWarp>(most, largest_of(before[i]), start + i);
            }
        }
        if (p.magnitudes) raise(most);
    }

    // What is not.
    __device__ __forceinline__ void finish_rows(const float* results) const {
        const bool is_gated = p.kind == KIGO_GATED;
        const uint32_t pair = lane % 16 / 4, of_pair = lane % 4 * 4;
        const uint32_t row = is_gated ? (tile / 2 + pair) * kTileRows + of_pair : tile * kTileRows + 4 * lane;
        float most = 0;
#pragma unroll 1
        for (int start = 0; start < kColumns; start += is_gated ? 2 : 1) {
            const uint32_t i = start + (is_gated ? lane / 16 : 0);
            const FourRows rows(p, row, first + i, last);
            const float4 v = four(results, is_gated ? 32 * pair + of_pair : 4 * lane, i);
            const float4 up = four(results, is_gated ? 32 * pair + 16 + of_pair : 0, i);
            const float4 before = p.kind == KIGO_ADD || p.kind == KIGO_GATE ? rows.load() : float4{};
            auto value_of = [&](float value, float up, float before, uint32_t at) {
                at = min(at, p.n_rows - 1);
                if (is_gated) return gated_value(p, expert, at, value, up);
                return row_value(p, p.kind, p.softcap, biased(p, 0, expert, at, value), before);
            };
            const float4 value = {value_of(v.x, up.x, before.x, row), value_of(v.y, up.y, before.y, row + 1),
                                  value_of(v.z, up.z, before.z, row + 2), value_of(v.w, up.w, before.w, row + 3)};
            rows.store(value);
            if (p.magnitudes && is_gated) collect<16>(most, rows.largest(value), i);
            if (p.magnitudes && !is_gated) collect<kWarp>(most, rows.largest(value), i);
            // Rows are a multiple of 64: all lanes of a unit have some that exist, or none.
            if (p.operands && row < p.n_rows) put_operands(row, i, value);
        }
        if (p.magnitudes) raise(most);
    }

    // Eight rows of four columns at a time.
    __device__ __forceinline__ void finish_heads(const float* results) const {
#pragma unroll 1
        for (uint32_t of_block = 0; of_block < kItemTiles && tile + of_block < p.n_tiles; of_block++) {
            const HeadElements e = head_elements(p.qkv, tile + of_block + p.first_tile, lane % 8);
            const uint32_t row = of_block * kTileRows + lane % 8;
            float2 turn[kColumns / 4];
#pragma unroll
            for (int step = 0; step < kColumns / 4; step++) {
                turn[step] = has_turn(p.qkv, e) ? load_turn(p.qkv, e, min(first + 4 * step + lane / 8, last - 1)) : float2{};
            }
#pragma unroll
            for (int step = 0; step < kColumns / 4; step++) {
                const uint32_t i = 4 * step + lane / 8;
                const float by = __shfl_sync(~0u, factor, i);
                const CachePlace at = {reinterpret_cast<__half*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(place.page), i)),
                                       __shfl_sync(~0u, place.position, i)};
                if (first + i >= last) continue;
                finish_qkv(p, e, first + i, at, turn[step], __fmul_rn(results[result_place(row, i)], by),
                           __fmul_rn(results[result_place(row + 8, i)], by));
            }
        }
    }

    // Where neighbours are fours of a head: of rows for q and k, two columns at a time.
    template <bool kOnlyQ, bool kBiased>
    __device__ __forceinline__ void finish_fours(const float* results) const {
        const KigoQkv& qkv = p.qkv;
        const uint32_t of_block = lane / 2 % kItemTiles, row = of_block * kTileRows + lane % 2 * 4, own = first + lane / 16;
        const HeadElements e = head_elements(qkv, tile + of_block + p.first_tile, lane % 2 * 4);
        if (!kOnlyQ && !__any_sync(~0u, e.part < 2)) return;
        const bool turns = has_turn(qkv, e);
        const float4* turn = reinterpret_cast<const float4*>(reinterpret_cast<const float2*>(qkv.turns) + e.pair + size_t(own) * qkv.turns_stride);
        const float scale = kOnlyQ || e.part == 0 ? qkv.q_scale : 1;
        __half* to_q = reinterpret_cast<__half*>(qkv.q) + (size_t(own) * qkv.n_head + e.head) * qkv.dp + e.place;
        float4 low_bias = {}, high_bias = {};
        if (kBiased && e.part < 2) {
            const float* bias = reinterpret_cast<const float*>(kOnlyQ || e.part == 0 ? p.bias[0] : p.bias[1]) + e.head * qkv.head_dim;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const HeadPair dims = head_pair(e.pair + i, qkv.n_rot, qkv.halves);
                (&low_bias.x)[i] = __ldg(bias + dims.low), (&high_bias.x)[i] = __ldg(bias + dims.high);
            }
        }
        float4 now[2] = {}, next[2] = {};
        if (turns) next[0] = __ldcg(turn), next[1] = __ldcg(turn + 1);
#pragma unroll(kManyRegisters ? 4 : 1)
        for (int start = 0; start < kColumns; start += 2) {
            const uint32_t i = start + lane / 16;
            now[0] = next[0], now[1] = next[1];
            turn += qkv.turns_stride;
            if (turns && start + 2 < kColumns) next[0] = __ldcg(turn), next[1] = __ldcg(turn + 1);
            float4 low = four(results, row, i), high = four(results, row + 8, i);
            if (kBiased) low = plus(low, low_bias), high = plus(high, high_bias);
            __half* to = to_q;
            to_q += 2 * size_t(qkv.n_head) * qkv.dp;
            if (!kOnlyQ) {
                const CachePlace at = {reinterpret_cast<__half*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(place.page), i)),
                                       __shfl_sync(~0u, place.position, i)};
                if (e.part == 1) to = cached_keys(qkv, at, e.head) + at.position * qkv.dp + e.place;
                if (e.part == 2) continue;
            }
            if (turns) {
                turn_pair(low.x, high.x, now[0].x, now[0].y);
                turn_pair(low.y, high.y, now[0].z, now[0].w);
                turn_pair(low.z, high.z, now[1].x, now[1].y);
                turn_pair(low.w, high.w, now[1].z, now[1].w);
            }
            store_halves(to, low, scale);
            store_halves(to + 8, high, scale);
        }
    }

    __device__ __forceinline__ static void turn_pair(float& low, float& high, float cosine, float sine) {
        const float turned = __fmaf_rn(low, cosine, -__fmul_rn(high, sine));
        high = __fmaf_rn(low, sine, __fmul_rn(high, cosine));
        low = turned;
    }

    __device__ __forceinline__ static void store_halves(__half* to, float4 v, float scale) {
        const __half2 halves[2] = {{saturated_half(__fmul_rn(v.x, scale)), saturated_half(__fmul_rn(v.y, scale))},
                                   {saturated_half(__fmul_rn(v.z, scale)), saturated_half(__fmul_rn(v.w, scale))}};
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(halves);
    }

    // For v columns are neighbours; a lane has one, and four rows at a time.
    template <bool kBiased>
    __device__ __forceinline__ void finish_values(const float* results) const {
        constexpr uint32_t kStep = kWarp / kColumns * 4;
        const KigoQkv& qkv = p.qkv;
        const uint32_t first_v = (qkv.n_head + qkv.n_head_kv) * qkv.head_dim / kTileRows, begin = tile + p.first_tile;
        if (begin + kItemTiles <= first_v) return;
        uint32_t row = lane / kColumns * 4;
        if (begin < first_v) row += (first_v - begin) * kTileRows;
        const HeadElements e = head_elements(qkv, begin + row / kTileRows, row % kTileRows);
        __half* to = cached_keys(qkv, place, e.head) + KIGO_PAGE * qkv.dp + place.position + e.place * KIGO_PAGE;
        uint32_t of_head = e.place;
        const float* bias = reinterpret_cast<const float*>(p.bias[2]) + e.head * qkv.head_dim + e.place;
#pragma unroll 2
        for (; row < kItemRows; row += kStep, of_head += kStep, bias += kStep, to += kStep * KIGO_PAGE) {
            if (of_head >= qkv.head_dim) of_head -= qkv.head_dim, to += 2 * KIGO_PAGE * qkv.dp - qkv.head_dim * KIGO_PAGE;
            float4 v = *reinterpret_cast<const float4*>(results + result_place(row, lane % kColumns));
            v = {__fmul_rn(v.x, factor), __fmul_rn(v.y, factor), __fmul_rn(v.z, factor), __fmul_rn(v.w, factor)};
            if (kBiased) v = plus(v, {__ldg(bias), __ldg(bias + 1), __ldg(bias + 2), __ldg(bias + 3)});
            to[0] = saturated_half(v.x);
            to[KIGO_PAGE] = saturated_half(v.y);
            to[2 * KIGO_PAGE] = saturated_half(v.z);
            to[3 * KIGO_PAGE] = saturated_half(v.w);
        }
    }

    template <bool kBiased>
    __device__ __forceinline__ void finish_whole_heads(const float* results) const {
        if (only_q()) return finish_fours<true, kBiased>(results);
        finish_fours<false, kBiased>(results);
        finish_values<kBiased>(results);
    }

    __device__ __forceinline__ void finish(const float* results) const {
        const KigoQkv& qkv = p.qkv;
        if (p.kind == KIGO_QKV && whole && qkv.head_dim % 16 == 0 && qkv.head_dim >= 32 && qkv.n_rot % 8 == 0 && qkv.turns_stride % 2 == 0 &&
            qkv.turns % 16 == 0) {
            if (!p.bias[0] && !p.bias[1] && !p.bias[2]) return finish_whole_heads<false>(results);
            if (p.bias[0] && p.bias[1] && p.bias[2]) return finish_whole_heads<true>(results);
        }
        if (p.kind == KIGO_QKV) return finish_heads(results);
        if (n_columns == 0 || (p.kind == KIGO_GATED ? tile / 2 : tile) * kTileRows >= p.n_rows) return;
        if (whole && p.kind == KIGO_GATED) {
            const bool biased = p.bias[0] || p.bias[1];
            if (p.activation == KIGO_SILU && !biased) return finish_gated<KIGO_SILU, false>(results);
            if (p.activation == KIGO_SILU_CLAMPED && p.bias[0] && p.bias[1]) return finish_gated<KIGO_SILU_CLAMPED, true>(results);
        } else if (whole) {
            const bool stores = p.kind == KIGO_STORE && p.softcap <= 0;
            if (p.kind == KIGO_ADD) return p.bias[0] ? finish_whole<true, true>(results) : finish_whole<true, false>(results);
            if (stores) return p.bias[0] ? finish_whole<false, true>(results) : finish_whole<false, false>(results);
        }
        finish_rows(results);
    }
};

}  // namespace prefill
