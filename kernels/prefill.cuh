// The product with very many rows on sm_90a: the tensor cores take activations from shared memory, and weights too where these are
// halves or bfloat16; others come from registers.
//
// A block has a warpgroup that copies, one or two that finish results, and two that multiply: each takes 4 tiles (a warp has one)
// by all columns of the block. Results of an item are handed on when the next has begun; when none does, those who multiply help to
// finish them. Two blocks, a cluster, have the same columns: each copies half of the activations for both.
// Clusters stay and take one item after the other, of all experts where there are some: 8 tiles for each block by up to 3 parts of
// 64 columns. Activations come in the order KIGO_ORDER_SWIZZLED, whose columns of k stand as the tensor cores match them with a
// lane's weights.
//
// Where there are few items, a cluster has one or two slices of one item. Their sums go to memory, and another kernel adds them
// (slices.cu): blocks that add what others have must all run at a time, and of clusters of eight no more than 15 do.
//
// What is added in which order is as in fragments.cuh. What follows a product, scales or minima, is not known here: operands have
// all of it.
#pragma once

#include "fragments.cuh"
#include "prefill_finish.cuh"
#include "wgmma.cuh"

namespace prefill {

// Blocks of a cluster.
constexpr int kCluster = 2;
constexpr int kMultipliers = 2, kMultiplierWarps = kMultipliers * kGroupThreads / kWarp;
// Whether a type's records are taken by the tensor cores as they are.
template <class Type>
constexpr bool kOnlyCodes = Type::kScaleBytes == 0 && Type::Planes::Low::kWords == 16;
// Warpgroups that finish results: two where there are registers for them, none where slices are added later.
template <class Type, int kParts, bool kSplits>
constexpr int kFinishers = kSplits ? 0 : kOnlyCodes<Type> && kParts < 3 ? 2 : 1;
template <class Type, int kParts, bool kSplits>
constexpr int kFinisherWarps = kFinishers<Type, kParts, kSplits> * kGroupThreads / kWarp;
template <class Type, int kParts, bool kSplits>
constexpr int kThreads = (1 + kFinishers<Type, kParts, kSplits> + kMultipliers) * kGroupThreads;
// Warps that finish the third part of an item.
constexpr int kMostFinisherWarps = kGroupThreads / kWarp;
// Warps that copy weights.
constexpr int kWeightCopiers = 2;
// Dynamic shared memory of a block.
constexpr int kSharedBytes = 227 * 1024;
// A part of results.
constexpr int kResultBytes = kPartColumns * kItemRows * 4;
// Items that are told ahead: finishers may be one behind the multipliers.
constexpr int kToldSlots = 4;

// What multipliers and finishers are told: how many parts an item has, or 0 that none follows, which it is, and whether it is the
// cluster's last. That and the last item stay.
struct Told {
    uint32_t parts, expert, tile, column, last, is_last;
};

// Registers of a thread of each warpgroup: those that multiply need two for each result. Where none finishes, all have the same.
template <class Type, int kParts>
constexpr int kMultiplierRegisters = kParts > 2 ? (kOnlyCodes<Type> ? 208 : 224) : kOnlyCodes<Type> ? 152 : 184;
template <class Type, int kParts>
constexpr int kCopierRegisters = kParts > 2 ? 24 : kOnlyCodes<Type> ? 32 : 40;
// All together have what a block is launched with.
template <class Type, int kParts>
constexpr int kLaunchRegisters = 65536 / kThreads<Type, kParts, false> / 8 * 8;
template <class Type, int kParts>
constexpr int kFinisherRegisters = (kThreads<Type, kParts, false> / kGroupThreads * kLaunchRegisters<Type, kParts> -
                                    2 * kMultiplierRegisters<Type, kParts> - kCopierRegisters<Type, kParts>) /
                                   kFinishers<Type, kParts, false> / 8 * 8;

constexpr int min_of(int a, int b) { return a < b ? a : b; }

// The shared memory of a block, after `kAlign` bytes at most: slots of activations, of weights, of results, of what is told,
// barriers. Records of one unit are in the slots of activations.
template <class Type, int kParts, bool kSplits>
struct Plan {
    static constexpr bool kBf16 = Type::kOperand == Operand::kBf16;
    static constexpr int kAlign = 1024;
    // Of a unit of activations: halves, or the larger parts and the rests.
    static constexpr int kHalvesBytes = kParts * kPartColumns * 2 * kUnitK, kInputBytes = kHalvesBytes * (kBf16 ? 2 : 1);
    static constexpr int kUnits = Type::kRecordK / kUnitK;
    static constexpr bool kJoined = kUnits == 1;
    // Of a record of each tile.
    static constexpr int kRecordStep = (Record<Type>::kBytes + kLine - 1) / kLine * kLine;
    static constexpr int kWeightBytes = kItemTiles * kRecordStep;
    static constexpr int kSlotBytes = kInputBytes + (kJoined ? (kWeightBytes + kAlign - 1) / kAlign * kAlign : 0);
    // Parts of results that wait to be finished.
    static constexpr int kResultSlots = kSplits ? 0 : 2;
    static constexpr int kRest = kSharedBytes - kAlign - kResultSlots * kResultBytes - 448;
    static constexpr int kWeightSlots = kJoined ? 0 : kSplits ? 4 : 2;
    static constexpr int kSlots = min_of((kRest - kWeightSlots * kWeightBytes) / kSlotBytes, 8);
    static_assert(kSlots >= 2);
    static constexpr int kWeights = kSlots * kSlotBytes, kResults = kWeights + kWeightSlots * kWeightBytes;
    static constexpr int kTold = kResults + kResultSlots * kResultBytes, kBarriers = kTold + 96;
    static constexpr int kEnd = kBarriers + 16 * (kSlots + kWeightSlots + kResultSlots + kToldSlots) + 8 * (1 + kMostFinisherWarps);
    static_assert(sizeof(Told) * kToldSlots <= kBarriers - kTold);
    static_assert(kAlign + kEnd <= kSharedBytes);
};

// A ring of slots of shared memory that some threads of a block fill and others use, with a barrier for each that it is full and
// one that it is empty.
template <int kSlots>
struct Slots {
    uint8_t* at;
    uint64_t* barriers;
    int slot = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ uint64_t* full() const { return barriers + slot; }
    __device__ __forceinline__ uint64_t* empty() const { return barriers + kSlots + slot; }

    __device__ __forceinline__ void advance() {
        if (++slot == kSlots) {
            slot = 0;
            phase ^= 1;
        }
    }

    // Waits until the next slot is free, and for the first round not at all.
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), phase ^ 1); }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full(), phase); }

    // That before.
    __device__ __forceinline__ Slots back() const {
        Slots out = *this;
        out.slot = slot == 0 ? kSlots - 1 : slot - 1;
        if (slot == 0) out.phase ^= 1;
        return out;
    }

    // Of all lanes of a warp, when none uses the slot any more.
    __device__ __forceinline__ void release() const { arrive(empty()); }

    __device__ __forceinline__ static void arrive(uint64_t* barrier) {
        __syncwarp();
        if (threadIdx.x % kWarp == 0) barrier_arrive(barrier);
    }
};

// The third part of an item, for which there is no slot of results: multipliers write it to memory, and finishers fetch it to the
// slot of the first when that is finished.
struct Late {
    // Of this block.
    float* at;
    // That it is there; for each warp of finishers that its columns have been fetched.
    uint64_t *full, *fetched;
};

__device__ __forceinline__ uint32_t rank_in_cluster() { return blockIdx.x % kCluster; }

// Pieces that an item is cut into along k: n_slots slices each.
template <bool kSplits>
__device__ __forceinline__ uint32_t pieces(const KigoMatmul& p) { return kSplits ? kSlices / p.n_slots : 1; }

// The records that a block multiplies, perhaps none.
template <bool kSplits>
__device__ __forceinline__ Slice block_slice(const KigoMatmul& p) {
    Slice out(p.n_records, 0);
    out.last = p.n_records;
    if (kSplits) {
        const uint32_t first = blockIdx.x / kCluster % pieces<true>(p) * p.n_slots;
        out.first = Slice(p.n_records, first).first;
        out.last = Slice(p.n_records, first + p.n_slots - 1).last;
    }
    return out;
}

// Items of the cluster: 8 tiles for each block by some columns. Rows of activations, those of each expert on their own, are cut into
// up to `n_wide` pieces of kParts parts, and the rest into pieces of `narrow` parts; the last may have fewer.
template <int kParts, bool kSplits>
struct Items {
    const KigoMatmul& p;
    // Rows first .. last are those of the expert, or all.
    uint32_t expert = 0, first = 0, last, n_wide, n_narrow, n_wide_items, n_items, item;

    __device__ __forceinline__ Items(const KigoMatmul& p) : p(p), last(p.n), item(blockIdx.x / kCluster / pieces<kSplits>(p)) {
        cut();
        find();
    }

    __device__ __forceinline__ bool any() const { return item < n_items; }
    __device__ __forceinline__ void advance() {
        // Pieces have an item each.
        item += kSplits ? n_items : gridDim.x / kCluster;
        find();
    }
    __device__ __forceinline__ bool is_wide() const { return item < n_wide_items; }
    // The first tile of this block. Clusters that run at a time share tiles.
    __device__ __forceinline__ uint32_t tile() const {
        const uint32_t group = is_wide() ? item / n_wide : (item - n_wide_items) / n_narrow;
        return (group * kCluster + rank_in_cluster()) * kItemTiles;
    }
    __device__ __forceinline__ uint32_t column() const {
        const uint32_t part = is_wide() ? item % n_wide * kParts : n_wide * kParts + (item - n_wide_items) % n_narrow * p.narrow_parts;
        return first + part * kPartColumns;
    }
    __device__ __forceinline__ uint32_t parts() const {
        return min(is_wide() ? kParts : p.narrow_parts, (last - column() + kPartColumns - 1) / kPartColumns);
    }

    __device__ __forceinline__ bool is_last() const {
        Items next(*this);
        next.advance();
        return !next.any();
    }

    static constexpr uint32_t kTiles = kCluster * kItemTiles;

    // Looks up the expert's rows and cuts them.
    __device__ __forceinline__ void cut() {
        if (p.starts) {
            const uint32_t* starts = reinterpret_cast<const uint32_t*>(p.starts) + expert;
            first = __ldca(starts), last = __ldca(starts + 1);
        }
        const uint32_t parts = (last - first + kPartColumns - 1) / kPartColumns, n_groups = (p.n_tiles + kTiles - 1) / kTiles;
        n_wide = min(p.n_wide, parts / kParts);
        n_narrow = (parts - n_wide * kParts + p.narrow_parts - 1) / p.narrow_parts;
        n_wide_items = n_groups * n_wide;
        n_items = n_wide_items + n_groups * n_narrow;
    }

    // Goes on to the expert that has the item.
    __device__ __forceinline__ void find() {
        while (item >= n_items && expert + 1 < p.n_expert) {
            item -= n_items;
            expert++;
            cut();
        }
    }
};

template <class Type, int kMost, bool kSplits>
struct Multiplier {
    using P = Plan<Type, kMost, kSplits>;
    // Steps of a record, each 16 columns of k. Operands of four are in registers: two that are multiplied, two that come next.
    static constexpr int kPerUnit = 4, kAhead = 2, kSteps = P::kUnits * kPerUnit;
    static constexpr bool kOnlyCodes = prefill::kOnlyCodes<Type>;

    Slots<P::kSlots> inputs;
    Slots<P::kWeightSlots> weights;
    Slots<P::kResultSlots> results;
    Late late;
    uint32_t late_phase = 0;
    // Parts of the item before that are still to be handed on.
    uint32_t before_parts = 0;
    // Where the records of the warp's tile are in the first slot, or what describes those of all tiles of the warpgroup.
    uint32_t from;
    // Of one thread for each block of the cluster: the barrier there that the first slot is empty; 0 for others.
    uint32_t to_release;
    // Of one item: sums over slices, and where weights come from registers sums of the slice under way. Others have those on their own
    // for each number of parts: either way ptxas finds registers for products under way, the other way round it does not.
    float total[kMost][32];
    float joint[kOnlyCodes ? 1 : kMost][32];

    // `tile` is the warp's in the block.
    __device__ __forceinline__ Multiplier(const Slots<P::kSlots>& inputs, const Slots<P::kWeightSlots>& weights,
                                          const Slots<P::kResultSlots>& results, const Late& late, int tile)
        : inputs(inputs), weights(weights), results(results), late(late) {
        from = shared_address(P::kJoined ? inputs.at + P::kInputBytes : weights.at) + (kOnlyCodes ? tile / 4 * 4 : tile) * P::kRecordStep;
        if (kOnlyCodes) from = wgmma_rows_word(from);
        const int thread = threadIdx.x % kGroupThreads, per_block = kGroupThreads / kCluster;
        to_release = thread % per_block == 0 ? cluster_address(inputs.barriers + P::kSlots, thread / per_block) : 0;
        // In registers from here on, and not computed again in loops.
        asm volatile("" : "+r"(from), "+r"(to_release));
    }

    // When the products with a slot are complete: as seen by one warp they are so for all four of the warpgroup.
    __device__ __forceinline__ void release_inputs(int slot) const {
        if (to_release != 0) barrier_arrive_cluster(to_release + 8 * slot);
    }

    // What is known of the unit whose operands come next: codes where a lane has few, and what makes weights of them.
    struct Next {
        typename Type::Planes::Unit codes;
        Affine affine;
    };

    // The weights of step `index` of a record in `slot`, as operands.
    __device__ __forceinline__ void make_step(uint32_t (&out)[4], Next& next, int index, int slot, int lane) const {
        constexpr bool kKeepsCodes = Type::Planes::Low::kWords <= 4;
        constexpr int kPerPart = kPerUnit / kAffineParts<Type>;
        const uint8_t* record = static_cast<const uint8_t*>(__cvta_shared_to_generic(from + slot * (P::kJoined ? P::kSlotBytes : P::kWeightBytes)));
        const int unit = index / kPerUnit, j = index % kPerUnit;
        if (!kKeepsCodes || j == 0) next.codes = load_unit<Type>(record, unit, lane);
        if constexpr (Type::kGroupK > 0) {
            if (j % kPerPart == 0) next.affine = Type::affine(scales_of<Type>(record + Record<Type>::kScales, lane), unit, j / kPerPart);
            make_weights<Type>(next.codes, j, next.affine, out);
        } else {
            Type::Planes::codes(next.codes, j, out);
        }
    }

    // Starts the products of a step of the unit in the slot.
    template <int kParts>
    __device__ __forceinline__ void multiply(float (*products)[32], const uint32_t (&a)[4], int index, int keep) {
        const uint64_t columns = wgmma_columns(inputs.at + inputs.slot * P::kSlotBytes) + index % kPerUnit * 2;
        wgmma_fence();
        wgmma<P::kBf16, kParts>(products, a, columns, keep);
        if constexpr (P::kBf16) wgmma<true, kParts>(products, a, columns + P::kHalvesBytes / 16, 1);
        wgmma_commit();
    }

    // Writes a part of the results of tile `tile` of the block.
    __device__ __forceinline__ static void put(float* to, const float (&values)[32], int tile, int lane) {
        // Columns 8 apart and neighbours have rows in the same places.
        const int row = tile * kTileRows + lane / 4, column = 2 * (lane % 4);
        float* const of_row[2] = {to + result_place(row, column), to + result_place(row + 8, column)};
#pragma unroll
        for (int i = 0; i < 32; i++) of_row[i / 2 % 2][(8 * (i / 4) + i % 2) * kItemRows] = values[i];
    }

    // Hands it on.
    __device__ __forceinline__ void hand_on(const float (&values)[32], int tile, int lane) {
        results.wait_empty();
        put(reinterpret_cast<float*>(results.at) + results.slot * (kResultBytes / 4), values, tile, lane);
        barrier_arrive(results.full());
        results.advance();
    }

    // The slots that the others wait for were free when this had been fetched the last time.
    __device__ __forceinline__ void hand_on_late(const float (&values)[32], int tile, int lane) {
        put(late.at, values, tile, lane);
        fence_copies();
        barrier_arrive(late.full);
        late_phase ^= 1;
    }

    // Starts the products of a unit, whose weights are taken from shared memory.
    template <int kParts>
    __device__ __forceinline__ void start_shared(float (*products)[32], int keep) {
        inputs.wait_full();
        const uint32_t rows = from + inputs.slot * (P::kSlotBytes / 16);
        const uint64_t columns = wgmma_columns(inputs.at + inputs.slot * P::kSlotBytes);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kPerUnit; i++) {
            const uint64_t step = wgmma_rows(rows + 256 / 16 * i);
            wgmma_shared<P::kBf16, kParts>(products, step, columns + 2 * i, i > 0 ? 1 : keep);
            if constexpr (P::kBf16) wgmma_shared<true, kParts>(products, step, columns + 2 * i + P::kHalvesBytes / 16, 1);
        }
        wgmma_commit();
    }

    // Computes `products` of so many records of the warpgroup's tiles; `meanwhile` is done while the first are multiplied.
    template <int kParts, class Meanwhile>
    __device__ __forceinline__ void multiply_shared(float (*products)[32], uint32_t n, Meanwhile meanwhile) {
        start_shared<kParts>(products, 0);
        int before = inputs.slot;
        inputs.advance();
        uint32_t left = n - 1;
        if (left > 0) start_shared<kParts>(products, 1);
        meanwhile();
#pragma unroll 1
        while (left > 0) {
            wgmma_wait<1>();
            release_inputs(before);
            before = inputs.slot;
            inputs.advance();
            if (--left > 0) start_shared<kParts>(products, 1);
        }
        wgmma_wait<0>();
        release_inputs(before);
#pragma unroll
        for (int part = 0; part < kParts; part++) wgmma_pin(products[part]);
    }

    // Computes `products` of so many records of the warp's tile, which come in the rings.
    template <int kParts, class Meanwhile>
    __device__ __forceinline__ void multiply_records(float (*products)[32], uint32_t n, int lane, Meanwhile meanwhile) {
        if constexpr (kOnlyCodes) return multiply_shared<kParts>(products, n, meanwhile);
        uint32_t a[kPerUnit][4];
        Next next_unit;
        int keep = 0, before = 0;
        // Whose weights are looked at ahead.
        auto ahead = [&] { if constexpr (P::kJoined) { return inputs; } else { return weights; } }();
        ahead.wait_full();
#pragma unroll
        for (int i = 0; i < kAhead; i++) make_step(a[i], next_unit, i, ahead.slot, lane);
#pragma unroll 1
        for (uint32_t left = n; left > 0; left--) {
#pragma unroll
            for (int index = 0; index < kSteps; index++) {
                if (!P::kJoined && index % kPerUnit == 0) inputs.wait_full();
                multiply<kParts>(products, a[index % kPerUnit], index, keep);
                keep = 1;
                const int next = (index + kAhead) % kSteps;
                if (next == 0) {
                    ahead.advance();
                    if (left > 1) ahead.wait_full();
                }
                if (next == index + kAhead || left > 1) make_step(a[next % kPerUnit], next_unit, next, ahead.slot, lane);
                wgmma_wait<1>();
                // The slot before becomes free with this unit's first step.
                if (index % kPerUnit == 0 && (index > 0 || left < n)) release_inputs(before);
                if (index == kPerUnit - 1 && left == n) meanwhile();
                if (index % kPerUnit == kPerUnit - 1) {
                    before = inputs.slot;
                    inputs.advance();
                }
                if (!P::kJoined && index == kSteps - 1) {
                    weights.release();
                    weights.advance();
                }
            }
        }
        wgmma_wait<0>();
        release_inputs(before);
#pragma unroll
        for (int part = 0; part < kParts; part++) wgmma_pin(products[part]);
    }

    // Hands on what is known of the item before.
    __device__ __forceinline__ void hand_on_before(int tile, int lane) {
        if (before_parts > 0) hand_on(total[0], tile, lane);
        if (before_parts > 1) hand_on(total[1], tile, lane);
        if constexpr (kMost > 2) {
            if (before_parts > 2) hand_on_late(total[2], tile, lane);
        }
        before_parts = 0;
    }

    // Computes `total` of the warp's tile, and only then hands it on: when the next item has begun.
    template <int kParts>
    __device__ __forceinline__ void run(uint32_t n_records, int tile, int lane) {
        const uint32_t each = Slice(n_records, 0).last;
        float own[kOnlyCodes ? kParts : 1][32];
        float(*const products)[32] = kOnlyCodes ? own : joint;
        multiply_records<kParts>(products, each, lane, [&] { hand_on_before(tile, lane); });
#pragma unroll
        for (int i = 0; i < kParts * 32; i++) total[i / 32][i % 32] = __fadd_rn(0, products[i / 32][i % 32]);
#pragma unroll 1
        for (uint32_t first = each; first < n_records; first += each) {
            uint32_t n = min(each, n_records - first);
            asm volatile("" : "+r"(n));
            multiply_records<kParts>(products, n, lane, [] {});
#pragma unroll
            for (int i = 0; i < kParts * 32; i++) total[i / 32][i % 32] = __fadd_rn(total[i / 32][i % 32], products[i / 32][i % 32]);
        }
        before_parts = kParts;
    }

    // Computes the sums of slices, and writes them where slices.cu looks for them.
    template <int kParts>
    __device__ __forceinline__ void run_slices(const KigoMatmul& p, const Slice& slices, const Told& told, int tile, int lane) {
        const uint32_t each = Slice(p.n_records, 0).last;
        for (uint32_t first = slices.first; first < slices.last; first += each) {
            float own[kOnlyCodes ? kParts : 1][32];
            float(*const products)[32] = kOnlyCodes ? own : joint;
            multiply_records<kParts>(products, min(each, slices.last - first), lane, [] {});
            if (told.tile >= p.n_tiles) continue;
            float* to = slice_sums(p, first / each, told.tile, told.column + 2 * (lane % 4)) + tile * kTileRows + lane / 4;
#pragma unroll
            for (int i = 0; i < 32 * kParts; i++) {
                to[(8 * (i / 4) + i % 2) * kItemRows + i / 2 % 2 * 8] = products[i / 32][i % 32];
            }
        }
    }

    // Finishes the other parts of the last item, while the finishers do the first.
    __device__ __forceinline__ void finish_last(const KigoMatmul& p, const Told& told, int tile, int lane) const {
        constexpr int kColumns = 8;
        if (told.parts < 2) return;
        const int part = told.parts > 2 ? 1 + tile / 4 : 1, n = told.parts > 2 ? 2 : 1, first = (told.parts > 2 ? tile % 4 : tile) * n * kColumns;
        const Slots<P::kResultSlots> before = results.back();
        const float* from = reinterpret_cast<const float*>(before.at) + before.slot * (kResultBytes / 4);
        if (part == 1) before.wait_full();
        if (part == 2) barrier_wait(late.full, late_phase ^ 1), from = late.at;
#pragma unroll 1
        for (int column = first; column < first + n * kColumns; column += kColumns) {
            const Finisher<kColumns, true> finisher(p, told.expert, told.tile, told.column + part * kPartColumns + column, told.last, lane);
            finisher.finish(from + column * kItemRows);
        }
    }

    __device__ __forceinline__ void run_items(const KigoMatmul& p, Slots<kToldSlots> told, int tile, int lane) {
        bool any = false;
        while (true) {
            told.wait_full();
            const uint32_t parts = reinterpret_cast<const volatile Told*>(told.at)[told.slot].parts;
            barrier_arrive(told.empty());
            if (parts == 0) break;
            told.advance();
            any = true;
            if (kMost > 2 && parts > 2) {
                run<kMost>(p.n_records, tile, lane);
            } else if (parts == 2) {
                run<2>(p.n_records, tile, lane);
            } else {
                run<1>(p.n_records, tile, lane);
            }
        }
        hand_on_before(tile, lane);
        if (any) finish_last(p, reinterpret_cast<const Told*>(told.at)[told.back().slot], tile, lane);
    }

    // Computes the block's slices of its only item.
    __device__ __forceinline__ void run_pieces(const KigoMatmul& p, const Slots<kToldSlots>& told, int tile, int lane) {
        told.wait_full();
        const Told item = reinterpret_cast<const Told*>(told.at)[told.slot];
        const Slice slices = block_slice<true>(p);
        if (item.parts == 2) {
            run_slices<2>(p, slices, item, tile, lane);
        } else {
            run_slices<1>(p, slices, item, tile, lane);
        }
    }
};

// Copies the records of half of a block's tiles, as one warp of two: an instruction copies for one lane at a time.
template <class Type, int kMost, bool kSplits>
__device__ __forceinline__ void copy_weights(const KigoMatmul& p, Slots<Plan<Type, kMost, kSplits>::kSlots> inputs,
                                             Slots<Plan<Type, kMost, kSplits>::kWeightSlots> weights, int half, int lane) {
    using P = Plan<Type, kMost, kSplits>;
    constexpr int kTiles = kItemTiles / kWeightCopiers, kBytes = Record<Type>::kBytes;
    const int of_item = half * kTiles + lane % kTiles;
    const Slice slice = block_slice<kSplits>(p);
    // What is copied first depends on no kernel before, unless these say which rows are of which expert.
    uint32_t n_early = p.starts ? 0 : P::kJoined ? P::kSlots : P::kWeightSlots;
    if (n_early == 0) pdl_wait();
    auto copy_items = [&](auto& slots, uint8_t* to, int slot_bytes) {
        for (Items<kMost, kSplits> items(p); items.any(); items.advance()) {
            const uint32_t tile = items.expert * p.n_tiles + min(items.tile() + of_item, p.n_tiles - 1);
            const uint8_t* records = reinterpret_cast<const uint8_t*>(p.weights) + size_t(tile) * p.n_records * kBytes;
            uint32_t place = record_place(tile, slice.first, p.n_records);
#pragma unroll 1
            for (uint32_t record = slice.first; record < slice.last; record++) {
                slots.wait_empty();
                if (!P::kJoined && lane == 0) barrier_expect(slots.full(), kTiles * kBytes);
                __syncwarp();
                if (lane < kTiles) {
                    copy_bulk(to + slots.slot * slot_bytes + of_item * P::kRecordStep, records + size_t(place) * kBytes, kBytes, slots.full());
                }
                slots.advance();
                place = place + 1 == p.n_records ? 0 : place + 1;
                if (n_early > 0 && --n_early == 0) pdl_wait();
            }
        }
        if (n_early > 0) pdl_wait();
    };
    if constexpr (P::kJoined) {
        copy_items(inputs, inputs.at + P::kInputBytes, P::kSlotBytes);
    } else {
        copy_items(weights, weights.at, P::kWeightBytes);
    }
}

// Copies the activations of items, as one thread: for both blocks the half of the columns that is this block's.
template <class Type, int kMost, bool kSplits>
__device__ __forceinline__ void copy_inputs(const KigoMatmul& p, Slots<Plan<Type, kMost, kSplits>::kSlots> inputs, Slots<kToldSlots> told) {
    using P = Plan<Type, kMost, kSplits>;
    constexpr uint32_t kBytes = P::kJoined ? kItemTiles * Record<Type>::kBytes : 0;
    const uint32_t n_groups = (p.n + 7) / 8, mask = (1 << kCluster) - 1;
    const Slice slice = block_slice<kSplits>(p);
    const uint8_t* halves = reinterpret_cast<const uint8_t*>(p.records);
    // What stands behind the larger parts of all units.
    const uint8_t* rests = halves + size_t(p.input.stride / kUnitK) * n_groups * 1024;
    // Tells the multipliers that an item comes, or, as one without parts, that none does.
    auto announce = [&](const Told& item) {
        told.wait_empty();
        reinterpret_cast<Told*>(told.at)[told.slot] = item;
        barrier_arrive(told.full());
        told.advance();
    };
    // Which items there are depends on no kernel before, unless these say which rows are of which expert.
    bool waits = !p.starts;
    if (!waits) pdl_wait();
    for (Items<kMost, kSplits> items(p); items.any(); items.advance()) {
        const uint32_t group = items.column() / 8, n = min(items.parts() * (kPartColumns / 8), (items.last + 7) / 8 - group);
        const uint32_t half = (n + 1) / 2, rank = rank_in_cluster();
        const uint32_t before = rank * half, bytes = (rank == 0 ? half : n - half) * 1024;
        announce({items.parts(), items.expert, items.tile(), items.column(), items.last, items.is_last()});
        if (waits) pdl_wait();
        waits = false;
#pragma unroll 1
        for (uint32_t unit = slice.first * P::kUnits; unit < slice.last * P::kUnits; unit++) {
            inputs.wait_empty();
            uint8_t* to = inputs.at + inputs.slot * P::kSlotBytes + before * 1024;
            const size_t from = (size_t(unit) * n_groups + group + before) * 1024;
            barrier_expect(inputs.full(), n * (P::kBf16 ? 2048 : 1024) + kBytes);
            if (bytes > 0) {
                copy_bulk_cluster(to, halves + from, bytes, inputs.full(), mask);
                if (P::kBf16) copy_bulk_cluster(to + P::kHalvesBytes, rests + from, bytes, inputs.full(), mask);
            }
            inputs.advance();
        }
    }
    if (!kSplits) announce({});
}

// Finishes what the multipliers hand on, as one warp of those that do.
template <class Type, int kParts, bool kManyRegisters>
__device__ __forceinline__ void finish_items(const KigoMatmul& p, Slots<Plan<Type, kParts, false>::kResultSlots> results, const Late& late,
                                             Slots<kToldSlots> told, int warp, int lane) {
    constexpr int kColumns = kPartColumns / kFinisherWarps<Type, kParts, false>, kFloats = kColumns * kItemRows;
    uint32_t late_phase = 0;
    while (true) {
        told.wait_full();
        const volatile Told& item = reinterpret_cast<const volatile Told*>(told.at)[told.slot];
        // The multipliers do the rest of the last item.
        const uint32_t parts = item.is_last ? min(item.parts, 1) : item.parts;
        if (parts == 0) break;
#pragma unroll 1
        for (uint32_t part = 0; part < parts; part++) {
            // What depends on the lane is computed anew: all of it would not fit into registers.
            asm volatile("" : "+r"(lane));
            const int column = warp * kColumns;
            const Finisher<kColumns, kManyRegisters> finisher(p, item.expert, item.tile, item.column + part * kPartColumns + column, item.last, lane);
            finisher.prefetch();
            float* at = reinterpret_cast<float*>(results.at) + results.slot * (kResultBytes / 4) + warp * kFloats;
            if (part < 2) {
                results.wait_full();
            } else {
                barrier_wait(late.fetched + warp, late_phase);
                late_phase ^= 1;
            }
            finisher.finish(at);
            if (part == 0 && parts > 2) {
                barrier_wait(late.full, late_phase);
                fence_copies();
                __syncwarp();
                if (lane == 0) {
                    barrier_expect(late.fetched + warp, kFloats * 4);
                    copy_bulk(at, late.at + warp * kFloats, kFloats * 4, late.fetched + warp);
                }
            } else {
                barrier_arrive(results.empty());
            }
            if (part < 2) results.advance();
        }
        barrier_arrive(told.empty());
        told.advance();
    }
}

// Grid: blocks whose clusters share the items, or have the pieces of one after the other.
template <class Type, int kMost, bool kSplits>
__device__ __forceinline__ void multiply(const KigoMatmul& p, uint8_t* shared) {
    using P = Plan<Type, kMost, kSplits>;
    shared += (P::kAlign - shared_address(shared) % P::kAlign) % P::kAlign;
    const int group = threadIdx.x / kGroupThreads, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint64_t* barriers = reinterpret_cast<uint64_t*>(shared + P::kBarriers);
    const Slots<P::kSlots> inputs = {shared, barriers};
    const Slots<P::kWeightSlots> weights = {shared + P::kWeights, inputs.barriers + 2 * P::kSlots};
    const Slots<P::kResultSlots> results = {shared + P::kResults, weights.barriers + 2 * P::kWeightSlots};
    const Slots<kToldSlots> told = {shared + P::kTold, results.barriers + 2 * P::kResultSlots};
    uint64_t* late_full = told.barriers + 2 * kToldSlots;
    const Late late = {reinterpret_cast<float*>(p.late) + blockIdx.x * (kResultBytes / 4), late_full, late_full + 1};
    if (threadIdx.x == 0) {
        auto init = [](uint64_t* barriers, int n_slots, int n_full, int n_empty) {
            for (int i = 0; i < 2 * n_slots; i++) barrier_init(barriers + i, i < n_slots ? n_full : n_empty);
        };
        init(inputs.barriers, P::kSlots, 1, kCluster * kMultipliers);
        init(weights.barriers, P::kWeightSlots, kWeightCopiers, kMultiplierWarps);
        // Every thread arrives: racecheck does not see that a warp's first lane does so for the others.
        init(results.barriers, P::kResultSlots, kMultiplierWarps * kWarp, kFinisherWarps<Type, kMost, kSplits> * kWarp);
        init(told.barriers, kToldSlots, 1, (kMultiplierWarps + kFinisherWarps<Type, kMost, kSplits>) * kWarp);
        barrier_init(late.full, kMultiplierWarps * kWarp);
        for (int i = 0; i < kMostFinisherWarps; i++) barrier_init(late.fetched + i, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_wait();
    if (warp > kWeightCopiers) pdl_wait();
    pdl_launch();
    if (group == 0) {
        if constexpr (!kSplits) give_registers<kCopierRegisters<Type, kMost>>();
        if (warp < kWeightCopiers) copy_weights<Type, kMost, kSplits>(p, inputs, weights, warp, lane);
        if (warp == kWeightCopiers && lane == 0) copy_inputs<Type, kMost, kSplits>(p, inputs, told);
    } else if (group <= kFinishers<Type, kMost, kSplits>) {
        if constexpr (!kSplits) {
            constexpr int kRegisters = kFinisherRegisters<Type, kMost>;
            give_registers<kRegisters>();
            finish_items<Type, kMost, (kRegisters > 80)>(p, results, late, told, warp - kGroupThreads / kWarp, lane);
        }
    } else {
        if constexpr (!kSplits) take_registers<kMultiplierRegisters<Type, kMost>>();
        const int tile = warp - (1 + kFinishers<Type, kMost, kSplits>) * kGroupThreads / kWarp;
        Multiplier<Type, kMost, kSplits> multiplier(inputs, weights, results, late, tile);
        if constexpr (kSplits) {
            multiplier.run_pieces(p, told, tile, lane);
        } else {
            multiplier.run_items(p, told, tile, lane);
        }
    }
    // No block ends while another copies to it or reads from it.
    __syncwarp();
    cluster_wait();
}

}  // namespace prefill
