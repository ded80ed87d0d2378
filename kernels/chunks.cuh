// Attention of single rows that see many pages, on sm_90a: what a page gives, and the order of every sum, are those of attention.cuh.
//
// A block takes chunks of a row and a kv head. The bulk copy engine brings their pages to slots in shared memory, as far ahead as
// there are slots; a warp takes a page alone, and folds it into the state of the chunk when it is the page's turn. So there is
// no barrier between warps, and pages are awaited, multiplied and folded at the same time.
#pragma once

#include "attention.cuh"

namespace {

// Warps of a block where two are on a multiprocessor, and where one is alone.
constexpr uint32_t kPairedWarps = 4, kLoneWarps = 8;
// Bytes of the pages that a block has at a time.
template <uint32_t kWarps>
constexpr uint32_t kPages = kWarps * (24 << 10);
// Up to so many pages are read by one block where they are of two chunks: to put what two blocks have together takes as long.
constexpr uint32_t kAlone = 8;
// Up to how many pages, if they are wide, attn_decode takes singly in place of chunks.
constexpr uint32_t kMostWidePageUnits = 16;

__device__ __forceinline__ uint32_t in_shared(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ void send(void* to, uint64_t from, uint32_t bytes, uint64_t* full) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(in_shared(full)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(in_shared(to)), "l"(from),
                 "r"(bytes), "r"(in_shared(full))
                 : "memory");
}

__device__ __forceinline__ void await(const uint64_t* full, uint32_t phase) {
    asm volatile("{\n.reg .pred done;\nAGAIN_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra AGAIN_%=;\n}" ::"r"(
                     in_shared(full)),
                 "r"(phase)
                 : "memory");
}

// Whose turn it is to fold a page: a barrier's phase ends with each kWarps-th turn. Who waits for a turn is less than kWarps turns
// behind what can have ended, so that the phase it asks for is the latest or the one under way.
template <uint32_t kWarps>
struct Turns {
    uint64_t ended[kWarps];

    __device__ __forceinline__ void await_end(uint32_t turn) const { await(ended + turn % kWarps, turn / kWarps % 2); }

    // Called by all lanes, each of which has written a part of the state.
    __device__ __forceinline__ void end(uint32_t turn) {
        asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(in_shared(ended + turn % kWarps)) : "memory");
    }
};

// Copies 8 bytes to shared memory in the background.
__device__ __forceinline__ void copy_pair(float2* to, const float2* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(in_shared(to)), "l"(from) : "memory");
}

// Puts the partials of a row's chunks together, which come to `memory` as many at a time as fit; a thread has some pairs of dimensions.
// The factors of all of them are computed at the same time, as the largest score so far does not depend on the sums.
template <int kDp, uint32_t kWarps>
__device__ __forceinline__ void combine(const KigoAttention& p, const uint64_t* areas, uint32_t first_page, uint32_t units, uint64_t area_of_lane,
                                        uint32_t row, uint32_t head, uint32_t heads, float2* memory) {
    constexpr uint32_t kThreads = kWarps * kWarp, kPairs = kDp / 2, kOfHead = kPairs + 1;
    constexpr uint32_t kMost = (16 * kPairs + kThreads - 1) / kThreads;
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n_pairs = heads * kPairs, of_unit = heads * kOfHead;
    const uint32_t at_once = min(uint32_t(kWarp), kPages<kWarps> / ((of_unit + heads) * uint32_t(sizeof(float2))));
    // Behind the partials, of each unit the heads'.
    Factors* factors = reinterpret_cast<Factors*>(memory + at_once * of_unit);
    float* largest_of_heads = reinterpret_cast<float*>(factors + at_once * heads);
    float L[kMost];
    float2 O[kMost];
#pragma unroll
    for (uint32_t i = 0; i < kMost; i++) L[i] = -0.0f, O[i] = make_float2(-0.0f, -0.0f);
#pragma unroll 1
    for (uint32_t first = 0; first < units; first += at_once) {
        const uint32_t n = min(at_once, units - first);
        if (first > 0) {
            area_of_lane = __ldcg(areas + max((first_page / kChunk + min(first + lane, units - 1)) * kChunk, first_page));
            __syncthreads();
        }
#pragma unroll 1
        for (uint32_t unit = warp; unit < n; unit += kWarps) {
            const float2* from = at<float2>(__shfl_sync(~0u, area_of_lane, unit)) + head * kOfHead;
#pragma unroll 4
            for (uint32_t i = lane; i < of_unit; i += kWarp) copy_pair(memory + unit * of_unit + i, from + i);
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        // A lane has a unit.
#pragma unroll 1
        for (uint32_t h = warp; h < heads; h += kWarps) {
            const float m = lane < n ? memory[lane * of_unit + h * kOfHead].x : -INFINITY;
            const float so_far = first > 0 ? largest_of_heads[h] : -INFINITY;
            const float M = largest_so_far(fmaxf(so_far, m), lane);
            float before = __shfl_up_sync(~0u, M, 1);
            if (lane == 0) before = so_far;
            if (lane < n) factors[lane * heads + h] = rescale(before, m);
            if (lane == kWarp - 1) largest_of_heads[h] = M;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < kMost; i++) {
            const uint32_t pair = i * kThreads + threadIdx.x, of = pair / kPairs;
            if (pair >= n_pairs) break;
#pragma unroll 4
            for (uint32_t unit = 0; unit < n; unit++) {
                const float2* of_head = memory + unit * of_unit + of * kOfHead;
                const float2 o = of_head[1 + pair % kPairs];
                const Factors f = factors[unit * heads + of];
                L[i] = fold(L[i], of_head[0].y, f);
                O[i] = make_float2(fold(O[i].x, o.x, f), fold(O[i].y, o.y, f));
            }
        }
    }
    uint32_t top = 0;
#pragma unroll
    for (uint32_t i = 0; i < kMost; i++) {
        const uint32_t pair = i * kThreads + threadIdx.x;
        if (pair >= n_pairs) break;
        const uint32_t of_row = head + pair / kPairs, d = pair % kPairs * 2;
        if (d >= p.head_dim) continue;
        const float inverse = last_factor(p, of_row, largest_of_heads[pair / kPairs], L[i]);
        const float2 x = make_float2(__fmul_rn(O[i].x, inverse), __fmul_rn(O[i].y, inverse));
        *reinterpret_cast<float2*>(at<float>(p.out) + static_cast<uint64_t>(row) * p.out_stride + of_row * p.head_dim + d) = x;
        if (p.operands) HeadOperands(p, row, of_row).put(d, x);
        top = max(top, max(magnitude(x.x), magnitude(x.y)));
    }
    top = __reduce_max_sync(~0u, top);
    if (lane == 0) atomicMax(at<uint32_t>(p.magnitudes) + row, top);
}

template <int kDp, uint32_t kWarps>
__device__ __forceinline__ void chunks(const KigoAttention& p) {
    // Bytes of K or V of a page, and how many pages a block has at a time; pieces of 16 bytes of a vector that a lane holds; tiles of
    // dimensions; floats of a head's state.
    constexpr uint32_t kHalf = KIGO_PAGE * kDp * sizeof(__half), kSlots = kPages<kWarps> / (2 * kHalf);
    constexpr int kPieces = kDp / 32, kTiles = kDp / 8, kMixed = kTiles % 8 == 0 ? 8 : 4, kState = kDp + 8;
    // K and V of each slot; then the state of the chunk, and that of the chunks before where one block has two: O, then M and L.
    extern __shared__ __align__(128) uint8_t slots[];
    __shared__ uint64_t full[kSlots][2];
    __shared__ Turns<kWarps> turns;
    __shared__ bool is_last;

    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const uint32_t group = p.n_head / p.n_head_kv, m_tiles = (group + 15) / 16;
    const uint32_t head_kv = blockIdx.x / m_tiles, m_first = blockIdx.x % m_tiles * 16;
    const uint32_t head = head_kv * group + m_first, heads = min(16u, group - m_first);
    const uint32_t row = blockIdx.y, split = blockIdx.z;
    float* states = reinterpret_cast<float*>(slots + kSlots * 2 * kHalf);
    float* totals = states + heads * kState;

    // Rows and page tables are read before the wait, and pages copied that are not the last: see attn_decode.
    const KigoRow* source = at<KigoRow>(p.rows) + row;
    const uint32_t position = __ldcg(&source->position);
    const uint64_t* pages = at<uint64_t>(__ldcg(&source->pages)) + p.table;
    const uint64_t* areas = pages + (p.areas - p.table);
    const uint32_t first_page = first_page_of(position, p.before), n_pages = position / KIGO_PAGE + 1;
    const uint32_t first_chunk = first_page / kChunk, units = (n_pages - 1) / kChunk + 1 - first_chunk;
    const bool alone = units == 1 || (units == 2 && n_pages - first_page <= kAlone);
    const uint32_t blocks = alone ? 1 : min(units, p.splits);
    // The first chunk may lack pages.
    const uint32_t lacks = split == 0 ? first_page % kChunk : 0;
    auto page_at = [&](uint32_t j) {
        const uint32_t of_chunks = j + lacks;
        return (first_chunk + split + of_chunks / kChunk * blocks) * kChunk + of_chunks % kChunk;
    };
    const uint64_t here = page_offset(p, kDp, head_kv);
    auto k_of = [&](uint32_t slot) { return slots + slot * 2 * kHalf; };
    auto v_of = [&](uint32_t slot) { return slots + slot * 2 * kHalf + kHalf; };

    const uint32_t mine = page_at(lane);
    const bool sends = warp == 0 && lane < kSlots && split < blocks && mine < n_pages;
    const uint64_t address = sends ? __ldcg(pages + mine) + here : 0;
    if (warp == 0) {
        auto init = [](const uint64_t* barrier, uint32_t n) {
            asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(in_shared(barrier)), "r"(n) : "memory");
        };
        if (lane < kWarps) init(turns.ended + lane, kWarp);
        if (lane < kSlots) {
            for (int half = 0; half < 2; half++) init(&full[lane][half], 1);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
    }
    __syncwarp();
    auto send_page = [&] {
        send(k_of(lane), address, kHalf, &full[lane][0]);
        send(v_of(lane), address + kHalf, kHalf, &full[lane][1]);
    };
    if (sends && mine + 1 < n_pages) send_page();
    const uint64_t area_of_unit = __ldcg(areas + max((first_chunk + min(lane, units - 1)) * kChunk, first_page));
    pdl_wait();
    pdl_launch();
    if (split >= blocks) return;
    if (sends && mine + 1 == n_pages) {
        // Written by the kernel ahead.
        asm volatile("fence.proxy.async;" ::: "memory");
        send_page();
    }

    const uint4* q = at<uint4>(p.q) + (static_cast<uint64_t>(row) * p.n_head + head) * (kDp / 8);
    uint4 q_lane[2 * kPieces];
#pragma unroll
    for (int i = 0; i < 2 * kPieces; i++) {
        const uint32_t of = g + 8 * (i % 2);
        q_lane[i] = of < heads ? __ldcg(q + of * (kDp / 8) + i / 2 * 4 + t) : make_uint4(0, 0, 0, 0);
    }
    __syncthreads();

    for (uint32_t j = warp, page; (page = page_at(j)) < n_pages; j += kWarps) {
        const uint32_t slot = j % kSlots, phase = j / kSlots % 2;
        const uint32_t next = page_at(j + kSlots);
        const uint64_t next_address = lane == 0 && next < n_pages ? __ldcg(pages + next) + here : 0;
        const uint32_t first_of_chunk = max(page / kChunk * kChunk, first_page);
        const bool starts = page == first_of_chunk, ends = (page + 1) % kChunk == 0 || page + 1 == n_pages;
        const uint64_t area = ends && !alone ? __ldcg(areas + first_of_chunk) : 0;
        auto send_next = [&](uint8_t* to, uint32_t half) {
            // All lanes have read what was there.
            __syncwarp();
            if (next_address == 0) return;
            if (next + 1 == n_pages) asm volatile("fence.proxy.async;" ::: "memory");
            send(to, next_address + half * kHalf, kHalf, &full[slot][half]);
        };

        // With more warps than slots the page before may still be awaited, whose phases would be taken for this one's.
        if (kWarps > kSlots && j >= kSlots) turns.await_end(j - kSlots);
        await(&full[slot][0], phase);
        const uint4* k = reinterpret_cast<const uint4*>(k_of(slot));
        float s[8][4], m[2], l[2];
        scores<kDp, 8>(
            s, [&](int i, int r) { return q_lane[2 * i + r]; }, [&](int i, int piece) { return k[key_of(i, g) * (kDp / 8) + piece * 4 + t]; });
        send_next(k_of(slot), 0);
        cap_scores(p, s);
        const int32_t last_key = static_cast<int32_t>(position - page * KIGO_PAGE);
        if (last_key < KIGO_PAGE - 1 || last_key > static_cast<int32_t>(p.before)) mask<8>(s, 0, t, last_key, last_key, p.before);
        largest<8>(s, m);
        uint32_t w[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) weigh(w[i], s + 2 * i, m);
        sum_weights(l, w);

        await(&full[slot][1], phase);
        uint4* v = reinterpret_cast<uint4*>(v_of(slot));
        if (last_key < KIGO_PAGE - 1) {
#pragma unroll 4
            for (uint32_t i = lane; i < KIGO_PAGE * kDp / 8; i += kWarp) {
                uint4 x = v[i];
                trim(x, last_key + 1 - static_cast<int32_t>(i % 8 * 8));
                v[i] = x;
            }
            __syncwarp();
        }
        float o[kTiles][4];
#pragma unroll
        for (int first = 0; first < kTiles; first += kMixed) {
            mix<kMixed>(reinterpret_cast<float(&)[kMixed][4]>(o[first]), w, [&](int n, int h) { return v[((first + n) * 8 + g) * 8 + h * 4 + t]; });
        }
        send_next(v_of(slot), 1);

        if (j > 0) turns.await_end(j - 1);
        __syncwarp();
        float M[2], L[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            M[r] = -INFINITY, L[r] = -0.0f;
            if (r == 1 && heads <= 8) break;
            const float* state = states + (g + 8 * r) * kState;
            const bool goes_on = !starts && g + 8 * r < heads;
            if (goes_on) M[r] = state[kDp], L[r] = state[kDp + 1];
            const Factors f = rescale(M[r], m[r]);
            L[r] = fold(L[r], l[r], f);
#pragma unroll
            for (int n = 0; n < kTiles; n++) {
                const float2 before = goes_on ? *reinterpret_cast<const float2*>(state + n * 8 + 2 * t) : make_float2(-0.0f, -0.0f);
                o[n][2 * r] = fold(before.x, o[n][2 * r], f);
                o[n][2 * r + 1] = fold(before.y, o[n][2 * r + 1], f);
            }
        }
        const bool is_end = page + 1 == n_pages && alone;
        if (ends && alone && units == 2) {
            // The chunk's state joins that of the one before, or waits for the other.
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (r == 1 && heads <= 8) break;
                const float* total = totals + (g + 8 * r) * kState;
                if (!is_end || g + 8 * r >= heads) continue;
                float M1 = total[kDp];
                const Factors f = rescale(M1, M[r]);
                L[r] = fold(total[kDp + 1], L[r], f);
                M[r] = M1;
#pragma unroll
                for (int n = 0; n < kTiles; n++) {
                    const float2 before = *reinterpret_cast<const float2*>(total + n * 8 + 2 * t);
                    o[n][2 * r] = fold(before.x, o[n][2 * r], f);
                    o[n][2 * r + 1] = fold(before.y, o[n][2 * r + 1], f);
                }
            }
        }
        // To the state, the total, or the chunk's area.
        __syncwarp();
        if (!is_end) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (g + 8 * r >= heads) break;
                if (ends && !alone) {
                    float2* to = at<float2>(area) + (head + g + 8 * r) * (kDp / 2 + 1);
                    if (t == 0) __stcg(to, make_float2(M[r], L[r]));
#pragma unroll
                    for (int n = 0; n < kTiles; n++) __stcg(to + 1 + n * 4 + t, make_float2(o[n][2 * r], o[n][2 * r + 1]));
                } else {
                    float* to = (ends ? totals : states) + (g + 8 * r) * kState;
                    if (t == 0) *reinterpret_cast<float2*>(to + kDp) = make_float2(M[r], L[r]);
#pragma unroll
                    for (int n = 0; n < kTiles; n++) *reinterpret_cast<float2*>(to + n * 8 + 2 * t) = make_float2(o[n][2 * r], o[n][2 * r + 1]);
                }
            }
            __syncwarp();
            turns.end(j);
            if (!alone && page_at(j + 1) >= n_pages && lane == 0) {
                is_last = counts_last(at<uint32_t>(p.counters) + row * gridDim.x + blockIdx.x, blocks);
            }
            continue;
        }

        uint32_t top = 0;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (g + 8 * r >= heads) break;
            const float inverse = last_factor(p, head + g + 8 * r, M[r], L[r]);
            float* out = at<float>(p.out) + static_cast<uint64_t>(row) * p.out_stride + (head + g + 8 * r) * p.head_dim;
#pragma unroll
            for (int n = 0; n < kTiles; n++) {
                const uint32_t d = n * 8 + 2 * t;
                if (d >= p.head_dim) continue;
                const float2 x = scale_pair(o[n] + 2 * r, inverse);
                *reinterpret_cast<float2*>(out + d) = x;
                top = max(top, max(magnitude(x.x), magnitude(x.y)));
            }
        }
        top = __reduce_max_sync(~0u, top);
        if (lane == 0) atomicMax(at<uint32_t>(p.magnitudes) + row, top);
        // Last, so that who has none need not pass by the code.
        if (!p.operands) continue;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (g + 8 * r >= heads) break;
            const HeadOperands operands(p, row, head + g + 8 * r);
#pragma unroll
            for (int n = 0; n < kTiles; n++) operands.put(n * 8 + 2 * t, make_float2(o[n][2 * r], o[n][2 * r + 1]));
        }
    }
    if (alone) return;
    __syncthreads();
    if (is_last) combine<kDp, kWarps>(p, areas, first_page, units, area_of_unit, row, head, heads, reinterpret_cast<float2*>(slots));
}

}  // namespace
