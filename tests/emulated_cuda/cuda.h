/* The part of the CUDA driver that cuda/tensor_map.cu uses: tensor maps.  hopper.cpp has the bodies. */
#ifndef EMULATED_CUDA_H
#define EMULATED_CUDA_H

#include "tests/emulated_cuda/cuda_runtime.h"

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT8 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct alignas(64) CUtensorMap {
    const unsigned char *data;
    uint64_t bytes, rows, pitch;
    uint32_t box;
    unsigned char rest[128 - 4 * 8 - 4];
};
static_assert(sizeof(CUtensorMap) == 128, "as on the GPU");

#endif
