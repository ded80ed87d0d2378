// A mixture of experts, but for its products: which experts a row uses, which rows an expert has, the sum of what they gave.
//
// With few rows each slot (a row and one of its experts) is a row of the products of its own; with many the slots of an
// expert stand side by side, so that its weights are read once. A slot's numbers are the same either way. Everything here is
// latency: a layer of 512 rows with 8 of 128 experts reads 256 KiB of logits.
#include "common.cuh"

namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kGroupThreads = 1024;

template <class T>
__device__ __forceinline__ T* at(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

// Larger for a larger logit, and for a lower number of equal ones; 0 for none. NaN, which sampling will report, is smallest.
__device__ __forceinline__ uint64_t rank_of(float logit, uint32_t expert) {
    // Adding 0 turns -0 into 0, which it has to equal.
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    const uint32_t rising = logit != logit ? 1 : bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(rising) << 32 | ~expert;
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
    const bool used = lane < p.n_used;
    const float logit = used ? __ldcg(logits + chosen) : -INFINITY;
    const float largest = __shfl_sync(~0u, logit, 0);
    const float power = used ? expf(__fsub_rn(logit, largest)) : 0;
    float sum = 0;
    for (uint32_t i = 0; i < p.n_used; i++) sum = __fadd_rn(sum, __shfl_sync(~0u, power, i));
    if (!used) return;
    const uint32_t slot = row * p.n_used + lane;
    at<uint32_t>(p.experts)[slot] = chosen;
    at<float>(p.weights)[slot] = __fdiv_rn(power, sum);
    at<uint32_t>(p.places)[slot] = slot;
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
    pdl_wait();
    pdl_launch();
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
