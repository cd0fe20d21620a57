/* Round to nearest: the grid of each group from its weights alone (or weighted by importance where there is data, or clipped where
 * that loses least on the data), then every weight to its nearest code.  Needs no calibration; the baseline and the fallback of
 * everything else. */
#include "calib/method/method.h"
#include "host/mat.h"

ql_status method_rtn(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    const ql_grid_rule rule = {
        .symmetric = p->recipe->symmetric,
        .search = p->recipe->scale_search != SEARCH_OFF,
        .literature = p->recipe->literature,
    };
    record->method = method_names[METHOD_RTN];
    phases_enter(p->phases, PHASE_GRID, 0);
    if (p->recipe->clip && ql_is_present(p->h) && !ql_is_present(grid->g_idx)) {
        const ql_grid_rule plain = {.symmetric = rule.symmetric};
        QL_TRY(ql_clip_search(p->ctx, p->w, p->h, &plain, grid));
    } else {
        QL_TRY(ql_grid_search(p->ctx, p->w, p->importance, &rule, grid));
    }
    return ql_quantize(p->ctx, p->w, grid, codes);
}
