/* Scale and zero point of every group (CPU): the candidates of host/grid.h, compared by squared error weighted with the importance of
 * each column; the first best wins.  One row per thread at a time; a group's columns are gathered first, so that groups of any
 * shape (act-order) take the same path. */
#include <math.h>
#include <omp.h>

#include "host/grid.h"
#include "host/mat.h"
#include "host/mem.h"
#include "host/ops.h"

/* Columns by group: group g owns column[start[g]] .. column[start[g + 1] - 1]. */
typedef struct groups {
    int64_t count, largest;
    int64_t *start;
    int32_t *column;
} groups;

static int64_t group_of(const ql_grid *grid, int64_t column) {
    return ql_is_present(grid->g_idx) ? ((const int32_t *)grid->g_idx.data)[column] : column / grid->group;
}

static ql_status sort_columns(const ql_grid *grid, int64_t k, ql_arena *arena, groups *out) {
    *out = (groups){.count = ql_groups(k, grid->group)};
    QL_TRY(ql_take(arena, (size_t)out->count + 2, sizeof *out->start, &out->start));
    QL_TRY(ql_take(arena, (size_t)k, sizeof *out->column, &out->column));
    int64_t *next = out->start + 1; /* counts, then the next free place of each group: ends as start shifted by one */
    for (int64_t c = 0; c < k; c++) next[group_of(grid, c) + 1]++;
    for (int64_t g = 0; g < out->count; g++) {
        if (next[g + 1] > out->largest) out->largest = next[g + 1];
        next[g + 1] += next[g];
    }
    for (int64_t c = 0; c < k; c++) out->column[next[group_of(grid, c)]++] = (int32_t)c;
    return QL_OK;
}

static double squared_error(const float *w, const float *importance, int64_t size, ql_group_grid grid, int maxq) {
    float sum = 0, zero = (float)grid.zero, lowest = -zero, highest = (float)maxq - zero;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) {
        float q = rintf(w[i] / grid.scale);
        q = q < lowest ? lowest : q > highest ? highest : q;
        float e = w[i] - grid.scale * q;
        sum += importance[i] * e * e;
    }
    return sum;
}

static ql_group_grid best_grid(const float *w, const float *importance, int64_t size, int bits,
                               const ql_grid_rule *rule) {
    ql_range range = ql_range_start();
    for (int64_t i = 0; i < size; i++) range = ql_range_add(range, w[i]);
    int count = ql_grid_candidates(range, bits, rule->symmetric, rule->search);
    ql_group_grid best = ql_grid_candidate(range, bits, rule->symmetric, rule->search, 0);
    if (count == 1) return best;
    double least = INFINITY;
    for (int i = 0; i < count; i++) {
        ql_group_grid grid = ql_grid_candidate(range, bits, rule->symmetric, rule->search, i);
        double error = squared_error(w, importance, size, grid, (1 << bits) - 1);
        if (error < least) least = error, best = grid;
    }
    return best;
}

static ql_group_grid literature_grid(const float *w, int64_t size, int bits, int symmetric) {
    ql_range range = ql_range_start();
    for (int64_t i = 0; i < size; i++) range = ql_range_add(range, w[i]);
    ql_literature_grid grid = ql_grid_literature(range.lo, range.hi, bits, symmetric);
    return (ql_group_grid){(float)grid.scale, grid.zero};
}

static void search_row(ql_mat w, int64_t row, const float *importance, const groups *all, const ql_grid_rule *rule,
                       ql_grid *grid, float *work) {
    const float *from = (const float *)w.data + row * w.ld;
    float *values = work, *weights = work + all->largest;
    for (int64_t g = 0; g < all->count; g++) {
        const int32_t *column = all->column + all->start[g];
        int64_t size = all->start[g + 1] - all->start[g];
        for (int64_t i = 0; i < size; i++) {
            values[i] = from[column[i]];
            weights[i] = importance ? importance[column[i]] : 1.0f;
        }
        ql_group_grid best = rule->literature ? literature_grid(values, size, grid->bits, rule->symmetric)
                                              : best_grid(values, weights, size, grid->bits, rule);
        ((float *)grid->scale.data)[row * grid->scale.ld + g] = best.scale;
        ((uint8_t *)grid->zero.data)[row * grid->zero.ld + g] = (uint8_t)best.zero;
    }
}

static ql_status check_scales(const ql_grid *grid) {
    for (int64_t r = 0; r < grid->scale.rows; r++)
        for (int64_t g = 0; g < grid->scale.cols; g++) {
            float scale = ((const float *)grid->scale.data)[r * grid->scale.ld + g];
            if (!(scale <= 65504.0f))
                return ql_fail(QL_NUMERIC, "row %lld, group %lld: its weights need a scale beyond FP16's 65504",
                               (long long)r, (long long)g);
        }
    return QL_OK;
}

ql_status ql_cpu_grid_search(ql_ctx *ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid) {
    ql_arena *arena;
    groups all;
    float *work = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = sort_columns(grid, w.cols, arena, &all);
    if (status == QL_OK) status = ql_take(arena, (size_t)(2 * all.largest * ctx->threads), sizeof *work, &work);
    if (status == QL_OK) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
        for (int64_t r = 0; r < w.rows; r++)
            search_row(w, r, importance.data, &all, rule, grid, work + 2 * all.largest * omp_get_thread_num());
        status = check_scales(grid);
    }
    ql_arena_close(arena);
    return status;
}
