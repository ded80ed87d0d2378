// Packs a matrix into records, shifts its scales, and unpacks it again, as one lane after the other: `layout TYPE ROWS COLUMNS`,
// the blocks on stdin. Writes to stdout, little-endian: u32 columns of a record, u32 bytes of a record, f32 the largest number
// that scales come from, f32 what weights are times what stands for them, then f32 weights, row after row, of
// the matrix with the rows and columns that fill its last tile and records.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "quant/types.cuh"

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "layout: %s\n", what);
    std::exit(1);
}

template <class Type>
std::vector<uint8_t> packed(const std::vector<uint8_t>& blocks, int n_rows, int n_columns, int n_records, uint8_t poison) {
    const int n_tiles = (n_rows + kTileRows - 1) / kTileRows, row_bytes = n_columns / Type::kBlockLen * Type::kBlockBytes;
    if (blocks.size() != size_t(n_rows) * row_bytes) fail("the blocks are not those of the matrix");
    std::vector<uint8_t> out(size_t(n_tiles) * n_records * Record<Type>::kBytes, poison);
    for (int tile = 0; tile < n_tiles; tile++) {
        for (int record = 0; record < n_records; record++) {
            const int first = record * Type::kRecordK;
            const auto rows = [&](int r) -> const uint8_t* {
                const int row = tile * kTileRows + r;
                if (row >= n_rows) return nullptr;
                return blocks.data() + size_t(row) * row_bytes + first / Type::kBlockLen * Type::kBlockBytes;
            };
            uint8_t* at = out.data() + size_t(tile * n_records + record) * Record<Type>::kBytes;
            for (int lane = 0; lane < 32; lane++) pack_record<Type>(at, lane, n_columns - first, rows);
        }
    }
    return out;
}

struct Shifted {
    float top, scale;
};

// Shifts the scales of all records as the kernels scales_top and scales_shift do.
template <class Type>
Shifted shift_scales(std::vector<uint8_t>& records) {
    if constexpr (Type::kGroupK == 0) {
        return {0, 1};
    } else {
        float top = 0;
        const auto for_scales = [&](auto use) {
            for (size_t at = 0; at < records.size(); at += Record<Type>::kBytes) {
                for (int lane = 0; lane < 32; lane++) use(&records[at + Record<Type>::kScales], lane);
            }
        };
        for_scales([&](uint8_t* scales, int lane) { top = std::max(top, Type::top(scales, lane)); });
        if (top == 0) return {0, 1};
        const int shift = Type::kTop - (std::ilogb(top) + 1);
        for_scales([&](uint8_t* scales, int lane) { Type::shift(scales, lane, shift); });
        return {top, std::ldexp(1.0f, kPoint<Type> - shift)};
    }
}

// Weight (j, r, h) of unit `index` of a record in lane `lane`.
template <class Type>
float weight_of(const uint8_t* record, int index, int lane, int j, int r, int h) {
    const auto unit = load_unit<Type>(record, index, lane);
    if constexpr (Type::kOperand == Operand::kF32) {
        return bits_to_float(unit.low[8 * j + 4 * (r & 1) + 2 * (r >> 1) + h]);
    } else {
        uint32_t registers[4];
        if constexpr (Type::kGroupK == 0) {
            Type::Planes::codes(unit, j, registers);
        } else {
            const auto scales = Type::load_scales(record + Record<Type>::kScales, lane / 4);
            make_weights<Type>(unit, j, Type::affine(scales, index, j / 2), registers);
        }
        const uint32_t bits = registers[r] >> 16 * h & 0xffff;
        return Type::kOperand == Operand::kBf16 ? bits_to_float(bits << 16) : half_to_float(bits);
    }
}

// The 16 x kRecordK weights of a record.
template <class Type>
void unpack(const uint8_t* record, float scale, float* out, int stride) {
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < Type::kRecordK / kUnitK * 32; i++) {
            const int unit = i / 32, j = i / 8 % 4, r = i / 2 % 4, h = i % 2;
            const int row = lane / 4 + 8 * (r & 1), k = kUnitK * unit + column_of(j, r, h, lane % 4);
            out[row * stride + k] = weight_of<Type>(record, unit, lane, j, r, h) * scale;
        }
    }
}

template <class Type>
void run(const std::vector<uint8_t>& blocks, int n_rows, int n_columns) {
    const int n_records = (n_columns + Type::kRecordK - 1) / Type::kRecordK;
    std::vector<uint8_t> records = packed<Type>(blocks, n_rows, n_columns, n_records, 0x5a);
    if (records != packed<Type>(blocks, n_rows, n_columns, n_records, 0xa5)) fail("a byte of a record is not written");
    const auto [top, scale] = shift_scales<Type>(records);

    const int stride = n_records * Type::kRecordK;
    const size_t n_tiles = records.size() / Record<Type>::kBytes / n_records;
    std::vector<float> weights(n_tiles * kTileRows * stride);
    for (size_t i = 0; i < n_tiles * n_records; i++) {
        float* out = &weights[i / n_records * kTileRows * stride + i % n_records * Type::kRecordK];
        unpack<Type>(&records[i * Record<Type>::kBytes], scale, out, stride);
    }
    const uint32_t facts[] = {Type::kRecordK, Record<Type>::kBytes};
    std::fwrite(facts, 4, 2, stdout);
    std::fwrite(&top, 4, 1, stdout);
    std::fwrite(&scale, 4, 1, stdout);
    std::fwrite(weights.data(), 4, weights.size(), stdout);
}

}  // namespace

int main(int n_arguments, char** arguments) {
    if (n_arguments != 4) fail("usage: layout TYPE ROWS COLUMNS");
    const char* type = arguments[1];
    const int n_rows = std::atoi(arguments[2]), n_columns = std::atoi(arguments[3]);
    std::vector<uint8_t> blocks;
    for (int byte; (byte = std::getchar()) != EOF;) blocks.push_back(uint8_t(byte));

#define RUN(Type) if (std::strcmp(type, #Type) == 0) return run<Type>(blocks, n_rows, n_columns), 0
    RUN(F32);
    RUN(F16);
    RUN(BF16);
    RUN(Q4_0);
    RUN(Q4_1);
    RUN(Q5_0);
    RUN(Q5_1);
    RUN(Q8_0);
    RUN(Q2_K);
    RUN(Q3_K);
    RUN(Q4_K);
    RUN(Q5_K);
    RUN(Q6_K);
    RUN(IQ4_NL);
    RUN(IQ4_XS);
    RUN(MXFP4);
    fail("no such type");
}
