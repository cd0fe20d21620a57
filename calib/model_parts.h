/* What the files of calib/model share among themselves. */
#ifndef CALIB_MODEL_PARTS_H
#define CALIB_MODEL_PARTS_H

#include "calib/model.h"

/* A tensor of a block that is loaded as it is. */
typedef struct block_tensor {
    char name[NAME_SIZE + 8];
    int64_t rows, cols;
    bool vector;
    ql_mat *to;   /* in the block: F32, or with `half` and for a pass in BF16 as in the checkpoint */
    ql_mat *half; /* the same in BF16, for such a pass; NULL: none */
} block_tensor;

enum { BLOCK_TENSORS = 4 + 2 * LINEARS };

/* Norms, biases, and the weights that are not quantized; returns how many. */
int model_list_block(const model *m, int64_t layer, block *b, block_tensor list[BLOCK_TENSORS]);
/* QL_FORMAT: it is missing, or has another shape or type. */
ql_status model_find_tensor(const model *m, const block_tensor *wanted, const st_tensor **tensor);

/* How the runtime rounds the inputs of a quantized module. */
ql_status linear_set_inputs(const model *m, const qmodule *q, ql_arena *device, linear *lin);

/* Packs the codes of a module for the product that model_plan_inputs planned; lin->packed stays NULL where none takes them. */
ql_status linear_set_bytes(const model *m, linear_id id, const qmodule *q, ql_arena *device, linear *lin);

#endif
