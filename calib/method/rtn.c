/* Round to nearest: the grid of each group from its weights alone (or weighted by importance where there is data, or clipped where
 * that loses least on the data or a calibrator says so), then every weight to its nearest code.  Needs no calibration; the baseline
 * and the fallback of everything else. */
#include "calib/method/method.h"
#include "calib/range.h"
#include "host/mat.h"

/* The grid of what a calibrator leaves of the weights; those beyond it get the outermost codes. */
static ql_status grid_of_clipped(linear_problem *p, const ql_grid_rule *plain, ql_grid *grid) {
    ql_mat clipped;
    ql_mark mark = ql_arena_mark(p->device);
    QL_TRY(ql_arena_mat(p->device, QL_F32, p->n, p->k, &clipped));
    QL_TRY(ql_convert(p->ctx, p->w, clipped));
    float *host = ql_malloc(ql_mat_bytes(clipped));
    if (!host) return ql_fail(QL_NOMEM, "no memory for %lld x %lld weights", (long long)p->n, (long long)p->k);
    ql_status status = ql_download(p->ctx, host, clipped.data, ql_mat_bytes(clipped));
    if (status == QL_OK) status = range_clip(p->recipe, grid->bits, grid->group, p->n, p->k, host);
    if (status == QL_OK) status = ql_upload(p->ctx, clipped.data, host, ql_mat_bytes(clipped));
    if (status == QL_OK) status = ql_grid_search(p->ctx, clipped, ql_no_mat(), plain, grid);
    ql_mfree(host);
    ql_arena_release(p->device, mark);
    return status;
}

ql_status method_rtn(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    const ql_grid_rule rule = {
        .symmetric = p->recipe->symmetric,
        .search = p->recipe->scale_search != SEARCH_OFF,
        .literature = p->recipe->literature,
    };
    record->method = method_names[METHOD_RTN];
    phases_enter(p->phases, PHASE_GRID, 0);
    const ql_grid_rule plain = {.symmetric = rule.symmetric};
    if (recipe_clips_groups(p->recipe)) {
        QL_TRY(grid_of_clipped(p, &plain, grid));
    } else if (p->recipe->clip && ql_is_present(p->h) && !ql_is_present(grid->g_idx)) {
        QL_TRY(ql_clip_search(p->ctx, p->w, p->h, &plain, grid));
    } else {
        QL_TRY(ql_grid_search(p->ctx, p->w, p->importance, &rule, grid));
    }
    return ql_quantize(p->ctx, p->w, grid, codes);
}
