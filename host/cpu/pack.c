/* Codes, one per byte, to the bit stream of ql_qweight and back (CPU): code i of a row occupies bits [i * bits, (i + 1) * bits).
 * Rows start at word borders, so threads never share a word. */
#include <string.h>

#include "host/mat.h"
#include "host/ops.h"
#include "host/status.h"

static void pack_row(const uint8_t *codes, int64_t k, int bits, uint32_t *words) {
    uint64_t buffer = 0; /* the low `filled` bits wait to become a word */
    int filled = 0;
    for (int64_t i = 0; i < k; i++) {
        buffer |= (uint64_t)codes[i] << filled;
        filled += bits;
        if (filled < 32) continue;
        *words++ = (uint32_t)buffer;
        buffer >>= 32;
        filled -= 32;
    }
    if (filled) *words = (uint32_t)buffer;
}

static void unpack_row(const uint32_t *words, int64_t k, int bits, uint8_t *codes) {
    uint64_t buffer = 0, mask = (1u << bits) - 1;
    int filled = 0;
    for (int64_t i = 0; i < k; i++) {
        if (filled < bits) {
            buffer |= (uint64_t)*words++ << filled;
            filled += 32;
        }
        codes[i] = (uint8_t)(buffer & mask);
        buffer >>= bits;
        filled -= bits;
    }
}

/* A code that needs more bits would be ORed into its neighbours: plausible and wrong. */
static ql_status check_codes(const ql_ctx *ctx, ql_mat codes, int bits) {
    int64_t bad = -1;
#pragma omp parallel for schedule(static) reduction(max : bad) num_threads(ctx->threads)
    for (int64_t r = 0; r < codes.rows; r++) {
        const uint8_t *row = (const uint8_t *)codes.data + r * codes.ld;
        for (int64_t c = 0; c < codes.cols; c++)
            if (row[c] >> bits) bad = r * codes.cols + c;
    }
    if (bad < 0) return QL_OK;
    int64_t r = bad / codes.cols, c = bad % codes.cols;
    return ql_fail(QL_INVALID, "pack: code %d at row %lld, column %lld does not fit into %d bits",
                   ((const uint8_t *)codes.data)[r * codes.ld + c], (long long)r, (long long)c, bits);
}

ql_status ql_cpu_pack(ql_ctx *ctx, ql_mat codes, int bits, ql_mat words) {
    if (bits < 8) QL_TRY(check_codes(ctx, codes, bits));
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < codes.rows; r++)
        pack_row((const uint8_t *)codes.data + r * codes.ld, codes.cols, bits, (uint32_t *)words.data + r * words.ld);
    return QL_OK;
}

ql_status ql_cpu_unpack(ql_ctx *ctx, ql_mat words, int bits, ql_mat codes) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < codes.rows; r++)
        unpack_row((const uint32_t *)words.data + r * words.ld, codes.cols, bits, (uint8_t *)codes.data + r * codes.ld);
    return QL_OK;
}
