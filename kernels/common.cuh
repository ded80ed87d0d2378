// Primitives that every kernel shares: tensor-core products, asynchronous copies, dependent launch, reductions.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "launch.h"

constexpr int kWarp = 32;

// d += a b on the tensor cores (PTX ISA, mma.m16n8k16): a is 16 x 16, b 16 x 8. With g = lane / 4 and t = lane % 4 a lane holds
// of a rows g and g + 8, of b column g, of d rows g (d[0], d[1]) and g + 8 (d[2], d[3]) in columns 2 t and 2 t + 1.
__device__ __forceinline__ void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Waits until the kernels before this one in the stream are complete and their writes visible. Every thread of every kernel
// calls it on every path, so that completion of one kernel implies that of all before it.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start, up to its own pdl_wait.
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Copies 16 bytes from global to shared memory in the background, past L1.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = kWarp / 2; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

// Raises the largest magnitude at `at` to that of `value`; bits of non-negative floats are ordered like the floats.
__device__ __forceinline__ void raise_magnitude(uint32_t* at, float value) {
    atomicMax(at, __float_as_uint(fabsf(value)));
}
