// Attention over the paged KV cache: attn_decode_<dp> for single rows, attn_prefill_<dp> for tiles of rows. What they compute
// from a page, and the order of every sum, is in attention.cuh. Byte counts, times and what was tried: attention.md.
// On sm_90a attn_decode_<dp> of dp 64, 96 and 128 takes chunks (chunks.cuh), for which it wants dynamic shared memory.

#include "attention.cuh"

namespace {

constexpr uint32_t kThreads = 128;

}  // namespace

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "chunks.cuh"
#endif

namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int kDp>
constexpr bool kTakesChunks = kDp == 64 || kDp == 96 || kDp == 128;
static_assert(kPairedWarps * kWarp == kThreads);
#else
template <int kDp>
constexpr bool kTakesChunks = false;
#endif

// From how many pages on, and up to how many, each is a unit of its own. Fewer are sooner read by one block than put together,
// and to put more together takes longer than the pages of a chunk one after the other.
constexpr uint32_t kFewestPageUnits = 4, kMostPageUnits = 40;

// ---- decode ---------------------------------------------------------------------------------------------------------
// The four warps of a block share a page: warp w scores tiles 2w and 2w+1, whose weights are the operand of step w of the
// mix, and mixes a quarter of the dimensions. A block's unit of work is a page, or a chunk when there are many.

template <int kDp>
__device__ __forceinline__ void decode(const KigoAttention& p) {
    constexpr int kPieces = kDp / 32;  // 16-byte pieces of a vector a lane holds; tiles of dimensions a warp mixes
    constexpr bool kQShared = kDp > 128;
    __shared__ float page_largest[4][16];
    __shared__ uint4 page_weights[4][32];
    __shared__ uint4 q_shared[kQShared ? 2 * kPieces : 1][32];
    __shared__ bool is_last;

    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t group = p.n_head / p.n_head_kv, m_tiles = (group + 15) / 16;
    const uint32_t head_kv = blockIdx.x / m_tiles, m_first = blockIdx.x % m_tiles * 16;
    const uint32_t head = head_kv * group + m_first, heads = min(16u, group - m_first);
    const uint32_t row = blockIdx.y, split = blockIdx.z;

    // Rows and page tables are read before the wait. The kernels of a layer never write them, and what did was complete
    // before the kernel ahead of this one passed its own wait and let this one start.
    const KigoRow* source = at<KigoRow>(p.rows) + row;
    const uint32_t position = __ldcg(&source->position);
    const uint64_t* pages = at<uint64_t>(__ldcg(&source->pages)) + p.table;
    auto area_at = [&](uint32_t page) { return __ldcg(pages + (p.areas - p.table) + page); };
    // A unit of one page spreads a context over the blocks; a chunk leaves less to fold at the end. Units are counted from that of
    // the first page; the first chunk may lack pages.
    const uint32_t first_page = first_page_of(position, p.before), n_pages = position / KIGO_PAGE + 1;
    const uint32_t seen = n_pages - first_page;
    const bool by_page = seen >= kFewestPageUnits && seen <= min(kMostPageUnits, 4 * (p.splits - 1));
    const uint32_t span = by_page ? 1 : kChunk, first_unit = first_page / span;
    const uint32_t units = (n_pages - 1) / span + 1 - first_unit, blocks = min(units, p.splits);
    auto page_of = [&](uint32_t unit) { return max((first_unit + unit) * span, first_page); };
    uint32_t page = page_of(split);
    uint64_t address = split < blocks ? __ldcg(pages + page) : 0;
    const uint64_t area_of_unit = area_at(page_of(min(lane, units - 1)));  // for the block that combines

    const uint64_t here = page_offset(p, kDp, head_kv);
    uint4 k[2][kPieces], v[kPieces][2];
    auto load_k = [&](uint64_t address) {
        const uint4* from = at<uint4>(address + here);
#pragma unroll
        for (int j = 0; j < kPieces; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) k[i][j] = __ldcg(from + key_of(2 * warp + i, g) * (kDp / 8) + j * 4 + t);
        }
    };
    auto load_v = [&](uint64_t address) {
        const uint4* from = at<uint4>(address + here) + KIGO_PAGE * (kDp / 8);
#pragma unroll
        for (int n = 0; n < kPieces; n++) {
#pragma unroll
            for (int h = 0; h < 2; h++) v[n][h] = __ldcg(from + ((warp * kPieces + n) * 8 + g) * 8 + h * 4 + t);
        }
    };
    // All pages but the last are as old.
#if __CUDA_ARCH__ >= 900
    const bool is_old = page + 1 < n_pages;
#else
    const bool is_old = false;  // no kernel starts early
#endif
    if (split < blocks && is_old) {
        load_k(address);
        load_v(address);
    }
    pdl_wait();
    pdl_launch();
    if (split >= blocks) return;

    const uint4* q = at<uint4>(p.q) + (static_cast<uint64_t>(row) * p.n_head + head) * (kDp / 8);
    auto q_piece = [&](int j, int r) {
        return g + 8 * r < heads ? __ldcg(q + (g + 8 * r) * (kDp / 8) + j * 4 + t) : make_uint4(0, 0, 0, 0);
    };
    uint4 q_lane[kQShared ? 1 : 2 * kPieces];
    if constexpr (kQShared) {
#pragma unroll
        for (int i = warp * kPieces / 2; i < (warp + 1) * kPieces / 2; i++) q_shared[i][lane] = q_piece(i / 2, i % 2);
    } else {
#pragma unroll
        for (int i = 0; i < 2 * kPieces; i++) q_lane[i] = q_piece(i / 2, i % 2);
    }

    if (!is_old) {
        load_k(address);
        load_v(address);
    }
    if constexpr (kQShared) barrier_wait(1, kThreads);

    float M[2] = {-INFINITY, -INFINITY}, L[2] = {-0.0f, -0.0f}, O[kPieces][4];
#pragma unroll
    for (int n = 0; n < kPieces; n++) O[n][0] = O[n][1] = O[n][2] = O[n][3] = -0.0f;

    while (true) {
        const bool unit_ends = (page + 1) % span == 0 || page + 1 == n_pages;
        const uint32_t next = unit_ends ? (page / span + p.splits) * span : page + 1;
        const bool more = next < n_pages;
        const uint64_t next_address = more ? __ldcg(pages + next) : 0;
        // Partials of a unit are in the area of its first page.
        const uint64_t area = unit_ends && units > 1 ? area_at(max(page / span * span, first_page)) : 0;

        float s[2][4], m[2], l[2];
        scores<kDp, 2>(
            s, [&](int j, int r) { return kQShared ? q_shared[2 * j + r][lane] : q_lane[kQShared ? 0 : 2 * j + r]; },
            [&](int i, int j) { return k[i][j]; });
        if (more) load_k(next_address);

        cap_scores(p, s);
        const int32_t last_key = static_cast<int32_t>(position - page * KIGO_PAGE);
        if (last_key < KIGO_PAGE - 1 || last_key > static_cast<int32_t>(p.before)) {
            mask<2>(s, 2 * warp, t, last_key, last_key, p.before);
#pragma unroll
            for (int n = 0; n < kPieces; n++) {
#pragma unroll
                for (int h = 0; h < 2; h++) trim(v[n][h], last_key + 1 - static_cast<int32_t>(h * 32 + t * 8));
            }
        }
        largest<2>(s, m);
        if (t == 0) {
            page_largest[warp][g] = m[0];
            page_largest[warp][g + 8] = m[1];
        }
        barrier_wait(1, kThreads);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int i = g + 8 * r;
            m[r] = fmaxf(fmaxf(page_largest[0][i], page_largest[1][i]), fmaxf(page_largest[2][i], page_largest[3][i]));
        }
        uint32_t w[4][4];
        weigh(w[0], s, m);
        page_weights[warp][lane] = make_uint4(w[0][0], w[0][1], w[0][2], w[0][3]);
        barrier_wait(1, kThreads);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint4 x = page_weights[j][lane];
            w[j][0] = x.x, w[j][1] = x.y, w[j][2] = x.z, w[j][3] = x.w;
        }
        sum_weights(l, w);
        float o[kPieces][4];
        mix<kPieces>(o, w, [&](int n, int h) { return v[n][h]; });
        if (more) load_v(next_address);

        Factors f[2] = {rescale(M[0], m[0]), rescale(M[1], m[1])};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            L[r] = fold(L[r], l[r], f[r]);
#pragma unroll
            for (int n = 0; n < kPieces; n++) {
                O[n][2 * r] = fold(O[n][2 * r], o[n][2 * r], f[r]);
                O[n][2 * r + 1] = fold(O[n][2 * r + 1], o[n][2 * r + 1], f[r]);
            }
        }
        if (unit_ends) {
            if (units == 1) break;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (g + 8 * r < heads) {
                    float2* to = at<float2>(area) + (head + g + 8 * r) * (kDp / 2 + 1);
                    if (warp == 0 && t == 0) __stcg(to, make_float2(M[r], L[r]));
#pragma unroll
                    for (int n = 0; n < kPieces; n++)
                        __stcg(to + 1 + (warp * kPieces + n) * 4 + t, make_float2(O[n][2 * r], O[n][2 * r + 1]));
                }
                M[r] = -INFINITY, L[r] = -0.0f;
#pragma unroll
                for (int n = 0; n < kPieces; n++) O[n][2 * r] = O[n][2 * r + 1] = -0.0f;
            }
            if (!more) break;
        }
        page = next;
    }

    float* out = at<float>(p.out) + static_cast<uint64_t>(row) * p.out_stride + head * p.head_dim;
    uint32_t* magnitude_of_row = at<uint32_t>(p.magnitudes) + row;
    uint32_t top = 0;
    if (units == 1) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float inverse = last_factor(p, head + min(g + 8 * r, heads - 1), M[r], L[r]);
#pragma unroll
            for (int n = 0; n < kPieces; n++) {
                const uint32_t d = (warp * kPieces + n) * 8 + 2 * t;
                if (g + 8 * r < heads && d < p.head_dim) {
                    const float2 x = scale_pair(O[n] + 2 * r, inverse);
                    *reinterpret_cast<float2*>(out + (g + 8 * r) * p.head_dim + d) = x;
                    top = max(top, max(magnitude(x.x), magnitude(x.y)));
                }
            }
        }
        top = __reduce_max_sync(~0u, top);
        if (lane == 0) atomicMax(magnitude_of_row, top);
        // Last, so that who has none need not pass by the code.
        if (!p.operands) return;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const HeadOperands operands(p, row, head + g + 8 * r);
#pragma unroll
            for (int n = 0; n < kPieces; n++) {
                if (g + 8 * r < heads) operands.put((warp * kPieces + n) * 8 + 2 * t, make_float2(O[n][2 * r], O[n][2 * r + 1]));
            }
        }
        return;
    }

    barrier_wait(1, kThreads);
    if (threadIdx.x == 0) is_last = counts_last(at<uint32_t>(p.counters) + row * gridDim.x + blockIdx.x, blocks);
    barrier_wait(1, kThreads);
    if (!is_last) return;

    // The last block folds the units: a warp has a head, a lane two dimensions in every 64.
    constexpr int kPairs = (kDp + 63) / 64, kBatch = kDp <= 128 ? 16 : 8;
    const uint32_t units_in_chunk = kChunk / span, of_chunk = first_unit % units_in_chunk;  // of the first unit
    for (uint32_t h = warp; h < heads; h += 4) {
        float M1 = -INFINITY, L1 = -0.0f, Mc = -INFINITY, Lc = -0.0f;
        float2 O1[kPairs], Oc[kPairs];
#pragma unroll
        for (int n = 0; n < kPairs; n++) O1[n] = Oc[n] = make_float2(-0.0f, -0.0f);
        uint64_t area_of_lane = area_of_unit;
        for (uint32_t first = 0; first < units; first += 32) {
            if (first > 0) area_of_lane = area_at(page_of(min(first + lane, units - 1)));
            const uint64_t of_head = (head + h) * (kDp + 2) * sizeof(float);
            const float2 ml_of_lane = __ldcg(at<float2>(area_of_lane + of_head));
            for (uint32_t batch = first; batch < min(first + 32, units); batch += kBatch) {
                float2 o[kBatch][kPairs];
#pragma unroll
                for (int i = 0; i < kBatch; i++) {
                    const float2* from = at<float2>(__shfl_sync(~0u, area_of_lane, batch - first + i) + of_head) + 1;
#pragma unroll
                    for (int n = 0; n < kPairs; n++)
                        if (kDp % 64 == 0 || n * 64 + lane * 2 < kDp) o[i][n] = __ldcg(from + n * 32 + lane);
                }
#pragma unroll
                for (int i = 0; i < kBatch; i++) {
                    if (batch + i < units) {
                        const float m = __shfl_sync(~0u, ml_of_lane.x, batch - first + i);
                        const float l = __shfl_sync(~0u, ml_of_lane.y, batch - first + i);
                        Factors f = rescale(Mc, m);
                        Lc = fold(Lc, l, f);
#pragma unroll
                        for (int n = 0; n < kPairs; n++) {
                            Oc[n].x = fold(Oc[n].x, o[i][n].x, f);
                            Oc[n].y = fold(Oc[n].y, o[i][n].y, f);
                        }
                        if ((of_chunk + batch + i + 1) % units_in_chunk == 0 || batch + i + 1 == units) {
                            f = rescale(M1, Mc);
                            L1 = fold(L1, Lc, f);
                            Mc = -INFINITY, Lc = -0.0f;
#pragma unroll
                            for (int n = 0; n < kPairs; n++) {
                                O1[n].x = fold(O1[n].x, Oc[n].x, f);
                                O1[n].y = fold(O1[n].y, Oc[n].y, f);
                                Oc[n] = make_float2(-0.0f, -0.0f);
                            }
                        }
                    }
                }
            }
        }
        const float inverse = last_factor(p, head + h, M1, L1);
#pragma unroll
        for (int n = 0; n < kPairs; n++) {
            const uint32_t d = n * 64 + lane * 2;
            if (d < p.head_dim) {
                const float2 x = make_float2(__fmul_rn(O1[n].x, inverse), __fmul_rn(O1[n].y, inverse));
                *reinterpret_cast<float2*>(out + h * p.head_dim + d) = x;
                if (p.operands) HeadOperands(p, row, head + h).put(d, x);
                top = max(top, max(magnitude(x.x), magnitude(x.y)));
            }
        }
    }
    top = __reduce_max_sync(~0u, top);
    if (lane == 0) atomicMax(magnitude_of_row, top);
}

template <int kDp, uint32_t kWarps>
__device__ __forceinline__ void attend_alone(const KigoAttention& p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (kTakesChunks<kDp>) {
        // Few wide pages are sooner read by a block each.
        const uint32_t position = __ldcg(&(at<KigoRow>(p.rows) + blockIdx.y)->position);
        const uint32_t seen = position / KIGO_PAGE + 1 - first_page_of(position, p.before);
        const bool by_page = kDp > 64 && seen >= kFewestPageUnits && seen <= min(kMostWidePageUnits, p.splits);
        if (!by_page) return chunks<kDp, kWarps>(p);
        if (threadIdx.x >= kThreads) return;
    }
#endif
    decode<kDp>(p);
}

// ---- prefill --------------------------------------------------------------------------------------------------------
// A warp has 16 rows of the tile and runs through the pages in order, its state in registers; the block copies K and V to
// shared memory, one page ahead where two fit. The state of the chunks before the current one waits in `out`.

// Copies the first `bytes` (0..16) of 16 bytes to shared memory in the background and fills the rest with zeros.
__device__ __forceinline__ void copy_async_part(void* shared, const void* global, uint32_t bytes) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}

// A row of kRow 16-byte pieces lies in shared memory as it is, or, where neighbouring rows would put the same piece into the
// same banks, with pieces 4 apart exchanged in odd rows.
template <int kRow>
__device__ __forceinline__ uint32_t swizzle(uint32_t row, uint32_t piece) {
    return row * kRow + (kRow % 8 == 0 ? piece ^ (row & 1) << 2 : piece);
}

// This thread's piece i of the 64 * kRow pieces that a block copies, as (row, piece) of piece 0 and a distance from it that
// holds in both memories.
template <int kRow>
struct Copy {
    static constexpr uint32_t kWidth = kRow % 8 == 0 ? 8 : kRow, kColumns = kRow / kWidth, kCount = KIGO_PAGE * kRow / kThreads;
    static __device__ __forceinline__ uint32_t row() { return threadIdx.x / kWidth; }
    static __device__ __forceinline__ uint32_t piece() { return threadIdx.x % kWidth; }
    static __device__ __forceinline__ uint32_t distance(uint32_t i) {
        return kRow % 8 == 0 ? i / kColumns * (kThreads / 8) * kRow + i % kColumns * 8 : i * kThreads;
    }
};

template <int kDp>
__device__ __forceinline__ void prefill(const KigoAttention& p) {
    constexpr int kPieces = kDp / 32, kRow = kDp / 8, kPagePieces = KIGO_PAGE * kRow;  // pieces: of a lane, of a key, of K or V
    constexpr int kStages = kDp <= 128 ? 2 : 1;
    constexpr bool kQShared = kDp > 128;
    constexpr int kMixed = 4;          // tiles of dimensions at a time
    // Of heads of 128 it takes as long as it saves the next product's prep.
    constexpr bool kHandsOn = kDp == 64;
    extern __shared__ uint4 shared[];  // K, V of each stage; then q of each warp if kQShared

    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t head = blockIdx.y, head_kv = head / (p.n_head / p.n_head_kv);

    // Later tiles see more pages: they go first, so that the short ones fill the end. As in decode, this is read early.
    const KigoTile* tile = at<KigoTile>(p.tiles) + (gridDim.x - 1 - blockIdx.x);
    const uint32_t first_row = __ldcg(&tile->first_row), n_rows = __ldcg(&tile->n_rows);
    const KigoRow* source = at<KigoRow>(p.rows) + first_row;
    const uint32_t first_position = __ldcg(&source->position), n_keys = first_position + n_rows;
    const uint64_t* pages = at<uint64_t>(__ldcg(&source->pages)) + p.table;
    const uint32_t first_page = first_page_of(first_position, p.before), n_pages = (n_keys - 1) / KIGO_PAGE + 1;
    const uint64_t here = page_offset(p, kDp, head_kv), first_address = __ldcg(pages + first_page);
    uint64_t next_address = n_pages > first_page + 1 ? __ldcg(pages + first_page + 1) : 0;
    pdl_wait();
    pdl_launch();

    auto load = [&](uint32_t page, uint64_t address) {
        using K = Copy<kRow>;
        using V = Copy<8>;
        const uint4* from = at<uint4>(address + here);
        uint4* to = shared + (page % kStages) * 2 * kPagePieces;
        const uint32_t k_from = K::row() * kRow + K::piece(), k_to = swizzle<kRow>(K::row(), K::piece());
#pragma unroll
        for (uint32_t i = 0; i < K::kCount; i++) copy_async(to + k_to + K::distance(i), from + k_from + K::distance(i));
        // Unwritten values may hold NaN, which a weight of 0 does not silence: they become zeros.
        const int32_t valid = static_cast<int32_t>(n_keys - page * KIGO_PAGE - V::piece() * 8);
        const uint32_t bytes = 2 * max(0, min(8, valid));
        from += kPagePieces + threadIdx.x, to += kPagePieces + swizzle<8>(V::row(), V::piece());
#pragma unroll
        for (uint32_t i = 0; i < K::kCount; i++) copy_async_part(to + V::distance(i), from + V::distance(i), bytes);
        copy_async_commit();
    };
    load(first_page, first_address);

    const uint32_t row0 = warp * 16 + g;  // of the tile; the other is row0 + 8
    const uint4* q = at<uint4>(p.q) + (static_cast<uint64_t>(first_row) * p.n_head + head) * (kDp / 8);
    auto q_piece = [&](int j, int r) {
        const uint32_t row = row0 + 8 * r;
        if (row >= n_rows) return make_uint4(0, 0, 0, 0);
        return __ldcg(q + static_cast<uint64_t>(row) * p.n_head * (kDp / 8) + j * 4 + t);
    };
    uint4* q_shared = shared + kStages * 2 * kPagePieces + warp * 2 * kPieces * 32 + lane;
    uint4 q_lane[kQShared ? 1 : 2 * kPieces];
#pragma unroll
    for (int i = 0; i < 2 * kPieces; i++) (kQShared ? q_shared[i * 32] : q_lane[kQShared ? 0 : i]) = q_piece(i / 2, i % 2);

    float M[2], L[2], O[kDp / 8][4];
    float M1[2] = {-INFINITY, -INFINITY}, L1[2] = {-0.0f, -0.0f};
    // Where piece 4j + t is in the rows this lane reads, which are odd where g is.
    const uint32_t even = t + (g & 1) * 4, odd = t + 4 - (g & 1) * 4;
    auto piece = [&](int j, bool exchanged) { return exchanged ? j / 2 * 8 + (j % 2 ? odd : even) : j * 4 + t; };
    auto clear = [&] {
        M[0] = M[1] = -INFINITY;
        L[0] = L[1] = -0.0f;
#pragma unroll
        for (int n = 0; n < kDp / 8; n++) O[n][0] = O[n][1] = O[n][2] = O[n][3] = -0.0f;
    };
    clear();

    for (uint32_t page = first_page; page < n_pages; page++) {
        copy_async_wait<0>();
        __syncthreads();
        auto load_next = [&] {
            if (page + 1 == n_pages) return;
            load(page + 1, kStages == 2 ? next_address : __ldcg(pages + page + 1));
            if (kStages == 2 && page + 2 < n_pages) next_address = __ldcg(pages + page + 2);
        };
        if (kStages == 2) load_next();

        // Last key of this page for rows row0 and row0 + 8; negative when they see none.
        const int32_t last_key = static_cast<int32_t>(first_position + row0) - static_cast<int32_t>(page * KIGO_PAGE);
        const int32_t warp_first = last_key - static_cast<int32_t>(g);
        // Whether some row of the warp sees some key of the page, and whether some row does not see all.
        const bool any = warp_first + 15 >= 0 && warp_first - static_cast<int32_t>(p.before) < KIGO_PAGE;
        const bool partly = warp_first < KIGO_PAGE - 1 || warp_first + 15 > static_cast<int32_t>(p.before);
        if (warp * 16 < n_rows && any) {
            const uint4* k = shared + (page % kStages) * 2 * kPagePieces;
            const uint4* v = k + kPagePieces;
            float s[8][4], m[2], l[2];
            scores<kDp, 8>(
                s, [&](int j, int r) { return kQShared ? q_shared[(2 * j + r) * 32] : q_lane[kQShared ? 0 : 2 * j + r]; },
                [&](int i, int j) { return k[key_of(i, g) * kRow + piece(j, kRow % 8 == 0)]; });
            cap_scores(p, s);
            if (partly) mask<8>(s, 0, t, last_key, last_key + 8, p.before);
            largest<8>(s, m);
            uint32_t w[4][4];
#pragma unroll
            for (int j = 0; j < 4; j++) weigh(w[j], s + 2 * j, m);
            sum_weights(l, w);
            Factors f[2] = {rescale(M[0], m[0]), rescale(M[1], m[1])};
            L[0] = fold(L[0], l[0], f[0]);
            L[1] = fold(L[1], l[1], f[1]);
#pragma unroll
            for (int first = 0; first < kDp / 8; first += kMixed) {
                float o[kMixed][4];
                mix<kMixed>(o, w, [&](int n, int h) { return v[(first + n) * 64 + g * 8 + piece(h, true)]; });
#pragma unroll
                for (int n = 0; n < kMixed; n++) {
#pragma unroll
                    for (int c = 0; c < 4; c++) O[first + n][c] = fold(O[first + n][c], o[n][c], f[c / 2]);
                }
            }
        }
        if (kStages == 1) {
            __syncthreads();
            load_next();
        }

        const bool ends = page + 1 == n_pages;
        if (page % kChunk == kChunk - 1 || ends) {
            uint32_t top[2] = {0, 0};
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // A row of the tile may end in an earlier chunk, or start in a later one.
                const int32_t last = last_key + 8 * r;
                const bool seen = last + static_cast<int32_t>(page % kChunk * KIGO_PAGE) >= 0 && last - static_cast<int32_t>(p.before) < KIGO_PAGE;
                const Factors f = rescale(M1[r], M[r]);
                if (seen) L1[r] = fold(L1[r], L[r], f);
                const float factor = ends ? last_factor(p, head, M1[r], L1[r]) : 1.0f;
                if (row0 + 8 * r >= n_rows) continue;
                const uint64_t row = first_row + row0 + 8 * r;
                float* to = at<float>(p.out) + row * p.out_stride + head * p.head_dim + 2 * t;
                // Elements 32 before.
                float2 lower[4];
#pragma unroll
                for (int n = 0; n < kDp / 8; n++) {
                    if (n * 8 + 2 * t >= p.head_dim) continue;
                    float2* cell = reinterpret_cast<float2*>(to + n * 8);
                    float2 x = page / kChunk == first_page_of(first_position, p.before) / kChunk ? make_float2(-0.0f, -0.0f) : *cell;
                    if (seen) x = make_float2(fold(x.x, O[n][2 * r], f), fold(x.y, O[n][2 * r + 1], f));
                    if (ends) {
                        x = make_float2(__fmul_rn(x.x, factor), __fmul_rn(x.y, factor));
                        top[r] = max(top[r], max(magnitude(x.x), magnitude(x.y)));
                    }
                    *cell = x;
                    if (!kHandsOn || !ends || !p.operands) continue;
                    if (n % 8 < 4) {
                        lower[n % 4] = x;
                    } else {
                        put_operands(p, row, head * kDp + (n - 4) * 8 + 2 * t, lower[n % 4], x);
                    }
                }
            }
            if (ends) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    top[r] = max(top[r], __shfl_xor_sync(~0u, top[r], 1));
                    top[r] = max(top[r], __shfl_xor_sync(~0u, top[r], 2));
                    const uint32_t row = row0 + 8 * r;
                    if (t == 0 && row < n_rows) atomicMax(at<uint32_t>(p.magnitudes) + first_row + row, top[r]);
                }
            }
            clear();
        }
    }
}

}  // namespace

#define KIGO_ATTENTION(dp, decode_blocks, prefill_blocks)                                             \
    extern "C" __global__ void __launch_bounds__(kThreads, kTakesChunks<dp> ? 2 : decode_blocks)      \
        attn_decode_##dp(const __grid_constant__ KigoAttention p) {                                   \
        attend_alone<dp, kThreads / kWarp>(p);                                                        \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(kThreads, prefill_blocks)                            \
        attn_prefill_##dp(const __grid_constant__ KigoAttention p) {                                  \
        prefill<dp>(p);                                                                               \
    }

// Blocks that fit on a multiprocessor.
KIGO_ATTENTION(32, 4, 3)
KIGO_ATTENTION(64, 4, 3)
KIGO_ATTENTION(96, 2, 2)
KIGO_ATTENTION(128, 2, 2)
KIGO_ATTENTION(192, 2, 2)
KIGO_ATTENTION(256, 2, 2)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Few rows: a block has as many warps and slots as two of attn_decode_128.
extern "C" __global__ void __launch_bounds__(kLoneWarps* kWarp, 1) attn_decode_lone_128(const __grid_constant__ KigoAttention p) {
    attend_alone<128, kLoneWarps>(p);
}
#endif
