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
#include "sample_finish.cuh"

namespace {

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
