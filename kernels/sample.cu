// The next token of every sequence from its logits: what src/sampler does, to the bit.
//
// A candidate is a key, rank << 32 | id: the rank falls as the logit rises and is 0 for what is not finite, so the order of
// keys is that of candidates, and the least key of all is a failure if there is one. Kept is always what comes up to some
// key. Weights are integers, so the order of sums, and the split into bins below, change nothing of the outcome.
//
// sample_scan   notes the best key of every chunk of 128 logits. The last block of a row finishes it if it is greedy, or if
//               top_k is small: the best k are in chunks whose bests are among the best k of those.
// sample_weigh  finishes the others: sums the weights over bins of about equal logits; the last block of a row looks up the
//               bins in which top_p, min_p and the draw end, and sorts only those.
// Where more candidates are near each other than a block can sort, `finish_by_digits` finds the ends digit by digit.
#include "common.cuh"

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = KIGO_SAMPLE_CHUNK;
constexpr int kParts = kChunk / kWarp;
constexpr int kBins = KIGO_SAMPLE_BINS;
constexpr int kSorted = KIGO_SAMPLE_SORTED;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kIdBits = 23;

static_assert(KIGO_SAMPLE_SLICE == kWarps * kChunk, "a warp scans one chunk");
static_assert(32 + kIdBits == 5 * kDigitBits, "five digits are a key without the idle bits of the id");

using Key = uint64_t;
// What comes up to this is everything; what is outside the vocabulary has the key after it.
constexpr Key kEnd = ~0ull - 1;
constexpr Key kOutside = ~0ull;

// The exponential of the sampler (src/sampler/exp.rs, whose test compares the constants), in the same operations.
constexpr double kLog2E = 1.442695040888963387;
constexpr double kLn2High = 6.93147180369123816490e-01;
constexpr double kLn2Low = 1.90821492927058770002e-10;
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

__device__ __forceinline__ uint64_t weight(Key key, float largest, float temperature) {
    double x = add(logit_of(key), -static_cast<double>(largest));
    if (temperature != 1.0f) x = __ddiv_rn(x, temperature);
    return x < -28.0 ? 0 : __double2ull_rz(mul(1099511627776.0, exp_exact(x)));
}

// A row's logits, its state, and what the parameters say.
struct Task {
    const float* logits;
    KigoRow* row;
    KigoSampler* sampler;
    KigoSampled* outcomes;
    KigoSampleWork* work;
    KigoSampleChunk* chunks;
    uint32_t n_vocab;
    uint32_t n_chunks;
    uint32_t top_k;
    float temperature;
    float top_p;
    float penalty;
    // Tokens of the window; none when the penalty is off.
    uint32_t n_window;
    // Whether sample_weigh finishes it.
    bool weigh;
};

__device__ __forceinline__ const float* row_logits(const KigoSample& p) {
    return reinterpret_cast<const float*>(p.logits) + static_cast<size_t>(blockIdx.y) * p.n_vocab;
}

__device__ __forceinline__ float load_logit(const float* logits, uint32_t n_vocab, uint32_t id) {
    return id < n_vocab ? __ldcg(logits + id) : 0.0f;
}

// The work of the blocks (x, blockIdx.y); false when the row is not sampled.
__device__ bool load_task(const KigoSample& p, Task& task) {
    const uint32_t at = blockIdx.y;
    task.row = reinterpret_cast<KigoRow*>(p.rows) + (p.row_of ? __ldcg(reinterpret_cast<const uint32_t*>(p.row_of) + at) : at);
    const uint32_t slot = __ldcg(&task.row->slot);
    if (slot == KIGO_NO_SLOT) return false;
    task.logits = row_logits(p);
    task.sampler = reinterpret_cast<KigoSampler*>(p.samplers) + slot;
    task.outcomes = reinterpret_cast<KigoSampled*>(p.outcomes) + static_cast<size_t>(slot) * KIGO_SAMPLE_OUTCOMES;
    task.work = reinterpret_cast<KigoSampleWork*>(p.work + at * p.work_bytes);
    task.chunks = reinterpret_cast<KigoSampleChunk*>(task.work + 1);
    task.n_vocab = p.n_vocab;
    task.n_chunks = (p.n_vocab + kChunk - 1) / kChunk;
    task.top_k = __ldcg(&task.sampler->top_k);
    task.temperature = __ldcg(&task.sampler->temperature);
    task.top_p = __ldcg(&task.sampler->top_p);
    task.weigh = __ldcg(&task.sampler->weigh);
    task.penalty = __ldcg(&task.sampler->repeat_penalty);
    task.n_window = __ldcg(&task.sampler->window) ? min(__ldcg(&task.sampler->n_tokens), __ldcg(&task.sampler->window_len)) : 0;
    return true;
}

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
    union {
        // While a slice is scanned: which of its ids are in the window.
        uint32_t window[KIGO_SAMPLE_SLICE / 32];
        // While a slice is weighed.
        struct {
            Sums<kBins> sums[2];
            uint32_t counts[kBins];
        } slice;
        // While the last block finishes a row: candidates, and sums over the bins up to each.
        struct {
            Key keys[kSorted];
            uint64_t sums[2][kBins];
            uint32_t counts[kBins];
        } row;
        Sums<kDigits> digits;
    };
    Key warps[kWarps];
    uint32_t n_keys;
    int found;
    uint64_t found_sum;
    bool last;
};

// The least of the block's values, to every thread.
__device__ Key block_min(Shared& s, Key value) {
    const uint32_t upper = __reduce_min_sync(~0u, rank_of(value));
    const uint32_t lower = __reduce_min_sync(~0u, rank_of(value) == upper ? id_of(value) : ~0u);
    if (threadIdx.x % kWarp == 0) s.warps[threadIdx.x / kWarp] = static_cast<Key>(upper) << 32 | lower;
    __syncthreads();
    Key least = s.warps[0];
    for (int i = 1; i < kWarps; i++) least = min(least, s.warps[i]);
    __syncthreads();
    return least;
}

// The sum of the values of the threads before this one; `total` becomes that of all.
__device__ uint64_t block_sum_before(Shared& s, uint64_t value, uint64_t& total) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint64_t sum = value;
    for (int step = 1; step < kWarp; step *= 2) {
        const uint64_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == kWarp - 1) s.warps[warp] = sum;
    __syncthreads();
    uint64_t before = sum - value;
    total = 0;
    for (int i = 0; i < kWarps; i++) {
        if (i == warp) before += total;
        total += s.warps[i];
    }
    __syncthreads();
    return before;
}

// Whether this is the last block of the row to come here; it then sees what the others wrote.
__device__ bool is_last(Shared& s, uint32_t* counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        s.last = atomicAdd(counter, 1) == gridDim.x - 1;
        if (s.last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return s.last;
}

// One part of a chunk: this lane's candidate, after the penalty.
__device__ __forceinline__ Key candidate(const Task& task, uint32_t id, float logit, uint32_t window) {
    if (id >= task.n_vocab) return kOutside;
    if ((__float_as_uint(logit) & 0x7F800000u) == 0x7F800000u) return id;
    if (window >> id % 32 & 1) {
        logit = logit > 0.0f ? __fdiv_rn(logit, task.penalty) : __fmul_rn(logit, task.penalty);
        // A tiny or large penalty may leave the range of f32.
        logit = fminf(fmaxf(logit, -3.402823466e38f), 3.402823466e38f);
    }
    return static_cast<Key>(rank_of(logit)) << 32 | id;
}

// Calls `visit(key)` for the candidates of every chunk whose best key is `wanted`, in whole warps, kOutside among them.
template <typename Wanted, typename Visit>
__device__ void visit_chunks(const Task& task, Wanted wanted, Visit visit) {
    constexpr int kAhead = 4;
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (uint32_t first = warp * kWarp; first < task.n_chunks; first += kThreads) {
        const uint32_t mine = first + lane;
        uint32_t todo = __ballot_sync(~0u, mine < task.n_chunks && wanted(__ldcg(&task.chunks[mine].best)));
        while (todo) {
            // Past the last one all ids are outside.
            uint32_t chunk[kAhead];
            float logits[kAhead][kParts];
            uint4 window[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; a++) {
                chunk[a] = todo ? first + __ffs(todo) - 1 : task.n_chunks;
                todo &= todo - 1;
                window[a] = make_uint4(0, 0, 0, 0);
                if (task.n_window && chunk[a] < task.n_chunks)
                    window[a] = __ldcg(reinterpret_cast<const uint4*>(task.chunks[chunk[a]].window));
#pragma unroll
                for (int i = 0; i < kParts; i++) logits[a][i] = load_logit(task.logits, task.n_vocab, chunk[a] * kChunk + i * kWarp + lane);
            }
#pragma unroll
            for (int a = 0; a < kAhead; a++) {
                if (chunk[a] == task.n_chunks) break;
                const uint32_t words[kParts] = {window[a].x, window[a].y, window[a].z, window[a].w};
#pragma unroll
                for (int i = 0; i < kParts; i++) {
                    const uint32_t id = chunk[a] * kChunk + i * kWarp + lane;
                    visit(candidate(task, id, logits[a][i], words[i]));
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

    // What is no number comes of 0 times infinity, and counts as far away.
    __device__ int of(float logit) const {
        return static_cast<int>(fminf(__fmul_rn(__fadd_rn(largest, -logit), scale), kBins - 1.0f));
    }

    __device__ int of(Key key) const { return of(logit_of(key)); }
};

// The first bin for which `enough(bin)` holds, which is then true for all after it; kBins when there is none.
template <typename Enough>
__device__ int first_bin(Shared& s, Enough enough) {
    if (threadIdx.x == 0) s.found = kBins;
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
        if (enough(bin) && (bin == 0 || !enough(bin - 1))) s.found = bin;
    __syncthreads();
    const int found = s.found;
    __syncthreads();
    return found;
}

// Puts the candidates of bins `from` to `to` into `row.keys`, sorted. Returns how many there are: if more than kSorted, the
// keys are of no use.
__device__ uint32_t sort_bins(const Task& task, Shared& s, const Bins& bins, int from, int to) {
    if (threadIdx.x == 0) s.n_keys = 0;
    __syncthreads();
    const uint32_t lane = threadIdx.x % kWarp;
    const auto wanted = [&](Key best) { return bins.of(best) <= to; };
    visit_chunks(task, wanted, [&](Key key) {
        const int bin = key == kOutside ? kBins : bins.of(key);
        const uint32_t takers = __ballot_sync(~0u, from <= bin && bin <= to);
        if (takers == 0) return;
        uint32_t at = 0;
        if (lane == 0) at = atomicAdd(&s.n_keys, __popc(takers));
        at = __shfl_sync(~0u, at, 0) + __popc(takers & ((1u << lane) - 1));
        if ((takers >> lane & 1) && at < kSorted) s.row.keys[at] = key;
    });
    __syncthreads();
    const uint32_t n = s.n_keys;
    if (n > kSorted) return n;
    // A bitonic network over the next power of two. Pairs at most 32 apart are of one warp.
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
            const bool apart = step > kWarp || (step == 1 && size > kWarp);
            if (apart) __syncthreads(); else __syncwarp();
        }
    }
    __syncthreads();
    return n;
}

// The sums of weights along sorted candidates, four a thread.
struct Running {
    static constexpr int kItems = kSorted / kThreads;
    uint64_t sums[kItems];
    uint64_t before;
    uint64_t total;

    // Of the first `n` in `row.keys`, after candidates that weigh `base` together.
    __device__ Running(Shared& s, uint32_t n, uint64_t base, float largest, float temperature) {
        uint64_t sum = 0;
#pragma unroll
        for (int i = 0; i < kItems; i++) {
            const uint32_t at = threadIdx.x * kItems + i;
            if (at < n) sum += weight(s.row.keys[at], largest, temperature);
            sums[i] = sum;
        }
        before = base + block_sum_before(s, sum, total);
        total += base;
#pragma unroll
        for (int i = 0; i < kItems; i++) sums[i] += before;
    }

    // The first at which the sum is `enough`, which the total is and `base` is not.
    template <typename Enough>
    __device__ uint32_t first(Shared& s, Enough enough) const {
        uint64_t previous = before;
#pragma unroll
        for (int i = 0; i < kItems; i++) {
            if (enough(sums[i]) && !enough(previous)) s.found = threadIdx.x * kItems + i;
            previous = sums[i];
        }
        __syncthreads();
        const uint32_t found = s.found;
        __syncthreads();
        return found;
    }
};

// What top_p asks for: a share of the total.
struct Share {
    double wanted;

    __device__ Share(float top_p, uint64_t total) : wanted(mul(top_p, __ull2double_rn(total))) {}
    __device__ bool operator()(uint64_t sum) const { return __ull2double_rn(sum) >= wanted; }
};

// What a draw asks for: to pass a random share of the total. The generator is that of src/sampler/rng.rs.
struct Draw {
    uint64_t passed;

    __device__ Draw(const Task& task, uint64_t total) {
        constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;
        const uint64_t start = mix(__ldcg(&task.sampler->seed) + kGamma);
        passed = __umul64hi(total, mix(start + (__ldcg(&task.sampler->drawn) + 1) * kGamma));
    }

    __device__ bool operator()(uint64_t sum) const { return sum > passed; }

    static __device__ uint64_t mix(uint64_t z) {
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
};

// The largest rank that min_p keeps, next to `largest`.
__device__ uint32_t last_rank(const Task& task, float largest) {
    return rank_of(__double2float_ru(add(largest, __ldcg(&task.sampler->ln_min_p))));
}

__device__ void report(const Task& task, uint32_t outcome, uint32_t found) {
    const uint32_t serial = __ldcg(&task.sampler->serial) + 1;
    task.sampler->serial = serial;
    KigoSampled* place = task.outcomes + serial % KIGO_SAMPLE_OUTCOMES;
    if (outcome & KIGO_SAMPLE_FAILED) {
        place->found = found;
        __threadfence_system();
    }
    *reinterpret_cast<volatile uint64_t*>(&place->outcome) = static_cast<uint64_t>(serial) << 32 | outcome;
}

// Makes `token` the sequence's next.
__device__ void accept(const Task& task, uint32_t token) {
    if (threadIdx.x != 0) return;
    task.row->token = token;
    task.row->position = __ldcg(&task.row->position) + 1;
    if (task.temperature != 0.0f) task.sampler->drawn = __ldcg(&task.sampler->drawn) + 1;
    const uint32_t n_tokens = __ldcg(&task.sampler->n_tokens);
    task.sampler->n_tokens = n_tokens + 1;
    const uint64_t window = __ldcg(&task.sampler->window);
    if (window) reinterpret_cast<uint32_t*>(window)[n_tokens % __ldcg(&task.sampler->window_len)] = token;
    report(task, token, 0);
}

__device__ void fail(const Task& task, uint32_t index) {
    if (threadIdx.x != 0) return;
    report(task, KIGO_SAMPLE_FAILED | index, __float_as_uint(__ldcg(task.logits + index)));
}

// What is summed: heads, weights at temperature 1, weights at the sequence's.
enum class Kind { kCount, kProbability, kTempered };

struct Weigh {
    Kind kind;
    float largest;
    float temperature;

    __device__ uint64_t operator()(Key key) const {
        if (kind == Kind::kCount) return 1;
        return weight(key, largest, kind == Kind::kProbability ? 1.0f : temperature);
    }
};

// The sum over all candidates up to `end`.
__device__ uint64_t sum_up_to(const Task& task, Shared& s, Key end, Weigh weigh) {
    uint64_t sum = 0, total;
    const auto wanted = [&](Key best) { return best <= end; };
    visit_chunks(task, wanted, [&](Key key) { sum += key <= end ? weigh(key) : 0; });
    block_sum_before(s, sum, total);
    return total;
}

// Of the candidates up to `end`, the first at which the sum of all up to it is `enough`, which the sum of all is.
template <typename Enough>
__device__ Key first_by_digits(const Task& task, Shared& s, Key end, Weigh weigh, Enough enough) {
    constexpr int kItems = kDigits / kThreads;
    uint64_t prefix = 0, base = 0;
    for (int shift = 32 + kIdBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
        s.digits.clear();
        __syncthreads();
        visit_chunks(task, [&](Key best) { return best <= end; }, [&](Key key) {
            const uint64_t dense = static_cast<uint64_t>(rank_of(key)) << kIdBits | id_of(key);
            const bool counts = key <= end && dense >> (shift + kDigitBits) == prefix;
            s.digits.add_warp(counts ? static_cast<int>(dense >> shift & (kDigits - 1)) : 0, counts ? weigh(key) : 0);
        });
        __syncthreads();
        uint64_t sums[kItems], sum = 0, total;
        for (int i = 0; i < kItems; i++) sums[i] = sum += s.digits.get(threadIdx.x * kItems + i);
        uint64_t previous = base + block_sum_before(s, sum, total);
        const uint64_t before = previous;
        for (int i = 0; i < kItems; i++) {
            if (enough(before + sums[i]) && !enough(previous)) {
                s.found = threadIdx.x * kItems + i;
                s.found_sum = previous;
            }
            previous = before + sums[i];
        }
        __syncthreads();
        prefix = prefix << kDigitBits | static_cast<uint32_t>(s.found);
        base = s.found_sum;
        __syncthreads();
    }
    return prefix >> kIdBits << 32 | (prefix & ((1u << kIdBits) - 1));
}

// Finishes a row whatever its logits are, in up to fifteen passes over them.
__device__ void finish_by_digits(const Task& task, Shared& s, Key best) {
    const float largest = logit_of(best);
    const Weigh count{Kind::kCount}, probability{Kind::kProbability, largest}, tempered{Kind::kTempered, largest, task.temperature};
    Key end = kEnd;
    if (task.top_k > 0 && task.top_k < task.n_vocab) {
        const uint64_t k = task.top_k;
        end = first_by_digits(task, s, end, count, [=](uint64_t sum) { return sum >= k; });
    }
    if (task.top_p < 1.0f) {
        const Share share(task.top_p, sum_up_to(task, s, end, probability));
        end = first_by_digits(task, s, end, probability, share);
    }
    end = min(end, static_cast<Key>(last_rank(task, largest)) << 32 | ~0u);
    end = min(end, kEnd);
    const Draw draw(task, sum_up_to(task, s, end, tempered));
    accept(task, id_of(first_by_digits(task, s, end, tempered, draw)));
}

// Finishes a row whose best `top_k` can be sorted.
__device__ void finish_top_k(const Task& task, Shared& s, Key best, uint32_t worst_best) {
    const float largest = logit_of(best);
    const Bins bins(largest, __fadd_rn(largest, -logit_of(worst_best)));
    const uint32_t k = task.top_k > 0 ? min(task.top_k, task.n_vocab) : task.n_vocab;
    int to = kBins - 1;
    if (k < task.n_chunks) {
        // The best k candidates are no worse than the k-th best of the chunks.
        for (int i = threadIdx.x; i < kBins; i += kThreads) s.row.counts[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < task.n_chunks; i += kThreads)
            atomicAdd(&s.row.counts[bins.of(__ldcg(&task.chunks[i].best))], 1);
        __syncthreads();
        const int at = threadIdx.x * 2;
        const uint32_t first = s.row.counts[at], second = s.row.counts[at + 1];
        uint64_t total;
        const uint32_t before = block_sum_before(s, first + second, total);
        if (before < k && before + first + second >= k) s.found = before + first >= k ? at : at + 1;
        __syncthreads();
        to = s.found;
        __syncthreads();
    }
    uint32_t n = sort_bins(task, s, bins, 0, to);
    if (n > kSorted) return finish_by_digits(task, s, best);
    n = min(n, k);
    if (task.top_p < 1.0f) {
        const Running running(s, n, 0, largest, 1.0f);
        n = running.first(s, Share(task.top_p, running.total)) + 1;
    }
    const uint32_t last = last_rank(task, largest);
    uint32_t kept = 0;
    for (uint32_t first = 0; first < n; first += kThreads) {
        const uint32_t at = first + threadIdx.x;
        kept += __syncthreads_count(at < n && rank_of(s.row.keys[at]) <= last);
    }
    const Running running(s, kept, 0, largest, task.temperature);
    accept(task, id_of(s.row.keys[running.first(s, Draw(task, running.total))]));
}

// The bins for a row that sample_weigh finishes: no weight reaches further than e^-28.
__device__ Bins bins_of(const Task& task, Key best, uint32_t worst) {
    const float largest = logit_of(best), range = __fadd_rn(largest, -logit_of(worst));
    return Bins(largest, fminf(range, 28.0f * fmaxf(task.temperature, 1.0f)));
}

// Finishes a row with the sums over its bins, in up to four passes over the chunks that reach into a bin.
__device__ void finish_by_bins(const Task& task, Shared& s, Key best, const Bins& bins) {
    const float largest = logit_of(best);
    // Sums up to each bin; the workspace is left zero.
    const int at = threadIdx.x * 2;
    for (int kind = 0; kind < 3; kind++) {
        uint64_t first, second, total;
        if (kind < 2) {
            uint64_t* sums = task.work->sums[kind] + at;
            first = __ldcg(sums), second = __ldcg(sums + 1);
            sums[0] = sums[1] = 0;
        } else {
            uint32_t* counts = task.work->counts + at;
            first = __ldcg(counts), second = __ldcg(counts + 1);
            counts[0] = counts[1] = 0;
        }
        const uint64_t before = block_sum_before(s, first + second, total);
        if (kind < 2) {
            s.row.sums[kind][at] = before + first;
            s.row.sums[kind][at + 1] = before + first + second;
        } else {
            s.row.counts[at] = before + first;
            s.row.counts[at + 1] = before + first + second;
        }
    }
    __syncthreads();
    const auto before = [&](int kind, int bin) { return bin == 0 ? 0 : s.row.sums[kind][bin - 1]; };

    // Kept are the bins before `end` and the first `n_end` of that bin, which is `sorted` then; or all of it.
    constexpr uint32_t kAll = ~0u;
    int end = kBins - 1, sorted = -1;
    uint32_t n_end = kAll, n_sorted = 0;
    const auto sort = [&](int bin) {
        if (sorted != bin) n_sorted = sort_bins(task, s, bins, bin, bin);
        sorted = bin;
        return n_sorted <= kSorted;
    };
    const auto kept = [&](int bin) { return bin == end && n_end != kAll ? n_end : n_sorted; };

    if (task.top_k > 0 && task.top_k < task.n_vocab) {
        const int bin = first_bin(s, [&](int bin) { return s.row.counts[bin] >= task.top_k; });
        // Whether candidates without weight are kept makes no difference.
        if (before(0, bin) < s.row.sums[0][kBins - 1] || before(1, bin) < s.row.sums[1][kBins - 1]) {
            if (!sort(bin)) return finish_by_digits(task, s, best);
            end = bin;
            n_end = task.top_k - (bin == 0 ? 0 : s.row.counts[bin - 1]);
        }
    }
    if (task.top_p < 1.0f) {
        uint64_t total = s.row.sums[0][end];
        if (n_end != kAll) total = Running(s, n_end, before(0, end), largest, 1.0f).total;
        const Share share(task.top_p, total);
        const int bin = min(end, first_bin(s, [&](int bin) { return share(s.row.sums[0][bin]); }));
        if (!sort(bin)) return finish_by_digits(task, s, best);
        n_end = Running(s, kept(bin), before(0, bin), largest, 1.0f).first(s, share) + 1;
        end = bin;
    }
    const uint32_t last = last_rank(task, largest);
    if (last < rank_of(-3.402823466e38f)) {
        const int bin = bins.of(logit_of(last));
        if (bin <= end) {
            if (!sort(bin)) return finish_by_digits(task, s, best);
            const uint32_t most = kept(bin);
            uint32_t n = 0;
            for (uint32_t first = 0; first < most; first += kThreads) {
                const uint32_t at = first + threadIdx.x;
                n += __syncthreads_count(at < most && rank_of(s.row.keys[at]) <= last);
            }
            end = bin;
            n_end = n;
        }
    }
    uint64_t total = s.row.sums[1][end];
    if (n_end != kAll) total = Running(s, n_end, before(1, end), largest, task.temperature).total;
    const Draw draw(task, total);
    const int bin = min(end, first_bin(s, [&](int bin) { return draw(s.row.sums[1][bin]); }));
    if (!sort(bin)) return finish_by_digits(task, s, best);
    const Running running(s, kept(bin), before(1, bin), largest, task.temperature);
    accept(task, id_of(s.row.keys[running.first(s, draw)]));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) sample_scan(const __grid_constant__ KigoSample p) {
    __shared__ Shared s;
    pdl_wait();
    pdl_launch();
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const uint32_t chunk = blockIdx.x * kWarps + warp;
    float logits[kParts];
#pragma unroll
    for (int i = 0; i < kParts; i++) logits[i] = load_logit(row_logits(p), p.n_vocab, chunk * kChunk + i * kWarp + lane);
    Task task;
    if (!load_task(p, task)) return;
    uint32_t window[kParts] = {};
    if (task.n_window) {
        const uint32_t* tokens = reinterpret_cast<const uint32_t*>(__ldcg(&task.sampler->window));
        if (threadIdx.x < KIGO_SAMPLE_SLICE / 32) s.window[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < task.n_window; i += kThreads) {
            const uint32_t at = __ldcg(tokens + i) - blockIdx.x * KIGO_SAMPLE_SLICE;
            if (at < KIGO_SAMPLE_SLICE) atomicOr(&s.window[at / 32], 1u << at % 32);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kParts; i++) window[i] = s.window[warp * kParts + i];
    }
    Key least = kOutside;
    uint32_t worst = 0;
#pragma unroll
    for (int i = 0; i < kParts; i++) {
        const Key key = candidate(task, chunk * kChunk + i * kWarp + lane, logits[i], window[i]);
        least = min(least, key);
        if (key != kOutside) worst = max(worst, rank_of(key));
    }
    const uint32_t rank = __reduce_min_sync(~0u, rank_of(least));
    const uint32_t id = __reduce_min_sync(~0u, rank_of(least) == rank ? id_of(least) : ~0u);
    worst = __reduce_max_sync(~0u, worst);
    if (lane == 0 && chunk < task.n_chunks) {
        KigoSampleChunk* noted = task.chunks + chunk;
        noted->best = static_cast<Key>(rank) << 32 | id;
        noted->worst = worst;
        if (task.n_window) *reinterpret_cast<uint4*>(noted->window) = make_uint4(window[0], window[1], window[2], window[3]);
    }
    if (!is_last(s, &task.work->scanned)) return;

    Key best = kOutside;
    uint32_t worst_best = 0;
    worst = 0;
    for (uint32_t i = threadIdx.x; i < task.n_chunks; i += kThreads) {
        const Key key = __ldcg(&task.chunks[i].best);
        best = min(best, key);
        worst_best = max(worst_best, rank_of(key));
        worst = max(worst, __ldcg(&task.chunks[i].worst));
    }
    best = block_min(s, best);
    if (rank_of(best) == 0) {
        fail(task, id_of(best));
    } else if (task.temperature == 0.0f) {
        accept(task, id_of(best));
    } else if (!task.weigh) {
        finish_top_k(task, s, best, ~rank_of(block_min(s, static_cast<Key>(~worst_best) << 32)));
    } else {
        worst = ~rank_of(block_min(s, static_cast<Key>(~worst) << 32));
        if (threadIdx.x == 0) task.work->worst = worst;
    }
    if (threadIdx.x == 0) task.work->best = best;
}

extern "C" __global__ void __launch_bounds__(kThreads) sample_weigh(const __grid_constant__ KigoSample p) {
    __shared__ Shared s;
    pdl_wait();
    pdl_launch();
    Task task;
    if (!load_task(p, task) || !task.weigh) return;
    const Key best = __ldcg(&task.work->best);
    if (rank_of(best) == 0) return;
    const Bins bins = bins_of(task, best, __ldcg(&task.work->worst));
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const uint32_t chunk = blockIdx.x * kWarps + warp;
    float logits[kParts];
#pragma unroll
    for (int i = 0; i < kParts; i++) logits[i] = load_logit(task.logits, p.n_vocab, chunk * kChunk + i * kWarp + lane);
    uint4 window = make_uint4(0, 0, 0, 0);
    if (task.n_window && chunk < task.n_chunks) window = __ldcg(reinterpret_cast<const uint4*>(task.chunks[chunk].window));
    const uint32_t words[kParts] = {window.x, window.y, window.z, window.w};
    s.slice.sums[0].clear();
    s.slice.sums[1].clear();
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.slice.counts[i] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kParts; i++) {
        const Key key = candidate(task, chunk * kChunk + i * kWarp + lane, logits[i], words[i]);
        const bool inside = key != kOutside;
        const int bin = inside ? bins.of(key) : 0;
        if (task.top_p < 1.0f) s.slice.sums[0].add_warp(bin, inside ? weight(key, bins.largest, 1.0f) : 0);
        s.slice.sums[1].add_warp(bin, inside ? weight(key, bins.largest, task.temperature) : 0);
        if (task.top_k > 0 && inside) atomicAdd(&s.slice.counts[bin], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
        for (int kind = 0; kind < 2; kind++) {
            const uint64_t sum = s.slice.sums[kind].get(i);
            if (sum) atomicAdd(reinterpret_cast<unsigned long long*>(&task.work->sums[kind][i]), sum);
        }
        if (s.slice.counts[i]) atomicAdd(&task.work->counts[i], s.slice.counts[i]);
    }
    if (is_last(s, &task.work->weighed)) finish_by_bins(task, s, best, bins);
}
