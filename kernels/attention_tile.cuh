// Tensor-core tiles, asynchronous copies and dependent launch, as attention.cu uses them.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

// d[16x8] += a[16x16] * b[16x8], f16 in, f32 out. Lane (g = lane / 4, t = lane % 4) holds
// a: rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8; b: rows 2t, 2t+8 at column g; d: rows g, g, g+8, g+8 at columns 2t, 2t+1.
__device__ __forceinline__ void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Waits until the kernels before this one in the stream have finished and their writes are visible.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start its blocks.
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Copies the first `bytes` (0..16) of 16 bytes of device memory to shared memory and fills the rest with zeros.
__device__ __forceinline__ void copy_async(uint4 *shared, const uint4 *global, uint32_t bytes) {
    uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

// Waits for all asynchronous copies of this thread.
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2^x; exact at 0 and -inf.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
