// F32: IEEE 754 singles; what multiplies them splits them.
#pragma once

#include "layout.cuh"

struct F32 {
    static constexpr int kBlockLen = 1, kBlockBytes = 4;
    static constexpr int kRecordK = 64, kScaleBytes = 0, kGroupK = 0;
    static constexpr Operand kOperand = Operand::kF32;
    static constexpr uint32_t kZero = 0;
    using Planes = PlanesOf<32, 0>;

    KIGO_FN static uint32_t code(const uint8_t* block, int) { return load32(block); }
};
