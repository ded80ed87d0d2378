// Words: how blocks of `step` hand vectors to each other without a barrier. A word has a value and the number of the step in
// one piece of memory that is read and written as a whole, so that who reads it knows whether the value is there: no
// fence, and one trip through L2. Every step writes every word once, and a kernel's words are older than it by one number.
#pragma once

#include "step_ring.cuh"

namespace {

__device__ __forceinline__ ulonglong2 load_exact_words(const uint64_t* at) {
    ulonglong2 words;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(words.x), "=l"(words.y) : "l"(at) : "memory");
    return words;
}

__device__ __forceinline__ uint64_t load_exact_word(const uint64_t* at) {
    uint64_t word;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}

__device__ __forceinline__ void store_exact_word(uint64_t* at, float value, uint32_t number) {
    const uint64_t word = uint64_t(number) << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
}

__device__ __forceinline__ bool is_there(uint64_t word, uint32_t number) { return uint32_t(word >> 32) == number; }

__device__ __forceinline__ float value_of(uint64_t word) { return __uint_as_float(uint32_t(word)); }

__device__ __forceinline__ uint4 load_rounded_words(const uint32_t* at) {
    uint4 words;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(at)
                 : "memory");
    return words;
}

// 16 significant bits, the last of which is set if any beyond it is: rounded again to the 11 of a half this gives what
// rounding once would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding
// to odd", 2008).
__device__ __forceinline__ void store_rounded_word(uint32_t* at, float value, uint32_t number) {
    const uint32_t bits = __float_as_uint(value), word = (bits & ~0xffu) | (bits & 0xff ? 0x100 : 0) | (number & 0xff);
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
}

__device__ __forceinline__ bool are_there(uint4 words, uint32_t number) {
    return (((words.x ^ number) | (words.y ^ number) | (words.z ^ number) | (words.w ^ number)) & 0xff) == 0;
}

__device__ __forceinline__ float4 values_of(uint4 words) {
    return {__uint_as_float(words.x & ~0xffu), __uint_as_float(words.y & ~0xffu), __uint_as_float(words.z & ~0xffu),
            __uint_as_float(words.w & ~0xffu)};
}

// Calls `load`, which says whether all it wants is there, until that holds for every lane of the warp.
template <class Load>
__device__ __forceinline__ void await(Load load) {
    Patience patience;
    while (!__all_sync(~0u, load())) patience.wait();
}

}  // namespace
