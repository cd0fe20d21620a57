/* GPTQ (Frantar et al. 2022): round column after column, each time feeding the error back into the columns that follow, weighted by
 * the inputs' covariance.  Ours differs from the literature in four places:
 *
 *   factor   the grids are fixed before the loop, so the triangular factor of H itself serves and no inverse is formed
 *   target   earlier layers have already changed the input: x instead of the original x0.  With d = W (x0 - x), or for o and down
 *            what the residual stream lacks behind the layer, the weights are drawn towards the least-squares answer,
 *            T = W + a (S d x^T) (H + damp)^-1.  a < 1, because the answer is fitted to the calibration rows.
 *            After GPTAQ (Li et al. 2025), with the drift of the whole residual stream.
 *   grid     searched with the squared error weighted by the diagonal of H
 *   refine   coordinate descent over codes and scales afterwards
 *
 * H + damp * mean(diag) * I must be positive definite.  When it is not, damping climbs a ladder; the last rung failing means that the
 * data say nothing, and the caller rounds to nearest. */
#include "calib/method/method.h"
#include "calib/ranks.h"
#include "host/mat.h"

static const double ladder[] = {0.01, 0.02, 0.05, 0.1, 0.2, 0.5};

static ql_status climb_ladder(const linear_problem *p, ql_mat r, double *damp) {
    ql_status status = QL_NUMERIC;
    double n = (double)p->k;
    for (size_t i = 0; i <= sizeof ladder / sizeof ladder[0] && status == QL_NUMERIC; i++) {
        double rung = i == 0 ? p->recipe->damp : ladder[i - 1];
        if (i > 0 && rung <= *damp) continue;
        *damp = rung;
        phases_enter(p->phases, PHASE_FACTOR, n * n * n / 3);
        status = ql_factor(p->ctx, p->h, p->order, rung * p->mean_diagonal, r);
    }
    return status;
}

/* Its owner factors H for all ranks; that it cannot be factored is an answer too. */
static ql_status compute_factor(const linear_problem *p, shared_factor *f) {
    struct {
        double damp, failed;
    } answer = {0, 0};
    if (ql_comm_rank(p->comm) == p->owner) {
        ql_status status = climb_ladder(p, f->r, &f->damp);
        if (status != QL_OK && status != QL_NUMERIC) return status;
        answer.damp = f->damp, answer.failed = status != QL_OK;
    }
    phases_enter(p->phases, PHASE_RANKS, 0);
    QL_TRY(ql_comm_broadcast(p->comm, "damping", p->owner, &answer, sizeof answer));
    f->damp = answer.damp, f->failed = answer.failed > 0;
    if (!f->failed) QL_TRY(ranks_send(p->comm, p->ctx, "factor", p->owner, f->r));
    f->known = true;
    return QL_OK;
}

static ql_status factor(const linear_problem *p, shared_factor *f) {
    if (!ql_is_present(f->r)) QL_TRY(ql_arena_mat(p->device, QL_F32, p->k, p->k, &f->r));
    if (!f->known) QL_TRY(compute_factor(p, f));
    return f->failed ? ql_fail(QL_NUMERIC, "the statistics are not positive definite with damping %g", f->damp) : QL_OK;
}

/* p->w becomes the target T.  A drift behind an addition has one linear, and is solved for where it stands. */
static ql_status follow_original(linear_problem *p, ql_mat r, ql_mat target) {
    ql_mat answer = p->drift->output;
    double n = (double)p->n, k = (double)p->k;
    int64_t height = panel_height(p->all);
    phases_enter(p->phases, PHASE_TARGET, 4 * n * k * k);
    if (!ql_is_present(answer)) QL_TRY(ql_arena_mat(p->device, QL_F32, p->n, p->k, &answer));
    for (int64_t row = 0; row < p->n && ql_is_present(p->drift->input); row += height) {
        int64_t rows = ql_at_most(height, p->n - row);
        QL_TRY(ql_gemm(p->ctx, ql_rows(p->w, row, rows), p->drift->input, ql_no_mat(), ql_rows(answer, row, rows)));
    }
    QL_TRY(ql_solve(p->ctx, answer, r, p->order, answer));
    QL_TRY(ql_convert(p->ctx, p->w, target));
    QL_TRY(ql_add(p->ctx, target, (float)p->recipe->drift, answer));
    p->w = target;
    return QL_OK;
}

ql_status method_gptq(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    const ql_grid_rule rule = {.symmetric = p->recipe->symmetric, .search = p->recipe->scale_search != SEARCH_OFF};
    double per_sweep = 2.0 * (double)p->n * (double)p->k * (double)p->k;
    bool follows = p->drift && p->recipe->drift > 0;
    ql_mat target;
    shared_factor *f = p->factor;
    record->method = method_names[METHOD_GPTQ];
    if (follows) QL_TRY(ql_arena_mat(p->device, QL_F32, p->n, p->k, &target));
    ql_mark mark = ql_arena_mark(p->device);
    ql_status status = factor(p, f);
    record->damp = f->damp;
    QL_TRY(status);
    if (follows) QL_TRY(follow_original(p, f->r, target));
    phases_enter(p->phases, PHASE_GRID, 0);
    QL_TRY(ql_grid_search(p->ctx, p->w, p->importance, &rule, grid));
    phases_enter(p->phases, PHASE_SOLVE, per_sweep / 2);
    QL_TRY(ql_gptq(p->ctx, p->w, f->r, p->order, grid, codes));
    ql_arena_release(p->device, mark); /* refining needs as much as a factor of its own did */
    phases_enter(p->phases, PHASE_REFINE, per_sweep * (double)(p->recipe->refine + 1));
    return ql_refine(p->ctx, p->w, p->h, record->damp * p->mean_diagonal, (int)p->recipe->refine, grid, codes);
}

ql_status method_gptq_literature(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record) {
    double n = (double)p->n, k = (double)p->k;
    ql_act_order order = p->recipe->act_order;
    if (order == QL_ORDER_DYNAMIC && grid->group >= p->k) order = QL_ORDER_STATIC; /* one group: the same thing */
    record->method = method_names[METHOD_GPTQ];
    record->damp = p->recipe->damp;
    phases_enter(p->phases, PHASE_SOLVE, n * k * k + 2 * k * k * k / 3);
    return ql_gptq_literature(p->ctx, p->w, p->h, p->h_scale, p->recipe->symmetric, order, grid, codes);
}
