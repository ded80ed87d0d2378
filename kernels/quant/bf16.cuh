// BF16: the upper half of an IEEE 754 single, multiplied as it is.
#pragma once

#include "layout.cuh"

struct BF16 {
    static constexpr int kBlockLen = 1, kBlockBytes = 2;
    static constexpr int kRecordK = 64, kScaleBytes = 0, kGroupK = 0;
    static constexpr Operand kOperand = Operand::kBf16;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<16, 0>;

    KIGO_FN static uint32_t code(const uint8_t* block, int) { return load16(block); }
};
