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

// The same for a number from `kFrom` to `kMost` that is known only at run time: the instruction has it in its code.
template <int kMost, int kFrom = 0>
__device__ __forceinline__ void copy_async_wait_until(int pending) {
    if constexpr (kFrom < kMost) {
        if (pending > kFrom) return copy_async_wait_until<kMost, kFrom + 1>(pending);
    }
    copy_async_wait<kFrom>();
}

// Whether this is the one lane of a warp that does what one has to; all lanes call it.
__device__ __forceinline__ bool elect_lane() {
    uint32_t is_it;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_it));
    return is_it;
}

// What the bulk copy engine writes to shared memory at a time: pieces that start elsewhere take a tenth longer.
constexpr int kLine = 128;

// A ring of slots for `kPieces` pieces of up to `kPiece` bytes, which one warp copies to shared memory ahead of using them: by the
// bulk copy engine, which one lane tells what to do, where there is one (sm_90), else by all lanes.
template <int kPiece, int kPieces>
struct Ring {
    // From one piece to the next in a slot, and from slot to slot.
    static constexpr int kStep = (kPiece + kLine - 1) / kLine * kLine, kSlot = kPieces * kStep;
    uint8_t* slots;
    uint64_t* full;
    // From 2 to KIGO_MAX_SLOTS.
    int n_slots, lane;
    // Slot and round of the next piece to fill and to use.
    int to_fill, to_use;
    uint32_t phase;
    // How long L2 keeps what is copied: weights are read once in a step, and must not drive out what kernels hand to each other.
    uint64_t policy;

    // `slots` are n_slots times kSlot bytes from a multiple of kLine on, `barriers` n_slots words, of this warp's own.
    __device__ __forceinline__ Ring(uint8_t* slots, uint64_t* barriers, int n_slots)
        : slots(slots), full(barriers), n_slots(n_slots), lane(threadIdx.x % kWarp), to_fill(0), to_use(0), phase(0), policy(0) {
#if __CUDA_ARCH__ >= 900
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        if (lane < n_slots) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(full + lane)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        __syncwarp();
#endif
    }

    __device__ __forceinline__ static uint32_t shared_address(const void* at) {
        return static_cast<uint32_t>(__cvta_generic_to_shared(at));
    }

    // Starts to copy pieces of `bytes` each into the next slot, which every lane has used; `from(i)` is where piece i stands. With
    // no bytes there is nothing to copy.
    template <class From>
    __device__ __forceinline__ void fill(uint32_t bytes, From from) {
        uint8_t* to = slots + to_fill * kSlot;
#if __CUDA_ARCH__ >= 900
        if (bytes > 0 && elect_lane()) {
            const uint32_t barrier = shared_address(full + to_fill);
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(kPieces * bytes) : "memory");
            for (int i = 0; i < kPieces; i++) {
                asm volatile(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                        shared_address(to + i * kStep)),
                    "l"(from(i)), "r"(bytes), "r"(barrier), "l"(policy)
                    : "memory");
            }
        }
#else
        for (int i = 0; i < kPieces; i++) {
            for (uint32_t at = lane * 16; at < bytes; at += kWarp * 16) copy_async(to + i * kStep + at, from(i) + at);
        }
        copy_async_commit();
#endif
        to_fill = to_fill + 1 == n_slots ? 0 : to_fill + 1;
    }

    // Waits for the oldest piece and returns it. Between this and the next call comes one `fill`.
    __device__ __forceinline__ const uint8_t* next() {
        const uint8_t* out = slots + to_use * kSlot;
#if __CUDA_ARCH__ >= 900
        const uint32_t barrier = shared_address(full + to_use);
        asm volatile(
            "{\n.reg .pred done;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra AGAIN_%=;\n}" ::"r"(barrier),
            "r"(phase)
            : "memory");
#else
        copy_async_wait_until<KIGO_MAX_SLOTS - 2>(n_slots - 2);
#endif
        // Every lane has used the piece before, and sees what all lanes copied.
        __syncwarp();
        if (++to_use == n_slots) {
            to_use = 0;
            phase ^= 1;
        }
        return out;
    }

    // Before the block ends, no copy may be under way; on sm_90 all have been used.
    __device__ __forceinline__ void drain() {
#if __CUDA_ARCH__ < 900
        copy_async_wait<0>();
#endif
    }
};

// Barrier `id` (1..15) of `n_threads` threads: arriving does not wait, waiting arrives too.
__device__ __forceinline__ void barrier_arrive(int id, int n_threads) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

__device__ __forceinline__ void barrier_wait(int id, int n_threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

constexpr float kLog2E = 1.44269504f;

// 2^x; exact at 0 and -inf.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x but for the last bit or two; 0 for infinity.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = kWarp / 2; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

// Whether this thread is the last of `n` to count itself in global memory; the counter is 0 then for the next use. It sees what the
// others wrote before, and what their blocks wrote before a barrier.
__device__ __forceinline__ bool counts_last(uint32_t* counter, uint32_t n) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(n - 1) : "memory");
    return before == n - 1;
}

// Raises the largest magnitude at `at` to that of `value`; bits of non-negative floats are ordered like the floats.
__device__ __forceinline__ void raise_magnitude(uint32_t* at, float value) {
    atomicMax(at, __float_as_uint(fabsf(value)));
}

// What n elements whose squares add up to `squares` are multiplied with.
__device__ __forceinline__ float norm_factor(float squares, uint32_t n, float eps) {
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, float(n)), eps)));
}

// Where the half of column `column` of row `row` is in KIGO_ORDER_FRAGMENTS (activations.cuh), in rows of n_units units.
__device__ __forceinline__ uint32_t half_offset(uint32_t row, uint32_t column, uint32_t n_units) {
    return (row / 8 * n_units + column / 64) * 1024 + column / 16 % 2 * 512 + (row % 8 * 4 + column / 4 % 4) * 16 + column % 4 * 4 +
           column / 32 % 2 * 2;
}
