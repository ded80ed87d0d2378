// Products of a matrix of one quantisation type with one, a few or many rows of activations, and the other kernels that know
// the type: compiled once per type, with KIGO_QUANT naming it.
#include "epilogue.cuh"
#include "fragments.cuh"
#include "handed.cuh"
#include "prefill.cuh"
#include "quant/types.cuh"
#include "slot_groups.cuh"

using Type = KIGO_QUANT;
using TypeRecord = Record<Type>;
using Columns = Activations<Type::kOperand>;

constexpr int kUnits = Type::kRecordK / kUnitK;
constexpr bool kBf16 = Type::kOperand != Operand::kF16;
constexpr int kColumnBytes = kActivationBytes<kBf16 ? Operand::kBf16 : Operand::kF16>;

extern __shared__ __align__(kLine) uint4 shared[];

#define KIGO_NAME_OF(name, type) name##_##type
#define KIGO_NAME(name, type) KIGO_NAME_OF(name, type)

// Words of shared memory of each warp's ring.
using Barriers = uint64_t[kWarps][KIGO_MAX_SLOTS];

// An item of a product, among those of its matrix; and of groups of slots which one.
struct Item {
    uint32_t number, group;
};

// The records that one warp works through: its slice of one tile after another, `kTiles` tiles side by side. If `kGrouped`, items are
// those of every group of slots, each with the matrix of its expert, and where fewer slices than warps have a record, teams of as many
// warps have an item each.
template <int kTiles, bool kGrouped = false>
struct Stream {
    // Records that are copied at a time: fewer copies keep those busy who start them. Of pairs of tiles as many that a ring has room for
    // three: `PAIR_PIECE` of blocks.rs.
    static constexpr uint32_t kPiece = kTiles == 1 ? KIGO_PIECE : 2432;
    static constexpr uint32_t kMost = TypeRecord::kBytes < kPiece ? kPiece / TypeRecord::kBytes : 1;
    using TypeRing = Ring<kMost * TypeRecord::kBytes, kTiles>;

    // Tiles side by side: the item that they belong to; the first of them and the last of its matrix, experts before included; the place
    // of its first record.
    struct Tiles {
        Item item;
        uint32_t of_item, number, last, first_place;
        const uint8_t* first;
    };

    TypeRing ring;
    const uint8_t* weights;
    Slice slice;
    const SlotGroups* groups;
    // Slices that have records; teams of a block, and the warp's.
    uint32_t n_busy, n_teams, team;
    // `n_tiles` and `n_items` are those of a matrix.
    uint32_t n_tiles, tiles_per_item, n_items, n_records, tile_bytes;
    // From the last tiles of an item to the first of the block's next, where all are of one matrix, and how far records are apart.
    uint32_t jump, jump_places;
    // Those at hand, and those of the next piece to fetch: a record of them, and how many; none after the last.
    Tiles to_use, to_fetch;
    uint32_t record, n;

    // Nothing is fetched before `start`.
    __device__ __forceinline__ Stream(const KigoMatmul& p, Barriers& barriers, uint32_t tiles_per_item)
        : ring(reinterpret_cast<uint8_t*>(shared) + threadIdx.x / kWarp * p.n_slots * TypeRing::kSlot, barriers[threadIdx.x / kWarp], p.n_slots),
          weights(reinterpret_cast<const uint8_t*>(p.weights)),
          slice(p.n_records, threadIdx.x / kWarp),
          groups(nullptr),
          n_busy(kSlices),
          n_teams(1),
          team(0),
          n_tiles(p.n_tiles),
          tiles_per_item(tiles_per_item),
          n_items((p.n_tiles + tiles_per_item - 1) / tiles_per_item),
          n_records(p.n_records),
          tile_bytes(p.n_records * TypeRecord::kBytes),
          jump((gridDim.x - 1) * tiles_per_item + kTiles),
          jump_places(jump % p.n_records) {
        if constexpr (kGrouped) {
            const uint32_t warp = threadIdx.x / kWarp, of_slice = (n_records + kSlices - 1) / kSlices;
            n_busy = (n_records + of_slice - 1) / of_slice;
            n_teams = kWarps / n_busy;
            team = warp / n_busy;
            // Warps that are left over have none.
            slice = Slice(n_records, team < n_teams ? warp % n_busy : kSlices);
        }
    }

    // Starts to fetch the matrix of an expert.
    __device__ __forceinline__ void start(uint32_t expert) {
        open(to_fetch, first_item(), expert);
        start();
    }

    // Starts to fetch those that groups have.
    __device__ __forceinline__ void start(const SlotGroups& of) {
        groups = &of;
        open(to_fetch, moved(first_item(), team));
        start();
    }

    __device__ __forceinline__ void start() {
        to_use = to_fetch;
        record = slice.first;
        n = exists(to_fetch.item) ? piece(to_fetch, record) : 0;
#pragma unroll 1
        for (int i = 1; i < ring.n_slots; i++) fetch();
    }

    // The first item of the block's first team, and one that is so many further.
    __device__ __forceinline__ Item first_item() const { return moved({0, 0}, blockIdx.x * n_teams); }

    __device__ __forceinline__ Item moved(Item item, uint32_t by) const {
        item.number += by;
        if constexpr (kGrouped) {
            for (; item.number >= n_items && item.group < groups->n; item.group++) item.number -= n_items;
        }
        return item;
    }

    // What a block's teams have next.
    __device__ __forceinline__ Item next(Item item) const { return moved(item, gridDim.x * n_teams); }

    __device__ __forceinline__ bool exists(Item item) const { return kGrouped ? item.group < groups->n : item.number < n_items; }

    // Goes to the first tiles of an item of an expert.
    __device__ __forceinline__ void open(Tiles& tiles, Item item, uint32_t expert) const {
        const uint32_t before = expert * n_tiles, number = before + item.number * tiles_per_item;
        tiles = {item, 0, number, before + n_tiles - 1, number % n_records, weights + size_t(number) * tile_bytes};
    }

    __device__ __forceinline__ void open(Tiles& tiles, Item item) const {
        tiles.item = item;
        if (exists(item)) open(tiles, item, groups->expert[item.group]);
    }

    // Goes on to the next. Within a matrix these are sums: a division takes as long as the products of a short slice.
    __device__ __forceinline__ void advance(Tiles& tiles) const {
        tiles.of_item += kTiles;
        const bool ends = tiles.of_item >= tiles_per_item;
        if (kGrouped && ends) return open(tiles, next(tiles.item));
        const uint32_t step = ends ? jump : kTiles;
        if (ends) {
            tiles.of_item = 0;
            tiles.item = next(tiles.item);
        }
        tiles.number += step;
        tiles.first += size_t(step) * tile_bytes;
        tiles.first_place = wrapped(tiles.first_place + (ends ? jump_places : kTiles));
    }

    // How many tiles the one at `side` is behind the first: a missing last one is the one before.
    __device__ __forceinline__ static uint32_t behind(const Tiles& tiles, int side) {
        return side == 0 ? 0 : min(uint32_t(side), tiles.last - tiles.number);
    }

    __device__ __forceinline__ uint32_t wrapped(uint32_t place) const { return place < n_records ? place : place - n_records; }

    __device__ __forceinline__ uint32_t first_place(const Tiles& tiles, int side) const {
        return side == 0 ? tiles.first_place : wrapped(tiles.first_place + behind(tiles, side));
    }

    // Records of the piece that starts with `record`; none where the warp has none.
    __device__ __forceinline__ uint32_t piece(const Tiles& tiles, uint32_t record) const {
        uint32_t n = kMost;
#pragma unroll
        for (int side = 0; side < kTiles; side++) {
            n = piece_records(record, slice.last, first_place(tiles, side), n_records, n);
        }
        return n;
    }

    // Starts to fetch the next piece, if there is one.
    __device__ __forceinline__ void fetch() {
        ring.fill(n * TypeRecord::kBytes, [&](int side) {
            const uint32_t place = wrapped(record + first_place(to_fetch, side));
            return to_fetch.first + (behind(to_fetch, side) * tile_bytes + place * TypeRecord::kBytes);
        });
        if (n == 0) return;
        record += n;
        if (record == slice.last) {
            advance(to_fetch);
            record = slice.first;
            if (!exists(to_fetch.item)) {
                n = 0;
                return;
            }
        }
        n = piece(to_fetch, record);
    }

    // Calls `use(at, record)` with each record of the warp's slice of the next tiles, in shared memory.
    template <class Use>
    __device__ __forceinline__ void for_records(Use use) {
        for (uint32_t record = slice.first; record < slice.last;) {
            const uint8_t* at = ring.next();
            fetch();
            const uint32_t end = record + (kMost > 1 ? piece(to_use, record) : 1);
            for (; record < end; record++, at += TypeRecord::kBytes) use(at, record);
        }
        if (kMost > 1) advance(to_use);
    }
};

// The product with a single row, which the block prepares itself. An item is one tile, or a pair of gate and up; warp w
// computes slice w of every tile of the block's items.
extern "C" __global__ void __launch_bounds__(kThreads, 2) KIGO_NAME(matmul_one, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    __shared__ float2 scratch[kWarps];
    // A turn's sums are added by one warp while the others go on; see below.
    __shared__ float partial[kWarps][2][kSlices][kTileRows];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __shared__ Barriers barriers;
    const uint32_t per_item = p.kind == KIGO_GATED ? 2 : 1, n_units = p.input.stride / kUnitK;

    uint8_t* columns = reinterpret_cast<uint8_t*>(shared) + kWarps * p.n_slots * Stream<1>::TypeRing::kSlot;
    uint8_t* rests = columns + n_units * 128;
    float4* staging = reinterpret_cast<float4*>(kBf16 ? rests + n_units * 128 : rests);

    const uint32_t column = blockIdx.y;
    Stream<1> stream(p, barriers, per_item);
    uint32_t expert = 0;
    auto start = [&] {
        if (p.experts) expert = __ldcg(reinterpret_cast<const uint32_t*>(p.experts) + column);
        stream.start(expert);
    };
    // Weights are asked for before the wait, or where the kernel ahead says which they are, activations prepared.
    const bool is_told = p.experts && p.is_told;
    if (!is_told) {
        start();
        prefetch_norm(p.input);
        pdl_wait();
        pdl_launch();
    }
    // Early: three loads that wait for each other.
    const CachePlace place = p.kind == KIGO_QKV ? cache_place(p.qkv, 0) : CachePlace{};
    const float of_row = activate_row<kBf16>(p.input, column / max(p.share, 1u), staging, scratch, [&](uint32_t quad, Quad value) {
        const QuadPlace place(quad);
        const uint32_t at = place.unit * 128 + place.in_row();
        *reinterpret_cast<uint2*>(columns + at) = value.high;
        if constexpr (kBf16) *reinterpret_cast<uint2*>(rests + at) = value.low;
    });
    const float factor = __fmul_rn(of_row, p.weight_scale);
    if (is_told) {
        pdl_wait();
        pdl_launch();
        start();
    }
    __syncthreads();

    int turn = 0;
    for (uint32_t item = blockIdx.x; item < stream.n_items; item += gridDim.x, turn++) {
        for (uint32_t side = 0; side < per_item; side++) {
            float acc[4] = {0, 0, 0, 0};
            stream.for_records([&](const uint8_t* in, uint32_t record) {
                const auto scales = scales_of<Type>(in + TypeRecord::kScales, lane);
#pragma unroll
                for (int unit = 0; unit < kUnits; unit++) {
                    const uint32_t from = (record * kUnits + unit) * 128 + lane % 4 * 16;
                    // All eight columns are the same one.
                    Columns x;
                    for (int h = 0; h < 2; h++) {
                        *reinterpret_cast<uint4*>(x.high + 4 * h) = *reinterpret_cast<const uint4*>(columns + from + h * 64);
                        if constexpr (kBf16) *reinterpret_cast<uint4*>(x.low + 4 * h) = *reinterpret_cast<const uint4*>(rests + from + h * 64);
                    }
                    multiply_add<Type>(acc, make_fragments<Type>(load_unit_shared<Type>(in, unit, lane), scales, unit), x);
                }
            });
            if (lane % 4 == 0) {
                partial[turn % kWarps][side][warp][lane / 4] = acc[0];
                partial[turn % kWarps][side][warp][lane / 4 + 8] = acc[2];
            }
        }
        // The warps take turns to wait for all and add up. No buffer or barrier is used again too early: between turns T and
        // T + 8 every other warp has waited in a turn of its own, for which the adding warp arrived after turn T.
        __syncwarp();
        if (warp != turn % kWarps) {
            barrier_arrive(1 + turn % kWarps, kThreads);
            continue;
        }
        barrier_wait(1 + turn % kWarps, kThreads);
        auto total = [&](uint32_t side, uint32_t row) {
            float sum = 0;
            for (int w = 0; w < kSlices; w++) sum = __fadd_rn(sum, partial[turn % kWarps][side][w][row]);
            return __fmul_rn(sum, factor);
        };
        float largest = 0;
        if (p.kind == KIGO_QKV) {
            if (lane < 8) finish_qkv(p, item, lane, 0, place, total(0, lane), total(0, lane + 8));
        } else if (lane < kTileRows) {
            const uint32_t row = item * kTileRows + lane;
            largest = p.kind == KIGO_GATED ? finish_gated(p, expert, row, column, total(0, lane), total(1, lane))
                                            : finish_row(p, expert, row, column, total(0, lane));
        }
        if (p.magnitudes) {
            largest = warp_max(fabsf(largest));
            if (lane == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.magnitudes) + column, largest);
        }
    }
    stream.ring.drain();
}

// The sums of a warp for an item.
template <int kColumnTiles>
struct ItemSums {
    float of[2][kColumnTiles][4];
};

// The product with up to 8 * kColumnTiles rows, matmul_few32_F32 with as many for each block in y: like matmul_one, but two tiles at a
// time, with activations from prep. If `kGrouped`, rows are slots of experts, and a group of up to 8 of them that have one expert is
// multiplied with its matrix.
template <int kColumnTiles, bool kGrouped = false>
__device__ __forceinline__ void matmul_few(const KigoMatmul& p) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    // Units of activations that are under way: short records are multiplied in less time than L2 takes.
    constexpr int kAhead = kGrouped && kUnits == 1 && Type::kOperand == Operand::kF16 ? 2 : 1;
    // Routers have many rows and few tiles.
    constexpr bool kHasMore = kColumnTiles == 4 && Type::kOperand == Operand::kF32;
    const uint32_t n_units = p.input.stride / kUnitK, first_column = kHasMore ? blockIdx.y * 8 * kColumnTiles : 0;
    __shared__ Barriers barriers;

    using ItemStream = Stream<2, kGrouped>;
    ItemStream stream(p, barriers, 2);
    // [slice][tile][row][column], beside the rings, of some tiles of columns at a time.
    auto sums = [&] {
        const uint32_t n_rings = kGrouped ? stream.n_teams * stream.n_busy : kWarps;
        return reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(shared) + n_rings * p.n_slots * ItemStream::TypeRing::kSlot);
    };
    __shared__ SlotGroups groups;
    constexpr bool kHandsOn = !kGrouped && kColumnTiles == 1, kTakesHanded = kHandsOn && Type::kOperand == Operand::kF16;
    __shared__ HandedRows handed;
    if constexpr (kGrouped) {
        pdl_wait();
        pdl_launch();
        groups.find(reinterpret_cast<const uint32_t*>(p.experts), p.n, reinterpret_cast<uint32_t*>(sums()));
        stream.start(groups);
    } else {
        stream.start(0);
        pdl_wait();
        pdl_launch();
    }

    for (Item first_item = stream.first_item(); stream.exists(first_item); first_item = stream.next(first_item)) {
        const Item own = stream.moved(first_item, stream.team);
        const bool has_own = !kGrouped || stream.exists(own);
        // The row of column `column` of an item, or KIGO_NO_ROW.
        auto row_of = [&](Item item, uint32_t column) {
            if constexpr (kGrouped) return stream.exists(item) ? groups.slot(item.group, column) : KIGO_NO_ROW;
            return column + first_column < p.n ? column + first_column : KIGO_NO_ROW;
        };
        if constexpr (kGrouped) {
            // Biases of an expert are far away, and what follows the sums waits for them.
            const bool gated = p.kind == KIGO_GATED;
            const uint64_t bias = gated && lane == 1 ? p.bias[1] : p.bias[0];
            if (has_own && lane < 2 && warp % stream.n_busy == 0 && bias) {
                const uint32_t row = (gated ? own.number : 2 * own.number + lane) * kTileRows;
                const float* at = reinterpret_cast<const float*>(bias) + size_t(groups.expert[own.group]) * p.n_rows + row;
                if (row < p.n_rows) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
            }
        }
        ItemSums<kColumnTiles> item_sums = {};
        auto& acc = item_sums.of;
        // Activations of the next units, on their way while this one's are multiplied; those of the last are loaded once more.
        Columns x[kAhead][kColumnTiles];
        // Of a group only the columns that there are, each a lane's own row of what was prepared.
        [[maybe_unused]] const uint32_t slot = kGrouped ? row_of(own, lane / 4) : 0, source = slot / p.share;
        if constexpr (kGrouped) {
#pragma unroll
            for (int i = 0; i < kAhead; i++) x[i][0] = {};
        }
        auto load = [&](Columns(&to)[kColumnTiles], uint32_t unit) {
            if constexpr (kGrouped) {
                if (slot == KIGO_NO_ROW) return;
                const size_t from = (size_t(source / 8) * n_units + min(unit, n_units - 1)) * kColumnBytes;
                to[0] = load_activations<Type>(reinterpret_cast<const uint8_t*>(p.records) + from, source % 8 * 4 + lane % 4);
            } else {
#pragma unroll
                for (int tile = 0; tile < kColumnTiles; tile++) {
                    const uint32_t of_columns = kHasMore ? min(first_column / 8 + tile, (p.n - 1) / 8) : tile;
                    const size_t from = (size_t(of_columns) * n_units + min(unit, n_units - 1)) * kColumnBytes;
                    to[tile] = load_activations<Type>(reinterpret_cast<const uint8_t*>(p.records) + from, lane);
                }
            }
        };
#pragma unroll
        for (int i = 0; i < kAhead; i++) load(x[i], stream.slice.first * kUnits + i);
        if constexpr (kTakesHanded) {
            // While activations are on their way.
            if (p.is_handed && first_item.number == blockIdx.x) handed.find(p);
        }
        if (has_own) stream.for_records([&](const uint8_t* in, uint32_t record) {
#pragma unroll
            for (int unit = 0; unit < kUnits; unit++) {
                Columns now[kColumnTiles];
#pragma unroll
                for (int tile = 0; tile < kColumnTiles; tile++) {
                    now[tile] = x[0][tile];
#pragma unroll
                    for (int i = 1; i < kAhead; i++) x[i - 1][tile] = x[i][tile];
                }
                load(x[kAhead - 1], record * kUnits + unit + kAhead);
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    const uint8_t* from = in + side * ItemStream::TypeRing::kStep;
                    const auto w = make_fragments<Type>(load_unit_shared<Type>(from, unit, lane),
                                                        scales_of<Type>(from + TypeRecord::kScales, lane), unit);
#pragma unroll
                    for (int tile = 0; tile < kColumnTiles; tile++) multiply_add<Type>(acc[side][tile], w, now[tile]);
                }
            }
        });
        if constexpr (kTakesHanded) {
            if (p.is_handed && handed.has_scales[warp]) item_sums = multiply_scaled<Type, ItemSums<kColumnTiles>>(p, own.number, stream.slice);
        }
        float* partial = sums();
        const int n_columns = kColumnTiles == 1 ? 8 : p.sum_columns;
#pragma unroll 1
        for (int first = 0; first < kColumnTiles; first += n_columns / 8) {
            __syncthreads();
#pragma unroll
            for (int tile = 0; tile < kColumnTiles; tile++) {
                if (tile < first || tile >= first + n_columns / 8) continue;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int side = i / 4, row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (tile - first) + 2 * (lane % 4) + i % 2;
                    partial[((warp * 2 + side) * kTileRows + row) * n_columns + column] = acc[side][tile][i % 4];
                }
            }
            __syncthreads();
            // Neighbouring threads take neighbouring rows of one column.
            for (int index = threadIdx.x; index < kTileRows * n_columns * stream.n_teams; index += kThreads) {
                const int row = index % kTileRows, of_sums = index / kTileRows % n_columns, team = index / kTileRows / n_columns;
                const Item of_team = stream.moved(first_item, team);
                const uint32_t item = of_team.number, column = row_of(of_team, 8 * first + of_sums);
                const bool exists = column != KIGO_NO_ROW;
                const uint32_t expert = kGrouped && exists ? groups.expert[of_team.group] : 0;
                float factor = 0;
                if (kTakesHanded && p.is_handed) {
                    factor = __fmul_rn(handed.factors[of_sums], p.weight_scale);
                } else if (exists) {
                    factor = factor_of(p, kGrouped ? column / p.share : column);
                }
                auto total = [&](int side, int row) {
                    float sum = 0;
#pragma unroll
                    for (uint32_t w = 0; w < kSlices; w++) {
                        if (kGrouped && w >= stream.n_busy) break;
                        sum = __fadd_rn(sum, partial[(((team * stream.n_busy + w) * 2 + side) * kTileRows + row) * n_columns + of_sums]);
                    }
                    return __fmul_rn(sum, factor);
                };
                float largest = 0;
                if (exists && p.kind == KIGO_QKV) {
                    const uint32_t tile = 2 * item + row / 8;
                    const int side = row / 8, g = row % 8;
                    if (tile < p.n_tiles) finish_qkv(p, tile, g, column, cache_place(p.qkv, column), total(side, g), total(side, g + 8));
                } else if (exists && p.kind == KIGO_GATED) {
                    const uint32_t of_gate = item * kTileRows + row;
                    const float value = finish_gated(p, expert, of_gate, column, total(0, row), total(1, row));
                    largest = kHandsOn ? hand_on(p, of_gate, column, value) : fabsf(value);
                } else if (exists) {
                    const uint32_t of_first = 2 * item * kTileRows + row;
                    const auto* norms = reinterpret_cast<const float*>(p.out_norm) + of_first;
                    float before[2], norm[2];
#pragma unroll
                    for (int side = 0; side < 2; side++) {
                        before[side] = load_before(p, of_first + side * kTileRows, column);
                        norm[side] = kHandsOn && p.out_norm && of_first + side * kTileRows < p.n_rows ? __ldg(norms + side * kTileRows) : 1;
                    }
#pragma unroll
                    for (int side = 0; side < 2; side++) {
                        if (2 * item + side >= p.n_tiles) break;
                        const uint32_t of_out = of_first + side * kTileRows;
                        const float value = finish_row(p, expert, of_out, column, total(side, row), before[side]);
                        largest = fmaxf(largest, kHandsOn ? hand_on(p, of_out, column, value, norm[side]) : fabsf(value));
                    }
                }
                if (p.magnitudes) {
                    for (int step = 8; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
                    if (exists && row == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.magnitudes) + column, largest);
                }
            }
        }
    }
    stream.ring.drain();
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) KIGO_NAME(matmul_few8, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    matmul_few<1>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) KIGO_NAME(matmul_grouped, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    matmul_few<1, true>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) KIGO_NAME(matmul_few16, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    matmul_few<2>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(matmul_few32, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    matmul_few<4>(p);
}

// The product with many rows: a block computes 8 tiles by 16 * kColumnTiles rows of activations, a warp 2 tiles by half of the
// rows. Grid: pieces of so many rows of activations, then groups of 8 tiles, then experts, each with the rows that are its own.
// It takes kDepth units of shared memory, as many as fit into kMostBytes, and what `total` does.
constexpr int kBlockTiles = 8;

template <int kColumnTiles, int kMostBytes>
__device__ __forceinline__ void matmul_many(const KigoMatmul& p) {
    using UnitRecord = Record<Type, 1>;
    constexpr int kBlockColumns = 16 * kColumnTiles;
    constexpr int kWeightBytes = kBlockTiles * UnitRecord::kBytes;
    constexpr int kInputBytes = kBlockColumns / 8 * kColumnBytes;
    constexpr int kStageBytes = kWeightBytes + kInputBytes;
    constexpr int kDepth = kMostBytes / kStageBytes < 4 ? kMostBytes / kStageBytes : 4;
    static_assert(kDepth >= 2);
    // What the slices so far add up to: [2 * kColumnTiles * 4][kThreads], behind the stages.
    float* total = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(shared) + kDepth * kStageBytes) + threadIdx.x;
    float acc[2][kColumnTiles][4] = {};
    auto add_slice = [&](bool first) {
#pragma unroll
        for (int i = 0; i < 8 * kColumnTiles; i++) {
            float& mine = acc[i / (4 * kColumnTiles)][i / 4 % kColumnTiles][i % 4];
            total[i * kThreads] = __fadd_rn(first ? 0 : total[i * kThreads], mine);
            mine = 0;
        }
    };
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    pdl_wait();
    pdl_launch();
    const uint32_t* starts = reinterpret_cast<const uint32_t*>(p.starts);
    const uint32_t expert = blockIdx.z, n_columns = starts ? __ldcg(starts + expert + 1) : p.n;
    const uint32_t first_tile = blockIdx.y * kBlockTiles;
    const uint32_t first_column = (starts ? __ldcg(starts + expert) : 0) + blockIdx.x * kBlockColumns;
    if (first_column >= n_columns) return;
    const uint32_t n_units = p.input.stride / kUnitK, n_column_tiles = (n_columns + 7) / 8;

    auto fetch = [&](uint32_t unit) {
        if (unit < n_units) {
            uint8_t* to = reinterpret_cast<uint8_t*>(shared) + unit % kDepth * kStageBytes;
            for (int chunk = threadIdx.x; chunk < kWeightBytes / 16; chunk += kThreads) {
                const int tile = chunk * 16 / UnitRecord::kBytes, at = chunk * 16 % UnitRecord::kBytes;
                // From the unit's parts of the record, where the scales belong to all units.
                const uint32_t of_record = unit % kUnits;
                const uint32_t from = at < UnitRecord::kHigh     ? of_record * UnitRecord::kLowBytes + at
                                      : at < UnitRecord::kScales ? TypeRecord::kHigh + of_record * UnitRecord::kHighBytes + at - UnitRecord::kHigh
                                                                 : TypeRecord::kScales + at - UnitRecord::kScales;
                const uint32_t of = expert * p.n_tiles + min(first_tile + tile, p.n_tiles - 1);
                const size_t record = size_t(of) * p.n_records + record_place(of, unit / kUnits, p.n_records);
                copy_async(to + chunk * 16, reinterpret_cast<const uint8_t*>(p.weights) + record * TypeRecord::kBytes + from);
            }
            for (int chunk = threadIdx.x; chunk < kInputBytes / 16; chunk += kThreads) {
                const int tile = chunk * 16 / kColumnBytes, at = chunk * 16 % kColumnBytes;
                const size_t record = size_t(min(first_column / 8 + tile, n_column_tiles - 1)) * n_units + unit;
                copy_async(to + kWeightBytes + chunk * 16, reinterpret_cast<const uint8_t*>(p.records) + record * kColumnBytes + at);
            }
        }
        copy_async_commit();
    };

    for (int unit = 0; unit < kDepth - 1; unit++) fetch(unit);
    const uint32_t tile_pair = warp % 4, column_part = warp / 4;
    const uint32_t slice_units = Slice(p.n_records, 0).last * kUnits;
    uint32_t slice_end = slice_units;
    for (uint32_t unit = 0; unit < n_units; unit++) {
        copy_async_wait<kDepth - 2>();
        __syncthreads();
        fetch(unit + kDepth - 1);
        if (unit == slice_end) {
            add_slice(slice_end == slice_units);
            slice_end += slice_units;
        }
        const uint8_t* in = reinterpret_cast<uint8_t*>(shared) + unit % kDepth * kStageBytes;
        Fragments<Type> w[2];
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const uint8_t* from = in + (2 * tile_pair + side) * UnitRecord::kBytes;
            w[side] = make_fragments<Type>(load_unit_shared<Type, 1>(from, 0, lane), scales_of<Type>(from + UnitRecord::kScales, lane),
                                           unit % kUnits);
        }
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; tile++) {
            const Columns x = load_activations<Type>(in + kWeightBytes + (column_part * kColumnTiles + tile) * kColumnBytes, lane);
            multiply_add<Type>(acc[0][tile], w[0], x);
            multiply_add<Type>(acc[1][tile], w[1], x);
        }
    }
    copy_async_wait<0>();
    add_slice(slice_end == slice_units);

    const uint32_t tile_of_pair = first_tile + 2 * tile_pair;
    const int g = lane / 4;
    // Once per block: code that runs once should be short rather than unrolled.
#pragma unroll 1
    for (int tile = 0; tile < kColumnTiles; tile++) {
#pragma unroll 1
        for (int odd = 0; odd < 2; odd++) {
            const uint32_t column = first_column + (column_part * kColumnTiles + tile) * 8 + 2 * (lane % 4) + odd;
            const bool exists = column < n_columns;
            const float factor = exists ? factor_of(p, column) : 0;
            float v[2][2];
            for (int side = 0; side < 2; side++) {
                for (int half = 0; half < 2; half++) {
                    const int i = (side * kColumnTiles + tile) * 4 + 2 * half + odd;
                    v[side][half] = __fmul_rn(total[i * kThreads], factor);
                }
            }
            float largest = 0;
            if (exists && p.kind == KIGO_QKV) {
                const CachePlace place = cache_place(p.qkv, column);
                for (int side = 0; side < 2; side++) {
                    if (tile_of_pair + side < p.n_tiles) finish_qkv(p, tile_of_pair + side, g, column, place, v[side][0], v[side][1]);
                }
            } else if (exists && p.kind == KIGO_GATED) {
                for (int half = 0; half < 2; half++) {
                    const uint32_t row = tile_of_pair / 2 * kTileRows + g + 8 * half;
                    largest = fmaxf(largest, fabsf(finish_gated(p, expert, row, column, v[0][half], v[1][half])));
                }
            } else if (exists) {
                for (int side = 0; side < 2; side++) {
                    if (tile_of_pair + side >= p.n_tiles) continue;
                    for (int half = 0; half < 2; half++) {
                        const uint32_t row = (tile_of_pair + side) * kTileRows + g + 8 * half;
                        largest = fmaxf(largest, fabsf(finish_row(p, expert, row, column, v[side][half])));
                    }
                }
            }
            if (p.magnitudes) {
                for (int step = 4; step < kWarp; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
                if (exists && g == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.magnitudes) + column, largest);
            }
        }
    }
}

// Where a block may have 227 KiB, and where 99.
extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(matmul_many, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    matmul_many<8, (227 - 64) * 1024>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) KIGO_NAME(matmul_many_narrow, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
    constexpr int kColumnTiles = Type::kOperand == Operand::kF32 ? 2 : 4;
    matmul_many<kColumnTiles, (99 - 8 * kColumnTiles) * 1024>(p);
}

// On sm_90a; nothing else launches them.
#if __CUDA_ARCH__ >= 900
#define KIGO_CLUSTER(n_blocks) __cluster_dims__(n_blocks, 1, 1)
#else
#define KIGO_CLUSTER(n_blocks)
#endif

extern "C" __global__ void KIGO_CLUSTER(prefill::kCluster) __launch_bounds__(prefill::kThreads<Type, 2, false>, 1)
    KIGO_NAME(matmul_prefill, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (Type::kOperand != Operand::kF32) prefill::multiply<Type, 2, false>(p, reinterpret_cast<uint8_t*>(shared));
#endif
}

extern "C" __global__ void KIGO_CLUSTER(prefill::kCluster) __launch_bounds__(prefill::kThreads<Type, 3, false>, 1)
    KIGO_NAME(matmul_prefill_wide, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (Type::kOperand == Operand::kF16) prefill::multiply<Type, 3, false>(p, reinterpret_cast<uint8_t*>(shared));
#endif
}

extern "C" __global__ void KIGO_CLUSTER(prefill::kCluster) __launch_bounds__(prefill::kThreads<Type, 2, true>, 1)
    KIGO_NAME(matmul_prefill_split, KIGO_QUANT)(const __grid_constant__ KigoMatmul p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (Type::kOperand != Operand::kF32) prefill::multiply<Type, 2, true>(p, reinterpret_cast<uint8_t*>(shared));
#endif
}

// Half `half` of a pair of operands, widened.
__device__ __forceinline__ float widen(uint32_t pair, int half) {
    if constexpr (kBf16) return __uint_as_float(half ? pair & 0xffff0000 : pair << 16);
    return half_to_float(half ? pair >> 16 : pair & 0xffff);
}

// The first kernel of a step. The blocks of a row, in y, share its units; where they are several, the first does the rest.
extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(embed, KIGO_QUANT)(const __grid_constant__ KigoEmbed p) {
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    pdl_wait();
    pdl_launch();
    const KigoRow* row = reinterpret_cast<const KigoRow*>(p.rows) + blockIdx.x;
    const uint32_t token = __ldcg(&row->token), position = __ldcg(&row->position);

    const bool is_shared = gridDim.y > 1;
    if (blockIdx.y == 0) {
        for (uint32_t i = threadIdx.x; i < p.n_magnitudes; i += kThreads) {
            reinterpret_cast<uint32_t*>(p.magnitudes)[size_t(i) * p.magnitudes_stride + blockIdx.x] = 0;
        }
        if (p.number && threadIdx.x == 0) ++reinterpret_cast<uint32_t*>(p.number)[blockIdx.x];
        float2* turns = reinterpret_cast<float2*>(p.turns) + size_t(blockIdx.x) * p.n_turns;
        for (uint32_t i = threadIdx.x; i < p.n_turns; i += kThreads) {
            const double2 angle = reinterpret_cast<const double2*>(p.angles)[i];
            double sine, cosine;
            sincospi(__dmul_rn(angle.x, double(position)), &sine, &cosine);
            turns[i] = {float(__dmul_rn(cosine, angle.y)), float(__dmul_rn(sine, angle.y))};
        }
        if (is_shared) return;
        // The magnitudes of x are zero before they are raised.
        if (p.x_magnitudes) __syncthreads();
    }

    // Four lanes of a warp own a row's words of a unit, so eight units keep all of it busy.
    constexpr uint32_t kEach = kWarp / 4;
    const int owner = token % 8 * 4 + lane % 4, side = token / 8 % 2;
    const uint8_t* tile = reinterpret_cast<const uint8_t*>(p.weights) + size_t(token / kTileRows) * p.n_records * TypeRecord::kBytes;
    float* x = reinterpret_cast<float*>(p.x) + size_t(blockIdx.x) * p.stride;
    const float* positions = reinterpret_cast<const float*>(p.positions) + size_t(position) * p.k;
    float largest = 0;
    const uint32_t n_blocks = is_shared ? gridDim.y - 1 : 1, block = is_shared ? blockIdx.y - 1 : 0;
    for (uint32_t number = (block * kWarps + warp) * kEach + lane / 4; number < p.n_records * kUnits; number += n_blocks * kWarps * kEach) {
        const uint32_t record = number / kUnits;
        const int unit = number % kUnits;
        const uint8_t* in = tile + size_t(record_place(token / kTileRows, record, p.n_records)) * TypeRecord::kBytes;
        const auto words = load_unit<Type>(in, unit, owner);
        [[maybe_unused]] const auto w = make_fragments<Type>(words, scales_of<Type>(in + TypeRecord::kScales, owner), unit);
        // Columns that a lane has side by side: two of each of two products.
#pragma unroll
        for (int quad = 0; quad < 4; quad++) {
            const int h = quad % 2;
            const uint32_t first = number * kUnitK + column_of(quad & 2, 0, h, lane % 4);
            float values[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int j = (quad & 2) + i / 2, r = i % 2 * 2;
                if constexpr (Type::kOperand == Operand::kF32) {
                    values[i] = __uint_as_float(side ? words.low[8 * j + 4 + r + h] : words.low[8 * j + r + h]);
                } else {
                    values[i] = widen(side ? w.a[j][r + 1] : w.a[j][r], h);
                }
                values[i] = __fmul_rn(values[i], p.scale);
                if (first + i >= p.k) continue;
                if (p.positions) values[i] = __fadd_rn(values[i], __ldg(positions + first + i));
                largest = fmaxf(largest, fabsf(values[i]));
            }
            if (first + 4 <= p.k) {
                *reinterpret_cast<float4*>(x + first) = make_float4(values[0], values[1], values[2], values[3]);
            } else {
#pragma unroll
                for (int i = 0; i < 3; i++)
                    if (first + i < p.k) x[first + i] = values[i];
            }
        }
    }
    if (!p.x_magnitudes) return;
    largest = warp_max(largest);
    if (lane == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.x_magnitudes) + blockIdx.x, largest);
}

// Rows of the file to records: a warp per record, grid (groups of 8 records, tiles).
extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(repack, KIGO_QUANT)(const __grid_constant__ KigoRepack p) {
    const uint32_t record = blockIdx.x * kWarps + threadIdx.x / kWarp, tile = p.first_tile + blockIdx.y;
    pdl_wait();
    pdl_launch();
    if (record >= p.n_records) return;
    const uint8_t* source = reinterpret_cast<const uint8_t*>(p.source) + size_t(record) * (Type::kRecordK / Type::kBlockLen) * Type::kBlockBytes;
    auto rows = [&](uint32_t r) -> const uint8_t* {
        uint32_t row = tile * kTileRows + r;
        if (p.order != KIGO_ROWS_PLAIN) {
            const uint32_t per_head = (p.head_dim + kTileRows - 1) / kTileRows, of_head = tile % per_head;
            uint32_t element = of_head * kTileRows + r;
            if (p.order == KIGO_ROWS_ROPE) {
                const HeadPair pair = head_pair(of_head * 8 + r % 8, p.n_rot, p.halves);
                element = r < 8 ? pair.low : pair.high;
            }
            if (element >= p.head_dim) return nullptr;
            row = tile / per_head * p.head_dim + element;
        }
        // Unsigned: rows before the first are beyond the last.
        if (row - p.first_row >= p.n_source_rows) return nullptr;
        return source + size_t(row - p.first_row) * p.row_bytes;
    };
    const uint32_t tile_out = tile * p.tile_step + p.tile_offset;
    uint8_t* out = reinterpret_cast<uint8_t*>(p.out) +
                   (size_t(tile_out) * p.n_records + record_place(tile_out, record, p.n_records)) * TypeRecord::kBytes;
    pack_record<Type>(out, threadIdx.x % kWarp, int(p.k) - int(record * Type::kRecordK), rows);
}

// Calls `use(scales, lane)` with the scales of every record of a matrix, a warp for each.
template <class Use>
__device__ __forceinline__ void for_scales(const KigoScales& p, Use use) {
    const uint64_t step = uint64_t(gridDim.x) * kWarps;
    for (uint64_t record = uint64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; record < p.n_records; record += step) {
        use(reinterpret_cast<uint8_t*>(p.weights) + record * TypeRecord::kBytes + TypeRecord::kScales, threadIdx.x % kWarp);
    }
}

// Types without scales have nothing to be done.
template <class Of>
__device__ __forceinline__ void find_top(const KigoScales& p) {
    if constexpr (Of::kGroupK > 0) {
        float largest = 0;
        for_scales(p, [&](const uint8_t* scales, int lane) { largest = fmaxf(largest, Of::top(scales, lane)); });
        largest = warp_max(largest);
        if (threadIdx.x % kWarp == 0) raise_magnitude(reinterpret_cast<uint32_t*>(p.top), largest);
    }
}

template <class Of>
__device__ __forceinline__ void shift_all(const KigoScales& p) {
    if constexpr (Of::kGroupK > 0) for_scales(p, [&](uint8_t* scales, int lane) { Of::shift(scales, lane, p.shift); });
}

// The largest of the numbers of a matrix that scales come from; then all of them times 2^x.
extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(scales_top, KIGO_QUANT)(const __grid_constant__ KigoScales p) {
    pdl_wait();
    pdl_launch();
    find_top<Type>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) KIGO_NAME(scales_shift, KIGO_QUANT)(const __grid_constant__ KigoScales p) {
    pdl_wait();
    pdl_launch();
    shift_all<Type>(p);
}
