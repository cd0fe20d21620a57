/* Codes, one per byte, to packed streams and back.   codes [n][k] U8, words [n][ceil(k * bits / 32)] I32
 * A code of 2^bits or more would damage its neighbours: it is found before anything is written.
 */
#include "host/cpu/stream.h"
#include "host/mat.h"
#include "host/ops.h"
#include "host/status.h"

static ql_status check_codes(ql_ctx *ctx, ql_mat codes, int bits) {
    int64_t first = INT64_MAX;
#pragma omp parallel for schedule(static) num_threads(ctx->threads) reduction(min : first)
    for (int64_t r = 0; r < codes.rows; r++) {
        const uint8_t *row = (const uint8_t *)codes.data + r * codes.ld;
        uint8_t all = 0;
        for (int64_t i = 0; i < codes.cols; i++) all |= row[i];
        if (all >> bits == 0) continue;
        int64_t i = 0;
        while (row[i] >> bits == 0) i++;
        if (r * codes.cols + i < first) first = r * codes.cols + i;
    }
    if (first == INT64_MAX) return QL_OK;
    return ql_fail(QL_INVALID, "pack: the code of row %lld, column %lld is not below 2^%d",
                   (long long)(first / codes.cols), (long long)(first % codes.cols), bits);
}

ql_status ql_cpu_pack(ql_ctx *ctx, ql_mat codes, int bits, ql_mat words) {
    QL_TRY(check_codes(ctx, codes, bits));
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < codes.rows; r++) {
        int32_t *row = (int32_t *)words.data + r * words.ld;
        row[words.cols - 1] = 0; /* the padding */
        ql_pack_row((const uint8_t *)codes.data + r * codes.ld, bits, codes.cols, row);
    }
    return QL_OK;
}

ql_status ql_cpu_unpack(ql_ctx *ctx, ql_mat words, int bits, ql_mat codes) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < codes.rows; r++)
        ql_unpack_row((const int32_t *)words.data + r * words.ld, bits, codes.cols,
                      (uint8_t *)codes.data + r * codes.ld);
    return QL_OK;
}
