#include "calib/capture.h"

#include <math.h>
#include <string.h>

#include "host/mat.h"

enum { PIECE = 1 << 20 }; /* bytes of an upload, about */

/* Device memory comes as it is: some rows of the pattern are uploaded at a time. */
static ql_status take_filled(ql_ctx *ctx, ql_arena *device, ql_dtype dtype, int64_t rows, int64_t cols, float value,
                             ql_mat *out) {
    ql_arena *host;
    float *pattern;
    size_t size = (size_t)cols * ql_dtype_size(dtype);
    int64_t step = 1 + PIECE / ((int64_t)size + 1);
    if (step > rows) step = rows;
    QL_TRY(ql_arena_mat(device, dtype, rows, cols, out));
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = ql_take(host, size, (size_t)step, &pattern); /* zeroed */
    for (int64_t i = 0; status == QL_OK && value != 0.0f && i < step * cols; i++) pattern[i] = value;
    for (int64_t r = 0; status == QL_OK && r < rows; r += step) {
        ql_mat piece = ql_rows(*out, r, rows - r < step ? rows - r : step);
        status = ql_upload(ctx, piece.data, pattern, ql_mat_bytes(piece));
    }
    ql_arena_close(host);
    return status;
}

ql_status capture_zeros(ql_ctx *ctx, ql_dtype dtype, int64_t rows, int64_t cols, ql_arena *device, ql_mat *out) {
    return take_filled(ctx, device, dtype, rows, cols, 0, out);
}

ql_status capture_open(ql_ctx *ctx, int64_t k, int kinds, ql_dtype precision, ql_arena *device, capture *out) {
    *out = (capture){.k = k};
    if (kinds & STATS_HESSIAN) QL_TRY(take_filled(ctx, device, precision, k, k, 0, &out->hessian));
    if (kinds & STATS_MOMENTS) {
        QL_TRY(take_filled(ctx, device, QL_F64, 1, k, 0, &out->sum_sq));
        QL_TRY(take_filled(ctx, device, QL_F64, 1, k, 0, &out->sum_abs));
        QL_TRY(take_filled(ctx, device, QL_F32, 1, k, INFINITY, &out->min));
        QL_TRY(take_filled(ctx, device, QL_F32, 1, k, -INFINITY, &out->max));
    }
    return kinds & STATS_HIST ? take_filled(ctx, device, QL_U64, 1, STATS_HIST_BINS, 0, &out->hist) : QL_OK;
}

ql_status capture_add(ql_ctx *ctx, capture *c, ql_mat x) {
    c->count += (uint64_t)x.rows;
    if (ql_is_present(c->hessian)) QL_TRY(ql_hessian(ctx, x, c->hessian));
    if (ql_is_present(c->sum_sq)) QL_TRY(ql_moments(ctx, x, c->sum_sq, c->sum_abs, c->min, c->max));
    if (ql_is_present(c->hist)) QL_TRY(ql_abs_hist(ctx, x, c->hist));
    return QL_OK;
}

ql_status capture_download(ql_ctx *ctx, const capture *c, ql_arena *host, stats_site *out) {
    *out = (stats_site){.k = c->k, .count = c->count};
    const struct {
        ql_mat mat;
        void *to;
    } parts[] = {
        {c->hessian, &out->hessian}, {c->sum_sq, &out->sum_sq}, {c->sum_abs, &out->sum_abs},
        {c->min, &out->min},         {c->max, &out->max},       {c->hist, &out->abs_hist},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (ql_is_present(parts[i].mat)) QL_TRY(ql_arena_download(host, ctx, parts[i].mat, (void **)parts[i].to));
    return QL_OK;
}

ql_status capture_largest(ql_ctx *ctx, const capture *c, float *largest) {
    ql_arena *host;
    stats_site columns;
    capture range = {.k = c->k, .count = c->count, .min = c->min, .max = c->max};
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = capture_download(ctx, &range, host, &columns);
    *largest = 0;
    for (int64_t i = 0; status == QL_OK && i < columns.k; i++)
        *largest = fmaxf(*largest, fmaxf(columns.max[i], -columns.min[i]));
    ql_arena_close(host);
    return status;
}

static ql_status upload_if_there(ql_arena *device, ql_dtype dtype, int64_t rows, int64_t cols, const void *values,
                                 ql_mat *out) {
    return values ? ql_arena_upload(device, dtype, rows, cols, values, out) : QL_OK;
}

ql_status capture_upload(const stats_site *site, ql_arena *device, capture *out) {
    int64_t k = site->k;
    *out = (capture){.k = k, .count = site->count};
    QL_TRY(upload_if_there(device, QL_F32, k, k, site->hessian, &out->hessian));
    QL_TRY(upload_if_there(device, QL_F64, 1, k, site->sum_sq, &out->sum_sq));
    QL_TRY(upload_if_there(device, QL_F64, 1, k, site->sum_abs, &out->sum_abs));
    QL_TRY(upload_if_there(device, QL_F32, 1, k, site->min, &out->min));
    QL_TRY(upload_if_there(device, QL_F32, 1, k, site->max, &out->max));
    return upload_if_there(device, QL_U64, 1, STATS_HIST_BINS, site->abs_hist, &out->hist);
}
