// How the last block of a row finds its token, by what is known of the logits, and makes it the sequence's next.
#pragma once

#include "sample_candidates.cuh"

namespace {

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

}  // namespace
