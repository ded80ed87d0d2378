// The last part of a product in `step`: one warp adds up the slices of tiles as soon as the others are done with them, finishes the
// results and hands them on, so that those go on with the next tiles meanwhile.
#pragma once

#include "epilogue.cuh"
#include "step_words.cuh"

namespace {

// Items whose sums wait to be added up.
constexpr uint32_t kTurns = 4;
// Tiles of an item at most: a lane has a row.
constexpr uint32_t kMostTiles = 2;
static_assert(kMostTiles * kTileRows == kWarp);

// What passes from those who multiply to who finishes.
struct Sums {
    float turns[kTurns][kMostTiles][kSlices][kTileRows];
    // All warps have written their sums; they have been added up.
    uint64_t full[kTurns], empty[kTurns];
    // The residual stream has been added to; its squares have been.
    uint64_t taken, read;
    // What products of the operands at hand are multiplied with, where there is a norm besides what follows from its sum of squares.
    float inverse;
    // The stage that who finishes is at.
    KigoStage stage;
};

struct Finisher {
    // Of the operands at hand.
    struct Factor {
        float value;
        bool is_known;
    };

    const KigoStep& p;
    Sums& sums;
    // The residual stream.
    const float4* x;
    WordSet set;

    // Takes over the description of a stage, a part of it through each lane.
    __device__ __forceinline__ void open_stage(uint32_t number) const {
        constexpr uint32_t kWords = sizeof(KigoStage) / sizeof(uint64_t);
        static_assert(sizeof(KigoStage) % sizeof(uint64_t) == 0 && kWords <= kWarp);
        const uint32_t lane = threadIdx.x % kWarp;
        const auto* from = reinterpret_cast<const unsigned long long*>(reinterpret_cast<const KigoStage*>(p.stages) + number);
        __syncwarp();
        if (lane < kWords) reinterpret_cast<uint64_t*>(&sums.stage)[lane] = __ldg(from + lane);
        __syncwarp();
    }

    __device__ __forceinline__ static float add_bias(const KigoStage& s, int part, uint32_t row, float value) {
        return s.bias[part] ? __fadd_rn(value, __ldg(reinterpret_cast<const float*>(s.bias[part]) + row)) : value;
    }

    // Row `row` of a product: `value`, of gate and up `value` and `up`.
    __device__ __forceinline__ void finish_row(const KigoStage& s, uint32_t row, float value, float up) const {
        if (row >= s.n_rows) return;
        value = add_bias(s, 0, row, value);
        if (s.kind == KIGO_STAGE_LOGITS) {
            value = __fmul_rn(value, s.scale);
            if (s.softcap > 0) value = __fmul_rn(s.softcap, tanhf(__fdiv_rn(value, s.softcap)));
            reinterpret_cast<float*>(p.logits)[row] = value;
            return;
        }
        if (s.kind == KIGO_STAGE_GATED) value = gated(value, add_bias(s, 1, row, up), s.activation);
        if (s.kind == KIGO_STAGE_UNGATED) value = gelu(value);
        set.store(s.out, row, value);
    }

    // The sum of squares of the residual stream, in the order of block_sum_max.
    __device__ __forceinline__ float sum_of_squares(uint32_t n_quads) const {
        float of_warp[kWarps] = {};
#pragma unroll 1
        for (uint32_t first = threadIdx.x % kWarp; first < n_quads; first += kThreads) {
#pragma unroll
            for (int w = 0; w < kWarps; w++) {
                if (first + w * kWarp >= n_quads) break;
                const float4 v = x[first + w * kWarp];
                of_warp[w] = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, of_warp[w]))));
            }
        }
        __syncwarp();
#pragma unroll
        for (int w = 0; w < kWarps; w++) of_warp[w] = warp_sum(of_warp[w]);
        float sum = of_warp[0];
#pragma unroll
        for (int w = 1; w < kWarps; w++) sum = __fadd_rn(sum, of_warp[w]);
        return sum;
    }

    // Waits until the residual stream is taken, the `turn`-th time; what its products are multiplied with.
    __device__ __forceinline__ Factor take_residual(const KigoStage& s, uint32_t turn) const {
        Patience patience;
        while (!try_mbarrier_at(shared_address(&sums.taken), turn % 2)) patience.wait();
        float value = sums.inverse;
        if (s.norm_weight) value = __fmul_rn(value, norm_factor(sum_of_squares(s.stride / 4), s.k, s.eps));
        if (threadIdx.x % kWarp == 0) arrive_mbarrier(&sums.read);
        return {value, true};
    }

    // Finishes an item, the `turn`-th of all stages.
    __device__ __forceinline__ void finish_item(const KigoStage& s, uint32_t item, uint32_t turn, Factor& factor) const {
        const uint32_t place = turn % kTurns, lane = threadIdx.x % kWarp;
        Patience patience;
        while (!try_mbarrier_at(shared_address(sums.full + place), turn / kTurns % 2)) patience.wait();
        if (!factor.is_known) factor = {sums.inverse, true};
        // Of an item of one tile nobody looks at the other half.
        const float* slices = sums.turns[place][lane / kTileRows][0] + lane % kTileRows;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, slices[w * kTileRows]);
        const float value = __fmul_rn(sum, __fmul_rn(factor.value, s.weight_scale));
        const float up = __shfl_down_sync(~0u, value, kTileRows);
        if (lane == 0) arrive_mbarrier(sums.empty + place);
        const uint32_t n_rows = kTileRows * (s.kind == KIGO_STAGE_GATED ? 1 : s.per_item);
        if (lane < n_rows) finish_row(s, item * n_rows + lane, value, up);
    }

    __device__ __forceinline__ void run() const {
        uint32_t turn = 0, n_taken = 0;
        Factor factor = {};
#pragma unroll 1
        for (uint32_t i = 0; i < p.n_stages; i++) {
            open_stage(i);
            const KigoStage& s = sums.stage;
            if (s.kind == KIGO_STAGE_ATTENTION) continue;
            // Once the sums of an item are there, so are those of its operands.
            if (s.take != KIGO_TAKE_SAME) factor.is_known = false;
            if (s.take == KIGO_TAKE_RESIDUAL) factor = take_residual(s, n_taken++);
#pragma unroll 1
            for (uint32_t item = first_item(s); item < s.n_items; item += gridDim.x) finish_item(s, item, turn++, factor);
        }
    }
};

}  // namespace
