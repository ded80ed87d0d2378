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

// What was written before is seen by bulk copies.
__device__ __forceinline__ void fence_copies() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

// Keeps the compiler from moving uses of registers that products are writing.
template <int kRegisters>
__device__ __forceinline__ void wgmma_pin(float (&registers)[kRegisters]) {
#pragma unroll
    for (int i = 0; i < kRegisters; i++) asm volatile("" : "+f"(registers[i])::"memory");
}

#define KIGO_WGMMA_8(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define KIGO_WGMMA_32(d) KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24)

// Names of 32, 64 and 96 results.
#define KIGO_RESULTS_32                                                                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define KIGO_RESULTS_64                                                                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                         \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                         \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define KIGO_RESULTS_96                                                                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                         \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                         \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                         \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                         \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}"

// `keep` is the name of an operand, `right` what follows it: whether operands are transposed.
#define KIGO_WGMMA(columns, type, results, a, b, keep, right)                                                                  \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " " \
    results ", " a ", " b ", keep, 1, 1, " right ";\n}"

// Weights from registers, and from shared memory.
#define KIGO_WGMMA_64(type)                                                                                                    \
    asm volatile(KIGO_WGMMA("64", type, KIGO_RESULTS_32, "{%32, %33, %34, %35}", "%36", "%37", "0")                             \
                 : KIGO_WGMMA_32(d[0])                                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))
#define KIGO_WGMMA_128(type)                                                                                                   \
    asm volatile(KIGO_WGMMA("128", type, KIGO_RESULTS_64, "{%64, %65, %66, %67}", "%68", "%69", "0")                            \
                 : KIGO_WGMMA_32(d[0]), KIGO_WGMMA_32(d[1])                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))
#define KIGO_WGMMA_192(type)                                                                                                   \
    asm volatile(KIGO_WGMMA("192", type, KIGO_RESULTS_96, "{%96, %97, %98, %99}", "%100", "%101", "0")                          \
                 : KIGO_WGMMA_32(d[0]), KIGO_WGMMA_32(d[1]), KIGO_WGMMA_32(d[2])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))
#define KIGO_WGMMA_SHARED_64(type)                                                                                             \
    asm volatile(KIGO_WGMMA("64", type, KIGO_RESULTS_32, "%32", "%33", "%34", "0, 0") : KIGO_WGMMA_32(d[0]) : "l"(a), "l"(b), "r"(keep))
#define KIGO_WGMMA_SHARED_128(type)                                                                                            \
    asm volatile(KIGO_WGMMA("128", type, KIGO_RESULTS_64, "%64", "%65", "%66", "0, 0")                                          \
                 : KIGO_WGMMA_32(d[0]), KIGO_WGMMA_32(d[1])                                                                     \
                 : "l"(a), "l"(b), "r"(keep))
#define KIGO_WGMMA_SHARED_192(type)                                                                                            \
    asm volatile(KIGO_WGMMA("192", type, KIGO_RESULTS_96, "%96", "%97", "%98", "0, 0")                                          \
                 : KIGO_WGMMA_32(d[0]), KIGO_WGMMA_32(d[1]), KIGO_WGMMA_32(d[2])                                                \
                 : "l"(a), "l"(b), "r"(keep))

// Starts d = a b, or with `keep` d += a b, of 64 rows (16 for each warp, as mma_f16 takes them) by 64 * kParts columns by 16 of k.
// d[p][4 j + i] is element i of what mma_f16 gives of columns 64 p + 8 j to 64 p + 8 j + 7.
template <bool kBf16, int kParts>
__device__ __forceinline__ void wgmma(float (*d)[32], const uint32_t* a, uint64_t b, int keep) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(kParts >= 1 && kParts <= 3);
    if constexpr (kBf16) {
        if constexpr (kParts == 1) KIGO_WGMMA_64("bf16");
        if constexpr (kParts == 2) KIGO_WGMMA_128("bf16");
        if constexpr (kParts == 3) KIGO_WGMMA_192("bf16");
    } else {
        if constexpr (kParts == 1) KIGO_WGMMA_64("f16");
        if constexpr (kParts == 2) KIGO_WGMMA_128("f16");
        if constexpr (kParts == 3) KIGO_WGMMA_192("f16");
    }
#endif
}

// The same with weights that `a` describes.
template <bool kBf16, int kParts>
__device__ __forceinline__ void wgmma_shared(float (*d)[32], uint64_t a, uint64_t b, int keep) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(kParts >= 1 && kParts <= 3);
    if constexpr (kBf16) {
        if constexpr (kParts == 1) KIGO_WGMMA_SHARED_64("bf16");
        if constexpr (kParts == 2) KIGO_WGMMA_SHARED_128("bf16");
        if constexpr (kParts == 3) KIGO_WGMMA_SHARED_192("bf16");
    } else {
        if constexpr (kParts == 1) KIGO_WGMMA_SHARED_64("f16");
        if constexpr (kParts == 2) KIGO_WGMMA_SHARED_128("f16");
        if constexpr (kParts == 3) KIGO_WGMMA_SHARED_192("f16");
    }
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Describes columns of k = 64 as operand b: groups of 8, one after the other, in which bytes 16 i .. 16 i + 15 of the 128 of
// column c stand at 128 c + 16 (i ^ c) (PTX ISA, 128-byte swizzle). The next 16 of k are 2 further.
__device__ __forceinline__ uint64_t wgmma_columns(const void* at) {
    constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kGroupStep = uint64_t(1024 / 16) << 32;
    return shared_address(at) / 16 | kGroupStep | kSwizzle128;
}

// Describes records of 64 columns of k of four tiles, one after the other, as operand a (pair_offset of quant/layout.cuh): matrices
// of 128 bytes follow each other along k, and are 1024 bytes apart along rows. The first word depends on the place, of which it has
// sixteenths, without the block's number in the cluster.
__device__ __forceinline__ uint32_t wgmma_rows_word(uint32_t at) { return at % (1 << 18) / 16 | 128 / 16 << 16; }
__device__ __forceinline__ uint64_t wgmma_rows(uint32_t word) {
    uint64_t out;
    asm("mov.b64 %0, {%1, %2};" : "=l"(out) : "r"(word), "n"(1024 / 16));
    return out;
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

// Those who wait sleep for so many nanoseconds at most before they look again: asking costs power, which limits the tensor cores.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t phase) {
    constexpr uint32_t kSleep = 10'000'000;
    asm volatile(
        "{\n.reg .pred done;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1, %2;\n@!done bra AGAIN_%=;\n}" ::"r"(
            shared_address(barrier)),
        "r"(phase), "r"(kSleep)
        : "memory");
}

// Where the same place of block `rank` of the cluster is.
__device__ __forceinline__ uint32_t cluster_address(const void* at, uint32_t rank) {
    uint32_t out = 0;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(shared_address(at)), "r"(rank));
#endif
    return out;
}

// Arrives at a barrier of any block of the cluster, after what the tensor cores have read there.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// Waits for all threads of the cluster.
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Copies to shared memory in the background; `barrier` is told when it is there.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#endif
}

// The same to this place in all blocks of the cluster that `mask` has, and their barriers.
__device__ __forceinline__ void copy_bulk_cluster(void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint32_t mask) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(mask))
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
