/* GPTQ on fixed grids (CPU).  With H' = R R^T in the order of the columns and e = w - dequantized, the loss is |e R|^2, and
 *
 *   (e R)_p = R[p][p] e_p + sum_{p' < p} e_p' R[p'][p]
 *
 * is smallest, given the columns before, when w_p plus that sum over R[p][p] is rounded: the same as the original recursion
 * through the Cholesky factor of H^-1, without an inverse.  Columns go in blocks of 128: what all earlier blocks contribute is one
 * matrix product, inside a block column follows column.  Rows are independent: threads share panels of fixed height, transposed
 * inside a block so that the inner loops run over rows. */
#include <omp.h>

#include "host/cpu/blas.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/num.h"
#include "host/ops.h"

enum { PANEL = 64, BLOCK = 128 };

typedef struct problem {
    ql_mat w, r, codes;
    const int32_t *order;
    const ql_grid *grid;
} problem;

/* One thread's buffers. */
typedef struct panel {
    float *error;                           /* [PANEL][k], in the order of the positions */
    float *early;                           /* [PANEL][BLOCK]: what earlier blocks contribute */
    float (*sum)[PANEL], (*error_t)[PANEL]; /* [BLOCK][PANEL] */
} panel;

static int64_t column_at(const problem *p, int64_t position) { return p->order ? p->order[position] : position; }

static int64_t group_of(const problem *p, int64_t column) {
    return ql_is_present(p->grid->g_idx) ? ((const int32_t *)p->grid->g_idx.data)[column] : column / p->grid->group;
}

/* early = error[:, 0 .. begin) R[0 .. begin, begin .. begin + width) */
static void sum_earlier_blocks(const problem *p, int64_t rows, int64_t begin, int64_t width, panel *t) {
    const int m = (int)width, n = (int)rows, k = (int)begin, ldr = (int)p->r.ld, lde = (int)p->w.cols, ldo = BLOCK;
    const float one = 1, zero = 0;
    sgemm_("N", "N", &m, &n, &k, &one, (const float *)p->r.data + begin, &ldr, t->error, &lde, &zero, t->early, &ldo);
    for (int64_t j = 0; j < width; j++)
        for (int64_t i = 0; i < rows; i++) t->sum[j][i] = begin ? t->early[i * BLOCK + j] : 0.0f;
}

/* Rounds one column for all rows of the panel; e goes to error_t. */
static void round_column(const problem *p, int64_t first, int64_t rows, int64_t column, float pivot, const float *sum,
                         float *e) {
    int64_t g = group_of(p, column);
    int maxq = (1 << p->grid->bits) - 1;
    const float *w = (const float *)p->w.data + first * p->w.ld + column;
    const float *scale = (const float *)p->grid->scale.data + first * p->grid->scale.ld + g;
    const uint8_t *zero = (const uint8_t *)p->grid->zero.data + first * p->grid->zero.ld + g;
    uint8_t *codes = (uint8_t *)p->codes.data + first * p->codes.ld + column;
    for (int64_t i = 0; i < rows; i++) {
        float s = scale[i * p->grid->scale.ld], value = w[i * p->w.ld];
        int z = zero[i * p->grid->zero.ld], code = ql_encode(value + sum[i] / pivot, s, z, maxq);
        codes[i * p->codes.ld] = (uint8_t)code;
        e[i] = value - ql_decode(code, s, z);
    }
}

static void solve_block(const problem *p, int64_t first, int64_t rows, int64_t begin, int64_t width, panel *t) {
    for (int64_t j = 0; j < width; j++) {
        const float *r = (const float *)p->r.data + (begin + j) * p->r.ld + begin;
        float *e = t->error_t[j];
        round_column(p, first, rows, column_at(p, begin + j), r[j], t->sum[j], e);
        for (int64_t later = j + 1; later < width; later++)
            for (int64_t i = 0; i < rows; i++) t->sum[later][i] += e[i] * r[later];
    }
    for (int64_t j = 0; j < width; j++)
        for (int64_t i = 0; i < rows; i++) t->error[i * p->w.cols + begin + j] = t->error_t[j][i];
}

static void solve_panel(const problem *p, int64_t first, int64_t rows, panel *t) {
    for (int64_t begin = 0; begin < p->w.cols; begin += BLOCK) {
        int64_t width = p->w.cols - begin < BLOCK ? p->w.cols - begin : BLOCK;
        sum_earlier_blocks(p, rows, begin, width, t);
        solve_block(p, first, rows, begin, width, t);
    }
}

ql_status ql_cpu_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes) {
    const problem p = {w, r, codes, order.data, grid};
    size_t per_thread = PANEL * ((size_t)w.cols + 3 * BLOCK);
    float *buffers = ql_malloc(per_thread * (size_t)ctx->threads * sizeof *buffers);
    if (!buffers)
        return ql_fail(QL_NOMEM, "gptq: no memory for %d panels of %lld columns", ctx->threads, (long long)w.cols);
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t first = 0; first < w.rows; first += PANEL) {
        float *mine = buffers + per_thread * (size_t)omp_get_thread_num();
        panel t = {mine + 3 * PANEL * BLOCK, mine, (float(*)[PANEL])(mine + PANEL * BLOCK),
                   (float(*)[PANEL])(mine + 2 * PANEL * BLOCK)};
        solve_panel(&p, first, w.rows - first < PANEL ? w.rows - first : PANEL, &t);
    }
    ql_mfree(buffers);
    return QL_OK;
}
