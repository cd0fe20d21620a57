/* Products of every kind, in plain FP32.   y[m][n] = x[m][k] W[n][k]^T + bias[n]
 *
 * y is cut into tiles that the threads share.  For a tile, pieces of STEP inputs of x and of W are expanded to FP32 and multiplied
 * by one single-threaded BLAS call each.  Group and block scales are applied in the expansion, those of rows to the sum.
 * Integers without group scales give exact sums: a piece adds at most 512 products of |x| <= 255 and |w| <= 128, all of its partial
 * sums are integers below 2^24, which FP32 adds without rounding in any order; pieces are added in 32-bit integers.
 *
 * Tiles and pieces are fixed, so the bits do not depend on the number of threads.  With QL_ANY_BATCH rows of x are multiplied one at
 * a time: BLAS chooses its loops by the shape of a call.
 */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "host/cpu/blas.h"
#include "host/cpu/expand.h"
#include "host/mat.h"
#include "host/num.h"
#include "host/ops.h"
#include "host/product.h"
#include "host/status.h"

/* A thread's buffers, 1.5 MiB in all, stay in its second-level cache. */
enum { TILE_ROWS = 256, TILE_COLS = 256, STEP = 512 };

/* Rows [m0, m0 + rows) and columns [n0, n0 + cols) of y, and the buffers of the thread that makes them. */
typedef struct tile {
    const ql_plan *plan;
    const ql_arguments *arguments;
    int64_t m0, n0;
    int rows, cols;
    float *x, *w;     /* [rows][STEP], [TILE_COLS][STEP] */
    float *sum;       /* [rows][TILE_COLS] */
    int32_t *exact;   /* the same */
    uint32_t largest; /* |value| so far, as its bits */
} tile;

static int64_t tile_rows(int64_t m) { return ql_at_most(TILE_ROWS, m); }

static size_t thread_floats(int64_t rows) { return (size_t)(rows * STEP + TILE_COLS * STEP + 2 * rows * TILE_COLS); }

static size_t workspace(const ql_product *product, int64_t m, int threads) {
    (void)product;
    return (size_t)threads * thread_floats(tile_rows(m)) * sizeof(float);
}

/* ---- sums --------------------------------------------------------------------------------------------------------------------- */

/* sum = x w^T + beta sum over a piece of k inputs; row-major, so BLAS sees the transposed product. */
static void multiply(const tile *t, int k, float beta) {
    const int step = STEP, ld = TILE_COLS, rows = t->plan->product.repeat == QL_ANY_BATCH ? 1 : t->rows;
    const float one = 1;
    for (int r = 0; r < t->rows; r += rows)
        sgemm_("T", "N", &t->cols, &rows, &k, &one, t->w, &step, t->x + (int64_t)r * STEP, &step, &beta,
               t->sum + (int64_t)r * TILE_COLS, &ld);
}

/* Modulo 2^32, as the matrix instructions of a GPU. */
static void add_exact(const tile *t) {
    for (int64_t i = 0; i < (int64_t)t->rows * TILE_COLS; i++)
        t->exact[i] = (int32_t)((uint32_t)t->exact[i] + (uint32_t)(int32_t)t->sum[i]);
}

static void sum_tile(const tile *t) {
    const int exact = ql_product_is_exact(&t->plan->product);
    const int64_t k = t->plan->product.k;
    memset(t->sum, 0, (size_t)t->rows * TILE_COLS * sizeof *t->sum);
    memset(t->exact, 0, (size_t)t->rows * TILE_COLS * sizeof *t->exact);
    for (int64_t k0 = 0; k0 < k; k0 += STEP) {
        int count = (int)ql_at_most(STEP, k - k0);
        ql_expand_x(t->plan, t->arguments, t->m0, t->rows, k0, count, t->x, STEP);
        ql_expand_w(t->plan, t->arguments->weight, t->n0, t->cols, k0, count, t->w, STEP);
        multiply(t, count, exact ? 0 : 1);
        if (exact) add_exact(t);
    }
}

/* ---- values --------------------------------------------------------------------------------------------------------------------- */

static float scale_at(ql_scale_mode mode, const float *scale, int64_t i) {
    return mode == QL_SCALE_ROW ? scale[i] : mode == QL_SCALE_TENSOR ? scale[0] : 1;
}

/* One row of the tile from sums to values, in place. */
static void finish_row(tile *t, int row, const float *w_scale) {
    const ql_product *p = &t->plan->product;
    const float x_scale = scale_at(p->x_scale, t->arguments->x_scale.data, t->m0 + row);
    const float *bias = t->arguments->bias.data;
    const int32_t *exact = t->exact + (int64_t)row * TILE_COLS;
    float *value = t->sum + (int64_t)row * TILE_COLS;
    for (int c = 0; c < t->cols; c++) {
        float sum = ql_product_is_exact(p) ? (float)exact[c] : value[c];
        value[c] =
            ql_product_value(sum, x_scale, scale_at(p->w_scale, w_scale, t->n0 + c), bias ? bias[t->n0 + c] : 0.0f);
        uint32_t magnitude = ql_f32_bits(value[c]) & 0x7fffffffu; /* in the order of the values, NaN above all */
        if (magnitude > t->largest) t->largest = magnitude;
    }
}

static void store_row(const tile *t, int row) {
    ql_mat y = t->arguments->y;
    const float *value = t->sum + (int64_t)row * TILE_COLS;
    const int64_t at = (t->m0 + row) * y.ld + t->n0;
    switch (y.dtype) {
    case QL_I32: memcpy((int32_t *)y.data + at, t->exact + (int64_t)row * TILE_COLS, (size_t)t->cols * 4); return;
    case QL_F32: memcpy((float *)y.data + at, value, (size_t)t->cols * 4); return;
    case QL_F16:
        for (int c = 0; c < t->cols; c++) ((uint16_t *)y.data)[at + c] = ql_f32_to_f16(value[c]);
        return;
    case QL_BF16:
        for (int c = 0; c < t->cols; c++) ((uint16_t *)y.data)[at + c] = ql_f32_to_bf16(value[c]);
        return;
    default: {
        const float y_scale = *(const float *)t->arguments->y_scale.data;
        for (int c = 0; c < t->cols; c++) ((uint8_t *)y.data)[at + c] = ql_f32_to_e4m3(value[c] / y_scale);
    }
    }
}

static void make_tile(tile *t) {
    const ql_packed *p = &t->plan->packed;
    const float *w_scale = (const float *)((const char *)t->arguments->weight + p->scale);
    sum_tile(t);
    for (int r = 0; r < t->rows; r++) {
        finish_row(t, r, w_scale);
        store_row(t, r);
    }
}

/* ---- the kernel ----------------------------------------------------------------------------------------------------------------- */

static tile tile_at(const ql_plan *plan, const ql_arguments *arguments, int64_t m0, int64_t n0, float *buffers) {
    int64_t m = arguments->x.rows, rows = tile_rows(m);
    tile t = {
        plan, arguments, m0, n0, (int)ql_at_most(rows, m - m0), (int)ql_at_most(TILE_COLS, plan->product.n - n0), 0,
        0,    0,         0,  0};
    t.x = buffers, t.w = t.x + rows * STEP, t.sum = t.w + TILE_COLS * STEP;
    t.exact = (int32_t *)(t.sum + rows * TILE_COLS);
    return t;
}

static ql_status run(const ql_plan *plan, const ql_arguments *arguments, void *memory, void *stream) {
    const int64_t m = arguments->x.rows, n = plan->product.n;
    const size_t floats = thread_floats(tile_rows(m));
    uint32_t largest = 0;
    (void)stream;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(plan->workers) reduction(max : largest)
    for (int64_t n0 = 0; n0 < n; n0 += TILE_COLS)
        for (int64_t m0 = 0; m0 < m; m0 += TILE_ROWS) {
            tile t = tile_at(plan, arguments, m0, n0, (float *)memory + (size_t)omp_get_thread_num() * floats);
            make_tile(&t);
            if (t.largest > largest) largest = t.largest;
        }
    if (ql_is_present(arguments->y_amax)) *(float *)arguments->y_amax.data = ql_bits_f32(largest);
    return QL_OK;
}

static ql_status takes(const ql_product *product, int arch) {
    (void)product, (void)arch;
    return QL_OK;
}

static const ql_kernel kernel = {"cpu", takes, 1, INT64_MAX, workspace, run, NULL};

ql_status ql_cpu_plan(ql_ctx *ctx, ql_plan *plan) {
    plan->workers = ctx->threads;
    ql_plan_offer(plan, &kernel);
    return QL_OK;
}

ql_status ql_cpu_measure(ql_ctx *ctx, const ql_plan *plan, ql_arena *arena, ql_choices *choices) {
    (void)ctx, (void)plan, (void)arena, (void)choices;
    return ql_fail(QL_UNSUPPORTED, "measure: the CPU has one kernel, there is nothing to choose from");
}

ql_status ql_cpu_enter(const ql_plan *plan, void *stream) {
    (void)plan, (void)stream;
    return QL_OK;
}
