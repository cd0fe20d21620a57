/* What the files of plan share: the dimensions of a job, and what follows from its recipe. */
#ifndef CALIB_PLAN_PARTS_H
#define CALIB_PLAN_PARTS_H

#include "calib/plan.h"
#include "calib/tree.h"

/* The dimensions that everything is made of, as doubles: products of them exceed no range. */
typedef struct plan_sizes {
    double layers, hidden, attn, kv, mlp, vocab, seq_len,
        half_head;        /* widths of the residual stream, q, k, gate; tokens of a row */
    double ranks, nodes;  /* at least one */
    double tokens;        /* all of them */
    double share, mine;   /* of the rank that has most: share of the rows, tokens */
    double matrices;      /* of each statistic while a rank sums its leaves */
    double batch;         /* tokens of one batch */
    double source;        /* bytes per element of the checkpoint */
    double block;         /* weights of one block, elements */
    double largest;       /* of the largest tensor of the checkpoint, elements */
    double widest;        /* of the largest linear */
    double forward_width; /* of all buffers of a batch together, but for what is in FP32 always */
    double packed;        /* bytes of the quantized form of one block: codes, FP32 scales, zero points, g_idx */
    double packed_all;    /* of all blocks */
    double sum_k2;        /* elements of the Hessians of one block */
    double cross;         /* operations per token for the drift from the original model, in one block */
    double hessian;       /* bytes per element */
} plan_sizes;

static inline double plan_larger(double a, double b) { return a > b ? a : b; }
static inline double plan_smaller(double a, double b) { return a < b ? a : b; }

/* Rounding to nearest reads nothing of its rows: they do not pass. */
static inline bool plan_has_rows(const plan_request *r) {
    return r->n_seq > 0 && !r->from_store && recipe_statistics(r->recipe);
}
static inline bool plan_needs_hessian(const plan_request *r) {
    return (plan_has_rows(r) || r->from_store) && (recipe_statistics(r->recipe) & STATS_HESSIAN);
}

/* All inputs of a block are measured before any of its linears is solved. */
static inline bool plan_at_once(const plan_request *r) {
    return plan_needs_hessian(r) && (!r->recipe->sequential || r->mode != STATISTICS_PROPAGATED);
}
/* ... and then the rows pass once more, through the result. */
static inline bool plan_second_pass(const plan_request *r) {
    return plan_at_once(r) && r->mode == STATISTICS_PROPAGATED;
}

/* The rows also go through the original model, and what they are apart there enters every target. */
static inline bool plan_follows_original(const plan_request *r) {
    return plan_needs_hessian(r) && !plan_at_once(r) && r->recipe->drift > 0;
}

/* Behind o and down the residual stream is compared, elsewhere the input itself. */
static inline double plan_cross_rows(const model_config *c, site_id site) {
    bool adds = site == SITE_ATTN_OUT || site == SITE_MLP_DOWN_IN;
    return (double)(adds ? c->hidden : site_width(c, site));
}

/* Bytes of all tensors of the checkpoint in 16 bits. */
uint64_t plan_dense_bytes(const model_config *c);

plan_sizes plan_measure(const plan_request *r);
void plan_count_memory(const plan_request *r, const plan_sizes *s, plan *p);
/* Bytes, operations and seconds of the phases, after output_bytes is known. */
void plan_count_work(const plan_request *r, const plan_sizes *s, plan *p);

#endif
