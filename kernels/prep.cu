// prep: the activations of a batch, normed, as operands of the tensor cores.
#include "activations.cuh"

// One block per row; rows beyond the batch, up to a multiple of 8, and those that take no row become zero.
template <bool kBf16>
__device__ void prepare(const KigoPrep& p) {
    extern __shared__ float4 staging[];
    __shared__ float2 scratch[kWarps];
    constexpr Operand kOperand = kBf16 ? Operand::kBf16 : Operand::kF16;
    const uint32_t row = blockIdx.x, n_units = p.input.stride / kUnitK;
    uint8_t* tile = reinterpret_cast<uint8_t*>(p.records) + size_t(row / 8) * n_units * kActivationBytes<kOperand>;
    auto emit = [&](uint32_t quad, Quad value) {
        const QuadPlace at(quad);
        const uint32_t g = row % 8;
        if (p.order == KIGO_ORDER_SWIZZLED) {
            const size_t group = size_t(at.unit) * (gridDim.x / 8) + row / 8, n_groups = size_t(n_units) * (gridDim.x / 8);
            uint8_t* to = reinterpret_cast<uint8_t*>(p.records) + group * 1024 + g * 128 + 4 * at.t;
            const uint32_t first = 16 * ((4 * at.a + at.i) ^ g), second = 16 * ((4 * at.a + at.i + 1) ^ g);
            *reinterpret_cast<uint32_t*>(to + first) = value.high.x;
            *reinterpret_cast<uint32_t*>(to + second) = value.high.y;
            if constexpr (kBf16) {
                *reinterpret_cast<uint32_t*>(to + n_groups * 1024 + first) = value.low.x;
                *reinterpret_cast<uint32_t*>(to + n_groups * 1024 + second) = value.low.y;
            }
            return;
        }
        uint8_t* to = tile + size_t(at.unit) * kActivationBytes<kOperand> + at.a * 512 + (4 * g + at.t) * 16 + at.i * 4;
        *reinterpret_cast<uint2*>(to) = value.high;
        if constexpr (kBf16) *reinterpret_cast<uint2*>(to + 1024) = value.low;
    };
    pdl_wait();
    pdl_launch();
    float factor = 0;
    const bool exists = row < p.input.n && !(p.input.select && __ldcg(reinterpret_cast<const uint32_t*>(p.input.select) + row) == KIGO_NO_ROW);
    if (exists) {
        factor = activate_row<kBf16>(p.input, row, staging, scratch, emit);
    } else {
        for (uint32_t quad = threadIdx.x; quad < p.input.stride / 4; quad += kThreads) emit(quad, Quad{});
    }
    if (threadIdx.x == 0) reinterpret_cast<float*>(p.factors)[row] = factor;
}

extern "C" __global__ void __launch_bounds__(kThreads) prep(const __grid_constant__ KigoPrep p) {
    if (p.bf16) {
        prepare<true>(p);
    } else {
        prepare<false>(p);
    }
}
