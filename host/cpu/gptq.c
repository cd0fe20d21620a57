/* GPTQ on fixed grids.   w [n][k], r [k][k] upper triangular, codes [n][k]
 *
 * With P H P^T = R R^T in the order of the columns and e = w - dequantized, the loss of a row is |e R|^2, and
 *
 *   (e R)_p = R[p][p] e_p + sum_p,   sum_p = sum_{p' < p} e_p' R[p'][p]
 *
 * is smallest, given the columns before, when w_p + sum_p / R[p][p] is rounded: the same as the original recursion through the
 * Cholesky factor of H^-1, without an inverse.
 *
 * Positions are solved by halves: the left half, then sum += e[left] R[left][right], one matrix product, then the right half.  So
 * nearly all work is in large products, whatever k.  The smallest pieces go column by column.  Rows are independent: threads share
 * panels of rows of fixed height, so the bits do not depend on their number.  A panel lies transposed, and loops run over its rows.
 */
#include <omp.h>
#include <string.h>

#include "host/cpu/blas.h"
#include "host/cpu/groups.h"
#include "host/num.h"
#include "host/ops.h"

/* PANEL: products reach their speed, and 1024 rows still feed 8 threads.  LEAF: below, a product costs more than the loop.  Measured:
 * perf/LOG.md, "solver". */
enum { PANEL = 128, LEAF = 16 };

typedef struct problem {
    ql_mat w, r, order, codes;
    const ql_grid *grid;
} problem;

/* One thread's rows, transposed. */
typedef struct panel {
    int64_t first, rows;
    float (*sum)[PANEL];    /* [k] by position: sum_p, and once position p is rounded, e_p */
    float (*scale)[PANEL];  /* [G] */
    int32_t (*zero)[PANEL]; /* [G] */
    float (*w)[PANEL];      /* [LEAF] */
    uint8_t (*codes)[PANEL];
} panel;

static size_t panel_bytes(int64_t k, int64_t groups) {
    return (size_t)((k + 2 * groups + LEAF) * PANEL) * sizeof(float) + LEAF * PANEL;
}

/* Rows that the last panel does not have are zeros on a grid of scale 1: they stay zero and are not stored. */
static panel open_panel(const problem *p, int64_t first, void *memory) {
    int64_t k = p->w.cols, groups = ql_groups(k, p->grid->group);
    panel t = {first, p->w.rows - first < PANEL ? p->w.rows - first : PANEL, memory, NULL, NULL, NULL, NULL};
    t.scale = t.sum + k, t.zero = (void *)(t.scale + groups), t.w = (void *)(t.zero + groups),
    t.codes = (void *)(t.w + LEAF);
    memset(t.sum, 0, (size_t)k * sizeof *t.sum);
    memset(t.w, 0, LEAF * sizeof *t.w);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < PANEL; i++) {
            int64_t row = first + i;
            t.scale[g][i] = i < t.rows ? ((const float *)p->grid->scale.data)[row * p->grid->scale.ld + g] : 1.0f;
            t.zero[g][i] = i < t.rows ? ((const uint8_t *)p->grid->zero.data)[row * p->grid->zero.ld + g] : 0;
        }
    return t;
}

static void load_weights(const problem *p, panel *t, int64_t begin, int64_t width) {
    for (int64_t i = 0; i < t->rows; i++) {
        const float *row = (const float *)p->w.data + (t->first + i) * p->w.ld;
        for (int64_t j = 0; j < width; j++) t->w[j][i] = row[ql_column_at(p->order, begin + j)];
    }
}

static void store_codes(const problem *p, const panel *t, int64_t begin, int64_t width) {
    for (int64_t i = 0; i < t->rows; i++) {
        uint8_t *row = (uint8_t *)p->codes.data + (t->first + i) * p->codes.ld;
        for (int64_t j = 0; j < width; j++) row[ql_column_at(p->order, begin + j)] = t->codes[j][i];
    }
}

/* One column of the panel: its sums become its errors. */
static void round_column(const float *restrict w, const float *restrict scale, const int32_t *restrict zero,
                         float pivot, int maxq, float *restrict sum, uint8_t *restrict codes) {
    for (int i = 0; i < PANEL; i++) codes[i] = (uint8_t)ql_encode(w[i] + sum[i] / pivot, scale[i], zero[i], maxq);
    for (int i = 0; i < PANEL; i++) sum[i] = w[i] - ql_decode(codes[i], scale[i], zero[i]);
}

static void feed_back(const float *restrict error, float r, float *restrict sum) {
    for (int i = 0; i < PANEL; i++) sum[i] = fmaf(error[i], r, sum[i]);
}

static void solve_leaf(const problem *p, panel *t, int64_t begin, int64_t width) {
    float(*sum)[PANEL] = t->sum + begin;
    load_weights(p, t, begin, width);
    for (int64_t j = 0; j < width; j++) {
        const float *r = (const float *)p->r.data + (begin + j) * p->r.ld + begin;
        int64_t group = ql_group_of(p->grid, ql_column_at(p->order, begin + j));
        round_column(t->w[j], t->scale[group], t->zero[group], r[j], (1 << p->grid->bits) - 1, sum[j], t->codes[j]);
        for (int64_t later = j + 1; later < width; later++) feed_back(sum[j], r[later], sum[later]);
    }
    store_codes(p, t, begin, width);
}

/* sum[right] += e[left] R[left][right]; row-major, transposed: sum [right][PANEL] += R^T [right][left] e [left][PANEL]. */
static void multiply_halves(const problem *p, panel *t, int64_t begin, int64_t left, int64_t right) {
    const int rows = PANEL, cols = (int)right, depth = (int)left, ldr = (int)p->r.ld;
    const float one = 1, *r = (const float *)p->r.data + begin * p->r.ld + begin + left;
    sgemm_("N", "T", &rows, &cols, &depth, &one, t->sum[begin], &rows, r, &ldr, &one, t->sum[begin + left], &rows);
}

static void solve(const problem *p, panel *t, int64_t begin, int64_t width) {
    if (width <= LEAF) {
        solve_leaf(p, t, begin, width);
        return;
    }
    int64_t left = ql_ceil_div(ql_ceil_div(width, LEAF), 2) * LEAF, right = width - left;
    solve(p, t, begin, left);
    multiply_halves(p, t, begin, left, right);
    solve(p, t, begin + left, right);
}

static ql_status solve_rows(ql_ctx *ctx, const problem *p, ql_arena *scratch) {
    int64_t k = p->w.cols;
    size_t bytes = panel_bytes(k, ql_groups(k, p->grid->group));
    char *memory;
    QL_TRY(ql_cpu_check_groups("gptq", p->grid, k));
    QL_TRY(ql_cpu_check_order("gptq", p->order, k, scratch));
    QL_TRY(ql_take(scratch, (size_t)ctx->threads, bytes, &memory));
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
    for (int64_t first = 0; first < p->w.rows; first += PANEL) {
        panel t = open_panel(p, first, memory + bytes * (size_t)omp_get_thread_num());
        solve(p, &t, 0, k);
    }
    return QL_OK;
}

ql_status ql_cpu_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes) {
    const problem p = {w, r, order, codes, grid};
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = solve_rows(ctx, &p, scratch);
    ql_arena_close(scratch);
    return status;
}
