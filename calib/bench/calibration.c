/* Statistics, solvers and roundings: what a calibration job spends its time with. */
#include <stdio.h>

#include "calib/bench/bench.h"
#include "host/mat.h"

enum { SWEEPS = 4 };

static double nkk(const bench *b) { return (double)b->how.shape.n * (double)b->how.shape.k * (double)b->how.shape.k; }

/* ---- statistics -------------------------------------------------------------------------------------------------------- */

static ql_status prepare_hessian(bench *b) {
    bench_shape s = b->how.shape;
    double m = (double)s.m, k = (double)s.k;
    QL_TRY(bench_rotate(b, 4 * m * k));
    QL_TRY(bench_zeros(b, QL_F32, s.k, s.k, &b->of[0].h));
    for (int64_t i = 0; i < b->copies; i++) {
        QL_TRY(bench_random(b, QL_F32, s.m, s.k, &b->of[i].x));
        b->of[i].h = b->of[0].h;
    }
    b->flops = m * k * (k + 1);
    b->bytes = 4 * (m * k + k * (k + 1)); /* the triangle is read and written */
    b->peer = (bench_shape){s.k, s.k, s.m};
    return QL_OK;
}

static ql_status call_hessian(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_hessian(b->ctx, o->x, o->h);
}

static ql_status prepare_cross(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(bench_rotate(b, 4.0 * (double)s.m * (double)(s.n + s.k)));
    QL_TRY(bench_zeros(b, QL_F32, s.n, s.k, &b->of[0].h));
    for (int64_t i = 0; i < b->copies; i++) {
        QL_TRY(bench_random(b, QL_F32, s.m, s.k, &b->of[i].x));
        QL_TRY(bench_random(b, QL_F32, s.m, s.n, &b->of[i].y));
        b->of[i].h = b->of[0].h;
    }
    b->flops = 2.0 * (double)s.m * (double)s.n * (double)s.k;
    b->bytes = 4.0 * ((double)s.m * (double)(s.n + s.k) + 2.0 * (double)s.n * (double)s.k);
    b->peer = (bench_shape){s.n, s.k, s.m};
    return QL_OK;
}

static ql_status call_cross(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_cross(b->ctx, o->y, o->x, o->h);
}

/* ---- the common ground of the solvers ---------------------------------------------------------------------------------- */

static int64_t group_of(const bench *b) { return b->how.group > b->how.shape.k ? b->how.shape.k : b->how.group; }

/* w, a grid for it, and its codes. */
static ql_status make_weight(bench *b) {
    bench_shape s = b->how.shape;
    int64_t groups = ql_groups(s.k, group_of(b));
    const ql_grid_rule rule = {0};
    QL_TRY(bench_rotate(b, 1e300)); /* one copy: these read and write far more than the weight */
    operands *o = b->of;
    o->grid = (ql_grid){.bits = b->how.bits, .group = group_of(b)};
    QL_TRY(bench_random(b, QL_F32, s.n, s.k, &o->w));
    QL_TRY(bench_zeros(b, QL_F32, s.n, groups, &o->grid.scale));
    QL_TRY(bench_zeros(b, QL_U8, s.n, groups, &o->grid.zero));
    QL_TRY(bench_zeros(b, QL_U8, s.n, s.k, &o->codes));
    snprintf(b->plan, sizeof b->plan, "%d bits, g%lld%s", b->how.bits, (long long)group_of(b),
             b->how.ordered ? ", ordered" : "");
    QL_TRY(ql_grid_search(b->ctx, o->w, ql_no_mat(), &rule, &o->grid));
    return ql_quantize(b->ctx, o->w, &o->grid, o->codes);
}

/* X^T X of as many rows as columns. */
static ql_status make_h(bench *b) {
    int64_t k = b->how.shape.k;
    ql_mat x;
    QL_TRY(bench_zeros(b, QL_F32, k, k, &b->of->h));
    ql_mark mark = ql_arena_mark(b->device);
    QL_TRY(bench_random(b, QL_F32, k, k, &x));
    QL_TRY(ql_hessian(b->ctx, x, b->of->h));
    ql_arena_release(b->device, mark);
    return bench_order(b);
}

static ql_status make_factor(bench *b) {
    QL_TRY(make_h(b));
    QL_TRY(bench_zeros(b, QL_F32, b->how.shape.k, b->how.shape.k, &b->of->r));
    return ql_factor(b->ctx, b->of->h, b->order, 1, b->of->r);
}

/* ---- solvers ----------------------------------------------------------------------------------------------------------- */

static ql_status prepare_factor(bench *b) {
    double k = (double)b->how.shape.k;
    QL_TRY(bench_rotate(b, 1e300));
    QL_TRY(make_factor(b));
    if (b->how.ordered) snprintf(b->plan, sizeof b->plan, "ordered");
    b->flops = k * k * k / 3;
    b->bytes = 4 * (k * (k + 1) / 2 + k * k);
    b->peer = (bench_shape){b->how.shape.k, b->how.shape.k, b->how.shape.k};
    return QL_OK;
}

static ql_status call_factor(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_factor(b->ctx, b->of->h, b->order, 1, b->of->r);
}

/* products: multiples of n k^2. */
static ql_status finish_solver(bench *b, double products, double bytes_per_weight) {
    bench_shape s = b->how.shape;
    b->flops = products * nkk(b);
    b->bytes = bytes_per_weight * (double)s.n * (double)s.k + 2.0 * (double)s.k * (double)(s.k + 1);
    b->peer = (bench_shape){s.n, s.k, s.k};
    return QL_OK;
}

static ql_status prepare_gptq(bench *b) {
    QL_TRY(make_weight(b));
    QL_TRY(make_factor(b));
    return finish_solver(b, 1, 5);
}

static ql_status call_gptq(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_gptq(b->ctx, b->of->w, b->of->r, b->order, &b->of->grid, b->of->codes);
}

static ql_status prepare_solve(bench *b) {
    QL_TRY(make_weight(b));
    QL_TRY(make_factor(b));
    QL_TRY(bench_zeros(b, QL_F32, b->how.shape.n, b->how.shape.k, &b->of->y));
    return finish_solver(b, 2, 8);
}

static ql_status call_solve(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_solve(b->ctx, b->of->w, b->of->r, b->order, b->of->y);
}

static ql_status prepare_refine(bench *b) {
    QL_TRY(make_weight(b));
    QL_TRY(make_h(b));
    return finish_solver(b, 2 + 2 * SWEEPS, 6);
}

/* It stops early where nothing is left to improve, so every call starts from codes rounded to nearest. */
static ql_status call_refine(void *data, int64_t i) {
    bench *b = data;
    (void)i;
    QL_TRY(ql_quantize(b->ctx, b->of->w, &b->of->grid, b->of->codes));
    return ql_refine(b->ctx, b->of->w, b->of->h, 1, SWEEPS, &b->of->grid, b->of->codes);
}

static ql_status prepare_literature(bench *b) {
    int64_t k = b->how.shape.k;
    QL_TRY(make_weight(b));
    QL_TRY(make_h(b));
    QL_TRY(bench_zeros(b, QL_F64, k, k, &b->of->r));
    QL_TRY(ql_convert(b->ctx, b->of->h, b->of->r));
    QL_TRY(finish_solver(b, 1, 5));
    b->flops += 2 * (double)k * (double)k * (double)k / 3;
    return QL_OK;
}

static ql_status call_literature(void *data, int64_t i) {
    bench *b = data;
    (void)i;
    return ql_gptq_literature(b->ctx, b->of->w, b->of->r, 1, 1, QL_ORDER_STATIC, &b->of->grid, b->of->codes);
}

static ql_status prepare_loss(bench *b) {
    QL_TRY(make_weight(b));
    QL_TRY(make_h(b));
    return finish_solver(b, 4, 8);
}

static ql_status call_loss(void *data, int64_t i) {
    const bench *b = data;
    double loss, norm;
    (void)i;
    return ql_loss(b->ctx, b->of->w, b->of->w, b->of->h, &loss, &norm);
}

/* ---- roundings --------------------------------------------------------------------------------------------------------- */

static ql_status prepare_rounding(bench *b, double bytes_per_weight) {
    bench_shape s = b->how.shape;
    QL_TRY(make_weight(b));
    QL_TRY(bench_zeros(b, QL_I32, s.n, ql_packed_words(s.k, b->how.bits), &b->of->words));
    QL_TRY(ql_pack(b->ctx, b->of->codes, b->how.bits, b->of->words));
    b->bytes = bytes_per_weight * (double)s.n * (double)s.k;
    return QL_OK;
}

static ql_status prepare_range(bench *b) { return prepare_rounding(b, 4); }
static ql_status prepare_quantize(bench *b) { return prepare_rounding(b, 5); }
static ql_status prepare_pack(bench *b) { return prepare_rounding(b, 1 + b->how.bits / 8.0); }

static ql_status search(const bench *b, int is_search) {
    const ql_grid_rule rule = {.search = is_search};
    ql_grid *grid = &b->of->grid;
    return ql_grid_search(b->ctx, b->of->w, ql_no_mat(), &rule, grid);
}

static ql_status call_range(void *data, int64_t i) {
    (void)i;
    return search(data, 0);
}

static ql_status call_search(void *data, int64_t i) {
    (void)i;
    return search(data, 1);
}

static ql_status call_quantize(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_quantize(b->ctx, b->of->w, &b->of->grid, b->of->codes);
}

static ql_status call_pack(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_pack(b->ctx, b->of->codes, b->how.bits, b->of->words);
}

static ql_status call_unpack(void *data, int64_t i) {
    const bench *b = data;
    (void)i;
    return ql_unpack(b->ctx, b->of->words, b->how.bits, b->of->codes);
}

const bench_op bench_calibration[] = {
    {"hessian", "H += X^T X, m k (k + 1) FLOP", "mk", OF_INPUTS, prepare_hessian, call_hessian},
    {"cross", "C += Y^T X", "mnk", OF_LINEARS, prepare_cross, call_cross},
    {"factor", "Cholesky of H in reverse, k^3 / 3 FLOP", "k", OF_INPUTS, prepare_factor, call_factor},
    {"gptq", "GPTQ on fixed grids, n k^2 FLOP", "nk", OF_LINEARS, prepare_gptq, call_gptq},
    {"solve", "(H + shift I)^-1 through the factor, 2 n k^2 FLOP", "nk", OF_LINEARS, prepare_solve, call_solve},
    {"refine", "nearest rounding and 4 sweeps, 10 n k^2 FLOP", "nk", OF_LINEARS, prepare_refine, call_refine},
    {"literature", "GPTQ as published, in FP64", "nk", OF_LINEARS, prepare_literature, call_literature},
    {"loss", "tr(E H E^T) twice, 4 n k^2 FLOP", "nk", OF_LINEARS, prepare_loss, call_loss},
    {"range", "grids from the range of each group", "nk", OF_LINEARS, prepare_range, call_range},
    {"search", "grids of least squared error", "nk", OF_LINEARS, prepare_range, call_search},
    {"quantize", "weights to codes", "nk", OF_LINEARS, prepare_quantize, call_quantize},
    {"pack", "codes to the stream of words", "nk", OF_LINEARS, prepare_pack, call_pack},
    {"unpack", "and back", "nk", OF_LINEARS, prepare_pack, call_unpack},
    {0},
};
