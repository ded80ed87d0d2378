// The weights' way to shared memory in `step`: each warp has a ring of records of its own, which runs across stages, and which
// further warps fill. What it fetches does not depend on what is computed, so that the next stages' weights arrive while a
// stage waits for its input.
#pragma once

#include "activations.cuh"
#include "fragments.cuh"

namespace {

// Warps that multiply a tile together, a slice each: a block has so many groups of them.
constexpr int kGroups = KIGO_STEP_GROUPS;
constexpr int kStepThreads = kGroups * kThreads;
constexpr int kStepWarps = kStepThreads / kWarp;
// Warps that fetch, each for as many of those.
constexpr int kFetchWarps = 8;
constexpr int kRingsOfFetcher = kStepWarps / kFetchWarps;
static_assert(kStepThreads + kFetchWarps * kWarp == KIGO_STEP_THREADS);

__device__ __forceinline__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ void init_mbarrier(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void arrive_mbarrier_at(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void arrive_mbarrier(uint64_t* barrier) { arrive_mbarrier_at(shared_address(barrier)); }

// Clocks after which who waits gives up, some 10 s: without what is missing the step would hang for ever.
constexpr int64_t kPatience = 20'000'000'000;

struct Patience {
    int64_t start = 0;

    __device__ __forceinline__ void wait() {
        const int64_t now = clock64();
        if (start == 0) start = now;
        if (now - start > kPatience) __trap();
    }
};

// Whether the phase of this parity is complete; may wait a little for it.
__device__ __forceinline__ bool try_mbarrier_at(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
    return done;
}

// The same without waiting.
__device__ __forceinline__ bool test_mbarrier(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
    return done;
}

__device__ __forceinline__ void wait_mbarrier(uint64_t* barrier, uint32_t parity) {
    Patience patience;
    while (!try_mbarrier_at(shared_address(barrier), parity)) patience.wait();
}

// A warp's ring in shared memory, and a place in it: a slot, the barrier that its piece completes when it is there, kToEmpty
// bytes behind that the one that it completes when it has been used, and the parity of the round.
struct Ring {
    uint32_t first_barrier, last_barrier, first_slot, slot_bytes;

    __device__ __forceinline__ Ring(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t warp)
        : first_barrier(shared_address(barriers + warp * 2 * KIGO_MAX_SLOTS)),
          last_barrier(first_barrier + (p.n_slots - 1) * sizeof(uint64_t)),
          first_slot(shared_address(memory + size_t(warp) * p.n_slots * p.slot_bytes)),
          slot_bytes(p.slot_bytes) {}
};

constexpr uint32_t kToEmpty = KIGO_MAX_SLOTS * sizeof(uint64_t);

struct RingPlace {
    uint32_t barrier, slot, parity = 0;

    __device__ __forceinline__ RingPlace(const Ring& ring) : barrier(ring.first_barrier), slot(ring.first_slot) {}

    __device__ __forceinline__ void advance(const Ring& ring) {
        const bool is_last = barrier == ring.last_barrier;
        barrier = is_last ? ring.first_barrier : barrier + sizeof(uint64_t);
        slot = is_last ? ring.first_slot : slot + ring.slot_bytes;
        parity ^= is_last;
    }
};

// Which items of a stage are this group's: those that are `worker` modulo their number, counted from the stage's first.
__device__ __forceinline__ uint32_t first_item(const KigoStage& stage, uint32_t worker) {
    const uint32_t n_workers = kGroups * gridDim.x;
    return worker >= stage.first_worker ? worker - stage.first_worker : worker + n_workers - stage.first_worker;
}

// The number of this thread's group among those of all blocks.
__device__ __forceinline__ uint32_t group_worker() { return threadIdx.x / kThreads * gridDim.x + blockIdx.x; }

// threadIdx.x, read anew, lest the compiler keep in registers what follows from it for all stages.
__device__ __forceinline__ uint32_t this_thread() {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Waits for all warps that multiply.
__device__ __forceinline__ void step_sync() { barrier_wait(1, kStepThreads); }

// The side of a warp that multiplies.
struct PieceReader : Ring, RingPlace {
    __device__ __forceinline__ PieceReader(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t warp)
        : Ring(p, memory, barriers, warp), RingPlace(static_cast<const Ring&>(*this)) {}

    // Whether the oldest piece is there; may wait a little for it.
    __device__ __forceinline__ bool is_there() const { return try_mbarrier_at(barrier, parity); }

    __device__ __forceinline__ void wait() const {
        Patience patience;
        while (!is_there()) patience.wait();
    }

    // Gives back the oldest piece, which all lanes have read.
    __device__ __forceinline__ void give_back(bool is_first_lane) {
        __syncwarp();
        if (is_first_lane) arrive_mbarrier_at(barrier + kToEmpty);
        advance(*this);
    }
};

// A warp's pieces in the order in which it uses them, from stage to stage.
struct PieceList {
    // The group of warps, and the warp's slice.
    uint32_t worker, slice;
    const KigoStage* next_stage;
    const KigoStage* end;
    // The next piece; the bytes from it on that the slice has side by side, and those that it has at the tile's start.
    const uint8_t* from;
    uint32_t bytes, run, rest;
    // The tile: its number in the item, its first record's place. From one item's last tile to the next one's first, and what
    // that changes in the place.
    const uint8_t* tile;
    uint32_t of_item, first_place, items_left;
    uint64_t tile_bytes, jump_bytes;
    uint32_t jump_places, per_item, n_records, record_bytes, slice_first, slice_last, piece_bytes, slot_bytes;
    bool more = true;

    __device__ __forceinline__ PieceList(const KigoStep& p, uint32_t warp)
        : worker(warp / kWarps * gridDim.x + blockIdx.x),
          slice(warp % kWarps),
          next_stage(reinterpret_cast<const KigoStage*>(p.stages)) {
        end = next_stage + p.n_stages;
        slot_bytes = p.slot_bytes;
        open_stage();
    }

    // Goes on to the next stage that has records for the warp.
    __device__ __forceinline__ void open_stage() {
        for (; next_stage != end; next_stage++) {
            const KigoStage& s = *next_stage;
            if (s.kind == KIGO_STAGE_ATTENTION) continue;
            const Slice part(s.n_records, slice);
            const uint32_t item = first_item(s, worker), step = kGroups * gridDim.x;
            if (part.first == part.last || item >= s.n_items) continue;
            n_records = s.n_records;
            record_bytes = s.record_bytes;
            per_item = s.per_item;
            slice_first = part.first;
            slice_last = part.last;
            items_left = (s.n_items - item + step - 1) / step;
            piece_bytes = slot_bytes / record_bytes * record_bytes;
            tile_bytes = uint64_t(n_records) * record_bytes;
            const uint32_t jump = (step - 1) * per_item + 1;
            jump_bytes = jump * tile_bytes;
            jump_places = jump % n_records;
            tile = reinterpret_cast<const uint8_t*>(s.weights) + item * per_item * tile_bytes;
            first_place = item * per_item % n_records;
            of_item = 0;
            next_stage++;
            open_tile();
            return;
        }
        more = false;
    }

    __device__ __forceinline__ void open_tile() {
        uint32_t place = slice_first + first_place;
        if (place >= n_records) place -= n_records;
        const uint32_t n = slice_last - slice_first, beside = min(n, n_records - place);
        from = tile + place * record_bytes;
        run = beside * record_bytes;
        rest = (n - beside) * record_bytes;
        bytes = min(piece_bytes, run);
    }

    // Goes on to the next piece.
    __device__ __forceinline__ void advance() {
        from += bytes;
        run -= bytes;
        if (run == 0) {
            if (rest == 0) return advance_tile();
            from = tile;
            run = rest;
            rest = 0;
        }
        bytes = min(piece_bytes, run);
    }

    __device__ __forceinline__ void advance_tile() {
        if (++of_item < per_item) {
            tile += tile_bytes;
            first_place++;
        } else {
            if (--items_left == 0) return open_stage();
            of_item = 0;
            tile += jump_bytes;
            first_place += jump_places;
        }
        if (first_place >= n_records) first_place -= n_records;
        open_tile();
    }
};

// What fetches a warp's pieces: a lane of a fetching warp.
struct Fetcher : Ring {
    PieceList next, ahead;
    RingPlace to_start, to_arrive;
    // Pieces that are on their way to L2, or there, from `next` to `ahead`; when the latest was sent for.
    uint32_t n_ahead = 0, sent = 0;
    uint32_t n_under_way = 0;
    uint64_t policy = 0;

    __device__ __forceinline__ Fetcher(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t warp)
        : Ring(p, memory, barriers, warp), next(p, warp), ahead(next), to_start(*this), to_arrive(*this) {
#if __CUDA_ARCH__ >= 900
        // Weights are read once in a step, and must not drive out what blocks hand to each other.
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    }

    // Whether the oldest copy under way has arrived, which is then none any more.
    __device__ __forceinline__ bool note_arrival() {
        if (!test_mbarrier(to_arrive.barrier, to_arrive.parity)) return false;
        to_arrive.advance(*this);
        n_under_way--;
        return true;
    }

    __device__ __forceinline__ bool has_room() const { return test_mbarrier(to_start.barrier + kToEmpty, to_start.parity ^ 1); }

    __device__ __forceinline__ void start() {
#if __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(to_start.barrier), "r"(next.bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                         to_start.slot),
                     "l"(next.from), "r"(next.bytes), "r"(to_start.barrier), "l"(policy)
                     : "memory");
#endif
        to_start.advance(*this);
        n_under_way++;
        next.advance();
        if (n_ahead > 0) n_ahead--;
    }

    // Sends for a piece that there is no room for yet: it comes to L2, so that memory is not idle while the block waits.
    __device__ __forceinline__ void send_ahead() {
        if (n_ahead == 0) ahead = next;
        if (!ahead.more) return;
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(ahead.from), "r"(ahead.bytes) : "memory");
#endif
        ahead.advance();
        n_ahead++;
    }
};

// Fills the rings of some warps, a lane for each, with at most so many pieces of each under way: what blocks wait for would
// queue behind more.
__device__ __forceinline__ void fetch(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t fetch_warp) {
    const uint32_t lane = threadIdx.x % kWarp;
    if (lane >= kRingsOfFetcher) return;
    Fetcher fetcher(p, memory, barriers, lane * kFetchWarps + fetch_warp);
    while (fetcher.next.more) {
        if (fetcher.n_under_way >= p.under_way && !fetcher.note_arrival()) {
            continue;
        }
        if (fetcher.has_room()) {
            fetcher.start();
            continue;
        }
        if (fetcher.n_under_way > 0) {
            fetcher.note_arrival();
        } else if (fetcher.n_ahead < p.most_ahead) {
            const uint32_t now = clock();
            if (now - fetcher.sent < p.pace) continue;
            fetcher.sent = now;
            fetcher.send_ahead();
        }
    }
}

}  // namespace
