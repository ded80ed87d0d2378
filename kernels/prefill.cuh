// The product with very many rows on sm_90a: the tensor cores take weights from registers, activations from shared memory.
//
// A block has a warpgroup that copies and looks up, and two that multiply: each takes 4 tiles (a warp has one) by all columns
// of the block. Blocks stay and take one item after the other: 8 tiles by 64 * kParts columns. Activations come in the order
// KIGO_ORDER_SWIZZLED, whose columns of k stand as the tensor cores match them with a lane's weights.
//
// What is added in which order is as in fragments.cuh. Types with scales have products of a group apart, scale them when the
// tensor cores are done and meanwhile let them do another part of the columns.
#pragma once

#include "epilogue.cuh"
#include "fragments.cuh"
#include "wgmma.cuh"

namespace prefill {

constexpr int kItemTiles = 8;
constexpr int kMultipliers = 2, kThreads = (kMultipliers + 1) * kGroupThreads;
constexpr int kPartColumns = 64;
// Warps that copy weights.
constexpr int kWeightCopiers = 2;
// Dynamic shared memory of a block.
constexpr int kSharedBytes = 227 * 1024;
// Columns whose results a warp finishes at a time, and floats from one column of them to the next, so that all banks are used.
constexpr int kFinished = 32, kPitch = kTileRows + 4;

// What is known of a column of an item before its products are.
struct Column {
    CachePlace place;
    float factor;
    // Bits of the largest magnitude of its results.
    uint32_t largest;
};

constexpr int min_of(int a, int b) { return a < b ? a : b; }

// The shared memory of a block, after `kAlign` bytes at most: slots of activations, of weights, results to be finished, two
// tables of columns, barriers.
template <class Type, int kParts>
struct Plan {
    static constexpr bool kBf16 = Type::kOperand == Operand::kBf16;
    static constexpr int kColumns = kParts * kPartColumns;
    static constexpr int kAlign = 1024;
    // Of a unit of activations: halves (or the larger parts, and the rests) and sums.
    static constexpr int kHalvesBytes = kColumns * 2 * kUnitK;
    // Of 8 rows of activations.
    static constexpr int kGroupSumBytes = 0;
    static constexpr int kSumBytes = kColumns / 8 * kGroupSumBytes;
    static constexpr int kInputBytes = kHalvesBytes * (kBf16 ? 2 : 1) + kSumBytes;
    static constexpr int kUnits = Type::kRecordK / kUnitK;
    // Of a record of each tile.
    static constexpr int kRecordStep = (Record<Type>::kBytes + kLine - 1) / kLine * kLine;
    static constexpr int kWeightBytes = kItemTiles * kRecordStep;
    static constexpr int kFinishBytes = kFinished * kPitch * 4;
    static constexpr int kTables = 2;
    static constexpr int kRest = kSharedBytes - kAlign - kItemTiles * kFinishBytes - kTables * kColumns * int(sizeof(Column)) - 512;
    static constexpr int kWeightSlots = kUnits > 1 ? 2 : min_of(kRest / (kWeightBytes + kInputBytes), 8);
    static constexpr int kInputSlots = min_of((kRest - kWeightSlots * kWeightBytes) / kInputBytes, 8);
    static_assert(kWeightSlots >= 2 && kInputSlots >= 2);
    static constexpr int kWeights = kInputSlots * kInputBytes, kFinishing = kWeights + kWeightSlots * kWeightBytes;
    static constexpr int kColumnTables = kFinishing + kItemTiles * kFinishBytes;
    static constexpr int kBarriers = kColumnTables + kTables * kColumns * int(sizeof(Column));
    static constexpr int kEnd = kBarriers + 16 * (kWeightSlots + kInputSlots + kTables);
    static_assert(kAlign + kEnd <= kSharedBytes);
};

// A ring of slots of shared memory, with a barrier for each that it is full and one that it is empty.
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

    // Of all lanes of a warp, when none uses the slot any more.
    __device__ __forceinline__ void release() const { release(empty()); }

    __device__ __forceinline__ static void release(uint64_t* empty) {
        __syncwarp();
        if (threadIdx.x % kWarp == 0) barrier_arrive(empty);
    }
};

// Items of the block: 8 tiles by some columns of activations.
template <int kColumns>
struct Items {
    uint32_t first, last, n_pieces, n_items, expert, item;

    __device__ __forceinline__ Items(const KigoMatmul& p) : expert(blockIdx.z), item(blockIdx.x) {
        const uint32_t* starts = reinterpret_cast<const uint32_t*>(p.starts);
        first = starts ? __ldcg(starts + expert) : 0;
        last = starts ? __ldcg(starts + expert + 1) : p.n;
        n_pieces = (last - first + kColumns - 1) / kColumns;
        n_items = n_pieces * ((p.n_tiles + kItemTiles - 1) / kItemTiles);
    }

    __device__ __forceinline__ bool any() const { return item < n_items; }
    __device__ __forceinline__ void advance() { item += gridDim.x; }
    // Blocks that run at a time share tiles.
    __device__ __forceinline__ uint32_t tile() const { return item / n_pieces * kItemTiles; }
    __device__ __forceinline__ uint32_t column() const { return first + item % n_pieces * kColumns; }
};

// The weights of a step, 32 columns of k, as operands.
template <class Type>
struct Step {
    static constexpr int kProducts = 2;
    uint32_t a[kProducts][4];
};

// Step `index` of a record.
template <class Type>
__device__ __forceinline__ void make_step(Step<Type>& out, const uint8_t* record, int index, int lane) {
    const auto unit = load_unit<Type>(record, index / 2, lane);
    Affine affine = {};
    if constexpr (Type::kGroupK > 0) affine = Type::affine(scales_of<Type>(record + Record<Type>::kScales, lane), index / 2, index % 2);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int product = index % 2 * 2 + j;
        if constexpr (Type::kGroupK > 0) {
            make_weights<Type>(unit, product, affine, out.a[j]);
        } else {
            Type::Planes::codes(unit, product, out.a[j]);
        }
    }
}

template <class Type, int kParts>
struct Multiplier {
    using P = Plan<Type, kParts>;
    static constexpr int kProducts = Step<Type>::kProducts, kPerUnit = 4 / kProducts, kSteps = P::kUnits * kPerUnit;
    // Whether products are scaled, and only those of whole units.
    static constexpr bool kScaled = false, kFolded = false;

    Slots<P::kWeightSlots> weights;
    Slots<P::kInputSlots> inputs;
    // Of one item: sums over slices, sums of the slice, products under way.
    float total[kParts][32];
    float slice[kScaled ? kParts : 1][32];
    float products[kParts][32];
    Step<Type> steps[2];

    __device__ __forceinline__ static void multiply(float (&d)[32], const Step<Type>& step, uint64_t columns, int keep) {
#pragma unroll
        for (int j = 0; j < kProducts; j++) {
            wgmma<P::kBf16>(d, step.a[j], columns + 2 * j, keep || j > 0);
            if constexpr (P::kBf16) wgmma<true>(d, step.a[j], columns + 2 * j + P::kHalvesBytes / 16, 1);
        }
        wgmma_commit();
    }

    // Computes `total` of the warp's tile, whose records come in the rings.
    __device__ __forceinline__ void run(uint32_t n_records, int tile, int lane) {
#pragma unroll
        for (int i = 0; i < kParts * 32; i++) total[i / 32][i % 32] = 0;
        const uint32_t each = Slice(n_records, 0).last;
#pragma unroll 1
        for (uint32_t first = 0; first < n_records; first += each) {
            const uint32_t last = min(first + each, n_records);
            if constexpr (kScaled) {
#pragma unroll
                for (int i = 0; i < kParts * 32; i++) slice[i / 32][i % 32] = 0;
            }
            // The slot of activations that becomes free with the step before.
            uint64_t* done = nullptr;
#pragma unroll 1
            for (uint32_t record = first; record < last; record++) {
                weights.wait_full();
                const uint8_t* in = weights.at + weights.slot * P::kWeightBytes + tile * P::kRecordStep;
                if (kScaled) make_step(steps[0], in, 0, lane);
#pragma unroll
                for (int index = 0; index < kSteps; index++) {
                    Step<Type>& step = steps[index % 2];
                    if (!kScaled) make_step(step, in, index, lane);
                    if (index % kPerUnit == 0) inputs.wait_full();
                    const uint8_t* unit = inputs.at + inputs.slot * P::kInputBytes;
                    const uint64_t columns = wgmma_columns(unit) + index % kPerUnit * kProducts * 2;
                    const bool ends_unit = index % kPerUnit == kPerUnit - 1;
                    const int keep = kFolded ? index % kPerUnit > 0 : !kScaled && (index > 0 || record > first);
                    wgmma_fence();
#pragma unroll
                    for (int part = 0; part < kParts; part++) multiply(products[part], step, columns + part * 512, keep);
                    if constexpr (kScaled) {
                        // While they are multiplied, the next step, in registers that none multiplies any more.
                        if (kFolded && ends_unit) wgmma_wait<kParts>();
                        if (index + 1 < kSteps) {
                            Step<Type>& next = steps[(index + 1) % 2];
                            make_step(next, in, index + 1, lane);
                        }
                        if (!kFolded || ends_unit) ;
                        if (ends_unit) {
                            inputs.release();
                            inputs.advance();
                        }
                    } else {
                        wgmma_wait<kParts>();
                        if (index % kPerUnit == 0 && done) inputs.release(done);
                        if (ends_unit) {
                            done = inputs.empty();
                            inputs.advance();
                        }
                    }
                }
                weights.release();
                weights.advance();
            }
            if constexpr (!kScaled) {
                wgmma_wait<0>();
                inputs.release(done);
            }
#pragma unroll
            for (int part = 0; part < kParts; part++) {
                if (!kScaled) wgmma_pin(products[part]);
                const float* of_slice = kScaled ? slice[kScaled ? part : 0] : products[part];
#pragma unroll
                for (int i = 0; i < 32; i++) total[part][i] = __fadd_rn(total[part][i], of_slice[i]);
            }
        }
    }
};

// Copies the records of half of an item's tiles, as one warp of two: an instruction copies for one lane at a time.
template <class Type, int kParts>
__device__ __forceinline__ void copy_weights(const KigoMatmul& p, Slots<Plan<Type, kParts>::kWeightSlots> weights, int half, int lane) {
    using P = Plan<Type, kParts>;
    constexpr int kTiles = kItemTiles / kWeightCopiers, kBytes = Record<Type>::kBytes;
    const int of_item = half * kTiles + lane % kTiles;
    for (Items<P::kColumns> items(p); items.any(); items.advance()) {
        const uint32_t tile = items.expert * p.n_tiles + min(items.tile() + of_item, p.n_tiles - 1);
        const uint8_t* records = reinterpret_cast<const uint8_t*>(p.weights) + size_t(tile) * p.n_records * kBytes;
        uint32_t place = record_place(tile, 0, p.n_records);
        for (uint32_t record = 0; record < p.n_records; record++) {
            weights.wait_empty();
            if (lane == 0) barrier_expect(weights.full(), kTiles * kBytes);
            __syncwarp();
            if (lane < kTiles) {
                uint8_t* to = weights.at + weights.slot * P::kWeightBytes + of_item * P::kRecordStep;
                copy_bulk(to, records + size_t(place) * kBytes, kBytes, weights.full());
            }
            weights.advance();
            place = place + 1 == p.n_records ? 0 : place + 1;
        }
    }
}

// Copies the activations of items, as one thread.
template <class Type, int kParts>
__device__ __forceinline__ void copy_inputs(const KigoMatmul& p, Slots<Plan<Type, kParts>::kInputSlots> inputs) {
    using P = Plan<Type, kParts>;
    const uint32_t n_units = p.n_records * P::kUnits, n_groups = (p.n + 7) / 8;
    const uint8_t* halves = reinterpret_cast<const uint8_t*>(p.records);
    // What stands behind the halves of all units: rests, or sums of 16 or of 32.
    const size_t n_all = size_t(p.input.stride / kUnitK) * n_groups;
    const uint8_t* rests = halves + n_all * (P::kGroupSumBytes == 64 ? 1152 : 1024);
    constexpr int kRestBytes = P::kBf16 ? 1024 : P::kGroupSumBytes;
    for (Items<P::kColumns> items(p); items.any(); items.advance()) {
        const uint32_t group = items.column() / 8, n = min(uint32_t(P::kColumns / 8), (items.last + 7) / 8 - group);
        for (uint32_t unit = 0; unit < n_units; unit++) {
            inputs.wait_empty();
            uint8_t* to = inputs.at + inputs.slot * P::kInputBytes;
            const size_t from = size_t(unit) * n_groups + group;
            barrier_expect(inputs.full(), n * (1024 + kRestBytes));
            copy_bulk(to, halves + from * 1024, n * 1024, inputs.full());
            if (kRestBytes > 0) copy_bulk(to + P::kHalvesBytes, rests + from * kRestBytes, n * kRestBytes, inputs.full());
            inputs.advance();
        }
    }
}

// Looks up what is to be known of columns, and hands on how large their results are, as one warp.
template <int kColumns>
__device__ __forceinline__ void look_up(const KigoMatmul& p, Slots<2> tables, int lane) {
    Items<kColumns> finished(p);
    auto column = [&](int at) { return reinterpret_cast<Column*>(tables.at) + tables.slot * kColumns + at; };
    auto raise = [&] {
        for (int at = lane; p.magnitudes && at < kColumns; at += kWarp) {
            const uint32_t of = finished.column() + at;
            if (of < finished.last) atomicMax(reinterpret_cast<uint32_t*>(p.magnitudes) + of, column(at)->largest);
        }
        finished.advance();
    };
    uint32_t n = 0;
    for (Items<kColumns> items(p); items.any(); items.advance(), n++) {
        tables.wait_empty();
        if (n >= 2) raise();
        for (int at = lane; at < kColumns; at += kWarp) {
            const uint32_t of = items.column() + at;
            if (of >= items.last) continue;
            const CachePlace place = p.kind == KIGO_QKV ? cache_place(p.qkv, of) : CachePlace{};
            *column(at) = {place, __fmul_rn(__ldcg(reinterpret_cast<const float*>(p.factors) + of), p.weight_scale), 0};
            if (p.kind != KIGO_ADD && p.kind != KIGO_GATE) continue;
            // What is to be added to.
            const float* out = reinterpret_cast<const float*>(p.out) + size_t(of) * p.out_stride;
            const uint32_t row = items.tile() * kTileRows, end = min(row + kItemTiles * kTileRows, p.n_rows);
            for (uint32_t i = row; i < end; i += kLine / 4) asm volatile("prefetch.global.L2 [%0];" ::"l"(out + i));
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(tables.full());
        tables.advance();
    }
    if (n == 1) tables.advance();
    for (; finished.any(); tables.advance()) {
        tables.wait_empty();
        raise();
    }
}

// Four neighbouring rows of a column of `out`.
struct FourRows {
    float* at;
    // How many of them exist; whether they may be moved as one.
    uint32_t n;
    bool whole;

    __device__ __forceinline__ FourRows(const KigoMatmul& p, uint32_t row, uint32_t column, uint32_t last)
        : at(reinterpret_cast<float*>(p.out) + size_t(column) * p.out_stride + row),
          n(column < last && row < p.n_rows ? min(p.n_rows - row, 4) : 0),
          whole(n == 4 && reinterpret_cast<uint64_t>(at) % 16 == 0) {}

    __device__ __forceinline__ float4 load() const {
        if (whole) return __ldcg(reinterpret_cast<const float4*>(at));
        float4 v = {0, 0, 0, 0};
        if (n > 0) v.x = __ldcg(at);
        if (n > 1) v.y = __ldcg(at + 1);
        if (n > 2) v.z = __ldcg(at + 2);
        if (n > 3) v.w = __ldcg(at + 3);
        return v;
    }

    __device__ __forceinline__ void store(float4 v) const {
        if (whole) {
            *reinterpret_cast<float4*>(at) = v;
            return;
        }
        if (n > 0) at[0] = v.x;
        if (n > 1) at[1] = v.y;
        if (n > 2) at[2] = v.z;
        if (n > 3) at[3] = v.w;
    }

    // The largest magnitude of those that exist.
    __device__ __forceinline__ float largest(float4 v) const {
        float out = n > 0 ? fabsf(v.x) : 0;
        if (n > 1) out = fmaxf(out, fabsf(v.y));
        if (n > 2) out = fmaxf(out, fabsf(v.z));
        if (n > 3) out = fmaxf(out, fabsf(v.w));
        return out;
    }
};

// What becomes of the results of a warp: of tile `tile`, whose expert is `expert`, and columns from `first` on.
template <int kParts>
__device__ __forceinline__ void finish(const KigoMatmul& p, float (&total)[kParts][32], float* results, Column* table, uint32_t expert,
                                       uint32_t tile, uint32_t first, uint32_t last, int warp, int lane) {
    constexpr int kTogether = kWarp / 4;
    float* flat = &total[0][0];
    float* mine = results + warp * kFinished * kPitch;
    const int g = lane % 8, four = lane % 4 * 4;
    const HeadElements elements = p.kind == KIGO_QKV ? head_elements(p.qkv, tile + p.first_tile, g) : HeadElements{};
    auto raise = [&](float largest, int at) {
        for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        if (lane % 4 == 0) atomicMax(&table[at].largest, __float_as_uint(largest));
    };
    auto results_of = [&](const float* of_warp, int column, float factor) {
        const float4 v = *reinterpret_cast<const float4*>(of_warp + column * kPitch + four);
        return float4{__fmul_rn(v.x, factor), __fmul_rn(v.y, factor), __fmul_rn(v.z, factor), __fmul_rn(v.w, factor)};
    };
#pragma unroll 1
    for (int start = 0; start < kParts * kPartColumns; start += kFinished) {
        // Code that runs once per item should be short: so the registers move, and not what takes them.
#pragma unroll
        for (int i = 0; i < 16; i++) {
            mine[(8 * (i / 4) + 2 * (lane % 4) + i % 2) * kPitch + lane / 4 + 8 * (i / 2 % 2)] = flat[i];
        }
#pragma unroll
        for (int i = 16; i < kParts * 32; i++) flat[i - 16] = flat[i];
        if (p.kind == KIGO_GATED) {
            // Of two warps that have gate and up, each takes half of the columns.
            barrier_wait(1 + warp / 2, 2 * kWarp);
            const float *gate = results + (warp & ~1) * kFinished * kPitch, *up = gate + kFinished * kPitch;
            const uint32_t row = tile / 2 * kTileRows + four;
            auto finish_all = [&](auto value_of) {
#pragma unroll
                for (int i = 0; i < kFinished / 2; i += kTogether) {
                    const int of = kFinished / 2 * (warp % 2) + i + lane / 4, at = start + of;
                    const FourRows rows(p, row, first + at, last);
                    const float factor = table[at].factor;
                    const float4 a = results_of(gate, of, factor), b = results_of(up, of, factor);
                    const float4 value = {value_of(a.x, b.x, 0), value_of(a.y, b.y, 1), value_of(a.z, b.z, 2), value_of(a.w, b.w, 3)};
                    rows.store(value);
                    if (p.magnitudes) raise(rows.largest(value), at);
                }
            };
            // What is usual, apart, so that all values are computed at a time.
            if (p.activation == KIGO_SILU && !p.bias[0] && !p.bias[1]) {
                finish_all([&](float gate, float up, int) { return gated(gate, up, KIGO_SILU); });
            } else {
                finish_all([&](float gate, float up, int i) { return gated_value(p, expert, min(row + i, p.n_rows - 1), gate, up); });
            }
            barrier_wait(1 + warp / 2, 2 * kWarp);
            continue;
        }
        __syncwarp();
        if (p.kind == KIGO_QKV) {
            if (tile < p.n_tiles) {
                const bool turns = has_turn(p.qkv, elements);
                float2 turn[kFinished / 4];
#pragma unroll
                for (int i = 0; i < kFinished / 4; i++) {
                    const uint32_t column = first + start + 4 * i + lane / 8;
                    turn[i] = turns && column < last ? load_turn(p.qkv, elements, column) : float2{};
                }
#pragma unroll
                for (int i = 0; i < kFinished / 4; i++) {
                    const int of = 4 * i + lane / 8, at = start + of;
                    if (first + at >= last) continue;
                    const Column& column = table[at];
                    finish_qkv(p, elements, first + at, column.place, turn[i], __fmul_rn(mine[of * kPitch + g], column.factor),
                               __fmul_rn(mine[of * kPitch + g + 8], column.factor));
                }
            }
        } else {
            const uint32_t row = tile * kTileRows + four;
            float4 before[kFinished / kTogether] = {};
            if (p.kind == KIGO_ADD || p.kind == KIGO_GATE) {
#pragma unroll
                for (int i = 0; i < kFinished; i += kTogether) {
                    before[i / kTogether] = FourRows(p, row, first + start + i + lane / 4, last).load();
                }
            }
            auto finish_all = [&](auto value_of) {
#pragma unroll
                for (int i = 0; i < kFinished; i += kTogether) {
                    const int of = i + lane / 4, at = start + of;
                    const FourRows rows(p, row, first + at, last);
                    const float4 v = results_of(mine, of, table[at].factor), b = before[i / kTogether];
                    const float4 value = {value_of(v.x, b.x, 0), value_of(v.y, b.y, 1), value_of(v.z, b.z, 2), value_of(v.w, b.w, 3)};
                    rows.store(value);
                    if (p.magnitudes) raise(rows.largest(value), at);
                }
            };
            if (p.kind == KIGO_ADD && !p.bias[0]) {
                finish_all([&](float value, float before, int) { return row_value(p, KIGO_ADD, 0, value, before); });
            } else if (p.kind == KIGO_STORE && !p.bias[0] && p.softcap <= 0) {
                finish_all([&](float value, float, int) { return row_value(p, KIGO_STORE, 0, value, 0); });
            } else {
                finish_all([&](float value, float before, int i) {
                    return row_value(p, p.kind, p.softcap, biased(p, 0, expert, min(row + i, p.n_rows - 1), value), before);
                });
            }
        }
        __syncwarp();
    }
}

// Grid: blocks that share the items of an expert, 1, experts.
template <class Type, int kParts>
__device__ __forceinline__ void multiply(const KigoMatmul& p, uint8_t* shared) {
    using P = Plan<Type, kParts>;
    shared += (P::kAlign - shared_address(shared) % P::kAlign) % P::kAlign;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint64_t* barriers = reinterpret_cast<uint64_t*>(shared + P::kBarriers);
    const Slots<P::kInputSlots> inputs = {shared, barriers};
    const Slots<P::kWeightSlots> weights = {shared + P::kWeights, barriers + 2 * P::kInputSlots};
    const Slots<P::kTables> tables = {shared + P::kColumnTables, barriers + 2 * (P::kInputSlots + P::kWeightSlots)};
    constexpr int kMultiplierWarps = kMultipliers * kGroupThreads / kWarp;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * (P::kInputSlots + P::kWeightSlots + P::kTables); i++) {
            const int of_ring = i < 2 * P::kInputSlots                       ? i / P::kInputSlots
                                : i < 2 * (P::kInputSlots + P::kWeightSlots) ? (i - 2 * P::kInputSlots) / P::kWeightSlots
                                                                             : (i - 2 * (P::kInputSlots + P::kWeightSlots)) / P::kTables;
            const bool of_weights = i >= 2 * P::kInputSlots && i < 2 * (P::kInputSlots + P::kWeightSlots);
            barrier_init(barriers + i, of_ring > 0 ? kMultiplierWarps : of_weights ? kWeightCopiers : 1);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    pdl_wait();
    pdl_launch();
    if (threadIdx.x < kGroupThreads) {
        give_registers<40>();
        if (warp < kWeightCopiers) copy_weights<Type, kParts>(p, weights, warp, lane);
        if (warp == kWeightCopiers && lane == 0) copy_inputs<Type, kParts>(p, inputs);
        if (warp == kWeightCopiers + 1) look_up<P::kColumns>(p, tables, lane);
    } else {
        take_registers<232>();
        const int of_item = warp - kGroupThreads / kWarp;
        Multiplier<Type, kParts> multiplier = {weights, inputs};
        Slots<P::kTables> mine = tables;
        for (Items<P::kColumns> items(p); items.any(); items.advance()) {
            multiplier.run(p.n_records, of_item, lane);
            mine.wait_full();
            finish<kParts>(p, multiplier.total, reinterpret_cast<float*>(shared + P::kFinishing),
                           reinterpret_cast<Column*>(mine.at) + mine.slot * P::kColumns, items.expert, items.tile() + of_item,
                           items.column(), items.last, of_item, lane);
            mine.release();
            mine.advance();
        }
    }
}

}  // namespace prefill
