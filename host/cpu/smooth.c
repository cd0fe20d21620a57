/* Moving the difficulty between activations and weights: scaling by rows and columns, magnitudes of columns, clipping.
 *
 * The loss of a clipped group is measured where it arises, in the group's own outputs: e^T H_gg e with the diagonal block of H,
 * which is what the squared error over all calibration rows sums up to, without keeping any of them. */
#include <omp.h>

#include "host/cpu/groups.h"
#include "host/grid.h"
#include "host/ops.h"
#include "host/status.h"

static const float *vector_of(ql_mat v) { return v.data; }

ql_status ql_cpu_scale(ql_ctx *ctx, ql_mat x, ql_mat rows, ql_mat cols, ql_mat y) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++) {
        const float *from = (const float *)x.data + r * x.ld, *by = vector_of(cols);
        float *to = (float *)y.data + r * y.ld, factor = ql_is_present(rows) ? vector_of(rows)[r] : 1.0f;
        if (by)
            for (int64_t c = 0; c < x.cols; c++) to[c] = factor * from[c] * by[c];
        else
            for (int64_t c = 0; c < x.cols; c++) to[c] = factor * from[c];
    }
    return QL_OK;
}

/* ---- magnitudes: every thread owns some columns and walks all rows, so that sums have one order ------------------------ */

static float largest_of(const float *w, int64_t count) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
    return largest;
}

static void group_magnitude(ql_mat w, int64_t first, int64_t count, float *max, double *sum) {
    for (int64_t i = 0; i < count; i++) max[i] = 0, sum[i] = 0;
    for (int64_t r = 0; r < w.rows; r++) {
        const float *row = (const float *)w.data + r * w.ld + first;
        float largest = largest_of(row, count);
        for (int64_t i = 0; i < count; i++) {
            max[i] = fabsf(row[i]) > max[i] ? fabsf(row[i]) : max[i];
            sum[i] += ql_relative_magnitude(row[i], largest);
        }
    }
}

ql_status ql_cpu_magnitude(ql_ctx *ctx, ql_mat w, int64_t group, ql_mat max, ql_mat mean) {
    double *sum = ql_malloc((size_t)w.cols * sizeof *sum);
    if (!sum) return ql_fail(QL_NOMEM, "magnitude: no memory for %lld sums", (long long)w.cols);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t first = 0; first < w.cols; first += group) {
        int64_t count = w.cols - first < group ? w.cols - first : group;
        group_magnitude(w, first, count, (float *)max.data + first, sum + first);
        for (int64_t i = first; i < first + count; i++) ((float *)mean.data)[i] = (float)(sum[i] / (double)w.rows);
    }
    ql_mfree(sum);
    return QL_OK;
}

/* ---- clipping ----------------------------------------------------------------------------------------------------------- */

/* One group of columns and its block of H, both triangles, padded with zeros to whole vectors. */
typedef struct clip_group {
    int64_t first, count, padded;
    float *h;      /* [count][padded] */
    float *errors; /* [threads][padded] */
} clip_group;

static void load_block(clip_group *g, ql_mat h) {
    for (int64_t a = 0; a < g->count; a++)
        for (int64_t b = 0; b < g->padded; b++) {
            int64_t row = g->first + (a < b ? a : b), col = g->first + (a < b ? b : a);
            g->h[a * g->padded + b] = b < g->count ? ((const float *)h.data)[row * h.ld + col] : 0.0f;
        }
}

/* e^T H e, lane by lane as host/grid.h says; e is padded with zeros. */
static float quadratic(const clip_group *g, const float *restrict e) {
    float sum[QL_LANES] = {0};
    for (int64_t a = 0; a < g->count; a++) {
        float row[QL_LANES] = {0};
        for (int64_t b = 0; b < g->padded; b += QL_LANES)
            for (int l = 0; l < QL_LANES; l++) row[l] += e[a] * (g->h[a * g->padded + b + l] * e[b + l]);
        for (int l = 0; l < QL_LANES; l++) sum[l] += row[l];
    }
    for (int half = QL_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

static ql_step best_clip(const clip_group *g, const float *w, ql_grid_rule rule, int maxq, float *e) {
    ql_range range = {0, 0};
    ql_step best = {0, 0}, step;
    float least = INFINITY;
    for (int64_t i = 0; i < g->count; i++) {
        range.lo = w[i] < range.lo ? w[i] : range.lo;
        range.hi = w[i] > range.hi ? w[i] : range.hi;
    }
    for (int i = 0; i < 2 * QL_CLIP_SHARES; i++) {
        if (!ql_grid_candidate(rule, ql_clip_range(range, i / 2), maxq, i % 2, &step)) continue;
        for (int64_t c = 0; c < g->count; c++) e[c] = ql_grid_error(w[c], step, maxq);
        float loss = quadratic(g, e);
        if (loss < least || i == 0) least = loss, best = step;
    }
    return best;
}

/* The first row whose scale FP16 cannot hold, or the number of rows. */
static int64_t clip_rows(ql_ctx *ctx, const clip_group *g, ql_mat w, ql_grid_rule rule, int64_t index, ql_grid *grid) {
    int64_t bad = w.rows;
#pragma omp parallel for schedule(static) num_threads(ctx->threads) reduction(min : bad)
    for (int64_t r = 0; r < w.rows; r++) {
        float *errors = g->errors + omp_get_thread_num() * g->padded;
        const float *row = (const float *)w.data + r * w.ld + g->first;
        ql_step step = best_clip(g, row, rule, (1 << grid->bits) - 1, errors);
        ((float *)grid->scale.data)[r * grid->scale.ld + index] = step.scale;
        ((uint8_t *)grid->zero.data)[r * grid->zero.ld + index] = (uint8_t)step.zero;
        if (!isfinite(step.scale) && r < bad) bad = r;
    }
    return bad;
}

static ql_status clip_groups(ql_ctx *ctx, ql_mat w, ql_mat h, ql_grid_rule rule, ql_grid *grid, ql_arena *scratch) {
    int64_t size = grid->group < w.cols ? grid->group : w.cols, padded = ql_ceil_div(size, QL_LANES) * QL_LANES;
    clip_group g = {.padded = padded};
    QL_TRY(ql_take(scratch, (size_t)(size * padded), sizeof *g.h, &g.h));
    QL_TRY(ql_take(scratch, (size_t)(ctx->threads * padded), sizeof *g.errors, &g.errors));
    for (int64_t i = 0; i * grid->group < w.cols; i++) {
        g.first = i * grid->group;
        g.count = w.cols - g.first < size ? w.cols - g.first : size;
        memset(g.errors, 0, (size_t)(ctx->threads * padded) * sizeof *g.errors); /* a last group may be shorter */
        load_block(&g, h);
        int64_t bad = clip_rows(ctx, &g, w, rule, i, grid);
        if (bad < w.rows)
            return ql_fail(QL_NUMERIC, "clip_search: the weights of row %lld, group %lld need a scale beyond FP16",
                           (long long)bad, (long long)i);
    }
    return QL_OK;
}

ql_status ql_cpu_clip_search(ql_ctx *ctx, ql_mat w, ql_mat h, const ql_grid_rule *rule, ql_grid *grid) {
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = clip_groups(ctx, w, h, *rule, grid, scratch);
    ql_arena_close(scratch);
    return status;
}
