/* Hopper's own instructions, one small function each: products of a warpgroup (wgmma), copies through tensor maps (TMA),
 * registers moved between warps.  Besides cuda/ptx.cuh the only place for PTX; tests/emulated_cuda/cuda/wgmma.cuh is the twin.
 *
 *   wgmma_fence();                                                  // registers and tiles are ready
 *   wgmma<S8_S8>(sum, swizzled_rows(w_tile, 0), swizzled_rows(x_tile, 0), false);   // int32_t sum[64]: N = 128
 *   wgmma_commit();
 *   wgmma_wait<0>(sum);                                             // `sum` is complete, the tiles may be overwritten
 *
 * All of it exists on sm_90a alone: HOPPER says whether bodies of kernels may use it. */
#ifndef CUDA_WGMMA_CUH
#define CUDA_WGMMA_CUH

#include "cuda/operand.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER 1
#else
#define HOPPER 0
#endif

/* ---- products ---------------------------------------------------------------------------------------------------------- */

PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

PTX void hold(float &d) { asm volatile("" : "+f"(d)::"memory"); }
PTX void hold(int32_t &d) { asm volatile("" : "+r"(d)::"memory"); }

/* Returns when at most PENDING groups are unfinished; their sums are still being written. */
template <int PENDING> PTX void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The same for the last one.  `d` passes through, so that the compiler reads none of it earlier. */
template <int PENDING, typename T, int COUNT> PTX void wgmma_wait(T (&d)[COUNT]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++) hold(d[i]);
}

#define WGMMA_8(C, I) C(d[I]), C(d[I + 1]), C(d[I + 2]), C(d[I + 3]), C(d[I + 4]), C(d[I + 5]), C(d[I + 6]), C(d[I + 7])
#define WGMMA_OUT_16(C) WGMMA_8(C, 0)
#define WGMMA_OUT_64(C) WGMMA_8(C, 0), WGMMA_8(C, 8), WGMMA_8(C, 16), WGMMA_8(C, 24)
#define WGMMA_OUT_128(C)                                                                                               \
    WGMMA_8(C, 0), WGMMA_8(C, 8), WGMMA_8(C, 16), WGMMA_8(C, 24), WGMMA_8(C, 32), WGMMA_8(C, 40), WGMMA_8(C, 48),      \
        WGMMA_8(C, 56)
#define WGMMA_OUT_256(C)                                                                                               \
    WGMMA_8(C, 0), WGMMA_8(C, 8), WGMMA_8(C, 16), WGMMA_8(C, 24), WGMMA_8(C, 32), WGMMA_8(C, 40), WGMMA_8(C, 48),      \
        WGMMA_8(C, 56), WGMMA_8(C, 64), WGMMA_8(C, 72), WGMMA_8(C, 80), WGMMA_8(C, 88), WGMMA_8(C, 96),                \
        WGMMA_8(C, 104), WGMMA_8(C, 112), WGMMA_8(C, 120)
#define WGMMA_REGS_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_REGS_64                                                                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "                       \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_REGS_128                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "                       \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "             \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "             \
    "%60, %61, %62, %63"
#define WGMMA_REGS_256                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "                       \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "             \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "             \
    "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "             \
    "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "     \
    "%118, %119, "                                                                                                     \
    "%120, %121, %122, %123, %124, %125, %126, %127"

/* A, B and P are the numbers of the operands behind the N / 2 registers: tiles, and whether D is added to. */
#define WGMMA(N, A, B, P, C, TYPES, CONSTANTS)                                                                         \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N TYPES               \
                 " {" WGMMA_REGS_##N "}, %" #A ", %" #B ", p" CONSTANTS "; }"                                          \
                 : WGMMA_OUT_##N(C)                                                                                    \
                 : "l"(a), "l"(b), "r"((int)add))

/* The behind-last constants of floating types: signs of A and B, and of 16-bit types the transpositions. */
#define WGMMA_SIZE(N, A, B, P)                                                                                         \
    template <wgmma_kind KIND> PTX void wgmma(float(&d)[N / 2], uint64_t a, uint64_t b, bool add) {                    \
        if constexpr (KIND == E4M3_E4M3) WGMMA(N, A, B, P, "+f", "k32.f32.e4m3.e4m3", ", 1, 1");                       \
        if constexpr (KIND == E4M3_E5M2) WGMMA(N, A, B, P, "+f", "k32.f32.e4m3.e5m2", ", 1, 1");                       \
        if constexpr (KIND == E5M2_E4M3) WGMMA(N, A, B, P, "+f", "k32.f32.e5m2.e4m3", ", 1, 1");                       \
        if constexpr (KIND == E5M2_E5M2) WGMMA(N, A, B, P, "+f", "k32.f32.e5m2.e5m2", ", 1, 1");                       \
        if constexpr (KIND == BF16_BF16) WGMMA(N, A, B, P, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0");                 \
        if constexpr (KIND == F16_F16) WGMMA(N, A, B, P, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0");                     \
        if constexpr (KIND == BF16_BF16_T) WGMMA(N, A, B, P, "+f", "k16.f32.bf16.bf16", ", 1, 1, 1, 1");               \
        if constexpr (KIND == F16_F16_T) WGMMA(N, A, B, P, "+f", "k16.f32.f16.f16", ", 1, 1, 1, 1");                   \
    }                                                                                                                  \
    template <wgmma_kind KIND> PTX void wgmma(int32_t(&d)[N / 2], uint64_t a, uint64_t b, bool add) {                  \
        if constexpr (KIND == S8_S8) WGMMA(N, A, B, P, "+r", "k32.s32.s8.s8", "");                                     \
        if constexpr (KIND == S8_U8) WGMMA(N, A, B, P, "+r", "k32.s32.s8.u8", "");                                     \
    }
WGMMA_SIZE(16, 8, 9, 10)
WGMMA_SIZE(64, 32, 33, 34)
WGMMA_SIZE(128, 64, 65, 66)
WGMMA_SIZE(256, 128, 129, 130)

/* The left operand from registers: a[i], i = 0 .. 3, has rows and columns of ql_group_left_row and _col (host/schedule.h), the lower
 * column in the lower half; of bytes the same rows and twice the columns, four neighbours.  Until a wait the registers belong to the
 * product. */
#define WGMMA_HELD(N, A0, A1, A2, A3, B, P, C, TYPES, CONSTANTS)                                                       \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N TYPES               \
                 " {" WGMMA_REGS_##N "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p" CONSTANTS "; }"         \
                 : WGMMA_OUT_##N(C)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add))
#define WGMMA_HELD_SIZE(N, ...)                                                                                        \
    template <wgmma_kind KIND> PTX void wgmma(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b, bool add) {         \
        if constexpr (KIND == BF16_BF16) WGMMA_HELD(N, __VA_ARGS__, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0");           \
        if constexpr (KIND == F16_F16) WGMMA_HELD(N, __VA_ARGS__, "+f", "k16.f32.f16.f16", ", 1, 1, 0");               \
    }                                                                                                                  \
    template <wgmma_kind KIND> PTX void wgmma(int32_t(&d)[N / 2], const uint32_t(&a)[4], uint64_t b, bool add) {       \
        if constexpr (KIND == S8_S8) WGMMA_HELD(N, __VA_ARGS__, "+r", "k32.s32.s8.s8", "");                            \
    }
WGMMA_HELD_SIZE(64, 32, 33, 34, 35, 36, 37)
WGMMA_HELD_SIZE(128, 64, 65, 66, 67, 68, 69)

/* ---- tensor maps ------------------------------------------------------------------------------------------------------------ */

/* Copies the box at (row, byte) of the map's matrix to a swizzled tile and reports its bytes to the barrier when they are there.
 * What lies outside of the matrix arrives as zeros, and is reported like the rest. */
PTX void tensor_load(void *tile, const CUtensorMap *map, int byte, int row, uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            ptx_shared(tile)),
        "l"(map), "r"(byte), "r"(row), "r"(ptx_shared(barrier))
        : "memory");
}

/* ---- registers and barriers ------------------------------------------------------------------------------------------------ */

/* A warpgroup gives registers back, or waits for what others gave. */
template <int COUNT> PTX void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> PTX void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

#endif
