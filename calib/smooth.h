/* Smoothing: before its linears are quantized, the inputs of a block are divided by a scale per channel and the weights that read them
 * multiplied by it, which changes nothing but what is hard to round.  The division is folded into whatever makes the input:
 *
 *   attn_in      input_layernorm               -> columns of q, k, v
 *   attn_out     rows of v                     -> columns of o; query heads that share a v head share its scales
 *   mlp_in       post_attention_layernorm      -> columns of gate, up
 *   mlp_down_in  rows of up                    -> columns of down
 *
 * Scales are chosen from full-precision statistics: AWQ (calib/method/awq.c) on all four, SmoothQuant (calib/method/smoothquant.c) on
 * the two behind a norm.  An input stays as it is where one of the linears around it keeps its 16 bits.
 */
#ifndef CALIB_SMOOTH_H
#define CALIB_SMOOTH_H

#include "calib/capture.h"
#include "calib/model.h"
#include "calib/output.h"
#include "calib/phases.h"
#include "calib/recipe.h"

typedef struct smoothing {
    float *scale[SITES];   /* host, one per channel of the producer; NULL: the input stays as it is */
    float *folded[FOLDED]; /* host, new values of the tensor, exact in FP16 and BF16 alike; NULL: as in the source */
} smoothing;

/* One input and what reads it, as the search for its scales sees it. */
typedef struct smooth_problem {
    ql_ctx *ctx;
    ql_arena *device, *host; /* scratch: released by the caller */
    const recipe *recipe;
    const model_config *config;
    site_id site;
    int64_t k, width;  /* channels of the input, and of its producer: fewer where heads share */
    uint64_t count;    /* tokens behind the statistics */
    const float *mean; /* host [width], mean magnitude of each channel; where heads share, over all of them */
    const float *max;  /* host [width], largest magnitude */
    ql_mat h;          /* [k][k] upper triangle */
    int readers;
    const linear *reader[LINEARS];
    const module_rule *rule[LINEARS];
} smooth_problem;

/* The channel of the producer that makes column `column` of an input. */
int64_t smooth_channel(const model_config *config, site_id site, int64_t column);

/* Writes the best scales to scale[width]; all 1 if nothing is better than leaving the input as it is. */
typedef ql_status smooth_search(const smooth_problem *p, float *scale);
smooth_search smooth_awq, smooth_smoothquant;

/* What rounding the readers to nearest loses on these statistics, sum of tr(E H E^T), when columns are multiplied by scale[width]
 * first; energy: sum of the squares of the scaled weights. */
ql_status smooth_loss(const smooth_problem *p, const float *scale, double *loss, double *energy);

/* The largest magnitude of each column over all readers and its mean relative to the group (ql_magnitude), by channel of the producer. */
ql_status smooth_weights(const smooth_problem *p, float *max, float *mean);

/* Chooses the scales of a block from statistics[SITES] (host: moments) and captures[SITES] (device: Hessians), and replaces b's
 * dense weights, captures' Hessians and ranges by smoothed copies in `device`.  Results live in `host`. */
typedef struct smooth_job {
    ql_ctx *ctx;
    ql_arena *device, *host;
    phases *phases;
    const recipe *recipe;
    const model_config *config;
    const module_rule *rules; /* [LINEARS] */
    const stats_site *statistics;
} smooth_job;
ql_status smooth_block(const smooth_job *job, block *b, capture captures[SITES], smoothing *out);

#endif
