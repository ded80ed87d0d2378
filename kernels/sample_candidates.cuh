// The candidates of a row: their keys and weights, the bins that they are split into, and how a block finds and sorts those of some.
#pragma once

#include "sample_block.cuh"

namespace {

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

}  // namespace
