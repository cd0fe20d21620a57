/* Coordinate descent on the codes and scales of a quantized weight (CPU).  Minimizes, row by row,
 *
 *   f(q) = (q - w) H' (q - w)^T,   H' = H + shift I,   gradient / 2:  G = (q - w) H'
 *
 * Given all others, the best value of one weight is q_j - G_j / H'_jj, rounded to its grid; the best scale of one group of codes c
 * is a one-dimensional least squares.  Both only need the gradient, which stays exact by rank-one updates: inside a block of
 * columns at once, for all other columns by one matrix product at the end of the block.  Rows are independent: threads share
 * panels of rows of fixed height.
 *
 * Source: the cyclic descent of QuantEase (Behdin et al. 2023), with the scales as further coordinates. */
#include <omp.h>
#include <string.h>

#include "host/cpu/blas.h"
#include "host/cpu/groups.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/num.h"
#include "host/ops.h"

enum { PANEL = 32, BLOCK = 128 };

typedef struct problem {
    const float *w, *h; /* [n][k], H' [k][k], both triangles */
    int64_t k, ldw;
    const ql_grid *grid;
    uint8_t *codes;
    int64_t ld_codes;
    int maxq;
} problem;

/* One thread's panel. */
typedef struct panel {
    float *gradient, *delta; /* [PANEL][k], [PANEL][BLOCK] */
} panel;

static float *scale_at(const problem *p, int64_t row, int64_t group) {
    return (float *)p->grid->scale.data + row * p->grid->scale.ld + group;
}

static int zero_at(const problem *p, int64_t row, int64_t group) {
    return ((const uint8_t *)p->grid->zero.data)[row * p->grid->zero.ld + group];
}

/* c[rows][cols] += a[rows][depth] b[depth][cols], row-major. */
static void multiply_add(int64_t rows, int64_t cols, int64_t depth, const float *a, int64_t lda, const float *b,
                         int64_t ldb, float *c, int64_t ldc) {
    const int m = (int)cols, n = (int)rows, k = (int)depth, la = (int)ldb, lb = (int)lda, lc = (int)ldc;
    const float one = 1;
    sgemm_("N", "N", &m, &n, &k, &one, b, &la, a, &lb, &one, c, &lc);
}

static void start_gradient(const problem *p, int64_t first, int64_t rows, panel *t) {
    memset(t->gradient, 0, (size_t)(rows * p->k) * sizeof *t->gradient);
    for (int64_t begin = 0; begin < p->k; begin += BLOCK) {
        int64_t width = p->k - begin < BLOCK ? p->k - begin : BLOCK;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < width; j++) {
                int64_t row = first + r, column = begin + j, g = ql_group_of(p->grid, column);
                int code = p->codes[row * p->ld_codes + column];
                t->delta[r * BLOCK + j] =
                    ql_decode(code, *scale_at(p, row, g), zero_at(p, row, g)) - p->w[row * p->ldw + column];
            }
        multiply_add(rows, p->k, width, t->delta, BLOCK, p->h + begin * p->k, p->k, t->gradient, p->k);
    }
}

/* gradient += step * H'[column][begin ..] */
static void move(const problem *p, int64_t begin, int64_t width, int64_t column, float step, float *gradient) {
    const float *h = p->h + column * p->k + begin;
    for (int64_t i = 0; i < width; i++) gradient[i] += step * h[i];
}

/* The scale of one group inside the block: s + d with d = -(G c) / (c H' c), rounded to FP16, if that lowers f. */
static bool fit_scale(const problem *p, int64_t row, int64_t begin, int64_t width, int64_t at, int64_t size,
                      float *gradient, float *delta) {
    float image[BLOCK] = {0}, *scale = scale_at(p, row, (begin + at) / p->grid->group);
    int zero = zero_at(p, row, (begin + at) / p->grid->group);
    const uint8_t *codes = p->codes + row * p->ld_codes + begin;
    double curvature = 0, slope = 0;
    for (int64_t j = at; j < at + size; j++)
        if (codes[j] != zero) move(p, begin, width, begin + j, (float)(codes[j] - zero), image);
    for (int64_t j = at; j < at + size; j++) {
        curvature += (double)image[j] * (codes[j] - zero);
        slope += (double)gradient[j] * (codes[j] - zero);
    }
    if (!(curvature > 0)) return false;
    float fitted = ql_round_f16((float)(*scale - slope / curvature)), step = fitted - *scale;
    if (!(fitted > 0.0f) || !(fitted <= 65504.0f) || !(step * (2 * slope + step * curvature) < 0)) return false;
    *scale = fitted;
    for (int64_t j = at; j < at + size; j++) delta[j] += step * (float)(codes[j] - zero);
    for (int64_t i = 0; i < width; i++) gradient[i] += step * image[i];
    return true;
}

static bool move_codes(const problem *p, int64_t row, int64_t begin, int64_t width, float *gradient, float *delta) {
    bool moved = false;
    uint8_t *codes = p->codes + row * p->ld_codes + begin;
    for (int64_t j = 0; j < width; j++) {
        int64_t g = ql_group_of(p->grid, begin + j);
        float scale = *scale_at(p, row, g), curvature = p->h[(begin + j) * p->k + begin + j];
        int zero = zero_at(p, row, g);
        if (!(curvature > 0)) continue;
        int code = ql_encode(ql_decode(codes[j], scale, zero) - gradient[j] / curvature, scale, zero, p->maxq);
        if (code == codes[j]) continue;
        float step = scale * (float)(code - codes[j]);
        codes[j] = (uint8_t)code;
        delta[j] += step;
        move(p, begin, width, begin + j, step, gradient);
        moved = true;
    }
    return moved;
}

static bool sweep_block(const problem *p, int64_t first, int64_t rows, int64_t begin, int64_t width, panel *t) {
    bool changed = false;
    int64_t group = p->grid->group;
    bool whole_groups = !ql_is_present(p->grid->g_idx) && BLOCK % group == 0;
    memset(t->delta, 0, sizeof(float) * PANEL * BLOCK);
    for (int64_t r = 0; r < rows; r++) {
        float gradient[BLOCK], *delta = t->delta + r * BLOCK;
        memcpy(gradient, t->gradient + r * p->k + begin, (size_t)width * sizeof(float));
        for (int64_t at = 0; whole_groups && at < width; at += group)
            changed |=
                fit_scale(p, first + r, begin, width, at, width - at < group ? width - at : group, gradient, delta);
        changed |= move_codes(p, first + r, begin, width, gradient, delta);
    }
    if (changed) multiply_add(rows, p->k, width, t->delta, BLOCK, p->h + begin * p->k, p->k, t->gradient, p->k);
    return changed;
}

static void refine_panel(const problem *p, int64_t first, int64_t rows, int sweeps, panel *t) {
    bool changed = true;
    start_gradient(p, first, rows, t);
    for (int sweep = 0; sweep < sweeps && changed; sweep++) {
        changed = false;
        for (int64_t begin = 0; begin < p->k; begin += BLOCK)
            changed |= sweep_block(p, first, rows, begin, p->k - begin < BLOCK ? p->k - begin : BLOCK, t);
    }
}

/* H' with both triangles. */
static void mirror(const ql_ctx *ctx, ql_mat h, float shift, float *full) {
    const float *upper = h.data;
    int64_t k = h.rows;
#pragma omp parallel for schedule(dynamic, 16) num_threads(ctx->threads)
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < i; j++) full[i * k + j] = upper[j * h.ld + i];
        memcpy(full + i * k + i, upper + i * h.ld + i, (size_t)(k - i) * sizeof *full);
        full[i * k + i] += shift;
    }
}

ql_status ql_cpu_refine(ql_ctx *ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes) {
    int64_t n = w.rows, k = w.cols, per_thread = PANEL * (k + BLOCK);
    QL_TRY(ql_cpu_check_groups("refine", grid, k));
    float *full = ql_malloc((size_t)(k * k) * sizeof *full);
    float *buffers = ql_malloc((size_t)(per_thread * ctx->threads) * sizeof *buffers);
    ql_status status = full && buffers
                           ? QL_OK
                           : ql_fail(QL_NOMEM, "refine: no memory for %lld x %lld values", (long long)k, (long long)k);
    if (status == QL_OK) {
        mirror(ctx, h, (float)shift, full);
        const problem p = {w.data, full, k, w.ld, grid, codes.data, codes.ld, (1 << grid->bits) - 1};
#pragma omp parallel for schedule(dynamic) num_threads(ctx->threads)
        for (int64_t first = 0; first < n; first += PANEL) {
            float *mine = buffers + per_thread * omp_get_thread_num();
            panel t = {mine, mine + PANEL * k};
            refine_panel(&p, first, n - first < PANEL ? n - first : PANEL, sweeps, &t);
        }
    }
    ql_mfree(full);
    ql_mfree(buffers);
    return status;
}
