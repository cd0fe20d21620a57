/* Tensor maps: what TMA wants to know of a matrix.  The encoder is a function of the driver; the runtime finds it, so that no program
 * needs libcuda to start. */
#include "cuda/device.cuh"
#include "cuda/operand.cuh"

typedef CUresult (*encode_function)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                    const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                    CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static ql_status find_encoder(encode_function *encode) {
    static encode_function found; /* the same for every thread and device */
    cudaDriverEntryPointQueryResult result;
    void *entry = (void *)__atomic_load_n(&found, __ATOMIC_ACQUIRE);
    if (!entry) {
        CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result));
        if (result != cudaDriverEntryPointSuccess)
            return ql_fail(QL_DEVICE, "the driver has no cuTensorMapEncodeTiled, CUDA 12.0 and later have");
        __atomic_store_n(&found, (encode_function)entry, __ATOMIC_RELEASE);
    }
    *encode = (encode_function)entry;
    return QL_OK;
}

ql_status ql_cuda_tensor_map(CUtensorMap *map, const void *data, int64_t rows, int64_t bytes, int64_t pitch, int box) {
    encode_function encode = NULL;
    QL_TRY(find_encoder(&encode));
    const cuuint64_t sizes[2] = {(cuuint64_t)bytes, (cuuint64_t)rows}, strides[1] = {(cuuint64_t)pitch};
    const cuuint32_t boxes[2] = {128, (cuuint32_t)box}, steps[2] = {1, 1};
    CUresult error = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, sizes, strides, boxes, steps,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (error == CUDA_SUCCESS) return QL_OK;
    return ql_fail(QL_INTERNAL, "cuTensorMapEncodeTiled: error %d for %lld x %lld bytes, %lld from row to row",
                   (int)error, (long long)rows, (long long)bytes, (long long)pitch);
}
