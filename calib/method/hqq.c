/* HQQ (Badri and Shaji 2023): zero points from the weights alone (host/hqq.h), then every weight to its nearest code.  Needs no
 * calibration, and stands in for other methods where a linear has no data. */
#include "calib/method/method.h"
#include "host/mat.h"

ql_status method_hqq(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    const ql_grid_rule rule = {.half_quadratic = 1};
    record->method = method_names[METHOD_HQQ];
    phases_enter(p->phases, PHASE_GRID, 0);
    QL_TRY(ql_grid_search(p->ctx, p->w, ql_no_mat(), &rule, grid));
    return ql_quantize(p->ctx, p->w, grid, codes);
}
