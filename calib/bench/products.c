/* Products y = x W^T of m tokens. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "calib/bench/bench.h"
#include "host/cpu/blas.h"
#include "host/mat.h"

static bool is_cpu(const bench *b) { return strcmp(ql_ctx_device(b->ctx), "cpu") == 0; }

static double mnk(const bench *b) {
    return 2.0 * (double)b->how.shape.m * (double)b->how.shape.n * (double)b->how.shape.k;
}

/* x and y of F32 are shared by all copies of the weight. */
static ql_status share_rows(bench *b) {
    bench_shape s = b->how.shape;
    ql_mat x, y;
    QL_TRY(bench_random(b, QL_F32, s.m, s.k, &x));
    QL_TRY(bench_zeros(b, QL_F32, s.m, s.n, &y));
    for (int64_t i = 0; i < b->copies; i++) b->of[i].x = x, b->of[i].y = y;
    return QL_OK;
}

/* ---- FP32 -------------------------------------------------------------------------------------------------------------- */

static ql_status prepare_gemm(bench *b) {
    bench_shape s = b->how.shape;
    double weight = 4.0 * (double)s.n * (double)s.k;
    QL_TRY(bench_rotate(b, weight));
    QL_TRY(share_rows(b));
    for (int64_t i = 0; i < b->copies; i++) QL_TRY(bench_random(b, QL_F32, s.n, s.k, &b->of[i].w));
    b->flops = mnk(b);
    b->bytes = weight + 4.0 * (double)s.m * (double)(s.n + s.k);
    b->peer = s;
    return QL_OK;
}

static ql_status call_gemm(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_gemm(b->ctx, o->x, o->w, ql_no_mat(), o->y);
}

static ql_status prepare_qgemm(bench *b) {
    bench_shape s = b->how.shape;
    int64_t group = b->how.group > s.k ? s.k : b->how.group, groups = ql_groups(s.k, group);
    int64_t words = ql_packed_words(s.k, b->how.bits);
    double weight = (double)s.n * (4.0 * (double)words + 5.0 * (double)groups);
    QL_TRY(bench_rotate(b, weight));
    QL_TRY(share_rows(b));
    for (int64_t i = 0; i < b->copies; i++) {
        ql_qweight *q = &b->of[i].q;
        *q = (ql_qweight){.n = s.n, .k = s.k, .grid = {.bits = b->how.bits, .group = group}};
        QL_TRY(bench_random(b, QL_I32, s.n, words, &q->codes));
        QL_TRY(bench_scales(b, s.n, groups, &q->grid.scale));
        QL_TRY(bench_random(b, QL_U8, s.n, groups, &q->grid.zero));
    }
    snprintf(b->plan, sizeof b->plan, "%d bits, g%lld", b->how.bits, (long long)group);
    b->flops = mnk(b);
    b->bytes = weight + 4.0 * (double)s.m * (double)(s.n + s.k);
    b->peer = s;
    return QL_OK;
}

static ql_status call_qgemm(void *data, int64_t i) {
    const bench *b = data;
    const operands *o = &b->of[i % b->copies];
    return ql_qgemm(b->ctx, o->x, &o->q, ql_no_mat(), o->y);
}

/* ---- packed ------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *op;
    ql_product product;
} formats[] = {
    {"dense", {.x = QL_BF16, .w = QL_BF16, .y = QL_BF16}},
    {"w2a16", {.x = QL_BF16, .w = QL_U8, .y = QL_BF16, .bits = 2, .w_scale = QL_SCALE_GROUP, .scale = QL_F16}},
    {"w3a16", {.x = QL_BF16, .w = QL_U8, .y = QL_BF16, .bits = 3, .w_scale = QL_SCALE_GROUP, .scale = QL_F16}},
    {"w4a16", {.x = QL_BF16, .w = QL_U8, .y = QL_BF16, .bits = 4, .w_scale = QL_SCALE_GROUP, .scale = QL_F16}},
    {"w8a16", {.x = QL_BF16, .w = QL_U8, .y = QL_BF16, .bits = 8, .w_scale = QL_SCALE_GROUP, .scale = QL_F16}},
    {"w4a8",
     {.x = QL_I8,
      .w = QL_U8,
      .y = QL_BF16,
      .bits = 4,
      .x_scale = QL_SCALE_ROW,
      .w_scale = QL_SCALE_GROUP,
      .scale = QL_F16}},
    {"int8", {.x = QL_I8, .w = QL_I8, .y = QL_BF16, .x_scale = QL_SCALE_ROW, .w_scale = QL_SCALE_ROW}},
    {"fp8", {.x = QL_F8_E4M3, .w = QL_F8_E4M3, .y = QL_BF16, .x_scale = QL_SCALE_ROW, .w_scale = QL_SCALE_ROW}},
    {"fp8_block",
     {.x = QL_F8_E4M3, .w = QL_F8_E4M3, .y = QL_BF16, .x_scale = QL_SCALE_BLOCK, .w_scale = QL_SCALE_BLOCK}},
};

static ql_product product_of(const bench *b, const char *op) {
    bench_shape s = b->how.shape;
    size_t i = 0;
    while (strcmp(formats[i].op, op) != 0) i++;
    ql_product p = formats[i].product;
    p.n = s.n, p.k = s.k, p.m_max = s.m;
    if (p.w_scale == QL_SCALE_GROUP) {
        p.group = b->how.group < s.k ? b->how.group : s.k;
        p.ordered = b->how.ordered;
    }
    return p;
}

/* A scale of its own mode for a matrix of rows x cols; absent for NONE. */
static ql_status scale_for(bench *b, ql_scale_mode mode, int64_t group, bool is_x, int64_t rows, int64_t cols,
                           ql_mat *scale) {
    const int64_t block = 128;
    *scale = ql_no_mat();
    switch (mode) {
    case QL_SCALE_NONE: return QL_OK;
    case QL_SCALE_TENSOR: return bench_scales(b, 1, 1, scale);
    case QL_SCALE_ROW: return bench_scales(b, 1, rows, scale);
    case QL_SCALE_GROUP: return bench_scales(b, rows, ql_groups(cols, group), scale);
    case QL_SCALE_BLOCK:
        return bench_scales(b, is_x ? rows : ql_ceil_div(rows, block), ql_ceil_div(cols, block), scale);
    }
    return QL_OK;
}

/* The group of each input, every group full. */
static ql_status ordered_groups(bench *b, const ql_product *p, ql_mat *order) {
    int32_t *groups;
    *order = ql_no_mat();
    if (!p->ordered) return QL_OK;
    QL_TRY(bench_order(b));
    QL_TRY(ql_take(b->host, (size_t)p->k, sizeof *groups, &groups));
    QL_TRY(ql_download(b->ctx, groups, b->order.data, ql_mat_bytes(b->order)));
    for (int64_t i = 0; i < p->k; i++) groups[i] /= (int32_t)p->group;
    QL_TRY(ql_arena_mat(b->device, QL_I32, 1, p->k, order));
    return ql_upload(b->ctx, order->data, groups, ql_mat_bytes(*order));
}

static ql_status pack_copy(bench *b, const ql_product *p, ql_mat order, void **packed) {
    ql_weight weight = {.order = order};
    QL_TRY(ql_arena_take(b->device, ql_plan_packed(b->product), 1, packed));
    ql_mark mark = ql_arena_mark(b->device);
    b->how.bits = p->bits ? p->bits : b->how.bits;
    QL_TRY(bench_random(b, p->w, p->n, p->k, &weight.values));
    QL_TRY(scale_for(b, p->w_scale, p->group, false, p->n, p->k, &weight.scale));
    QL_TRY(ql_pack_weight(b->ctx, b->product, &weight, *packed));
    ql_arena_release(b->device, mark);
    return QL_OK;
}

static ql_status prepare_product(bench *b, const char *op) {
    const ql_product p = product_of(b, op);
    ql_mat order;
    ql_arguments shared = {0};
    QL_TRY(b->how.choices ? ql_plan_make_measured(b->ctx, &p, b->how.choices, &b->product)
                          : ql_plan_make(b->ctx, &p, &b->product));
    QL_TRY(bench_rotate(b, (double)ql_plan_packed(b->product)));
    QL_TRY(bench_random(b, p.x, p.m_max, p.k, &shared.x));
    QL_TRY(scale_for(b, p.x_scale, 0, true, p.m_max, p.k, &shared.x_scale));
    QL_TRY(bench_zeros(b, p.y, p.m_max, p.n, &shared.y));
    QL_TRY(ql_arena_take(b->device, ql_plan_workspace(b->product) + 256, 1, &b->workspace));
    QL_TRY(ordered_groups(b, &p, &order));
    for (int64_t i = 0; i < b->copies; i++) {
        void *packed;
        QL_TRY(pack_copy(b, &p, order, &packed));
        b->of[i].product = shared;
        b->of[i].product.weight = packed;
    }
    snprintf(b->plan, sizeof b->plan, "%s", ql_plan_describe(b->product, p.m_max));
    b->flops = mnk(b);
    b->bytes = (double)ql_plan_packed(b->product) + (double)(ql_mat_bytes(shared.x) + ql_mat_bytes(shared.y));
    b->rate = !is_cpu(b) && ql_dtype_size(p.x) == 1 ? 2 : 1; /* 8 bits: twice the tensor cores' rate */
    b->peer = b->how.shape;
    return QL_OK;
}

ql_status bench_choose(ql_ctx *ctx, bench_shape shape, const char *choices) {
    const bench b = {.how = {.shape = shape}};
    const ql_product p = product_of(&b, "dense");
    ql_status status = ql_plan_measure(ctx, &p, choices);
    return status == QL_UNSUPPORTED ? QL_OK : status; /* nothing to choose from */
}

static ql_status prepare_packed(bench *b) { return prepare_product(b, b->how.op->name); }

static ql_status call_packed(void *data, int64_t i) {
    const bench *b = data;
    return ql_execute(b->product, &b->of[i % b->copies].product, b->workspace, ql_ctx_stream(b->ctx));
}

const bench_op bench_products[] = {
    {"dense", "BF16, the library's choice", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"w2a16", "BF16 x codes of 2 bits in groups", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"w3a16", "BF16 x codes of 3 bits in groups", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"w4a16", "BF16 x codes of 4 bits in groups", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"w8a16", "BF16 x codes of 8 bits in groups", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"w4a8", "INT8 per token x codes of 4 bits in groups", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"int8", "INT8 per token x per output", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"fp8", "E4M3 per token x per output", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"fp8_block", "E4M3 in 1 x 128 x blocks of 128 x 128", "mnk", OF_LINEARS, prepare_packed, call_packed},
    {"gemm", "FP32, as calibration multiplies", "mnk", OF_LINEARS, prepare_gemm, call_gemm},
    {"qgemm", "FP32 x the stream of codes of --bits", "mnk", OF_LINEARS, prepare_qgemm, call_qgemm},
    {0},
};

/* ---- what one would call instead --------------------------------------------------------------------------------------- */

static ql_status prepare_peer(bench *b) {
    if (!is_cpu(b)) return prepare_product(b, "dense");
    QL_TRY(prepare_gemm(b));
    snprintf(b->plan, sizeof b->plan, "sgemm");
    return QL_OK;
}

/* Plain sgemm with the library's own threads.  Row-major y = x w^T is column-major y^T = w x^T, where w lies transposed. */
static ql_status call_sgemm(const bench *b, const operands *o) {
    const int m = (int)o->x.rows, n = (int)o->w.rows, k = (int)o->x.cols;
    const float one = 1, zero = 0;
    void (*set_threads)(int) = NULL;
    *(void **)&set_threads = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
    if (set_threads) set_threads(ql_ctx_threads(b->ctx));
    sgemm_("T", "N", &n, &m, &k, &one, o->w.data, &k, o->x.data, &k, &zero, o->y.data, &n);
    if (set_threads) set_threads(1); /* as the backend wants it */
    return QL_OK;
}

static ql_status call_peer(void *data, int64_t i) {
    const bench *b = data;
    return is_cpu(b) ? call_sgemm(b, &b->of[i % b->copies]) : call_packed(data, i);
}

const bench_op bench_dense_peer = {"peer", "dense product of the library", "mnk", OF_LINEARS, prepare_peer, call_peer};
