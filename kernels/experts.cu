// A mixture of experts, but for its products: which experts a row uses, which rows an expert has, the sum of what they gave.
//
// With few rows each slot (a row and one of its experts) is a row of the products of its own; with many the slots of an
// expert stand side by side, so that its weights are read once. A slot's numbers are the same either way. Everything here is
// latency: a layer of 512 rows with 8 of 128 experts reads 256 KiB of logits.
#include "fragments.cuh"
#include "quant/f32.cuh"
#include "route.cuh"

namespace {

constexpr uint32_t kGroupThreads = 1024;

template <class T>
__device__ __forceinline__ T* at(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

// Lane i < n_used of a warp has expert i of a row, and its logit: notes them and the softmax of their logits.
__device__ __forceinline__ void put_slots(const KigoRoute& p, uint32_t row, uint32_t lane, uint32_t chosen, float logit) {
    const float weight = weight_of(p.n_used, logit);
    if (lane >= p.n_used) return;
    const uint32_t slot = row * p.n_used + lane;
    at<uint32_t>(p.experts)[slot] = chosen;
    at<float>(p.weights)[slot] = weight;
    at<uint32_t>(p.places)[slot] = slot;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) route(const __grid_constant__ KigoRoute p) {
    const uint32_t lane = threadIdx.x % kWarp, row = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
    pdl_wait();
    pdl_launch();
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < p.n_products; i += gridDim.x * kThreads) at<uint32_t>(p.magnitudes)[i] = 0;
    if (row >= p.n) return;
    const float* logits = at<const float>(p.logits) + static_cast<size_t>(row) * p.n_expert;

    // Expert i of the row is the largest below expert i - 1; lane i keeps it.
    uint64_t bound = ~uint64_t{0};
    uint32_t chosen = 0;
    for (uint32_t i = 0; i < p.n_used; i++) {
        uint64_t best = 0;
        for (uint32_t expert = lane; expert < p.n_expert; expert += kWarp) {
            const uint64_t rank = rank_of(__ldcg(logits + expert), expert);
            if (rank < bound && rank > best) best = rank;
        }
        for (int step = kWarp / 2; step > 0; step /= 2) {
            const uint64_t other = __shfl_xor_sync(~0u, best, step);
            best = other > best ? other : best;
        }
        bound = best;
        if (lane == i) chosen = ~static_cast<uint32_t>(best);
    }
    put_slots(p, row, lane, chosen, lane < p.n_used ? __ldcg(logits + chosen) : -INFINITY);
}

// The router's product, f32, and what `route` does, for few rows: a block has one slice of one tile of the matrix, which it makes
// operands of before the wait, and the last block of a row adds up what all have and chooses. Sums have the order of all products.
extern "C" __global__ void __launch_bounds__(kThreads) route_few(const __grid_constant__ KigoRouteFew p) {
    __shared__ float2 scratch[kWarps];
    __shared__ uint64_t ranks[KIGO_ROUTE_MOST_EXPERTS];
    __shared__ float logits[KIGO_ROUTE_MOST_EXPERTS];
    __shared__ uint32_t chosen[KIGO_MAX_EXPERTS_USED];
    __shared__ bool is_last;
    extern __shared__ __align__(16) uint8_t shared[];
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, row = blockIdx.y, n_expert = p.route.n_expert;
    const uint32_t tile = blockIdx.x / kSlices, of_slices = blockIdx.x % kSlices, n_rows = p.n_tiles * kTileRows;
    const Slice slice(p.n_records, of_slices);
    const uint32_t n_units = slice.last - slice.first;
    // Operands of the slice's weights, of its activations, and the row that is normed.
    uint4* weights = reinterpret_cast<uint4*>(shared);
    uint8_t* columns = shared + n_units * sizeof(Fragments<F32>) * kWarp;
    uint8_t* rests = columns + n_units * 128;
    float4* staging = reinterpret_cast<float4*>(rests + n_units * 128);
    constexpr int kWords = sizeof(Fragments<F32>) / sizeof(uint4);
    static_assert(Record<F32>::kBytes == kUnitK * kTileRows * 4, "a record is a unit");

    for (uint32_t unit = warp; unit < n_units; unit += kWarps) {
        const size_t record = size_t(tile) * p.n_records + record_place(tile, slice.first + unit, p.n_records);
        const auto words = load_unit<F32>(at<const uint8_t>(p.weights) + record * Record<F32>::kBytes, 0, lane);
        const auto operands = make_fragments<F32>(words, NoScales{}, 0);
        const uint4* from = reinterpret_cast<const uint4*>(&operands);
#pragma unroll
        for (int i = 0; i < kWords; i++) weights[(unit * kWords + i) * kWarp + lane] = from[i];
    }
    prefetch_norm(p.input);
    pdl_wait();
    pdl_launch();
    const uint32_t number = (row * gridDim.x + blockIdx.x) * kThreads + threadIdx.x;
    if (number < p.route.n_products) at<uint32_t>(p.route.magnitudes)[number] = 0;
    const float of_row = activate_row<true>(p.input, row, staging, scratch, [&](uint32_t quad, Quad value) {
        const QuadPlace place(quad);
        if (place.unit < slice.first || place.unit >= slice.last) return;
        const uint32_t to = (place.unit - slice.first) * 128 + place.in_row();
        *reinterpret_cast<uint2*>(columns + to) = value.high;
        *reinterpret_cast<uint2*>(rests + to) = value.low;
    });
    __syncthreads();
    float* sums = at<float>(p.sums) + size_t(row) * kSlices * n_rows;
    if (warp == 0) {
        float acc[4] = {0, 0, 0, 0};
        for (uint32_t unit = 0; unit < n_units; unit++) {
            Fragments<F32> w;
            uint4* to = reinterpret_cast<uint4*>(&w);
#pragma unroll
            for (int i = 0; i < kWords; i++) to[i] = weights[(unit * kWords + i) * kWarp + lane];
            Activations<Operand::kF32> x;
            for (int h = 0; h < 2; h++) {
                const uint32_t of_lane = unit * 128 + lane % 4 * 16 + h * 64;
                *reinterpret_cast<uint4*>(x.high + 4 * h) = *reinterpret_cast<const uint4*>(columns + of_lane);
                *reinterpret_cast<uint4*>(x.low + 4 * h) = *reinterpret_cast<const uint4*>(rests + of_lane);
            }
            multiply_add<F32>(acc, w, x);
        }
        if (lane % 4 == 0) {
            float* to = sums + of_slices * n_rows + tile * kTileRows + lane / 4;
            __stcg(to, acc[0]);
            __stcg(to + 8, acc[2]);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) is_last = counts_last(at<uint32_t>(p.counters) + row, gridDim.x);
    __syncthreads();
    if (!is_last) return;

    const float factor = __fmul_rn(of_row, p.weight_scale);
    for (uint32_t expert = threadIdx.x; expert < n_expert; expert += kThreads) {
        float of_slice[kSlices], sum = 0;
#pragma unroll
        for (int i = 0; i < kSlices; i++) of_slice[i] = __ldcg(sums + i * n_rows + expert);
#pragma unroll
        for (int i = 0; i < kSlices; i++) sum = __fadd_rn(sum, of_slice[i]);
        sum = __fmul_rn(sum, factor);
        if (p.bias) sum = __fadd_rn(sum, __ldg(at<const float>(p.bias) + expert));
        logits[expert] = sum;
        ranks[expert] = rank_of(sum, expert);
    }
    __syncthreads();
    // The place of an expert is how many come before it.
    for (uint32_t expert = threadIdx.x; expert < n_expert; expert += kThreads) {
        const uint64_t rank = ranks[expert];
        uint32_t place = 0;
#pragma unroll 8
        for (uint32_t other = 0; other < n_expert; other++) place += ranks[other] > rank;
        if (place < p.route.n_used) chosen[place] = expert;
    }
    __syncthreads();
    if (warp > 0) return;
    const bool used = lane < p.route.n_used;
    const uint32_t expert = used ? chosen[lane] : 0;
    put_slots(p.route, row, lane, expert, used ? logits[expert] : -INFINITY);
}

// The order of an expert's slots differs from run to run, and changes no number: rows of a product do not know each other.
extern "C" __global__ void __launch_bounds__(kGroupThreads) group(const __grid_constant__ KigoGroup p) {
    extern __shared__ uint32_t next[];  // [n_expert]
    const uint32_t* experts = at<const uint32_t>(p.experts);
    for (uint32_t i = threadIdx.x; i < p.n_expert; i += kGroupThreads) next[i] = 0;
    pdl_wait();
    pdl_launch();
    for (uint32_t i = threadIdx.x; i < p.n_products; i += kGroupThreads) at<uint32_t>(p.rows)[i] = KIGO_NO_ROW;
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < p.n_slots; slot += kGroupThreads) atomicAdd(next + __ldcg(experts + slot), 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t start = 0;
        for (uint32_t expert = 0; expert < p.n_expert; expert++) {
            const uint32_t n = next[expert];
            next[expert] = start;
            at<uint32_t>(p.starts)[expert] = start;
            start += (n + 7) / 8 * 8;
        }
        at<uint32_t>(p.starts)[p.n_expert] = start;
    }
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < p.n_slots; slot += kGroupThreads) {
        const uint32_t place = atomicAdd(next + __ldcg(experts + slot), 1);
        at<uint32_t>(p.places)[slot] = place;
        at<uint32_t>(p.rows)[place] = slot / p.n_used;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) mix_experts(const __grid_constant__ KigoMixExperts p) {
    const uint32_t column = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
    // What comes next reads nothing but weights before its own wait, and may ask for them while the experts are at work.
    pdl_launch();
    pdl_wait();
    if (column >= p.n_columns) return;
    float sum = 0;
    for (uint32_t i = 0; i < p.n_used; i++) {
        const uint32_t slot = row * p.n_used + i, place = __ldcg(at<const uint32_t>(p.places) + slot);
        const float value = __ldcg(at<const float>(p.products) + static_cast<size_t>(place) * p.in_stride + column);
        sum = __fmaf_rn(__ldcg(at<const float>(p.weights) + slot), value, sum);
    }
    float* out = at<float>(p.out) + static_cast<size_t>(row) * p.out_stride + column;
    sum = __fmul_rn(sum, p.scale);
    *out = p.store ? sum : __fadd_rn(*out, sum);
}
