/* Statistics of one input of a block while it passes: Hessian, moments, histogram.  Device memory until taken. */
#ifndef CALIB_CAPTURE_H
#define CALIB_CAPTURE_H

#include "formats/stats.h"

typedef struct capture {
    int64_t k;
    uint64_t count;                   /* tokens */
    ql_mat hessian;                   /* F32 or F64 [k][k], upper triangle, or absent */
    ql_mat sum_sq, sum_abs, min, max; /* F64, F64, F32, F32 [1][k], or absent */
    ql_mat hist;                      /* U64 [1][32768], or absent */
} capture;

/* A matrix of zeros. */
ql_status capture_zeros(ql_ctx *ctx, ql_dtype dtype, int64_t rows, int64_t cols, ql_arena *device, ql_mat *out);

/* kinds: STATS_*; precision of the Hessian: QL_F32 or QL_F64. */
ql_status capture_open(ql_ctx *ctx, int64_t k, int kinds, ql_dtype precision, ql_arena *device, capture *out);
ql_status capture_add(ql_ctx *ctx, capture *c, ql_mat x);

/* What the linears of one input must make up for, because earlier layers have already changed it: x instead of the original x0.
 * Either of two forms, both F32 on the device. */
typedef struct drift {
    ql_mat input;  /* [k][k], sum of x (x0 - x)^T: q, k, v and gate, up, whose own output is wanted */
    ql_mat output; /* [n][k], sum of (y0 - y) x^T: o and down, where y is the residual stream with their output added */
} drift;

/* Copies to the host; FP32 Hessians only. */
ql_status capture_download(ql_ctx *ctx, const capture *c, ql_arena *host, stats_site *out);
/* The largest magnitude of all columns, from minima and maxima. */
ql_status capture_largest(ql_ctx *ctx, const capture *c, float *largest);
/* The reverse, for statistics that come from a store, as far as it has them. */
ql_status capture_upload(const stats_site *site, ql_arena *device, capture *out);

#endif
