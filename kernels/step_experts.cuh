// What the warps that multiply do for a mixture of experts in `step`: the router's product, the choice of experts, which every block
// makes for itself, and the vectors that the chosen ones give.
//
// The router is a matrix of f32. A slice of one of its tiles is a block's, and comes to shared memory while the stage before is at
// work. The sums of slices are words, which all blocks add up.
#pragma once

#include "quant/f32.cuh"
#include "route.cuh"
#include "step_words.cuh"

namespace {

static_assert(KIGO_STEP_EXPERTS == kStepThreads, "a thread has a logit");

// What the router needs in shared memory, in parts: the order of experts (order_of) and their logits; the slice's weights, then as
// operands, and activations.
struct RouterMemory {
    uint32_t order[KIGO_STEP_EXPERTS];
    float logits[KIGO_STEP_EXPERTS];

    static constexpr uint32_t kWeightBytes = Record<F32>::kBytes, kPairBytes = 2 * kUnitK * 2;
    static_assert(Record<F32>::kBytes == kUnitK * kTileRows * 4, "a record is a unit");

    // The weights of a unit of the slice.
    __device__ __forceinline__ uint8_t* weights(uint32_t unit) { return reinterpret_cast<uint8_t*>(this + 1) + unit * kWeightBytes; }

    // Pairs of bfloat16 of the same columns: the larger parts, then the rests.
    __device__ __forceinline__ uint8_t* pairs(uint32_t n_records, uint32_t unit) {
        return weights((n_records + kSlices - 1) / kSlices) + unit * kPairBytes;
    }
};

// The part of the router that is this block's: units of a tile, or none.
struct RouterPart {
    uint32_t tile, slice, first, last;

    __device__ __forceinline__ explicit RouterPart(const KigoStage& s) {
        const uint32_t item = first_item(s);
        tile = item / kSlices;
        slice = item % kSlices;
        const Slice units(s.n_records, slice);
        first = units.first;
        last = item < s.n_items ? units.last : first;
        is_ours = item < s.n_items;
    }

    bool is_ours;
};

// Starts to copy the router's part, as one thread of each block.
__device__ __forceinline__ void start_router(const KigoStage& s, RouterMemory& to, Mixture& mixture) {
    const RouterPart part(s);
    if (part.first == part.last) return arrive_mbarrier(&mixture.router_full);
#if __CUDA_ARCH__ >= 900
    // Others have written there.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    const uint32_t barrier = shared_address(&mixture.router_full), n_units = part.last - part.first;
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_units * RouterMemory::kWeightBytes)
                 : "memory");
    const auto* tile = reinterpret_cast<const uint8_t*>(s.weights) + size_t(part.tile) * s.n_records * RouterMemory::kWeightBytes;
    for (uint32_t unit = part.first; unit < part.last;) {
        const uint32_t n = piece_records(unit, part.last, part.tile % s.n_records, s.n_records, n_units);
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                shared_address(to.weights(unit - part.first))),
            "l"(tile + size_t(record_place(part.tile, unit, s.n_records)) * RouterMemory::kWeightBytes),
            "r"(n * RouterMemory::kWeightBytes), "r"(barrier)
            : "memory");
        unit += n;
    }
#endif
}

// Makes operands of the weights, in their place, once they are there: what a lane reads is what it writes.
__device__ __forceinline__ void make_router(const KigoStage& s, RouterMemory& memory, Mixture& mixture) {
    const RouterPart part(s);
    // Blocks without a part wait too: a barrier of which nobody waits for a phase must not be arrived at again.
    wait_mbarrier(&mixture.router_full, (s.mixture - 1) % 2);
    if (!part.is_ours) return;
    const uint32_t thread = this_thread(), lane = thread % kWarp;
    for (uint32_t unit = thread / kWarp; unit < part.last - part.first; unit += kStepWarps) {
        uint8_t* at = memory.weights(unit);
        const auto operands = make_fragments<F32>(load_unit<F32>(at, 0, lane), NoScales{}, 0);
        const uint4* from = reinterpret_cast<const uint4*>(&operands);
#pragma unroll
        for (int i = 0; i < sizeof(operands) / sizeof(uint4); i++) reinterpret_cast<uint4*>(at)[i * kWarp + lane] = from[i];
    }
}

// Puts a quad of the normed row where it is multiplied with the router's part; called by aligned groups of 16 lanes.
__device__ __forceinline__ void put_for_router(const KigoStage& s, RouterMemory& memory, uint32_t quad, float4 v) {
    const RouterPart part(s);
    const QuadPlace place(quad);
    if (place.unit < part.first || place.unit >= part.last) return;
    const Quad value = make_quad<true>(v);
    uint8_t* to = memory.pairs(s.n_records, place.unit - part.first) + place.in_row();
    *reinterpret_cast<uint2*>(to) = value.high;
    *reinterpret_cast<uint2*>(to + kUnitK * 2) = value.low;
}

// The part's product: a warp takes a unit, whose sums take the place of its weights, and threads add them up.
__device__ __forceinline__ void multiply_router(const KigoStage& s, RouterMemory& memory, const WordSet& set) {
    const RouterPart part(s);
    if (!part.is_ours) return;
    const uint32_t thread = this_thread(), lane = thread % kWarp, n_units = part.last - part.first;
#pragma unroll 1
    for (uint32_t unit = thread / kWarp; unit < n_units; unit += kStepWarps) {
        uint4* weights = reinterpret_cast<uint4*>(memory.weights(unit));
        const uint8_t* columns = memory.pairs(s.n_records, unit) + lane % 4 * 16;
        Fragments<F32> w;
        uint4* to = reinterpret_cast<uint4*>(&w);
#pragma unroll
        for (int i = 0; i < sizeof(w) / sizeof(uint4); i++) to[i] = weights[i * kWarp + lane];
        Activations<Operand::kF32> x;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            *reinterpret_cast<uint4*>(x.high + 4 * h) = *reinterpret_cast<const uint4*>(columns + h * 64);
            *reinterpret_cast<uint4*>(x.low + 4 * h) = *reinterpret_cast<const uint4*>(columns + kUnitK * 2 + h * 64);
        }
        float acc[4] = {0, 0, 0, 0};
        multiply_add<F32>(acc, w, x);
        __syncwarp();
        if (lane % 4 == 0) {
            float* sums = reinterpret_cast<float*>(weights) + lane / 4;
            sums[0] = acc[0];
            sums[8] = acc[2];
        }
    }
    step_sync();
    if (thread >= kTileRows) return;
    float sum = 0;
    for (uint32_t unit = 0; unit < n_units; unit++) sum = __fadd_rn(sum, reinterpret_cast<const float*>(memory.weights(unit))[thread]);
    WordPlace(set, s.out, (part.tile * kTileRows + thread) * kSlices + part.slice).store(sum);
}

// Takes the router's sums and chooses the experts.
__device__ __forceinline__ void take_route(const KigoStage& s, RouterMemory& memory, Mixture& mixture, const WordSet& set) {
    static_assert(kSlices == 8, "two quads for each expert");
    const uint32_t thread = this_thread(), n_expert = s.n_expert;
    const bool has = thread < n_expert;
    const float bias = has && s.route_bias ? __ldg(reinterpret_cast<const float*>(s.route_bias) + thread) : 0;
    Quads<2, 1> given;
    given.await(set.from(s.input) + thread * kSlices, 0, has ? 2 : 0);
    wait_mbarrier(&mixture.normed, (s.mixture - 1) % 2);
    float sum = 0;
    if (has) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float4 four = values_of(given.in[i]);
            sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
        }
        sum = __fmul_rn(sum, mixture.router_factor);
        if (s.route_bias) sum = __fadd_rn(sum, bias);
        memory.logits[thread] = sum;
    }
    memory.order[thread] = has ? order_of(sum) : 0;
    step_sync();
    // The place of an expert is how many come before it; neighbouring threads share the others, four at a time. Of equal ones the
    // first comes first.
    uint32_t each = 1;
    while (each < 8 && 2 * each * n_expert <= kStepThreads) each *= 2;
    const uint32_t expert = thread / each, of_quad = expert / 4;
    uint32_t place = 0;
    if (expert < n_expert) {
        const uint32_t order = memory.order[expert], n_quads = (n_expert + 3) / 4;
        const uint4* quads = reinterpret_cast<const uint4*>(memory.order);
#pragma unroll 4
        for (uint32_t quad = thread % each; quad < n_quads; quad += each) {
            const uint4 four = quads[quad];
            // Never below 0.
            const uint32_t below = order - (quad < of_quad);
            place += (four.x > below) + (four.y > below) + (four.z > below) + (four.w > below);
        }
        if (of_quad % each == thread % each) {
            const uint32_t* before = memory.order + 4 * of_quad;
#pragma unroll
            for (uint32_t i = 0; i < 3; i++) place += i < expert % 4 && before[i] == order;
        }
    }
    for (uint32_t step = each / 2; step > 0; step /= 2) place += __shfl_xor_sync(~0u, place, step);
    if (expert < n_expert && thread % each == 0 && place < s.n_used) mixture.choose(place, s.mixture, expert, memory.logits[expert]);
}

// Takes the vectors that the experts gave, as operands one after the other. A team of warps takes one at a time, each with the
// range of its own.
template <class Operands>
__device__ __forceinline__ void take_experts(const KigoStage& s, uint32_t turn, const Operands& operands,
                                             float (&largest_of_warps)[2][kWarps], Mixture& mixture, const WordSet& set) {
    constexpr int kHeld = KIGO_STEP_MOST_COLUMNS / 4 / kThreads;
    const uint32_t thread = this_thread(), warp = thread / kWarp;
    const uint32_t n_teams = min(s.n_used, uint32_t(kStepWarps)), n_warps = kStepWarps / n_teams, team = warp / n_warps;
    const uint32_t n_threads = n_warps * kWarp, of_team = thread - team * n_threads, n_quads = s.stride / 4;
#pragma unroll 1
    for (uint32_t round = 0; round * n_teams < s.n_used; round++) {
        const uint32_t i = round * n_teams + team;
        const bool has = team < n_teams && i < s.n_used;
        Quads<kHeld, kWarp> given;
        given.await(set.from(s.input) + i * s.stride, of_team, has ? s.k / 4 : 0, n_threads);
        float largest = 0;
#pragma unroll
        for (int j = 0; j < kHeld; j++) {
            if (j * n_threads >= n_quads) break;
            largest = fmaxf(largest, largest_of(values_of(given.in[j])));
        }
        const uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(largest));
        uint32_t* of_warps = reinterpret_cast<uint32_t*>(largest_of_warps[(turn + round) % 2]);
        if (thread % kWarp == 0) of_warps[warp] = bits;
        // Operands of the stage before are not needed any more.
        step_sync();
        if (!has) continue;
        uint32_t of_all = 0;
        for (uint32_t j = 0; j < n_warps; j++) of_all = max(of_all, of_warps[team * n_warps + j]);
        float scale, inverse;
        range_scale(__uint_as_float(of_all), scale, inverse);
        const Operands own = operands.of_vector(i, s.stride);
#pragma unroll
        for (int j = 0; j < kHeld; j++) {
            if (j * n_threads >= n_quads) break;
            if (of_team + j * n_threads < n_quads) own.put_at(of_team, j * n_threads, values_of(given.in[j]), scale);
        }
        if (of_team == 0) mixture.factors[i] = inverse;
    }
    step_sync();
}

}  // namespace
