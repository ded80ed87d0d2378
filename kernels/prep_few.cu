// prep for few rows, in KIGO_ORDER_FRAGMENTS: what prep.cu writes, with a thread for a quad or two, since a row alone is all latency. The
// product comes next, and may start at once: it asks for its weights before it waits.
#include "activations.cuh"

constexpr int kMostThreads = 1024, kMostQuads = 2;

// Where quad `number` of row `row` goes.
template <bool kBf16>
__device__ __forceinline__ void put_quad(const KigoPrep& p, uint32_t row, uint32_t number, Quad value) {
    constexpr uint32_t kBytes = kActivationBytes<kBf16 ? Operand::kBf16 : Operand::kF16>;
    const QuadPlace at(number);
    uint8_t* tile = reinterpret_cast<uint8_t*>(p.records) + size_t(row / 8) * (p.input.stride / kUnitK) * kBytes;
    uint8_t* to = tile + at.unit * kBytes + at.a * 512 + (row % 8 * 4 + at.t) * 16 + at.i * 4;
    *reinterpret_cast<uint2*>(to) = value.high;
    if constexpr (kBf16) *reinterpret_cast<uint2*>(to + 1024) = value.low;
}

template <bool kBf16>
__device__ __forceinline__ Quad scaled_quad(float4 v, float scale) {
    return make_quad<kBf16>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
}

// The row of x that row `row` is of, or KIGO_NO_ROW.
__device__ __forceinline__ uint32_t source_row(const KigoInput& in, uint32_t row) {
    if (row >= in.n) return KIGO_NO_ROW;
    return in.select ? __ldcg(reinterpret_cast<const uint32_t*>(in.select) + row) : row;
}

// A row after an RMSNorm; returns the factor of its products in thread 0.
template <bool kBf16, int kEach>
__device__ __forceinline__ float prepare_normed(const KigoPrep& p, uint32_t from, float4* staging, uint32_t* tops) {
    const KigoInput& in = p.input;
    const uint32_t n_quads = in.stride / 4, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const float4* x = reinterpret_cast<const float4*>(in.x) + size_t(from) * n_quads;
    const float4* weight = reinterpret_cast<const float4*>(in.norm_weight);
    float4 v[kEach] = {}, w[kEach] = {};
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        if (quad < n_quads) v[i] = __ldcg(x + quad), w[i] = __ldg(weight + quad);
    }
    float largest = 0;
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        if (quad < n_quads) staging[quad] = v[i];
        v[i] = {__fmul_rn(v[i].x, w[i].x), __fmul_rn(v[i].y, w[i].y), __fmul_rn(v[i].z, w[i].z), __fmul_rn(v[i].w, w[i].w)};
        largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v[i].x), fabsf(v[i].y))), fmaxf(fabsf(v[i].z), fabsf(v[i].w)));
    }
    // Bits of numbers that are not negative are ordered as they are.
    const uint32_t top = __reduce_max_sync(~0u, __float_as_uint(largest));
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    float scale = 1, inverse = 1;
    if constexpr (!kBf16) {
        const uint32_t mine = lane < blockDim.x / kWarp ? tops[lane] : 0;
        range_scale(__uint_as_float(__reduce_max_sync(~0u, mine)), scale, inverse);
    }
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        if (quad < n_quads) put_quad<kBf16>(p, blockIdx.x, quad, scaled_quad<kBf16>(v[i], scale));
    }
    if (warp > 0) return 0;
    return __fmul_rn(inverse, norm_factor(Squares::of_row(staging, n_quads), in.k, in.eps));
}

// A block of up to kMostThreads threads, at least kThreads, for each row.
template <bool kBf16>
__device__ __forceinline__ void prepare_normed(const KigoPrep& p) {
    extern __shared__ float4 staging[];
    __shared__ uint32_t tops[kMostThreads / kWarp];
    const uint32_t n_quads = p.input.stride / 4;
    prefetch_norm(p.input);
    pdl_launch();
    pdl_wait();
    float factor = 0;
    const uint32_t from = source_row(p.input, blockIdx.x);
    if (from == KIGO_NO_ROW) {
        for (uint32_t quad = threadIdx.x; quad < n_quads; quad += blockDim.x) put_quad<kBf16>(p, blockIdx.x, quad, Quad{});
    } else if (n_quads <= blockDim.x) {
        factor = prepare_normed<kBf16, 1>(p, from, staging, tops);
    } else {
        factor = prepare_normed<kBf16, kMostQuads>(p, from, staging, tops);
    }
    if (threadIdx.x == 0) reinterpret_cast<float*>(p.factors)[blockIdx.x] = factor;
}

extern "C" __global__ void __launch_bounds__(kMostThreads, 2) prep_few_normed(const __grid_constant__ KigoPrep p) {
    if (p.bf16) {
        prepare_normed<true>(p);
    } else {
        prepare_normed<false>(p);
    }
}

// Rows as they are, each cut among the blocks in y.
template <bool kBf16>
__device__ __forceinline__ void prepare_plain(const KigoPrep& p) {
    const uint32_t n_quads = p.input.stride / 4, quad = blockIdx.y * kThreads + threadIdx.x;
    pdl_launch();
    pdl_wait();
    float scale = 1, factor = 0;
    const uint32_t from = source_row(p.input, blockIdx.x);
    Quad value = {};
    if (from != KIGO_NO_ROW) {
        float4 v = {};
        if (quad < n_quads) v = __ldcg(reinterpret_cast<const float4*>(p.input.x) + size_t(from) * n_quads + quad);
        factor = 1;
        if (!kBf16) range_scale(__uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(p.input.magnitudes) + from)), scale, factor);
        value = scaled_quad<kBf16>(v, scale);
    }
    if (quad < n_quads) put_quad<kBf16>(p, blockIdx.x, quad, value);
    if (blockIdx.y == 0 && threadIdx.x == 0) reinterpret_cast<float*>(p.factors)[blockIdx.x] = factor;
}

extern "C" __global__ void __launch_bounds__(kThreads, 8) prep_few(const __grid_constant__ KigoPrep p) {
    if (p.bf16) {
        prepare_plain<true>(p);
    } else {
        prepare_plain<false>(p);
    }
}
