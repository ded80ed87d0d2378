// One unit of weights (16 rows, 64 columns) times eight columns of activations, on the tensor cores.
//
// Everything that decides the bits of a product is here and in kSlices: all kernels walk along k in the same order, so a
// row's results do not depend on the kernel that computed them.
#pragma once

#include "activations.cuh"

// A row of a tile is cut along k into this many pieces of whole records, whose sums are added in order.
constexpr int kSlices = kWarps;

// The weights of a unit as operands.
template <class Type>
struct Fragments {
    uint32_t a[4][4];
    // The rests of f32 weights.
    uint32_t rest[Type::kOperand == Operand::kF32 ? 4 : 1][4];
};

struct NoScales {};

// The scales of a record; nothing for types that have none.
template <class Type>
__device__ __forceinline__ auto scales_of(const uint8_t* scales, int lane) {
    if constexpr (Type::kGroupK > 0) {
        return Type::load_scales(scales, lane / 4);
    } else {
        return NoScales{};
    }
}

// Unit `index` of a record.
template <class Type, class Scales>
__device__ __forceinline__ Fragments<Type> make_fragments(const typename Type::Planes::Unit& unit, const Scales& scales, int index) {
    Fragments<Type> out;
    if constexpr (Type::kOperand == Operand::kF32) {
        KIGO_UNROLL
        for (int i = 0; i < 16; i++) {
            const int j = i / 4, r = i % 4;
            const uint32_t* words = unit.low + 8 * j + 4 * (r % 2) + 2 * (r / 2);
            const float w[2] = {__uint_as_float(words[0]), __uint_as_float(words[1])};
            const float high[2] = {round_bf16(w[0]), round_bf16(w[1])};
            out.a[j][r] = pack_bf16(high[0], high[1]);
            out.rest[j][r] = pack_bf16(round_bf16(w[0] - high[0]), round_bf16(w[1] - high[1]));
        }
    } else if constexpr (Type::kGroupK == 0) {
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) Type::Planes::codes(unit, j, out.a[j]);
    } else {
        KIGO_UNROLL
        for (int part = 0; part < kAffineParts<Type>; part++) {
            const Affine affine = Type::affine(scales, index, part);
            constexpr int kEach = 4 / kAffineParts<Type>;
            KIGO_UNROLL
            for (int j = part * kEach; j < (part + 1) * kEach; j++) make_weights<Type>(unit, j, affine, out.a[j]);
        }
    }
    return out;
}

// acc[0], acc[1]: row g, columns 2 t and 2 t + 1; acc[2], acc[3]: row g + 8. A unit of f32 is added when it has been summed up, so
// that units need not wait for each other.
template <class Type>
__device__ __forceinline__ void multiply_add(float acc[4], const Fragments<Type>& w, const Activations<Type::kOperand>& x) {
    if constexpr (Type::kOperand == Operand::kF32) {
        float main[4] = {}, low[4] = {}, rest[4] = {};
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) {
            mma_bf16(low, w.a[j], x.low + 2 * j);
            mma_bf16(rest, w.rest[j], x.high + 2 * j);
            mma_bf16(main, w.a[j], x.high + 2 * j);
        }
        KIGO_UNROLL
        for (int i = 0; i < 4; i++) acc[i] = __fadd_rn(acc[i], __fadd_rn(main[i], __fadd_rn(low[i], rest[i])));
    } else if constexpr (Type::kOperand == Operand::kBf16) {
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) {
            mma_bf16(acc, w.a[j], x.high + 2 * j);
            mma_bf16(acc, w.a[j], x.low + 2 * j);
        }
    } else {
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) mma_f16(acc, w.a[j], x.high + 2 * j);
    }
}

// A lane's part of a record of activations, in shared or global memory.
template <class Type>
__device__ __forceinline__ Activations<Type::kOperand> load_activations(const uint8_t* record, int lane) {
    Activations<Type::kOperand> out;
    auto load = [&](uint32_t* to, const uint8_t* at) { *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(at); };
    for (int h = 0; h < 2; h++) {
        load(out.high + 4 * h, record + h * 512 + lane * 16);
        if constexpr (Type::kOperand != Operand::kF16) load(out.low + 4 * h, record + 1024 + h * 512 + lane * 16);
    }
    return out;
}

// Records first .. last of a slice.
struct Slice {
    uint32_t first, last;

    __device__ Slice(uint32_t n_records, uint32_t slice) {
        const uint32_t each = (n_records + kSlices - 1) / kSlices;
        first = min(slice * each, n_records);
        last = min(first + each, n_records);
    }
};
