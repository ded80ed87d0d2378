// Words: how blocks of `step` hand vectors to each other without a barrier. A word is an f32, or two halves, or kMissing, NaNs that no
// computation gives, as long as it is not there: no fence, and one trip through L2. There are two sets, which steps use in
// turn: who writes a word of a step takes away that of the step before, which all blocks have read.
#pragma once

#include "step_ring.cuh"

namespace {

constexpr uint32_t kMissing = ~0u;

__device__ __forceinline__ uint4 load_words(const uint32_t* at) {
    uint4 words;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(at)
                 : "memory");
    return words;
}

__device__ __forceinline__ uint32_t load_word(const uint32_t* at) {
    uint32_t word;
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(word) : "l"(at) : "memory");
    return word;
}

__device__ __forceinline__ bool are_there(uint4 words) {
    return words.x != kMissing && words.y != kMissing && words.z != kMissing && words.w != kMissing;
}

__device__ __forceinline__ float4 values_of(uint4 words) {
    return {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z), __uint_as_float(words.w)};
}

__device__ __forceinline__ float largest_of(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// The largest magnitudes of halves, in both halves of a word.
__device__ __forceinline__ uint32_t largest_half(uint32_t largest, uint4 halves) {
    // Magnitudes stand in the order of their bits.
    const uint32_t magnitude = 0x7fff7fff;
    return __vmaxu2(__vmaxu2(largest, __vmaxu2(halves.x & magnitude, halves.y & magnitude)),
                    __vmaxu2(halves.z & magnitude, halves.w & magnitude));
}

// The set of words of a row's step: bytes from the first set of the first row, and to the row's other. Rows count their steps
// apart, as they need not all be in the next one.
struct WordSet {
    uint64_t offset;
    int64_t to_other;

    __device__ __forceinline__ WordSet(uint32_t number, uint32_t set_bytes, uint32_t row = 0)
        : offset(uint64_t(2 * row + number % 2) * set_bytes), to_other(number % 2 ? -int64_t(set_bytes) : int64_t(set_bytes)) {}

    __device__ __forceinline__ const uint32_t* from(uint64_t words) const {
        return reinterpret_cast<const uint32_t*>(words + offset);
    }
};

// Where a word of a step is written, and that of the step before taken away.
struct WordPlace {
    uint64_t at, other;

    // Of word i of those at `words`.
    __device__ __forceinline__ WordPlace(const WordSet& set, uint64_t words, uint32_t i)
        : at(words + set.offset + uint64_t(i) * 4), other(at + set.to_other) {}

    __device__ __forceinline__ void store(float value) const {
        const uint32_t word = __float_as_uint(value);
        put(word == kMissing ? 0x7fffffff : word);
    }

    // A half that is no number is 0x7fff, so that two are never kMissing.
    __device__ __forceinline__ void store_halves(float first, float second) const { put(pack_halves(first, second)); }

   private:
    __device__ __forceinline__ void put(uint32_t word) const {
        asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
        asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(other), "r"(kMissing) : "memory");
    }
};

// Single words, in all lanes of a warp; those at null are not asked for.
template <int kWords>
struct Words {
    uint32_t in[kWords];

    // Asks for all of them until they are there. All lanes of a warp call it.
    __device__ __forceinline__ void await(const uint32_t* const (&at)[kWords]) {
        Patience patience;
        while (true) {
            bool all = true;
#pragma unroll
            for (int i = 0; i < kWords; i++) in[i] = at[i] ? load_word(at[i]) : 0;
#pragma unroll
            for (int i = 0; i < kWords; i++) all &= in[i] != kMissing;
            if (__all_sync(~0u, all)) return;
            patience.wait();
        }
    }
};

// `kQuads` fours of words, kApart apart if nothing else is said; those from `last` on are zero.
template <int kQuads, int kApart>
struct Quads {
    uint4 in[kQuads];

    // Asks for all of them at once.
    __device__ __forceinline__ void ask(const uint32_t* words, uint32_t first, uint32_t last, uint32_t apart = kApart) {
#pragma unroll
        for (int i = 0; i < kQuads; i++) {
            in[i] = {0, 0, 0, 0};
            if (first + i * apart < last) in[i] = load_words(words + 4 * (first + i * apart));
        }
    }

    __device__ __forceinline__ bool are_all_there() const {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kQuads; i++) all &= are_there(in[i]);
        return all;
    }

    // Asks for those that were not there once more.
    __device__ __forceinline__ void ask_again(const uint32_t* words, uint32_t first, uint32_t apart = kApart) {
#pragma unroll
        for (int i = 0; i < kQuads; i++) {
            if (!are_there(in[i])) in[i] = load_words(words + 4 * (first + i * apart));
        }
    }

    // Asks for those again and again. All lanes of a warp call it.
    __device__ __forceinline__ void insist(const uint32_t* words, uint32_t first, uint32_t apart = kApart) {
        Patience patience;
        while (!__all_sync(~0u, are_all_there())) {
            patience.wait();
            ask_again(words, first, apart);
        }
    }

    __device__ __forceinline__ void await(const uint32_t* words, uint32_t first, uint32_t last, uint32_t apart = kApart) {
        ask(words, first, last, apart);
        insist(words, first, apart);
    }
};

}  // namespace
