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
// Within a unit, lane (g = lane / 4, t = lane % 4) owns the weights that mma.m16n8k16 wants from it. Product j (0..3) covers
// columns 16 j .. 16 j + 15, and its register r (0..3), half h (0, 1) is
//   row g + 8 (r & 1), column 16 j + 4 t + 2 (r >> 1) + h
// so that the four activations that a lane multiplies them with are neighbours. Any order of k would do, as long as
// weights and activations agree.
//
// A type (one file each) is a struct with
//   kBlockLen, kBlockBytes        the block of the file
//   kRecordK                      columns in a record
//   kScaleBytes                   bytes of a record's scales, a multiple of 16
//   kGroupK                       columns that share a scale: 16 or 32; 0 for types without scales
//   kHasMin                       whether a weight is scale * code - min rather than scale * code
//   kScalesCodes                  whether a code times a part of its scale, a small integer, is multiplied: then code_scales
//                                 has that part as two equal halves, of rows g and g + 8, and rest_scale what the record shares
//   Planes                        one of the templates below
//   code(block, i)                weight i of a block as an unsigned code (for types without scales: its bits)
//   kZero                         the code of a weight that does not exist; irrelevant where the scale is zero
//   operand(pair)                 two codes of the planes as what is multiplied; not where Planes has operands of its own
//   pack_scales(out, lane, rows)  writes the scales of a record; rows(r) is row r's blocks, or null
//   Scales, load_scales(in, g), scale(scales, group), min(scales, group)   of rows g (.x) and g + 8 (.y)
#pragma once

#include <cstdint>

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

struct Float2 {
    float x, y;
};

// What a type's products are made of.
enum class Operand {
    kF16,   // halves
    kBf16,  // bfloat16, the activations as the sum of two
    kF32,   // weights too as the sum of two
};

// Of two numbers of 16 bits, packed with the first in the low half.
KIGO_FN uint32_t pack16(uint32_t low, uint32_t high) { return low | high << 16; }

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

KIGO_FN uint32_t float_to_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
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

#ifndef __CUDA_ARCH__
// The half of a number that a normal half or zero has exactly.
inline uint32_t exact_half(float value) {
    const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    return sign | (magnitude == 0 ? 0 : (magnitude >> 13) - (112u << 10));
}
#endif

// The byte of a half that makes 1024 + n of a small integer n: there the last place is 1.
constexpr uint32_t k1024 = 0x64;

// Two halves 1024 + n, n in 0..1023, to n - kOffset, exactly.
template <int kOffset>
KIGO_FN uint32_t without_bias(uint32_t biased) {
#ifdef __CUDA_ARCH__
    constexpr uint32_t bias = (k1024 << 8) + kOffset;
    uint32_t out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(biased), "r"(pack16(bias, bias)));
    return out;
#else
    const auto half = [&](int at) { return exact_half(half_to_float(biased >> at & 0xffff) - (1024 + kOffset)); };
    return pack16(half(0), half(16));
#endif
}

// Two small integers 0..1023 in two fields of 16 bits, minus kOffset, as two halves, exactly.
template <int kOffset>
KIGO_FN uint32_t small_integers(uint32_t pair) {
    return without_bias<kOffset>(pair | k1024 * 0x01000100u);
}

// The products of two pairs of halves.
KIGO_FN uint32_t multiply_halves(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#else
    const auto product = [&](int at) { return exact_half(half_to_float(a >> at & 0xffff) * half_to_float(b >> at & 0xffff)); };
    return pack16(product(0), product(16));
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

// The bits of 32 weights of a lane, `kBits` each (1, 2 or 4): `words` of 32 bits. The pair of halves (j, r) is taken out
// with one shift and one mask.
template <int kBits>
struct Plane {
    static constexpr int kWords = kBits;
    static constexpr int kPairsPerWord = 16 / kBits;
    static constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;

    // Adds the code of half h of register r of product j to the words.
    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        const int pair = 4 * j + r;
        words[pair / kPairsPerWord] |= code << (kBits * (pair % kPairsPerWord) + 16 * h);
    }

    KIGO_FN static uint32_t pair(const uint32_t* words, int j, int r) {
        const int pair = 4 * j + r;
        return words[pair / kPairsPerWord] >> (kBits * (pair % kPairsPerWord)) & kMask;
    }
};

// Eight bits: a pair is two neighbouring bytes.
template <>
struct Plane<8> {
    static constexpr int kWords = 8;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        words[2 * j + r / 2] |= code << (16 * (r % 2) + 8 * h);
    }

    KIGO_FN static uint32_t pair(const uint32_t* words, int j, int r) {
        const uint32_t word = words[2 * j + r / 2];
        return permute(word, 0, r % 2 ? 0x4342 : 0x4140);
    }
};

// Sixteen bits: a pair is a word.
template <>
struct Plane<16> {
    static constexpr int kWords = 16;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) { words[4 * j + r] |= code << 16 * h; }

    KIGO_FN static uint32_t pair(const uint32_t* words, int j, int r) { return words[4 * j + r]; }
};

// Thirty-two bits: words 8 j + 4 (r & 1) + 2 (r >> 1) + h, that is four neighbours of one row after the other.
template <>
struct Plane<32> {
    static constexpr int kWords = 32;

    KIGO_FN static void put(uint32_t* words, int j, int r, int h, uint32_t code) {
        words[8 * j + 4 * (r % 2) + 2 * (r / 2) + h] = code;
    }
};

template <>
struct Plane<0> {
    static constexpr int kWords = 0;

    KIGO_FN static void put(uint32_t*, int, int, int, uint32_t) {}

    KIGO_FN static uint32_t pair(const uint32_t*, int, int) { return 0; }
};

// Codes of kLow + kHigh bits, split into two planes.
template <int kLow, int kHigh>
struct PlanesOf {
    using Low = Plane<kLow>;
    using High = Plane<kHigh>;
    static constexpr int kLowBits = kLow;
    static constexpr int kHighBits = kHigh;
    static constexpr int kBytesPerLane = 4 * (Low::kWords + High::kWords);

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

    // Codes of halves 0 and 1 of register r of product j, in two fields of 16 bits.
    KIGO_FN static uint32_t pair(const Unit& unit, int j, int r) {
        return Low::pair(unit.low, j, r) | High::pair(unit.high, j, r) << kLow % 16;
    }

    // The registers of product j.
    template <class Type>
    KIGO_FN static void operands(const Unit& unit, int j, uint32_t out[4]) {
        KIGO_UNROLL
        for (int r = 0; r < 4; r++) out[r] = Type::operand(pair(unit, j, r));
    }
};

// The four registers that lane and product `j` of a unit multiply; for types whose operands are halves or bfloat16.
template <class Type>
KIGO_FN void operands(const typename Type::Planes::Unit& unit, int j, uint32_t out[4]) {
    Type::Planes::template operands<Type>(unit, j, out);
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
        load_words<kPartWords<kLow>>(out.low + i, low + part_offset<kLow>(i, lane));
    }
    if constexpr (kHigh > 0) {
        static_assert(kHigh <= 4);
        load_words<kHigh>(out.high, record + R::kHigh + unit * R::kHighBytes + 4 * kHigh * lane);
    }
    return out;
}

template <class Type, int kUnits = Type::kRecordK / kUnitK>
KIGO_FN void store_unit(uint8_t* record, int unit, int lane, const typename Type::Planes::Unit& in) {
    using R = Record<Type, kUnits>;
    constexpr int kLow = Type::Planes::Low::kWords, kHigh = Type::Planes::High::kWords;
    uint8_t* low = record + unit * R::kLowBytes;
    KIGO_UNROLL
    for (int i = 0; i < kLow; i += kPartWords<kLow>) {
        store_words<kPartWords<kLow>>(low + part_offset<kLow>(i, lane), in.low + i);
    }
    if constexpr (kHigh > 0) {
        store_words<kHigh>(record + R::kHigh + unit * R::kHighBytes + 4 * kHigh * lane, in.high);
    }
}

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
                    const int k = kUnitK * unit + 16 * j + 4 * t + 2 * (r >> 1) + h;
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
