// Attention of many rows on sm_90a, attn_flash_<dp>: tiles of rows against the paged KV cache on the asynchronous tensor cores.
//
// Every number is as in attn_prefill_<dp>: attention.cuh fixes the order of sums, and its products add up the same columns of k
// in the same steps of 16. These are not neighbours in the cache: of 32 elements, 4 of each 8 make a step (slot_of), so pages
// are copied in pieces of 4 elements, each to its step, and the registers of the left operands hold what fits.
//
// Few tiles that see many pages go chunk by chunk, attn_flash_parts_<dp> and attn_join_<dp> (flash_join.cuh): more blocks have something to
// do, and chunks are folded as here.
//
// A block has a warpgroup that copies pages ahead, and two that compute: each has a head of the same group, so that they share the
// pages, and 64 rows. A warpgroup lets the tensor cores compute the scores of the next page and mix the values of this one
// while it weighs; blocks stay and take one pair of heads and tile after the other.
#include <type_traits>

#include "attention.cuh"
#include "flash_join.cuh"
#include "wgmma_widths.cuh"

constexpr int kComputing = 2, kThreads = (kComputing + 1) * kGroupThreads;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define KIGO_FLASH(dp) flash<dp>(p, Whole{})
#define KIGO_FLASH_PARTS(dp) flash<dp>(p.attention, p)

namespace {

// Registers of a thread of each warpgroup.
template <int kDp>
constexpr int kComputingRegisters = kDp > 96 ? 240 : 232;
template <int kDp>
constexpr int kCopyingRegisters = kDp > 96 ? 24 : 40;
constexpr int kRowBytes = 128;  // of shared memory, swizzled: 64 halves of a key, or a dimension's of 64 keys
// Pages that are there or under way.
constexpr uint32_t kStages = 4;
// Works that are told ahead: more than pages are, so that none is overwritten before it is done.
constexpr uint32_t kTold = 8;

// The shared memory of a block, from a multiple of kAlign on: slots of keys, of values and 8 dimensions of ones, whose mix is the sum of
// the weights; results of the chunks before; what is known of works; barriers.
template <int kDp>
struct Plan {
    static constexpr int kAlign = 1024;
    static constexpr int kKeyBytes = (kDp + 63) / 64 * KIGO_PAGE * kRowBytes, kValueBytes = (kDp + 8) * kRowBytes;
    static constexpr int kValues = kStages * kKeyBytes, kResults = kValues + kStages * kValueBytes;
    static constexpr int kOfThread = kDp / 8 + 1, kTold = kResults + kComputing * kGroupThreads * kOfThread * 16;
    static constexpr int kBarriers = kTold + ::kTold * 32;
    static_assert(kAlign + kBarriers + 4 * kStages * 8 <= KIGO_FLASH_SHARED);
};

// Barriers of each slot: that keys are there, that none needs them any more, the same of values.
enum Barrier { kKeysFull, kKeysEmpty, kValuesFull, kValuesEmpty };

// That of page `n` of all that the block takes.
template <int kDp>
__device__ __forceinline__ uint32_t barrier_of(uint32_t shared, Barrier kind, uint32_t n) {
    return shared + Plan<kDp>::kBarriers + (kind * kStages + n % kStages) * 8;
}

__device__ __forceinline__ void wait_at(uint32_t barrier, uint32_t phase) {
    asm volatile("{\n.reg .pred done;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra AGAIN_%=;\n}" ::"r"(barrier),
                 "r"(phase)
                 : "memory");
}

__device__ __forceinline__ void arrive_at(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits for page `n`, or until its slot is free.
template <int kDp>
__device__ __forceinline__ void wait_full(uint32_t shared, Barrier kind, uint32_t n) {
    wait_at(barrier_of<kDp>(shared, kind, n), n / kStages % 2);
}
template <int kDp>
__device__ __forceinline__ void wait_empty(uint32_t shared, Barrier kind, uint32_t n) {
    wait_at(barrier_of<kDp>(shared, kind, n), n / kStages % 2 ^ 1);
}

// Where element `x` of a vector, or key `x` of a page, stands among those that the products run along: step x / 16, and in it.
__device__ __forceinline__ constexpr uint32_t slot_of(uint32_t x) { return (x & ~31u) | (x >> 2 & 1) << 4 | (x >> 3 & 3) << 2 | (x & 3); }

// Copies 4 halves to shared memory in the background, of which the first `n` are taken and the rest become zeros.
__device__ __forceinline__ void copy_four(uint32_t to, const void* from, uint32_t n) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(2 * n) : "memory");
}

// Arrives when what this thread has copied so far is there.
__device__ __forceinline__ void arrive_copied_at(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// What was written to shared memory before is seen by the tensor cores.
__device__ __forceinline__ void fence_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Operand b at `at`, of columns of 128 bytes, as wgmma_columns describes it.
__device__ __forceinline__ uint64_t columns_at(uint32_t at) {
    uint64_t out;
    asm("mov.b64 %0, {%1, %2};" : "=l"(out) : "r"(at / 16), "r"(1u << 30 | 1024 / 16));
    return out;
}

// Heads of a kv head, in lots of as many as a block computes; lots of all kv heads.
struct Lots {
    uint32_t group, of_group, n;

    __device__ __forceinline__ Lots(const KigoAttention& p)
        : group(p.n_head / p.n_head_kv), of_group((group + kComputing - 1) / kComputing), n(of_group * p.n_head_kv) {}
};

// What those who compute a work are told; its pages, where it is a part.
struct Told {
    uint32_t first_row, n_rows, first_position, first_head, n_heads, page, n_pages;
};

// That a work is all pages of a tile, where it is not a part of them.
struct Whole {};
template <class Parts>
constexpr bool kHasParts = !std::is_same_v<Parts, Whole>;

__device__ __forceinline__ constexpr uint32_t parts_of(const Whole&) { return 1; }
__device__ __forceinline__ uint32_t parts_of(const KigoAttentionParts& p) { return (p.n_chunks + p.of_part - 1) / p.of_part; }

// Works of this block, each a lot of heads and a tile, or a part of its pages: calls `f` with the number of each. Those with the last tiles,
// which see the most pages, come first; they go back and forth over the blocks, so that each has about as many pages.
template <class Parts, class F>
__device__ __forceinline__ void for_works(const KigoAttention& p, const Parts& parts, F f) {
    const uint32_t n = Lots(p).n * p.n_tiles * parts_of(parts);
    for (uint32_t first = 0, round = 0; first < n; first += gridDim.x, round++) {
        const uint32_t index = first + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (index < n) f(index);
    }
}

// Copies the pages of all works, as one warpgroup.
template <int kDp, class Parts>
struct Copier {
    using P = Plan<kDp>;
    // Pieces of 4 elements: of a key, of a dimension; rows that are copied at a time.
    static constexpr uint32_t kOfKey = kDp / 4, kOfValue = KIGO_PAGE / 4;
    static constexpr uint32_t kKeys = kDp > 64 ? 4 : 8, kDims = kGroupThreads / kOfValue;

    const KigoAttention& p;
    const Parts& parts;
    uint32_t shared;
    // Pages so far.
    uint32_t n = 0;

    __device__ __forceinline__ void copy_keys(const uint8_t* from) {
        const uint32_t thread = threadIdx.x % kGroupThreads, key = thread / kOfKey, piece = thread % kOfKey;
        // Byte of a row, in its part of 64 elements.
        const uint32_t byte = 2 * slot_of(4 * piece);
        wait_empty<kDp>(shared, kKeysEmpty, n);
        const uint32_t to = shared + n % kStages * P::kKeyBytes + byte / kRowBytes * (KIGO_PAGE * kRowBytes);
        from += (key * kDp + 4 * piece) * 2;
#pragma unroll
        for (uint32_t i = 0; i < KIGO_PAGE / kKeys; i++) {
            const uint32_t row = slot_of(i * kKeys | key);
            if (key < kKeys) copy_four(to + row * kRowBytes + (byte % kRowBytes ^ row % 8 * 16), from + i * kKeys * kDp * 2, 4);
        }
        arrive_copied_at(barrier_of<kDp>(shared, kKeysFull, n));
        // Of what was told, which is no copy.
        if (thread == 0) arrive_at(barrier_of<kDp>(shared, kKeysFull, n));
    }

    // Unwritten values may hold NaN, which a weight of 0 does not silence: those from `valid` on become zeros.
    __device__ __forceinline__ void copy_values(const uint8_t* from, int32_t valid) {
        const uint32_t thread = threadIdx.x % kGroupThreads, dim = thread / kOfValue, piece = thread % kOfValue;
        const uint32_t byte = 2 * slot_of(4 * piece);
        const uint32_t exist = max(0, min(4, valid - static_cast<int32_t>(4 * piece)));
        wait_empty<kDp>(shared, kValuesEmpty, n);
        const uint32_t to = shared + P::kValues + n % kStages * P::kValueBytes;
        from += (dim * KIGO_PAGE + 4 * piece) * 2;
#pragma unroll
        for (uint32_t i = 0; i < kDp / kDims; i++) {
            const uint32_t row = i * kDims | dim;
            copy_four(to + row * kRowBytes + (byte ^ row % 8 * 16), from + i * kDims * KIGO_PAGE * 2, exist);
        }
        arrive_copied_at(barrier_of<kDp>(shared, kValuesFull, n));
        n++;
    }

    __device__ __forceinline__ void run() {
        uint32_t number = 0;
        for_works(p, parts, [&](uint32_t index) {
            const Lots lots(p);
            const uint32_t lot = index % lots.n, head_kv = lot / lots.of_group, of_lot = index / lots.n;
            const KigoTile* tile = at<KigoTile>(p.tiles) + (p.n_tiles - 1 - (kHasParts<Parts> ? of_lot % p.n_tiles : of_lot));
            const uint32_t first_row = __ldcg(&tile->first_row), n_rows = __ldcg(&tile->n_rows);
            const KigoRow* source = at<KigoRow>(p.rows) + first_row;
            const uint32_t position = __ldcg(&source->position), n_keys = position + n_rows;
            const uint64_t* pages = at<uint64_t>(__ldcg(&source->pages)) + p.table;
            uint32_t first_page = first_page_of(position, p.before), n_pages = (n_keys - 1) / KIGO_PAGE + 1;
            bool is_empty = false;
            if constexpr (kHasParts<Parts>) {
                const uint32_t first = parts.first_chunk + of_lot / p.n_tiles * parts.of_part;
                const uint32_t end = min(first + parts.of_part, parts.first_chunk + parts.n_chunks);
                const uint32_t page = max(first_page, first * kChunk), end_page = min(n_pages, end * kChunk);
                // Who computes is told with a page, which there is always.
                is_empty = page >= end_page;
                if (!is_empty) first_page = page;
                n_pages = is_empty ? first_page + 1 : end_page;
            }
            if (threadIdx.x % kGroupThreads == 0) {
                const uint32_t first_head = head_kv * lots.group + lot % lots.of_group * kComputing;
                const uint32_t n_heads = is_empty ? 0 : min(kComputing, (head_kv + 1) * lots.group - first_head);
                const uint32_t to = shared + P::kTold + number % ::kTold * 32;
                if constexpr (kHasParts<Parts>) {
                    asm volatile("st.shared.v2.u32 [%0 + 24], {%1, %2};" ::"r"(to), "r"(first_page), "r"(n_pages) : "memory");
                }
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\nst.shared.u32 [%0 + 16], %5;" ::"r"(to), "r"(first_row), "r"(n_rows),
                             "r"(position), "r"(first_head), "r"(n_heads)
                             : "memory");
            }
            number++;
            uint64_t address = __ldcg(pages + first_page);
#pragma unroll 1
            for (uint32_t page = first_page; page < n_pages; page++) {
                const uint8_t* from = at<uint8_t>(address + page_offset(p, kDp, head_kv));
                if (page + 1 < n_pages) address = __ldcg(pages + page + 1);
                copy_keys(from);
                copy_values(from + KIGO_PAGE * kDp * 2, static_cast<int32_t>(n_keys - page * KIGO_PAGE));
            }
        });
    }
};

// Takes away the keys beyond the last one of each of the two rows, and those more than `before` before it.
__device__ __forceinline__ void mask_page(float (&s)[8][4], uint32_t t, int32_t last0, int32_t last1, uint32_t before) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            // Of slot 8 i + 2 t + c.
            const int32_t key = i / 4 * 32 + i % 2 * 16 + t / 2 * 8 + i / 2 % 2 * 4 + t % 2 * 2 + c;
            if (static_cast<uint32_t>(last0 - key) > before) s[i][c] = -INFINITY;
            if (static_cast<uint32_t>(last1 - key) > before) s[i][2 + c] = -INFINITY;
        }
    }
}

// Heads of tiles of 64 rows, one after the other, as one warpgroup; a thread has rows `row` and `row` + 8 of the tile.
template <int kDp, class Parts>
struct Computer {
    using P = Plan<kDp>;
    static constexpr int kSteps = kDp / 16, kTiles = kDp / 8;

    const KigoAttention& p;
    const Parts& parts;
    uint32_t shared;
    // Pages of works before, and of this one those whose values have been mixed.
    uint32_t n = 0;
    uint32_t q[kSteps][4];
    // Of a page: scores, then weights; the largest; mixes of values, and last of ones; weights as operands.
    float s[8][4], m[2], o[kTiles + 1][4];
    uint32_t w[4][4];
    // Of a chunk.
    float M[2], L[2], O[kTiles][4];

    __device__ __forceinline__ static uint32_t lane_row() { return threadIdx.x % kWarp / 4; }
    __device__ __forceinline__ static uint32_t lane_column() { return threadIdx.x % 4; }
    __device__ __forceinline__ static uint32_t row() { return threadIdx.x % kGroupThreads / kWarp * 16 + lane_row(); }

    // What this thread keeps of the chunks before: kTiles times results, then M, M, L, L of both rows.
    __device__ __forceinline__ float4* kept() const {
        const uint32_t at = shared + P::kResults + (threadIdx.x / kGroupThreads * kGroupThreads * P::kOfThread + threadIdx.x % kGroupThreads) * 16;
        return static_cast<float4*>(__cvta_shared_to_generic(at));
    }

    __device__ __forceinline__ Told told(uint32_t number) const {
        Told out;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%5];\nld.shared.u32 %4, [%5 + 16];"
                     : "=r"(out.first_row), "=r"(out.n_rows), "=r"(out.first_position), "=r"(out.first_head), "=r"(out.n_heads)
                     : "r"(shared + P::kTold + number % ::kTold * 32)
                     : "memory");
        if constexpr (kHasParts<Parts>) {
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2 + 24];"
                         : "=r"(out.page), "=r"(out.n_pages)
                         : "r"(shared + P::kTold + number % ::kTold * 32)
                         : "memory");
        }
        return out;
    }

    __device__ __forceinline__ void load_q(const Told& work, uint32_t head) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool exists = row() + 8 * r < work.n_rows;
            const uint32_t of = work.first_row + (exists ? row() + 8 * r : 0), t = lane_column();
            const uint32_t* from = at<uint32_t>(p.q) + (static_cast<uint64_t>(of) * p.n_head + head) * (kDp / 2) + t / 2 * 4 + t % 2;
#pragma unroll
            for (int step = 0; step < kSteps; step++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint32_t v = __ldcg(from + step / 2 * 16 + step % 2 * 2 + i * 8);
                    q[step][2 * i + r] = exists ? v : 0;
                }
            }
        }
    }

    // Starts the scores of page `page`.
    __device__ __forceinline__ void start_scores(uint32_t page) {
        wait_full<kDp>(shared, kKeysFull, page);
        fence_written();
        const uint32_t keys = shared + page % kStages * P::kKeyBytes;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
            const uint64_t columns = columns_at(keys + step / 4 * (KIGO_PAGE * kRowBytes) + step % 4 * 32);
            wgmma_columns_of<KIGO_PAGE>(reinterpret_cast<float(&)[32]>(s), q[step], columns, step > 0);
        }
        wgmma_commit();
    }

    // Starts the mix of the values of page `page`, which are there.
    __device__ __forceinline__ void start_mix(uint32_t page) {
        fence_written();
        const uint32_t values = shared + P::kValues + page % kStages * P::kValueBytes;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            wgmma_columns_of<kDp + 8>(reinterpret_cast<float(&)[kDp / 2 + 4]>(o), w[step], columns_at(values + step * 32), step > 0);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void release(Barrier kind, uint32_t page) const { arrive_at(barrier_of<kDp>(shared, kind, page)); }

    // Scores become weights, still as they are; returns the largest scores.
    __device__ __forceinline__ float2 weigh_page(int32_t last_key) {
        float m[2];
        wgmma_pin(reinterpret_cast<float(&)[32]>(s));
        cap_scores(p, s);
        const int32_t warp_first = last_key - static_cast<int32_t>(lane_row());
        if (warp_first < KIGO_PAGE - 1 || warp_first + 15 > static_cast<int32_t>(p.before)) {
            mask_page(s, lane_column(), last_key, last_key + 8, p.before);
        }
        largest<8>(s, m);
        const float base[2] = {m[0] == -INFINITY ? 0.0f : m[0], m[1] == -INFINITY ? 0.0f : m[1]};
#pragma unroll
        for (int i = 0; i < 32; i++) s[i / 4][i % 4] = exp2_approx(__fsub_rn(s[i / 4][i % 4], base[i / 2 % 2]));
        return {m[0], m[1]};
    }

    // Makes operands of the weights, when the tensor cores do not read those before any more.
    __device__ __forceinline__ void pack_weights() {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float* pair = &s[i / 2][i % 2 * 2];
            const __half2 halves = __floats2half2_rn(pair[0], pair[1]);
            w[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(&halves);
        }
#pragma unroll
        for (int i = 0; i < 16; i++) asm volatile("" : "+r"(w[i / 4][i % 4]));
    }

    __device__ __forceinline__ void fold_page() {
        wgmma_pin(reinterpret_cast<float(&)[kDp / 2 + 4]>(o));
        const Factors f[2] = {rescale(M[0], m[0]), rescale(M[1], m[1])};
        L[0] = fold(L[0], o[kTiles][0], f[0]);
        L[1] = fold(L[1], o[kTiles][2], f[1]);
#pragma unroll
        for (int i = 0; i < kTiles; i++) {
#pragma unroll
            for (int c = 0; c < 4; c++) O[i][c] = fold(O[i][c], o[i][c], f[c / 2]);
        }
    }

    __device__ __forceinline__ void clear() {
        M[0] = M[1] = -INFINITY;
        L[0] = L[1] = -0.0f;
#pragma unroll
        for (int i = 0; i < kTiles; i++) O[i][0] = O[i][1] = O[i][2] = O[i][3] = -0.0f;
    }

    // Folds a chunk, of which `page` is the last page, into those before. Returns what there is of both rows, M, M, L, L.
    template <class Put>
    __device__ __forceinline__ float4 fold_chunk(uint32_t page, int32_t last_key, bool begins, Put put) {
        float4* before = kept();
        const float4 was = begins ? make_float4(-INFINITY, -INFINITY, -0.0f, -0.0f) : before[kTiles * kGroupThreads];
        float M1[2] = {was.x, was.y}, L1[2] = {was.z, was.w};
        bool seen[2];
        Factors f[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            // A row of the tile may end in an earlier chunk, or start in a later one.
            const int32_t last = last_key + 8 * r;
            seen[r] = last + static_cast<int32_t>(page % kChunk * KIGO_PAGE) >= 0 && last - static_cast<int32_t>(p.before) < KIGO_PAGE;
            f[r] = rescale(M1[r], M[r]);
            if (seen[r]) L1[r] = fold(L1[r], L[r], f[r]);
        }
        const float4 now = make_float4(M1[0], M1[1], L1[0], L1[1]);
#pragma unroll
        for (int n = 0; n < kTiles; n++) {
            // Those 32 elements apart, which are one operand, after each other.
            const int i = kTiles % 8 == 0 ? n / 8 * 8 + n % 2 * 4 + n % 8 / 2 : n;
            float4 x = begins ? make_float4(-0.0f, -0.0f, -0.0f, -0.0f) : before[i * kGroupThreads];
            if (seen[0]) x.x = fold(x.x, O[i][0], f[0]), x.y = fold(x.y, O[i][1], f[0]);
            if (seen[1]) x.z = fold(x.z, O[i][2], f[1]), x.w = fold(x.w, O[i][3], f[1]);
            put(i, x, now);
        }
        clear();
        return now;
    }

    __device__ __forceinline__ void keep_chunk(uint32_t page, int32_t last_key, bool begins) {
        float4* before = kept();
        before[kTiles * kGroupThreads] = fold_chunk(page, last_key, begins, [&](int i, float4 x, float4) { before[i * kGroupThreads] = x; });
    }

    // Leaves what there is of a chunk, whose rows that see nothing of it nobody asks for.
    __device__ __forceinline__ void put_chunk(const Told& work, uint32_t page) {
        const uint32_t head = work.first_head + threadIdx.x / kGroupThreads, column = 2 * lane_column();
        const ChunkPartials<kDp> partials(parts, page / kChunk, head);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (row() + 8 * r >= work.n_rows) continue;
            const uint32_t of = work.first_row + row() + 8 * r;
#pragma unroll
            for (int i = 0; i < kTiles; i++) __stcg(partials.mix(of, i * 8 + column), make_float2(O[i][2 * r], O[i][2 * r + 1]));
            if (column == 0) __stcg(partials.sums(of), make_float2(M[r], L[r]));
        }
        clear();
    }

    // With the last chunk the result is complete.
    __device__ __forceinline__ void finish(const Told& work, uint32_t head, uint32_t page, int32_t last_key, bool begins) {
        uint32_t top[2] = {0, 0};
        const uint32_t column = 2 * lane_column();
        float* out = at<float>(p.out) + static_cast<uint64_t>(work.first_row + row()) * p.out_stride + head * p.head_dim + column;
        // Elements 32 before.
        float2 lower[2];
        float factor[2];
        fold_chunk(page, last_key, begins, [&](int i, float4 x, float4 now) {
            if (i == 0) factor[0] = last_factor(p, head, now.x, now.z), factor[1] = last_factor(p, head, now.y, now.w);
            if (i * 8 + column >= p.head_dim) return;
            const float2 y[2] = {{__fmul_rn(x.x, factor[0]), __fmul_rn(x.y, factor[0])}, {__fmul_rn(x.z, factor[1]), __fmul_rn(x.w, factor[1])}};
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (row() + 8 * r >= work.n_rows) continue;
                top[r] = max(top[r], max(magnitude(y[r].x), magnitude(y[r].y)));
                *reinterpret_cast<float2*>(out + static_cast<uint64_t>(8 * r) * p.out_stride + i * 8) = y[r];
                if constexpr (kDp % 64 == 0) {
                    if (!p.operands) continue;
                    if (i % 8 < 4) {
                        lower[r] = y[r];
                        continue;
                    }
                    put_operands(p, work.first_row + row() + 8 * r, head * kDp + (i - 4) * 8 + column, lower[r], y[r]);
                }
            }
        });
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = max(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = max(top[r], __shfl_xor_sync(~0u, top[r], 2));
            if (column == 0 && row() + 8 * r < work.n_rows) atomicMax(at<uint32_t>(p.magnitudes) + work.first_row + row() + 8 * r, top[r]);
        }
    }

    // Takes no part in a work of so many pages.
    __device__ __forceinline__ void pass(uint32_t n_pages) {
#pragma unroll 1
        for (; n_pages > 0; n_pages--, n++) {
            wait_full<kDp>(shared, kKeysFull, n);
            release(kKeysEmpty, n);
            wait_full<kDp>(shared, kValuesFull, n);
            release(kValuesEmpty, n);
        }
    }

    __device__ __forceinline__ void run_work(uint32_t number) {
        // It is told with its first page.
        wait_full<kDp>(shared, kKeysFull, n);
        const uint32_t own = threadIdx.x / kGroupThreads;
        uint32_t page, n_pages;
        int32_t last_key;
        {
            const Told work = told(number);
            page = kHasParts<Parts> ? work.page : first_page_of(work.first_position, p.before);
            n_pages = kHasParts<Parts> ? work.n_pages : (work.first_position + work.n_rows - 1) / KIGO_PAGE + 1;
            if (own >= work.n_heads) return pass(n_pages - page);
            // Last key of a page for row `row`; negative when it sees none.
            last_key = static_cast<int32_t>(work.first_position + row()) - static_cast<int32_t>(page * KIGO_PAGE);
            load_q(work, work.first_head + own);
        }
        // The first page after the chunk of the first.
        const uint32_t next_chunk = (page / kChunk + 1) * kChunk;
        clear();
        start_scores(n);
        wgmma_wait<0>();
        release(kKeysEmpty, n);
        float2 largest = weigh_page(last_key);
        pack_weights();
        // What is folded first is nothing.
        m[0] = m[1] = -INFINITY;
#pragma unroll
        for (int i = 0; i <= kTiles; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
        // Folds the page before `page`, whose chunk ends with it or does not.
        auto fold_before = [&](bool ends) {
            fold_page();
            if constexpr (kHasParts<Parts>) {
                if (ends) put_chunk(told(number), page - 1);
            } else {
                if (ends) keep_chunk(page - 1, last_key + KIGO_PAGE, page == next_chunk);
            }
        };
        // Waiting, which is a loop, keeps ptxas from moving what the other warps of the scheduler should not wait for: folding to before the
        // scores have been started, weights to after the mix is complete.
        auto step = [&](bool ends) {
            start_scores(n + 1);
            wait_full<kDp>(shared, kValuesFull, n);
            fold_before(ends);
            start_mix(n);
            m[0] = largest.x, m[1] = largest.y;
            wgmma_wait<1>();
            release(kKeysEmpty, n + 1);
            last_key -= KIGO_PAGE;
            largest = weigh_page(last_key);
            wait_full<kDp>(shared, kValuesFull, n);
            wgmma_wait<0>();
            release(kValuesEmpty, n);
            n++;
            pack_weights();
        };
        // Where a chunk ends, a step has more to do: that of the first page of the next.
        uint32_t chunk = next_chunk;
#pragma unroll 1
        while (true) {
            const uint32_t end = min(chunk, n_pages - 1);
#pragma unroll 1
            for (; page < end; page++) step(false);
            if (page + 1 >= n_pages) break;
            step(true);
            page++;
            chunk += kChunk;
        }
        wait_full<kDp>(shared, kValuesFull, n);
        fold_before(page == chunk);
        start_mix(n);
        m[0] = largest.x, m[1] = largest.y;
        const Told work = told(number);
        wgmma_wait<0>();
        release(kValuesEmpty, n);
        n++;
        fold_page();
        if constexpr (kHasParts<Parts>) {
            put_chunk(work, page);
        } else {
            finish(work, work.first_head + own, page, last_key, page < next_chunk);
        }
    }
};

template <int kDp, class Parts>
__device__ __forceinline__ void flash(const KigoAttention& p, const Parts& parts) {
    using P = Plan<kDp>;
    extern __shared__ uint8_t dynamic[];
    const uint32_t shared = (shared_address(dynamic) + P::kAlign - 1) / P::kAlign * P::kAlign;
    for (uint32_t i = threadIdx.x; i < kStages * 256; i += kThreads) {
        const uint32_t at = shared + P::kValues + i / 256 * P::kValueBytes + kDp * kRowBytes + i % 256 * 4;
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(kOnes) : "memory");
    }
    fence_written();
    if (threadIdx.x < 4 * kStages) {
        const int kind = threadIdx.x / kStages;
        const int n_arrive = kind % 2 ? kComputing * kGroupThreads : kind == kKeysFull ? kGroupThreads + 1 : kGroupThreads;
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared + P::kBarriers + threadIdx.x * 8), "r"(n_arrive) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    pdl_wait();
    pdl_launch();
    if (threadIdx.x >= kComputing * kGroupThreads) {
        give_registers<kCopyingRegisters<kDp>>();
        Copier<kDp, Parts>{p, parts, shared}.run();
    } else {
        take_registers<kComputingRegisters<kDp>>();
        Computer<kDp, Parts> computer{p, parts, shared};
        uint32_t number = 0;
        for_works(p, parts, [&](uint32_t) { computer.run_work(number++); });
    }
}

}  // namespace

#else
#define KIGO_FLASH(dp)
#define KIGO_FLASH_PARTS(dp)
#endif

extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_64(const __grid_constant__ KigoAttention p) { KIGO_FLASH(64); }
extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_96(const __grid_constant__ KigoAttention p) { KIGO_FLASH(96); }
extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_128(const __grid_constant__ KigoAttention p) { KIGO_FLASH(128); }
extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_parts_64(const __grid_constant__ KigoAttentionParts p) { KIGO_FLASH_PARTS(64); }
extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_parts_96(const __grid_constant__ KigoAttentionParts p) { KIGO_FLASH_PARTS(96); }
extern "C" __global__ void __launch_bounds__(kThreads, 1) attn_flash_parts_128(const __grid_constant__ KigoAttentionParts p) { KIGO_FLASH_PARTS(128); }
extern "C" __global__ void __launch_bounds__(kJoinThreads, 4) attn_join_64(const __grid_constant__ KigoAttentionParts p) { join<64>(p); }
extern "C" __global__ void __launch_bounds__(kJoinThreads, 4) attn_join_96(const __grid_constant__ KigoAttentionParts p) { join<96>(p); }
extern "C" __global__ void __launch_bounds__(kJoinThreads, 4) attn_join_128(const __grid_constant__ KigoAttentionParts p) { join<128>(p); }
