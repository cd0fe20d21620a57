/* The rows of a job on their way through one block, and what is measured of them at its four points.
 *
 * Statistics are summed along the tree of calib/tree.h.  A tree holds several matrices at a time, and those of a wide layer are large:
 * they are summed in stripes of some rows each, for every one of which the rows are looked at again. */
#include <stdio.h>

#include "calib/layer_parts.h"
#include "host/mat.h"

void layer_show(const engine *e, int64_t layer, const char *what) {
    char text[64];
    snprintf(text, sizeof text, "layer %lld: %s", (long long)layer, what);
    progress_step(e->progress, layer, text);
}

static int64_t width_of(const engine *e, site_id site) { return site_width(&e->model->config, site); }

/* ---- work, in floating-point operations ------------------------------------------------------------------------------- */

/* Of one pass of all rows through some linears. */
static double linear_flops(const engine *e, site_id site) {
    double flops = 0;
    for (linear_id id = 0; id < LINEARS; id++) {
        int64_t n, k;
        linear_shape(&e->model->config, id, &n, &k);
        if (linear_site[id] == site) flops += 2.0 * (double)n * (double)k * (double)e->data->tokens.n_tokens;
    }
    return flops;
}

/* QK^T and PV of causal attention: half of 2 * 2 * length^2 * width. */
static double attention_flops(const engine *e) {
    double flops = 0;
    const token_file *t = &e->data->tokens;
    for (int64_t s = 0; s < t->n_seq; s++) {
        double length = (double)(t->start[s + 1] - t->start[s]);
        flops += 2.0 * length * length * (double)width_of(e, SITE_ATTN_OUT);
    }
    return flops;
}

/* From point `from` to the one before `to`. */
static double step_flops(const engine *e, site_id from, site_id to) {
    double flops = from == SITE_ATTN_IN ? attention_flops(e) : 0;
    for (site_id site = from; site < to; site++) flops += linear_flops(e, site);
    return flops;
}

/* ---- forward ---------------------------------------------------------------------------------------------------------------- */

static ql_status fetch_x(const engine *e, const stream *s, const batch *rows, ql_mat *x) {
    return rows_fetch(e->data, &s->x, rows, e->model->config.hidden, x);
}

/* From the residual stream to the inputs of o or down. */
static ql_status step_inside(engine *e, const block *b, int64_t layer, site_id to, const batch *rows, capture kv[2]) {
    forward *f = &e->forward;
    const stream *s = &e->data->rows;
    ql_mat x, norm = ql_rows(f->norm, 0, rows->rows), act = rows_room(&s->act, rows, width_of(e, to));
    QL_TRY(fetch_x(e, s, rows, &x));
    if (to == SITE_ATTN_OUT) {
        QL_TRY(block_attn_in(f, b, x, norm));
        QL_TRY(block_attention(f, b, layer, rows, norm, act));
        if (kv) QL_TRY(capture_add(e->ctx, &kv[0], ql_rows(f->k, 0, rows->rows)));
        if (kv) QL_TRY(capture_add(e->ctx, &kv[1], ql_rows(f->v, 0, rows->rows)));
    } else {
        QL_TRY(block_mlp_in(f, b, x, norm));
        QL_TRY(block_mlp(f, b, norm, act));
    }
    return rows_keep(e->data, &s->act, rows, act);
}

/* Through o or down, back to the residual stream. */
static ql_status step_back(engine *e, const block *b, site_id to, const batch *rows) {
    const stream *s = &e->data->rows;
    ql_mat x, act;
    QL_TRY(fetch_x(e, s, rows, &x));
    QL_TRY(rows_fetch(e->data, &s->act, rows, width_of(e, to - 1), &act));
    QL_TRY(to == SITE_MLP_IN ? block_attn_out(&e->forward, b, act, x) : block_mlp_out(&e->forward, b, act, x));
    return rows_keep(e->data, &s->x, rows, x);
}

ql_status rows_advance(engine *e, const block *b, int64_t layer, site_id to, capture kv[2]) {
    if (to == SITE_ATTN_IN) return QL_OK;
    layer_show(e, layer, "forward");
    phases_enter(&e->phases, PHASE_FORWARD, step_flops(e, to - 1, to));
    bool inside = to == SITE_ATTN_OUT || to == SITE_MLP_DOWN_IN;
    for (int64_t i = 0; i < e->data->n_batches; i++) {
        const batch *rows = &e->data->batches[i];
        QL_TRY(inside ? step_inside(e, b, layer, to, rows, kv) : step_back(e, b, to, rows));
    }
    return QL_OK;
}

/* o and down add to the residual stream: what counts is the stream behind them. */
static bool adds_to_stream(site_id site) { return site == SITE_ATTN_OUT || site == SITE_MLP_DOWN_IN; }

ql_status rows_advance_original(engine *e, const block *original, int64_t layer, site_id site) {
    const stream *s = &e->data->original;
    if (!adds_to_stream(site)) return QL_OK;
    phases_enter(&e->phases, PHASE_FORWARD, step_flops(e, site - 1, site + 1));
    for (int64_t i = 0; i < e->data->n_batches; i++) {
        const batch *rows = &e->data->batches[i];
        ql_mat x;
        QL_TRY(fetch_x(e, s, rows, &x));
        QL_TRY(site == SITE_ATTN_OUT ? block_attention_half(&e->forward, original, layer, rows, x)
                                     : block_mlp_half(&e->forward, original, rows, x));
        QL_TRY(rows_keep(e->data, &s->x, rows, x));
    }
    return QL_OK;
}

ql_status rows_forward(engine *e, const stream *s, const block *b, int64_t layer) {
    phases_enter(&e->phases, PHASE_FORWARD, step_flops(e, SITE_ATTN_IN, SITES));
    for (int64_t i = 0; i < e->data->n_batches; i++) {
        const batch *rows = &e->data->batches[i];
        ql_mat x;
        QL_TRY(fetch_x(e, s, rows, &x));
        QL_TRY(block_forward(&e->forward, b, layer, rows, x));
        QL_TRY(rows_keep(e->data, &s->x, rows, x));
    }
    return QL_OK;
}

static ql_status copy_rows(const engine *e, const row_store *from, const row_store *to) {
    for (int64_t i = 0; i < e->data->n_batches; i++) {
        const batch *rows = &e->data->batches[i];
        ql_mat x;
        QL_TRY(rows_fetch(e->data, from, rows, from->all.cols, &x));
        QL_TRY(rows_keep(e->data, to, rows, x));
    }
    return QL_OK;
}

ql_status rows_save(engine *e) { return copy_rows(e, &e->data->rows.x, &e->data->kept); }
ql_status rows_restore(engine *e) { return copy_rows(e, &e->data->kept, &e->data->rows.x); }

/* ---- statistics ------------------------------------------------------------------------------------------------------------- */

/* What the linears of a site see of one batch.  Norms are computed into `buffer`, activations lie ready in the stream. */
static ql_status look(engine *e, const stream *s, const block *b, const batch *rows, site_id site, ql_mat buffer,
                      ql_mat *value) {
    ql_mat x;
    phases_enter(&e->phases, PHASE_FORWARD, 0);
    if (adds_to_stream(site)) return rows_fetch(e->data, &s->act, rows, width_of(e, site), value);
    *value = ql_rows(buffer, 0, rows->rows);
    QL_TRY(fetch_x(e, s, rows, &x));
    return site == SITE_ATTN_IN ? block_attn_in(&e->forward, b, x, *value) : block_mlp_in(&e->forward, b, x, *value);
}

ql_status rows_open_drift(engine *e, site_id site, drift *d) {
    int64_t k = width_of(e, site);
    *d = (drift){0};
    return adds_to_stream(site) ? capture_zeros(e->ctx, QL_F32, e->model->config.hidden, k, e->scratch, &d->output)
                                : capture_zeros(e->ctx, QL_F32, k, k, e->scratch, &d->input);
}

/* Some rows of what is measured at one point, and the sums along the tree that they are made of. */
typedef struct view {
    int64_t layer;
    site_id site;
    const block *block, *original;
    int64_t stripe;                            /* what is no matrix is measured with the first */
    capture rest;                              /* all but the Hessian */
    ql_mat hessian, drift_input, drift_output; /* of this stripe; absent behind the last row, or if nobody asks */
    int trees;
    tree sum[5];
} view;

/* How far the rows are from the original model's, F32.  Buffers of the forward pass are free at this time. */
static ql_status find_distance(engine *e, const view *v, const batch *rows, ql_mat value, ql_mat *apart) {
    const linear *lin = &v->original->lin[v->site == SITE_ATTN_OUT ? LIN_O : LIN_DOWN];
    ql_mat other = ql_rows(e->forward.add, 0, rows->rows), x, original;
    *apart = ql_rows(e->apart, 0, rows->rows);
    if (!adds_to_stream(v->site)) {
        QL_TRY(look(e, &e->data->original, v->original, rows, v->site, e->apart, apart));
        return ql_add(e->ctx, *apart, -1, value);
    }
    double flops = 2.0 * (double)rows->rows * (double)value.cols * (double)apart->cols;
    phases_enter(&e->phases, PHASE_FORWARD, v->stripe == 0 ? flops : 0);
    QL_TRY(linear_forward(&e->forward, lin, value, other));
    QL_TRY(fetch_x(e, &e->data->original, rows, &original));
    QL_TRY(fetch_x(e, &e->data->rows, rows, &x));
    QL_TRY(ql_convert(e->ctx, original, *apart));
    QL_TRY(ql_add(e->ctx, *apart, -1, x));
    return ql_add(e->ctx, *apart, -1, other);
}

/* The stripe's columns of y. */
static ql_mat stripe_of(const view *v, ql_mat y, ql_mat sum) { return ql_cols(y, v->stripe * DRIFT_STRIPE, sum.rows); }

static ql_status observe_drift(engine *e, const view *v, const batch *rows, ql_mat value) {
    ql_mat sum = adds_to_stream(v->site) ? v->drift_output : v->drift_input, apart;
    if (!ql_is_present(sum)) return QL_OK;
    QL_TRY(find_distance(e, v, rows, value, &apart));
    double flops = 2.0 * (double)rows->rows * (double)value.cols * (double)apart.cols;
    phases_enter(&e->phases, PHASE_STATISTICS, v->stripe == 0 ? flops : 0);
    if (value.dtype == QL_BF16) { /* products of two in BF16: the norm's own buffer holds `value` where there is one */
        ql_mat rounded = ql_rows(e->apart_half, 0, rows->rows);
        QL_TRY(ql_convert(e->ctx, apart, rounded));
        apart = rounded;
    }
    return adds_to_stream(v->site) ? ql_cross(e->ctx, stripe_of(v, apart, sum), value, sum)
                                   : ql_cross(e->ctx, stripe_of(v, value, sum), apart, sum);
}

static ql_status observe_batch(engine *e, view *v, int64_t i, bool *dropped) {
    const batch *rows = &e->data->batches[i];
    ql_mat value;
    *dropped = false;
    QL_TRY(look(e, &e->data->rows, v->block, rows, v->site, e->forward.norm, &value));
    double flops = (double)value.rows * (double)value.cols * (double)value.cols;
    phases_enter(&e->phases, PHASE_STATISTICS, 0);
    if (v->stripe == 0) QL_TRY(dataset_check(e->data, i, value, v->layer, site_names[v->site], dropped));
    if (*dropped) return QL_OK;
    if (v->stripe == 0) QL_TRY(capture_add(e->ctx, &v->rest, value));
    if (ql_is_present(v->hessian)) {
        phases_enter(&e->phases, PHASE_STATISTICS, v->stripe == 0 ? flops : 0);
        QL_TRY(ql_hessian(e->ctx, ql_cols(value, v->stripe * HESSIAN_STRIPE, v->hessian.cols), v->hessian));
    }
    return v->original ? observe_drift(e, v, rows, value) : QL_OK;
}

/* *next: the leaf's first batch, then the one behind it. */
static ql_status observe_leaf(engine *e, view *v, int64_t leaf, int64_t *next) {
    const dataset *d = e->data;
    for (int i = 0; i < v->trees; i++) QL_TRY(tree_leaf(&v->sum[i]));
    while (*next < d->n_batches && d->batches[*next].leaf == leaf) {
        bool dropped;
        QL_TRY(observe_batch(e, v, *next, &dropped));
        if (!dropped) ++*next;
    }
    phases_enter(&e->phases, PHASE_STATISTICS, 0);
    for (int i = 0; i < v->trees; i++) QL_TRY(tree_close(&v->sum[i], leaf));
    return QL_OK;
}

static ql_status open_tree(engine *e, view *v, ql_mat *into, bool upper) {
    return ql_is_present(*into) ? tree_open(e->ctx, into, upper, e->data->leaves, e->scratch, &v->sum[v->trees++])
                                : QL_OK;
}

/* `height` rows of a statistic: the whole of it where that is enough, else zeros that they are made in. */
static ql_status open_stripe(engine *e, const view *v, ql_mat whole, int64_t height, bool upper, ql_mat *out) {
    int64_t row = v->stripe * height, rows = ql_at_most(height, whole.rows - row);
    *out = ql_no_mat();
    if (!ql_is_present(whole) || rows <= 0) return QL_OK;
    if (rows < whole.rows)
        return capture_zeros(e->ctx, whole.dtype, rows, upper ? whole.cols - row : whole.cols, e->scratch, out);
    *out = whole;
    return QL_OK;
}

/* ... and back. */
static ql_status close_stripe(engine *e, const view *v, ql_mat stripe, int64_t height, bool upper, ql_mat whole) {
    if (!ql_is_present(stripe) || stripe.data == whole.data) return QL_OK;
    ql_mat place = ql_rows(whole, v->stripe * height, stripe.rows);
    return ql_convert(e->ctx, stripe, upper ? ql_cols(place, v->stripe * height, stripe.cols) : place);
}

/* Smallest and largest values and counts are the same in any order: they need no tree. */
static ql_status open_trees(engine *e, view *v) {
    QL_TRY(open_tree(e, v, &v->hessian, true));
    QL_TRY(open_tree(e, v, &v->drift_input, false));
    QL_TRY(open_tree(e, v, &v->drift_output, false));
    if (v->stripe > 0) return QL_OK;
    QL_TRY(open_tree(e, v, &v->rest.sum_sq, false));
    return open_tree(e, v, &v->rest.sum_abs, false);
}

/* What all ranks have seen. */
static ql_status join_view(engine *e, view *v) {
    phases_enter(&e->phases, PHASE_RANKS, 0);
    for (int i = 0; i < v->trees; i++) QL_TRY(ranks_join_tree(e->comm, &v->sum[i]));
    if (v->stripe > 0) return QL_OK;
    QL_TRY(ranks_join_extremes(e->comm, e->ctx, &v->rest));
    e->samples_skipped = e->data->n_skipped;
    QL_TRY(ranks_sum(e->comm, "samples skipped", &e->samples_skipped));
    if (e->samples_skipped <= e->data->skip_limit) return QL_OK;
    return ql_fail(QL_FORMAT,
                   "layer %lld, %s: activations of %lld samples are not finite; %lld of %lld may be skipped (1 %%)",
                   (long long)v->layer, site_names[v->site], (long long)e->samples_skipped,
                   (long long)e->data->skip_limit, (long long)e->data->leaves.rows);
}

static ql_status observe_stripe(engine *e, view *v, const capture *c, const drift *d) {
    ql_mark mark = ql_arena_mark(e->scratch);
    leaf_range s = e->data->leaves;
    int64_t next = 0;
    v->trees = 0;
    QL_TRY(open_stripe(e, v, c->hessian, HESSIAN_STRIPE, true, &v->hessian));
    QL_TRY(open_stripe(e, v, d->input, DRIFT_STRIPE, false, &v->drift_input));
    QL_TRY(open_stripe(e, v, d->output, DRIFT_STRIPE, false, &v->drift_output));
    QL_TRY(open_trees(e, v));
    for (int64_t leaf = s.first; leaf < s.end; leaf++)
        if (!leaf_is_empty(leaf, s.rows)) QL_TRY(observe_leaf(e, v, leaf, &next));
    QL_TRY(join_view(e, v));
    phases_enter(&e->phases, PHASE_STATISTICS, 0);
    QL_TRY(close_stripe(e, v, v->hessian, HESSIAN_STRIPE, true, c->hessian));
    QL_TRY(close_stripe(e, v, v->drift_input, DRIFT_STRIPE, false, d->input));
    QL_TRY(close_stripe(e, v, v->drift_output, DRIFT_STRIPE, false, d->output));
    ql_arena_release(e->scratch, mark);
    return QL_OK;
}

static int64_t more(int64_t a, int64_t b) { return a > b ? a : b; }

ql_status rows_observe(engine *e, const block *b, int64_t layer, site_id site, capture *c, const block *original,
                       drift *d) {
    const drift none = {0};
    view v = {.layer = layer, .site = site, .block = b, .original = original, .rest = *c};
    int64_t stripes = ql_ceil_div(c->hessian.rows, HESSIAN_STRIPE);
    if (d) stripes = more(stripes, ql_ceil_div(d->output.rows, DRIFT_STRIPE)); /* where hidden is much wider */
    layer_show(e, layer, "statistics");
    v.rest.hessian = ql_no_mat();
    do QL_TRY(observe_stripe(e, &v, c, d ? d : &none));
    while (++v.stripe < stripes);
    c->count = v.rest.count;
    return QL_OK;
}
