// wgmma (wgmma.cuh) of halves with the numbers of columns that attention has.
#pragma once

#include "wgmma.cuh"

// Starts d = a b, or with `keep` d += a b, of 64 rows by kColumns columns by 16 of k; d[4 j + i] is element i of columns 8 j to 8 j + 7.
template <int kColumns>
__device__ __forceinline__ void wgmma_columns_of(float (&d)[kColumns / 2], const uint32_t* a, uint64_t b, int keep) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(kColumns == 64 || kColumns == 72 || kColumns == 104 || kColumns == 136);
    if constexpr (kColumns == 64) {
        asm volatile(
            "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
            "}, {%32, %33, %34, %35}, %36, keep, 1, 1, 0;\n}"
            : KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    }
    if constexpr (kColumns == 72) {
        asm volatile(
            "{\n.reg .pred keep;\nsetp.ne.b32 keep, %41, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35"
            "}, {%36, %37, %38, %39}, %40, keep, 1, 1, 0;\n}"
            : KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    }
    if constexpr (kColumns == 104) {
        asm volatile(
            "{\n.reg .pred keep;\nsetp.ne.b32 keep, %57, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n104k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
            "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51"
            "}, {%52, %53, %54, %55}, %56, keep, 1, 1, 0;\n}"
            : KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24), KIGO_WGMMA_8(d, 32), KIGO_WGMMA_8(d, 40), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    }
    if constexpr (kColumns == 136) {
        asm volatile(
            "{\n.reg .pred keep;\nsetp.ne.b32 keep, %73, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n136k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
            "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "
            "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67"
            "}, {%68, %69, %70, %71}, %72, keep, 1, 1, 0;\n}"
            : KIGO_WGMMA_8(d, 0), KIGO_WGMMA_8(d, 8), KIGO_WGMMA_8(d, 16), KIGO_WGMMA_8(d, 24), KIGO_WGMMA_8(d, 32), KIGO_WGMMA_8(d, 40), KIGO_WGMMA_8(d, 48), KIGO_WGMMA_8(d, 56), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    }
#endif
}
