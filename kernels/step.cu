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
    float4 scratch[2][kStepWarps / 2];
    // The stage at hand, the next, and the one after it.
    KigoStage stages[3];
    KigoStageAttention attention;
    Sight sight;
};
static_assert(sizeof(Block) <= KIGO_STEP_STATIC);

// Operands of the activations, as `matmul_one` has them: 128 bytes a unit.
struct Operands {
    uint8_t* columns;

    // Puts quad thread + i kThreads of the row; called by aligned groups of 16 lanes for as many quads.
    __device__ __forceinline__ void put(uint32_t thread, uint32_t i, float4 v, float scale) const {
        const Quad value =
            make_quad<false>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
        const QuadPlace place(thread);
        *reinterpret_cast<uint2*>(columns + place.unit * 128 + place.in_row() + i * (kThreads * 8)) = value.high;
    }
};
static_assert(kStepThreads == kThreads);

__device__ __forceinline__ float largest_of(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// What products are multiplied with: the inverse of the operands' scale, and that of the norm, if there is one.
struct Factor {
    float inverse, sum;
    bool normed;

    __device__ __forceinline__ float value(const KigoStage& s) const {
        return normed ? __fmul_rn(inverse, norm_factor(sum, s.k, s.eps)) : inverse;
    }
};

// What the warps of a block do together, stage by stage.
struct Worker {
    const KigoStep& p;
    Block& block;
    float4* x;
    Operands operands;
    WordSet set;
    PieceReader reader;
    uint32_t turn = 0, n_sums = 0;
    Factor factor = {1, 0, false};

    // Sum and maximum over all threads, in every thread. The order is that of block_sum_max.
    __device__ __forceinline__ float2 sum_max(float sum, float largest) {
        // Those of the sum before the last have been read.
        float4* scratch = block.scratch[n_sums++ % 2];
        sum = warp_sum(sum);
        largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
        if (threadIdx.x % kWarp == 0) reinterpret_cast<float2*>(scratch)[threadIdx.x / kWarp] = {sum, largest};
        step_sync();
        float4 all = scratch[0];
        all.x = __fadd_rn(all.x, all.z);
        all.y = fmaxf(all.y, all.w);
#pragma unroll
        for (int i = 1; i < kStepWarps / 2; i++) {
            const float4 two = scratch[i];
            all.x = __fadd_rn(__fadd_rn(all.x, two.x), two.z);
            all.y = fmaxf(fmaxf(all.y, two.y), two.w);
        }
        return {all.x, all.y};
    }

    // Maximum over all threads, in every thread.
    __device__ __forceinline__ float max_of_all(float largest) {
        float4* scratch = block.scratch[n_sums++ % 2];
        const uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(largest));
        if (threadIdx.x % kWarp == 0) reinterpret_cast<uint32_t*>(scratch)[threadIdx.x / kWarp] = bits;
        step_sync();
        const float4 low = scratch[0], high = scratch[1];
        return fmaxf(largest_of(low), largest_of(high));
    }

    // x += scale * norm(delta), as add_normed does it.
    __device__ __forceinline__ void add_delta(const KigoStage& s, const float* delta) {
        const uint32_t thread = this_thread();
        float* to = reinterpret_cast<float*>(x);
        float squares = 0;
        for (uint32_t i = thread; i < s.k; i += kThreads) squares = __fmaf_rn(delta[i], delta[i], squares);
        const float norm = norm_factor(sum_max(squares, 0).x, s.k, s.eps);
        for (uint32_t i = thread; i < s.k; i += kThreads) {
            const float normed = __fmul_rn(__fmul_rn(delta[i], norm), __ldg(reinterpret_cast<const float*>(s.post_norm) + i));
            to[i] = __fmaf_rn(s.residual_scale, normed, to[i]);
        }
        step_sync();
    }

    // The residual stream, to which the words are added, as operands.
    __device__ __forceinline__ void take_residual(const KigoStage& s) {
        const uint32_t thread = this_thread();
        constexpr int kHeld = 4;
        const float4* weight = reinterpret_cast<const float4*>(s.norm_weight);
        const uint32_t n_quads = s.stride / 4, n_given = s.k / 4;
        // Quads of a thread that registers hold; what does not depend on the words comes first.
        float4 v[kHeld] = {}, w[kHeld] = {};
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            const uint32_t q = thread + i * kThreads;
            if (q >= n_quads) break;
            v[i] = x[q];
            w[i] = weight ? __ldg(weight + q) : float4{1, 1, 1, 1};
        }
        if (s.input) {
            const uint32_t* words = set.from(s.input);
            Quads<kHeld> given;
            auto added = [&](float4 old, uint4 in) -> float4 {
                const float4 d = values_of(in);
                return {__fmaf_rn(s.residual_scale, d.x, old.x), __fmaf_rn(s.residual_scale, d.y, old.y),
                        __fmaf_rn(s.residual_scale, d.z, old.z), __fmaf_rn(s.residual_scale, d.w, old.w)};
            };
            given.await(words, thread, n_given);
            if (!s.post_norm) {
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = thread + i * kThreads;
                    if (q >= n_quads) break;
                    v[i] = added(v[i], given.in[i]);
                    x[q] = v[i];
                }
#pragma unroll 1
                for (uint32_t q = thread + kHeld * kThreads; q - thread < n_given; q += kThreads) {
                    Quads<1> one;
                    one.await(words, q, n_given);
                    if (q < n_given) x[q] = added(x[q], one.in[0]);
                }
            } else {
                // Operands of the stage before are not needed any more.
                step_sync();
                uint4* delta = reinterpret_cast<uint4*>(operands.columns);
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = thread + i * kThreads;
                    if (q < n_given) delta[q] = given.in[i];
                }
#pragma unroll 1
                for (uint32_t q = thread + kHeld * kThreads; q - thread < n_given; q += kThreads) {
                    Quads<1> one;
                    one.await(words, q, n_given);
                    if (q < n_given) delta[q] = one.in[0];
                }
                step_sync();
                add_delta(s, reinterpret_cast<const float*>(delta));
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = thread + i * kThreads;
                    if (q < n_quads) v[i] = x[q];
                }
            }
        }
        float sum = 0, largest = 0;
        auto weigh = [&](float4 v, float4 w) {
            sum = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, sum))));
            const float4 y = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
            largest = fmaxf(largest, largest_of(y));
            return y;
        };
        auto weigh_at = [&](uint32_t q) { return weigh(x[q], weight ? __ldg(weight + q) : float4{1, 1, 1, 1}); };
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (thread + i * kThreads >= n_quads) break;
            v[i] = weigh(v[i], w[i]);
        }
#pragma unroll 1
        for (uint32_t q = thread + kHeld * kThreads; q < n_quads; q += kThreads) weigh_at(q);
        const float2 all = sum_max(sum, largest);
        float scale;
        factor = {1, all.x, weight != nullptr};
        range_scale(all.y, scale, factor.inverse);
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (thread + i * kThreads >= n_quads) break;
            operands.put(thread, i, v[i], scale);
        }
#pragma unroll 1
        for (uint32_t i = kHeld; thread + i * kThreads < n_quads; i++) {
            operands.put(thread, i, weigh_at(thread + i * kThreads), scale);
        }
        step_sync();
    }

    // A vector of words as operands.
    __device__ __forceinline__ void take_vector(const KigoStage& s) {
        const uint32_t thread = this_thread();
        // All of it: its scale has to be known before any is rounded.
        constexpr int kHeld = KIGO_STEP_MOST_COLUMNS / 4 / kThreads;
        const uint32_t n_quads = s.stride / 4;
        Quads<kHeld> given;
        given.await(set.from(s.input), thread, s.k / 4);
        float largest = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kThreads >= n_quads) break;
            largest = fmaxf(largest, largest_of(values_of(given.in[i])));
        }
        float scale;
        factor = {1, 0, false};
        range_scale(max_of_all(largest), scale, factor.inverse);
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kThreads >= n_quads) break;
            if (thread + i * kThreads < n_quads) operands.put(thread, i, values_of(given.in[i]), scale);
        }
        step_sync();
    }

    __device__ __forceinline__ float add_bias(const KigoStage& s, int part, uint32_t row, float value) const {
        return s.bias[part] ? __fadd_rn(value, __ldg(reinterpret_cast<const float*>(s.bias[part]) + row)) : value;
    }

    // Row `row` of a product: `value`, of gate and up `value` and `up`.
    __device__ __forceinline__ void finish(const KigoStage& s, uint32_t row, float value, float up) const {
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

    // This group's items of a stage.
    __device__ __forceinline__ void multiply(const KigoStage& s) {
#define KIGO_CASE(type)          \
    case KIGO_TYPE_##type:       \
        multiply_items<type>(s); \
        break;
        switch (s.quant) {
            KIGO_CASE(F16)
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
        }
#undef KIGO_CASE
    }

    // What a lane multiplies the unit of this number in a row with.
    __device__ __forceinline__ Activations<Operand::kF16> columns_of(uint32_t unit) const {
        Activations<Operand::kF16> v;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            *reinterpret_cast<uint4*>(v.high + 4 * h) =
                *reinterpret_cast<const uint4*>(operands.columns + unit * 128 + h * 64 + threadIdx.x % 4 * 16);
        }
        return v;
    }

    // Adds up the sums of an item, the `number`-th of all stages.
    __device__ __forceinline__ void add_up(const KigoStage& s, uint32_t item, uint32_t number, float by) const {
        const uint32_t thread = this_thread();
        const uint32_t lane = thread % kWarp, at = number % kTurns;
        Turns& turns = block.turns[thread / kThreads];
        wait_mbarrier(turns.full + at, number / kTurns % 2);
        // A half of the lanes for each side; where there is one, nobody looks at the other.
        const float* sums = turns.sums[at][lane / kTileRows][0] + lane % kTileRows;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, sums[w * kTileRows]);
        const float value = __fmul_rn(sum, by), up = __shfl_down_sync(~0u, value, kTileRows);
        __syncwarp();
        if (lane == 0) arrive_mbarrier(turns.empty + at);
        if (lane < kTileRows) finish(s, item * kTileRows + lane, value, up);
    }

    template <class Type>
    __device__ __forceinline__ void multiply_items(const KigoStage& s) {
        if constexpr (Type::kGroupK == 0) {
            if (reader.slot_bytes < 2 * Record<Type>::kBytes) return multiply_items<Type, true>(s);
        }
        multiply_items<Type, false>(s);
    }

    // kSingle: pieces are records.
    template <class Type, bool kSingle>
    __device__ __forceinline__ void multiply_items(const KigoStage& s) {
        const uint32_t thread = this_thread();
        constexpr int kUnits = Type::kRecordK / kUnitK;
        constexpr uint32_t kBytes = Record<Type>::kBytes;
        const uint32_t lane = thread % kWarp, warp = thread / kWarp % kWarps, stride = kGroups * gridDim.x;
        const uint32_t n_items = s.n_items, per_item = s.per_item, n_records = s.n_records;
        const Slice slice(n_records, warp);
        const uint32_t most = reader.slot_bytes / kBytes;
        uint32_t item = first_item(s, group_worker());
        if (item >= n_items) return;
        const uint32_t memory_at = shared_address(memory);
        Turns& turns = block.turns[thread / kThreads];
        bool has_value = false, is_due = false;
        float by = 0;
        float acc[4] = {0, 0, 0, 0};
        uint32_t side = 0, due_item = 0, due_turn = 0;

        // The sums of a tile go to whoever adds them up; warps take turns at that.
        auto close_tile = [&] {
            const uint32_t at = turn % kTurns;
            if (side == 0) wait_mbarrier(turns.empty + at, turn / kTurns % 2 ^ 1);
            if (lane % 4 == 0) {
                float* sums = turns.sums[at][side][warp] + lane / 4;
                sums[0] = acc[0];
                sums[8] = acc[2];
            }
            acc[0] = acc[1] = acc[2] = acc[3] = 0;
            if (++side < per_item) return;
            side = 0;
            __syncwarp();
            if (lane == 0) arrive_mbarrier(turns.full + at);
            if (warp == turn % kWarps) {
                is_due = true;
                due_item = item;
                due_turn = turn;
            }
            turn++;
            item += stride;
        };
        auto add_due = [&] {
            if (!is_due) return;
            is_due = false;
            if (!has_value) by = __fmul_rn(factor.value(s), s.weight_scale);
            has_value = true;
            add_up(s, due_item, due_turn, by);
        };
        if (slice.first == slice.last) {
#pragma unroll 1
            while (item < n_items) {
                close_tile();
                add_due();
            }
            return;
        }
        // The next record, those of its piece that are left, the bytes of the piece before it, and its tile.
        uint32_t record = slice.first, left = 0, offset = 0, tile = item * per_item, tile_side = 0;
        uint32_t first_place = kSingle ? 0 : tile % n_records;
        bool more = true;
        auto advance = [&] {
            offset += kBytes;
            if (kSingle || --left == 0) {
                reader.give_back(lane == 0);
                offset = 0;
            }
            if (++record < slice.last) return;
            record = slice.first;
            if (++tile_side == per_item) {
                tile_side = 0;
                tile += (stride - 1) * per_item;
            }
            tile++;
            if (!kSingle) first_place = tile % n_records;
            more = tile < n_items * per_item;
        };
        if constexpr (kSingle) {
            // A record comes from shared memory while the one before it is multiplied.
            struct Loaded {
                typename Type::Planes::Unit unit;
                Activations<Operand::kF16> v;
            } one, other;
            auto load = [&](Loaded& to) {
                to.unit = load_unit<Type>(memory + (reader.slot - memory_at), 0, lane);
                to.v = columns_of(record);
            };
            uint32_t in_tile = slice.last - slice.first;
            auto step = [&](const Loaded& now, Loaded& then) {
                const bool has_next = more;
                // Products are a chain: what has to be done for the next record fits between them.
                const auto w = make_fragments<Type>(now.unit, NoScales{}, 0);
                mma_f16(acc, w.a[0], now.v.high);
                const bool is_there = !has_next || reader.is_there();
                mma_f16(acc, w.a[1], now.v.high + 2);
                if (!is_there) reader.wait();
                // Where there is none, of what stands there.
                load(then);
                mma_f16(acc, w.a[2], now.v.high + 4);
                if (has_next) advance();
                mma_f16(acc, w.a[3], now.v.high + 6);
                if (--in_tile == 0) {
                    in_tile = slice.last - slice.first;
                    close_tile();
                }
                return has_next;
            };
            reader.wait();
            load(one);
            advance();
#pragma unroll 1
            while (step(one, other) && step(other, one)) add_due();
        } else {
#pragma unroll 1
            while (more) {
                if (left == 0) {
                    reader.wait();
                    left = piece_records(record, slice.last, first_place, n_records, most);
                }
                const uint8_t* in = memory + (reader.slot - memory_at) + offset;
                const auto scales = scales_of<Type>(in + Record<Type>::kScales, lane);
#pragma unroll
                for (int unit = 0; unit < kUnits; unit++) {
                    multiply_add<Type>(acc, make_fragments<Type>(load_unit<Type>(in, unit, lane), scales, unit),
                                       columns_of(record * kUnits + unit));
                }
                const bool is_last = record + 1 == slice.last;
                advance();
                if (is_last) close_tile();
                add_due();
            }
        }
        add_due();
    }
};

// Sleeps up to `most` nanoseconds, in every warp of every block and at every `time` others.
__device__ __forceinline__ void dawdle(uint32_t most, uint32_t time) {
    uint32_t mixed = (time * kStepWarps + threadIdx.x / kWarp) * gridDim.x + blockIdx.x;
    mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
    mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
    __nanosleep((mixed ^ mixed >> 16) % most);
}

// A word of a struct for each of the first threads of the block.
template <class T>
__device__ __forceinline__ uint64_t load_part(const T* from) {
    static_assert(sizeof(T) % 8 == 0 && sizeof(T) / 8 <= kStepThreads);
    return threadIdx.x < sizeof(T) / 8 ? __ldg(reinterpret_cast<const unsigned long long*>(from) + threadIdx.x) : 0;
}

template <class T>
__device__ __forceinline__ void store_part(T* to, uint64_t part) {
    if (threadIdx.x < sizeof(T) / 8) reinterpret_cast<uint64_t*>(to)[threadIdx.x] = part;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step(const __grid_constant__ KigoStep p) {
    __shared__ Block block;
    float4* x = reinterpret_cast<float4*>(memory + size_t(kStepWarps) * p.n_slots * p.slot_bytes);
    uint8_t* columns = reinterpret_cast<uint8_t*>(x) + p.stride * 4;
    const uint32_t warp = threadIdx.x / kWarp;
    if (threadIdx.x < kStepWarps * 2 * KIGO_MAX_SLOTS) init_mbarrier(&block.rings[0][0][0] + threadIdx.x, 1);
    if (threadIdx.x < kGroups * kTurns) {
        Turns& turns = block.turns[threadIdx.x / kTurns];
        init_mbarrier(turns.full + threadIdx.x % kTurns, kWarps);
        init_mbarrier(turns.empty + threadIdx.x % kTurns, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    // Who fetches leaves its registers to who multiplies.
    if (warp >= kStepWarps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
#endif
        return fetch(p, memory, &block.rings[0][0][0], warp - kStepWarps);
    }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 184;");
#endif

    const auto* stages = reinterpret_cast<const KigoStage*>(p.stages);
    const auto* attentions = reinterpret_cast<const KigoStageAttention*>(p.attentions);
    const auto* row = reinterpret_cast<const KigoRow*>(p.rows);
    const uint64_t table = __ldcg(reinterpret_cast<const unsigned long long*>(&row->pages));
    if (threadIdx.x == 0) block.sight.position = __ldcg(&row->position);
    const uint32_t number = __ldcg(reinterpret_cast<const uint32_t*>(p.number));
    Worker worker = {p, block, x, {columns}, {number, p.set_bytes},
                     {p, memory, &block.rings[0][0][0], warp}};
    for (uint32_t q = threadIdx.x; q < p.stride / 4; q += kStepThreads) x[q] = __ldcg(reinterpret_cast<const float4*>(p.x) + q);
    store_part(&block.stages[0], load_part(stages));
    if (p.n_stages > 1) store_part(&block.stages[1], load_part(stages + 1));
    store_part(&block.attention, load_part(attentions));
    step_sync();
    bring_near(block.attention, table, block.sight);

    bool is_near = true;
#pragma unroll 1
    for (uint32_t i = 0; i < p.n_stages; i++) {
        const KigoStage& s = block.stages[i % 3];
        if (p.delay) dawdle(p.delay, number * p.n_stages + i);
        const uint64_t part = i + 2 < p.n_stages ? load_part(stages + i + 2) : 0;
        // Every stage has a barrier: behind it all warps are done with the stage before.
        if (s.take == KIGO_TAKE_SAME) step_sync();
        if (s.kind == KIGO_STAGE_ATTENTION) {
            switch (block.attention.heads.qkv.dp) {
                case 32:
                    attend<32>(block.attention, block.sight, worker.set, columns);
                    break;
                case 64:
                    attend<64>(block.attention, block.sight, worker.set, columns);
                    break;
                case 96:
                    attend<96>(block.attention, block.sight, worker.set, columns);
                    break;
                default:
                    attend<128>(block.attention, block.sight, worker.set, columns);
            }
        } else {
            if (s.take == KIGO_TAKE_RESIDUAL) worker.take_residual(s);
            if (s.take == KIGO_TAKE_WORDS) worker.take_vector(s);
            worker.multiply(s);
            // What the next attention needs is looked up while words are on their way.
            if (!is_near) bring_near(block.attention, table, block.sight);
            is_near = true;
            if (s.attention != KIGO_NO_ATTENTION) {
                store_part(&block.attention, load_part(attentions + s.attention));
                is_near = false;
            }
        }
        store_part(&block.stages[(i + 2) % 3], part);
    }
}

#endif
