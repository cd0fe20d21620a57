/* One linear layer, top to bottom. */
#ifndef CALIB_LINEAR_H
#define CALIB_LINEAR_H

#include "calib/capture.h"
#include "calib/method/method.h"
#include "calib/model.h"

typedef struct linear_job {
    ql_ctx *ctx;
    ql_arena *device; /* scratch */
    ql_arena *host;   /* where the result lives */
    phases *phases;
    const recipe *recipe;
    module_rule rule;
    const char *name;
    const capture *input;      /* statistics of the input; NULL: no data */
    const imatrix *importance; /* of a file, instead of that of the input; NULL: none */
    const drift *drift;        /* NULL: not measured */
    int64_t n_seq;             /* sequences behind them */
    ql_comm *comm;             /* NULL: one rank */
    int owner;                 /* the rank that factors the statistics */
    shared_factor *factor;     /* of the input, for its linears one after the other */
    float largest; /* what weights that share a tensor's scale reach to (linear_tensor_range); GROUP_TENSOR alone */
} linear_job;

/* Quantizes lin->w (dense F32) by the rule.  The result stands in `out`, in host memory. */
ql_status linear_quantize(const linear_job *job, const linear *lin, qmodule *out, linear_record *record);

/* calib/values.c: rounding to numbers that need no grid search (FP8, NF4, integers with one scale per tensor), and the scale of
 * static activations and of whole tensors, from the ranges of inputs and weights. */
ql_status linear_round_values(const linear_job *job, ql_mat w, qmodule *out, linear_record *record);
/* calib/blocks.c: to the blocks of GGUF that the rule names, weighed by the importance of the inputs where it is known. */
ql_status linear_encode_blocks(const linear_job *job, ql_mat w, qmodule *out, linear_record *record);
ql_status linear_find_input_scale(const linear_job *job, qmodule *out);
ql_status linear_tensor_range(const linear_job *job, const block *b, site_id site, float *limit);
ql_status linear_largest(const linear_job *job, ql_mat w, float *largest); /* magnitude of all weights */

#endif
