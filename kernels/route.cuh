// Which experts a row uses: those with the largest logits, with the softmax of these as weights.
#pragma once

#include "common.cuh"

// Larger for a larger logit; 0 for none. NaN, which sampling will report, is smallest.
__device__ __forceinline__ uint32_t order_of(float logit) {
    // Adding 0 turns -0 into 0, which it has to equal.
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    return logit != logit ? 1 : bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The same, and larger for a lower number of equal ones.
__device__ __forceinline__ uint64_t rank_of(float logit, uint32_t expert) { return static_cast<uint64_t>(order_of(logit)) << 32 | ~expert; }

// The weight of an expert of those that are used, whose logits lanes 0 .. n_used - 1 of a warp have, the largest first.
__device__ __forceinline__ float weight_of(uint32_t n_used, float logit) {
    const float largest = __shfl_sync(~0u, logit, 0);
    const float power = threadIdx.x % kWarp < n_used ? expf(__fsub_rn(logit, largest)) : 0;
    float sum = 0;
    for (uint32_t i = 0; i < n_used; i++) sum = __fadd_rn(sum, __shfl_sync(~0u, power, i));
    return __fdiv_rn(power, sum);
}
