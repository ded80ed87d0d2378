// What happens to whole heads and rows between two products: norms of q and k, norms of what is added to the residual.
//
// Both are latency: a row of 8192 numbers is 32 KiB from L2. Sums are in an order that only the sizes of the model decide: a
// thread adds its own elements in ascending order, then a warp its lanes, then the block its warps.
#include "epilogue.cuh"

namespace {

constexpr uint32_t kMaxWarps = 8;

// The sum over the block, in every thread; all threads call it.
__device__ __forceinline__ float block_sum(float value, float (&scratch)[kMaxWarps]) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = scratch[0];
    for (uint32_t warp = 1; warp < blockDim.x / kWarp; warp++) sum = __fadd_rn(sum, scratch[warp]);
    return sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) heads(const __grid_constant__ KigoHeads p) {
    __shared__ float scratch[kMaxWarps];
    const KigoQkv& qkv = p.qkv;
    const uint32_t row = blockIdx.x, part_or_head = blockIdx.y, per_head = (qkv.head_dim + 15) / 16;
    // The heads of this block, among all of q, k and v.
    const uint32_t first = !p.whole || part_or_head == 0 ? part_or_head : qkv.n_head + (part_or_head - 1) * qkv.n_head_kv;
    const uint32_t n_heads = !p.whole ? 1 : part_or_head == 0 ? qkv.n_head : qkv.n_head_kv;
    const uint32_t n_pairs = n_heads * per_head * 8;
    const float* x = reinterpret_cast<const float*>(p.x) + size_t(row) * p.stride;
    // Attention comes next, which reads nothing before its own wait that the product ahead could write.
    pdl_launch();
    pdl_wait();
    const CachePlace place = cache_place(qkv, row);

    const uint32_t part = first < qkv.n_head ? 0 : first < qkv.n_head + qkv.n_head_kv ? 1 : 2;
    const uint64_t bias = part == 0 ? p.bias[0] : part == 1 ? p.bias[1] : p.bias[2];
    // The elements of the block's pair i, with their bias; zero where there is none.
    auto load = [&](uint32_t i, float& low, float& high) {
        const uint32_t tile = first * per_head + i / 8, g = i % 8;
        const HeadElements e = head_elements(qkv, tile, g);
        low = __ldcg(x + tile * 16 + g);
        high = __ldcg(x + tile * 16 + g + 8);
        if (bias) add_bias(qkv, e, bias, low, high);
        return e;
    };
    float factor = 1;
    if (part < 2) {
        float squares = 0, low, high;
        for (uint32_t i = threadIdx.x; i < n_pairs; i += blockDim.x) {
            load(i, low, high);
            squares = __fmaf_rn(low, low, __fmaf_rn(high, high, squares));
        }
        factor = norm_factor(block_sum(squares, scratch), n_heads * qkv.head_dim, p.eps);
    }
    for (uint32_t i = threadIdx.x; i < n_pairs; i += blockDim.x) {
        float low, high;
        const HeadElements e = load(i, low, high);
        if (part < 2) {
            const float* weight = reinterpret_cast<const float*>(part == 0 ? p.norm_weight[0] : p.norm_weight[1]);
            if (p.whole) weight += e.head * qkv.head_dim;
            if (e.dims.low < qkv.head_dim) low = __fmul_rn(__fmul_rn(low, factor), __ldg(weight + e.dims.low));
            if (e.dims.high < qkv.head_dim) high = __fmul_rn(__fmul_rn(high, factor), __ldg(weight + e.dims.high));
        }
        put_elements(qkv, e, row, place, low, high);
    }
}

extern "C" __global__ void __launch_bounds__(256) add_normed(const __grid_constant__ KigoAddNormed p) {
    __shared__ float scratch[kMaxWarps];
    const float* delta = reinterpret_cast<const float*>(p.delta) + size_t(blockIdx.x) * p.stride;
    float* x = reinterpret_cast<float*>(p.x) + size_t(blockIdx.x) * p.stride;
    const float* weight = reinterpret_cast<const float*>(p.norm_weight);
    pdl_wait();
    pdl_launch();
    float mean = 0;
    if (p.norm == KIGO_NORM_LAYER) {
        float sum = 0;
        for (uint32_t i = threadIdx.x; i < p.k; i += blockDim.x) sum = __fadd_rn(sum, __ldcg(delta + i));
        mean = __fdiv_rn(block_sum(sum, scratch), float(p.k));
    }
    float squares = 0;
    for (uint32_t i = threadIdx.x; i < p.k; i += blockDim.x) {
        const float value = __fsub_rn(__ldcg(delta + i), mean);
        squares = __fmaf_rn(value, value, squares);
    }
    const float factor = norm_factor(block_sum(squares, scratch), p.k, p.eps);
    float largest = 0;
    for (uint32_t i = threadIdx.x; i < p.k; i += blockDim.x) {
        const float normed = __fmul_rn(__fmul_rn(__fsub_rn(__ldcg(delta + i), mean), factor), __ldg(weight + i));
        const float sum = __fmaf_rn(p.scale, normed, __ldcg(x + i));
        largest = fmaxf(largest, fabsf(sum));
        x[i] = sum;
    }
    if (!p.magnitudes) return;
    largest = warp_max(largest);
    if (threadIdx.x % kWarp == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.magnitudes) + blockIdx.x, largest);
}
