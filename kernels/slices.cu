// Adds the slices of a product that matmul_prefill_split has cut along k, and does what follows a product.
#include "fragments.cuh"
#include "prefill_finish.cuh"

// Columns of a warp.
constexpr int kColumns = 4;

// Grid: columns, kWarps * kColumns for a block; blocks of tiles. All loads of a lane are under way at a time, and those of what it
// takes to finish.
extern "C" __global__ void __launch_bounds__(kThreads, 1) add_slices(const __grid_constant__ KigoMatmul p) {
    using namespace prefill;
    __shared__ __align__(16) float sums[kWarps][kColumns * kItemRows];
    const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const uint32_t column = (blockIdx.x * kWarps + warp) * kColumns, tile = blockIdx.y * kItemTiles;
    const uint32_t each = Slice(p.n_records, 0).last, n_slices = (p.n_records + each - 1) / each;
    pdl_wait();
    pdl_launch();
    if (column >= p.n) return;
    const Finisher<kColumns, true> finisher(p, 0, tile, column, p.n, lane);
    float4 v[kColumns][kSlices] = {};
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
#pragma unroll
        for (uint32_t slice = 0; slice < kSlices; slice++) {
            if (slice < n_slices) v[i][slice] = __ldcg(reinterpret_cast<const float4*>(slice_sums(p, slice, tile, column + i)) + lane);
        }
    }
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
        // What is missing adds nothing: a sum is never -0.
        float4 sum = {0, 0, 0, 0};
#pragma unroll
        for (int slice = 0; slice < kSlices; slice++) {
            const float4 of = v[i][slice];
            sum = {__fadd_rn(sum.x, of.x), __fadd_rn(sum.y, of.y), __fadd_rn(sum.z, of.z), __fadd_rn(sum.w, of.w)};
        }
        *reinterpret_cast<float4*>(sums[warp] + result_place(4 * lane, i)) = sum;
    }
    __syncwarp();
    finisher.finish(sums[warp]);
}
