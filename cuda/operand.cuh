/* How the operands of a warpgroup's product lie in shared memory, and how its sums lie in registers: the same text on the GPU and
 * in tests/emulated_cuda, which decodes what is built here.
 *
 * D[64][N] (+)= A[64][K] B[N][K]^T with 32 bytes of K.  Tiles lie on multiples of 1024 bytes in rows of 128 bytes, the 16-byte chunk
 * c of row r at place c ^ (r % 8): what TMA calls the 128-byte swizzle.
 *   swizzled_rows      a row of the tile is a row of A or B with 128 bytes of K; the product reads bytes k .. k + 31 of each,
 *                      k = 0, 32, 64, 96
 *   swizzled_columns   16-bit types: a row of the tile holds 64 neighbours along M or N for one k; `stride` bytes later come the
 *                      next 64.  Kinds that end in T read both operands so
 * Thread t of the warpgroup, w = t / 32, g = t % 32 / 4, q = t % 4, holds
 *   rows 16 w + g and 16 w + g + 8, columns 8 j + 2 q and + 1, in d[4 j], d[4 j + 1] and in d[4 j + 2], d[4 j + 3]. */
#ifndef CUDA_OPERAND_CUH
#define CUDA_OPERAND_CUH

#include <cuda.h> /* CUtensorMap; nothing is linked from libcuda */

#include "cuda/ptx.cuh"
#include "host/qalib.h"

enum wgmma_kind {
    E4M3_E4M3,
    E4M3_E5M2,
    E5M2_E4M3,
    E5M2_E5M2,
    S8_S8,
    S8_U8,
    BF16_BF16,
    F16_F16,
    BF16_BF16_T,
    F16_F16_T
};

/* Address, leading and stride byte offset in units of 16 bytes; 1 in the upper two bits: the 128-byte swizzle. */
PTX uint64_t wgmma_operand(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)1 << 62 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 |
           (address & 0x3ffff) >> 4;
}

/* Eight rows are 1024 bytes; the leading offset is not used. */
PTX uint64_t swizzled_rows(const void *tile, int k) { return wgmma_operand(ptx_shared(tile) + (uint32_t)k, 16, 1024); }

PTX uint64_t swizzled_columns(const void *tile, uint32_t stride) {
    return wgmma_operand(ptx_shared(tile), stride, 1024);
}

/* A row-major matrix of bytes in global memory, read by tensor_load in boxes of 128 bytes x `box` rows; row and base are multiples of
 * 16 bytes.  Host; cuda/tensor_map.cu. */
ql_status ql_cuda_tensor_map(CUtensorMap *map, const void *data, int64_t rows, int64_t bytes, int64_t pitch, int box);

#endif
