// In the place of kernels/common.cuh where a kernel runs on the CPU.
//
// The threads of a block are fibers of one thread. One runs until it waits for others: at a barrier of the block, or where a warp
// exchanges values, which takes all its lanes. Blocks run one after the other, in any order, so nothing may wait for another block.
// With -fsanitize=thread, accesses to shared memory that no barrier, and no exchange of a warp, keeps apart are reported. What is not shown:
// what a weaker memory than that of one thread would do to blocks that hand over to each other.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include <ucontext.h>

#include "launch.h"

#define __device__
#define __global__
#define __shared__ static
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __builtin_assume(condition) static_cast<void>(condition)
#define __isGlobal(pointer) true

constexpr int kWarp = 32;

struct uint4 {
    uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline uint32_t min(uint32_t a, int b) { return std::min(a, static_cast<uint32_t>(b)); }

namespace emulator {

constexpr int kThreads = 512;
constexpr size_t kStack = 64 << 10;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
// The sanitizer takes fibers for threads, which are told what orders them; the emulator itself it does not look at.
#define EMULATOR __attribute__((no_sanitize("thread")))
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}
inline void acquire(void* at) { __tsan_acquire(at); }
inline void release(void* at) { __tsan_release(at); }

struct Place {
    ucontext_t context;
    void* fiber = nullptr;
};
EMULATOR inline void leave(Place& from, Place& to) {
    constexpr unsigned kWithoutOrder = 1;
    if (!from.fiber) from.fiber = __tsan_get_current_fiber();
    if (!to.fiber) to.fiber = __tsan_create_fiber(0);
    __tsan_switch_to_fiber(to.fiber, kWithoutOrder);
    swapcontext(&from.context, &to.context);
}
EMULATOR inline void begin(Place& from, Place& to) { leave(from, to); }
#else
#define EMULATOR
inline void acquire(void*) {}
inline void release(void*) {}

// Faster than swapcontext, which asks the system.
struct Place {
    ucontext_t context;
    jmp_buf at;
};
inline void leave(Place& from, Place& to) {
    if (_setjmp(from.at) == 0) _longjmp(to.at, 1);
}
inline void begin(Place& from, Place& to) {
    if (_setjmp(from.at) == 0) setcontext(&to.context);
}
#endif

struct Fiber : Place {
    std::vector<char> stack = std::vector<char>(kStack);
    bool is_new, ended;
};

inline std::vector<Fiber> fibers(kThreads);
inline Place scheduler;
inline std::function<void()> body;
inline int current, n_ended;
inline uint64_t n_met;

// Threads that wait for each other, and what each brings.
struct Meeting {
    int arrived = 0;
    uint64_t number = 0;
    std::array<uint64_t, kThreads> brought, shown[2];

    EMULATOR void close() {
        // The next meeting cannot end before all have left this one, so two places are enough.
        shown[number % 2] = brought;
        arrived = 0;
        number++;
        n_met++;
    }
};

inline Meeting block;
inline std::vector<Meeting> warps(kThreads / kWarp);

EMULATOR inline const uint64_t* meet(Meeting& meeting, int place, int of, uint64_t value) {
    const uint64_t number = meeting.number;
    meeting.brought[place] = value;
    // Not what some do before they come to the next meeting.
    auto& order = meeting.shown[number % 2];
    release(&order);
    if (++meeting.arrived == of) {
        meeting.close();
    } else {
        while (meeting.number == number) leave(fibers[current], scheduler);
    }
    acquire(&order);
    return order.data();
}

EMULATOR inline const uint64_t* meet_block(uint64_t value) { return meet(block, current, kThreads - n_ended, value); }

template <class T>
EMULATOR inline std::array<T, kWarp> meet_warp(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const uint64_t* all = meet(warps[current / kWarp], current % kWarp, kWarp, bits);
    std::array<T, kWarp> values;
    for (int i = 0; i < kWarp; i++) memcpy(&values[i], &all[i], sizeof(T));
    return values;
}

EMULATOR inline void enter() {
    acquire(&scheduler);
    body();
    release(&scheduler);
    fibers[current].ended = true;
    n_ended++;
    if (block.arrived > 0 && block.arrived == kThreads - n_ended) block.close();
    leave(fibers[current], scheduler);
}

// Runs a block; the thread that goes first changes.
EMULATOR inline void run_block(std::function<void()> of_thread) {
    body = std::move(of_thread);
    n_ended = 0;
    block = {};
    release(&scheduler);
    std::fill(warps.begin(), warps.end(), Meeting{});
    for (Fiber& fiber : fibers) {
        fiber.is_new = true;
        fiber.ended = false;
    }
    while (n_ended < kThreads) {
        const uint64_t before = n_met + n_ended;
        const int first = rand() % kThreads;
        for (int i = 0; i < kThreads; i++) {
            current = (first + i) % kThreads;
            Fiber& fiber = fibers[current];
            if (fiber.ended) continue;
            if (!std::exchange(fiber.is_new, false)) {
                leave(scheduler, fiber);
                continue;
            }
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, enter, 0);
            begin(scheduler, fiber);
        }
        if (n_met + n_ended == before) fail("the threads of a block wait for each other for ever");
    }
    acquire(&scheduler);
}

struct ThreadIndex {
    EMULATOR operator uint32_t() const { return current; }
};

}  // namespace emulator

inline struct {
    emulator::ThreadIndex x;
} threadIdx;
inline struct {
    uint32_t x, y;
} blockIdx, gridDim;

// Runs `kernel(params)` on a grid, `shared` being the block's shared memory, in which nothing is known at first.
template <class Params, class Shared>
inline void launch(uint32_t x, uint32_t y, void (*kernel)(Params), const Params& params, Shared& shared) {
    std::vector<uint32_t> order(x * y);
    for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
    for (uint32_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[rand() % i]);
    gridDim = {x, y};
    for (const uint32_t block : order) {
        blockIdx = {block % x, block / x};
        memset(static_cast<void*>(&shared), 0xee, sizeof shared);
        emulator::run_block([&] { kernel(params); });
    }
}

inline void __syncthreads() { emulator::meet_block(0); }
inline int __syncthreads_count(bool predicate) {
    const uint64_t* all = emulator::meet_block(predicate);
    return std::count(all, all + emulator::kThreads, 1);
}
inline void __syncwarp() { emulator::meet_warp(0); }
inline uint32_t __ballot_sync(uint32_t, bool predicate) {
    uint32_t bits = 0;
    const auto all = emulator::meet_warp(predicate);
    for (int i = 0; i < kWarp; i++) bits |= uint32_t(all[i]) << i;
    return bits;
}
template <class T>
inline T __shfl_sync(uint32_t, T value, uint32_t lane) { return emulator::meet_warp(value)[lane % kWarp]; }
template <class T>
inline T __shfl_up_sync(uint32_t, T value, uint32_t distance) {
    const uint32_t lane = threadIdx.x % kWarp;
    return emulator::meet_warp(value)[lane >= distance ? lane - distance : lane];
}
template <class T>
inline T __shfl_xor_sync(uint32_t, T value, uint32_t bits) { return emulator::meet_warp(value)[threadIdx.x % kWarp ^ bits]; }
inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
    const auto all = emulator::meet_warp(value);
    return *std::min_element(all.begin(), all.end());
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
    const auto all = emulator::meet_warp(value);
    return *std::max_element(all.begin(), all.end());
}
inline uint32_t __reduce_add_sync(uint32_t, uint32_t value) {
    uint32_t sum = 0;
    for (const uint32_t other : emulator::meet_warp(value)) sum += other;
    return sum;
}
inline void __match_all_sync(uint32_t, int value, int* same) {
    const auto all = emulator::meet_warp(value);
    *same = std::all_of(all.begin(), all.end(), [&](int other) { return other == value; });
}

template <class T>
inline T __ldcg(const T* at) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) emulator::fail("a load is not aligned");
    return *at;
}
template <class T>
inline void __stcg(T* at, T value) { *at = value; }
template <class T, class U>
inline T atomicAdd(T* at, U value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline uint32_t atomicOr(uint32_t* at, uint32_t value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) { return std::exchange(*at, std::max(*at, value)); }
inline unsigned long long atomicExch(unsigned long long* at, unsigned long long value) { return std::exchange(*at, value); }
inline bool counts_last(uint32_t* counter, uint32_t n) {
    const bool is_last = *counter == n - 1;
    *counter = is_last ? 0 : *counter + 1;
    return is_last;
}

inline void pdl_wait() {}
inline void pdl_launch() {}

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline uint32_t __float_as_uint(float x) { return same_bits<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
inline int64_t __double_as_longlong(double x) { return same_bits<int64_t>(x); }
inline double __longlong_as_double(int64_t x) { return same_bits<double>(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return static_cast<unsigned __int128>(a) * b >> 64; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __ull2double_rn(uint64_t x) { return static_cast<double>(x); }
inline uint64_t __double2ull_rz(double x) { return static_cast<uint64_t>(x); }
inline float __double2float_ru(double x) {
    const float nearest = static_cast<float>(x);
    return nearest < x ? std::nextafterf(nearest, INFINITY) : nearest;
}
