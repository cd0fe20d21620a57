/* Perplexity of a model, and how far it is from its base.
 *
 * Protocol "rows": every row of the token file is a window of its own; each token from the second valid one on is scored given those
 * before it in the row.  nll is the mean over scored tokens in nats, perplexity its exponential.
 */
#ifndef CALIB_EVALUATE_H
#define CALIB_EVALUATE_H

#include "calib/data.h"
#include "calib/progress.h"

enum { POSITION_BUCKETS = 16 };

typedef struct evaluation {
    int64_t n_tokens; /* scored */
    double nll, perplexity;
    bool compared; /* the rest is set */
    double base_nll, base_perplexity;
    double kld_mean, kld_median, kld_p99, kld_max;
    double top1_agreement; /* share of positions with the same arg max */
    int64_t bucket_width;  /* positions per bucket; the loss difference (model - base, nats) by position in the row */
    int n_buckets;
    double position_delta[POSITION_BUCKETS];
} evaluation;

/* base: NULL, or the model to compare with.  p has evaluate_steps() steps. */
int64_t evaluate_steps(const model *m, const model *base);
ql_status evaluate(ql_ctx *ctx, model *m, model *base, const token_file *tokens, progress *p, evaluation *out);

#endif
