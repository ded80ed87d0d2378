// attn_join_<dp>: folds what attn_flash_parts_<dp> has left of the chunks of each row into its result, in the order of attention.cuh.
#pragma once

#include "attention.cuh"

namespace {

constexpr uint32_t kJoinThreads = 128;
// Chunks whose mixes are asked for at once.
constexpr uint32_t kJoinBatch = 16;

// What there is of a head of all rows: of a chunk, or before the first of this turn, of all turns so far.
template <int kDp>
struct ChunkPartials {
    float* mixes;
    float2* all_sums;

    __device__ __forceinline__ ChunkPartials(const KigoAttentionParts& p, uint32_t chunk, uint32_t head) {
        const uint64_t of_heads = static_cast<uint64_t>(p.attention.n_head) * p.attention.n;
        const uint64_t before = static_cast<uint64_t>(head) * p.attention.n;
        float* of_chunk = at<float>(p.partials) + (chunk - p.first_chunk + 1) * of_heads * (kDp + 2);
        mixes = of_chunk + before * kDp;
        all_sums = reinterpret_cast<float2*>(of_chunk + of_heads * kDp) + before;
    }

    // Elements d and d + 1 of the mix of values; the largest score and the sum of weights.
    __device__ __forceinline__ float2* mix(uint32_t row, uint32_t d) const {
        return reinterpret_cast<float2*>(mixes + static_cast<uint64_t>(row) * kDp + d);
    }
    __device__ __forceinline__ float2* sums(uint32_t row) const { return all_sums + row; }
};

// A warp has a head of a row; a lane two neighbouring elements, and those 32 further, which are one operand.
template <int kDp>
__device__ __forceinline__ void join(const KigoAttentionParts& parts) {
    const KigoAttention& p = parts.attention;
    const uint32_t lane = threadIdx.x % kWarp, number = (blockIdx.x * kJoinThreads + threadIdx.x) / kWarp;
    const uint32_t row = number / p.n_head, head = number % p.n_head;
    pdl_wait();
    pdl_launch();
    if (row >= p.n) return;
    const uint32_t position = __ldcg(&(at<KigoRow>(p.rows) + row)->position);
    const uint32_t first = max(first_page_of(position, p.before) / kChunk, parts.first_chunk);
    const uint32_t end = min(position / KIGO_PAGE / kChunk + 1, parts.first_chunk + parts.n_chunks);
    const uint32_t d = lane / 16 * 64 + lane % 16 * 2;
    const bool has[2] = {d < kDp, d + 32 < kDp};
    auto load = [&](const ChunkPartials<kDp>& from, float2 (&x)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++) x[i] = has[i] ? __ldcg(from.mix(row, d + 32 * i)) : make_float2(0, 0);
    };

    const ChunkPartials<kDp> so_far(parts, parts.first_chunk - 1, head);
    float M = -INFINITY, L = -0.0f;
    float2 O[2] = {{-0.0f, -0.0f}, {-0.0f, -0.0f}};
    if (!(parts.turn & KIGO_FIRST_TURN)) {
        const float2 sums = __ldcg(so_far.sums(row));
        M = sums.x, L = sums.y;
        load(so_far, O);
    }
#pragma unroll 1
    for (uint32_t chunk = first; chunk < end; chunk += kWarp) {
        const uint32_t n = min(end - chunk, uint32_t(kWarp));
        // A lane has a chunk.
        const float2 sums = __ldcg(ChunkPartials<kDp>(parts, chunk + min(lane, n - 1), head).sums(row));
        const float m = lane < n ? sums.x : -INFINITY, M_now = largest_so_far(fmaxf(M, m), lane);
        float before = __shfl_up_sync(~0u, M_now, 1);
        if (lane == 0) before = M;
        const Factors factors = rescale(before, m);
        M = __shfl_sync(~0u, M_now, kWarp - 1);
#pragma unroll 1
        for (uint32_t i = 0; i < n; i += kJoinBatch) {
            float2 x[kJoinBatch][2];
#pragma unroll
            for (uint32_t j = 0; j < kJoinBatch; j++) {
                if (i + j < n) load(ChunkPartials<kDp>(parts, chunk + i + j, head), x[j]);
            }
#pragma unroll
            for (uint32_t j = 0; j < kJoinBatch; j++) {
                if (i + j >= n) break;
                const Factors f = {__shfl_sync(~0u, factors.state, i + j), __shfl_sync(~0u, factors.partial, i + j)};
                L = fold(L, __shfl_sync(~0u, sums.y, i + j), f);
#pragma unroll
                for (int k = 0; k < 2; k++) O[k] = make_float2(fold(O[k].x, x[j][k].x, f), fold(O[k].y, x[j][k].y, f));
            }
        }
    }
    if (!(parts.turn & KIGO_LAST_TURN)) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (has[i]) __stcg(so_far.mix(row, d + 32 * i), O[i]);
        }
        if (lane == 0) __stcg(so_far.sums(row), make_float2(M, L));
        return;
    }
    const float factor = last_factor(p, head, M, L);
    float* out = at<float>(p.out) + static_cast<uint64_t>(row) * p.out_stride + head * p.head_dim;
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (d + 32 * i >= p.head_dim) continue;
        O[i] = make_float2(__fmul_rn(O[i].x, factor), __fmul_rn(O[i].y, factor));
        *reinterpret_cast<float2*>(out + d + 32 * i) = O[i];
        top = max(top, max(magnitude(O[i].x), magnitude(O[i].y)));
    }
    if (kDp % 64 == 0 && p.operands && has[1]) put_operands(p, row, head * kDp + d, O[0], O[1]);
    top = __reduce_max_sync(~0u, top);
    if (lane == 0) atomicMax(at<uint32_t>(p.magnitudes) + row, top);
}

}  // namespace
