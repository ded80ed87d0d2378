// One unit of weights (16 rows, 64 columns) times eight columns of activations, on the tensor cores.
//
// Everything that decides the bits of a product is here and in kSlices: all kernels walk along k in the same order, so a
// row's results do not depend on the kernel that computed them.
#pragma once

#include "activations.cuh"

// A row of a tile is cut along k into this many pieces of whole records, whose sums are added in order.
constexpr int kSlices = kWarps;

// The weights of a unit as operands, with the scales of rows g and g + 8.
template <class Type>
struct Fragments {
    static constexpr int kGroups = Type::kGroupK ? kUnitK / Type::kGroupK : 1;
    uint32_t a[4][4];
    // The rests of f32 weights.
    uint32_t rest[Type::kOperand == Operand::kF32 ? 4 : 1][4];
    Float2 scale[kGroups];
    Float2 min[kGroups];
};

// Registers of product j of a unit, whose codes are multiplied with part of their scale: all products are integers below 2048.
template <class Type, class Scales>
__device__ __forceinline__ void scaled_operands(const typename Type::Planes::Unit& unit, int j, const Scales& scales, int group,
                                                uint32_t out[4]) {
    uint32_t scale[2];
    Type::code_scales(scale, scales, group);
    KIGO_UNROLL
    for (int r = 0; r < 4; r++) {
        // (1024 + code) scale - 1024 scale
        const uint32_t biased = Type::Planes::pair(unit, j, r) | k1024 * 0x01000100u;
        asm("{\n.reg .b32 bias;\nmul.rn.f16x2 bias, %2, %3;\nfma.rn.f16x2 %0, %1, %2, bias;\n}"
            : "=r"(out[r])
            : "r"(biased), "r"(scale[r % 2]), "r"(0xe400e400u));
    }
}

template <class Type, class Scales>
__device__ __forceinline__ Fragments<Type> make_fragments(const typename Type::Planes::Unit& unit, const Scales& scales, int index) {
    Fragments<Type> out;
    KIGO_UNROLL
    for (int j = 0; j < 4; j++) {
        if constexpr (Type::kOperand == Operand::kF32) {
            KIGO_UNROLL
            for (int r = 0; r < 4; r++) {
                const uint32_t* words = unit.low + 8 * j + 4 * (r % 2) + 2 * (r / 2);
                const float w[2] = {__uint_as_float(words[0]), __uint_as_float(words[1])};
                const float high[2] = {round_bf16(w[0]), round_bf16(w[1])};
                out.a[j][r] = pack_bf16(high[0], high[1]);
                out.rest[j][r] = pack_bf16(round_bf16(w[0] - high[0]), round_bf16(w[1] - high[1]));
            }
        } else if constexpr (Type::kScalesCodes) {
            scaled_operands<Type>(unit, j, scales, index * Fragments<Type>::kGroups + j * 16 / Type::kGroupK, out.a[j]);
        } else {
            operands<Type>(unit, j, out.a[j]);
        }
    }
    if constexpr (Type::kScalesCodes) out.scale[0] = Type::rest_scale(scales);
    if constexpr (Type::kGroupK > 0) {
        KIGO_UNROLL
        for (int group = 0; group < Fragments<Type>::kGroups; group++) {
            if constexpr (!Type::kScalesCodes) out.scale[group] = Type::scale(scales, index * Fragments<Type>::kGroups + group);
            if constexpr (Type::kHasMin) out.min[group] = Type::min(scales, index * Fragments<Type>::kGroups + group);
        }
    }
    return out;
}

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

__device__ __forceinline__ void add_scaled(float acc[4], Float2 scale, const float product[4]) {
    acc[0] = __fmaf_rn(scale.x, product[0], acc[0]);
    acc[1] = __fmaf_rn(scale.x, product[1], acc[1]);
    acc[2] = __fmaf_rn(scale.y, product[2], acc[2]);
    acc[3] = __fmaf_rn(scale.y, product[3], acc[3]);
}

// Takes away what minima of rows are worth in columns with these sums.
__device__ __forceinline__ void take_min(float acc[4], Float2 min, Float2 sum) {
    acc[0] = __fmaf_rn(-min.x, sum.x, acc[0]);
    acc[1] = __fmaf_rn(-min.x, sum.y, acc[1]);
    acc[2] = __fmaf_rn(-min.y, sum.x, acc[2]);
    acc[3] = __fmaf_rn(-min.y, sum.y, acc[3]);
}

// acc[0], acc[1]: row g, columns 2 t and 2 t + 1; acc[2], acc[3]: row g + 8.
template <class Type>
__device__ __forceinline__ void multiply_add(float acc[4], const Fragments<Type>& w, const Activations<Type::kOperand>& x) {
    if constexpr (Type::kOperand != Operand::kF16) {
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) {
            mma_bf16(acc, w.a[j], x.high + 2 * j);
            mma_bf16(acc, w.a[j], x.low + 2 * j);
            if constexpr (Type::kOperand == Operand::kF32) mma_bf16(acc, w.rest[j], x.high + 2 * j);
        }
    } else if constexpr (Type::kGroupK == 0) {
        KIGO_UNROLL
        for (int j = 0; j < 4; j++) mma_f16(acc, w.a[j], x.high + 2 * j);
    } else {
        constexpr int kProducts = Type::kGroupK / 16;
        if constexpr (Type::kScalesCodes) {
            float product[4] = {0, 0, 0, 0};
            KIGO_UNROLL
            for (int j = 0; j < 4; j++) mma_f16(product, w.a[j], x.high + 2 * j);
            add_scaled(acc, w.scale[0], product);
        }
        KIGO_UNROLL
        for (int group = 0; group < Fragments<Type>::kGroups; group++) {
            if constexpr (!Type::kScalesCodes) {
                float product[4] = {0, 0, 0, 0};
                KIGO_UNROLL
                for (int j = group * kProducts; j < (group + 1) * kProducts; j++) mma_f16(product, w.a[j], x.high + 2 * j);
                add_scaled(acc, w.scale[group], product);
            }
            if constexpr (Type::kHasMin) {
                Float2 sum = x.sums[group * kProducts];
                if constexpr (kProducts == 2) {
                    const Float2 other = x.sums[group * kProducts + 1];
                    sum = {__fadd_rn(sum.x, other.x), __fadd_rn(sum.y, other.y)};
                }
                take_min(acc, w.min[group], sum);
            }
        }
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
    if constexpr (Type::kHasMin) {
        for (int j = 0; j < 4; j++) {
            out.sums[j] = *reinterpret_cast<const Float2*>(record + 1024 + j * 32 + lane % 4 * 8);
        }
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
