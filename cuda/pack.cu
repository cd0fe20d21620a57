/* Codes, one per byte, to packed streams and back.   codes [n][k] U8, words [n][ceil(k * bits / 32)] I32
 *
 * One block per row; packing has one thread per word, which collects the codes that reach into it, so no two threads write one
 * word, whatever the bit width.  A code of 2^bits or more would damage its neighbours: it is found before anything is written.
 * Twin: host/cpu/pack.c. */
#include "cuda/device.cuh"

#include "host/index.h"

enum { THREADS = 256 };

static __global__ void check_kernel(ql_mat codes, int bits, unsigned long long *first) {
    const uint8_t *row = row_of<uint8_t>(codes, blockIdx.x);
    for (int64_t j = threadIdx.x; j < codes.cols; j += THREADS)
        if (row[j] >> bits) {
            atomicMin(first, (unsigned long long)(blockIdx.x * codes.cols + j));
            return;
        }
}

static __global__ void pack_kernel(ql_mat codes, int bits, ql_mat words) {
    const uint8_t *from = row_of<uint8_t>(codes, blockIdx.x);
    int32_t *to = row_of<int32_t>(words, blockIdx.x);
    for (int64_t word = threadIdx.x; word < words.cols; word += THREADS)
        to[word] = ql_stream_word(from, codes.cols, bits, word);
}

static ql_status check_codes(ql_ctx *ctx, ql_cuda *gpu, ql_mat codes, int bits) {
    unsigned long long *first;
    int64_t index;
    QL_TRY(ql_cuda_scratch(gpu, sizeof *first, (void **)&first));
    CUDA_TRY(cudaMemsetAsync(first, 0xff, sizeof *first, gpu->stream));
    LAUNCH(gpu, check_kernel, codes.rows, THREADS, codes, bits, first);
    QL_TRY(ql_cuda_download(ctx, &index, first, sizeof index));
    if (index < 0) return QL_OK;
    return ql_fail(QL_INVALID, "pack: the code of row %lld, column %lld is not below 2^%d",
                   (long long)(index / codes.cols), (long long)(index % codes.cols), bits);
}

ql_status ql_cuda_pack(ql_ctx *ctx, ql_mat codes, int bits, ql_mat words) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(check_codes(ctx, gpu, codes, bits));
    LAUNCH(gpu, pack_kernel, words.rows, THREADS, codes, bits, words);
    return QL_OK;
}

static __global__ void unpack_kernel(ql_mat words, int bits, ql_mat codes) {
    const int32_t *from = row_of<int32_t>(words, blockIdx.x);
    uint8_t *to = row_of<uint8_t>(codes, blockIdx.x);
    for (int64_t j = threadIdx.x; j < codes.cols; j += THREADS) to[j] = (uint8_t)ql_stream_code(from, bits, j);
}

ql_status ql_cuda_unpack(ql_ctx *ctx, ql_mat words, int bits, ql_mat codes) {
    ql_cuda *gpu;
    QL_TRY(ql_cuda_use(ctx, &gpu));
    LAUNCH(gpu, unpack_kernel, codes.rows, THREADS, words, bits, codes);
    return QL_OK;
}
