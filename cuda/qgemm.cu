/* Products with a quantized weight.   y[m][n] = x[m][k] W[n][k]^T + bias[n],  W = scale (q - zero), q packed in `bits` bits
 *
 * As many rows of W as fit into TILE_BYTES are expanded to FP32 in scratch, multiplied through cuBLASLt, and the next rows take
 * their place; the whole W never exists.  The expansion reads the packed stream once per call: next to nothing for many tokens,
 * most of the time for one token, where a kernel that multiplies in registers belongs (the kernel suite's work).
 * Twin: host/cpu/qgemm.c. */
#include "cuda/device.cuh"

#include "host/index.h"

enum { THREADS = 256 };
static const int64_t TILE_BYTES = 64 << 20; /* a tile wide enough for a full product, small beside a layer */

static __global__ void expand_kernel(ql_qweight w, int64_t first, ql_mat tile) {
    int64_t row = first + blockIdx.x;
    const int32_t *words = row_of<int32_t>(w.codes, row);
    const float *scale = row_of<float>(w.grid.scale, row);
    const uint8_t *zero = row_of<uint8_t>(w.grid.zero, row);
    float *to = row_of<float>(tile, blockIdx.x);
    for (int64_t j = threadIdx.x; j < tile.cols; j += THREADS) {
        int64_t g = group_of(&w.grid, j);
        to[j] = ql_decode(ql_stream_code(words, w.grid.bits, j), scale[g], zero[g]);
    }
}

/* Rows of one tile, a multiple of 128 where it can be so that the products have whole tiles themselves. */
static int64_t tile_rows(int64_t n, int64_t k) {
    int64_t rows = TILE_BYTES / (k * (int64_t)sizeof(float)) / 128 * 128;
    if (rows < 128) rows = 128;
    return rows < n ? rows : n;
}

ql_status ql_cuda_qgemm(ql_ctx *ctx, ql_mat x, const ql_qweight *w, ql_mat bias, ql_mat y) {
    ql_cuda *gpu;
    float *scratch;
    int64_t step = tile_rows(w->n, w->k);
    QL_TRY(ql_cuda_use(ctx, &gpu));
    QL_TRY(ql_cuda_check_groups(gpu, "qgemm", &w->grid, w->k));
    QL_TRY(ql_cuda_scratch(gpu, (size_t)(step * w->k) * sizeof *scratch, (void **)&scratch));
    for (int64_t first = 0; first < w->n; first += step) {
        int64_t rows = w->n - first < step ? w->n - first : step;
        ql_mat tile = ql_mat_of(scratch, QL_F32, rows, w->k);
        LAUNCH(gpu, expand_kernel, rows, THREADS, *w, first, tile);
        ql_mat some_bias = ql_is_present(bias) ? ql_cols(bias, first, rows) : bias;
        QL_TRY(ql_cuda_gemm(ctx, x, tile, some_bias, ql_cols(y, first, rows)));
    }
    return QL_OK;
}
