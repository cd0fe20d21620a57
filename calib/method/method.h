/* Methods: one linear layer in, grid and codes out.  One method, one file, one signature. */
#ifndef CALIB_METHOD_H
#define CALIB_METHOD_H

#include "calib/capture.h"
#include "calib/phases.h"
#include "calib/recipe.h"
#include "host/comm.h"

/* The factor of one input's statistics, for all linears behind it, which have its damping and its order of the columns in common: the
 * first computes it and its owner sends it, the others find it. */
typedef struct shared_factor {
    ql_mat r;    /* F32 [k][k]; absent at first where there is one linear: it takes r from its scratch */
    bool known;  /* computed, or in vain */
    bool failed; /* not positive definite at any damping */
    double damp;
} shared_factor;

typedef struct linear_problem {
    ql_ctx *ctx;
    ql_arena *device; /* scratch: released by the caller */
    phases *phases;
    const recipe *recipe;
    ql_comm *comm;         /* NULL: one rank */
    int owner;             /* the rank that factors h */
    shared_factor *factor; /* of h */
    int64_t all, first;    /* rows of the whole weight; the first of ours */
    int64_t n, k;          /* our rows, perhaps none */
    ql_mat w;              /* F32 [n][k], to be approximated; a method may put a better target in its place */
    ql_mat h;              /* [k][k] upper triangle, F32 (F64 in literature mode), sum of x x^T; absent: no data */
    double h_scale;        /* literature: 2 / n_seq */
    const drift *drift;    /* NULL: not measured */
    ql_mat importance;     /* F32 [1][k], diagonal of H; absent without data */
    ql_mat order;          /* I32 [1][k], order of the columns; absent: as they come */
    double mean_diagonal;  /* of the live columns */
} linear_problem;

/* Rows of a weight are independent given its statistics.  What is computed from several rows at once, a product or a sum, is computed
 * by panels of this height, so that it does not matter which rows somebody has. */
static inline int64_t panel_height(int64_t n) { return n > 8192 ? 512 : 128; }

/* How a module was treated, for the report. */
typedef struct linear_record {
    const char *method;   /* "rtn", "hqq", "gptq" */
    const char *fallback; /* reason, or NULL */
    double damp;
    int64_t dead;                /* columns without any input */
    double outlier;              /* RMS of the largest channel of the input over that of the median one; 0: not known */
    double loss, rtn_loss, norm; /* tr(E H E^T) of the result and of nearest rounding, tr(W H W^T) */
    double seconds;
} linear_record;

/* grid comes with bits, group, g_idx and memory for scale and zero; codes [n][k] U8.  QL_NUMERIC: this problem has no solution
 * with this method (the caller falls back to nearest rounding and reports it). */
typedef ql_status method_run(linear_problem *p, ql_grid *grid, ql_mat codes, linear_record *record);

method_run method_rtn, method_hqq, method_gptq, method_gptq_literature;

#endif
