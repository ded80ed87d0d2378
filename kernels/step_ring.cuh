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
constexpr int kFetchWarps = 4;
constexpr int kRingsOfFetcher = kStepWarps / kFetchWarps;
static_assert(kStepThreads + kFetchWarps * kWarp == KIGO_STEP_THREADS);

__device__ __forceinline__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ void init_mbarrier(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void arrive_mbarrier(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Nanoseconds after which who waits gives up: without what is missing the step would hang for ever.
constexpr uint64_t kPatience = 10'000'000'000;

struct Patience {
    uint64_t start = 0;
    uint32_t n = 0;

    __device__ __forceinline__ void wait() {
        if (++n % 4096 != 0) return;
        uint64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        if (start == 0) start = now;
        if (now - start > kPatience) __trap();
    }
};

// Whether the phase of this parity is complete; may wait a little for it.
__device__ __forceinline__ bool try_mbarrier(uint64_t* barrier, uint32_t parity) {
    uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#endif
    return done;
}

// The same without waiting.
__device__ __forceinline__ bool test_mbarrier(uint64_t* barrier, uint32_t parity) {
    uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#endif
    return done;
}

__device__ __forceinline__ void wait_mbarrier(uint64_t* barrier, uint32_t parity) {
    Patience patience;
    while (!try_mbarrier(barrier, parity)) patience.wait();
}

// A place in a ring, with the parity of its round.
struct RingPlace {
    uint32_t slot = 0, parity = 0;

    __device__ __forceinline__ void advance(uint32_t n_slots) {
        if (++slot == n_slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// Which items of a stage are this group's: those that are `worker` modulo their number, counted from the stage's first.
__device__ __forceinline__ uint32_t first_item(const KigoStage& stage, uint32_t worker) {
    const uint32_t n_workers = kGroups * gridDim.x;
    return worker >= stage.first_worker ? worker - stage.first_worker : worker + n_workers - stage.first_worker;
}

// The number of this thread's group among those of all blocks.
__device__ __forceinline__ uint32_t group_worker() { return threadIdx.x / kThreads * gridDim.x + blockIdx.x; }

// Waits for all warps that multiply.
__device__ __forceinline__ void step_sync() { barrier_wait(1, kStepThreads); }

// A warp's ring in shared memory: slots that its lane of the fetching warp fills, and what says so.
struct StepRing {
    uint8_t* slots;
    // A slot's piece is there; it has been used.
    uint64_t* full;
    uint64_t* empty;
    uint32_t n_slots, slot_bytes;

    __device__ __forceinline__ StepRing(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t warp)
        : slots(memory + size_t(warp) * p.n_slots * p.slot_bytes),
          full(barriers + warp * 2 * KIGO_MAX_SLOTS),
          empty(full + KIGO_MAX_SLOTS),
          n_slots(p.n_slots),
          slot_bytes(p.slot_bytes) {}
};

// The side of a warp that multiplies.
struct PieceReader : StepRing {
    RingPlace at;
    bool first = true;
    uint32_t before = 0;

    using StepRing::StepRing;

    // Waits for the oldest piece and returns it; the one before, which every lane has used, is given back.
    __device__ __forceinline__ const uint8_t* next() {
        const uint8_t* out = slots + at.slot * slot_bytes;
        wait_mbarrier(full + at.slot, at.parity);
        __syncwarp();
        if (!first && threadIdx.x % kWarp == 0) arrive_mbarrier(empty + before);
        first = false;
        before = at.slot;
        at.advance(n_slots);
        return out;
    }
};

// A warp's pieces in the order in which it uses them, from stage to stage.
struct PieceList {
    // The group of warps, and the warp's slice.
    uint32_t worker, slice;
    const KigoStage* next_stage;
    const KigoStage* end;
    // The first record of the next piece, and what its stage is like.
    const uint8_t* weights;
    const uint8_t* tile;
    uint64_t tile_bytes;
    uint32_t record, slice_first, slice_last, first_place, n_records, record_bytes, item, tile_of_item, per_item, n_items;
    // Records of a slot, and of the next piece.
    uint32_t most, n;
    uint32_t slot_bytes;
    bool more = true;

    __device__ __forceinline__ PieceList(const KigoStep& p, uint32_t warp)
        : worker(warp / kWarps * gridDim.x + blockIdx.x), slice(warp % kWarps), next_stage(reinterpret_cast<const KigoStage*>(p.stages)) {
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
            item = first_item(s, worker);
            n_items = s.n_items;
            if (part.first == part.last || item >= n_items) continue;
            weights = reinterpret_cast<const uint8_t*>(s.weights);
            n_records = s.n_records;
            record_bytes = s.record_bytes;
            tile_bytes = uint64_t(n_records) * record_bytes;
            per_item = s.per_item;
            slice_first = part.first;
            slice_last = part.last;
            most = slot_bytes / record_bytes;
            tile_of_item = 0;
            next_stage++;
            open_tile();
            return;
        }
        more = false;
    }

    __device__ __forceinline__ void open_tile() {
        const uint32_t number = item * per_item + tile_of_item;
        tile = weights + number * tile_bytes;
        record = slice_first;
        first_place = number % n_records;
        open_piece();
    }

    __device__ __forceinline__ void open_piece() { n = piece_records(record, slice_last, first_place, n_records, most); }

    __device__ __forceinline__ uint32_t bytes() const { return n * record_bytes; }

    __device__ __forceinline__ const uint8_t* at() const {
        const uint32_t place = record + first_place;
        return tile + (place < n_records ? place : place - n_records) * uint64_t(record_bytes);
    }

    // Goes on to the next piece.
    __device__ __forceinline__ void advance() {
        record += n;
        if (record < slice_last) return open_piece();
        if (++tile_of_item == per_item) {
            tile_of_item = 0;
            item += kGroups * gridDim.x;
            if (item >= n_items) return open_stage();
        }
        open_tile();
    }
};

// What fetches a warp's pieces: a lane of a fetching warp.
struct Fetcher : StepRing {
    PieceList next, ahead;
    // Pieces that are on their way to L2, or there, from `next` to `ahead`; when the latest was sent for.
    uint32_t n_ahead = 0, sent = 0;
    RingPlace to_start, to_arrive;
    uint32_t n_under_way = 0;
    uint64_t policy = 0;

    __device__ __forceinline__ Fetcher(const KigoStep& p, uint8_t* memory, uint64_t* barriers, uint32_t warp)
        : StepRing(p, memory, barriers, warp), next(p, warp), ahead(next) {
#if __CUDA_ARCH__ >= 900
        // Weights are read once in a step, and must not drive out what blocks hand to each other.
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    }

    // Whether the oldest copy under way has arrived, which is then none any more.
    __device__ __forceinline__ bool note_arrival() {
        if (!test_mbarrier(full + to_arrive.slot, to_arrive.parity)) return false;
        to_arrive.advance(n_slots);
        n_under_way--;
        return true;
    }

    __device__ __forceinline__ bool has_room() { return test_mbarrier(empty + to_start.slot, to_start.parity ^ 1); }

    __device__ __forceinline__ void start() {
#if __CUDA_ARCH__ >= 900
        const uint32_t barrier = shared_address(full + to_start.slot);
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(next.bytes()) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                         shared_address(slots + to_start.slot * slot_bytes)),
                     "l"(next.at()), "r"(next.bytes()), "r"(barrier), "l"(policy)
                     : "memory");
#endif
        to_start.advance(n_slots);
        n_under_way++;
        next.advance();
        if (n_ahead > 0) {
            n_ahead--;
        } else {
            ahead = next;
        }
    }

    // Sends for a piece that there is no room for yet: it comes to L2, so that memory is not idle while the block waits.
    __device__ __forceinline__ void send_ahead() {
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(ahead.at()), "r"(ahead.bytes()) : "memory");
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
        if (fetcher.n_under_way >= p.under_way && !fetcher.note_arrival()) continue;
        if (fetcher.has_room()) {
            fetcher.start();
            continue;
        }
        if (fetcher.n_under_way > 0) {
            fetcher.note_arrival();
        } else if (fetcher.n_ahead < p.most_ahead && fetcher.ahead.more) {
            const uint32_t now = clock();
            if (now - fetcher.sent < p.pace) continue;
            fetcher.sent = now;
            fetcher.send_ahead();
        }
    }
}

}  // namespace
