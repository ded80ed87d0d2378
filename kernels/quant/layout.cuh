// How a matrix stands in device memory, whatever its type.
//
// A tile is 16 rows. The weights of a tile are cut along k into records of kRecordK weights a row (64, or 256 for the types
// whose scales belong to 256 weights). Records follow each other along k, tiles along the rows, so that a warp that works on
// a piece of a tile reads one contiguous stream. Rows and columns beyond the matrix are zero.
//
// A record has, each part aligned to 16 bytes:
//   low planes    for every unit of 64 columns, the low bits of each lane's 32 weights
//   high planes   the same for the bits above, where a type has them
//   scales        in an order of the type's own
//
// Within a unit, lane (g = lane / 4, t = lane % 4) owns the weights that mma.m16n8k16 wants from it. Register r (0..3), half h
// (0, 1) of product j (0..3) is
//   row g + 8 (r & 1), column 32 h + 16 (j >> 1) + 4 t + 2 (j & 1) + (r >> 1)
// so that both halves have scales of their own, of columns 0..31 and 32..63, and all registers of a row the same two (or, where
// 16 columns share a scale, those of products 0 and 1, and of 2 and 3). Any order of k would do, as long as weights and
// activations agree.
//
// A code becomes a weight by one multiply-add of halves, and is multiplied as a half. A code n is found as the half whose bits
// are n 2^s: below 2048 the value of a half is its bits times 2^-24. Scales make up for that, and bring weights into the middle
// of a half's range by a power of two of their matrix, which is chosen when all of it is there. What is rounded: scale and
// minimum of 16 or 32 weights, and the weight.
//
// A type (one file each) is a struct with
//   kBlockLen, kBlockBytes        the block of the file
//   kRecordK                      columns in a record
//   kScaleBytes                   bytes of a record's scales, a multiple of 16
//   kGroupK                       columns that share a scale: 16 or 32; 0 for types without scales
//   Planes                        one of the templates below
//   code(block, i)                weight i of a block as an unsigned code (for types without scales: its bits)
//   kZero                         the code of a weight that does not exist; irrelevant where the scale is zero
//   pack_scales(out, lane, n_columns, rows)   writes the scales of a record as the file has them; rows(r) is row r's blocks, or null
// and those with scales
//   kTop                          what is multiplied with scales of the file has to stay below 2^kTop
//   top(scales, lane)             the largest magnitude of these numbers in a record, for lanes 0..31 some each
//   shift(scales, lane, x)        multiplies them with 2^x and what else belongs to them with its power of two
//   Scales, load_scales(in, g)    the scales of rows g and g + 8 of a record
//   affine(scales, unit, part)    what makes weights of the codes of a unit, of products 0 and 1 (part 0) or 2 and 3
#pragma once

#include <cstdint>

#ifndef __CUDA_ARCH__
#include <algorithm>
#include <cmath>
#endif
#ifdef __CUDACC__
#include <cuda_fp16.h>
#define KIGO_FN __host__ __device__ __forceinline__
#define KIGO_UNROLL _Pragma("unroll")
#else
#define KIGO_FN inline
#define KIGO_UNROLL
#endif

constexpr int kTileRows = 16;
constexpr int kUnitK = 64;

// What a type's products are made of.
enum class Operand {
    kF16,   // halves
    kBf16,  // bfloat16, the activations as the sum of two
    kF32,   // weights too as the sum of two
};

// Of two numbers of 16 bits, packed with the first in the low half.
KIGO_FN constexpr uint32_t pack16(uint32_t low, uint32_t high) { return low | high << 16; }

KIGO_FN uint32_t load16(const uint8_t* at) { return at[0] | uint32_t(at[1]) << 8; }

KIGO_FN uint32_t load32(const uint8_t* at) { return load16(at) | load16(at + 2) << 16; }

KIGO_FN float bits_to_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#endif
}

// A half, given by its bits, widened exactly.
KIGO_FN float half_to_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
    const uint32_t sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | magnitude << 13 | 0x7f800000);
    if (magnitude >= 0x0400) return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = float(magnitude) * bits_to_float(103u << 23);
    return sign ? -subnormal : subnormal;
#endif
}

// Where record `record` of a tile stands among the tile's records. Every tile starts at another one: streams that begin in
// many tiles at once would otherwise meet in the same channels of memory, since tiles often are powers of two apart.
KIGO_FN uint32_t record_place(uint32_t tile, uint32_t record, uint32_t n_records) {
    const uint32_t place = record + tile % n_records;
    return place < n_records ? place : place - n_records;
}

// Records that are copied together, from number `record` of a slice that ends before `last`: at most `most`, and as many as are
// neighbours in memory; `first_place` is the place of the tile's first record.
KIGO_FN uint32_t piece_records(uint32_t record, uint32_t last, uint32_t first_place, uint32_t n_records, uint32_t most) {
    const uint32_t place = record + first_place, left = last - record;
    const uint32_t n = left < most ? left : most;
    return place < n_records && n_records - place < n ? n_records - place : n;
}

#ifndef __CUDA_ARCH__
// The half nearest to a number.
inline uint32_t nearest_half(double value) {
    const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (magnitude >= 65520) return sign | 0x7c00;
    const int exponent = magnitude == 0 ? -14 : std::max(std::ilogb(magnitude), -14);
    // The last place of 11 bits.
    const int n = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return sign | uint32_t(((exponent + 15) << 10) + n - 1024);
}
#endif

// The half nearest to an f32.
KIGO_FN uint32_t float_to_half(float value) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(value));
#else
    return nearest_half(value);
#endif
}

// Two products of pairs of halves, and two products plus others, rounded once.
KIGO_FN uint32_t multiply_halves(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#else
    const auto product = [&](int at) { return nearest_half(double(half_to_float(a >> at & 0xffff)) * half_to_float(b >> at & 0xffff)); };
    return pack16(product(0), product(16));
#endif
}

KIGO_FN uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    const auto sum = [&](int at) {
        const auto half = [&](uint32_t pair) { return double(half_to_float(pair >> at & 0xffff)); };
        return nearest_half(half(a) * half(b) + half(c));
    };
    return pack16(sum(0), sum(16));
#endif
}

// Four of the bytes of low (0..3) and high (4..7): byte i is the one that the low three bits of nibble i of `selector` name,
// or where the nibble's fourth bit is set eight times that byte's top bit (PTX ISA, prmt).
KIGO_FN uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
    return out;
#else
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t nibble = selector >> 4 * i;
        uint32_t byte = (nibble & 4 ? high : low) >> 8 * (nibble & 3) & 255;
        if (nibble & 8) byte = byte & 0x80 ? 255 : 0;
        out |= byte << 8 * i;
    }
    return out;
#endif
}

// The magnitude of the half at an address.
KIGO_FN float half_magnitude(const uint8_t* at) { return half_to_float(load16(at) & 0x7fff); }

// Multiplies it with 2^x.
KIGO_FN void shift_half(uint8_t* at, int x) {
    const uint32_t bits = float_to_half(ldexpf(half_to_float(load16(at)), x));
#ifdef __CUDA_ARCH__
    // Not byte by byte: nvcc 13.0 takes the low byte of a half's bits for the half as an integer.
    *reinterpret_cast<uint16_t*>(at) = uint16_t(bits);
#else
    at[0] = uint8_t(bits);
    at[1] = uint8_t(bits >> 8);
#endif
}

// The same half twice: the first of a word, or the second.
KIGO_FN uint32_t low_twice(uint32_t word) { return permute(word, 0, 0x1010); }
KIGO_FN uint32_t high_twice(uint32_t word) { return permute(word, 0, 0x3232); }

// The differences of two pairs of halves.
KIGO_FN uint32_t subtract_halves(uint32_t a, uint32_t b) { return multiply_add_halves(b, pack16(0xbc00, 0xbc00), a); }

// A pair of halves n 2^-24 with n below 2048.
KIGO_FN constexpr uint32_t tiny_pair(uint32_t n) { return n * 0x00010001u; }
KIGO_FN constexpr uint32_t minus(uint32_t pair) { return pair ^ 0x80008000u; }

// The byte of a half that makes 1024 + n of a byte n: there the last place is 1.
constexpr uint32_t k1024 = 0x64;

// Two of the bytes n of a word as halves 1024 + n.
KIGO_FN uint32_t biased_bytes(uint32_t word, int first, int second) { return permute(word, k1024, 0x4040 | second << 8 | first); }

// The bits of 32 weights of a lane, `kBits` each (1, 2 or 4), in `words` of 32 bits: half h of a register is in bits 16 h to
// 16 h + 15. The registers of rows g and g + 8 that are neighbours (r and r + 1 of a product, together a place) are 4 bits
// apart, so that what brings one to bit `kTo` brings the other to kTo + 4. Fields go round the ends of the 16 bits.
template <int kBits, int kTo>
struct Plane {
    static constexpr int kWords = kBits;
    static constexpr int kPlaces = 8 / kBits;
    static constexpr uint32_t kMask = tiny_pair(((1u << kBits) - 1) << kTo);

    // How far a place is from where it is wanted.
    KIGO_FN static constexpr int distance(int place) { return place % kPlaces % (4 / kBits) * kBits + place % kPlaces / (4 / kBits) * 8; }

    // Adds the code of half h of register r of product j to the words.
    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        const int place = 2 * j + (r >> 1);
        const uint32_t bits = code << (distance(place) + kTo + 4 * (r & 1));
        words[place / kPlaces] |= ((bits & 0xffff) | bits >> 16) << 16 * h;
    }

    // The word with a place where it is wanted, and what else is there.
    KIGO_FN static uint32_t place(const uint32_t* words, int place) {
        const uint32_t word = words[place / kPlaces];
        return (distance(place) < 8 ? word : permute(word, 0, 0x2301)) >> distance(place) % 8;
    }
};

// Eight bits: a pair is two neighbouring bytes.
template <>
struct Plane<8, 0> {
    static constexpr int kWords = 8;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        words[2 * j + r / 2] |= code << (16 * (r % 2) + 8 * h);
    }
};

// Sixteen bits: a pair is a word.
template <>
struct Plane<16, 0> {
    static constexpr int kWords = 16;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) { words[4 * j + r] |= code << 16 * h; }
};

// Thirty-two bits: words 8 j + 4 (r & 1) + 2 (r >> 1) + h, that is four of one row after the other.
template <>
struct Plane<32, 0> {
    static constexpr int kWords = 32;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        words[8 * j + 4 * (r % 2) + 2 * (r / 2) + h] = code;
    }
};

template <int kTo>
struct Plane<0, kTo> {
    static constexpr int kWords = 0;
    static constexpr uint32_t kMask = 0;

    KIGO_FN static void put(uint32_t*, int, int, int, uint32_t) {}

    KIGO_FN static uint32_t place(const uint32_t*, int) { return 0; }
};

// Codes of kLow + kHigh bits, split into two planes. Codes of rows g come out times 2^kShift, of rows g + 8 times
// 2^(kShift + kOdd), both below 2048.
template <int kLow, int kHigh, int kShiftBits = 0>
struct PlanesOf {
    static constexpr int kShift = kShiftBits, kOdd = kLow < 8 ? 4 : 0;
    static_assert(kLow >= 8 || kLow + kHigh + kShift + kOdd <= 11);
    using Low = Plane<kLow, kShift>;
    using High = Plane<kHigh, kShift + kLow % 32>;

    // A lane's weights of one unit.
    struct Unit {
        uint32_t low[Low::kWords];
        uint32_t high[High::kWords ? High::kWords : 1];
    };

    KIGO_FN static void put(Unit& unit, int j, int r, int h, uint32_t code) {
        if constexpr (kLow == 32) {
            Low::put(unit.low, j, r, h, code);
        } else {
            Low::put(unit.low, j, r, h, code & ((1u << kLow) - 1));
            High::put(unit.high, j, r, h, code >> kLow);
        }
    }

    // The codes of the registers of product j as pairs of halves; for types without scales their bits.
    KIGO_FN static void codes(const Unit& unit, int j, uint32_t out[4]) {
        if constexpr (kLow == 16) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) out[r] = unit.low[4 * j + r];
        } else if constexpr (kLow == 8) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) out[r] = permute(unit.low[2 * j + r / 2], 0, r % 2 ? 0x4342 : 0x4140);
        } else {
            KIGO_UNROLL
            for (int i = 0; i < 2; i++) {
                const uint32_t low = Low::place(unit.low, 2 * j + i), high = High::place(unit.high, 2 * j + i);
                out[2 * i] = (low & Low::kMask) | (high & High::kMask);
                out[2 * i + 1] = (low & Low::kMask << kOdd) | (high & High::kMask << kOdd);
            }
        }
    }
};

// What makes weights of the codes of rows g and g + 8: pairs of halves, for columns 0..31 and 32..63 of a unit.
struct Affine {
    uint32_t scale[2], offset[2];
};

// The weights of product j: registers of what is multiplied.
template <class Type>
KIGO_FN void make_weights(const typename Type::Planes::Unit& unit, int j, const Affine& affine, uint32_t out[4]) {
    Type::Planes::codes(unit, j, out);
    KIGO_UNROLL
    for (int r = 0; r < 4; r++) out[r] = multiply_add_halves(out[r], affine.scale[r % 2], affine.offset[r % 2]);
}

// Parts of a unit that have scales of their own.
template <class Type>
constexpr int kAffineParts = Type::kGroupK == 16 ? 2 : 1;

// Weights of a matrix are what was multiplied times 2^(kPoint - x), x as `shift` of its type has it.
template <class Type>
constexpr int kPoint = 24 - Type::Planes::kShift;

// The offset that takes code `zero` to 0.
template <class Planes>
KIGO_FN uint32_t offset_of(uint32_t scale, uint32_t zero, int row) {
    return multiply_halves(scale, minus(tiny_pair(zero << (Planes::kShift + (row ? Planes::kOdd : 0)))));
}

// Where the parts of a record of `kUnits` units stand, in bytes.
template <class Type, int kUnits = Type::kRecordK / kUnitK>
struct Record {
    using Planes = typename Type::Planes;
    static constexpr int kLowBytes = 32 * 4 * Planes::Low::kWords;
    static constexpr int kHighBytes = 32 * 4 * Planes::High::kWords;
    static constexpr int kHigh = kUnits * kLowBytes;
    static constexpr int kScales = kHigh + kUnits * kHighBytes;
    static constexpr int kBytes = kScales + Type::kScaleBytes;
    static_assert(kBytes % 16 == 0 && Type::kScaleBytes % 16 == 0);
};

// words[i] by selection, so that an index that is known only at run time does not put the array into memory.
KIGO_FN uint32_t select_word(const uint32_t (&words)[4], int i) {
    const uint32_t even = i & 2 ? words[2] : words[0], odd = i & 2 ? words[3] : words[1];
    return i & 1 ? odd : even;
}

// Loads 1, 2 or 4 words from an address that is a multiple of their size.
template <int kWords>
KIGO_FN void load_words(uint32_t* words, const uint8_t* from) {
#ifdef __CUDA_ARCH__
    if constexpr (kWords == 4) {
        const uint4 value = *reinterpret_cast<const uint4*>(from);
        words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
    } else if constexpr (kWords == 2) {
        const uint2 value = *reinterpret_cast<const uint2*>(from);
        words[0] = value.x, words[1] = value.y;
    } else {
        static_assert(kWords == 1);
        words[0] = *reinterpret_cast<const uint32_t*>(from);
    }
#else
    __builtin_memcpy(words, from, 4 * kWords);
#endif
}

template <int kWords>
KIGO_FN void store_words(uint8_t* to, const uint32_t* words) {
#ifdef __CUDA_ARCH__
    if constexpr (kWords == 4) {
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else if constexpr (kWords == 2) {
        *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
        static_assert(kWords == 1);
        *reinterpret_cast<uint32_t*>(to) = words[0];
    }
#else
    __builtin_memcpy(to, words, 4 * kWords);
#endif
}

// Where register r of product j of a lane stands in the plane of a unit that has a word for each: as the tensor cores take
// matrices from shared memory. These are 8 rows by 8 columns of k, 128 bytes, one after the other along k; those of rows 8 to
// 15 follow all of rows 0 to 7.
KIGO_FN constexpr int pair_offset(int j, int r, int lane) { return 1024 * (r & 1) + 256 * j + 128 * (r >> 1) + 4 * lane; }

// Words that one access moves, and where those from word `first` of a lane stand in the plane of a unit. A lane with more
// than 16 bytes has them in parts, so that a warp moves 512 neighbouring bytes at a time.
template <int kWords>
constexpr int kPartWords = kWords > 4 ? 4 : kWords;

template <int kWords>
KIGO_FN int part_offset(int first, int lane) {
    return 128 * first + 4 * kPartWords<kWords> * lane;
}

template <class Type, int kUnits = Type::kRecordK / kUnitK>
KIGO_FN typename Type::Planes::Unit load_unit(const uint8_t* record, int unit, int lane) {
    using R = Record<Type, kUnits>;
    constexpr int kLow = Type::Planes::Low::kWords, kHigh = Type::Planes::High::kWords;
    typename Type::Planes::Unit out = {};
    const uint8_t* low = record + unit * R::kLowBytes;
    KIGO_UNROLL
    for (int i = 0; i < kLow; i += kPartWords<kLow>) {
        if constexpr (kLow == 16) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) load_words<1>(out.low + i + r, low + pair_offset(i / 4, r, lane));
        } else {
            load_words<kPartWords<kLow>>(out.low + i, low + part_offset<kLow>(i, lane));
        }
    }
    if constexpr (kHigh > 0) {
        static_assert(kHigh <= 4);
        load_words<kHigh>(out.high, record + R::kHigh + unit * R::kHighBytes + 4 * kHigh * lane);
    }
    return out;
}

#ifdef __CUDACC__
// The same of a record in shared memory, by all lanes of a warp.
template <class Type, int kUnits = Type::kRecordK / kUnitK>
__device__ __forceinline__ typename Type::Planes::Unit load_unit_shared(const uint8_t* record, int unit, int lane) {
    if constexpr (Type::Planes::Low::kWords == 16) {
        typename Type::Planes::Unit out = {};
        // Lane i has the address of row i % 8 of the matrix of register i / 8.
        const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(record)) + unit * Record<Type, kUnits>::kLowBytes +
                            pair_offset(0, lane / 8, 4 * (lane % 8));
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) {
            uint32_t* low = out.low + 4 * j;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(low[0]), "=r"(low[1]), "=r"(low[2]), "=r"(low[3])
                         : "r"(at + pair_offset(j, 0, 0))
                         : "memory");
        }
        return out;
    } else {
        return load_unit<Type, kUnits>(record, unit, lane);
    }
}
#endif

template <class Type, int kUnits = Type::kRecordK / kUnitK>
KIGO_FN void store_unit(uint8_t* record, int unit, int lane, const typename Type::Planes::Unit& in) {
    using R = Record<Type, kUnits>;
    constexpr int kLow = Type::Planes::Low::kWords, kHigh = Type::Planes::High::kWords;
    uint8_t* low = record + unit * R::kLowBytes;
    KIGO_UNROLL
    for (int i = 0; i < kLow; i += kPartWords<kLow>) {
        if constexpr (kLow == 16) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) store_words<1>(low + pair_offset(i / 4, r, lane), in.low + i + r);
        } else {
            store_words<kPartWords<kLow>>(low + part_offset<kLow>(i, lane), in.low + i);
        }
    }
    if constexpr (kHigh > 0) {
        store_words<kHigh>(record + R::kHigh + unit * R::kHighBytes + 4 * kHigh * lane, in.high);
    }
}

// The column of half h of register r of product j in lane t of a row's four.
KIGO_FN constexpr int column_of(int j, int r, int h, int t) { return 32 * h + 16 * (j >> 1) + 4 * t + 2 * (j & 1) + (r >> 1); }

// Writes one record, as one of 32 lanes. `rows(r)` is the first block of row r in this record, or null where the tile has no
// such row; `n_columns` of the record's columns exist.
template <class Type, class Rows>
KIGO_FN void pack_record(uint8_t* record, int lane, int n_columns, Rows rows) {
    const int g = lane / 4, t = lane % 4;
    for (int unit = 0; unit < Type::kRecordK / kUnitK; unit++) {
        typename Type::Planes::Unit out = {};
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) {
                const uint8_t* row = rows(g + 8 * (r & 1));
                KIGO_UNROLL
                for (int h = 0; h < 2; h++) {
                    const int k = kUnitK * unit + column_of(j, r, h, t);
                    uint32_t code = Type::kZero;
                    if (row != nullptr && k < n_columns) {
                        code = Type::code(row + k / Type::kBlockLen * Type::kBlockBytes, k % Type::kBlockLen);
                    }
                    Type::Planes::put(out, j, r, h, code);
                }
            }
        }
        store_unit<Type>(record, unit, lane, out);
    }
    if constexpr (Type::kScaleBytes > 0) {
        Type::pack_scales(record + Record<Type>::kScales, lane, n_columns, rows);
    }
}
