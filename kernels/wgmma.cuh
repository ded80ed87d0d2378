// The asynchronous tensor-core products of sm_90a, and what their operands come by: barriers and bulk copies.
//
// A chain of them over k adds like a chain of mma.m16n8k16 over the same columns, to the last bit (kernels/notes.md).
#pragma once

#include "common.cuh"

// Threads that multiply together.
constexpr int kGroupThreads = 128;

// Before products that read registers which other instructions have written.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `kPending` of the groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of registers that products are writing.
template <int kRegisters>
__device__ __forceinline__ void wgmma_pin(float (&registers)[kRegisters]) {
#pragma unroll
    for (int i = 0; i < kRegisters; i++) asm volatile("" : "+f"(registers[i])::"memory");
}

#define KIGO_WGMMA_8(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

#define KIGO_WGMMA(type)                                                                                                    \
    asm volatile(                                                                                                           \
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                         \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
        "%24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, keep, 1, 1, 0;\n}"                             \
        : KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24)                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))

// Starts d = a b, or with `keep` d += a b, of 64 rows (16 for each warp, as mma_f16 takes them) by 64 columns by 16 of k.
// d[4 j + i] is element i of what mma_f16 gives of columns 8 j to 8 j + 7.
template <bool kBf16>
__device__ __forceinline__ void wgmma(float (&d)[32], const uint32_t* a, uint64_t b, int keep) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (kBf16) {
        KIGO_WGMMA("bf16");
    } else {
        KIGO_WGMMA("f16");
    }
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Describes columns of k = 64 as operand b: groups of 8, one after the other, in which bytes 16 i .. 16 i + 15 of the 128 of
// column c stand at 128 c + 16 (i ^ c) (PTX ISA, 128-byte swizzle). The next 16 of k are 2 further, 64 columns 512.
__device__ __forceinline__ uint64_t wgmma_columns(const void* at) {
    constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kGroupStep = uint64_t(1024 / 16) << 32;
    return shared_address(at) / 16 | kGroupStep | kSwizzle128;
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int n_arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and says how many bytes will.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t phase) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra AGAIN_%=;\n}" ::"r"(
            shared_address(barrier)),
        "r"(phase)
        : "memory");
}

// Copies to shared memory in the background; `barrier` is told when it is there.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#endif
}

// Registers that each thread of the warpgroup may have from here on.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
