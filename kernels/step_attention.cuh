// Attention of `step`: a block takes a kv head with up to 8 of its heads, and some pages at a time: a team of warps takes one.
// K and V of earlier tokens are loaded while q is still being computed.
#pragma once

#include "attention.cuh"
#include "epilogue.cuh"
#include "step_words.cuh"

namespace {

// Pages that a block takes at a time, and warps that take one together.
constexpr uint32_t kPagesAtOnce = KIGO_STEP_PAGES_AT_ONCE, kTeam = kStepWarps / kPagesAtOnce;
// Heads that a block attends with at a time: a warp folds one.
constexpr uint32_t kHeads = kStepWarps;

// Elements of the mix that a block computes: those of wider heads are spread over blocks, which all compute the scores.
constexpr uint32_t kOwn = KIGO_STEP_OWN;

// Heads that a team of warps takes at the same time at most.
constexpr uint32_t kMostHeadsOfTeam = 3;

// What a block keeps in shared memory, for heads of dp elements; behind it the mixes of the pages, f32
// [kPagesAtOnce][heads][kOwn].
template <int kDp>
struct AttentionScratch {
    // Rows are padded, so that a column of 16 bytes of 8 of them lies in different banks.
    __half q[16][kDp + 8];
    __half k[kDp], v[kDp];
    float page_largest[kPagesAtOnce][kTeam][16];
    uint4 page_weights[kPagesAtOnce][4][32];
    float2 page_sums[kPagesAtOnce][16];
    float squares[kMostHeadsOfTeam][kStepWarps];
};
static_assert(sizeof(AttentionScratch<64>) <= 36 * 64 + KIGO_STEP_ATTENTION);

// Where a row is, and the pages that its next attention sees, from `first_page` on.
struct Sight {
    uint64_t pages[KIGO_STEP_PAGES];
    uint32_t position, first_page, n_pages;
};

// Which parts of groups of heads are this block's: every `apart`-th block has some.
struct HeadGroups {
    uint32_t of_kv, n, apart;

    __device__ __forceinline__ HeadGroups(const KigoAttention& p, uint32_t dp) {
        of_kv = (p.n_head / p.n_head_kv + kHeads - 1) / kHeads * (dp / kOwn);
        n = p.n_head_kv * of_kv;
        apart = max(1u, gridDim.x / n);
    }

    __device__ __forceinline__ bool any() const { return blockIdx.x % apart == 0 && blockIdx.x / apart < n; }
};

// Notes the pages of an attention and brings what it needs of them to L2, some threads one each.
__device__ __forceinline__ void bring_near(const KigoStageAttention& a, uint64_t table, Sight& sight) {
    const KigoAttention& p = a.attention;
    const HeadGroups groups(p, a.heads.qkv.dp);
    if (!groups.any() || threadIdx.x >= KIGO_STEP_PAGES) return;
    const uint32_t first = first_page_of(sight.position, p.before), n_pages = sight.position / KIGO_PAGE + 1;
    const uint32_t page = first + threadIdx.x;
    if (threadIdx.x == 0) {
        sight.first_page = first;
        sight.n_pages = n_pages;
    }
    if (page >= n_pages) return;
    const uint64_t address = __ldcg(at<uint64_t>(table) + p.table + page);
    sight.pages[threadIdx.x] = address;
    [[maybe_unused]] const uint32_t dp = a.heads.qkv.dp;
    for (uint32_t unit = blockIdx.x / groups.apart; unit < groups.n; unit += gridDim.x / groups.apart) {
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address + page_offset(p, dp, unit / groups.of_kv)),
                     "r"(uint32_t(2 * KIGO_PAGE * dp * sizeof(__half)))
                     : "memory");
#endif
    }
}

template <int kDp, uint32_t kAtOnce>
__device__ __forceinline__ void attend(const KigoStageAttention& a, const Sight& sight, const WordSet& set, uint8_t* memory) {
    constexpr int kPieces = kDp / 32;
    // Tiles of keys and of dimensions that a warp has of a page.
    constexpr int kKeys = 8 / kTeam, kDims = kOwn / 8 / kTeam;
    const KigoAttention& p = a.attention;
    const KigoQkv& qkv = a.heads.qkv;
    auto& s = *reinterpret_cast<AttentionScratch<kDp>*>(memory);
    float* mixes = reinterpret_cast<float*>(memory + sizeof(AttentionScratch<kDp>));
    const uint32_t thread = this_thread(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const uint32_t side = warp / kTeam, part = warp % kTeam;
    const HeadGroups groups(p, kDp);
    if (!groups.any()) return;
    const uint32_t group = p.n_head / p.n_head_kv;
    const uint32_t position = sight.position, first_page = sight.first_page, n_pages = sight.n_pages;

#pragma unroll 1
    for (uint32_t unit = blockIdx.x / groups.apart; unit < groups.n; unit += gridDim.x / groups.apart) {
        const uint32_t head_kv = unit / groups.of_kv, of_group = unit % groups.of_kv;
        const uint32_t m_first = of_group / (kDp / kOwn) * kHeads, first_dim = of_group % (kDp / kOwn) * kOwn;
        const uint32_t head = head_kv * group + m_first, heads = min(kHeads, group - m_first);
        const uint64_t here = page_offset(p, kDp, head_kv);
        // Zeros, lest the compiler keep them for the next time.
        uint4 k[kKeys][kPieces] = {}, v[kDims][2] = {};
        auto load_k = [&](uint32_t page) {
            if (page >= n_pages) return;
            const uint4* from = at<uint4>(sight.pages[page - first_page] + here);
#pragma unroll
            for (int j = 0; j < kPieces; j++) {
#pragma unroll
                for (int i = 0; i < kKeys; i++) k[i][j] = __ldcg(from + key_of(kKeys * part + i, g) * (kDp / 8) + j * 4 + t);
            }
        };
        auto load_v = [&](uint32_t page) {
            if (page >= n_pages) return;
            const uint4* from = at<uint4>(sight.pages[page - first_page] + here) + KIGO_PAGE * (kDp / 8);
#pragma unroll
            for (int n = 0; n < kDims; n++) {
#pragma unroll
                for (int h = 0; h < 2; h++) v[n][h] = __ldcg(from + (first_dim + (part * kDims + n) * 8 + g) * 8 + h * 4 + t);
            }
        };
        uint32_t page = first_page + side;
        load_k(page);
        load_v(page);

        // The unit before is done with this memory.
        if (unit != blockIdx.x / groups.apart) step_sync();
        for (uint32_t i = thread; i < (sizeof(s.q) + sizeof(s.k) + sizeof(s.v)) / 4; i += kStepThreads) {
            reinterpret_cast<uint32_t*>(&s.q)[i] = 0;
        }
        step_sync();
        // A team of warps takes a head of q, or that of k or v, and others at the same time; a thread a pair of elements of each.
        static_assert(kAtOnce <= kMostHeadsOfTeam);
        const uint32_t per_head = (p.head_dim + 15) / 16, n_pairs = per_head * 8, team_warps = (n_pairs + 31) / 32;
        const uint32_t n_teams = kStepWarps / team_warps, team = warp / team_warps, pair = warp % team_warps * 32 + lane;
#pragma unroll 1
        for (uint32_t first = 0; first < heads + 2; first += kAtOnce * n_teams) {
            bool has[kAtOnce];
            HeadElements elements[kAtOnce];
            float2 turns[kAtOnce], biases[kAtOnce], weights[kAtOnce];
            const uint32_t* at_words[2 * kAtOnce];
            const auto bias_of = [&](const HeadElements& e) { return e.part == 0 ? a.heads.bias[0] : e.part == 1 ? a.heads.bias[1] : a.heads.bias[2]; };
            // Two of a head's elements of a vector, which may be null.
            const auto load_of = [&](uint64_t vector, uint32_t first, const HeadElements& e) -> float2 {
                if (!vector) return {0, 0};
                const float* from = reinterpret_cast<const float*>(vector) + first;
                return {e.dims.low < qkv.head_dim ? __ldg(from + e.dims.low) : 0, e.dims.high < qkv.head_dim ? __ldg(from + e.dims.high) : 0};
            };
            auto which = [&](uint32_t i) { return first + i * n_teams + team; };
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; i++) {
                has[i] = team < n_teams && which(i) < heads + 2 && pair < n_pairs;
                const uint32_t of_all = which(i) < heads ? head + which(i) : p.n_head + head_kv + (which(i) == heads ? 0 : p.n_head_kv);
                const uint32_t tile = of_all * per_head + pair / 8;
                elements[i] = head_elements(qkv, tile, pair % 8);
                // Does not depend on what is awaited.
                turns[i] = has[i] && has_turn(qkv, elements[i]) ? load_turn(qkv, elements[i], 0) : float2{};
                biases[i] = has[i] ? load_of(bias_of(elements[i]), elements[i].head * qkv.head_dim, elements[i]) : float2{};
                weights[i] = has[i] && elements[i].part < 2 ? load_of(a.heads.norm_weight[elements[i].part], 0, elements[i]) : float2{};
                const uint32_t* words = set.from(a.input) + tile * 16 + pair % 8;
                at_words[2 * i] = has[i] ? words : nullptr;
                at_words[2 * i + 1] = has[i] ? words + 8 : nullptr;
            }
            Words<2 * kAtOnce> words;
            words.await(at_words);
            float low[kAtOnce], high[kAtOnce];
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; i++) {
                const HeadElements& e = elements[i];
                low[i] = __uint_as_float(words.in[2 * i]), high[i] = __uint_as_float(words.in[2 * i + 1]);
                if (!has[i] || !bias_of(e)) continue;
                if (e.dims.low < qkv.head_dim) low[i] = __fadd_rn(low[i], biases[i].x);
                if (e.dims.high < qkv.head_dim) high[i] = __fadd_rn(high[i], biases[i].y);
            }
            if (a.heads.norm_weight[0]) {
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
                turn_elements(qkv, e, turns[i], low[i], high[i]);
                if (e.part == 0) {
                    low[i] = __fmul_rn(low[i], qkv.q_scale);
                    high[i] = __fmul_rn(high[i], qkv.q_scale);
                }
                const __half rounded[2] = {saturated_half(low[i]), saturated_half(high[i])};
                __half* to = e.part == 0 ? s.q[which(i)] : e.part == 1 ? s.k : s.v;
                to[e.place] = rounded[0];
                to[e.place + 8] = rounded[1];
                if (e.part == 0 || of_group != 0) continue;
                __half* keys = cached_keys(qkv, {at<__half>(sight.pages[n_pages - 1 - first_page]), 0}, head_kv);
                const uint32_t of_page = position % KIGO_PAGE;
                if (e.part == 1) {
                    keys[of_page * kDp + e.place] = rounded[0];
                    keys[of_page * kDp + e.place + 8] = rounded[1];
                } else {
                    keys[KIGO_PAGE * kDp + e.place * KIGO_PAGE + of_page] = rounded[0];
                    keys[KIGO_PAGE * kDp + (e.place + 8) * KIGO_PAGE + of_page] = rounded[1];
                }
            }
        }
        step_sync();

        // A warp folds the pages' mixes of a head, a lane one cell of it.
        float M1 = -INFINITY, L1 = -0.0f, O1 = -0.0f, Mc = -INFINITY, Lc = -0.0f, Oc = -0.0f;
#pragma unroll 1
        for (uint32_t first = first_page; first < n_pages; first += kPagesAtOnce) {
            if (page < n_pages) {
                const int32_t last_key = static_cast<int32_t>(position - page * KIGO_PAGE);
                // What this token adds is not in memory yet.
                const bool is_last = page == n_pages - 1;
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
                load_k(page + kPagesAtOnce);
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
                load_v(page + kPagesAtOnce);
                if (g < heads) {
                    if (part == 0 && t == 0) s.page_sums[side][g] = make_float2(m[0], l[0]);
                    float* to = mixes + (side * heads + g) * kOwn + part * kDims * 8 + 2 * t;
#pragma unroll
                    for (int n = 0; n < kDims; n++) *reinterpret_cast<float2*>(to + 8 * n) = make_float2(o[n][0], o[n][1]);
                }
            }
            page += kPagesAtOnce;
            step_sync();
#pragma unroll 1
            for (uint32_t of = 0; warp < heads && of < min(kPagesAtOnce, n_pages - first); of++) {
                const float2 ml = s.page_sums[of][warp];
                const float mixed = mixes[(of * heads + warp) * kOwn + lane];
                Factors f = rescale(Mc, ml.x);
                Lc = fold(Lc, ml.y, f);
                Oc = fold(Oc, mixed, f);
                if ((first + of + 1) % kChunk != 0 && first + of + 1 != n_pages) continue;
                f = rescale(M1, Mc);
                L1 = fold(L1, Lc, f);
                O1 = fold(O1, Oc, f);
                Mc = -INFINITY, Lc = -0.0f, Oc = -0.0f;
            }
            if (first + kPagesAtOnce < n_pages) step_sync();
        }
        if (warp >= heads) continue;
        const float factor = last_factor(p, head + warp, M1, L1);
        const uint32_t d = first_dim + lane;
        if (d < p.head_dim) set.store(a.out, (head + warp) * p.head_dim + d, __fmul_rn(O1, factor));
    }
}

}  // namespace
