/* What stands between the products of a forward pass, and the measures behind it. */
#include <math.h>
#include <stdio.h>

#include "calib/bench/bench.h"
#include "host/mat.h"

enum { HEAD = 64, ABS_BINS = 32768 };

/* x twice: two operands may be the same matrix, but reading it once would count as reading two. */
static ql_status two_inputs(bench *b, int64_t rows, int64_t cols) {
    QL_TRY(bench_rotate(b, 8.0 * (double)rows * (double)cols));
    for (int64_t i = 0; i < b->copies; i++) {
        QL_TRY(bench_random(b, QL_F32, rows, cols, &b->of[i].x));
        QL_TRY(bench_random(b, QL_F32, rows, cols, &b->of[i].w));
    }
    return QL_OK;
}

/* ---- attention --------------------------------------------------------------------------------------------------------- */

static ql_status attention_heads(bench *b) {
    int64_t heads = b->how.heads ? b->how.heads : b->how.shape.k / HEAD;
    int64_t kv_heads = b->how.heads ? b->how.kv_heads : heads;
    if (heads < 1 || b->how.shape.k % heads)
        return ql_fail(QL_USAGE, "attention: k = %lld is no multiple of %d", (long long)b->how.shape.k, HEAD);
    double d = (double)(b->how.shape.k / heads);
    b->attention = (ql_attention_shape){.heads = heads, .kv_heads = kv_heads, .scale = (float)(1 / sqrt(d))};
    snprintf(b->plan, sizeof b->plan, "%lld/%lld heads of %.0f", (long long)heads, (long long)kv_heads, d);
    return QL_OK;
}

/* q of `rows`, k and v of `keys` rows. */
static ql_status attention_operands(bench *b, int64_t rows, int64_t keys) {
    int64_t k = b->how.shape.k, width = k / b->attention.heads * b->attention.kv_heads;
    double cached = 8.0 * (double)keys * (double)width;
    ql_mat q, out;
    QL_TRY(bench_rotate(b, cached));
    QL_TRY(bench_random(b, QL_F32, rows, k, &q));
    QL_TRY(bench_zeros(b, QL_F32, rows, k, &out));
    for (int64_t i = 0; i < b->copies; i++) {
        b->of[i].x = q, b->of[i].y = out;
        QL_TRY(bench_random(b, QL_F32, keys, width, &b->of[i].w));
        QL_TRY(bench_random(b, QL_F32, keys, width, &b->of[i].h));
    }
    b->bytes = cached + 8.0 * (double)rows * (double)k;
    return QL_OK;
}

/* m rows in sequences of n. */
static ql_status prepare_attention(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(attention_heads(b));
    QL_TRY(attention_operands(b, s.m, s.m));
    b->n_seq = ql_ceil_div(s.m, s.n);
    QL_TRY(ql_take(b->host, (size_t)b->n_seq + 1, sizeof *b->start, &b->start));
    for (int64_t i = 0; i <= b->n_seq; i++) {
        b->start[i] = i * s.n < s.m ? i * s.n : s.m;
        double length = i ? (double)(b->start[i] - b->start[i - 1]) : 0;
        b->flops += 2 * length * (length + 1) * (double)s.k; /* a query sees half of the keys on average */
    }
    return QL_OK;
}

static ql_status call_attention(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_attention(b->ctx, o->x, o->w, o->h, &b->attention, b->start, b->n_seq, o->y);
}

/* m queries at the end of n keys. */
static ql_status prepare_cached(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(attention_heads(b));
    if (s.n < s.m)
        return ql_fail(QL_USAGE, "attention_cached: m = %lld is above n = %lld", (long long)s.m, (long long)s.n);
    QL_TRY(attention_operands(b, s.m, s.n));
    b->flops = 4.0 * (double)s.m * ((double)s.n - 0.5 * (double)(s.m - 1)) * (double)s.k;
    return QL_OK;
}

static ql_status call_cached(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_attention_cached(b->ctx, o->x, o->w, o->h, &b->attention, o->y);
}

/* ---- rows -------------------------------------------------------------------------------------------------------------- */

static ql_status prepare_swiglu(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(two_inputs(b, s.m, s.k));
    QL_TRY(bench_zeros(b, QL_F32, s.m, s.k, &b->of[0].y));
    b->bytes = 12.0 * (double)s.m * (double)s.k;
    return QL_OK;
}

static ql_status call_swiglu(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_swiglu(b->ctx, o->x, o->w, b->of[0].y);
}

static ql_status prepare_rmsnorm(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(prepare_swiglu(b));
    QL_TRY(bench_random(b, QL_F32, 1, s.k, &b->of[0].one));
    b->bytes = 8.0 * (double)s.m * (double)s.k;
    return QL_OK;
}

static ql_status call_rmsnorm(void *data, int64_t i) {
    const bench *b = data;
    return ql_rmsnorm(b->ctx, b->of[i % b->copies].x, b->of[0].one, 1e-5f, b->of[0].y);
}

static ql_status prepare_abs_hist(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(two_inputs(b, s.m, s.k));
    QL_TRY(bench_zeros(b, QL_U64, 1, ABS_BINS, &b->of[0].one));
    b->bytes = 4.0 * (double)s.m * (double)s.k;
    return QL_OK;
}

static ql_status call_abs_hist(void *data, int64_t i) {
    const bench *b = data;
    return ql_abs_hist(b->ctx, b->of[i % b->copies].x, b->of[0].one);
}

/* ---- measures ---------------------------------------------------------------------------------------------------------- */

static ql_status prepare_measures(bench *b) {
    bench_shape s = b->how.shape;
    QL_TRY(two_inputs(b, s.m, s.n));
    QL_TRY(bench_zeros(b, QL_I32, 1, s.m, &b->of[0].one));
    QL_TRY(bench_zeros(b, QL_F64, 1, s.m, &b->of[0].two));
    QL_TRY(bench_zeros(b, QL_U8, 1, s.m, &b->of[0].three));
    b->bytes = 4.0 * (double)s.m * (double)s.n;
    return QL_OK;
}

static ql_status call_nll(void *data, int64_t i) {
    const bench *b = data;
    return ql_nll(b->ctx, b->of[i % b->copies].x, b->of[0].one, b->of[0].two);
}

static ql_status prepare_kld(bench *b) {
    QL_TRY(prepare_measures(b));
    b->bytes *= 2;
    return QL_OK;
}

static ql_status call_kld(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_kld(b->ctx, o->x, o->w, b->of[0].two, b->of[0].three);
}

const bench_op bench_forward[] = {
    {"attention", "causal, m rows in sequences of n (default: one), k = heads * d", "mnk", OF_HEADS, prepare_attention,
     call_attention},
    {"attention_cached", "m queries at the end of n keys", "mnk", OF_HEADS, prepare_cached, call_cached},
    {"rmsnorm", "rows of k values", "mk", OF_INPUTS, prepare_rmsnorm, call_rmsnorm},
    {"swiglu", "rows of k values", "mk", OF_INPUTS, prepare_swiglu, call_swiglu},
    {"abs_hist", "histogram of magnitudes", "mk", OF_INPUTS, prepare_abs_hist, call_abs_hist},
    {"nll", "loss of m rows of n logits", "mn", OF_VOCABULARY, prepare_measures, call_nll},
    {"kld", "KL divergence of m rows of n logits", "mn", OF_VOCABULARY, prepare_kld, call_kld},
    {0},
};
