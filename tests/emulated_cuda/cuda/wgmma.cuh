/* cuda/wgmma.cuh in C++; the include path chooses.  hopper.cpp does what the PTX ISA says, from the descriptors that
 * cuda/operand.cuh builds.
 *
 * Stricter than the machine where that finds mistakes: a product runs in the wait that needs it, so that a stage refilled too early
 * and a sum read too early give wrong numbers; registers of a left operand that change before it are reported; a box arrives only in the wait of its barrier. */
#ifndef CUDA_WGMMA_CUH
#define CUDA_WGMMA_CUH

#include "cuda/operand.cuh"

#define HOPPER 1

static inline void wgmma_fence() {}
static inline void wgmma_commit() { emulated_commit_products(); }
template <int PENDING> static inline void wgmma_wait() { emulated_wait_products(PENDING); }
template <int PENDING, typename T, int COUNT> static inline void wgmma_wait(T (&)[COUNT]) {
    emulated_wait_products(PENDING);
}
template <wgmma_kind KIND, typename T, int COUNT>
static inline void wgmma(T (&d)[COUNT], uint64_t a, uint64_t b, bool add) {
    static_assert((KIND == S8_S8 || KIND == S8_U8) == ((T)0.5f == (T)0), "integers give integers");
    emulated_product(KIND, d, COUNT * 2, a, b, add);
}
template <wgmma_kind KIND, typename T, int COUNT>
static inline void wgmma(T (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, bool add) {
    static_assert(KIND == BF16_BF16 || KIND == F16_F16 || KIND == S8_S8, "these come from registers here");
    static_assert((KIND == S8_S8) == ((T)0.5f == (T)0), "integers give integers");
    emulated_product_held(KIND, d, COUNT * 2, a, b, add);
}

static inline void tensor_load(void *tile, const CUtensorMap *map, int byte, int row, uint64_t *barrier) {
    emulated_tensor_load(tile, map, byte, row, barrier);
}
template <int> static inline void registers_shrink() {}
template <int> static inline void registers_grow() {}

#endif
