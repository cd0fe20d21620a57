/* Scale and zero point of every group.   w [n][k], importance [1][k], scale [n][G], zero [n][G]
 *
 * Rows are shared by the threads.  The columns of a row are first gathered group by group, each group padded to whole vectors
 * with weights of importance 0, so that everything after that is a loop over contiguous numbers without a remainder.
 */
#include <omp.h>

#include "host/cpu/groups.h"
#include "host/hqq.h"
#include "host/ops.h"

/* The gathered order: positions start[g] .. start[g+1]-1 hold the columns of group g and their padding, column -1. */
typedef struct layout {
    int64_t groups, size;
    int64_t *start;    /* [groups + 1] */
    int32_t *column;   /* [size] */
    float *importance; /* [size] */
} layout;

static ql_status make_layout(const ql_grid *grid, ql_mat importance, int64_t k, ql_arena *scratch, layout *l) {
    l->groups = ql_groups(k, grid->group);
    int64_t *fill;
    QL_TRY(ql_take(scratch, (size_t)l->groups + 1, sizeof *l->start, &l->start));
    QL_TRY(ql_take(scratch, (size_t)l->groups, sizeof *fill, &fill));
    for (int64_t i = 0; i < k; i++) l->start[ql_group_of(grid, i) + 1]++;
    for (int64_t g = 0; g < l->groups; g++) {
        fill[g] = l->start[g];
        l->start[g + 1] = l->start[g] + ql_ceil_div(l->start[g + 1], QL_LANES) * QL_LANES;
    }
    l->size = l->start[l->groups];
    QL_TRY(ql_take(scratch, (size_t)l->size, sizeof *l->column, &l->column));
    QL_TRY(ql_take(scratch, (size_t)l->size, sizeof *l->importance, &l->importance));
    for (int64_t p = 0; p < l->size; p++) l->column[p] = -1;
    for (int64_t i = 0; i < k; i++) {
        int64_t p = fill[ql_group_of(grid, i)]++;
        l->column[p] = (int32_t)i;
        l->importance[p] = ql_is_present(importance) ? ((const float *)importance.data)[i] : 1.0f;
    }
    return QL_OK;
}

static void gather(const layout *l, const float *w, float *row) {
    for (int64_t p = 0; p < l->size; p++) row[p] = l->column[p] < 0 ? 0.0f : w[l->column[p]];
}

static ql_range range_of(const float *w, int64_t count) {
    ql_range range = {0, 0};
    for (int64_t i = 0; i < count; i++) {
        range.lo = w[i] < range.lo ? w[i] : range.lo;
        range.hi = w[i] > range.hi ? w[i] : range.hi;
    }
    return range;
}

static float tree(float sum[QL_LANES]) {
    for (int half = QL_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

/* The order of the sum is that of host/grid.h; count is a multiple of QL_LANES. */
static float cost_of(const float *restrict w, const float *restrict importance, int64_t count, ql_step step, int maxq) {
    float sum[QL_LANES] = {0};
    for (int64_t i = 0; i < count; i += QL_LANES)
        for (int l = 0; l < QL_LANES; l++) sum[l] += ql_grid_cost(w[i + l], importance[i + l], step, maxq);
    return tree(sum);
}

static ql_step best_step(ql_grid_rule rule, const float *w, const float *importance, int64_t count, int maxq) {
    ql_range range = range_of(w, count);
    ql_step best = {0, 0}, step;
    float least = INFINITY;
    for (int i = 0; i < ql_grid_candidates(rule); i++) {
        if (!ql_grid_candidate(rule, range, maxq, i, &step)) continue;
        float cost = cost_of(w, importance, count, step, maxq);
        if (cost < least || i == 0) least = cost, best = step;
    }
    return best;
}

/* ---- HQQ: mask is 1 for weights and 0 for padding ---------------------------------------------------------------------- */

static ql_hqq_sums iterate(const float *restrict w, const float *restrict mask, int64_t count, const ql_hqq *state,
                           int maxq) {
    float error[QL_LANES] = {0}, zero[QL_LANES] = {0};
    const ql_hqq now = *state; /* a copy that nobody writes to */
    for (int64_t i = 0; i < count; i += QL_LANES)
        for (int l = 0; l < QL_LANES; l++) {
            ql_hqq_sums term = ql_hqq_term(w[i + l], &now, maxq);
            error[l] += mask[i + l] * term.error;
            zero[l] += mask[i + l] * term.zero;
        }
    return (ql_hqq_sums){tree(error), tree(zero)};
}

static ql_step fitted_step(const float *restrict w, const float *restrict mask, int64_t count, ql_step step,
                           float least, int maxq) {
    ql_step best = step;
    for (int round = 0; round < QL_HQQ_FITS; round++) {
        float product[QL_LANES] = {0}, square[QL_LANES] = {0};
        for (int64_t i = 0; i < count; i += QL_LANES)
            for (int l = 0; l < QL_LANES; l++) {
                ql_hqq_fit term = ql_hqq_fit_term(w[i + l], best, maxq);
                product[l] += mask[i + l] * term.product;
                square[l] += mask[i + l] * term.square;
            }
        if (!ql_hqq_fitted((ql_hqq_fit){tree(product), tree(square)}, &step)) return best;
        float cost = cost_of(w, mask, count, step, maxq);
        if (!(cost < least)) return best;
        least = cost, best = step;
    }
    return best;
}

static ql_step half_quadratic_step(ql_grid_rule rule, const float *w, const float *mask, int64_t count, int maxq) {
    ql_range range = range_of(w, count);
    ql_step best = {0, 0}, step;
    float least = INFINITY, members = 0;
    for (int64_t i = 0; i < count; i++) members += mask[i];
    for (int i = 0; i < 2 * QL_HQQ_SHARES; i++) {
        if (!ql_grid_candidate(rule, range, maxq, i / 2 * 2 * QL_HQQ_STRIDE + i % 2, &step)) continue;
        if (i == 0 && (members == 0.0f || !isfinite(step.scale))) return step;
        ql_hqq state = ql_hqq_begin(step);
        for (int more = 1, tried = 0;;) {
            step.zero = ql_hqq_zero(&state, maxq);
            float cost = step.zero == tried ? INFINITY : cost_of(w, mask, count, step, maxq);
            if (cost < least) least = cost, best = step;
            if (!more) break;
            tried = step.zero;
            more = ql_hqq_advance(&state, iterate(w, mask, count, &state, maxq), members);
        }
    }
    return fitted_step(w, mask, count, best, least, maxq);
}

static ql_step literature_step(ql_grid_rule rule, const float *w, int64_t count, int maxq) {
    ql_range range = range_of(w, count);
    ql_step step;
    step.scale = (float)ql_literature_step(range.lo, range.hi, rule.symmetric, maxq, &step.zero);
    return step;
}

/* The number of the first group whose scale is too large, -1 if all are right. */
static int64_t search_row(const layout *l, ql_grid_rule rule, const float *w, int maxq, float *scale, uint8_t *zero) {
    for (int64_t g = 0; g < l->groups; g++) {
        int64_t first = l->start[g], count = l->start[g + 1] - first;
        const float *importance = l->importance + first;
        ql_step step = rule.literature       ? literature_step(rule, w + first, count, maxq)
                       : rule.half_quadratic ? half_quadratic_step(rule, w + first, importance, count, maxq)
                                             : best_step(rule, w + first, importance, count, maxq);
        if (!isfinite(step.scale)) return g;
        scale[g] = step.scale;
        zero[g] = (uint8_t)step.zero;
    }
    return -1;
}

static ql_status search(ql_ctx *ctx, ql_mat w, ql_mat importance, ql_grid_rule rule, ql_grid *grid, ql_arena *scratch) {
    layout l;
    float *rows;
    int64_t bad = INT64_MAX;
    QL_TRY(make_layout(grid, importance, w.cols, scratch, &l));
    QL_TRY(ql_take(scratch, (size_t)(l.size * ctx->threads), sizeof *rows, &rows));
#pragma omp parallel for schedule(static) num_threads(ctx->threads) reduction(min : bad)
    for (int64_t r = 0; r < w.rows; r++) {
        float *row = rows + omp_get_thread_num() * l.size;
        gather(&l, (const float *)w.data + r * w.ld, row);
        int64_t group = search_row(&l, rule, row, (1 << grid->bits) - 1, (float *)grid->scale.data + r * grid->scale.ld,
                                   (uint8_t *)grid->zero.data + r * grid->zero.ld);
        if (group >= 0 && r * l.groups + group < bad) bad = r * l.groups + group;
    }
    if (bad == INT64_MAX) return QL_OK;
    return ql_fail(QL_NUMERIC, "grid_search: the weights of row %lld, group %lld need a scale beyond FP16",
                   (long long)(bad / l.groups), (long long)(bad % l.groups));
}

ql_status ql_cpu_grid_search(ql_ctx *ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid) {
    ql_arena *scratch;
    QL_TRY(ql_cpu_check_groups("grid_search", grid, w.cols));
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = search(ctx, w, importance, *rule, grid, scratch);
    ql_arena_close(scratch);
    return status;
}
