/* Forward through one decoder block, in six steps between the points where statistics are collected:
 *
 *      x --norm--> [attn_in] --q,k,v, rope, attention--> [attn_out] --o--> + x --norm--> [mlp_in] --gate,up, swiglu--> [mlp_down_in] --down--> + x
 *
 * The steps are separate because sequential quantization solves the linears of one point before it goes on to the next.
 * Rows are valid tokens only: padding never enters.
 */
#ifndef CALIB_BLOCK_H
#define CALIB_BLOCK_H

#include "calib/model.h"

/* Keys and values of one sequence, so that its next rows need not pass again with all before them. */
typedef struct kv_cache {
    int64_t used;  /* rows that hold something; whoever sends a batch through all layers adds its rows afterwards */
    ql_mat *k, *v; /* host [layers], each F32 [positions][kv_heads * d] */
} kv_cache;

/* Some whole sequences that pass together, or the next rows of the one sequence of a cache. */
typedef struct batch {
    int64_t leaf; /* that the sequences belong to */
    int64_t first_seq, n_seq, rows;
    int64_t first_row;     /* of the data set */
    const int64_t *start;  /* host [n_seq + 1], from 0; not read with a cache */
    ql_mat position;       /* I32 [1][rows], from 0 in each sequence */
    const kv_cache *cache; /* NULL: whole sequences */
} batch;

/* What a forward pass needs besides weights: rope tables and buffers for the largest batch.
 *
 * In BF16 everything between two products is rounded to BF16, what a product adds to the residual stream is not, nor the stream
 * itself; products, norms and attention add up in FP32. */
typedef struct forward {
    ql_ctx *ctx;
    const model_config *config;
    ql_dtype precision; /* QL_F32 or QL_BF16 */
    int64_t max_rows;
    ql_arena *device;             /* of the buffers */
    ql_mat cos, sin;              /* F32 [seq_len][head_dim / 2] */
    ql_mat norm, q, k, v;         /* [rows][hidden], [rows][heads * d], [rows][kv_heads * d] x 2 */
    ql_mat attn, gate, up;        /* [rows][heads * d], [rows][intermediate] x 2 */
    ql_mat add;                   /* F32 [rows][hidden] */
    ql_mat rounded, codes, scale; /* [rows][widest] F32, one byte each, scales; absent: inputs are not rounded */
    ql_mat zero;                  /* I32 [1][rows], beside U8 */

    ql_mat half;     /* for packed codes in a pass in FP32, set by who packs: inputs in 16 bits [rows][widest k] */
    void *workspace; /* of all plans */
    size_t workspace_bytes;
    ql_plan *plan[LINEARS]; /* of packed codes in a pass in BF16 */
} forward;

/* precision: QL_F32 or QL_BF16; blocks must have been loaded for it.  Buffers come from `device` and live as long. */
ql_status forward_open(ql_ctx *ctx, const model_config *config, ql_dtype precision, int64_t seq_len, int64_t max_rows,
                       ql_arena *device, forward *out);
void forward_close(forward *f);

/* Makes a linear that has just been quantized ready for a pass in BF16: packed for the kernel suite, or decoded where that has no such
 * product.  In FP32 there is nothing to do.  The result comes from `device`, what is needed on the way from `scratch`, perhaps the same. */
ql_status forward_take_quantized(forward *f, linear_id id, ql_arena *scratch, ql_arena *device, linear *lin);

/* Memory to round the inputs of linears, and keys and values, where the model says so, and the workspace of the products; without this
 * call they stay as they are. */
ql_status forward_open_inputs(forward *f, int64_t max_rows, size_t workspace, ql_arena *device);

/* All matrices have batch->rows rows.  x F32 [rows][hidden] is the residual stream; the others have the precision of the pass. */
ql_status block_attn_in(forward *f, const block *b, ql_mat x, ql_mat norm);
/* k and v (K after RoPE) stay in f->k and f->v until the next call; with a cache they are written there. */
ql_status block_attention(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat norm, ql_mat attn);
ql_status block_attn_out(forward *f, const block *b, ql_mat attn, ql_mat x);
ql_status block_mlp_in(forward *f, const block *b, ql_mat x, ql_mat norm);
ql_status block_mlp(forward *f, const block *b, ql_mat norm, ql_mat act);
ql_status block_mlp_out(forward *f, const block *b, ql_mat act, ql_mat x);

/* y = lin(x), dense or quantized, bias included.  y may be F32 in a pass in BF16. */
ql_status linear_forward(forward *f, const linear *lin, ql_mat x, ql_mat y);

/* The first three and the last three, in place; all six. */
ql_status block_attention_half(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat x);
ql_status block_mlp_half(forward *f, const block *b, const batch *rows, ql_mat x);
ql_status block_forward(forward *f, const block *b, int64_t layer, const batch *rows, ql_mat x);

#endif
