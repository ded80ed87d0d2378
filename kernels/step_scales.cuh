// The scales of quantised weights in `step`, whose warps multiply with a single row, so that unpacking weights is most of their work.
#pragma once

#include "fragments.cuh"
#include "quant/super_scales.cuh"

namespace {

// The numbers that a record's halves are multiplied with, of which a lane needs those of one unit alone: it loads the words that have them,
// so that nothing has to be selected. What `load_scales` says of them is not looked at, so the compiler does not load it.
template <class Type, int kBytes, int kHalves>
__device__ __forceinline__ void load_numbers(SuperScales<kBytes, kHalves>& scales, const uint8_t* at, int g, int unit) {
    // Words of a list with a number for each group; minima of 32 weights have a list of their own.
    constexpr int kList = Type::kRecordK / Type::kGroupK / 4;
    const int own = unit * kList / 4;
#pragma unroll
    for (int row = 0; row < 2; row++) {
#pragma unroll
        for (int i = 0; i < kBytes / 4; i += kList) {
            const uint32_t word = *reinterpret_cast<const uint32_t*>(at + kBytes * (g + 8 * row) + 4 * (i + own));
#pragma unroll
            for (int j = 0; j < kList; j++) scales.bytes[row][i + j] = word;
        }
    }
}

// Those of a record in a warp. The four lanes of a row would come to the same: each makes those of one of four units, and they give
// them to each other.
template <class Type>
struct RecordScales {
    static constexpr int kUnits = Type::kRecordK / kUnitK, kParts = kAffineParts<Type>;
    static_assert(kUnits == 1 || kUnits == 4);

    Affine own[kParts];

    RecordScales() = default;

    __device__ __forceinline__ RecordScales(const uint8_t* at, int lane) {
        const int unit = lane % 4 % kUnits;
        auto scales = Type::load_scales(at, lane / 4);
        if constexpr (kUnits > 1) load_numbers<Type>(scales, at, lane / 4, unit);
#pragma unroll
        for (int part = 0; part < kParts; part++) own[part] = Type::affine(scales, unit, part);
    }

    // The same as make_fragments of unit `index`; called by all lanes.
    __device__ __forceinline__ Fragments<Type> make_fragments(const typename Type::Planes::Unit& unit, int index) const {
        Fragments<Type> out;
#pragma unroll
        for (int part = 0; part < kParts; part++) {
            Affine affine = own[part];
            if constexpr (kUnits > 1) {
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    affine.scale[row] = __shfl_sync(~0u, affine.scale[row], index, kUnits);
                    affine.offset[row] = __shfl_sync(~0u, affine.offset[row], index, kUnits);
                }
            }
            constexpr int kEach = 4 / kParts;
#pragma unroll
            for (int j = part * kEach; j < (part + 1) * kEach; j++) make_weights<Type>(unit, j, affine, out.a[j]);
        }
        return out;
    }
};

}  // namespace
