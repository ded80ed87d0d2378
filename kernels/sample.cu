// The next token of every sequence from its logits: what src/sampler does, to the bit.
//
// A candidate is a key, rank << 32 | id: the rank falls as the logit rises and is 0 for what is not finite, so the order of
// keys is that of candidates, and the least key of all is a failure if there is one. Kept is always what comes up to some
// key. Weights are integers, so the order of sums, and the split into bins below, change nothing of the outcome.
//
// sample_scan   finishes a greedy row with the best key of all. Of others it notes the best key of every chunk of 128 logits. The
//               last block finishes a row if top_k is small: the best k are in chunks whose bests are among the best k of those.
// sample_weigh  sums the weights of the others over bins of about equal logits; the last block of a row marks the bins in which
//               top_p, min_p and the draw may end.
// sample_gather lists the candidates of those; the last block sorts them, and finishes the row.
// Where more candidates are near each other than a block can sort, `finish_by_digits` finds the ends digit by digit.
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

// The exponential of the sampler (src/sampler/exp.rs, whose test compares the constants), in the same operations.
constexpr double kLog2E = 1.442695040888963387;
constexpr double kLn2High = 6.931471803691238e-1;
constexpr double kLn2Low = 1.9082149292705877e-10;
constexpr double kWhole = 6755399441055744.0;

__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }

__device__ __forceinline__ double exp_exact(double x) {
    constexpr double c[12] = {1.0 / 2.0,       1.0 / 6.0,        1.0 / 24.0,        1.0 / 120.0,
                              1.0 / 720.0,     1.0 / 5040.0,     1.0 / 40320.0,     1.0 / 362880.0,
                              1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0};
    const double shifted = add(mul(x, kLog2E), kWhole);
    const double whole = add(shifted, -kWhole);
    const double r = add(add(x, -mul(whole, kLn2High)), -mul(whole, kLn2Low));
    const double r2 = mul(r, r), r4 = mul(r2, r2);
    const double low = add(add(c[0], mul(c[1], r)), mul(add(c[2], mul(c[3], r)), r2));
    const double middle = add(add(c[4], mul(c[5], r)), mul(add(c[6], mul(c[7], r)), r2));
    const double high = add(add(c[8], mul(c[9], r)), mul(add(c[10], mul(c[11], r)), r2));
    const double e = add(1.0, add(r, mul(add(low, mul(add(middle, mul(high, r4)), r4)), r2)));
    return mul(e, __longlong_as_double((__double_as_longlong(shifted) + 1023) << 52));
}

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

__device__ __forceinline__ bool is_finite(float logit) { return (__float_as_uint(logit) & 0x7F800000u) != 0x7F800000u; }

// A logit after the penalty; what is not finite stays so.
__device__ __forceinline__ float penalised(float logit) {
    if (!is_finite(logit)) return logit;
    logit = logit > 0.0f ? __fdiv_rn(logit, s.task.state.repeat_penalty) : __fmul_rn(logit, s.task.state.repeat_penalty);
    // A tiny or large penalty may leave the range of f32.
    return fminf(fmaxf(logit, -kLargest), kLargest);
}

__device__ __forceinline__ Key candidate(uint32_t id, float logit) {
    if (id >= s.task.n_vocab) return kOutside;
    return is_finite(logit) ? static_cast<Key>(rank_of(logit)) << 32 | id : id;
}

// A candidate, after the penalty if its bit of `window` is set.
__device__ __forceinline__ Key candidate(uint32_t id, float logit, uint32_t window) {
    return candidate(id, window >> id % 32 & 1 ? penalised(logit) : logit);
}

__device__ __forceinline__ uint64_t weight(Step step, Key key, float largest) {
    if (step == kTopK) return 1;
    double x = add(logit_of(key), -static_cast<double>(largest));
    if (step == kDraw && s.task.state.temperature != 1.0f) x = __ddiv_rn(x, s.task.state.temperature);
    return x < -28.0 ? 0 : __double2ull_rz(mul(1099511627776.0, exp_exact(x)));
}

// Calls `visit(key)` for the candidates of every chunk whose best key is `wanted`, in whole warps, kOutside among them.
template <typename Wanted, typename Visit>
__device__ __forceinline__ void visit_chunks(Wanted wanted, Visit visit) {
    constexpr int kAhead = 4;
    const uint32_t lane = threadIdx.x % kWarp, n_chunks = s.task.n_chunks;
    for (uint32_t first = threadIdx.x - lane; first < n_chunks; first += kThreads) {
        const uint32_t mine = first + lane;
        uint32_t todo = __ballot_sync(~0u, mine < n_chunks && wanted(__ldcg(&s.task.chunks[mine].best)));
        while (todo) {
            // Past the last one all ids are outside.
            uint32_t chunk[kAhead], words[kAhead];
            float logits[kAhead][kParts];
#pragma unroll
            for (int a = 0; a < kAhead; a++) {
                chunk[a] = todo ? first + __ffs(todo) - 1 : n_chunks;
                todo &= todo - 1;
                // Lane i has word i.
                const bool has_word = s.task.n_window > 0 && lane < kParts && chunk[a] < n_chunks;
                words[a] = has_word ? __ldcg(&s.task.chunks[chunk[a]].window[lane]) : 0;
#pragma unroll
                for (int i = 0; i < kParts; i++)
                    logits[a][i] = load_logit(s.task.logits, s.task.n_vocab, chunk[a] * kChunk + i * kWarp + lane);
            }
#pragma unroll
            for (int a = 0; a < kAhead; a++) {
                if (chunk[a] == n_chunks) break;
#pragma unroll 1
                for (int i = 0; i < kParts; i++) {
                    const uint32_t id = chunk[a] * kChunk + i * kWarp + lane;
                    const float logit = i == 0 ? logits[a][0] : i == 1 ? logits[a][1] : i == 2 ? logits[a][2] : logits[a][3];
                    visit(candidate(id, logit, __shfl_sync(~0u, words[a], i)));
                }
            }
        }
    }
}

// A split of the logits into ranges, from the largest logit down; any that is monotonic does.
struct Bins {
    float largest;
    float scale;

    __device__ Bins(float largest, float range) : largest(largest), scale(range > 0.0f ? (kBins - 2) / range : 0.0f) {}

    // 0 times infinity is no number and counts as far away.
    __device__ int of(float logit) const {
        return static_cast<int>(fminf(__fmul_rn(__fadd_rn(largest, -logit), scale), kBins - 1.0f));
    }
};

// Where a step ends: at the first candidate at which the sum is enough.
struct Goal {
    bool is_share;
    double share;
    uint64_t passed;

    // `total` is the sum over all that the step before left.
    __device__ Goal(Step step, uint64_t total) : is_share(step == kTopP), share(0.0), passed(s.task.state.top_k - 1) {
        if (step == kTopP) share = mul(s.task.state.top_p, __ull2double_rn(total));
        if (step == kDraw) passed = __umul64hi(total, random());
    }

    __device__ bool operator()(uint64_t sum) const { return is_share ? __ull2double_rn(sum) >= share : sum > passed; }

    // The generator of src/sampler/rng.rs.
    static __device__ uint64_t random() {
        constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;
        const uint64_t start = mix(s.task.state.seed + kGamma);
        return mix(start + (s.task.state.drawn + 1) * kGamma);
    }

    static __device__ uint64_t mix(uint64_t z) {
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
};

// The first bin at whose end the goal is met; kBins when there is none. Uses `row.sums`.
__device__ uint32_t first_bin(Step step, const Goal& enough) {
    if (threadIdx.x == 0) s.found = kBins;
    __syncthreads();
    const uint64_t* sums = s.row.sums[step];
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
        if (enough(sums[bin]) && (bin == 0 || !enough(sums[bin - 1]))) s.found = bin;
    __syncthreads();
    const uint32_t found = s.found;
    __syncthreads();
    return found;
}

// Element `at` of those in a thread's registers, without a place in memory.
template <int kLen, class T>
__device__ __forceinline__ T pick(const T* values, int at) {
    if constexpr (kLen == 1) {
        return values[0];
    } else {
        const T low = pick<kLen / 2>(values, at), high = pick<kLen / 2>(values + kLen / 2, at);
        return at & kLen / 2 ? high : low;
    }
}

// The best of a chunk of this thread.
__device__ __forceinline__ Key best_of(uint32_t chunk, bool noted) {
    return noted && chunk < kNoted ? s.row.bests[chunk] : __ldcg(&s.task.chunks[chunk].best);
}

// Adds the candidates of bins `from` to `to` to `row.keys`, as far as there is room, and counts them in `n_keys`, where no token is
// penalised: then a logit is a candidate as it is. `noted`: `row.bests` has what this thread has noted.
__device__ __forceinline__ void gather_plain(const Bins& bins, int from, int to, bool noted) {
    constexpr int kAhead = 4;
    const uint32_t lane = threadIdx.x % kWarp, n_chunks = s.task.n_chunks, n_vocab = s.task.n_vocab;
    for (uint32_t first = threadIdx.x - lane; first < n_chunks; first += kThreads) {
        const uint32_t mine = first + lane;
        uint32_t todo = __ballot_sync(~0u, mine < n_chunks && bins.of(logit_of(best_of(mine, noted))) <= to);
        while (todo) {
            float logits[kAhead * kParts];
            uint32_t ids[kAhead], takes = 0;
#pragma unroll
            for (int a = 0; a < kAhead; a++) {
                // Past the last one all ids are outside.
                ids[a] = (todo ? first + __ffs(todo) - 1 : n_chunks) * kChunk + lane;
                todo &= todo - 1;
#pragma unroll
                for (int i = 0; i < kParts; i++) logits[a * kParts + i] = load_logit(s.task.logits, n_vocab, ids[a] + i * kWarp);
            }
#pragma unroll
            for (int i = 0; i < kAhead * kParts; i++) {
                const int bin = bins.of(logits[i]);
                if (from <= bin && bin <= to && ids[i / kParts] + i % kParts * kWarp < n_vocab) takes |= 1u << i;
            }
            // Few lanes have any: not sixteen times what is done with one.
#pragma unroll 1
            for (; takes; takes &= takes - 1) {
                const uint32_t place = atomicAdd(&s.n_keys, 1);
                const int at = __ffs(takes) - 1;
                const uint32_t id = pick<kAhead>(ids, at / kParts) + at % kParts * kWarp;
                if (place < kSorted) s.row.keys[place] = candidate(id, pick<kAhead * kParts>(logits, at));
            }
        }
    }
}

// The same where some are.
__device__ __forceinline__ void gather_penalised(const Bins& bins, int from, int to) {
    const uint32_t lane = threadIdx.x % kWarp;
    const auto wanted = [&](Key best) { return bins.of(logit_of(best)) <= to; };
    visit_chunks(wanted, [&](Key key) {
        const int bin = key == kOutside ? kBins : bins.of(logit_of(key));
        const uint32_t takers = __ballot_sync(~0u, from <= bin && bin <= to);
        if (takers == 0) return;
        uint32_t at = 0;
        if (lane == 0) at = atomicAdd(&s.n_keys, __popc(takers));
        at = __shfl_sync(~0u, at, 0) + __popc(takers & ((1u << lane) - 1));
        if ((takers >> lane & 1) && at < kSorted) s.row.keys[at] = key;
    });
}

// Sorts up to kThreads of `row.keys`, all of them different: the place of a key is how many are smaller. Some threads share one.
__device__ void sort_few(uint32_t n) {
    uint32_t shift = 5;
    while (shift > 0 && n << shift > kThreads) shift--;
    const uint32_t share = 1u << shift, number = threadIdx.x >> shift, of_share = threadIdx.x & (share - 1);
    const Key key = number < n ? s.row.keys[number] : kOutside;
    uint32_t place = 0;
#pragma unroll 4
    for (uint32_t i = of_share; i < n; i += share) place += s.row.keys[i] < key;
    for (uint32_t step = share / 2; step > 0; step /= 2) place += __shfl_xor_sync(~0u, place, step);
    __syncthreads();
    if (number < n && of_share == 0) s.row.keys[place] = key;
    __syncthreads();
}

// The same of any number: a bitonic network over the next power of two. Pairs at most 32 apart are of one warp.
__device__ __noinline__ void sort_many(uint32_t n) {
    uint32_t len = 2;
    while (len < n) len *= 2;
    for (uint32_t i = n + threadIdx.x; i < len; i += kThreads) s.row.keys[i] = kOutside;
    __syncthreads();
    for (uint32_t size = 2; size <= len; size *= 2) {
        for (uint32_t step = size / 2; step > 0; step /= 2) {
            for (uint32_t pair = threadIdx.x; pair < len / 2; pair += kThreads) {
                const uint32_t i = 2 * pair - (pair & (step - 1));
                const Key a = s.row.keys[i], b = s.row.keys[i + step];
                if ((a > b) == ((i & size) == 0)) {
                    s.row.keys[i] = b;
                    s.row.keys[i + step] = a;
                }
            }
            if (step > kWarp || (step == 1 && size > kWarp)) __syncthreads(); else __syncwarp();
        }
    }
    __syncthreads();
}

// Sorts the first `n` of `row.keys`, which are complete; up to kSorted.
__device__ __forceinline__ void sort_keys(uint32_t n) {
    if (n <= kThreads) {
        sort_few(n);
    } else if (n <= kSorted) {
        sort_many(n);
    }
}

// Puts the candidates of bins `from` to `to` into `row.keys`, sorted. Returns how many there are: if more than kSorted, the
// keys are of no use.
__device__ __noinline__ uint32_t sort_bins(Bins bins, int from, int to, bool noted) {
    if (threadIdx.x == 0) s.n_keys = s.first_key = 0;
    __syncthreads();
    if (s.task.n_window == 0) {
        gather_plain(bins, from, to, noted);
    } else {
        gather_penalised(bins, from, to);
    }
    __syncthreads();
    const uint32_t n = s.n_keys;
    sort_keys(n);
    return n;
}

// The sum over the first `n` sorted candidates.
__device__ __noinline__ uint64_t sum_sorted(Step step, float largest, uint32_t n) {
    const Key* keys = s.row.keys + s.first_key;
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += kThreads) sum += weight(step, keys[i], largest);
    return block_sum(sum).total;
}

// The place of the first of `n` sorted candidates at which the step ends. Those before them weigh `base`, which does not end
// it; `total` is the goal's, or 0 for that of these candidates.
__device__ __noinline__ uint32_t first_sorted(Step step, float largest, uint32_t n, uint64_t base, uint64_t total) {
    // Each thread has a run of candidates.
    const uint32_t items = (n + kThreads - 1) / kThreads;
    const uint32_t first = threadIdx.x * items, end = min(first + items, n);
    const Key* keys = s.row.keys + s.first_key;
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t i = first; i < end; i++) sum += weight(step, keys[i], largest);
    const BlockSum of_block = block_sum(sum);
    uint64_t before = base + of_block.before;
    const Goal enough(step, total ? total : of_block.total);
    if (enough(before + sum) && !enough(before)) {
        uint32_t at = first;
#pragma unroll 1
        for (; at + 1 < end; at++) {
            before += weight(step, keys[at], largest);
            if (enough(before)) break;
        }
        s.found = at;
    }
    __syncthreads();
    const uint32_t found = s.found;
    __syncthreads();
    return found;
}

// The largest rank that min_p keeps.
__device__ uint32_t last_rank(float largest) {
    return rank_of(__double2float_ru(add(largest, s.task.state.ln_min_p)));
}

// How many of the first `n` sorted candidates are up to `rank`.
__device__ uint32_t count_up_to(uint32_t rank, uint32_t n) {
    uint32_t count = 0;
    for (uint32_t first = 0; first < n; first += kThreads) {
        const uint32_t at = first + threadIdx.x;
        count += __syncthreads_count(at < n && rank_of(s.row.keys[s.first_key + at]) <= rank);
    }
    return count;
}

__device__ void report(uint32_t outcome, uint32_t found) {
    const uint32_t serial = s.task.state.serial + 1;
    KigoSampled* place = s.task.outcomes + serial % KIGO_SAMPLE_OUTCOMES;
    // Each word says by its serial that it is there: on an H100 the driver keeps 20 KB each time a kernel with a fence of the system is loaded.
    const auto store = [serial](uint64_t& to, uint32_t value) {
        *reinterpret_cast<volatile uint64_t*>(&to) = static_cast<uint64_t>(serial) << 32 | value;
    };
    if (outcome & KIGO_SAMPLE_FAILED) store(place->found, found);
    store(place->outcome, outcome);
    s.task.sampler->serial = serial;
}

// Makes `token` the sequence's next.
__device__ void accept(uint32_t token) {
    if (threadIdx.x != 0) return;
    const KigoSampler& state = s.task.state;
    report(token, 0);
    s.task.row->token = token;
    s.task.row->position = s.task.position + 1;
    if (state.temperature != 0.0f) s.task.sampler->drawn = state.drawn + 1;
    s.task.sampler->n_tokens = state.n_tokens + 1;
    if (state.window) reinterpret_cast<uint32_t*>(state.window)[state.n_tokens % state.window_len] = token;
}

__device__ void fail(uint32_t index) {
    if (threadIdx.x == 0) report(KIGO_SAMPLE_FAILED | index, __float_as_uint(__ldcg(s.task.logits + index)));
}

// Finishes a row of which the first `n` sorted candidates, a thread has one, are kept by top_k.
__device__ void finish_few(float largest, uint32_t n) {
    const uint32_t place = threadIdx.x;
    const Key key = place < n ? s.row.keys[place] : kOutside;
#pragma unroll 1
    for (int next = s.task.takes(kTopP) ? kTopP : kDraw;; next++) {
        const Step step = static_cast<Step>(next);
        const uint64_t own = place < n ? weight(step, key, largest) : 0;
        auto [before, total] = block_sum(own);
        if (step == kDraw) {
            // The first sums stay as they are when min_p leaves out the last.
            n = __syncthreads_count(place < n && rank_of(key) <= last_rank(largest));
            if (place == n - 1) s.found_sum = before + own;
            __syncthreads();
            total = s.found_sum;
        }
        const Goal enough(step, total);
        if (place < n && enough(before + own) && !enough(before)) s.found = place;
        __syncthreads();
        n = s.found + 1;
        if (step == kDraw) break;
    }
    accept(id_of(s.row.keys[n - 1]));
}

// Adds a block's best candidate; the last block of the row takes the best of all. One thread calls it.
__device__ void finish_greedy(Key least) {
    KigoSampleWork* work = s.task.work;
    atomicMax(global(&work->complement), ~least);
    if (!counts_last(&work->scanned, gridDim.x)) return;
    const Key best = ~atomicExch(global(&work->complement), 0ull);
    if (rank_of(best) == 0) {
        fail(id_of(best));
    } else {
        accept(id_of(best));
    }
}

// The sum over all candidates up to `last`.
__device__ __noinline__ uint64_t sum_up_to(Step step, float largest, Key last) {
    uint64_t sum = 0;
    const auto wanted = [&](Key best) { return best <= last; };
    visit_chunks(wanted, [&](Key key) { sum += key <= last ? weight(step, key, largest) : 0; });
    return block_sum(sum).total;
}

// Of the candidates up to `last`, which weigh `total`, the first at which the step ends.
__device__ __noinline__ Key first_by_digits(Step step, float largest, Key last, uint64_t total) {
    constexpr int kItems = kDigits / kThreads;
    const Goal enough(step, total);
    uint64_t prefix = 0, base = 0;
    for (int shift = 32 + kIdBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
        s.digits.clear();
        __syncthreads();
        const auto wanted = [&](Key best) { return best <= last; };
        visit_chunks(wanted, [&](Key key) {
            const uint64_t dense = static_cast<uint64_t>(rank_of(key)) << kIdBits | id_of(key);
            const bool counts = key <= last && dense >> (shift + kDigitBits) == prefix;
            s.digits.add_warp(counts ? dense >> shift & (kDigits - 1) : 0, counts ? weight(step, key, largest) : 0);
        });
        __syncthreads();
        uint64_t sum = 0;
        for (int i = 0; i < kItems; i++) sum += s.digits.get(threadIdx.x * kItems + i);
        uint64_t before = base + block_sum(sum).before;
        for (int i = 0; i < kItems; i++) {
            const uint64_t after = before + s.digits.get(threadIdx.x * kItems + i);
            if (enough(after) && !enough(before)) {
                s.found = threadIdx.x * kItems + i;
                s.found_sum = before;
            }
            before = after;
        }
        __syncthreads();
        prefix = prefix << kDigitBits | s.found;
        base = s.found_sum;
        __syncthreads();
    }
    return prefix >> kIdBits << 32 | (prefix & ((1u << kIdBits) - 1));
}

// Finishes a row whatever its logits are, in up to seventeen passes over them.
__device__ __noinline__ void finish_by_digits(float largest) {
    Key last = kEnd;
    for (int step = kTopK; step < kSteps; step++) {
        if (!s.task.takes(step)) continue;
        if (step == kDraw) last = min(last, min(kEnd, static_cast<Key>(last_rank(largest)) << 32 | ~0u));
        const uint64_t total = step == kTopK ? 0 : sum_up_to(static_cast<Step>(step), largest, last);
        last = first_by_digits(static_cast<Step>(step), largest, last, total);
    }
    accept(id_of(last));
}

// Finishes a row whose best `top_k` can be sorted; bests are noted, and counts zero. `worst_best` is the rank of the worst of the chunks' bests.
__device__ void finish_top_k(Key best, uint32_t worst_best) {
    const float largest = logit_of(best);
    const Bins bins(largest, __fadd_rn(largest, -logit_of(worst_best)));
    const uint32_t k = s.task.takes(kTopK) ? s.task.state.top_k : s.task.n_vocab;
    int to = kBins - 1;
    if (k < s.task.n_chunks) {
        // The best k candidates are no worse than the k-th best of the chunks.
        for (uint32_t i = threadIdx.x; i < s.task.n_chunks; i += kThreads)
            atomicAdd(&s.row.counts[bins.of(logit_of(best_of(i, true)))], 1);
        __syncthreads();
        const uint32_t at = threadIdx.x * 2, first = s.row.counts[at], second = s.row.counts[at + 1];
        const uint64_t before = block_sum(first + second).before;
        if (before < k && before + first + second >= k) s.found = before + first >= k ? at : at + 1;
        __syncthreads();
        to = s.found;
    }
    uint32_t n = sort_bins(bins, 0, to, true);
    if (n > kSorted) return finish_by_digits(largest);
    n = min(n, k);
    if (n <= kThreads) return finish_few(largest, n);
    if (s.task.takes(kTopP)) n = first_sorted(kTopP, largest, n, 0, 0) + 1;
    n = count_up_to(last_rank(largest), n);
    accept(id_of(s.row.keys[first_sorted(kDraw, largest, n, 0, 0)]));
}

__device__ __forceinline__ uint64_t sum_before(int step, uint32_t bin) { return bin == 0 ? 0 : s.row.sums[step][bin - 1]; }

// The bin in which min_p ends; kBins if it leaves out nothing.
__device__ __forceinline__ uint32_t last_bin_of(const Bins& bins, float largest) {
    const uint32_t last = last_rank(largest);
    return last < rank_of(-kLargest) ? bins.of(logit_of(last)) : kBins;
}

// Whether top_k, which ends in `bin`, leaves out only candidates without weight: then it makes no difference.
__device__ __forceinline__ bool keeps_weights(uint32_t bin) {
    const uint64_t of_top_p = s.row.sums[kTopP][kBins - 1] - sum_before(kTopP, bin), drawn = s.row.sums[kDraw][kBins - 1] - sum_before(kDraw, bin);
    return (of_top_p | drawn) == 0;
}

// Sums the weights up to each bin, and marks the bins in which steps may end: where a step ended within a bin, the next has the
// sums before and after that.
__device__ void mark_bins(float largest, const Bins& bins) {
    const uint32_t at = threadIdx.x * 2;
    for (int step = 0; step < kSteps; step++) {
        uint64_t* sums = s.task.work->sums[step] + at;
        const uint64_t first = __ldcg(sums), second = __ldcg(sums + 1);
        const uint64_t before = block_sum(first + second).before;
        sums[0] = s.row.sums[step][at] = before + first;
        sums[1] = s.row.sums[step][at + 1] = before + first + second;
    }
    if (threadIdx.x < kBins / 32) s.marks[threadIdx.x] = 0;
    __syncthreads();
    // What is not marked is looked for by one block.
    constexpr uint32_t kMost = 16;
    const auto mark = [](uint32_t low, uint32_t high) {
        if (threadIdx.x > 0 || high - low >= kMost) return;
        for (uint32_t bin = low; bin <= high; bin++) s.marks[bin / 32] |= 1u << bin % 32;
    };
    uint32_t low = kBins - 1, high = kBins - 1;
    bool is_cut = false;
    for (int next = kTopK; next < kSteps; next++) {
        if (!s.task.takes(next)) continue;
        const Step step = static_cast<Step>(next);
        if (step == kDraw) {
            const uint32_t last = last_bin_of(bins, largest);
            if (last <= high) {
                mark(last, last);
                low = min(low, last);
                high = last;
                is_cut = true;
            }
        }
        const uint64_t most = s.row.sums[step][high], least = is_cut ? sum_before(step, low) : most;
        const uint32_t last = min(high, first_bin(step, Goal(step, most)));
        const uint32_t first = least == most ? last : min(last, first_bin(step, Goal(step, least)));
        if (step == kTopK && keeps_weights(last)) continue;
        mark(first, last);
        low = first;
        high = last;
        is_cut = true;
    }
    __syncthreads();
    if (threadIdx.x < kBins / 32) s.task.work->marks[threadIdx.x] = s.marks[threadIdx.x];
}

// Brings the candidates of a bin in order: where they are among `row.keys`, whose first `n_listed` are those of the marked bins;
// else in up to four passes over the chunks that reach into a bin. Returns how many there are, as `sort_bins` does.
__device__ uint32_t bring_bin(const Bins& bins, uint32_t bin, uint32_t& n_listed) {
    if (n_listed == 0 || !(s.marks[bin / 32] >> bin % 32 & 1)) {
        n_listed = 0;
        return sort_bins(bins, bin, bin, false);
    }
    if (threadIdx.x == 0) s.first_key = s.n_keys = 0;
    __syncthreads();
    const auto is_there = [&](uint32_t i) { return bins.of(logit_of(s.row.keys[i])) == static_cast<int>(bin); };
    for (uint32_t i = threadIdx.x; i < n_listed; i += kThreads) {
        if (!is_there(i)) continue;
        if (i == 0 || !is_there(i - 1)) s.first_key = i;
        if (i + 1 == n_listed || !is_there(i + 1)) s.n_keys = i + 1;
    }
    __syncthreads();
    return s.n_keys - s.first_key;
}

// Finishes a row with the sums up to its bins, and the list of candidates of the marked ones. The workspace is left zero.
__device__ void finish_by_bins(float largest, const Bins& bins) {
    KigoSampleWork* work = s.task.work;
    uint32_t n_listed = __ldcg(&work->n_keys);
    if (n_listed > kSorted) n_listed = 0;
    for (uint32_t i = threadIdx.x; i < n_listed; i += kThreads) s.row.keys[i] = __ldcg(&work->keys[i]);
    for (uint32_t i = threadIdx.x; i < kSteps * kBins; i += kThreads) {
        uint64_t* sum = &work->sums[0][i];
        s.row.sums[i / kBins][i % kBins] = __ldcg(sum);
        *sum = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) work->n_keys = 0;
    sort_keys(n_listed);

    // Kept are the bins before `end` and the first `n_end` of that bin, which is `sorted` then; or all of it.
    constexpr uint32_t kAll = ~0u, kNone = ~0u;
    uint32_t end = kBins - 1, n_end = kAll, sorted = kNone, n_sorted = 0;
    for (int next = kTopK; next < kSteps; next++) {
        if (!s.task.takes(next)) continue;
        const Step step = static_cast<Step>(next);
        uint32_t bin = kNone;
        uint64_t total = 0;
        if (step == kDraw) {
            const uint32_t last_bin = last_bin_of(bins, largest);
            if (last_bin <= end) {
                if (sorted != last_bin) n_sorted = bring_bin(bins, last_bin, n_listed);
                if (n_sorted > kSorted) return finish_by_digits(largest);
                n_end = count_up_to(last_rank(largest), last_bin == end ? min(n_end, n_sorted) : n_sorted);
                end = sorted = last_bin;
            }
        }
        if (step != kTopK)
            total = n_end == kAll ? s.row.sums[step][end] : sum_before(step, end) + sum_sorted(step, largest, n_end);
        bin = min(end, first_bin(step, Goal(step, total)));
        if (step == kTopK && keeps_weights(bin)) continue;
        if (sorted != bin) n_sorted = bring_bin(bins, bin, n_listed);
        if (n_sorted > kSorted) return finish_by_digits(largest);
        sorted = bin;
        const uint32_t found = first_sorted(step, largest, bin == end ? min(n_end, n_sorted) : n_sorted, sum_before(step, bin), total);
        if (step == kDraw) return accept(id_of(s.row.keys[s.first_key + found]));
        end = bin;
        n_end = found + 1;
    }
}

// The logits of a block of sample_weigh and sample_gather, of which a warp has a chunk, and how they are split.
struct WeighedSlice {
    Key best;
    Bins bins;
    uint32_t chunk;
    float logits[kParts];
    uint32_t words[kParts];

    __device__ explicit WeighedSlice(const KigoSample& p)
        : best(__ldcg(&s.task.work->best)), bins(bins_of(best)), chunk(blockIdx.x * kWarps + threadIdx.x / kWarp) {
        const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < kParts; i++) logits[i] = load_logit(row_logits(p), p.n_vocab, chunk * kChunk + i * kWarp + lane);
        uint4 window = make_uint4(0, 0, 0, 0);
        if (s.task.n_window && chunk < s.task.n_chunks) window = __ldcg(reinterpret_cast<const uint4*>(s.task.chunks[chunk].window));
        words[0] = window.x;
        words[1] = window.y;
        words[2] = window.z;
        words[3] = window.w;
    }

    // No weight reaches further down than e^-28.
    static __device__ Bins bins_of(Key best) {
        const float largest = logit_of(best), range = __fadd_rn(largest, -logit_of(__ldcg(&s.task.work->worst)));
        return Bins(largest, fminf(range, 28.0f * fmaxf(s.task.state.temperature, 1.0f)));
    }

    // Whether some logit was not finite.
    __device__ bool failed() const { return rank_of(best) == 0; }

    __device__ Key key(int i) const { return candidate(chunk * kChunk + i * kWarp + threadIdx.x % kWarp, logits[i], words[i]); }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) sample_scan(const __grid_constant__ KigoSample p) {
    // Rows and samplers were complete before the kernel ahead, which computes logits, let this one start.
    load_task(p);
    pdl_wait();
    pdl_launch();
    if (!s.task.is_sampled) return;
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const uint32_t n_window = s.task.n_window, n_chunks = s.task.n_chunks;
    const bool is_greedy = s.task.state.temperature == 0.0f;
    const float* row = row_logits(p);
    float next[kParts];
    const auto load = [&](uint32_t chunk) {
#pragma unroll
        for (int i = 0; i < kParts; i++) next[i] = load_logit(row, p.n_vocab, chunk * kChunk + i * kWarp + lane);
    };
    load(blockIdx.x * kWarps + warp);
    Key best = kOutside;
    for (uint32_t slice = blockIdx.x; slice * KIGO_SAMPLE_SLICE < p.n_vocab; slice += gridDim.x) {
        const uint32_t chunk = slice * kWarps + warp;
        float logits[kParts];
#pragma unroll
        for (int i = 0; i < kParts; i++) logits[i] = next[i];
        // Past the end nothing is loaded.
        load(chunk + gridDim.x * kWarps);
        uint32_t window[kParts];
        if (n_window) {
            const uint32_t* tokens = reinterpret_cast<const uint32_t*>(s.task.state.window);
            __syncthreads();
            if (threadIdx.x < KIGO_SAMPLE_SLICE / 32) s.window[threadIdx.x] = 0;
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < n_window; i += kThreads) {
                const uint32_t at = __ldcg(tokens + i) - slice * KIGO_SAMPLE_SLICE;
                if (at < KIGO_SAMPLE_SLICE) atomicOr(&s.window[at / 32], 1u << at % 32);
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < kParts; i++) {
                window[i] = s.window[warp * kParts + i];
                if (window[i] >> lane & 1) logits[i] = penalised(logits[i]);
            }
        }
        Key least = kOutside;
        uint32_t worst = 0;
#pragma unroll
        for (int i = 0; i < kParts; i++) {
            const Key key = candidate(chunk * kChunk + i * kWarp + lane, logits[i]);
            least = min(least, key);
            if (key != kOutside) worst = max(worst, rank_of(key));
        }
        best = min(best, least);
        if (is_greedy) continue;
        least = warp_min(least);
        worst = __reduce_max_sync(~0u, worst);
        if (lane == 0 && chunk < n_chunks) {
            KigoSampleChunk* noted = s.task.chunks + chunk;
            noted->best = least;
            noted->worst = worst;
            if (n_window) *reinterpret_cast<uint4*>(noted->window) = make_uint4(window[0], window[1], window[2], window[3]);
        }
    }
    if (is_greedy) {
        best = block_min(best);
        if (threadIdx.x == 0) finish_greedy(best);
        return;
    }
    // Before the barriers of what follows.
    for (uint32_t i = threadIdx.x; i < kBins; i += kThreads) s.row.counts[i] = 0;
    if (!is_last(&s.task.work->scanned)) return;

    best = kOutside;
    uint32_t worst_best = 0, worst = 0;
    for (uint32_t i = threadIdx.x; i < n_chunks; i += kThreads) {
        const Key key = __ldcg(&s.task.chunks[i].best);
        if (i < kNoted) s.row.bests[i] = key;
        best = min(best, key);
        worst_best = max(worst_best, rank_of(key));
        if (s.task.state.weigh) worst = max(worst, __ldcg(&s.task.chunks[i].worst));
    }
    best = block_min(best);
    if (rank_of(best) == 0) {
        fail(id_of(best));
    } else if (!s.task.state.weigh) {
        finish_top_k(best, block_max(worst_best));
    } else {
        worst = block_max(worst);
        if (threadIdx.x == 0) s.task.work->worst = worst;
    }
    if (threadIdx.x == 0) s.task.work->best = best;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) sample_weigh(const __grid_constant__ KigoSample p) {
    load_task(p);
    pdl_wait();
    pdl_launch();
    if (!s.task.is_sampled || !s.task.state.weigh) return;
    const WeighedSlice slice(p);
    if (slice.failed()) return;
    const Bins& bins = slice.bins;
    const float largest = bins.largest;
    for (int step = 0; step < kSteps; step++) s.slice[step].clear();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kParts; i++) {
        const Key key = slice.key(i);
        const bool inside = key != kOutside;
        const int bin = inside ? bins.of(logit_of(key)) : 0;
        if (s.task.takes(kTopK)) s.slice[kTopK].add_warp(bin, inside);
        if (s.task.takes(kTopP)) s.slice[kTopP].add_warp(bin, inside ? weight(kTopP, key, largest) : 0);
        s.slice[kDraw].add_warp(bin, inside ? weight(kDraw, key, largest) : 0);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kBins * kSteps; i += kThreads) {
        const uint64_t sum = s.slice[i / kBins].get(i % kBins);
        if (sum) atomicAdd(global(&s.task.work->sums[i / kBins][i % kBins]), sum);
    }
    if (is_last(&s.task.work->weighed)) mark_bins(largest, bins);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) sample_gather(const __grid_constant__ KigoSample p) {
    load_task(p);
    pdl_wait();
    pdl_launch();
    if (!s.task.is_sampled || !s.task.state.weigh) return;
    KigoSampleWork* work = s.task.work;
    const WeighedSlice slice(p);
    if (slice.failed()) return;
    if (threadIdx.x < kBins / 32) s.marks[threadIdx.x] = __ldcg(&work->marks[threadIdx.x]);
    if (threadIdx.x == 0) s.n_keys = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kParts; i++) {
        const Key key = slice.key(i);
        const int bin = key == kOutside ? 0 : slice.bins.of(logit_of(key));
        if (key != kOutside && (s.marks[bin / 32] >> bin % 32 & 1)) s.row.keys[atomicAdd(&s.n_keys, 1)] = key;
    }
    __syncthreads();
    const uint32_t n = s.n_keys;
    if (threadIdx.x == 0 && n > 0) s.found = atomicAdd(global(&work->n_keys), n);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n && s.found + i < kSorted; i += kThreads) __stcg(&work->keys[s.found + i], s.row.keys[i]);
    if (is_last(&work->gathered)) finish_by_bins(slice.bins.largest, slice.bins);
}
