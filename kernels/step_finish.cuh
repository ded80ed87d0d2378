// The last part of a product in `step`: one warp adds up the slices of tiles as soon as the others are done with them, finishes the
// results and hands them on, so that those go on with the next tiles meanwhile.
#pragma once

#include <type_traits>

#include "epilogue.cuh"
#include "route.cuh"
#include "step_words.cuh"

namespace {

// Items whose sums wait to be added up: fewer of several rows, whose sums need more room.
template <bool kMany>
constexpr uint32_t kTurns = kMany ? 2 : 4;
// Tiles of an item at most: a lane has a row.
constexpr uint32_t kMostTiles = 2;
static_assert(kMostTiles * kTileRows == kWarp && kMostGroups <= kMostTiles);

// The sums of a row; those of several rows are behind their operands, [kTurns][kMostTiles][kSlices][rows][kTileRows].
struct RowSums {
    float turns[kTurns<false>][kMostTiles][kSlices][kTileRows];
};
struct NoRowSums {};

// What passes from those who multiply to who finishes.
template <bool kMany>
struct Sums : std::conditional_t<kMany, NoRowSums, RowSums> {
    // All warps have written their sums; they have been added up.
    uint64_t full[kTurns<kMany>], empty[kTurns<kMany>];
    // The residual stream has been added to; its squares have been.
    uint64_t taken, read;
    // What products of the operands at hand, of each row, are multiplied with, where there is a norm besides what follows from its sum of
    // squares.
    float inverse[kMany ? KIGO_STEP_ROWS : 1];
    // The stage that who finishes is at.
    KigoStage stage;
};

template <bool kMixes, bool kMany>
struct Finisher {
    // Of the operands at hand; of several rows a lane has that of its row.
    struct Factor {
        float value;
        bool is_known;
    };

    const KigoStep& p;
    Sums<kMany>& sums;
    Mixture& mixture;
    // The residual stream, row after row.
    const float4* x;
    // Where sums of several rows are.
    const float* sums_of_rows;
    // The number of the step; of several rows a lane has that of its row.
    uint32_t number;

    __device__ __forceinline__ uint32_t n_rows() const { return kMany ? p.n_rows : 1; }

    __device__ __forceinline__ float inverse() const { return sums.inverse[kMany ? min(threadIdx.x % kWarp, p.n_rows - 1) : 0]; }

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

    __device__ __forceinline__ static const float* bias_at(const KigoStage& s, int part, uint32_t i) {
        return reinterpret_cast<const float*>(s.bias[part]) + i;
    }

    // What the results of a stage come to, read before the last sums are there.
    struct Ending {
        uint32_t kind, activation;
        // Each expert multiplies with a vector of its own.
        bool has_own;
        float weight_scale;
        uint64_t out, out_halves;

        __device__ __forceinline__ explicit Ending(const KigoStage& s)
            : kind(s.kind), activation(s.activation), has_own(kMixes && s.take == KIGO_TAKE_EXPERTS), weight_scale(s.weight_scale), out(s.out),
              out_halves(s.out_halves) {}

        // Whether it is one of finish_usual.
        __device__ __forceinline__ bool is_usual() const {
            if (kind == KIGO_STAGE_GATED) return activation == KIGO_SILU || (kMixes && activation == KIGO_SILU_CLAMPED);
            return kind != KIGO_STAGE_UNGATED && kind != KIGO_STAGE_LOGITS;
        }
    };

    // A bias where there is none: adding it changes nothing.
    static constexpr float kNoBias = -0.0f;

    // Number i of the experts that the stage's mixture uses.
    __device__ __forceinline__ uint32_t await_expert(const KigoStage& s, uint32_t i) const {
        Patience patience;
        uint32_t expert;
        while ((expert = mixture.chosen(i, s.mixture)) == kNoExpert) patience.wait();
        return expert;
    }

    // The logit of the expert of a lane.
    __device__ __forceinline__ float logit_of_lane(const KigoStage& s) const {
        const uint32_t lane = threadIdx.x % kWarp;
        float logit = -INFINITY;
        if (lane < s.n_used) {
            await_expert(s, lane);
            logit = mixture.logits[lane];
        }
        __syncwarp();
        return logit;
    }

    // The result of a row of a product, from `value`, or of gate and up `value` and `up`, with their biases.
    __device__ __forceinline__ static float finished(const KigoStage& s, const Ending& ending, float value, float up) {
        if (ending.kind == KIGO_STAGE_LOGITS) {
            value = __fmul_rn(value, s.scale);
            if (s.softcap > 0) value = __fmul_rn(s.softcap, tanhf(__fdiv_rn(value, s.softcap)));
        }
        if (ending.kind == KIGO_STAGE_GATED) value = gated(value, up, ending.activation);
        if (ending.kind == KIGO_STAGE_UNGATED) value = gelu(value);
        return value;
    }

    // Waits until the residual stream is taken, the `turn`-th time; what its products are multiplied with.
    __device__ __forceinline__ Factor take_residual(const KigoStage& s, uint32_t turn) const {
        Patience patience;
        while (!try_mbarrier_at(shared_address(&sums.taken), turn % 2)) patience.wait();
        float value = inverse(), norm = 1;
        if (s.norm_weight) {
#pragma unroll 1
            for (uint32_t row = 0; row < n_rows(); row++) {
                const float of = norm_factor(Squares::of_row(x + row * (s.stride / 4), s.stride / 4), s.k, s.eps);
                if (!kMany || threadIdx.x % kWarp == row) norm = of;
            }
            value = __fmul_rn(value, norm);
        }
        if (threadIdx.x % kWarp == 0) arrive_mbarrier(&sums.read);
        if (kMixes && s.kind == KIGO_STAGE_ROUTER && threadIdx.x % kWarp == 0) {
            mixture.router_factor = __fmul_rn(norm, s.weight_scale);
            arrive_mbarrier(&mixture.normed);
        }
        return {value, true};
    }

    // Waits for the `turn`-th sums of all stages.
    __device__ __forceinline__ void await_turn(uint32_t turn) const {
        Patience patience;
        while (!try_mbarrier_at(shared_address(sums.full + turn % kTurns<kMany>), turn / kTurns<kMany> % 2)) patience.wait();
    }

    // Adds up a lane's of those, which are there, of n_slices slices: of tile lane / kTileRows.
    __device__ __forceinline__ float sum_of(uint32_t turn, uint32_t n_slices) const {
        const uint32_t place = turn % kTurns<kMany>, lane = threadIdx.x % kWarp;
        // Of an item of one tile nobody looks at the other half.
        const float* slices = sums.turns[place][lane / kTileRows][0] + lane % kTileRows;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kSlices; w++) {
            if (!kMixes || w < n_slices) sum = __fadd_rn(sum, slices[w * kTileRows]);
        }
        return sum;
    }

    // The same where there are several rows: of row `of_tile` of a tile.
    __device__ __forceinline__ float sum_of_row(uint32_t turn, uint32_t tile, uint32_t of_tile, uint32_t row) const {
        const uint32_t place = turn % kTurns<kMany> * kMostTiles + tile, apart = p.n_rows * kTileRows;
        const float* slices = sums_of_rows + place * kSlices * apart + row * kTileRows + of_tile;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, slices[w * apart]);
        return sum;
    }

    // Where a lane's of them start in shared memory; computed before they are there.
    __device__ __forceinline__ uint32_t sums_at(uint32_t turn) const {
        const uint32_t lane = threadIdx.x % kWarp;
        uint32_t at = shared_address(sums.turns[turn % kTurns<kMany>][lane / kTileRows][0] + lane % kTileRows);
        // Lest the compiler compute it when it is needed.
        asm volatile("" : "+r"(at));
        return at;
    }

    // Those of all slices, as sum_of adds them.
    __device__ __forceinline__ static float sum_at(uint32_t at) {
        float of_slice[kSlices];
#pragma unroll
        for (int w = 0; w < kSlices; w++) {
            asm volatile("ld.shared.f32 %0, [%1];" : "=f"(of_slice[w]) : "r"(at + w * kTileRows * 4) : "memory");
        }
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, of_slice[w]);
        return sum;
    }

    // All lanes have called it after `sum_of`, and have met since.
    __device__ __forceinline__ void give_back(uint32_t turn) const {
        if (threadIdx.x % kWarp == 0) arrive_mbarrier(sums.empty + turn % kTurns<kMany>);
    }

    // Results of an item for a row.
    __device__ __forceinline__ static uint32_t results_of(const KigoStage& s) {
        return kTileRows * (s.kind == KIGO_STAGE_GATED ? 1 : s.per_item);
    }

    // A lane's row of an item.
    struct ItemRow {
        // Its number in the product, in its biases and among the results; which of the experts that are used it is of.
        uint32_t row, of_biases, to, i;
        bool has;
        float bias[2];
    };

    // The row of an item, and its biases, which are on their way.
    __device__ __forceinline__ ItemRow open_item(const KigoStage& s, uint32_t item) const {
        const uint32_t n_rows = results_of(s), lane = threadIdx.x % kWarp & (kMany ? n_rows - 1 : ~0u);
        const uint32_t first = item * n_rows + lane;
        ItemRow out = {first, first, first, 0, false, {kNoBias, kNoBias}};
        if (kMixes && s.mixture) {
            out.i = item / s.per_expert;
            const uint32_t expert = await_expert(s, out.i);
            out.row = item % s.per_expert * n_rows + lane;
            out.of_biases = expert * s.n_rows + out.row;
            out.to = out.i * s.out_stride + out.row;
        }
        out.has = lane < n_rows && out.row < s.n_rows;
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (out.has && s.bias[part]) out.bias[part] = __ldg(bias_at(s, part, out.of_biases));
        }
        return out;
    }

    // Finishes an item, the `turn`-th of all stages.
    __device__ __forceinline__ void finish_item(const KigoStage& s, const ItemRow& at, uint32_t turn, Factor& factor) const {
        const Ending ending(s);
        await_turn(turn);
        if (!factor.is_known) factor = {inverse(), true};
        if constexpr (kMany) {
            finish_rows(s, ending, at, turn, factor.value);
        } else {
            const float sum = sum_of(turn, kSlices);
            const float own = ending.has_own ? mixture.factors[at.i] : factor.value;
            const float value = __fmul_rn(sum, __fmul_rn(own, ending.weight_scale));
            const float up = __shfl_down_sync(~0u, value, kTileRows);
            give_back(turn);
            finish_result(s, ending, at, at.has, value, up, 0, number);
        }
    }

    // The same of a single row where the results are what is usual: sums with biases, or gate and up with an activation of that kind. What
    // others wait for is a straight way from the last sums to the words: each jump waits for code.
    static constexpr uint32_t kUngated = ~0u;
    template <uint32_t kActivation>
    __device__ __forceinline__ void finish_usual(const Ending& ending, const ItemRow& at, const WordSet& set, uint32_t turn, Factor& factor) const {
        constexpr bool kGated = kActivation != kUngated;
        const WordPlace word(set, ending.out, at.to), pair(set, ending.out_halves, at.to / 2);
        const bool has_pair = ending.out_halves && at.has && at.to % 2 == 0;
        const uint32_t slices = sums_at(turn);
        await_turn(turn);
        if (!factor.is_known) factor = {inverse(), true};
        const float own = kMixes && ending.has_own ? mixture.factors[at.i] : factor.value;
        float value = __fmul_rn(sum_at(slices), __fmul_rn(own, ending.weight_scale));
        const float up = kGated ? __fadd_rn(__shfl_down_sync(~0u, value, kTileRows), at.bias[1]) : 0;
        value = __fadd_rn(value, at.bias[0]);
        if (kGated) value = gated(value, up, kActivation);
        // First what is awaited.
        if (ending.out_halves) {
            const float next = __shfl_down_sync(~0u, value, 1);
            if (has_pair) pair.store_halves(value, next);
        }
        if (at.has) word.store(value);
        __syncwarp();
        give_back(turn);
    }

    // The result of a row of the product, where `has`, from what was multiplied for a row of the batch, to where it is awaited; called by
    // whole warps.
    __device__ __forceinline__ void finish_result(const KigoStage& s, const Ending& ending, const ItemRow& at, bool has, float value, float up,
                                                  uint32_t row, uint32_t number) const {
        value = finished(s, ending, __fadd_rn(value, at.bias[0]), __fadd_rn(up, at.bias[1]));
        if (ending.kind == KIGO_STAGE_LOGITS) {
            if (has) reinterpret_cast<float*>(p.logits)[uint64_t(row) * s.n_rows + at.row] = value;
            return;
        }
        const WordSet set(number, p.set_bytes, row);
        // First what is awaited.
        if (ending.out_halves) {
            const float next = __shfl_down_sync(~0u, value, 1);
            if (has && at.to % 2 == 0) WordPlace(set, ending.out_halves, at.to / 2).store_halves(value, next);
        }
        if (has) WordPlace(set, ending.out, at.to).store(value);
    }

    // Finishes an item for several rows, of as many at a time as lanes have its results.
    __device__ __forceinline__ void finish_rows(const KigoStage& s, const Ending& ending, const ItemRow& at, uint32_t turn, float factor) const {
        const uint32_t lane = threadIdx.x % kWarp, n_results = results_of(s), n = p.n_rows * n_results;
#pragma unroll 1
        for (uint32_t first = 0; first < n; first += kWarp) {
            const uint32_t of_all = first + lane, result = lane & (n_results - 1);
            const uint32_t row = n_results == kTileRows ? of_all / kTileRows : of_all / kWarp, there = min(row, p.n_rows - 1);
            const float scale = __fmul_rn(__shfl_sync(~0u, factor, there), ending.weight_scale);
            const uint32_t number_of_row = __shfl_sync(~0u, number, there);
            const float value = __fmul_rn(sum_of_row(turn, result / kTileRows, result % kTileRows, there), scale);
            const float up = ending.kind == KIGO_STAGE_GATED ? __fmul_rn(sum_of_row(turn, 1, result, there), scale) : 0;
            __syncwarp();
            if (first + kWarp >= n) give_back(turn);
            finish_result(s, ending, at, at.has && row < p.n_rows, value, up, there, number_of_row);
        }
        __syncwarp();
    }

    // Finishes this block's items of a stage; the biases of each are asked for before the one before is finished.
    __device__ __forceinline__ void finish_items(const KigoStage& s, uint32_t& turn, Factor& factor) const {
        uint32_t item = first_item(s);
        if (item >= s.n_items) return;
        ItemRow next = open_item(s, item);
        if constexpr (!kMany) {
            const Ending ending(s);
            if (ending.is_usual()) {
                const WordSet set(number, p.set_bytes);
#pragma unroll 1
                while (item < s.n_items) {
                    const ItemRow at = next;
                    item += gridDim.x;
                    if (item < s.n_items) next = open_item(s, item);
                    if (ending.kind != KIGO_STAGE_GATED) {
                        finish_usual<kUngated>(ending, at, set, turn++, factor);
                    } else if (!kMixes || ending.activation == KIGO_SILU) {
                        finish_usual<KIGO_SILU>(ending, at, set, turn++, factor);
                    } else {
                        finish_usual<KIGO_SILU_CLAMPED>(ending, at, set, turn++, factor);
                    }
                }
                return;
            }
        }
#pragma unroll 1
        while (item < s.n_items) {
            const ItemRow at = next;
            item += gridDim.x;
            if (item < s.n_items) next = open_item(s, item);
            finish_item(s, at, turn++, factor);
        }
    }

    // Brings the biases of an item of all experts near.
    __device__ __forceinline__ void bring_biases(const KigoStage& s, uint32_t item) const {
        const uint32_t lane = threadIdx.x % kWarp;
        if (!s.bias[0] || lane >= s.n_used) return;
        const float* from = bias_at(s, 0, await_expert(s, lane) * s.n_rows + item * kTileRows);
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
    }

    // Finishes an item with a tile of each of the experts that are used, which begins with the `turn`-th sums of all stages. A lane
    // has the weight of its expert.
    __device__ __forceinline__ void finish_mixed(const KigoStage& s, uint32_t item, uint32_t turn, float weight) const {
        const uint32_t lane = threadIdx.x % kWarp, row = item * kTileRows + lane % kTileRows, n_groups = s.n_used / s.n_turns;
        const uint32_t group = n_groups > 1 ? lane / kTileRows : 0;
        bring_biases(s, item);
        float mixed = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < s.n_used; i += n_groups, turn++) {
            const bool has = row < s.n_rows && s.bias[0];
            const float bias = has ? __ldg(bias_at(s, 0, await_expert(s, i + group) * s.n_rows + row)) : kNoBias;
            const float weight_scale = s.weight_scale;
            await_turn(turn);
            const float sum = sum_of(turn, s.n_slices);
            const float value = __fadd_rn(__fmul_rn(sum, __fmul_rn(mixture.factors[i + group], weight_scale)), bias);
            const float other = __shfl_down_sync(~0u, value, kTileRows);
            give_back(turn);
            mixed = __fmaf_rn(__shfl_sync(~0u, weight, i), value, mixed);
            const float weight_of_other = __shfl_sync(~0u, weight, i + 1);
            if (n_groups > 1) mixed = __fmaf_rn(weight_of_other, other, mixed);
        }
        if (lane < kTileRows && row < s.n_rows) WordPlace(WordSet(number, p.set_bytes), s.out, row).store(__fmul_rn(mixed, s.scale));
    }

    // Finishes this block's items of a stage that mixes what experts give.
    __device__ __forceinline__ void finish_mixed_items(const KigoStage& s, uint32_t& turn) const {
        // Who has no items may come too late to see what was chosen.
        if (first_item(s) >= s.n_items) return;
        const float weight = weight_of(s.n_used, logit_of_lane(s));
#pragma unroll 1
        for (uint32_t item = first_item(s); item < s.n_items; item += gridDim.x, turn += s.n_turns) {
            finish_mixed(s, item, turn, weight);
        }
    }

    __device__ __forceinline__ void run() const {
        uint32_t turn = 0, n_taken = 0;
        Factor factor = {};
#pragma unroll 1
        for (uint32_t i = 0; i < p.n_stages; i++) {
            open_stage(i);
            const KigoStage& s = sums.stage;
            if (s.kind == KIGO_STAGE_ATTENTION) continue;
            if constexpr (kMixes) {
                if (s.kind == KIGO_STAGE_MIXED) {
                    finish_mixed_items(s, turn);
                    continue;
                }
            }
            // Once the sums of an item are there, so are those of its operands.
            if (s.take != KIGO_TAKE_SAME && !(kMixes && s.take == KIGO_TAKE_ROUTE)) factor.is_known = false;
            if (s.take == KIGO_TAKE_RESIDUAL) factor = take_residual(s, n_taken++);
            if (kMixes && s.kind == KIGO_STAGE_ROUTER) continue;
            finish_items(s, turn, factor);
        }
    }
};

}  // namespace
