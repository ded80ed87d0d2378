// The weights' way to shared memory in `step`: each warp has a ring of records of its own, which runs across stages, and which
// further warps fill. What it fetches does not depend on what is computed, so that the next stages' weights arrive while a
// stage waits for its input.
#pragma once

#include <cstddef>
#include <type_traits>

#include "activations.cuh"
#include "fragments.cuh"
#include "step_mixture.cuh"
#include "step_share.cuh"

namespace {

// Those that multiply, each a slice of a tile.
constexpr int kStepThreads = kThreads;
constexpr int kStepWarps = kWarps;
// Warps that fetch, a lane for each of those.
constexpr int kFetchWarps = 3;
// One more finishes.
static_assert(kStepThreads + (kFetchWarps + 1) * kWarp == KIGO_STEP_THREADS);

__device__ __forceinline__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ void init_mbarrier(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void arrive_mbarrier_at(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void arrive_mbarrier(uint64_t* barrier) { arrive_mbarrier_at(shared_address(barrier)); }

// Times that who waits asks before it gives up, some seconds: without what is missing the step would hang for ever. Counted rather than
// timed, since this code stands at every wait, and code has to be fetched too.
constexpr uint32_t kPatience = 1 << 28;

struct Patience {
    uint32_t left = kPatience;

    __device__ __forceinline__ void wait() {
        if (--left == 0) __trap();
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

__device__ __forceinline__ void wait_mbarrier(const uint64_t* barrier, uint32_t parity) {
    Patience patience;
    while (!try_mbarrier_at(shared_address(barrier), parity)) patience.wait();
}

// A piece of a warp's weights as whoever multiplies has to know it: records of the same columns, of one tile, or with mixtures of all
// tiles of the item, tile by tile. Where an item has two tiles and a piece one, pieces of the same columns follow each other.
struct Piece {
    // The first one's number in the row.
    uint32_t record;
    // How many of each tile, what ends with it, and with mixtures where it is in shared memory.
    uint32_t bits;

    static constexpr uint32_t kEndsItem = 1 << 8, kEndsStage = 1 << 9, kAddressAt = 16, kAddressUnit = 16;

    __device__ __forceinline__ static uint32_t address_bits(uint32_t address) { return address / kAddressUnit << kAddressAt; }

    __device__ __forceinline__ uint32_t address() const { return (bits >> kAddressAt) * kAddressUnit; }
    __device__ __forceinline__ uint32_t n() const { return bits & 0xff; }
    __device__ __forceinline__ bool has(uint32_t bit) const { return bits & bit; }
};

// The way of a list of pieces through a stage: what it needs from item to item. Where there are two lists it is kept in shared memory, as
// registers are few.
struct alignas(16) Route {
    uint32_t next_stage, items_left;
    // From one item to the next, and what that changes in the place of the first record. Of pages instead of the items left the number of
    // the one at hand, then what is added to the address of each, and to its number in the row's table.
    uint32_t jump_bytes, jump_places;
    uint32_t slice_first;
    // The mixture that the stage belongs to, and what is added to the numbers of records; 0 where there is none.
    uint32_t mixture, more;
};

// What a warp's ring has besides its bytes: barriers that a piece completes when it is there, those that it completes when it has
// been used, what the pieces are, and without mixtures the ways of who fetches them and of who sends for them ahead.
struct alignas(16) RingHeads {
    uint64_t full[KIGO_STEP_SLOTS];
    uint64_t empty[KIGO_STEP_SLOTS];
    Piece pieces[KIGO_STEP_SLOTS];
    Route routes[2];
};

constexpr uint32_t kToEmpty = offsetof(RingHeads, empty), kToPiece = offsetof(RingHeads, pieces);
static_assert(sizeof(Piece) == sizeof(uint64_t));

// A warp's ring in shared memory. Pieces stand in slots, which are as long as the longest, or with mixtures, whose pieces differ more, side
// by side: one that would go beyond the ring's end starts at its beginning.
template <bool kMixes>
struct StepRing {
    uint32_t first_barrier, last_barrier, first_slot;
    // With mixtures those of the ring.
    uint32_t slot_bytes;

    __device__ __forceinline__ StepRing(const KigoStep& p, uint8_t* memory, RingHeads* heads, uint32_t warp)
        : first_barrier(shared_address(heads[warp].full)),
          last_barrier(first_barrier + ((kMixes ? KIGO_STEP_SLOTS : p.n_slots) - 1) * sizeof(uint64_t)),
          first_slot(shared_address(memory + size_t(warp) * p.n_slots * p.slot_bytes)),
          slot_bytes((kMixes ? p.n_slots : 1) * p.slot_bytes) {}
};

// A place in the order of pieces as who multiplies keeps it: its `full`, and the parity of the round.
template <bool kMixes>
struct PiecePlace {
    uint32_t barrier, parity;

    __device__ __forceinline__ static PiecePlace first(const StepRing<kMixes>& ring) { return {ring.first_barrier, 0}; }

    // Whether a round has ended.
    __device__ __forceinline__ bool advance(const StepRing<kMixes>& ring) {
        const bool is_last = barrier == ring.last_barrier;
        barrier = is_last ? ring.first_barrier : barrier + sizeof(uint64_t);
        parity ^= is_last;
        return is_last;
    }

    // Without mixtures where its slot is: multiplying takes less of a warp's time than stepping along.
    __device__ __forceinline__ uint32_t slot_in(const StepRing<kMixes>& ring) const {
        return ring.first_slot + (barrier - ring.first_barrier) * uint32_t(ring.slot_bytes / sizeof(uint64_t));
    }
};

// The same with its slot, as who fetches keeps it; with mixtures the ring's beginning instead.
template <bool kMixes>
struct RingPlace : PiecePlace<kMixes> {
    uint32_t slot;

    __device__ __forceinline__ static RingPlace first(const StepRing<kMixes>& ring) {
        return {PiecePlace<kMixes>::first(ring), ring.first_slot};
    }

    __device__ __forceinline__ void advance(const StepRing<kMixes>& ring) {
        const bool is_last = PiecePlace<kMixes>::advance(ring);
        slot = is_last || kMixes ? ring.first_slot : slot + ring.slot_bytes;
    }
};

// The first of a stage's items that is this block's; every gridDim.x-th that follows is too.
__device__ __forceinline__ uint32_t first_item(const KigoStage& stage) {
    return blockIdx.x >= stage.first_block ? blockIdx.x - stage.first_block : blockIdx.x + gridDim.x - stage.first_block;
}

// Tiles, of different experts, that warps take at the same time at most.
constexpr uint32_t kMostGroups = 2;

// What a warp has of each tile of a stage, and of which of the tiles that are taken at the same time.
struct StagePart : Slice {
    uint32_t slice, group;

    // Without mixtures each warp has a slice of its own.
    template <bool kMixes>
    __device__ __forceinline__ static StagePart of(const KigoStage& s, uint32_t warp) {
        const uint32_t n_slices = kMixes ? s.n_slices : kSlices;
        StagePart part = {Slice(s.n_records, kMixes ? warp % n_slices : warp), kMixes ? warp % n_slices : warp, kMixes ? warp / n_slices : 0};
        if (part.group >= kMostGroups) part.first = part.last;
        return part;
    }

    __device__ __forceinline__ bool any() const { return first < last; }
};

// threadIdx.x, read anew, lest the compiler keep in registers what follows from it for all stages.
__device__ __forceinline__ uint32_t this_thread() {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Waits for all warps that multiply.
__device__ __forceinline__ void step_sync() { barrier_wait(1, kStepThreads); }

// The side of a warp that multiplies.
template <bool kMixes>
struct PieceReader : StepRing<kMixes>, PiecePlace<kMixes> {
    using Ring = StepRing<kMixes>;
    using Place = PiecePlace<kMixes>;

    // Pieces that an item's tiles take side by side.
    template <int kTiles>
    static constexpr int kPieces = kMixes ? 1 : kTiles;

    // Goes on from where `place` says.
    __device__ __forceinline__ PieceReader(const KigoStep& p, uint8_t* memory, RingHeads* heads, uint32_t warp, Place place)
        : Ring(p, memory, heads, warp), Place(place) {}

    __device__ __forceinline__ const Place& place() const { return *this; }

    // Whether the piece at a place is there; may wait a little for it.
    __device__ __forceinline__ static bool is_there(const Place& at) { return try_mbarrier_at(at.barrier, at.parity); }

    __device__ __forceinline__ static void wait(const Place& at) {
        Patience patience;
        while (!is_there(at)) patience.wait();
    }

    // What the piece at a place is, which is there.
    __device__ __forceinline__ static Piece piece(const Place& at) {
        Piece out;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(out.record), "=r"(out.bits) : "r"(at.barrier + kToPiece) : "memory");
        return out;
    }

    // The places of the next records of kTiles tiles.
    template <int kTiles>
    __device__ __forceinline__ void places(Place (&out)[kTiles]) const {
        out[0] = *this;
        if constexpr (kTiles == 2) {
            out[1] = *this;
            if constexpr (!kMixes) out[1].advance(*this);
        }
    }

    // Where the records at these places are, whose piece, the first one's, is there.
    template <uint32_t kRecordBytes, int kTiles>
    __device__ __forceinline__ void find(uint32_t (&records)[kTiles], const Place (&at)[kTiles], const Piece& piece) const {
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
            records[tile] = kMixes ? piece.address() + tile * piece.n() * kRecordBytes : at[tile].slot_in(*this);
        }
    }

    // Gives back the pieces at these places, the next ones, which all lanes have read.
    template <int kTiles>
    __device__ __forceinline__ void give_back(const Place (&used)[kTiles], bool is_first_lane) {
        __syncwarp();
        if (is_first_lane) {
#pragma unroll
            for (int i = 0; i < kPieces<kTiles>; i++) arrive_mbarrier_at(used[i].barrier + kToEmpty);
        }
        static_cast<Place&>(*this) = used[kTiles - 1];
        Place::advance(*this);
    }
};

// Records from so many bytes on come one by one: who multiplies halves counts on it.
constexpr uint32_t kLargeRecord = 2048;

// Bytes of a piece of a page: of some keys, or of some elements of all 64 values.
constexpr uint32_t kPagePiece = KIGO_STEP_PAGE_PIECE;

// Pieces of half of a page's keys, or of half of its values, whose heads have dp elements.
__device__ __forceinline__ constexpr uint32_t pieces_of_half(uint32_t dp) { return KIGO_PAGE / 2 * dp * sizeof(__half) / kPagePiece; }

// A warp's pieces in the order in which it uses them, from stage to stage; kPages: with those of the pages that it attends to.
template <bool kMixes, bool kPages>
struct PieceList {
    std::conditional_t<kMixes, Route, Route*> way;
    // The item's first tile, the place of its first record, and how many tiles follow each other.
    const uint8_t* tile;
    uint32_t first_place, tile_bytes, per_item;
    // The next piece: its first tile in the item, its first record's number in the row, and how many records of each tile; none at the end.
    uint32_t side, record, n;
    uint32_t n_records, record_bytes, slice_last, most;
    // There is one, but nobody has chosen its expert yet; n is 0.
    bool waits;
    // They are of experts, or of pages.
    bool mixes, pages;

    __device__ __forceinline__ Route& route() {
        if constexpr (kMixes) {
            return way;
        } else {
            return *way;
        }
    }

    // Bytes of the next piece, of each tile, and of how many.
    __device__ __forceinline__ uint32_t bytes() const { return n * record_bytes; }
    __device__ __forceinline__ uint32_t n_tiles() const { return kMixes ? per_item : 1; }

    // Where a record of the item's tile stands among those of the tile.
    __device__ __forceinline__ uint32_t place(uint32_t of_tile) const {
        const uint32_t at = record + first_place + of_tile;
        return at >= n_records ? at - n_records : at;
    }

    // Where the piece's records of a tile are.
    __device__ __forceinline__ const uint8_t* from(uint32_t of_piece) const {
        const uint32_t of_item = side + of_piece;
        return tile + of_item * tile_bytes + place(of_item) * record_bytes;
    }

    // What it is when it stands at an address.
    __device__ __forceinline__ Piece piece(uint32_t address) {
        const bool ends_item = record + n == slice_last;
        const uint32_t ends = (ends_item ? Piece::kEndsItem : 0) | (ends_item && route().items_left == 1 ? Piece::kEndsStage : 0);
        return {record + (kMixes ? route().more : 0), n | ends | (kMixes ? Piece::address_bits(address) : 0)};
    }

    // Starts over from where another one is.
    __device__ __forceinline__ void follow(const PieceList& other) {
        *way = *other.way;
        Route* own = way;
        *this = other;
        way = own;
    }

    // Goes on to the next stage that has records for the warp.
    __device__ __forceinline__ void open_stage(const KigoStep& p, uint32_t warp, ExpertPath& experts, const PageSource* source) {
        const auto* stages = reinterpret_cast<const KigoStage*>(p.stages);
        waits = mixes = pages = false;
        for (uint32_t i = route().next_stage; i < p.n_stages; i++) {
            const KigoStage& s = stages[i];
            if (kPages && s.kind == KIGO_STAGE_ATTENTION && open_pages(p, i, warp, source)) return;
            if (s.kind == KIGO_STAGE_ATTENTION) continue;
            if (kMixes && s.kind == KIGO_STAGE_ROUTER) continue;
            const auto part = StagePart::of<kMixes>(s, warp);
            const uint32_t item = first_item(s);
            if (!part.any() || item >= s.n_items) continue;
            n_records = s.n_records;
            record_bytes = s.record_bytes;
            per_item = s.per_item;
            slice_last = part.last;
            // Side by side they may be longer than a slot, so that fewer have to be started.
            most = record_bytes >= kLargeRecord ? 1 : (kMixes ? p.slot_bytes * 3 / 2 : p.slot_bytes) / record_bytes;
            tile_bytes = n_records * record_bytes;
            record = part.first;
            const uint32_t n_items = (s.n_items - item - 1) / gridDim.x + 1;
            if (kMixes && s.mixture) {
                route() = {i + 1, n_items * s.n_turns, 0, 0, part.first, s.mixture, 0};
                mixes = true;
                experts.open_stage(s, item, part.group);
                return open_expert(experts);
            }
            tile = reinterpret_cast<const uint8_t*>(s.weights) + uint64_t(item * per_item) * tile_bytes;
            first_place = item * per_item % n_records;
            const uint32_t jump = gridDim.x * per_item;
            route() = {i + 1, n_items, jump * tile_bytes, jump % n_records, part.first, 0, 0};
            open_piece();
            return;
        }
        n = 0;
    }

    // Goes to the pages of an attention that are the warp's, one of each chunk of its block; false where it has none.
    __device__ __forceinline__ bool open_pages(const KigoStep& p, uint32_t stage, uint32_t warp, const PageSource* source) {
        const auto* stages = reinterpret_cast<const KigoStage*>(p.stages);
        const auto* attentions = reinterpret_cast<const KigoStageAttention*>(p.attentions);
        const KigoStageAttention& a = attentions[stages[stage].attention];
        wait_mbarrier(&source->there, 0);
        if (source->heads.split == ~0u) return false;
        const uint32_t first_seen = first_page_of(source->position, a.attention.before), dp = a.heads.qkv.dp;
        uint32_t page = (first_seen / kChunk + source->heads.split) * kChunk + warp;
        if (page < first_seen) page += source->heads.n_splits * kChunk;
        n_records = slice_last = 4 * pieces_of_half(dp);
        record_bytes = kPagePiece;
        tile_bytes = n_records * record_bytes;
        per_item = most = 1;
        first_place = 0;
        const auto of_page = static_cast<uint32_t>(page_offset(a.attention, dp, source->heads.head_kv));
        route() = {stage + 1, page, of_page, a.attention.table, 0, 0, 0};
        pages = open_page(source);
        return pages;
    }

    // Goes to the first piece of the page at hand, if the row sees it.
    __device__ __forceinline__ bool open_page(const PageSource* source) {
        const uint32_t page = route().items_left;
        if (page > source->position / KIGO_PAGE) return false;
        tile = at<uint8_t>(__ldcg(at<unsigned long long>(source->table) + route().jump_places + page) + route().jump_bytes);
        record = 0;
        open_piece();
        return true;
    }

    // Goes to the first piece of the tiles of an expert, once it is chosen.
    __device__ __forceinline__ void open_expert(ExpertPath& experts) {
        const uint32_t expert = experts.chosen(route().mixture);
        waits = expert == kNoExpert;
        n = 0;
        if (waits) return;
        const uint32_t number = experts.first_tile(expert, per_item);
        tile = experts.weights() + uint64_t(number) * tile_bytes;
        first_place = experts.first_place(number, n_records);
        route().more = experts.more(n_records);
        open_piece();
    }

    // As many records as stand side by side in all tiles of the item.
    __device__ __forceinline__ void open_piece() {
        side = 0;
        n = min(most, slice_last - record);
        n = min(n, n_records - place(0));
        if (per_item == 2) n = min(n, n_records - place(1));
    }

    // Goes on to the next piece.
    __device__ __forceinline__ void advance(const KigoStep& p, uint32_t warp, ExpertPath& experts, const PageSource* source) {
        if (!kMixes && ++side < per_item) return;
        record += n;
        if (record == slice_last) {
            if (kPages && pages) {
                route().items_left += source->heads.n_splits * kChunk;
                if (!open_page(source)) open_stage(p, warp, experts, source);
                return;
            }
            if (--route().items_left == 0) return open_stage(p, warp, experts, source);
            record = route().slice_first;
            if (kMixes && route().mixture) {
                experts.advance();
                return open_expert(experts);
            }
            tile += route().jump_bytes;
            first_place += route().jump_places;
            if (first_place >= n_records) first_place -= n_records;
        }
        open_piece();
    }
};

// Where in its ring a piece may go, as who fetches knows it: to the slot that is next, once it is given back.
template <bool kMixes>
struct Room {
    uint32_t place = 0;

    __device__ __forceinline__ explicit Room(const RingPlace<kMixes>&) {}

    // Notes that the oldest piece has been given back.
    __device__ __forceinline__ void note_use(const StepRing<kMixes>&) {}

    // Whether there is room for the next piece, of so many bytes; where.
    __device__ __forceinline__ bool find(const StepRing<kMixes>&, const RingPlace<kMixes>& next, uint32_t) {
        place = next.slot;
        return test_mbarrier(next.barrier + kToEmpty, next.parity ^ 1);
    }

    // It is taken.
    __device__ __forceinline__ void take(uint32_t) {}
};

// Pieces side by side: behind the latest up to the oldest or the ring's end, else at its beginning.
template <>
struct Room<true> {
    RingPlace<true> oldest;
    // Pieces in the ring; where the oldest of them is, and where the latest ends.
    uint32_t n_held = 0, first = 0, end = 0;
    uint32_t place = 0;

    __device__ __forceinline__ explicit Room(const RingPlace<true>& start) : oldest(start) {}

    __device__ __forceinline__ void note_use(const StepRing<true>& ring) {
        // Of a piece that is not there nobody looks at where it is; it is asked for already, as the answer takes long enough.
        RingPlace<true> second = oldest;
        second.advance(ring);
        const uint32_t address = PieceReader<true>::piece(second).address();
        if (test_mbarrier(oldest.barrier + kToEmpty, oldest.parity)) {
            oldest = second;
            first = address;
            n_held--;
        }
    }

    __device__ __forceinline__ bool find(const StepRing<true>& ring, const RingPlace<true>&, uint32_t bytes) {
        const uint32_t last = ring.first_slot + ring.slot_bytes;
        const bool goes_round = end <= first, is_behind = end + bytes <= (goes_round ? first : last);
        place = n_held > 0 && is_behind ? end : ring.first_slot;
        return n_held == 0 || (n_held < KIGO_STEP_SLOTS && (is_behind || (!goes_round && place + bytes <= first)));
    }

    __device__ __forceinline__ void take(uint32_t bytes) {
        if (n_held++ == 0) first = place;
        end = place + bytes;
    }
};

// What fetches a warp's pieces: a lane of a fetching warp.
template <bool kMixes, bool kPages>
struct Fetcher : StepRing<kMixes> {
    using Ring = StepRing<kMixes>;

    const KigoStep& p;
    uint32_t warp;
    ExpertPath experts;
    // Without pages null.
    const PageSource* source;
    PieceList<kMixes, kPages> next, ahead;
    RingPlace<kMixes> to_start, to_arrive;
    Room<kMixes> room;
    // Pieces that are on their way to L2, or there, from `next` to `ahead`; when the latest was sent for.
    uint32_t n_ahead = 0, sent = 0;
    uint32_t n_under_way = 0;
    uint64_t policy = 0;

    __device__ __forceinline__ Fetcher(const KigoStep& p, uint8_t* memory, RingHeads* heads, const Mixture& mixture,
                                       const PageSource* source, uint32_t warp)
        : Ring(p, memory, heads, warp),
          p(p),
          warp(warp),
          experts{{}, mixture},
          source(source),
          next{},
          ahead{},
          to_start(RingPlace<kMixes>::first(*this)),
          to_arrive(to_start),
          room(to_start) {
#if __CUDA_ARCH__ >= 900
        // Weights are read once in a step, and must not drive out what blocks hand to each other.
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
        if constexpr (!kMixes) next.way = heads[warp].routes, ahead.way = next.way + 1;
        next.route().next_stage = 0;
        next.open_stage(p, warp, experts, source);
    }

    // Notes the arrival of the oldest piece under way.
    __device__ __forceinline__ void note_arrival() {
        if (n_under_way == 0 || !test_mbarrier(to_arrive.barrier, to_arrive.parity)) return;
        to_arrive.advance(*this);
        n_under_way--;
    }

    __device__ __forceinline__ bool has_room() { return room.find(*this, to_start, next.n_tiles() * next.bytes()); }

    // Starts to copy the next piece, which there is room for.
    __device__ __forceinline__ void start() {
        const uint32_t bytes = next.bytes(), n_tiles = next.n_tiles();
#if __CUDA_ARCH__ >= 900
        const Piece piece = next.piece(room.place);
        const uint32_t head = to_start.barrier + kToPiece;
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(head), "r"(piece.record), "r"(piece.bits) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(to_start.barrier), "r"(bytes * n_tiles) : "memory");
#pragma unroll 1
        for (uint32_t tile = 0; tile < n_tiles; tile++) {
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                             room.place + tile * bytes),
                         "l"(next.from(tile)), "r"(bytes), "r"(to_start.barrier), "l"(policy)
                         : "memory");
        }
#endif
        room.take(bytes * n_tiles);
        to_start.advance(*this);
        n_under_way++;
        if (n_ahead > 0) n_ahead--;
        next.advance(p, warp, experts, source);
    }

    // Sends for a piece that there is no room for yet: it comes to L2, so that memory is not idle while the block waits.
    __device__ __forceinline__ void send_ahead() {
        if (n_ahead == 0) ahead.follow(next);
        if (ahead.n == 0) return;
#if __CUDA_ARCH__ >= 900
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(ahead.from(0)), "r"(ahead.bytes()) : "memory");
#endif
        ahead.advance(p, warp, experts, source);
        n_ahead++;
    }
};

// Fills the rings of some warps, a lane for each, with at most so many pieces of each under way: what blocks wait for would
// queue behind more. The lanes stay together, as each would make the others wait otherwise.
template <bool kMixes, bool kPages>
__device__ __forceinline__ void fetch(const KigoStep& p, uint8_t* memory, RingHeads* heads, const Mixture& mixture, const PageSource* source,
                                      uint32_t fetch_warp) {
    const uint32_t warp = threadIdx.x % kWarp * kFetchWarps + fetch_warp;
    const uint32_t lanes = __ballot_sync(~0u, warp < kStepWarps);
    if (warp >= kStepWarps) return;
    Fetcher<kMixes, kPages> fetcher(p, memory, heads, mixture, source, warp);
    const uint32_t most_under_way = (p.under_way + warp) / kStepWarps;
    while (__any_sync(lanes, fetcher.next.n > 0 || (kMixes && fetcher.next.waits))) {
        fetcher.note_arrival();
        fetcher.room.note_use(fetcher);
        if (kMixes && fetcher.next.waits) fetcher.next.open_expert(fetcher.experts);
        const bool waits = kMixes && fetcher.next.waits;
        if (fetcher.next.n == 0 && !waits) continue;
        // Of experts nothing has come before: all of it is sent for.
        const bool may_start = fetcher.n_under_way < most_under_way || (kMixes && fetcher.next.mixes);
        if (!kMixes && !may_start) continue;
        const bool is_full = waits || !fetcher.has_room();
        if (!is_full && may_start) {
            do {
                fetcher.start();
            } while (kMixes && fetcher.next.mixes && fetcher.next.n > 0 && fetcher.has_room());
        } else if constexpr (!kMixes) {
            if (is_full && fetcher.n_under_way == 0 && fetcher.n_ahead < p.most_ahead) {
                const uint32_t now = clock();
                if (now - fetcher.sent < p.pace) continue;
                fetcher.sent = now;
                fetcher.send_ahead();
            }
        }
    }
}

}  // namespace
