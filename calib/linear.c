/* How one linear layer gets quantized: read this file first.
 *
 *   statistics -> order of the columns -> grid and codes (the method) -> is it better than nearest rounding? -> packed codes
 */
#include "calib/linear.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/ranks.h"
#include "host/log.h"
#include "host/mat.h"
#include "host/num.h"

static const float LARGEST_F16 = 65504;

/* diag(H) on the host: the diagonal is a column with a stride of one row and one column. */
static ql_status read_diagonal(const linear_job *job, ql_mat h, ql_mat *diagonal, float *host) {
    ql_mat column = {h.data, h.dtype, h.rows, 1, h.ld + 1};
    QL_TRY(ql_arena_mat(job->device, QL_F32, 1, h.rows, diagonal));
    QL_TRY(ql_convert(job->ctx, column, ql_mat_of(diagonal->data, QL_F32, h.rows, 1)));
    return ql_download(job->ctx, host, diagonal->data, ql_mat_bytes(*diagonal));
}

typedef struct ranked {
    float value;
    int32_t column;
} ranked;

static int by_descending_value(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return x->column < y->column ? -1 : 1; /* stable: q, k and v must agree on the order */
}

/* Columns by descending diagonal: the ones that matter most are rounded first, while all others can still compensate. */
static ql_status act_order(const linear_job *job, const float *diagonal, int64_t k, int32_t *order, ql_mat *device) {
    ranked *columns;
    QL_TRY(ql_take(job->host, (size_t)k, sizeof *columns, &columns));
    for (int64_t i = 0; i < k; i++) columns[i] = (ranked){diagonal[i], (int32_t)i};
    qsort(columns, (size_t)k, sizeof *columns, by_descending_value);
    for (int64_t i = 0; i < k; i++) order[i] = columns[i].column;
    return ql_arena_upload(job->device, QL_I32, 1, k, order, device);
}

/* Dead columns (no input was ever non-zero) stay out of the mean, which the damping is relative to. */
static void survey_diagonal(const float *diagonal, int64_t k, double *mean_of_live, int64_t *dead) {
    double sum = 0;
    *dead = 0;
    for (int64_t i = 0; i < k; i++) {
        if (diagonal[i] == 0.0f) ++*dead;
        else sum += diagonal[i];
    }
    *mean_of_live = *dead < k ? sum / (double)(k - *dead) : 0;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* How far the largest channel of the input stands above the median one, from sums of squares if there are any. */
static ql_status measure_outlier(const linear_job *job, double *outlier) {
    if (!job->input || !ql_is_present(job->input->hessian)) return QL_OK;
    float *squares;
    ql_mat on_device;
    int64_t k = job->input->k;
    ql_mark mark = ql_arena_mark(job->device), host = ql_arena_mark(job->host);
    QL_TRY(ql_take(job->host, (size_t)k, sizeof *squares, &squares));
    QL_TRY(read_diagonal(job, job->input->hessian, &on_device, squares));
    qsort(squares, (size_t)k, sizeof *squares, by_size);
    if (squares[k / 2] > 0) *outlier = sqrt((double)squares[k - 1] / squares[k / 2]);
    ql_arena_release(job->host, host);
    ql_arena_release(job->device, mark);
    return QL_OK;
}

static ql_status make_grid(const linear_job *job, int64_t n, int64_t k, const int32_t *order, ql_grid *grid) {
    int64_t group = job->rule.group < 0 ? k : job->rule.group;
    *grid = (ql_grid){.bits = job->rule.bits, .group = group};
    QL_TRY(ql_arena_mat(job->device, QL_F32, n, ql_groups(k, group), &grid->scale));
    QL_TRY(ql_arena_mat(job->device, QL_U8, n, ql_groups(k, group), &grid->zero));
    if (job->recipe->act_order != QL_ORDER_DYNAMIC || !order || group >= k) return QL_OK;
    int32_t *g_idx;
    QL_TRY(ql_take(job->host, (size_t)k, sizeof *g_idx, &g_idx));
    for (int64_t p = 0; p < k; p++) g_idx[order[p]] = (int32_t)(p / group);
    return ql_arena_upload(job->device, QL_I32, 1, k, g_idx, &grid->g_idx);
}

/* What stands in for a method where there is nothing to learn from. */
static method_run *without_data(const linear_job *job) {
    return job->recipe->symmetric || job->recipe->literature ? method_rtn : method_hqq;
}

static method_run *choose_method(const linear_job *job, const linear_problem *p) {
    if (job->rule.method == METHOD_HQQ) return method_hqq;
    if (job->rule.method == METHOD_RTN) return method_rtn;
    if (!ql_is_present(p->h)) return without_data(job);
    return job->recipe->literature ? method_gptq_literature : method_gptq;
}

/* Panel by panel, so that the sum does not depend on who has which. */
static ql_status sum_losses(const linear_problem *p, ql_mat rounded, double *loss, double *norm) {
    int64_t height = panel_height(p->all), panels = ql_ceil_div(p->all, height);
    double(*of_panel)[2] = ql_malloc((size_t)panels * sizeof *of_panel);
    if (!of_panel) return ql_fail(QL_NOMEM, "no memory for the losses of %lld panels", (long long)panels);
    ql_status status = QL_OK;
    for (int64_t row = 0; row < p->n && status == QL_OK; row += height) {
        int64_t rows = ql_at_most(height, p->n - row);
        double *own = of_panel[(p->first + row) / height];
        status = ql_loss(p->ctx, ql_rows(p->w, row, rows), ql_rows(rounded, row, rows), p->h, &own[0], &own[1]);
    }
    phases_enter(p->phases, PHASE_RANKS, 0);
    if (status == QL_OK) status = ranks_gather_panels(p->comm, "losses", p->all, sizeof *of_panel, of_panel);
    *loss = *norm = 0;
    for (int64_t i = 0; i < panels && status == QL_OK; i++) *loss += of_panel[i][0], *norm += of_panel[i][1];
    ql_mfree(of_panel);
    return status;
}

static ql_status measure(const linear_problem *p, const ql_grid *grid, ql_mat codes, double *loss, double *norm) {
    ql_mat rounded;
    ql_mark mark = ql_arena_mark(p->device);
    QL_TRY(ql_arena_mat(p->device, QL_F32, p->n, p->k, &rounded));
    phases_enter(p->phases, PHASE_LOSS, 4.0 * (double)p->n * (double)p->k * (double)p->k);
    QL_TRY(ql_dequantize(p->ctx, codes, grid, rounded));
    QL_TRY(sum_losses(p, rounded, loss, norm));
    ql_arena_release(p->device, mark);
    return QL_OK;
}

/* The method's result must not be worse than nearest rounding on its own statistics: a dead hook, a wrong Hessian or a
 * hopeless factorization shows here.  The literature has no such check. */
static ql_status solve(const linear_job *job, linear_problem *p, ql_grid *grid, ql_mat *codes, linear_record *record) {
    method_run *method = choose_method(job, p);
    const ql_mat given = p->w; /* a method may put a target in its place */
    bool wants_data = job->rule.method == METHOD_GPTQ, has_data = ql_is_present(p->h);
    if (wants_data && !has_data) record->fallback = "no calibration data";
    ql_status status = method(p, grid, *codes, record);
    if (status == QL_OK) status = measure(p, grid, *codes, &record->loss, &record->norm);
    if (!wants_data || !has_data || job->recipe->literature || (status != QL_OK && status != QL_NUMERIC)) {
        record->rtn_loss = record->loss;
        return status;
    }
    ql_grid nearest;
    ql_mat nearest_codes;
    linear_record baseline = {0};
    if (status != QL_OK || !isfinite(record->loss)) p->w = given;
    QL_TRY(make_grid(job, p->n, p->k, NULL, &nearest));
    nearest.g_idx = grid->g_idx;
    QL_TRY(ql_arena_mat(p->device, QL_U8, p->n, p->k, &nearest_codes));
    QL_TRY((status == QL_OK ? method_rtn : without_data(job))(p, &nearest, nearest_codes, &baseline));
    QL_TRY(measure(p, &nearest, nearest_codes, &record->rtn_loss, &record->norm));
    if (status == QL_OK && record->loss <= record->rtn_loss) return QL_OK;
    record->fallback =
        status == QL_OK ? "loss above nearest rounding's" : "Hessian is not positive definite at any damping";
    record->method = baseline.method;
    record->loss = record->rtn_loss;
    *grid = nearest;
    *codes = nearest_codes;
    return QL_OK;
}

/* Our rows into their place among all, and then everyone's. */
static ql_status take_rows(const linear_job *job, const linear_problem *p, const char *what, ql_mat ours, void *out) {
    size_t row = (size_t)ours.cols * ql_dtype_size(ours.dtype);
    void **all = out;
    QL_TRY(ql_take(job->host, (size_t)p->all, row, all));
    phases_enter(p->phases, PHASE_PACK, 0);
    QL_TRY(ql_download(job->ctx, (char *)*all + (size_t)p->first * row, ours.data, ql_mat_bytes(ours)));
    phases_enter(p->phases, PHASE_RANKS, 0);
    return ranks_gather_rows(p->comm, what, p->all, row, *all);
}

static ql_status pack(const linear_job *job, const linear_problem *p, const ql_grid *grid, ql_mat codes, qmodule *out) {
    ql_mat words;
    int64_t n_words = ql_packed_words(p->k, grid->bits), n_scales = p->all * ql_groups(p->k, grid->group);
    phases_enter(p->phases, PHASE_PACK, 0);
    *out = (qmodule){.name = job->name, .n = p->all, .k = p->k, .bits = grid->bits, .group = grid->group};
    QL_TRY(ql_arena_mat(p->device, QL_I32, p->n, n_words, &words));
    QL_TRY(ql_pack(job->ctx, codes, grid->bits, words));
    QL_TRY(take_rows(job, p, "codes", words, &out->codes));
    QL_TRY(take_rows(job, p, "scales", grid->scale, &out->scale));
    QL_TRY(take_rows(job, p, "zero points", grid->zero, &out->zero));
    if (ql_is_present(grid->g_idx)) QL_TRY(ql_arena_download(job->host, job->ctx, grid->g_idx, (void **)&out->g_idx));
    /* Only literature grids change here: what the file holds is what the next block must see. */
    for (int64_t i = 0; i < n_scales; i++) out->scale[i] = ql_round_f16(out->scale[i]);
    return QL_OK;
}

ql_status linear_largest(const linear_job *job, ql_mat w, float *largest) {
    ql_mark mark = ql_arena_mark(job->device);
    capture c;
    QL_TRY(capture_open(job->ctx, w.cols, STATS_MOMENTS, QL_F32, job->device, &c));
    QL_TRY(capture_add(job->ctx, &c, w));
    QL_TRY(capture_largest(job->ctx, &c, largest));
    ql_arena_release(job->device, mark);
    return QL_OK;
}

/* Packed weights are decoded to FP16 by those who load them: a larger one would become infinity there. */
static ql_status check_range(const linear_job *job, ql_mat w) {
    float largest;
    QL_TRY(linear_largest(job, w, &largest));
    if (largest <= LARGEST_F16) return QL_OK;
    return ql_fail(QL_FORMAT,
                   "%s: a weight of magnitude %g is beyond FP16 (%g); keep the module with an override, skip: true",
                   job->name, (double)largest, (double)LARGEST_F16);
}

/* Blocks of GGUF, and numbers that need no grid search: every rank makes all rows. */
static ql_status quantize_plainly(const linear_job *job, const linear *lin, qmodule *out, linear_record *record) {
    ql_mat w;
    QL_TRY(weights_widen(job->ctx, lin->w, job->device, &w));
    QL_TRY(check_range(job, w));
    if (job->rule.type == CODE_BLOCKS) return ql_context(linear_encode_blocks(job, w, out, record), "%s", job->name);
    QL_TRY(ql_context(linear_round_values(job, w, out, record), "%s", job->name));
    return linear_find_input_scale(job, out);
}

/* What the method reads of the input: the Hessian, its diagonal, and the order of the columns. */
static ql_status read_input(const linear_job *job, linear_problem *p, int32_t **order, linear_record *record) {
    bool weighted = job->recipe->scale_search == SEARCH_IMPORTANCE && job->rule.method == METHOD_RTN;
    bool reads_data = job->rule.method == METHOD_GPTQ || job->recipe->clip || weighted;
    float *diagonal;
    *order = NULL;
    if (!reads_data || !job->input || !ql_is_present(job->input->hessian)) return QL_OK;
    p->h = job->input->hessian;
    QL_TRY(ql_take(job->host, (size_t)p->k, sizeof *diagonal, &diagonal));
    QL_TRY(read_diagonal(job, p->h, &p->importance, diagonal));
    survey_diagonal(diagonal, p->k, &p->mean_diagonal, &record->dead);
    if (job->rule.method != METHOD_GPTQ || job->recipe->act_order == QL_ORDER_NONE) return QL_OK;
    QL_TRY(ql_take(job->host, (size_t)p->k, sizeof **order, order));
    return act_order(job, diagonal, p->k, *order, &p->order);
}

/* Codes on a grid, by a method, of this rank's rows; then everybody has all of them. */
static ql_status quantize_on_grid(const linear_job *job, const linear *lin, qmodule *out, linear_record *record) {
    /* The literature's program factors and finds its groups for itself: every rank makes all rows. */
    ql_comm *comm = job->recipe->literature ? NULL : job->comm;
    row_range mine = ranks_rows(comm, lin->w.rows, ql_comm_rank(comm));
    drift own_drift = job->drift ? *job->drift : (drift){0};
    if (ql_is_present(own_drift.output)) own_drift.output = ql_rows(own_drift.output, mine.first, mine.count);
    linear_problem p = {
        .ctx = job->ctx,
        .device = job->device,
        .phases = job->phases,
        .recipe = job->recipe,
        .comm = comm,
        .owner = job->owner,
        .factor = job->factor,
        .all = lin->w.rows,
        .first = mine.first,
        .n = mine.count,
        .k = lin->w.cols,
        .drift = job->drift ? &own_drift : NULL,
        .h_scale = job->n_seq > 0 ? 2.0 / (double)job->n_seq : 1,
    };
    ql_grid grid;
    ql_mat codes;
    int32_t *order;
    QL_TRY(weights_widen(job->ctx, ql_rows(lin->w, mine.first, mine.count), job->device, &p.w));
    QL_TRY(check_range(job, p.w));
    QL_TRY(read_input(job, &p, &order, record));
    QL_TRY(make_grid(job, p.n, p.k, order, &grid));
    QL_TRY(ql_arena_mat(job->device, QL_U8, p.n, p.k, &codes));
    QL_TRY(ql_context(solve(job, &p, &grid, &codes, record), "%s", job->name));
    if (record->fallback) ql_log(QL_WARNING, "%s: made by %s: %s", job->name, record->method, record->fallback);
    QL_TRY(pack(job, &p, &grid, codes, out));
    return linear_find_input_scale(job, out);
}

ql_status linear_quantize(const linear_job *job, const linear *lin, qmodule *out, linear_record *record) {
    double begin = seconds_now();
    ql_mark mark = ql_arena_mark(job->device);
    bool plainly = job->rule.type != CODE_INT || job->rule.group == GROUP_TENSOR;
    *record = (linear_record){0};
    QL_TRY(measure_outlier(job, &record->outlier));
    QL_TRY(plainly ? quantize_plainly(job, lin, out, record) : quantize_on_grid(job, lin, out, record));
    phases_enter(job->phases, PHASE_OTHER, 0);
    ql_arena_release(job->device, mark);
    record->seconds = seconds_now() - begin;
    return QL_OK;
}
