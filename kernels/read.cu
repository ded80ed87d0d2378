// read_memory: how fast memory can be read, by which kigo-bench judges the rest.
#include "common.cuh"

extern "C" __global__ void read_memory(const __grid_constant__ KigoRead p) {
    constexpr int kInFlight = 4;
    pdl_wait();
    pdl_launch();
    const uint4* from = reinterpret_cast<const uint4*>(p.from);
    const uint64_t n_threads = uint64_t(gridDim.x) * blockDim.x;
    uint32_t all = 0;
    for (uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; first < p.n; first += kInFlight * n_threads) {
        uint4 pieces[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; i++) {
            const uint64_t at = first + i * n_threads;
            pieces[i] = at < p.n ? __ldcs(from + at) : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (int i = 0; i < kInFlight; i++) all ^= pieces[i].x ^ pieces[i].y ^ pieces[i].z ^ pieces[i].w;
    }
    // Without a use the loads would be left out. Of zeros nothing is written.
    if (all != 0) atomicXor(reinterpret_cast<uint32_t*>(p.sink), all);
}
