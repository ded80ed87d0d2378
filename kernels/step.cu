// A step of one sequence, from the embedding to the logits, as one kernel that stays on the multiprocessors: `step`.
//
// What a kernel of its own costs a stage is its start, the first weights' way from memory, and the wait for its slowest
// block. Here weights flow across stages (step_ring.cuh), and vectors go from block to block as words (step_words.cuh). Each
// block keeps the whole residual stream in shared memory and adds to it what the products give.
//
// All sums are in the order of the kernels that run other batches, so that results have the same bits: products by the
// functions of fragments.cuh in kSlices slices, norms in the order of activate_row and add_normed, attention by attention.cuh.
//
// All blocks must run at the same time: the launch is a cooperative one. Before sm_90 there is no such kernel.
#include "quant/types.cuh"
#include "step_attention.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace {

extern __shared__ __align__(kLine) uint8_t memory[];

// Items of a group whose sums wait to be added up.
constexpr uint32_t kTurns = 4;

struct Turns {
    float sums[kTurns][2][kSlices][kTileRows];
    // All warps have written their sums; they have been added up.
    uint64_t full[kTurns], empty[kTurns];
};

// What a block has besides its dynamic memory.
struct Block {
    Turns turns[kGroups];
    uint64_t rings[kStepWarps][2][KIGO_MAX_SLOTS];
    float2 scratch[kStepWarps];
    KigoStage stages[2];
    KigoStageAttention attention;
    Sight sight;
};
static_assert(sizeof(Block) <= KIGO_STEP_STATIC);

// Operands of the activations, as `matmul_one` has them: 128 bytes a unit.
struct Operands {
    uint8_t* columns;

    // Called by aligned groups of 16 lanes for as many quads.
    __device__ __forceinline__ void put(uint32_t quad, float4 v, float scale) const {
        const Quad value =
            make_quad<false>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
        const QuadPlace place(quad);
        *reinterpret_cast<uint2*>(columns + place.unit * 128 + place.in_row()) = value.high;
    }
};

__device__ __forceinline__ float largest_of(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// Sum over the first kThreads threads and maximum over all, in every thread. The order is that of block_sum_max.
__device__ __forceinline__ float2 step_sum_max(float sum, float largest, float2* scratch) {
    const float2 mine = {warp_sum(sum), warp_max(largest)};
    step_sync();
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = mine;
    step_sync();
    float2 all = scratch[0];
    for (int warp = 1; warp < kStepWarps; warp++) {
        if (warp < kWarps) all.x = __fadd_rn(all.x, scratch[warp].x);
        all.y = fmaxf(all.y, scratch[warp].y);
    }
    return all;
}

// x += scale words, or where there is a norm, words to `delta`; x f32 [stride] in quads.
__device__ __forceinline__ void take_words(const KigoStage& s, uint32_t number, float4* x, float4* delta) {
    const uint64_t* words = reinterpret_cast<const uint64_t*>(s.input);
    const uint32_t n_quads = s.k / 4;
    constexpr int kBatch = 4;
    for (uint32_t first = threadIdx.x / kWarp * kWarp; first < n_quads; first += kBatch * kStepThreads) {
        ulonglong2 in[kBatch][2] = {};
        await([&] {
            bool all = true;
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                const uint32_t q = first + threadIdx.x % kWarp + i * kStepThreads;
                if (q >= n_quads) continue;
                in[i][0] = load_exact_words(words + 4 * q);
                in[i][1] = load_exact_words(words + 4 * q + 2);
            }
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                if (first + threadIdx.x % kWarp + i * kStepThreads >= n_quads) continue;
                for (int h = 0; h < 2; h++) all &= is_there(in[i][h].x, number) && is_there(in[i][h].y, number);
            }
            return all;
        });
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const uint32_t q = first + threadIdx.x % kWarp + i * kStepThreads;
            if (q >= n_quads) continue;
            const float4 v = {value_of(in[i][0].x), value_of(in[i][0].y), value_of(in[i][1].x), value_of(in[i][1].y)};
            if (s.post_norm) {
                delta[q] = v;
                continue;
            }
            const float4 old = x[q];
            x[q] = {__fmaf_rn(s.residual_scale, v.x, old.x), __fmaf_rn(s.residual_scale, v.y, old.y),
                    __fmaf_rn(s.residual_scale, v.z, old.z), __fmaf_rn(s.residual_scale, v.w, old.w)};
        }
    }
    step_sync();
}

// x += scale * norm(delta), as add_normed does it.
__device__ __forceinline__ void add_delta(const KigoStage& s, float* x, const float* delta, float2* scratch) {
    float squares = 0;
    const bool sums = threadIdx.x < kThreads;
    for (uint32_t i = threadIdx.x; sums && i < s.k; i += kThreads) squares = __fmaf_rn(delta[i], delta[i], squares);
    const float factor = norm_factor(step_sum_max(squares, 0, scratch).x, s.k, s.eps);
    for (uint32_t i = threadIdx.x; i < s.k; i += kStepThreads) {
        const float normed = __fmul_rn(__fmul_rn(delta[i], factor), __ldg(reinterpret_cast<const float*>(s.post_norm) + i));
        x[i] = __fmaf_rn(s.residual_scale, normed, x[i]);
    }
    step_sync();
}

// The residual stream as operands; returns the factor of the products.
__device__ __forceinline__ float take_residual(const KigoStage& s, uint32_t number, float4* x, const Operands& to, float2* scratch) {
    constexpr int kHeld = 4;
    const float4* weight = reinterpret_cast<const float4*>(s.norm_weight);
    const uint32_t n_quads = s.stride / 4;
    // Does not depend on what is awaited.
    float4 w[kHeld] = {};
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
        const uint32_t q = threadIdx.x + i * kThreads;
        if (weight && threadIdx.x < kThreads && q < n_quads) w[i] = __ldg(weight + q);
    }
    if (s.input) {
        float4* delta = reinterpret_cast<float4*>(to.columns);
        take_words(s, number, x, delta);
        if (s.post_norm) add_delta(s, reinterpret_cast<float*>(x), reinterpret_cast<float*>(delta), scratch);
    }
    float scale, inverse;
    if (!weight) {
        float largest = 0;
        for (uint32_t q = threadIdx.x; q < n_quads; q += kStepThreads) largest = fmaxf(largest, largest_of(x[q]));
        range_scale(step_sum_max(0, largest, scratch).y, scale, inverse);
        for (uint32_t q = threadIdx.x; q < n_quads; q += kStepThreads) to.put(q, x[q], scale);
        step_sync();
        return inverse;
    }
    float sum = 0, largest = 0;
    auto weigh = [&](uint32_t q, float4 w) {
        const float4 v = x[q];
        sum = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, sum))));
        const float4 y = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
        largest = fmaxf(largest, largest_of(y));
        return y;
    };
    if (threadIdx.x < kThreads) {
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            const uint32_t q = threadIdx.x + i * kThreads;
            if (q < n_quads) w[i] = weigh(q, w[i]);
        }
        for (uint32_t q = threadIdx.x + kHeld * kThreads; q < n_quads; q += kThreads) weigh(q, __ldg(weight + q));
    }
    const float2 all = step_sum_max(sum, largest, scratch);
    range_scale(all.y, scale, inverse);
    if (threadIdx.x < kThreads) {
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            const uint32_t q = threadIdx.x + i * kThreads;
            if (q < n_quads) to.put(q, w[i], scale);
        }
        for (uint32_t q = threadIdx.x + kHeld * kThreads; q < n_quads; q += kThreads) to.put(q, weigh(q, __ldg(weight + q)), scale);
    }
    step_sync();
    return __fmul_rn(inverse, __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(all.x, float(s.k)), s.eps))));
}

// A vector of rounded words as operands; returns the factor of the products.
__device__ __forceinline__ float take_vector(const KigoStage& s, uint32_t number, const Operands& to, float2* scratch) {
    // All of it: its scale has to be known before any is rounded.
    constexpr uint32_t kBatch = KIGO_STEP_MOST_COLUMNS / 4 / kStepThreads;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(s.input);
    const uint32_t n_quads = s.k / 4;
    uint4 in[kBatch];
    await([&] {
        bool all = true;
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) {
            const uint32_t q = threadIdx.x + i * kStepThreads;
            in[i] = {number, number, number, number};
            if (q < n_quads) in[i] = load_rounded_words(words + 4 * q);
        }
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) all &= are_there(in[i], number);
        return all;
    });
    float largest = 0;
#pragma unroll
    for (uint32_t i = 0; i < kBatch; i++) {
        if (threadIdx.x + i * kStepThreads >= n_quads) in[i] = {0, 0, 0, 0};
        largest = fmaxf(largest, largest_of(values_of(in[i])));
    }
    float scale, inverse;
    range_scale(step_sum_max(0, largest, scratch).y, scale, inverse);
#pragma unroll
    for (uint32_t i = 0; i < kBatch; i++) {
        const uint32_t q = threadIdx.x + i * kStepThreads;
        if (q < s.stride / 4) to.put(q, values_of(in[i]), scale);
    }
    step_sync();
    return inverse;
}

__device__ __forceinline__ float add_bias(const KigoStage& s, int part, uint32_t row, float value) {
    return s.bias[part] ? __fadd_rn(value, __ldg(reinterpret_cast<const float*>(s.bias[part]) + row)) : value;
}

// Row `row` of a product: `value`, of gate and up `value` and `up`.
__device__ __forceinline__ void finish(const KigoStage& s, uint32_t number, float* logits, uint32_t row, float value, float up) {
    if (row >= s.n_rows) return;
    value = add_bias(s, 0, row, value);
    switch (s.kind) {
        case KIGO_STAGE_VALUES:
            store_exact_word(reinterpret_cast<uint64_t*>(s.out) + row, value, number);
            break;
        case KIGO_STAGE_GATED:
            store_rounded_word(reinterpret_cast<uint32_t*>(s.out) + row, gated(value, add_bias(s, 1, row, up), s.activation), number);
            break;
        case KIGO_STAGE_UNGATED:
            store_rounded_word(reinterpret_cast<uint32_t*>(s.out) + row, gelu(value), number);
            break;
        default:
            value = __fmul_rn(value, s.scale);
            if (s.softcap > 0) value = __fmul_rn(s.softcap, tanhf(__fdiv_rn(value, s.softcap)));
            logits[row] = value;
    }
}

// This group's items of a stage. `turn` counts the items of all stages.
template <class Type>
__device__ __forceinline__ void multiply(const KigoStage& s, uint32_t number, float* logits, float factor, const Operands& x, Turns& turns, uint32_t& turn,
                                      PieceReader& reader) {
    constexpr int kUnits = Type::kRecordK / kUnitK;
    const int warp = threadIdx.x / kWarp % kWarps, lane = threadIdx.x % kWarp;
    const Slice slice(s.n_records, warp);
    const uint32_t most = reader.slot_bytes / Record<Type>::kBytes;
    for (uint32_t item = first_item(s, group_worker()); item < s.n_items; item += kGroups * gridDim.x, turn++) {
        const uint32_t at = turn % kTurns, parity = turn / kTurns % 2;
        auto& sums = turns.sums[at];
        for (uint32_t side = 0; side < s.per_item; side++) {
            float acc[4] = {0, 0, 0, 0};
            const uint32_t first_place = (item * s.per_item + side) % s.n_records;
            const uint8_t* in = nullptr;
            uint32_t piece_end = slice.first;
            for (uint32_t record = slice.first; record < slice.last; record++, in += Record<Type>::kBytes) {
                if (record == piece_end) {
                    in = reader.next();
                    piece_end += piece_records(record, slice.last, first_place, s.n_records, most);
                }
                const auto scales = scales_of<Type>(in + Record<Type>::kScales, lane);
#pragma unroll
                for (int unit = 0; unit < kUnits; unit++) {
                    const uint32_t column = record * kUnits + unit;
                    Activations<Operand::kF16> v;
                    for (int h = 0; h < 2; h++) {
                        *reinterpret_cast<uint4*>(v.high + 4 * h) =
                            *reinterpret_cast<const uint4*>(x.columns + column * 128 + h * 64 + lane % 4 * 16);
                    }
                    multiply_add<Type>(acc, make_fragments<Type>(load_unit<Type>(in, unit, lane), scales, unit), v);
                }
            }
            if (side == 0) wait_mbarrier(turns.empty + at, parity ^ 1);
            if (lane % 4 == 0) {
                sums[side][warp][lane / 4] = acc[0];
                sums[side][warp][lane / 4 + 8] = acc[2];
            }
        }
        __syncwarp();
        if (lane == 0) arrive_mbarrier(turns.full + at);
        // The warps take turns to wait for all and add up.
        if (warp != turn % kWarps) continue;
        wait_mbarrier(turns.full + at, parity);
        auto total = [&](uint32_t side) {
            float sum = 0;
            for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, sums[side][w][lane]);
            return __fmul_rn(sum, factor);
        };
        if (lane < kTileRows) {
            const float value = total(0), up = s.per_item > 1 ? total(1) : 0;
            finish(s, number, logits, item * kTileRows + lane, value, up);
        }
        __syncwarp();
        if (lane == 0) arrive_mbarrier(turns.empty + at);
    }
}

__device__ __forceinline__ void multiply_any(const KigoStage& s, uint32_t number, float* logits, float factor, const Operands& x, Turns& turns,
                                             uint32_t& turn, PieceReader& reader) {
#define KIGO_CASE(type)                                              \
    case KIGO_TYPE_##type:                                           \
        multiply<type>(s, number, logits, factor, x, turns, turn, reader);     \
        break;
    switch (s.quant) {
        KIGO_CASE(F16)
#ifndef KIGO_STEP_F16_ONLY
        KIGO_CASE(Q4_0)
        KIGO_CASE(Q4_1)
        KIGO_CASE(Q5_0)
        KIGO_CASE(Q5_1)
        KIGO_CASE(Q8_0)
        KIGO_CASE(Q2_K)
        KIGO_CASE(Q3_K)
        KIGO_CASE(Q4_K)
        KIGO_CASE(Q5_K)
        KIGO_CASE(Q6_K)
        KIGO_CASE(IQ4_NL)
        KIGO_CASE(IQ4_XS)
        KIGO_CASE(MXFP4)
#endif
    }
#undef KIGO_CASE
}

// Sleeps up to `most` nanoseconds, in every warp of every block and at every `time` others.
__device__ __forceinline__ void dawdle(uint32_t most, uint32_t time) {
    uint32_t mixed = (time * kStepWarps + threadIdx.x / kWarp) * gridDim.x + blockIdx.x;
    mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
    mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
    __nanosleep((mixed ^ mixed >> 16) % most);
}

// Copies a struct with the first threads of the block.
template <class T>
__device__ __forceinline__ void copy_struct(T* to, const T* from) {
    static_assert(sizeof(T) % 8 == 0 && sizeof(T) / 8 <= kStepThreads);
    if (threadIdx.x < sizeof(T) / 8) {
        reinterpret_cast<uint64_t*>(to)[threadIdx.x] = __ldg(reinterpret_cast<const unsigned long long*>(from) + threadIdx.x);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step(const __grid_constant__ KigoStep p) {
    __shared__ Block block;
    float4* x = reinterpret_cast<float4*>(memory + size_t(kStepWarps) * p.n_slots * p.slot_bytes);
    uint8_t* columns = reinterpret_cast<uint8_t*>(x) + p.stride * 4;
    const Operands operands = {columns};
    const uint32_t warp = threadIdx.x / kWarp;
    if (threadIdx.x < kStepWarps * 2 * KIGO_MAX_SLOTS) init_mbarrier(&block.rings[0][0][0] + threadIdx.x, 1);
    if (threadIdx.x < kGroups * kTurns) {
        Turns& turns = block.turns[threadIdx.x / kTurns];
        init_mbarrier(turns.full + threadIdx.x % kTurns, kWarps);
        init_mbarrier(turns.empty + threadIdx.x % kTurns, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (warp >= kStepWarps) return fetch(p, memory, &block.rings[0][0][0], warp - kStepWarps);

    PieceReader reader(p, memory, &block.rings[0][0][0], warp);
    const auto* stages = reinterpret_cast<const KigoStage*>(p.stages);
    const auto* attentions = reinterpret_cast<const KigoStageAttention*>(p.attentions);
    const auto* row = reinterpret_cast<const KigoRow*>(p.rows);
    const uint64_t table = __ldcg(reinterpret_cast<const unsigned long long*>(&row->pages));
    if (threadIdx.x == 0) block.sight.position = __ldcg(&row->position);
    const uint32_t number = __ldcg(reinterpret_cast<const uint32_t*>(p.number));
    for (uint32_t q = threadIdx.x; q < p.stride / 4; q += kStepThreads) x[q] = __ldcg(reinterpret_cast<const float4*>(p.x) + q);
    copy_struct(&block.stages[0], stages);
    step_sync();

    Turns& turns = block.turns[threadIdx.x / kThreads];
    uint32_t turn = 0;
    float factor = 1;
    for (uint32_t i = 0; i < p.n_stages; i++) {
        const KigoStage& s = block.stages[i % 2];
        if (p.delay) dawdle(p.delay, number * p.n_stages + i);
        // The stage before is done with its operands and its description, and this one's is there.
        step_sync();
        if (i + 1 < p.n_stages) copy_struct(&block.stages[(i + 1) % 2], stages + i + 1);
        if (s.kind == KIGO_STAGE_ATTENTION) {
            switch (block.attention.heads.qkv.dp) {
                case 32:
                    attend<32>(block.attention, block.sight, number, operands.columns);
                    break;
                case 64:
                    attend<64>(block.attention, block.sight, number, operands.columns);
                    break;
                case 96:
                    attend<96>(block.attention, block.sight, number, operands.columns);
                    break;
                default:
                    attend<128>(block.attention, block.sight, number, operands.columns);
            }
            continue;
        }
        if (s.attention != KIGO_NO_ATTENTION) copy_struct(&block.attention, attentions + s.attention);
        if (s.take == KIGO_TAKE_RESIDUAL) factor = take_residual(s, number, x, operands, block.scratch);
        if (s.take == KIGO_TAKE_WORDS) factor = take_vector(s, number, operands, block.scratch);
        if (s.attention != KIGO_NO_ATTENTION) bring_near(block.attention, table, block.sight);
        multiply_any(s, number, reinterpret_cast<float*>(p.logits), __fmul_rn(factor, s.weight_scale), operands, turns, turn, reader);
    }
}

#endif
