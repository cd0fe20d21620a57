/* GPTQ as its authors published it: Frantar et al. 2022 and their code, in double with true divisions throughout.
 *
 *   dead columns: H[d][d] = 1, W[:, d] = 0;  H += 0.01 mean(diag H) I;  U = upper Cholesky factor of H^-1
 *   for each column i of a block of 128:  q = round;  err = (w - q) / U[i][i];  w[i ..] -= err U[i][i ..]
 *   behind the block:  W -= Err U[block][behind]
 *
 * U comes without an inverse of H: with H = R R^T, R upper triangular (the Cholesky factor of the index-reversed matrix),
 * H^-1 = R^-T R^-1, so U = R^-1, one triangular inverse.  Groups are found when their first column is reached, from W as the
 * previous blocks left it: inside a block of 128 that is stale for groups of 32 and 64, and it is what the original does.
 */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "host/cpu/blas.h"
#include "host/grid.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/ops.h"

enum { BLOCK = 128, PANEL = 64 };

typedef struct problem {
    int64_t n, k, group, groups;
    int bits, symmetric, threads;
    bool fixed;                /* all grids are known before the loop */
    bool in_order_of_position; /* groups are runs of positions (dynamic), not of columns */
    double *diagonal;          /* [k] of H, in the order of its columns, dead ones 1 */
    bool *dead;                /* [k] */
    int32_t *order;            /* [k] position -> column */
    double *w;                 /* [n][k], columns by position */
    double *u;                 /* [k][k] upper */
    double *scale;             /* [n][groups] */
    ql_grid *grid;
    ql_mat codes;
} problem;

/* ---- order and factor -------------------------------------------------------------------------------------------------- */

typedef struct ranked {
    double value;
    int32_t column;
} ranked;

/* Equal values keep their order. */
static int by_descending_value(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return x->column < y->column ? -1 : 1;
}

static ql_status choose_order(problem *p, ql_act_order kind, ql_arena *arena) {
    ranked *columns;
    QL_TRY(ql_take(arena, (size_t)p->k, sizeof *columns, &columns));
    for (int64_t i = 0; i < p->k; i++) columns[i] = (ranked){p->diagonal[i], (int32_t)i};
    if (kind != QL_ORDER_NONE) qsort(columns, (size_t)p->k, sizeof *columns, by_descending_value);
    for (int64_t i = 0; i < p->k; i++) p->order[i] = columns[i].column;
    return QL_OK;
}

static void load_diagonal(problem *p, ql_mat h, double factor) {
    for (int64_t i = 0; i < p->k; i++) {
        double value = factor * ((const double *)h.data)[i * h.ld + i];
        p->dead[i] = value == 0;
        p->diagonal[i] = p->dead[i] ? 1 : value;
    }
}

/* The damped Hessian with rows and columns from the last position to the first: its lower triangle into u. */
static void load_reversed(problem *p, ql_mat h, double factor) {
    int64_t k = p->k;
    double mean = 0;
    for (int64_t i = 0; i < k; i++) mean += p->diagonal[i];
    mean /= (double)k;
#pragma omp parallel for schedule(dynamic, 16) num_threads(p->threads)
    for (int64_t i = 0; i < k; i++) {
        int64_t a = p->order[k - 1 - i];
        for (int64_t j = 0; j < i; j++) {
            int64_t b = p->order[k - 1 - j];
            p->u[i * k + j] = factor * ((const double *)h.data)[a < b ? a * h.ld + b : b * h.ld + a];
        }
        p->u[i * k + i] = p->diagonal[a] + 0.01 * mean;
    }
}

/* u = R^-1.  The row-major lower triangle is LAPACK's upper one, V^T V, so V^T is the ordinary Cholesky factor of the reversed
 * matrix; read backwards as one flat array it is R. */
static ql_status factor(problem *p) {
    int64_t k = p->k;
    const int n = (int)k;
    int info;
    dpotrf_("U", &n, p->u, &n, &info);
    for (int64_t i = 0; info == 0 && i < k; i++)
        if (!(p->u[i * k + i] > 0) || !isfinite(p->u[i * k + i])) info = (int)i + 1;
    if (info != 0)
        return ql_fail(QL_NUMERIC, "gptq_literature: the damped Hessian is not positive definite at column %d",
                       (int)p->order[k - info]);
    for (int64_t i = 0; i < k * k / 2; i++) {
        double kept = p->u[i];
        p->u[i] = p->u[k * k - 1 - i];
        p->u[k * k - 1 - i] = kept;
    }
    dtrtri_("L", "N", &n, p->u, &n, &info); /* the row-major upper triangle is LAPACK's lower one */
    return info == 0 ? QL_OK : ql_fail(QL_NUMERIC, "gptq_literature: the factor is singular at position %d", info - 1);
}

/* ---- grids ------------------------------------------------------------------------------------------------------------- */

static void set_grid(problem *p, int64_t row, int64_t group, const double *w, int64_t stride, int64_t size) {
    double lo = 0, hi = 0;
    for (int64_t i = 0; i < size; i++) {
        lo = fmin(lo, w[i * stride]);
        hi = fmax(hi, w[i * stride]);
    }
    int zero;
    double scale = ql_literature_step(lo, hi, p->symmetric, (1 << p->bits) - 1, &zero);
    p->scale[row * p->groups + group] = scale;
    ((float *)p->grid->scale.data)[row * p->grid->scale.ld + group] = (float)scale;
    ((uint8_t *)p->grid->zero.data)[row * p->grid->zero.ld + group] = (uint8_t)zero;
}

/* Before the loop, from a row in the order of its columns: one grid for all of it, or one per group of neighbours. */
static void set_all_grids(problem *p, int64_t row, const double *w) {
    for (int64_t g = 0; g < p->groups; g++) {
        int64_t first = g * p->group;
        set_grid(p, row, g, w + first, 1, p->k - first < p->group ? p->k - first : p->group);
    }
}

/* Row by row into the order of the positions.  With one group per row its grid comes from the weights before dead columns are
 * zeroed, otherwise from those after it. */
static void load_weights(problem *p, ql_mat w, double *row) {
    for (int64_t r = 0; r < p->n; r++) {
        for (int64_t c = 0; c < p->k; c++) row[c] = ((const float *)w.data)[r * w.ld + c];
        if (p->fixed && p->groups == 1) set_all_grids(p, r, row);
        for (int64_t c = 0; c < p->k; c++)
            if (p->dead[c]) row[c] = 0;
        if (p->fixed && p->groups > 1) set_all_grids(p, r, row);
        for (int64_t i = 0; i < p->k; i++) p->w[r * p->k + i] = row[p->order[i]];
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------- */

static int64_t group_at(const problem *p, int64_t position) {
    return (p->in_order_of_position ? position : p->order[position]) / p->group;
}

/* One row through one block; error[BLOCK] is what the columns behind will be corrected by. */
static void solve_row(problem *p, int64_t row, int64_t begin, int64_t width, double *error) {
    double current[BLOCK];
    const double *outer = p->w + row * p->k;
    int maxq = (1 << p->bits) - 1;
    memcpy(current, outer + begin, (size_t)width * sizeof *current);
    for (int64_t i = 0; i < width; i++) {
        int64_t at = begin + i, g = group_at(p, at);
        const double *u = p->u + at * p->k + begin;
        if (!p->fixed && at % p->group == 0)
            set_grid(p, row, g, outer + at, 1, p->k - at < p->group ? p->k - at : p->group);
        double scale = p->scale[row * p->groups + g];
        int zero = ((const uint8_t *)p->grid->zero.data)[row * p->grid->zero.ld + g];
        int code = ql_literature_encode(current[i], scale, zero, maxq);
        ((uint8_t *)p->codes.data)[row * p->codes.ld + p->order[at]] = (uint8_t)code;
        error[i] = (current[i] - scale * (code - zero)) / u[i];
        for (int64_t j = i; j < width; j++) current[j] -= error[i] * u[j];
    }
}

/* w[:, behind] -= error u[block][behind], row-major. */
static void update_behind(problem *p, int64_t first, int64_t rows, int64_t begin, int64_t width, const double *error) {
    int64_t behind = begin + width;
    const int m = (int)(p->k - behind), n = (int)rows, depth = (int)width, ld = (int)p->k, lde = BLOCK;
    const double minus = -1, one = 1;
    if (m > 0)
        dgemm_("N", "N", &m, &n, &depth, &minus, p->u + begin * p->k + behind, &ld, error, &lde, &one,
               p->w + first * p->k + behind, &ld);
}

static void solve_panel(problem *p, int64_t first, int64_t rows) {
    double error[PANEL * BLOCK];
    for (int64_t begin = 0; begin < p->k; begin += BLOCK) {
        int64_t width = p->k - begin < BLOCK ? p->k - begin : BLOCK;
        for (int64_t r = 0; r < rows; r++) solve_row(p, first + r, begin, width, error + r * BLOCK);
        update_behind(p, first, rows, begin, width, error);
    }
}

static ql_status prepare(problem *p, ql_mat w, ql_mat h, double factor_of_h, ql_act_order kind, ql_arena *arena) {
    double *row;
    size_t k = (size_t)p->k;
    QL_TRY(ql_take(arena, k, sizeof *p->diagonal, &p->diagonal));
    QL_TRY(ql_take(arena, k, sizeof *p->dead, &p->dead));
    QL_TRY(ql_take(arena, k, sizeof *p->order, &p->order));
    QL_TRY(ql_take(arena, k, sizeof *row, &row));
    QL_TRY(ql_take(arena, k * k, sizeof *p->u, &p->u));
    QL_TRY(ql_take(arena, (size_t)p->n * k, sizeof *p->w, &p->w));
    QL_TRY(ql_take(arena, (size_t)(p->n * p->groups), sizeof *p->scale, &p->scale));
    load_diagonal(p, h, factor_of_h);
    QL_TRY(choose_order(p, kind, arena));
    load_weights(p, w, row);
    load_reversed(p, h, factor_of_h);
    return factor(p);
}

ql_status ql_cpu_gptq_literature(ql_ctx *ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order,
                                 ql_grid *grid, ql_mat codes) {
    ql_arena *arena;
    problem p = {
        .n = w.rows,
        .k = w.cols,
        .group = grid->group,
        .groups = ql_groups(w.cols, grid->group),
        .bits = grid->bits,
        .symmetric = symmetric,
        .threads = ctx->threads,
        .fixed = order == QL_ORDER_STATIC || grid->group >= w.cols,
        .in_order_of_position = order == QL_ORDER_DYNAMIC,
        .grid = grid,
        .codes = codes,
    };
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = prepare(&p, w, h, scale, order, arena);
    if (status == QL_OK) {
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
        for (int64_t first = 0; first < p.n; first += PANEL)
            solve_panel(&p, first, p.n - first < PANEL ? p.n - first : PANEL);
        for (int64_t i = 0; ql_is_present(grid->g_idx) && i < p.k; i++)
            ((int32_t *)grid->g_idx.data)[p.order[i]] = (int32_t)group_at(&p, i);
    }
    ql_arena_close(arena);
    return status;
}
