// Attention of `step_pages` to long contexts: keys and values come through the rings as weights do, so that a block has most of its
// pages before it has q, and all of memory's bandwidth from then on. A block takes a kv head with up to 8 of its heads and whole chunks,
// each warp a page of it; what warps have is folded in the order of pages. The rest is as in step_attention.cuh.
#pragma once

#include "step_attention.cuh"

namespace {

// What a block keeps in shared memory, for heads of dp elements; behind it the mixes of the pages of a chunk, f32 [kChunk][heads][kRow].
template <int kDp>
struct PageScratch {
    // Rows are padded, so that those of neighbouring heads begin in other banks.
    static constexpr uint32_t kRow = kDp + KIGO_STEP_PAGES_PAD;

    __half q[16][kRow];
    __half k[kDp], v[kDp];
    float2 sums[kChunk][kHeads];
    float squares[kMostHeadsOfTeam][kStepWarps];
};
static_assert(sizeof(PageScratch<64>) <= 36 * 64 + KIGO_STEP_PAGES_ATTENTION && sizeof(PageScratch<128>) <= 36 * 128 + KIGO_STEP_PAGES_ATTENTION);
static_assert(kStepWarps == kChunk && kChunk == KIGO_STEP_PAGES_OF_ROUND, "a warp takes a page of a chunk");

// What of an attention whose pages come through rings is the block's, and where the address of the row's last page is kept.
struct PageSight {
    AttentionShare share;
    uint64_t last_page;
};

// Notes what of an attention is the block's; called by one thread.
__device__ __forceinline__ void note_pages(const KigoStageAttention& a, const PageSource& source, PageSight& sight) {
    const KigoAttention& p = a.attention;
    const uint32_t last = source.position / KIGO_PAGE;
    sight.share = AttentionShare(source.heads, p, source.position);
    sight.last_page = __ldcg(at<unsigned long long>(source.table) + p.table + last) + page_offset(p, a.heads.qkv.dp, source.heads.head_kv);
}

// Pieces of a warp that it takes at the same time, of half of a page's keys or of some of its values.
template <int kPieces>
struct HalfPage {
    using Reader = PieceReader<false>;

    PiecePlace<false> at[kPieces];

    // The next ones, which are there when it returns.
    __device__ __forceinline__ explicit HalfPage(const Reader& reader) {
        at[0] = reader.place();
#pragma unroll
        for (int i = 1; i < kPieces; i++) {
            at[i] = at[i - 1];
            at[i].advance(reader);
        }
        Patience patience;
        while (!are_there()) patience.wait();
    }

    __device__ __forceinline__ bool are_there() const {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kPieces; i++) all &= Reader::is_there(at[i]);
        return all;
    }

    // Where piece `i`, which lanes may know only at run time, is in shared memory.
    __device__ __forceinline__ uint32_t address(const Reader& reader, uint32_t i) const {
        uint32_t barrier = at[0].barrier;
#pragma unroll
        for (int j = 1; j < kPieces; j++) barrier = i == j ? at[j].barrier : barrier;
        return PiecePlace<false>{barrier, 0}.slot_in(reader);
    }
};

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

// Two pieces of 16 bytes, 64 bytes apart. Rows of keys and of values are multiples of 128 bytes: lanes of odd rows load the second one
// first, so that those of two rows lie in different banks.
struct PairOfPieces {
    uint4 first, second;

    __device__ __forceinline__ PairOfPieces(uint32_t address, bool is_odd) {
        const uint4 a = load_shared(address + (is_odd ? 64 : 0)), b = load_shared(address + (is_odd ? 0 : 64));
        first = is_odd ? b : a;
        second = is_odd ? a : b;
    }
};

// Puts the value of key `key` into those of 8 keys from `first` on, and makes those behind it zero.
__device__ __forceinline__ void end_with(uint4& v, int32_t first, int32_t key, __half value) {
    const int32_t i = key - first;
    uint32_t* words = &v.x;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t bits = __half_as_ushort(value);
        if (i == 2 * j) words[j] = bits;
        if (i == 2 * j + 1) words[j] = (words[j] & 0xffff) | bits << 16;
    }
    trim(v, i + 1);
}

// Attends to a page, as a warp whose next pieces it is: the largest score and the sum of weights of each head to `sums`, the mixes to
// `mixes`. The row's last key in the page is `last_key`; one of 64 and more is of a later page.
template <int kDp>
__device__ __forceinline__ void attend_to_page(const KigoAttention& p, const PageScratch<kDp>& s, PieceReader<false>& reader, int32_t last_key,
                                               uint32_t heads, float2* sums, float* mixes) {
    constexpr int kPieces = pieces_of_half(kDp), kRowBytes = kDp * sizeof(__half), kKeysOfPiece = kPagePiece / kRowBytes;
    const uint32_t lane = this_thread() % kWarp, g = lane / 4, t = lane % 4;
    const bool is_odd = g % 2, is_last = last_key < KIGO_PAGE;
    // Loops are not unrolled: code that a layer runs once takes longer to fetch than to run.
    float scored[8][4] = {};
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        const HalfPage<kPieces> keys(reader);
        // The first of the lane's keys; others of its tiles follow two by two.
        const uint32_t first = key_of(0, g), place = first % kKeysOfPiece;
        const uint32_t from = keys.address(reader, first / kKeysOfPiece) + place * kRowBytes + t * 16;
        // What this token adds is not in memory yet.
        const int32_t new_key = last_key - 32 * half;
        uint4 others[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int c = 0; c < 4; c++) scored[i][c] = scored[4 + i][c];
        }
        scores<kDp, 4>(
            scored + 4, [&](int j, int r) { return *reinterpret_cast<const uint4*>(&s.q[g + 8 * r][32 * j + 8 * t]); },
            [&](int i, int j) {
                uint4 key = others[i];
                if (j % 2 == 0) {
                    const PairOfPieces pair(from + i * 2 * kRowBytes + j * 64, is_odd);
                    key = pair.first;
                    others[i] = pair.second;
                }
                if (static_cast<int32_t>(key_of(i, g)) == new_key) key = *reinterpret_cast<const uint4*>(s.k + 32 * j + 8 * t);
                return key;
            });
        reader.give_back(keys.at, lane == 0);
    }
    cap_scores(p, scored);
    if (last_key < KIGO_PAGE - 1 || last_key > static_cast<int32_t>(p.before)) mask<8>(scored, 0, t, last_key, last_key, p.before);
    float m[2], l[2];
    largest<8>(scored, m);
    uint32_t w[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) weigh(w[j], scored + 2 * j, m);
    sum_weights(l, w);
    if (t == 0 && g < heads) sums[g] = make_float2(m[0], l[0]);
    float* to = mixes + g * PageScratch<kDp>::kRow + 2 * t;
    // Elements of a piece, in tiles of 8.
    constexpr int kTiles = kPagePiece / (KIGO_PAGE * sizeof(__half)) / 8;
#pragma unroll 1
    for (int first = 0; first < kDp / 8; first += kTiles, to += kTiles * 8) {
        const HalfPage<1> piece(reader);
        const uint32_t from = piece.address(reader, 0) + g * KIGO_PAGE * sizeof(__half) + t * 16;
        uint4 values[kTiles][2];
#pragma unroll
        for (int n = 0; n < kTiles; n++) {
            const PairOfPieces pair(from + n * 8 * KIGO_PAGE * sizeof(__half), is_odd);
            values[n][0] = pair.first;
            values[n][1] = pair.second;
        }
        reader.give_back(piece.at, lane == 0);
        if (is_last) {
#pragma unroll
            for (int n = 0; n < kTiles; n++) {
#pragma unroll
                for (int h = 0; h < 2; h++) end_with(values[n][h], 32 * h + t * 8, last_key, s.v[(first + n) * 8 + g]);
            }
        }
        float o[kTiles][4];
        mix<kTiles>(o, w, [&](int n, int h) { return values[n][h]; });
        if (g < heads) {
#pragma unroll
            for (int n = 0; n < kTiles; n++) *reinterpret_cast<float2*>(to + n * 8) = make_float2(o[n][0], o[n][1]);
        }
    }
}

// Folds the pages of a chunk from `first` on, a warp 32 elements of a head, and hands the result on.
template <int kDp>
__device__ __forceinline__ void fold_pages(const KigoStageAttention& a, const AttentionShare& own, uint32_t first, const BlockHeads& block,
                                           uint32_t head, uint32_t heads, uint64_t partials, uint32_t mark, const WordSet& set,
                                           const PageScratch<kDp>& s, const float* mixes) {
    constexpr uint32_t kParts = kDp / kWarp, kRow = PageScratch<kDp>::kRow;
    const KigoAttention& p = a.attention;
    const uint32_t lane = this_thread() % kWarp;
#pragma unroll 1
    for (uint32_t unit = this_thread() / kWarp; unit < heads * kParts; unit += kStepWarps) {
        const uint32_t of_heads = unit / kParts, d = unit % kParts * kWarp + lane;
        float2 sums[kChunk];
        float mixed[kChunk];
#pragma unroll
        for (uint32_t i = 0; i < kChunk; i++) {
            // A page that is not seen changes nothing.
            const bool sees = own.sees(first + i);
            sums[i] = sees ? s.sums[i][of_heads] : make_float2(-INFINITY, 0);
            mixed[i] = sees ? mixes[(i * heads + of_heads) * kRow + d] : 0;
        }
        float M = -INFINITY, L = -0.0f, O = -0.0f;
#pragma unroll
        for (uint32_t i = 0; i < kChunk; i++) {
            const Factors f = rescale(M, sums[i].x);
            L = fold(L, sums[i].y, f);
            O = fold(O, mixed[i], f);
        }
        if (own.n_chunks == 1) {
            MixWords(a).store(set, head + of_heads, d, __fmul_rn(O, last_factor(p, head + of_heads, M, L)));
        } else {
            uint64_t* to = chunk_words(partials, p, kDp, block.split + first / kChunk * own.n_splits, head + of_heads);
            store_chunk(to, d, M, L, O, mark);
        }
    }
}

// Attends to the chunks of the block, whose pages are the next pieces of its warps.
template <int kDp, uint32_t kAtOnce>
__device__ __forceinline__ void attend_to_pages(const KigoStageAttention& a, const PageSource& source, const PageSight& sight,
                                                uint64_t partials, uint32_t mark, const WordSet& set, uint8_t* memory,
                                                PieceReader<false>& reader) {
    const KigoAttention& p = a.attention;
    auto& s = *reinterpret_cast<PageScratch<kDp>*>(memory);
    float* mixes = reinterpret_cast<float*>(memory + sizeof(PageScratch<kDp>));
    const AttentionShare own = sight.share;
    if (own.n_pages == 0) return;
    const BlockHeads block = source.heads;
    const uint32_t thread = this_thread(), warp = thread / kWarp, position = source.position, group = p.n_head / p.n_head_kv;
    const uint32_t head = block.head_kv * group + block.of_group * kHeads, heads = min(kHeads, group - block.of_group * kHeads);
    for (uint32_t i = thread; i < (sizeof(s.q) + sizeof(s.k) + sizeof(s.v)) / 4; i += kStepThreads) {
        reinterpret_cast<uint32_t*>(&s.q)[i] = 0;
    }
    step_sync();
    const bool has_last = own.page(own.n_pages - 1) == position / KIGO_PAGE;
    take_heads<kDp, kAtOnce>(a, s, set, 0, block, head, heads, {position, has_last, &sight.last_page});
    step_sync();
    float* own_mixes = mixes + warp * heads * PageScratch<kDp>::kRow;
#pragma unroll 1
    for (uint32_t first = 0; first < own.n_pages; first += kChunk) {
        if (own.sees(first + warp)) {
            const auto last_key = static_cast<int32_t>(position - own.page(first + warp) * KIGO_PAGE);
            attend_to_page<kDp>(p, s, reader, last_key, heads, s.sums[warp], own_mixes);
        }
        step_sync();
        fold_pages<kDp>(a, own, first, block, head, heads, partials, mark, set, s, mixes);
        // The next chunk's mixes stand in the same place.
        if (first + kChunk < own.n_pages) step_sync();
    }
}

}  // namespace
