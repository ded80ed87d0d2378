// What a block of the samplers has in shared memory, and what its threads do together.
#pragma once

#include "common.cuh"

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = KIGO_SAMPLE_CHUNK;
constexpr int kParts = kChunk / kWarp;
constexpr int kBins = KIGO_SAMPLE_BINS;
constexpr int kSorted = KIGO_SAMPLE_SORTED;
constexpr uint32_t kNoted = 2048;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kIdBits = 23;

static_assert(KIGO_SAMPLE_SLICE == kWarps * kChunk, "a warp scans one chunk");
static_assert(32 + kIdBits == 5 * kDigitBits, "five digits are a key without the idle bits of the id");

// The steps that end at some candidate, and what each sums up: heads, weights at temperature 1, weights at the sequence's.
enum Step { kTopK, kTopP, kDraw };
constexpr int kSteps = 3;

using Key = uint64_t;
// What comes up to this is everything; what is outside the vocabulary has the key after it.
constexpr Key kEnd = ~0ull - 1;
constexpr Key kOutside = ~0ull;
constexpr float kLargest = 3.402823466e38f;

__device__ __forceinline__ uint32_t rank_of(float logit) {
    // Adding 0 turns -0 into 0, which it has to equal.
    const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    return bits >> 31 ? bits : ~bits ^ 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t rank) {
    return __uint_as_float(rank >> 31 ? rank : ~rank ^ 0x80000000u);
}

__device__ __forceinline__ uint32_t rank_of(Key key) { return static_cast<uint32_t>(key >> 32); }
__device__ __forceinline__ uint32_t id_of(Key key) { return static_cast<uint32_t>(key); }
__device__ __forceinline__ float logit_of(Key key) { return logit_of(rank_of(key)); }

// A row's logits and its state.
struct Task {
    const float* logits;
    KigoRow* row;
    KigoSampler* sampler;
    KigoSampled* outcomes;
    KigoSampleWork* work;
    KigoSampleChunk* chunks;
    uint32_t n_vocab;
    uint32_t n_chunks;
    uint32_t position;
    // Tokens of the window; none when the penalty is off.
    uint32_t n_window;
    bool is_sampled;
    // Of the sequence, before this token.
    alignas(uint4) KigoSampler state;

    __device__ bool takes(int step) const {
        return step == kTopK ? state.top_k > 0 && state.top_k < n_vocab : step == kDraw || state.top_p < 1.0f;
    }
};

// A histogram of 64-bit sums: shared memory adds 32 bits at a time.
template <int kLen>
struct Sums {
    uint32_t low[kLen];
    uint32_t high[kLen];

    __device__ void clear() {
        for (int i = threadIdx.x; i < kLen; i += kThreads) low[i] = high[i] = 0;
    }

    __device__ uint64_t get(int i) const { return static_cast<uint64_t>(high[i]) << 32 | low[i]; }

    // Adds each lane's `value` at `i`; the whole warp calls it. Equal places, which many equal logits have, are added first.
    __device__ void add_warp(int i, uint64_t value) {
        int same;
        __match_all_sync(~0u, i, &same);
        if (same) {
            // 32 halves of a weight of 2^40 fit into 32 bits.
            const uint64_t upper = __reduce_add_sync(~0u, static_cast<uint32_t>(value >> 20));
            value = (upper << 20) + __reduce_add_sync(~0u, static_cast<uint32_t>(value & 0xFFFFFu));
            if (threadIdx.x % kWarp != 0) value = 0;
        }
        if (value == 0) return;
        const uint32_t added = static_cast<uint32_t>(value);
        const uint32_t carry = atomicAdd(&low[i], added) > ~added;
        const uint32_t upper = static_cast<uint32_t>(value >> 32) + carry;
        if (upper > 0) atomicAdd(&high[i], upper);
    }
};

// Shared memory of a block.
struct Shared {
    Task task;
    union {
        // While a slice is scanned: which of its ids are in the window.
        uint32_t window[KIGO_SAMPLE_SLICE / 32];
        // While a slice is weighed.
        Sums<kBins> slice[kSteps];
        // While the last block finishes a row: candidates, and the sums up to each bin; or, where top_k is small, the bests of the
        // first chunks, which each thread has noted for itself, and how many of all are in each bin.
        struct {
            Key keys[kSorted];
            union {
                uint64_t sums[kSteps][kBins];
                struct {
                    Key bests[kNoted];
                    uint32_t counts[kBins];
                };
            };
        } row;
        Sums<kDigits> digits;
    };
    // Of the block's functions.
    Key warps[kWarps];
    uint64_t found_sum;
    uint32_t found;
    uint32_t n_keys;
    // Where the keys of the bin that is looked at begin among `row.keys`.
    uint32_t first_key;
    uint32_t marks[kBins / 32];
    bool last;
};

__shared__ Shared s;

__device__ __forceinline__ const float* row_logits(const KigoSample& p) {
    return reinterpret_cast<const float*>(p.logits) + static_cast<size_t>(blockIdx.y) * p.n_vocab;
}

__device__ __forceinline__ float load_logit(const float* logits, uint32_t n_vocab, uint32_t id) {
    return id < n_vocab ? __ldcg(logits + id) : 0.0f;
}

// Loads the task of the blocks (x, blockIdx.y).
__device__ void load_task(const KigoSample& p) {
    if (threadIdx.x == 0) {
        const uint32_t at = blockIdx.y;
        Task& task = s.task;
        KigoRow* rows = reinterpret_cast<KigoRow*>(p.rows);
        task.row = rows + (p.row_of ? __ldcg(reinterpret_cast<const uint32_t*>(p.row_of) + at) : at);
        task.position = __ldcg(&task.row->position);
        const uint32_t slot = __ldcg(&task.row->slot);
        task.is_sampled = slot != KIGO_NO_SLOT;
        if (task.is_sampled) {
            task.sampler = reinterpret_cast<KigoSampler*>(p.samplers) + slot;
            for (int i = 0; i < static_cast<int>(sizeof(KigoSampler) / sizeof(uint4)); i++)
                reinterpret_cast<uint4*>(&task.state)[i] = __ldcg(reinterpret_cast<const uint4*>(task.sampler) + i);
            task.n_window = task.state.window ? min(task.state.n_tokens, task.state.window_len) : 0;
            task.logits = row_logits(p);
            task.outcomes = reinterpret_cast<KigoSampled*>(p.outcomes) + static_cast<size_t>(slot) * KIGO_SAMPLE_OUTCOMES;
            task.work = reinterpret_cast<KigoSampleWork*>(p.work + at * p.work_bytes);
            task.chunks = reinterpret_cast<KigoSampleChunk*>(task.work + 1);
            task.n_vocab = p.n_vocab;
            task.n_chunks = (p.n_vocab + kChunk - 1) / kChunk;
        }
    }
    __syncthreads();
}

// What one block does once waits for its instructions, each of which is fetched from afar: what it does more than once is a function,
// and a value of each warp is a lane's, not a loop's.

// The least of the warp's values, to every lane.
__device__ __forceinline__ Key warp_min(Key value) {
    const uint32_t upper = __reduce_min_sync(~0u, rank_of(value));
    const uint32_t lower = __reduce_min_sync(~0u, rank_of(value) == upper ? id_of(value) : ~0u);
    return static_cast<Key>(upper) << 32 | lower;
}

// The least of the block's values, to every thread.
__device__ __noinline__ Key block_min(Key value) {
    value = warp_min(value);
    if (threadIdx.x % kWarp == 0) s.warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_min(s.warps[threadIdx.x % kWarps]);
    __syncthreads();
    return value;
}

// The largest of the block's values, to every thread.
__device__ __forceinline__ uint32_t block_max(uint32_t value) { return ~rank_of(block_min(static_cast<Key>(~value) << 32)); }

// The sum of the values of the warp's lanes up to this one.
__device__ __forceinline__ uint64_t warp_sum_up_to(uint64_t value) {
#pragma unroll 1
    for (uint32_t step = 1; step < kWarp; step *= 2) {
        const uint64_t other = __shfl_up_sync(~0u, value, step);
        if (threadIdx.x % kWarp >= step) value += other;
    }
    return value;
}

// The sums of the values of the threads before this one, and of all.
struct BlockSum {
    uint64_t before;
    uint64_t total;
};

__device__ __noinline__ BlockSum block_sum(uint64_t value) {
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const uint64_t sum = warp_sum_up_to(value);
    if (lane == kWarp - 1) s.warps[warp] = sum;
    __syncthreads();
    const uint64_t of_warps = warp_sum_up_to(lane < kWarps ? s.warps[lane] : 0);
    const uint64_t total = __shfl_sync(~0u, of_warps, kWarps - 1), before = __shfl_sync(~0u, of_warps, max(warp, 1u) - 1);
    __syncthreads();
    return {sum - value + (warp > 0 ? before : 0), total};
}

// A number in global memory, for atomics: without knowing where it is they would bring code for shared memory along.
template <class T>
__device__ __forceinline__ T* global(T* at) {
    __builtin_assume(__isGlobal(at));
    return at;
}

__device__ __forceinline__ unsigned long long* global(Key* at) { return global(reinterpret_cast<unsigned long long*>(at)); }

// Whether this is the last block of the row to come here; it then sees what the others wrote.
__device__ bool is_last(uint32_t* counter) {
    __syncthreads();
    if (threadIdx.x == 0) s.last = counts_last(counter, gridDim.x);
    __syncthreads();
    return s.last;
}

}  // namespace
