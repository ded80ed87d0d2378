// A step of one sequence, or of some that decode together, from the embedding to the logits, as one kernel that stays on the
// multiprocessors: `step`, `step_pages`, `step_rows`.
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
#include "step_experts.cuh"
#include "step_finish.cuh"
#include "step_pages.cuh"
#include "step_scales.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace {

extern __shared__ __align__(kLine) uint8_t memory[];

// What a warp that multiplies keeps from stage to stage, here rather than in registers, of which what comes between has need:
// the next piece in its ring, and the items that it has closed in all stages.
template <bool kMixes>
struct alignas(16) WarpState {
    PiecePlace<kMixes> place;
    uint32_t turn;
};

// The largest magnitudes that warps have found in each row, of two stages in turns.
struct RowMagnitudes {
    alignas(16) uint32_t of_rows[2][KIGO_STEP_ROWS][kWarps];
};
struct NoRowMagnitudes {};

// What a block knows of its pages, where they come through the rings and where not.
struct RingPages {
    PageSource source;
    PageSight sight;
};
struct LoadedPages {
    Sight sight;
};

// What a block has besides its dynamic memory.
template <bool kMixes, bool kMany, bool kPages>
struct Block : std::conditional_t<kMany, RowMagnitudes, NoRowMagnitudes>, std::conditional_t<kPages, RingPages, LoadedPages> {
    Sums<kMany> sums;
    RingHeads rings[kStepWarps];
    WarpState<kMixes> warps[kStepWarps];
    Mixture mixture;
    // Of two stages in turns: a warp may still read one's when another is at the next.
    alignas(16) float largest[2][kWarps];
    float sums_of_warps[kWarps];
    // Of the step, as each row counts them; where the rows are.
    uint32_t numbers[kMany ? KIGO_STEP_ROWS : 1], positions[kMany ? KIGO_STEP_ROWS : 1];
    // The stage at hand, the next, and the one after it.
    KigoStage stages[3];
    KigoStageAttention attention;
};
static_assert(sizeof(Block<false, false, false>) <= KIGO_STEP_STATIC && sizeof(Block<true, false, false>) <= KIGO_STEP_STATIC);
static_assert(sizeof(Block<false, false, true>) <= KIGO_STEP_STATIC && sizeof(Block<false, true, false>) <= KIGO_STEP_ROWS_STATIC);

// Operands of the activations, as `matmul_one` has them: 128 bytes a unit. Of pairs of bfloat16 the rests stand `to_rests` further; 0 of
// halves.
template <bool kPairs>
struct Operands {
    uint8_t* columns;
    uint32_t to_rests;

    // Puts quad first + i kWarp of the row; called by aligned groups of 16 lanes for as many quads.
    __device__ __forceinline__ void put(uint32_t first, uint32_t i, float4 v, float scale) const { put_at(first, i * kWarp, v, scale); }

    // Puts quad first + more, where `more` is a multiple of 16.
    __device__ __forceinline__ void put_at(uint32_t first, uint32_t more, float4 v, float scale) const {
        const QuadPlace place(first);
        uint8_t* to = columns + place.unit * 128 + place.in_row() + more * 8;
        if (kPairs && to_rests > 0) {
            const Quad value = make_quad<true>(v);
            *reinterpret_cast<uint2*>(to) = value.high;
            *reinterpret_cast<uint2*>(to + to_rests) = value.low;
            return;
        }
        const Quad value =
            make_quad<false>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
        *reinterpret_cast<uint2*>(to) = value.high;
    }

    // The same without a scale, where `has`; called by whole warps.
    __device__ __forceinline__ void put_where(uint32_t first, uint32_t more, float4 v, bool has) const {
        const QuadPlace place(first);
        uint8_t* to = columns + place.unit * 128 + place.in_row() + more * 8;
        if (kPairs && to_rests > 0) {
            const Quad value = make_quad<true, true>(v);
            if (!has) return;
            *reinterpret_cast<uint2*>(to) = value.high;
            *reinterpret_cast<uint2*>(to + to_rests) = value.low;
            return;
        }
        const Quad value = make_quad<false>(v);
        if (has) *reinterpret_cast<uint2*>(to) = value.high;
    }

    // Those of the i-th of some vectors.
    __device__ __forceinline__ Operands of_vector(uint32_t i, uint32_t stride) const { return {columns + i * stride * 2, to_rests}; }
};

// Bytes of a vector's operands to the rests of pairs of bfloat16, or 0 where they are halves.
__device__ __forceinline__ uint32_t rests_of(const KigoStage& s) {
    return s.quant == KIGO_TYPE_BF16 || s.quant == KIGO_TYPE_F32 ? s.stride * 2 : 0;
}

// What the warps of a block do together, stage by stage; kPairs: some products are of pairs of bfloat16; kMany: of several
// rows; kPages: keys and values come through the rings.
template <bool kMixes, bool kPairs, bool kMany, bool kPages>
struct Worker {
    using Reader = PieceReader<kMixes>;
    using Place = PiecePlace<kMixes>;

    const KigoStep& p;
    Block<kMixes, kMany, kPages>& block;

    __device__ __forceinline__ uint32_t n_rows() const { return kMany ? p.n_rows : 1; }

    // The residual stream of a row.
    __device__ __forceinline__ float4* x(uint32_t row = 0) const {
        return reinterpret_cast<float4*>(memory + size_t(kStepWarps) * p.n_slots * p.slot_bytes) + row * (p.stride / 4);
    }

    // Where the operands of a row start.
    __device__ __forceinline__ uint8_t* columns(uint32_t row = 0) const {
        return reinterpret_cast<uint8_t*>(x(n_rows())) + (kMany ? row * p.operands_stride : 0);
    }

    __device__ __forceinline__ Operands<kPairs> operands(const KigoStage& s, uint32_t row = 0) const {
        return {columns(row), kPairs ? rests_of(s) : 0};
    }

    // Where sums of several rows are.
    __device__ __forceinline__ float* sums_of_rows() const { return reinterpret_cast<float*>(columns() + p.sums_at); }

    // What a stage's vector is multiplied with, whose largest magnitude is known, and the inverse.
    __device__ __forceinline__ static void operand_scale(const KigoStage& s, float magnitude, float& scale, float& inverse) {
        scale = inverse = 1;
        if (!kPairs || rests_of(s) == 0) range_scale(magnitude, scale, inverse);
    }

    __device__ __forceinline__ RouterMemory& router() const {
        return *reinterpret_cast<RouterMemory*>(columns() + p.router_at);
    }

    __device__ __forceinline__ WordSet set(uint32_t row = 0) const { return {block.numbers[row], p.set_bytes, row}; }

    // The quads of a vector that a warp multiplies with: those of its slice, for which it need not wait for others.
    struct Own {
        uint32_t first, last;

        __device__ __forceinline__ explicit Own(const KigoStage& s) {
            const Slice part(s.n_records, this_thread() / kWarp);
            const uint32_t of_record = s.stride / 4 / s.n_records;
            first = part.first * of_record;
            last = part.last * of_record;
        }
    };

    // Sum over all threads, in every thread, in the order of block_sum_max.
    __device__ __forceinline__ float sum_of_all(float sum) const {
        sum = warp_sum(sum);
        if (threadIdx.x % kWarp == 0) block.sums_of_warps[threadIdx.x / kWarp] = sum;
        step_sync();
        float all = block.sums_of_warps[0];
#pragma unroll
        for (int i = 1; i < kWarps; i++) all = __fadd_rn(all, block.sums_of_warps[i]);
        return all;
    }

    // Maximum over all threads, in every thread; `turn` is the number of the stage.
    __device__ __forceinline__ float max_of_all(float largest, uint32_t turn) const {
        float* of_warps = block.largest[turn % 2];
        const uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(largest));
        if (threadIdx.x % kWarp == 0) reinterpret_cast<uint32_t*>(of_warps)[threadIdx.x / kWarp] = bits;
        step_sync();
        const float4* all = reinterpret_cast<const float4*>(of_warps);
        return fmaxf(largest_of(all[0]), largest_of(all[1]));
    }

    // x += scale * norm(delta) of a row, as add_normed does it.
    __device__ __forceinline__ void add_delta(const KigoStage& s, const float* delta, uint32_t row = 0) const {
        const uint32_t thread = this_thread();
        float* to = reinterpret_cast<float*>(x(row));
        float squares = 0;
        for (uint32_t i = thread; i < s.k; i += kThreads) squares = __fmaf_rn(delta[i], delta[i], squares);
        const float norm = norm_factor(sum_of_all(squares), s.k, s.eps);
        for (uint32_t i = thread; i < s.k; i += kThreads) {
            const float normed = __fmul_rn(__fmul_rn(delta[i], norm), __ldg(reinterpret_cast<const float*>(s.post_norm) + i));
            to[i] = __fmaf_rn(s.residual_scale, normed, to[i]);
        }
        step_sync();
    }

    // The sum of the vectors of experts, which stand one after the other, in their order, each times its weight.
    template <int kHeld>
    __device__ __forceinline__ Quads<kHeld, kWarp> mixed(const KigoStage& s, const uint32_t* words, uint32_t first, uint32_t last) const {
        const uint32_t lane = this_thread() % kWarp;
        Quads<kHeld, kWarp> each[KIGO_STEP_APART];
#pragma unroll
        for (uint32_t j = 0; j < KIGO_STEP_APART; j++) each[j].ask(words + j * s.stride, first, j < s.n_used ? last : 0);
        const float weight = weight_of(s.n_used, lane < s.n_used ? block.mixture.logits[lane] : -INFINITY);
        float4 sum[kHeld] = {};
#pragma unroll
        for (uint32_t j = 0; j < KIGO_STEP_APART; j++) {
            const float w = __shfl_sync(~0u, weight, j);
            each[j].insist(words + j * s.stride, first);
            if (j >= s.n_used) continue;
#pragma unroll
            for (int i = 0; i < kHeld; i++) {
                const float4 v = values_of(each[j].in[i]);
                sum[i] = {__fmaf_rn(w, v.x, sum[i].x), __fmaf_rn(w, v.y, sum[i].y), __fmaf_rn(w, v.z, sum[i].z), __fmaf_rn(w, v.w, sum[i].w)};
            }
        }
        Quads<kHeld, kWarp> out;
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            out.in[i] = {__float_as_uint(sum[i].x), __float_as_uint(sum[i].y), __float_as_uint(sum[i].z), __float_as_uint(sum[i].w)};
        }
        return out;
    }

    // The residual stream, to which the words are added, as operands; the `n_taken`-th time.
    __device__ __forceinline__ void take_residual(const KigoStage& s, uint32_t turn, uint32_t n_taken) const {
        // Who finishes has read it as it was.
        wait_mbarrier(&block.sums.read, n_taken % 2 ^ 1);
        const uint32_t lane = this_thread() % kWarp;
        constexpr int kHeld = 4;
        float4* x = this->x();
        const auto operands = this->operands(s);
        const float4* weight = reinterpret_cast<const float4*>(s.norm_weight);
        const Own own(s);
        const uint32_t first = own.first + lane, last_given = min(own.last, s.k / 4);
        // Quads of a thread that registers hold; what does not depend on the words comes first.
        const float residual_scale = s.residual_scale;
        const bool has_post_norm = s.post_norm;
        float4 v[kHeld] = {}, w[kHeld] = {};
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            const uint32_t q = first + i * kWarp;
            if (q >= own.last) break;
            v[i] = x[q];
            w[i] = weight ? __ldg(weight + q) : float4{1, 1, 1, 1};
        }
        if (s.input) {
            const uint32_t* words = set().from(s.input);
            Quads<kHeld, kWarp> given;
            auto added = [&](float4 old, uint4 in) -> float4 {
                const float4 d = values_of(in);
                return {__fmaf_rn(residual_scale, d.x, old.x), __fmaf_rn(residual_scale, d.y, old.y),
                        __fmaf_rn(residual_scale, d.z, old.z), __fmaf_rn(residual_scale, d.w, old.w)};
            };
            if (kMixes && s.n_used > 1) {
                given = mixed<kHeld>(s, words, first, last_given);
            } else {
                given.await(words, first, last_given);
            }
            if (__builtin_expect(!has_post_norm, 1)) {
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = first + i * kWarp;
                    if (q >= own.last) break;
                    v[i] = added(v[i], given.in[i]);
                    x[q] = v[i];
                }
#pragma unroll 1
                for (uint32_t q = first + kHeld * kWarp; q - lane < own.last; q += kWarp) {
                    Quads<1, kWarp> one;
                    one.await(words, q, last_given);
                    if (q < last_given) x[q] = added(x[q], one.in[0]);
                }
            } else {
                // Operands of the stage before are not needed any more.
                step_sync();
                uint4* delta = reinterpret_cast<uint4*>(operands.columns);
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = first + i * kWarp;
                    if (q < last_given) delta[q] = given.in[i];
                }
#pragma unroll 1
                for (uint32_t q = first + kHeld * kWarp; q - lane < own.last; q += kWarp) {
                    Quads<1, kWarp> one;
                    one.await(words, q, last_given);
                    if (q < last_given) delta[q] = one.in[0];
                }
                step_sync();
                add_delta(s, reinterpret_cast<const float*>(delta));
#pragma unroll
                for (int i = 0; i < kHeld; i++) {
                    const uint32_t q = first + i * kWarp;
                    if (q < own.last) v[i] = x[q];
                }
            }
        }
        float largest = 0;
        auto weigh = [&](float4 v, float4 w) {
            const float4 y = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
            largest = fmaxf(largest, largest_of(y));
            return y;
        };
        auto weigh_at = [&](uint32_t q) { return weigh(x[q], weight ? __ldg(weight + q) : float4{1, 1, 1, 1}); };
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (first + i * kWarp >= own.last) break;
            v[i] = weigh(v[i], w[i]);
        }
#pragma unroll 1
        for (uint32_t q = first + kHeld * kWarp; q < own.last; q += kWarp) weigh_at(q);
        float scale, inverse;
        operand_scale(s, max_of_all(largest, turn), scale, inverse);
        if (this_thread() == 0) {
            block.sums.inverse[0] = inverse;
            arrive_mbarrier(&block.sums.taken);
        }
        const bool routes = kMixes && s.kind == KIGO_STAGE_ROUTER;
        auto put = [&](uint32_t i, float4 y) {
            operands.put(first, i, y, scale);
            if (routes) put_for_router(s, router(), first + i * kWarp, y);
        };
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (first + i * kWarp >= own.last) break;
            put(i, v[i]);
        }
#pragma unroll 1
        for (uint32_t i = kHeld; first + i * kWarp < own.last; i++) put(i, weigh_at(first + i * kWarp));
        __syncwarp();
        // The router's part is of other warps' slices.
        if (routes) step_sync();
    }

    // A vector of words as operands, of which a thread has kHeld quads at most: all of it is held, as its scale has to be known before
    // any is rounded.
    template <int kHeld>
    __device__ __forceinline__ void take_vector(const KigoStage& s, const Own& own, uint32_t turn) const {
        const uint32_t first = own.first + this_thread() % kWarp, n = own.last - own.first;
        Quads<kHeld, kWarp> given;
        given.await(set().from(s.input), first, min(own.last, s.k / 4));
        float largest = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kWarp >= n) break;
            largest = fmaxf(largest, largest_of(values_of(given.in[i])));
        }
        float scale, inverse;
        operand_scale(s, max_of_all(largest, turn), scale, inverse);
        const auto operands = this->operands(s);
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kWarp >= n) break;
            if (first + i * kWarp < own.last) operands.put(first, i, values_of(given.in[i]), scale);
        }
        if (this_thread() == 0) block.sums.inverse[0] = inverse;
        __syncwarp();
    }

    // A vector of words of halves as operands, of which a lane has kHeld times eight columns and those 32 further at most. False where it
    // is multiplied with something, for which the halves do not do.
    template <int kHeld>
    __device__ __forceinline__ bool take_halves(const KigoStage& s, const Own& own, uint32_t turn) const {
        // A unit has 64 columns: 8 quads of words, and 4 lanes with 2 of them each.
        const uint32_t lane = this_thread() % kWarp, n = (own.last - own.first) / 4, of_unit = own.first / 16 + lane / 4;
        const uint32_t* words = set().from(s.input_halves);
        const uint32_t quad = of_unit * 8 + lane % 4, last = min(own.last, s.k / 4) / 2;
        Quads<kHeld, 2 * kWarp> low, high;
        low.ask(words, quad, last);
        high.ask(words, quad + 4, last);
        low.insist(words, quad);
        high.insist(words, quad + 4);
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kWarp >= n) break;
            bits = largest_half(largest_half(bits, low.in[i]), high.in[i]);
        }
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits));
        if (!keeps_range(max_of_all(fmaxf(pair.x, pair.y), turn))) return false;
        uint8_t* to = columns() + of_unit * 128 + lane % 4 * 32;
#pragma unroll
        for (int i = 0; i < kHeld; i++) {
            if (i * kWarp + lane >= n) break;
            const uint4 a = low.in[i], b = high.in[i];
            auto* at = reinterpret_cast<uint4*>(to + i * kWarp * 32);
            at[0] = {__byte_perm(a.x, b.x, 0x5410), __byte_perm(a.x, b.x, 0x7632), __byte_perm(a.y, b.y, 0x5410), __byte_perm(a.y, b.y, 0x7632)};
            at[1] = {__byte_perm(a.z, b.z, 0x5410), __byte_perm(a.z, b.z, 0x7632), __byte_perm(a.w, b.w, 0x5410), __byte_perm(a.w, b.w, 0x7632)};
        }
        if (this_thread() == 0) block.sums.inverse[0] = 1;
        __syncwarp();
        return true;
    }

    __device__ __forceinline__ void take_vector(const KigoStage& s, uint32_t turn) const {
        constexpr int kFew = 4;
        const Own own(s);
        const bool has_few = own.last - own.first <= kFew * kWarp;
        if (s.input_halves) {
            if (has_few ? take_halves<kFew / 4>(s, own, turn) : take_halves<KIGO_STEP_MOST_COLUMNS / 16 / kThreads>(s, own, turn)) return;
            // The largest magnitude is looked for once more: in the place of the stage before, which nobody reads any more.
            turn++;
        }
        if (has_few) {
            take_vector<kFew>(s, own, turn);
        } else {
            take_vector<KIGO_STEP_MOST_COLUMNS / 4 / kThreads>(s, own, turn);
        }
        // It is also the place of the next stage, which nobody may reach before all have read it.
        if (s.input_halves) step_sync();
    }

    // Puts a warp's columns of a row that has been taken as operands once more, times `scale`.
    template <bool kAdds>
    __device__ __forceinline__ void scale_row(const KigoStage& s, const Own& own, uint32_t row, float scale) const {
        const uint32_t first = own.first + this_thread() % kWarp, last_given = min(own.last, s.k / 4);
#pragma unroll 1
        for (uint32_t i = 0; first + i * kWarp < own.last; i++) {
            const uint32_t q = first + i * kWarp;
            float4 v = {0, 0, 0, 0};
            if (kAdds) {
                v = x(row)[q];
                if (s.norm_weight) {
                    const float4 w = __ldg(reinterpret_cast<const float4*>(s.norm_weight) + q);
                    v = {__fmul_rn(v.x, w.x), __fmul_rn(v.y, w.y), __fmul_rn(v.z, w.z), __fmul_rn(v.w, w.w)};
                }
            } else if (q < last_given) {
                v = values_of(load_words(set(row).from(s.input) + 4 * q));
            }
            operands(s, row).put(first, i, v, scale);
        }
    }

    // Adds what is normed before to the residual stream of each row in turn; it comes by the place of operands.
    __device__ __forceinline__ void add_deltas(const KigoStage& s, const Own& own) const {
        constexpr int kQuads = 4;
        const uint32_t lane = this_thread() % kWarp, last_given = min(own.last, s.k / 4);
        uint4* delta = reinterpret_cast<uint4*>(columns());
        // Operands of the stage before are not needed any more.
        step_sync();
#pragma unroll 1
        for (uint32_t row = 0; row < n_rows(); row++) {
#pragma unroll 1
            for (uint32_t first = own.first + lane; first - lane < own.last; first += kQuads * kWarp) {
                Quads<kQuads, kWarp> given;
                given.await(set(row).from(s.input), first, last_given);
#pragma unroll
                for (int i = 0; i < kQuads; i++) {
                    const uint32_t q = first + i * kWarp;
                    if (q < last_given) delta[q] = given.in[i];
                }
            }
            step_sync();
            add_delta(s, reinterpret_cast<const float*>(delta), row);
        }
    }

    // What a stage takes of several rows, kQuads of a thread at a time: words as they are, or (kAdds) the residual stream, to which they
    // are added. Rows are taken as they are; the few that need a scale once more when it is known. Code has to be fetched too: rows
    // are not unrolled.
    template <bool kAdds, int kQuads>
    __device__ __forceinline__ void take_rows(const KigoStage& s, const Own& own, uint32_t turn) const {
        const uint32_t lane = this_thread() % kWarp, warp = this_thread() / kWarp, last_given = min(own.last, s.k / 4);
        uint32_t (*largest_of)[kWarps] = block.of_rows[turn % 2];
        if (lane < n_rows()) largest_of[lane][warp] = 0;
        const float4* weight = reinterpret_cast<const float4*>(s.norm_weight);
        bool is_first = true;
        // Before, other warps may still need the operands of the stage before.
        auto meet = [&] {
            if (is_first) step_sync();
            is_first = false;
        };
        const bool has_words = !kAdds || (s.input && !s.post_norm);
#pragma unroll 1
        for (uint32_t first = own.first + lane; first - lane < own.last; first += kQuads * kWarp) {
            auto words = [&](uint32_t row) { return set(row).from(s.input); };
            Quads<kQuads, kWarp> given = {}, next = {};
            if (has_words) given.ask(words(0), first, last_given);
            float4 w[kAdds ? kQuads : 1];
            if constexpr (kAdds) {
#pragma unroll
                for (int i = 0; i < kQuads; i++) {
                    const uint32_t q = first + i * kWarp;
                    w[i] = weight && q < own.last ? __ldg(weight + q) : float4{1, 1, 1, 1};
                }
            }
#pragma unroll 1
            for (uint32_t row = 0; row < n_rows(); row++) {
                if (has_words) {
                    given.insist(words(row), first);
                    if (row + 1 < n_rows()) next.ask(words(row + 1), first, last_given);
                }
                meet();
                float4* x = this->x(row);
                const Operands<kPairs> operands = this->operands(s, row);
                float largest = 0;
                // Without branches, so that quads need not wait for each other.
#pragma unroll
                for (int i = 0; i < kQuads; i++) {
                    const uint32_t q = first + i * kWarp;
                    const bool has = q < own.last;
                    float4 v = values_of(given.in[i]);
                    if constexpr (kAdds) {
                        const float4 old = has ? x[q] : float4{0, 0, 0, 0};
                        v = {__fmaf_rn(s.residual_scale, v.x, old.x), __fmaf_rn(s.residual_scale, v.y, old.y),
                             __fmaf_rn(s.residual_scale, v.z, old.z), __fmaf_rn(s.residual_scale, v.w, old.w)};
                        if (!has_words) v = old;
                        if (has) x[q] = v;
                        v = {__fmul_rn(v.x, w[i].x), __fmul_rn(v.y, w[i].y), __fmul_rn(v.z, w[i].z), __fmul_rn(v.w, w[i].w)};
                    }
                    largest = fmaxf(largest, ::largest_of(v));
                    operands.put_where(first, i * kWarp, v, has);
                }
                given = next;
                __syncwarp();
                const uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(largest));
                if (lane == 0) largest_of[row][warp] = max(largest_of[row][warp], bits);
            }
        }
        meet();
        __syncwarp();
        step_sync();
        const uint4* all = reinterpret_cast<const uint4*>(largest_of[min(lane, n_rows() - 1)]);
        const uint4 a = all[0], b = all[1];
        const float largest = __uint_as_float(max(max(max(a.x, a.y), max(a.z, a.w)), max(max(b.x, b.y), max(b.z, b.w))));
        float scale, inverse;
        operand_scale(s, largest, scale, inverse);
        if (warp == 0) {
            if (lane < n_rows()) block.sums.inverse[lane] = inverse;
            __syncwarp();
            if (kAdds && lane == 0) arrive_mbarrier(&block.sums.taken);
        }
        uint32_t scaled = __ballot_sync(~0u, lane < n_rows() && scale != 1);
        for (; scaled; scaled &= scaled - 1) {
            const uint32_t row = __ffs(scaled) - 1;
            scale_row<kAdds>(s, own, row, __shfl_sync(~0u, scale, row));
        }
        __syncwarp();
    }

    // Takes all rows' vectors, or residual streams, the `n_taken`-th time.
    template <bool kAdds>
    __device__ __forceinline__ void take_rows(const KigoStage& s, uint32_t turn, uint32_t n_taken) const {
        if (kAdds) wait_mbarrier(&block.sums.read, n_taken % 2 ^ 1);
        const Own own(s);
        if (kAdds && s.input && s.post_norm) add_deltas(s, own);
        const uint32_t n_quads = (own.last - own.first + kWarp - 1) / kWarp;
        if (n_quads <= 2) {
            take_rows<kAdds, 2>(s, own, turn);
        } else if (kAdds || n_quads <= 4) {
            take_rows<kAdds, 4>(s, own, turn);
        } else {
            take_rows<kAdds, 8>(s, own, turn);
        }
    }

    // What a lane multiplies a unit with; `at` are its first columns.
    template <Operand kOperand = Operand::kF16>
    __device__ __forceinline__ static Activations<kOperand> columns_at(const uint8_t* at, uint32_t to_rests = 0) {
        Activations<kOperand> v;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            *reinterpret_cast<uint4*>(v.high + 4 * h) = *reinterpret_cast<const uint4*>(at + h * 64);
            if constexpr (kOperand != Operand::kF16) {
                *reinterpret_cast<uint4*>(v.low + 4 * h) = *reinterpret_cast<const uint4*>(at + to_rests + h * 64);
            }
        }
        return v;
    }

    // The sums of a warp for the item at hand, the `turn`-th of all stages.
    struct Closing {
        const Worker& worker;
        uint32_t turn;
        // Where they go: a slice, and of the second tile kSlices of them further.
        uint32_t place;
        float acc[kMostTiles][4] = {};

        // Hands them on.
        template <int kTiles>
        __device__ __forceinline__ void close_item(uint32_t lane) {
            Sums<kMany>& sums = worker.block.sums;
            const uint32_t at = turn % kTurns<kMany>;
            wait_mbarrier(sums.empty + at, turn / kTurns<kMany> % 2 ^ 1);
#pragma unroll
            for (int tile = 0; tile < kTiles; tile++) {
                float (&of_tile)[4] = acc[tile];
                if constexpr (kMany) {
                    const uint32_t n = worker.n_rows(), row = lane % 4 * 2;
                    float* to = worker.sums_of_rows() + (((at * kMostTiles + tile) * kSlices + place) * n + row) * kTileRows + lane / 4;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (row + i >= n) break;
                        to[i * kTileRows] = of_tile[i];
                        to[i * kTileRows + 8] = of_tile[i + 2];
                    }
                } else if (lane % 4 == 0) {
                    float* to = sums.turns[at][tile][0] + place * kTileRows + lane / 4;
                    to[0] = of_tile[0];
                    to[8] = of_tile[2];
                }
                of_tile[0] = of_tile[1] = of_tile[2] = of_tile[3] = 0;
            }
            __syncwarp();
            if (lane == 0) arrive_mbarrier(sums.full + at);
            turn++;
        }
    };

    // Where a warp starts in a stage, whether its block has items there, and the warp's first piece; n() is 0 where it has none.
    struct Opening {
        WarpState<kMixes> state;
        bool has_items;
        Piece piece;
    };

    // Waits for a warp's first pieces of a stage: most of the time they are there before what they are multiplied with.
    __device__ __forceinline__ Opening open(const KigoStage& s) const {
        const uint32_t warp = this_thread() / kWarp;
        __syncwarp();
        Opening opening = {block.warps[warp], first_item(s) < s.n_items, {0, 0}};
        if (!opening.has_items || !StagePart::of<kMixes>(s, warp).any()) return opening;
        Place at = opening.state.place;
        Reader::wait(at);
        opening.piece = Reader::piece(at);
        if (!kMixes && s.per_item == 2) {
            at.advance(StepRing<kMixes>(p, memory, block.rings, warp));
            Reader::wait(at);
        }
        return opening;
    }

    // This block's items of a stage, from shared memory to sums.
    __device__ __forceinline__ void multiply(const KigoStage& s, const Opening& opening) const {
        if (!opening.has_items) return;
        const uint32_t warp = this_thread() / kWarp;
        const bool has = opening.piece.n() > 0;
        Closing closing = {*this, opening.state.turn, warp};
        if constexpr (kMixes) {
            const auto part = StagePart::of<kMixes>(s, warp);
            if (has) closing.place = part.group * kSlices + part.slice;
        }
        Reader reader(p, memory, block.rings, warp, opening.state.place);
        if (!has) {
            const uint32_t n_turns = ((s.n_items - first_item(s) - 1) / gridDim.x + 1) * (kMixes ? s.n_turns : 1);
#pragma unroll 1
            for (uint32_t i = 0; i < n_turns; i++) closing.template close_item<kMostTiles>(this_thread() % kWarp);
        } else {
            multiply_pieces(s, opening.piece, reader, closing);
        }
        if (this_thread() % kWarp == 0) block.warps[warp] = {reader.place(), closing.turn};
    }

    __device__ __forceinline__ void multiply_pieces(const KigoStage& s, Piece first, Reader& reader, Closing& closing) const {
#define KIGO_CASE(type)                                                                     \
    case KIGO_TYPE_##type:                                                                  \
        if constexpr (kPairs || type::kOperand == Operand::kF16) {                          \
            if (s.per_item == 1) {                                                          \
                multiply_pieces<type, 1>(first, kPairs ? rests_of(s) : 0, reader, closing); \
            } else {                                                                        \
                multiply_pieces<type, 2>(first, kPairs ? rests_of(s) : 0, reader, closing); \
            }                                                                               \
        }                                                                                   \
        break;
        switch (s.quant) {
            KIGO_CASE(F32)
            KIGO_CASE(BF16)
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

    __device__ __forceinline__ static const uint8_t* in_memory(uint32_t address) { return memory - shared_address(memory) + address; }

    // Two tiles are multiplied in turns: the products of each are a chain, and one fills the gaps of the other. The first pieces
    // are there.
    template <class Type, int kTiles>
    __device__ __forceinline__ void multiply_pieces(Piece first, uint32_t to_rests, Reader& reader, Closing& closing) const {
        const uint32_t lane = this_thread() % kWarp;
        // Of several rows a lane multiplies with that of its column of the products; where there is none the result is nobody's.
        const uint8_t* all_columns = columns(kMany ? min(lane / 4, n_rows() - 1) : 0) + lane % 4 * 16;
        constexpr int kPieces = Reader::template kPieces<kTiles>;
        Place at[kTiles];
        uint32_t records[kTiles];
        auto are_there = [&] { return reader.is_there(at[0]) & (kPieces == 1 || reader.is_there(at[kPieces - 1])); };
        // Both in one loop: fewer instructions than `Reader::wait` for each.
        auto wait = [&] {
            Patience patience;
            while (!are_there()) patience.wait();
        };
        if constexpr (Type::kOperand == Operand::kF32) {
            Piece piece = first;
            reader.places(at);
            while (true) {
                reader.template find<Record<Type>::kBytes>(records, at, piece);
                const auto v = columns_at<Operand::kF32>(all_columns + piece.record * 128, to_rests);
#pragma unroll
                for (int tile = 0; tile < kTiles; tile++) {
                    const auto w = make_fragments<Type>(load_unit_shared<Type>(in_memory(records[tile]), 0, lane), NoScales{}, 0);
                    multiply_add<Type>(closing.acc[tile], w, v);
                }
                reader.give_back(at, lane == 0);
                if (piece.has(Piece::kEndsItem)) closing.template close_item<kTiles>(lane);
                if (piece.has(Piece::kEndsStage)) return;
                reader.places(at);
                wait();
                piece = reader.piece(at[0]);
            }
        } else if constexpr (Type::kGroupK == 0) {
            // Records come from shared memory while those before them are multiplied.
            struct Loaded {
                typename Type::Planes::Unit unit[kTiles];
                Activations<Type::kOperand> v;
                uint32_t bits;
            } one, other;
            auto load = [&](Loaded& to, bool is_there) {
                // Where there is none, of what stands there.
                const Piece piece = is_there ? reader.piece(at[0]) : Piece{0, 0};
                if (is_there || !kMixes) reader.template find<Record<Type>::kBytes>(records, at, piece);
                to.bits = piece.bits;
#pragma unroll
                for (int tile = 0; tile < kTiles; tile++) to.unit[tile] = load_unit_shared<Type>(in_memory(records[tile]), 0, lane);
                to.v = columns_at<Type::kOperand>(all_columns + piece.record * 128, to_rests);
            };
            auto products = [&](const Loaded& of, int j) {
#pragma unroll
                for (int tile = 0; tile < kTiles; tile++) {
                    uint32_t a[4];
                    Type::Planes::codes(of.unit[tile], j, a);
                    if constexpr (Type::kOperand == Operand::kBf16) {
                        mma_bf16(closing.acc[tile], a, of.v.high + 2 * j);
                        mma_bf16(closing.acc[tile], a, of.v.low + 2 * j);
                    } else {
                        mma_f16(closing.acc[tile], a, of.v.high + 2 * j);
                    }
                }
            };
            auto step = [&](const Loaded& now, Loaded& then) {
                const bool has_next = !(now.bits & Piece::kEndsStage);
                // Products are a chain: what has to be done for the next record fits between them.
                products(now, 0);
                reader.places(at);
                const bool is_there = !has_next || are_there();
                products(now, 1);
                if (!is_there) wait();
                load(then, has_next);
                products(now, 2);
                if (has_next) reader.give_back(at, lane == 0);
                products(now, 3);
                if (now.bits & Piece::kEndsItem) closing.template close_item<kTiles>(lane);
                return has_next;
            };
            reader.places(at);
            load(one, true);
            reader.give_back(at, lane == 0);
#pragma unroll 1
            while (step(one, other) && step(other, one)) {
            }
        } else {
            constexpr int kUnits = Type::kRecordK / kUnitK;
            Piece piece = first;
            reader.places(at);
            while (true) {
                reader.template find<Record<Type>::kBytes>(records, at, piece);
                const uint8_t* columns = all_columns + piece.record * (kUnits * 128);
                uint32_t n_left = piece.n();
#pragma unroll 1
                do {
                    RecordScales<Type> scales[kTiles];
#pragma unroll
                    for (int tile = 0; tile < kTiles; tile++) {
                        scales[tile] = RecordScales<Type>(in_memory(records[tile]) + Record<Type>::kScales, lane);
                    }
#pragma unroll
                    for (int unit = 0; unit < kUnits; unit++) {
                        const auto v = columns_at(columns + unit * 128);
                        Fragments<Type> w[kTiles];
#pragma unroll
                        for (int tile = 0; tile < kTiles; tile++) {
                            const auto in = load_unit_shared<Type>(in_memory(records[tile]), unit, lane);
                            w[tile] = scales[tile].make_fragments(in, unit);
                        }
#pragma unroll
                        for (int j = 0; j < 4; j++) {
#pragma unroll
                            for (int tile = 0; tile < kTiles; tile++) mma_f16(closing.acc[tile], w[tile].a[j], v.high + 2 * j);
                        }
                    }
#pragma unroll
                    for (int tile = 0; tile < kTiles; tile++) records[tile] += Record<Type>::kBytes;
                    columns += kUnits * 128;
                    // Large records come one by one.
                } while (Record<Type>::kBytes < kLargeRecord && --n_left > 0);
                reader.give_back(at, lane == 0);
                if (piece.has(Piece::kEndsItem)) {
                    closing.template close_item<kTiles>(lane);
                    if (piece.has(Piece::kEndsStage)) return;
                }
                reader.places(at);
                wait();
                piece = reader.piece(at[0]);
            }
        }
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

// The kernel, for models with mixtures of experts or without, with matrices of bfloat16 and f32 or without, for one row or several, for
// contexts of any length or long ones: the code that a model does not need makes it slower.
template <bool kMixes, bool kPairs, bool kMany, bool kPages>
__device__ __forceinline__ void run_step(const KigoStep& p) {
    __shared__ Block<kMixes, kMany, kPages> block;
    const uint32_t warp = threadIdx.x / kWarp;
    if (threadIdx.x < kStepWarps * KIGO_STEP_SLOTS) {
        RingHeads& heads = block.rings[threadIdx.x / KIGO_STEP_SLOTS];
        init_mbarrier(heads.full + threadIdx.x % KIGO_STEP_SLOTS, 1);
        init_mbarrier(heads.empty + threadIdx.x % KIGO_STEP_SLOTS, 1);
    }
    if (threadIdx.x == 0) {
        init_mbarrier(&block.mixture.router_full, 1);
        init_mbarrier(&block.mixture.normed, 1);
    }
    if (threadIdx.x < KIGO_MAX_EXPERTS_USED) block.mixture.experts[threadIdx.x] = 0;
    if (threadIdx.x < kTurns<kMany>) {
        init_mbarrier(block.sums.full + threadIdx.x, kStepWarps);
        init_mbarrier(block.sums.empty + threadIdx.x, 1);
    }
    if (threadIdx.x == 0) {
        init_mbarrier(&block.sums.taken, 1);
        init_mbarrier(&block.sums.read, 1);
        if constexpr (kPages) init_mbarrier(&block.source.there, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    // Who fetches leaves its registers to who multiplies.
    if (warp >= kStepWarps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
#endif
        const PageSource* source = nullptr;
        if constexpr (kPages) source = &block.source;
        if (warp < kStepWarps + kFetchWarps) return fetch<kMixes, kPages>(p, memory, block.rings, block.mixture, source, warp - kStepWarps);
        const Worker<kMixes, kPairs, kMany, kPages> worker = {p, block};
        const uint32_t number = __ldcg(reinterpret_cast<const uint32_t*>(p.number) + (kMany ? min(threadIdx.x % kWarp, p.n_rows - 1) : 0));
        return Finisher<kMixes, kMany>{p, block.sums, block.mixture, worker.x(), worker.sums_of_rows(), number}.run();
    }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
#endif

    const auto* stages = reinterpret_cast<const KigoStage*>(p.stages);
    const auto* attentions = reinterpret_cast<const KigoStageAttention*>(p.attentions);
    const auto* rows = reinterpret_cast<const KigoRow*>(p.rows);
    const Worker<kMixes, kPairs, kMany, kPages> worker = {p, block};
    const RowBlock attending(worker.n_rows());
    const uint64_t table = __ldcg(reinterpret_cast<const unsigned long long*>(&rows[attending.row].pages));
    if (threadIdx.x < worker.n_rows()) {
        block.numbers[threadIdx.x] = __ldcg(reinterpret_cast<const uint32_t*>(p.number) + threadIdx.x);
        block.positions[threadIdx.x] = __ldcg(&rows[threadIdx.x].position);
    }
    if constexpr (!kPages) {
        if (threadIdx.x == 0) block.sight.position = __ldcg(&rows[attending.row].position);
    }
    if (threadIdx.x % kWarp == 0) block.warps[warp] = {PiecePlace<kMixes>::first(StepRing<kMixes>(p, memory, block.rings, warp)), 0};
    float4* x = worker.x();
    for (uint32_t q = threadIdx.x; q < worker.n_rows() * (p.stride / 4); q += kStepThreads) x[q] = __ldcg(reinterpret_cast<const float4*>(p.x) + q);
    store_part(&block.stages[0], load_part(stages));
    if (p.n_stages > 1) store_part(&block.stages[1], load_part(stages + 1));
    store_part(&block.attention, load_part(attentions));
    step_sync();
    // What the next attention needs.
    const auto look_up = [&] {
        if constexpr (kPages) {
            if (threadIdx.x == 0) note_pages(block.attention, block.source, block.sight);
        } else {
            bring_near(block.attention, table, block.sight);
        }
    };
    if (threadIdx.x == 0) {
        const KigoAttention& attention = block.attention.attention;
        if constexpr (kPages) {
            block.source.table = table;
            block.source.heads = BlockHeads(attention, 1, attending);
            block.source.position = block.positions[0];
            arrive_mbarrier(&block.source.there);
        } else {
            block.sight.heads = BlockHeads(attention, parts_of_head(block.attention.heads.qkv.dp), attending);
        }
    }
    step_sync();
    look_up();

    // Where there are experts, kv heads often have many heads.
    constexpr uint32_t kHeadsOfTeam = kMixes ? kMostHeadsOfTeam : 2;
    bool is_near = true;
    uint32_t n_taken = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < p.n_stages; i++) {
        const KigoStage& s = block.stages[i % 3];
        if (p.delay) dawdle(p.delay, block.numbers[0] * p.n_stages + i);
        const uint64_t part = i + 2 < p.n_stages ? load_part(stages + i + 2) : 0;
        // Every stage has a barrier: behind it all warps are done with the stage before.
        if (s.take == KIGO_TAKE_SAME) step_sync();
        if (s.kind == KIGO_STAGE_ATTENTION) {
            const auto mark_of = [&](uint32_t row) { return block.numbers[row] * p.n_stages + i; };
            const auto partials_of = [&](uint32_t row) { return kMany ? p.partials + row * uint64_t(p.partials_stride) : p.partials; };
            const uint32_t own = kMany ? attending.row : 0;
            // A width of heads has to be known when the kernel is compiled.
            if constexpr (kPages) {
                PieceReader<kMixes> reader(p, memory, block.rings, warp, block.warps[warp].place);
                const auto attend = [&](auto width) {
                    attend_to_pages<width, kHeadsOfTeam>(block.attention, block.source, block.sight, partials_of(own), mark_of(own),
                                                         worker.set(own), worker.columns(), reader);
                };
                if (block.attention.heads.qkv.dp == 64) {
                    attend(std::integral_constant<int, 64>{});
                } else {
                    attend(std::integral_constant<int, 128>{});
                }
                __syncwarp();
                if (threadIdx.x % kWarp == 0) block.warps[warp].place = reader.place();
            } else {
#define KIGO_WIDTH(label, dp)                                                                                        \
    label:                                                                                                           \
        attend<dp, kHeadsOfTeam>(block.attention, block.sight, partials_of(own), mark_of(own), worker.set(own), own, \
                                 worker.columns());                                                                  \
        break;
                switch (block.attention.heads.qkv.dp) {
                    KIGO_WIDTH(case 32, 32)
                    KIGO_WIDTH(case 64, 64)
                    KIGO_WIDTH(case 96, 96)
                    KIGO_WIDTH(case 128, 128)
                    KIGO_WIDTH(case 192, 192)
                    KIGO_WIDTH(default, 256)
                }
#undef KIGO_WIDTH
            }
            // Other warps begin with those of each row.
#pragma unroll 1
            for (uint32_t row = 0; row < worker.n_rows(); row++) {
                const uint32_t n_chunks = n_chunks_of(block.attention.attention, block.positions[row]);
                const uint32_t first = (threadIdx.x / kWarp + row) % kStepWarps;
                if (n_chunks > 1) combine_chunks(block.attention, n_chunks, partials_of(row), mark_of(row), worker.set(row), first);
            }
        } else {
            const bool routes = kMixes && s.kind == KIGO_STAGE_ROUTER;
            if (routes) make_router(s, worker.router(), block.mixture);
            // Nothing is on its way before the experts are chosen.
            if (kMixes && s.take == KIGO_TAKE_ROUTE) {
                take_route(s, worker.router(), block.mixture, worker.set());
            }
            typename Worker<kMixes, kPairs, kMany, kPages>::Opening opening;
            if (!routes) opening = worker.open(s);
            if constexpr (kMany) {
                if (s.take == KIGO_TAKE_RESIDUAL) worker.template take_rows<true>(s, i, n_taken++);
                if (s.take == KIGO_TAKE_WORDS) worker.template take_rows<false>(s, i, 0);
            } else {
                if (s.take == KIGO_TAKE_RESIDUAL) worker.take_residual(s, i, n_taken++);
                if (s.take == KIGO_TAKE_WORDS) worker.take_vector(s, i);
            }
            if (kMixes && s.take == KIGO_TAKE_EXPERTS) take_experts(s, i, worker.operands(s), block.largest, block.mixture, worker.set());
            // The router's weights come while the stage before it is at work.
            const KigoStage& next = block.stages[(i + 1) % 3];
            if (kMixes && i + 1 < p.n_stages && next.kind == KIGO_STAGE_ROUTER && threadIdx.x == 0) {
                start_router(next, worker.router(), block.mixture);
            }
            if (!routes) {
                worker.multiply(s, opening);
            } else {
                multiply_router(s, worker.router(), worker.set());
            }
            // What the next attention needs is looked up while words are on their way.
            if (!is_near) look_up();
            is_near = true;
            if (s.attention != KIGO_NO_ATTENTION) {
                store_part(&block.attention, load_part(attentions + s.attention));
                is_near = false;
            }
        }
        store_part(&block.stages[(i + 2) % 3], part);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step(const __grid_constant__ KigoStep p) {
    run_step<false, false, false, false>(p);
}

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step_experts(const __grid_constant__ KigoStep p) {
    run_step<true, false, false, false>(p);
}

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step_pairs(const __grid_constant__ KigoStep p) {
    run_step<false, true, false, false>(p);
}

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step_rows(const __grid_constant__ KigoStep p) {
    run_step<false, false, true, false>(p);
}

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step_rows_pairs(const __grid_constant__ KigoStep p) {
    run_step<false, true, true, false>(p);
}

extern "C" __global__ void __launch_bounds__(KIGO_STEP_THREADS, 1) step_pages(const __grid_constant__ KigoStep p) {
    run_step<false, false, false, true>(p);
}

#endif
