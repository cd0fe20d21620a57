/* NF4 and back.   w [n][k] F32, absmax [1][B] F32, codes [n][k] U8; B blocks of 64 weights, row by row, across the ends of rows. */
#include "host/nf4.h"
#include "host/mat.h"
#include "host/ops.h"

static const float *weight_at(ql_mat w, int64_t i) { return (const float *)w.data + i / w.cols * w.ld + i % w.cols; }
static uint8_t *code_at(ql_mat codes, int64_t i) {
    return (uint8_t *)codes.data + i / codes.cols * codes.ld + i % codes.cols;
}

ql_status ql_cpu_nf4_quantize(ql_ctx *ctx, ql_mat w, ql_mat absmax, ql_mat codes) {
    int64_t count = w.rows * w.cols;
    float *largest = absmax.data;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t block = 0; block < absmax.cols; block++) {
        int64_t first = block * QL_NF4_BLOCK, end = ql_at_most(first + QL_NF4_BLOCK, count);
        float most = 0;
        for (int64_t i = first; i < end; i++) most = fmaxf(most, fabsf(*weight_at(w, i)));
        for (int64_t i = first; i < end; i++) *code_at(codes, i) = (uint8_t)ql_nf4_code(*weight_at(w, i), most);
        largest[block] = most;
    }
    return QL_OK;
}

ql_status ql_cpu_nf4_dequantize(ql_ctx *ctx, ql_mat codes, ql_mat absmax, ql_mat w) {
    const float *largest = absmax.data;
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++) {
        const uint8_t *from = (const uint8_t *)codes.data + r * codes.ld;
        float *to = (float *)w.data + r * w.ld;
        for (int64_t c = 0; c < w.cols; c++)
            to[c] = ql_nf4_value(from[c] & 15) * largest[(r * w.cols + c) / QL_NF4_BLOCK];
    }
    return QL_OK;
}
