// Attention of `step`: a block takes a kv head with up to 8 of its heads and the pages of a chunk, some at a time: a team of warps
// takes one. Blocks share the elements of wide heads; all of them compute the scores. K and V of earlier tokens are loaded while q is
// still being computed. The chunks of a head are spread over blocks, which hand them on as marked words for some warps to put together,
// as the kernels of larger batches do it. Of long contexts step_pages.cuh attends instead.
#pragma once

#include "epilogue.cuh"
#include "step_share.cuh"
#include "step_words.cuh"

namespace {

// Warps that take a page together, as many as have registers for its keys; with heads of up to 128 elements two.
__device__ __forceinline__ constexpr uint32_t warps_of_page(uint32_t dp) { return dp <= 128 ? 2 : 4; }

static_assert(kStepWarps / warps_of_page(32) == KIGO_STEP_PAGES_AT_ONCE && kChunk % KIGO_STEP_PAGES_AT_ONCE == 0);

// Heads that a team of warps takes at the same time at most.
constexpr uint32_t kMostHeadsOfTeam = 3;

// What a block keeps in shared memory, for heads of dp elements; behind it the mixes of the pages that it takes at a time, f32
// [KIGO_STEP_MIX_TURNS][pages][heads][elements], in turns as their sums, so that one time need not wait until the one before is folded.
template <int kDp>
struct AttentionScratch {
    static constexpr uint32_t kTeam = warps_of_page(kDp), kPagesAtOnce = kStepWarps / kTeam;
    // Rows are padded, so that a column of 16 bytes of 8 of them lies in different banks.
    __half q[16][kDp + 8];
    __half k[kDp], v[kDp];
    float page_largest[kPagesAtOnce][kTeam][16];
    uint4 page_weights[kPagesAtOnce][4][32];
    float2 page_sums[KIGO_STEP_MIX_TURNS][kPagesAtOnce][16];
    float squares[kMostHeadsOfTeam][kStepWarps];
};
static_assert(sizeof(AttentionScratch<64>) <= 36 * 64 + KIGO_STEP_ATTENTION && sizeof(AttentionScratch<256>) <= 36 * 256 + KIGO_STEP_ATTENTION);

// Where a row is, what of its next attention is this block's, and the addresses of those pages.
struct Sight {
    uint64_t pages[KIGO_STEP_PAGES];
    BlockHeads heads;
    AttentionShare share;
    uint32_t position;
};

// Pages that are brought to L2 ahead of those being attended to: all blocks' have to have room there.
constexpr uint32_t kNear = kChunk;

// Sends for a block's part of a page, which comes to L2: for K or V, where another block sends for the other.
__device__ __forceinline__ void bring_page(uint64_t address, uint32_t dp, uint32_t of_head) {
#if __CUDA_ARCH__ >= 900
    const uint32_t bytes = 2 * KIGO_PAGE * dp * sizeof(__half) / parts_of_head(dp);
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address + of_head * bytes), "r"(bytes) : "memory");
#endif
}

// Notes the pages of an attention and brings the first of them to L2, some threads one each.
__device__ __forceinline__ void bring_near(const KigoStageAttention& a, uint64_t table, Sight& sight) {
    if (threadIdx.x >= KIGO_STEP_PAGES) return;
    const KigoAttention& p = a.attention;
    const uint32_t dp = a.heads.qkv.dp;
    const BlockHeads heads = sight.heads;
    const AttentionShare share(heads, p, sight.position);
    if (threadIdx.x == 0) sight.share = share;
    if (!share.sees(threadIdx.x)) return;
    const uint64_t address = __ldcg(at<uint64_t>(table) + p.table + share.page(threadIdx.x)) + page_offset(p, dp, heads.head_kv);
    sight.pages[threadIdx.x] = address;
    if (threadIdx.x < kNear) bring_page(address, dp, heads.of_head);
}

// Marked words: f32 in the lower half of 64 bits, the mark of the attention that wrote it in the upper. So one buffer serves all layers: no
// word of an attention is written before all of the one before have been read, as q depends on all of them.
__device__ __forceinline__ uint64_t marked(float value, uint32_t mark) { return uint64_t(mark) << 32 | __float_as_uint(value); }

__device__ __forceinline__ void store_marked(uint64_t* to, float value, uint32_t mark) {
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(marked(value, mark)) : "memory");
}

__device__ __forceinline__ uint64_t load_marked(const uint64_t* from) {
    uint64_t word;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    return word;
}

__device__ __forceinline__ float value_of(uint64_t word) { return __uint_as_float(uint32_t(word)); }

// Where the marked words of a chunk of a head are: its largest score, the sum of weights, the mix.
__device__ __forceinline__ uint64_t* chunk_words(uint64_t partials, const KigoAttention& p, uint32_t dp, uint32_t chunk, uint32_t head) {
    return at<uint64_t>(partials) + (uint64_t(chunk) * p.n_head + head) * (dp + 2);
}

// Hands on what a lane has of element d of a chunk's mix, and one lane of each head its largest score and the sum of weights.
__device__ __forceinline__ void store_chunk(uint64_t* to, uint32_t d, float M, float L, float O, uint32_t mark) {
    if (d == 0) store_marked(to, M, mark), store_marked(to + 1, L, mark);
    store_marked(to + 2 + d, O, mark);
}

// Chunks that a row sees.
__device__ __forceinline__ uint32_t n_chunks_of(const KigoAttention& p, uint32_t position) {
    return position / KIGO_PAGE / kChunk + 1 - first_page_of(position, p.before) / kChunk;
}

// Where an attention hands on the mix of heads, known before the mix is.
struct MixWords {
    uint32_t head_dim;
    uint64_t out, out_halves;

    __device__ __forceinline__ explicit MixWords(const KigoStageAttention& a) : head_dim(a.attention.head_dim), out(a.out), out_halves(a.out_halves) {}

    // Hands on element d of a head's mix, where there is such a one; called by warps, a lane of which has the next one.
    __device__ __forceinline__ void store(const WordSet& set, uint32_t head, uint32_t d, float value) const {
        const uint32_t i = head * head_dim + d;
        const float next = __shfl_down_sync(~0u, value, 1);
        if (d >= head_dim) return;
        if (out_halves && d % 2 == 0) WordPlace(set, out_halves, i / 2).store_halves(value, next);
        WordPlace(set, out, i).store(value);
    }
};

// Puts the chunks of a row together, a warp 32 elements of a head.
__device__ __forceinline__ void combine_chunks(const KigoStageAttention& a, uint32_t n_chunks, uint64_t partials, uint32_t mark,
                                               const WordSet& set, uint32_t warp) {
    // Chunks at a time, of which a lane each computes the factors.
    constexpr uint32_t kAtOnce = kWarp;
    const KigoAttention& p = a.attention;
    const uint32_t lane = threadIdx.x % kWarp, dp = a.heads.qkv.dp, n_parts = dp / kWarp;
#pragma unroll 1
    for (uint32_t unit = warp * gridDim.x + blockIdx.x; unit < p.n_head * n_parts; unit += kStepWarps * gridDim.x) {
        const uint32_t head = unit / n_parts, d = unit % n_parts * kWarp + lane;
        float M = -INFINITY, L = -0.0f, O = -0.0f;
#pragma unroll 1
        for (uint32_t first = 0; first < n_chunks; first += kAtOnce) {
            const uint32_t n = min(kAtOnce, n_chunks - first);
            auto words_of = [&](uint32_t i) { return chunk_words(partials, p, dp, first + i, head); };
            uint64_t m, l, o[kAtOnce] = {};
            Patience patience;
            while (true) {
                const uint64_t* own = words_of(min(lane, n - 1));
                m = load_marked(own), l = load_marked(own + 1);
#pragma unroll
                for (uint32_t i = 0; i < kAtOnce; i++) {
                    if (i >= n) break;
                    o[i] = load_marked(words_of(i) + 2 + d);
                }
                uint32_t differs = (m >> 32 ^ mark) | (l >> 32 ^ mark);
#pragma unroll
                for (uint32_t i = 0; i < kAtOnce; i++) {
                    if (i >= n) break;
                    differs |= o[i] >> 32 ^ mark;
                }
                if (__all_sync(~0u, differs == 0)) break;
                patience.wait();
            }
            // The largest score so far does not depend on the sums.
            const float largest = largest_so_far(lane < n ? fmaxf(M, value_of(m)) : M, lane);
            float before = __shfl_up_sync(~0u, largest, 1);
            if (lane == 0) before = M;
            const Factors of_lane = rescale(before, value_of(m));
            M = __shfl_sync(~0u, largest, kWarp - 1);
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; i++) {
                if (i >= n) break;
                const Factors f = {__shfl_sync(~0u, of_lane.state, i), __shfl_sync(~0u, of_lane.partial, i)};
                L = fold(L, __shfl_sync(~0u, value_of(l), i), f);
                O = fold(O, value_of(o[i]), f);
            }
        }
        MixWords(a).store(set, head, d, __fmul_rn(O, last_factor(p, head, M, L)));
    }
}

// What the token at hand adds to the cache: its position, whether its page is one of the block's, and where the address of that is.
struct NewEntry {
    uint32_t position;
    bool is_here;
    const uint64_t* page;
};

// Takes the heads of q that a block attends with, `heads` from `head` on, and the token's own key and value where they are the block's, to
// shared memory; who is the first of the kv head puts them into the cache. `s` has q, k, v and squares.
template <int kDp, uint32_t kAtOnce, class Scratch>
__device__ __forceinline__ void take_heads(const KigoStageAttention& a, Scratch& s, const WordSet& set, uint32_t row, const BlockHeads& block,
                                           uint32_t head, uint32_t heads, const NewEntry& own) {
    const KigoAttention& p = a.attention;
    const KigoQkv& qkv = a.heads.qkv;
    const uint32_t thread = this_thread(), lane = thread % 32, warp = thread / 32;
    // A team of warps takes a head of q, or that of k or v, and others at the same time; a thread a pair of elements of each.
    static_assert(kAtOnce <= kMostHeadsOfTeam);
    const uint32_t per_head = (p.head_dim + 15) / 16, n_pairs = per_head * 8, team_warps = (n_pairs + 31) / 32;
    const uint32_t n_teams = kStepWarps / team_warps, team = warp / team_warps, pair = warp % team_warps * 32 + lane;
    const uint32_t n_vectors = heads + (own.is_here ? 2 : 0);
    const bool has_norm = a.heads.norm_weight[0];
    const float q_scale = qkv.q_scale;
#pragma unroll 1
    for (uint32_t first = 0; first < n_vectors; first += kAtOnce * n_teams) {
        // Whatever does not depend on the words is known before they are there.
        bool has[kAtOnce], has_turns[kAtOnce];
        __half* places[kAtOnce];
        HeadElements elements[kAtOnce];
        float2 turns[kAtOnce], biases[kAtOnce], weights[kAtOnce];
        const uint32_t* at_words[2 * kAtOnce];
        // Two of a head's elements of a vector, which may be null. Adding -0 changes nothing.
        const auto load_of = [&](uint64_t vector, uint32_t first, const HeadElements& e) -> float2 {
            if (!vector) return {-0.0f, -0.0f};
            const float* from = reinterpret_cast<const float*>(vector) + first;
            return {e.dims.low < qkv.head_dim ? __ldg(from + e.dims.low) : -0.0f,
                    e.dims.high < qkv.head_dim ? __ldg(from + e.dims.high) : -0.0f};
        };
        auto which = [&](uint32_t i) { return first + i * n_teams + team; };
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            has[i] = team < n_teams && which(i) < n_vectors && pair < n_pairs;
            const uint32_t of_all = which(i) < heads ? head + which(i) : p.n_head + block.head_kv + (which(i) == heads ? 0 : p.n_head_kv);
            const uint32_t tile = of_all * per_head + pair / 8;
            elements[i] = head_elements(qkv, tile, pair % 8);
            const HeadElements& e = elements[i];
            has_turns[i] = has[i] && has_turn(qkv, e);
            turns[i] = has_turns[i] ? load_turn(qkv, e, row) : float2{};
            const uint64_t bias = e.part == 0 ? a.heads.bias[0] : e.part == 1 ? a.heads.bias[1] : a.heads.bias[2];
            biases[i] = has[i] ? load_of(bias, e.head * qkv.head_dim, e) : float2{};
            weights[i] = has[i] && e.part < 2 ? load_of(a.heads.norm_weight[e.part], 0, e) : float2{};
            places[i] = (e.part == 0 ? s.q[which(i)] : e.part == 1 ? s.k : s.v) + e.place;
            const uint32_t* words = set.from(a.input) + tile * 16 + pair % 8;
            at_words[2 * i] = has[i] ? words : nullptr;
            at_words[2 * i + 1] = has[i] ? words + 8 : nullptr;
        }
        Words<2 * kAtOnce> words;
        words.await(at_words);
        float low[kAtOnce], high[kAtOnce];
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            low[i] = __fadd_rn(__uint_as_float(words.in[2 * i]), biases[i].x);
            high[i] = __fadd_rn(__uint_as_float(words.in[2 * i + 1]), biases[i].y);
        }
        if (has_norm) {
            // Those before have been read.
            if (first > 0) step_sync();
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; i++) {
                const float squares = warp_sum(has[i] ? __fmaf_rn(low[i], low[i], __fmul_rn(high[i], high[i])) : 0);
                if (lane == 0) s.squares[i][warp] = squares;
            }
            step_sync();
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; i++) {
                const HeadElements& e = elements[i];
                if (!has[i] || e.part == 2) continue;
                float sum = s.squares[i][team * team_warps];
                for (uint32_t w = 1; w < team_warps; w++) sum = __fadd_rn(sum, s.squares[i][team * team_warps + w]);
                const float factor = norm_factor(sum, qkv.head_dim, a.heads.eps);
                if (e.dims.low < qkv.head_dim) low[i] = __fmul_rn(__fmul_rn(low[i], factor), weights[i].x);
                if (e.dims.high < qkv.head_dim) high[i] = __fmul_rn(__fmul_rn(high[i], factor), weights[i].y);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            if (!has[i]) continue;
            const HeadElements& e = elements[i];
            if (has_turns[i]) turn_pair(turns[i], low[i], high[i]);
            if (e.part == 0) {
                low[i] = __fmul_rn(low[i], q_scale);
                high[i] = __fmul_rn(high[i], q_scale);
            }
            const __half rounded[2] = {saturated_half(low[i]), saturated_half(high[i])};
            places[i][0] = rounded[0];
            places[i][8] = rounded[1];
            if (e.part == 0 || block.of_group != 0 || block.of_head != 0) continue;
            __half* keys = at<__half>(*own.page);
            const uint32_t of_page = own.position % KIGO_PAGE;
            if (e.part == 1) {
                keys[of_page * kDp + e.place] = rounded[0];
                keys[of_page * kDp + e.place + 8] = rounded[1];
            } else {
                keys[KIGO_PAGE * kDp + e.place * KIGO_PAGE + of_page] = rounded[0];
                keys[KIGO_PAGE * kDp + (e.place + 8) * KIGO_PAGE + of_page] = rounded[1];
            }
        }
    }
}

template <int kDp, uint32_t kAtOnce>
__device__ __forceinline__ void attend(const KigoStageAttention& a, const Sight& sight, uint64_t partials, uint32_t mark, const WordSet& set,
                                       uint32_t row, uint8_t* memory) {
    constexpr uint32_t kTeam = AttentionScratch<kDp>::kTeam, kPagesAtOnce = AttentionScratch<kDp>::kPagesAtOnce;
    constexpr int kPieces = kDp / 32;
    // Tiles of keys and of the block's elements that a warp has of a page.
    constexpr int kKeys = 8 / kTeam, kDims = kOwn / 8 / kTeam;
    const KigoAttention& p = a.attention;
    auto& s = *reinterpret_cast<AttentionScratch<kDp>*>(memory);
    float* mixes = reinterpret_cast<float*>(memory + sizeof(AttentionScratch<kDp>));
    const uint32_t thread = this_thread(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const uint32_t side = warp / kTeam, part = warp % kTeam;
    const AttentionShare own = sight.share;
    if (own.n_pages == 0) return;
    const uint32_t position = sight.position, group = p.n_head / p.n_head_kv;
    const BlockHeads block = sight.heads;
    const uint32_t m_first = block.of_group * kHeads, first_dim = block.of_head * kOwn;
    const uint32_t head = block.head_kv * group + m_first, heads = min(kHeads, group - m_first);
    // Whether the last of its pages is the token's own.
    const bool has_last = own.page(own.n_pages - 1) == position / KIGO_PAGE;
    // Zeros, lest the compiler keep them for the next time.
    uint4 k[kKeys][kPieces] = {}, v[kDims][2] = {};
    auto load_k = [&](uint32_t i) {
        if (!own.sees(i)) return;
        const uint4* from = at<uint4>(sight.pages[i]) + key_of(kKeys * part, g) * (kDp / 8) + t;
        // Keys of a tile are at the same distances from each other as those of the first.
#pragma unroll
        for (int j = 0; j < kPieces; j++) {
#pragma unroll
            for (int tile = 0; tile < kKeys; tile++) k[tile][j] = __ldcg(from + key_of(tile, 0) * (kDp / 8) + j * 4);
        }
    };
    auto load_v = [&](uint32_t i) {
        if (!own.sees(i)) return;
        const uint4* from = at<uint4>(sight.pages[i]) + KIGO_PAGE * (kDp / 8) + (first_dim + part * kDims * 8 + g) * 8 + t;
#pragma unroll
        for (int n = 0; n < kDims; n++) {
#pragma unroll
            for (int h = 0; h < 2; h++) v[n][h] = __ldcg(from + n * 64 + h * 4);
        }
    };
    load_k(side);
    load_v(side);

    for (uint32_t i = thread; i < (sizeof(s.q) + sizeof(s.k) + sizeof(s.v)) / 4; i += kStepThreads) {
        reinterpret_cast<uint32_t*>(&s.q)[i] = 0;
    }
    step_sync();
    take_heads<kDp, kAtOnce>(a, s, set, row, block, head, heads, {position, has_last, sight.pages + own.n_pages - 1});
    step_sync();

    const MixWords mix_words(a);
    const Sink sink(p, head + min(warp, heads - 1));
    // A warp folds the pages' mixes of a head, a lane one element of it.
    float M = -INFINITY, L = -0.0f, O = -0.0f;
    uint32_t page = own.first_page + side;
#pragma unroll 1
    for (uint32_t first = 0; first < own.n_pages; first += kPagesAtOnce) {
        const uint32_t mine = first + side, next = mine + kPagesAtOnce, far = first + kNear + thread, turn = first / kPagesAtOnce % KIGO_STEP_MIX_TURNS;
        if (thread < kPagesAtOnce && own.sees(far)) bring_page(sight.pages[far], kDp, block.of_head);
        if (own.sees(mine)) {
            const int32_t last_key = static_cast<int32_t>(position - page * KIGO_PAGE);
            // What this token adds is not in memory yet.
            const bool is_last = last_key < KIGO_PAGE;
            if (is_last) {
#pragma unroll
                for (int i = 0; i < kKeys; i++) {
                    const bool is_new = static_cast<int32_t>(key_of(kKeys * part + i, g)) == last_key;
#pragma unroll
                    for (int j = 0; j < kPieces; j++) {
                        const uint4 added = *reinterpret_cast<const uint4*>(s.k + 32 * j + 8 * t);
                        k[i][j] = is_new ? added : k[i][j];
                    }
                }
            }
            float scored[kKeys][4], m[2], l[2];
            scores<kDp, kKeys>(
                scored,
                [&](int j, int r) {
                    return *reinterpret_cast<const uint4*>(&s.q[g + 8 * r][32 * j + 8 * t]);
                },
                [&](int i, int j) { return k[i][j]; });
            load_k(next);
            cap_scores(p, scored);
            if (last_key < KIGO_PAGE - 1 || last_key > static_cast<int32_t>(p.before)) {
                mask<kKeys>(scored, kKeys * part, t, last_key, last_key, p.before);
            }
            largest<kKeys>(scored, m);
            if (t == 0) {
                s.page_largest[side][part][g] = m[0];
                s.page_largest[side][part][g + 8] = m[1];
            }
            barrier_wait(2 + side, kTeam * kWarp);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const auto& of = s.page_largest[side];
                const int i = g + 8 * r;
                m[r] = of[0][i];
#pragma unroll
                for (uint32_t other = 1; other < kTeam; other++) m[r] = fmaxf(m[r], of[other][i]);
            }
            uint32_t w[4][4];
#pragma unroll
            for (int j = 0; j < kKeys / 2; j++) {
                weigh(w[j], scored + 2 * j, m);
                s.page_weights[side][part * (kKeys / 2) + j][lane] = make_uint4(w[j][0], w[j][1], w[j][2], w[j][3]);
            }
            barrier_wait(2 + side, kTeam * kWarp);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint4 x = s.page_weights[side][j][lane];
                w[j][0] = x.x, w[j][1] = x.y, w[j][2] = x.z, w[j][3] = x.w;
            }
            sum_weights(l, w);
            if (is_last) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const uint32_t of_piece = last_key - (32 * h + 8 * t), place = of_piece % 2 ? 0xffff0000u : 0xffffu;
#pragma unroll
                    for (int n = 0; n < kDims; n++) {
                        const uint32_t value = __half_as_ushort(s.v[first_dim + (part * kDims + n) * 8 + g]) * 0x10001u;
                        const uint32_t word = of_piece / 2;
                        auto put = [&](uint32_t& to, uint32_t i) {
                            const uint32_t mask = word == i ? place : 0;
                            to = (to & ~mask) | (value & mask);
                        };
                        put(v[n][h].x, 0);
                        put(v[n][h].y, 1);
                        put(v[n][h].z, 2);
                        put(v[n][h].w, 3);
                    }
                }
#pragma unroll
                for (int n = 0; n < kDims; n++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) trim(v[n][h], last_key + 1 - static_cast<int32_t>(h * 32 + t * 8));
                }
            }
            float o[kDims][4];
            mix<kDims>(o, w, [&](int n, int h) { return v[n][h]; });
            load_v(next);
            if (g < heads) {
                if (part == 0 && t == 0) s.page_sums[turn][side][g] = make_float2(m[0], l[0]);
                float* to = mixes + ((turn * kPagesAtOnce + side) * heads + g) * kOwn + part * kDims * 8 + 2 * t;
#pragma unroll
                for (int n = 0; n < kDims; n++) *reinterpret_cast<float2*>(to + 8 * n) = make_float2(o[n][0], o[n][1]);
            }
        } else {
            load_k(next);
            load_v(next);
        }
        step_sync();
        const bool ends_chunk = (first + kPagesAtOnce) % kChunk == 0, ends = ends_chunk || first + kPagesAtOnce >= own.n_pages;
        if (warp < heads) {
            // A page that is not seen changes nothing.
            float2 ml[kPagesAtOnce];
            float mixed[kPagesAtOnce];
#pragma unroll
            for (uint32_t i = 0; i < kPagesAtOnce; i++) {
                const bool sees = own.sees(first + i);
                ml[i] = sees ? s.page_sums[turn][i][warp] : make_float2(-INFINITY, 0);
                mixed[i] = sees ? mixes[((turn * kPagesAtOnce + i) * heads + warp) * kOwn + lane] : 0;
            }
#pragma unroll
            for (uint32_t i = 0; i < kPagesAtOnce; i++) {
                const Factors f = rescale(M, ml[i].x);
                L = fold(L, ml[i].y, f);
                O = fold(O, mixed[i], f);
            }
            const uint32_t d = first_dim + lane;
            if (ends && own.n_chunks == 1) {
                mix_words.store(set, head + warp, d, __fmul_rn(O, last_factor(sink, M, L)));
            } else if (ends) {
                uint64_t* to = chunk_words(partials, p, kDp, block.split + first / kChunk * own.n_splits, head + warp);
                store_chunk(to, d, M, L, O, mark);
                M = -INFINITY, L = -0.0f, O = -0.0f;
            }
        }
        page += kPagesAtOnce + (ends_chunk ? (own.n_splits - 1) * kChunk : 0);
    }
}

}  // namespace
