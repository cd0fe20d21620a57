/* A checkpoint on its way through the device: configuration, and blocks that are loaded one at a time.
 *
 * A block's linears are dense (w) or quantized (q); whoever multiplies asks linear_forward and does not care which.
 */
#ifndef CALIB_MODEL_H
#define CALIB_MODEL_H

#include "formats/layout.h"
#include "host/comm.h"

typedef struct linear {
    ql_mat w; /* [n][k] F32, or for a forward pass in BF16 as the checkpoint has it; absent when quantized */
    ql_mat
        half; /* BF16 [n][k]: w as such a pass multiplies by it, perhaps the same memory; absent in others, and when packed */
    ql_mat bias;  /* F32 [1][n] or absent */
    ql_qweight q; /* q.codes absent when dense */
    /* How a runtime rounds its inputs: mode QL_SCALE_NONE: not at all; scale absent: found while it runs.  Type of codes, no memory. */
    ql_values inputs;

    /* Packed instead of w and q: bytes whose inputs are rounded too (model_plan_inputs), or codes, by who multiplies often
     * (linear_pack).  The plan belongs to the model or to that one. */
    ql_plan *plan;
    void *packed;
} linear;

typedef struct block {
    linear lin[LINEARS];
    ql_mat norm_in, norm_mlp; /* F32 [1][hidden] */
    ql_mat q_norm, k_norm;    /* F32 [1][head_dim] or absent */
    ql_mat kv_scale[2];       /* F32 [1][1]: of keys and values that the cache keeps in E4M3, or absent */
} block;

typedef struct model {
    ql_ctx *ctx;
    checkpoint *ck;
    model_config config;
    bool quantized;     /* the directory holds quantized modules, described by scheme */
    bool weights_only;  /* neither inputs nor keys and values are rounded, whatever the scheme says */
    ql_dtype precision; /* of the forward pass that blocks are loaded for: QL_F32 (as opened) or QL_BF16 */
    layout_scheme scheme;
    ql_arena *host; /* lives as long as the model */

    ql_plan *byte_plan[LINEARS]; /* products of bytes, where inputs are rounded to them; NULL: there is none */
    size_t byte_workspace;       /* of the one that wants most */

    struct ahead *ahead; /* NULL: blocks are read when they are loaded */
} model;

ql_status model_open(ql_ctx *ctx, const char *dir, model *out);
/* One whose weights are to be quantized or calibrated with (`what` says which, for messages): QL_MISMATCH if they are codes already, or
 * in a GGUF file. */
ql_status model_open_original(ql_ctx *ctx, const char *dir, const char *what, model *out);
ql_status model_refuse_gguf(const char *path, const char *what);

static inline bool model_rounds_inputs(const model *m) {
    return m->quantized && m->scheme.activations != ACTIVATIONS_16 && !m->weights_only;
}
static inline bool model_rounds_cache(const model *m) { return m->quantized && m->scheme.kv_cache && !m->weights_only; }
void model_close(model *m);

/* Plans the products of 8-bit inputs and weights for batches of up to max_rows; blocks that are loaded afterwards are packed for
 * them.  Does nothing where inputs are not rounded.  Where a linear has no such product, and without this call, rounded inputs are
 * multiplied as the FP32 values that they stand for. */
ql_status model_plan_inputs(model *m, int64_t max_rows);

/* Blocks will be loaded in order: from now on a thread reads each while the one before it is worked on (calib/ahead.h), together with the
 * other ranks of this machine. */
ql_status model_read_ahead(model *m, ql_comm *comm);

/* Tensors arrive as F32 in `device`, but for linears of a pass in BF16, checked for shape and for NaN and infinity (QL_FORMAT names
 * tensor and index). */
ql_status model_load_block(const model *m, int64_t layer, ql_arena *device, block *out);
ql_status model_load_embedding(const model *m, ql_arena *device, ql_mat *table); /* [vocab][hidden] */
ql_status model_load_head(const model *m, ql_arena *device, ql_mat *norm,
                          ql_mat *head); /* final norm, lm_head [vocab][hidden] */

/* w in F32: itself, or a copy from `device`. */
ql_status weights_widen(ql_ctx *ctx, ql_mat w, ql_arena *device, ql_mat *out);

/* Puts a quantized module, in host memory, in the place of a dense weight. */
ql_status linear_set_quantized(const qmodule *q, ql_arena *device, linear *lin);

/* lin->packed from lin->q, for products of up to m_max rows of inputs x (F16 or BF16) with results y.  *plan: NULL, or one that was made
 * for a linear of this shape before, and serves again if its codes were alike; it is the caller's.  QL_UNSUPPORTED: there is no such
 * product, and lin is as it was. */
ql_status linear_pack(ql_ctx *ctx, ql_dtype x, ql_dtype y, int64_t m_max, ql_arena *scratch, ql_arena *device,
                      linear *lin, ql_plan **plan);

#endif
