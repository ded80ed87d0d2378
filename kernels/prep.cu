// prep: the activations of a batch, normed, as operands of the tensor cores; prep_normed: the same where that is usual.
#include "activations.cuh"

template <bool kBf16, bool kWholeWarp = false>
__device__ __forceinline__ Quad scaled_quad(float4 v, float scale) {
    return make_quad<kBf16, kWholeWarp>({__fmul_rn(v.x, scale), __fmul_rn(v.y, scale), __fmul_rn(v.z, scale), __fmul_rn(v.w, scale)});
}

// What activate_row makes of row `from`, with several loads at a time, and of one without a norm what is this block's part.
template <bool kBf16, class Emit>
__device__ float prepare_row(const KigoInput& in, uint32_t from, float4* staging, float2* scratch, Emit emit) {
    float scale = 1, inverse = 1;
    if (in.norm == KIGO_NORM_NONE) {
        if (!kBf16) range_scale(__uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(in.magnitudes) + from)), scale, inverse);
        each_quad<false, kMostAtOnce>(in, from, blockIdx.y * kThreads + threadIdx.x, gridDim.y * kThreads, [](float4) {},
                         [&](uint32_t quad, float4 v, float4) { emit(quad, scaled_quad<kBf16>(v, scale)); });
        return inverse;
    }
    const float2 all = weigh_row(in, from, staging, scratch);
    if (!kBf16) range_scale(all.y, scale, inverse);
    // A thread reads what it wrote.
    for (uint32_t quad = threadIdx.x; quad < in.stride / 4; quad += kThreads) emit(quad, scaled_quad<kBf16>(staging[quad], scale));
    return __fmul_rn(inverse, norm_factor(all.x, in.k, in.eps));
}

// One block per row, or several where there is no norm; rows beyond the batch, up to a multiple of 8, and those that take no
// row become zero.
template <bool kBf16>
__device__ void prepare(const KigoPrep& p) {
    extern __shared__ float4 staging[];
    __shared__ float2 scratch[kWarps];
    constexpr Operand kOperand = kBf16 ? Operand::kBf16 : Operand::kF16;
    const uint32_t row = blockIdx.x, n_units = p.input.stride / kUnitK;
    uint8_t* tile = reinterpret_cast<uint8_t*>(p.records) + size_t(row / 8) * n_units * kActivationBytes<kOperand>;
    auto emit = [&](uint32_t quad, Quad value) {
        const QuadPlace at(quad);
        const uint32_t g = row % 8;
        if (p.order == KIGO_ORDER_SWIZZLED) {
            const size_t group = size_t(at.unit) * (gridDim.x / 8) + row / 8, n_groups = size_t(n_units) * (gridDim.x / 8);
            uint8_t* to = reinterpret_cast<uint8_t*>(p.records) + group * 1024 + g * 128;
            const SwizzledPlace place(at, g);
            *reinterpret_cast<uint32_t*>(to + place.first) = value.high.x;
            *reinterpret_cast<uint32_t*>(to + place.second) = value.high.y;
            if constexpr (kBf16) {
                *reinterpret_cast<uint32_t*>(to + n_groups * 1024 + place.first) = value.low.x;
                *reinterpret_cast<uint32_t*>(to + n_groups * 1024 + place.second) = value.low.y;
            }
            return;
        }
        uint8_t* to = tile + size_t(at.unit) * kActivationBytes<kOperand> + at.a * 512 + (4 * g + at.t) * 16 + at.i * 4;
        *reinterpret_cast<uint2*>(to) = value.high;
        if constexpr (kBf16) *reinterpret_cast<uint2*>(to + 1024) = value.low;
    };
    if (row < 8) prefetch_norm(p.input);
    pdl_wait();
    pdl_launch();
    float factor = 0;
    uint32_t from = row;
    if (row < p.input.n && p.input.select) from = __ldcg(reinterpret_cast<const uint32_t*>(p.input.select) + row);
    if (row >= p.input.n || from == KIGO_NO_ROW) {
        const uint32_t step = gridDim.y * kThreads;
        for (uint32_t quad = blockIdx.y * kThreads + threadIdx.x; quad < p.input.stride / 4; quad += step) emit(quad, Quad{});
    } else if (p.input.norm == KIGO_NORM_LAYER) {
        factor = activate_row<kBf16>(p.input, row, staging, scratch, emit);
    } else {
        factor = prepare_row<kBf16>(p.input, from, staging, scratch, emit);
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) reinterpret_cast<float*>(p.factors)[row] = factor;
}

// Of rows whose halves are there as they are, those that are multiplied with something; a block has eight rows.
__device__ void prepare_rest(const KigoPrep& p) {
    pdl_wait();
    pdl_launch();
    const uint32_t own = blockIdx.x * 8 + threadIdx.x % 8;
    const float magnitude = own < p.input.n ? __uint_as_float(__ldcg(reinterpret_cast<const uint32_t*>(p.input.magnitudes) + own)) : 0;
    float scale, inverse;
    range_scale(magnitude, scale, inverse);
    if (threadIdx.x < 8) reinterpret_cast<float*>(p.factors)[own] = own < p.input.n ? inverse : 0;
    // The same in all warps.
    for (uint32_t left = __ballot_sync(~0u, has_range_scale(magnitude)) & 255; left != 0; left &= left - 1) {
        const uint32_t g = __ffs(left) - 1;
        prepare_row<false>(p.input, blockIdx.x * 8 + g, nullptr, nullptr, [&](uint32_t quad, Quad value) {
            const QuadPlace at(quad);
            const SwizzledPlace place(at, g);
            uint8_t* to = reinterpret_cast<uint8_t*>(p.records) + (size_t(at.unit) * gridDim.x + blockIdx.x) * 1024 + g * 128;
            *reinterpret_cast<uint32_t*>(to + place.first) = value.high.x;
            *reinterpret_cast<uint32_t*>(to + place.second) = value.high.y;
        });
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) prep(const __grid_constant__ KigoPrep p) {
    if (p.is_rest) {
        prepare_rest(p);
    } else if (p.bf16) {
        prepare<true>(p);
    } else {
        prepare<false>(p);
    }
}

// Writes the pairs of a lane's quad in KIGO_ORDER_SWIZZLED, as a whole warp with neighbouring quads: of two lanes each gets two words side by
// side. `to` is where the quad's unit of the row is.
__device__ __forceinline__ void put_pairs(uint8_t* to, const SwizzledPlace& place, uint2 pairs, bool exists) {
    const bool odd = threadIdx.x % 2;
    const uint32_t theirs = __shfl_xor_sync(~0u, odd ? pairs.x : pairs.y, 1);
    if (!exists) return;
    *reinterpret_cast<uint2*>(to + (odd ? place.second - 4 : place.first)) = odd ? uint2{theirs, pairs.y} : uint2{pairs.x, theirs};
}

// A row after an RMSNorm as halves in KIGO_ORDER_SWIZZLED, as a block: a thread has up to kTurns quads, all of them under way at a time.
template <int kTurns>
__device__ __forceinline__ void prepare_normed(const KigoPrep& p) {
    __shared__ float2 scratch[kWarps];
    const KigoInput& in = p.input;
    const uint32_t row = blockIdx.x, lane = threadIdx.x % kWarp, n_quads = in.stride / 4;
    const float4* weight = reinterpret_cast<const float4*>(in.norm_weight);
    // Early where there are registers for them.
    constexpr int kEarly = kTurns <= 4 ? kTurns : 0;
    float4 v[kTurns] = {}, w[kTurns] = {};
    const auto load_weight = [&](int turn) {
        const uint32_t quad = turn * kThreads + threadIdx.x;
        if (quad < n_quads) w[turn] = __ldg(weight + quad);
    };
#pragma unroll
    for (int turn = 0; turn < kEarly; turn++) load_weight(turn);
    pdl_wait();
    pdl_launch();
    uint32_t from = row < in.n ? row : KIGO_NO_ROW;
    if (row < in.n && in.select) from = __ldcg(reinterpret_cast<const uint32_t*>(in.select) + row);
    const float4* x = reinterpret_cast<const float4*>(in.x) + size_t(from) * n_quads;
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const uint32_t quad = turn * kThreads + threadIdx.x;
        if (quad < n_quads && from != KIGO_NO_ROW) v[turn] = __ldcg(x + quad);
    }
    float chain = 0, largest = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        if (turn >= kEarly) load_weight(turn);
        float4& y = v[turn];
        chain = __fadd_rn(chain, Squares::of_tile(y));
        y = {__fmul_rn(y.x, w[turn].x), __fmul_rn(y.y, w[turn].y), __fmul_rn(y.z, w[turn].z), __fmul_rn(y.w, w[turn].w)};
        largest = fmaxf(fmaxf(largest, fmaxf(fabsf(y.x), fabsf(y.y))), fmaxf(fabsf(y.z), fabsf(y.w)));
    }
    const float2 all = block_squares_max(chain, largest, scratch);
    float scale, inverse;
    range_scale(all.y, scale, inverse);
    const SwizzledPlace place(QuadPlace(lane), row % 8);
    const size_t unit_bytes = size_t(gridDim.x / 8) * 1024;
    uint8_t* records = reinterpret_cast<uint8_t*>(p.records) + size_t(row / 8) * 1024 + row % 8 * 128;
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const uint32_t quad = turn * kThreads + threadIdx.x;
        put_pairs(records + quad / 16 * unit_bytes, place, scaled_quad<false, true>(v[turn], scale).high, quad < n_quads);
    }
    if (threadIdx.x > 0) return;
    const float factor = __fmul_rn(inverse, norm_factor(all.x, in.k, in.eps));
    reinterpret_cast<float*>(p.factors)[row] = from == KIGO_NO_ROW ? 0 : factor;
}

// prep of halves in KIGO_ORDER_SWIZZLED after an RMSNorm, of rows of up to 8,192 columns.
extern "C" __global__ void __launch_bounds__(kThreads, 4) prep_normed(const __grid_constant__ KigoPrep p) {
    const uint32_t n_turns = (p.input.stride / 4 + kThreads - 1) / kThreads;
    if (n_turns == 1) {
        prepare_normed<1>(p);
    } else if (n_turns == 2) {
        prepare_normed<2>(p);
    } else if (n_turns <= 4) {
        prepare_normed<4>(p);
    } else {
        prepare_normed<8>(p);
    }
}
