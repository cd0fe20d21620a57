/* Round to nearest: the grid of each group from its weights alone (or weighted by importance where there is data), then every
 * weight to its nearest code.  Needs no calibration; the baseline and the fallback of everything else. */
#include "calib/method/method.h"

ql_status method_rtn(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    const ql_grid_rule rule = {
        .symmetric = p->recipe->symmetric,
        .search = p->recipe->scale_search,
        .literature = p->recipe->literature,
    };
    record->method = method_names[METHOD_RTN];
    phases_enter(p->phases, PHASE_GRID, 0);
    QL_TRY(ql_grid_search(p->ctx, p->w, p->importance, &rule, grid));
    return ql_quantize(p->ctx, p->w, grid, codes);
}
