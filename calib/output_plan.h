/* The tensors of an output directory, and which shard holds each: known from shapes alone, before any work.
 *
 * Order: as the model applies them (embedding, layers, norm, head), so that a writer that gets one layer at a time never goes
 * back.  All tensors of a module follow each other in one shard; shards are filled greedily.  I32 tensors must lie on 4 bytes: the
 * few 16-bit tensors with an odd number of elements (biases, norms) are therefore put at the end of their shard.
 */
#ifndef CALIB_OUTPUT_PLAN_H
#define CALIB_OUTPUT_PLAN_H

#include "calib/output.h"

typedef struct plan_item {
    st_tensor tensor;   /* as it is written; `begin` is not set */
    int64_t layer;      /* of a quantized module, else -1: the tensor is taken from the source under the same name */
    linear_id linear;   /* of a quantized module */
    int part;           /* index in layout_tensors, for a quantized module */
    int64_t shard;      /* from 0 */
    int64_t fold_layer; /* of a tensor that smoothing may change or calibration adds, else -1 */
    folded_id folded;
    bool added; /* the source need not have it; its type is its own */
} plan_item;

typedef struct output_plan {
    plan_item *items; /* in file order, shard after shard */
    int64_t count, shards;
    uint64_t tensor_bytes; /* "total_size" of the index */
} output_plan;

/* scheme: NULL for a dense checkpoint, where a "quantized" item is the module's .weight.  dtype: of everything that is not quantized.
 * shard_size: most bytes of one file, header included; a module that is larger by itself gets its own. */
ql_status output_plan_make(const model_config *config, const layout_scheme *scheme, ql_dtype dtype, uint64_t shard_size,
                           ql_arena *arena, output_plan *plan);

/* Bytes of all its safetensors files, headers included. */
ql_status output_plan_files_size(const output_plan *plan, uint64_t *size);

/* "model.safetensors" if there is one shard, else "model-00001-of-00003.safetensors". */
ql_status output_shard_name(const output_plan *plan, int64_t shard, ql_arena *arena, char **name);

/* How a module is stored in the output: quantized unless the scheme skips it.  scheme NULL: dense. */
ql_status output_is_quantized(const layout_scheme *scheme, const char *module, bool *quantized);

#endif
