/* Importance matrices of llama.cpp: for every weight the mean square of each of its inputs.
 *
 *   GGUF    general.type = "imatrix", imatrix.datasets (strings), imatrix.chunk_count, imatrix.chunk_size (u32); two tensors per
 *           weight: <name>.in_sum2 F32 [1][k], sums of squares, and <name>.counts F32 [1][1], numbers of tokens
 *   legacy  i32 entries; per entry i32 length, name, i32 calls, i32 k, F32 [k]: mean square times calls; what follows is a note
 * Names are those of the weights in GGUF: "blk.0.attn_q.weight".
 */
#ifndef FORMATS_IMATRIX_H
#define FORMATS_IMATRIX_H

#include "host/file.h"

typedef struct imatrix_entry {
    const char *name;
    int64_t k;
    float *mean;    /* [k]; all 1 where nothing was counted */
    uint64_t count; /* tokens; legacy: calls */
} imatrix_entry;

typedef struct imatrix {
    imatrix_entry *entries; /* sorted by name */
    int64_t count;
    const char *dataset; /* "" if there is none */
    int64_t chunks, chunk_size;
} imatrix;

/* Either form.  QL_FORMAT names what is wrong; negative and non-finite values are refused. */
ql_status imatrix_read(const char *path, ql_arena *arena, imatrix *out);
/* The GGUF form; entries in their order. */
ql_status imatrix_write(const char *path, const imatrix *matrix);

/* The mean squares as a file of this form holds them, from sums over `count` inputs.   mean [k] */
void imatrix_mean(const double *sum_sq, uint64_t count, int64_t k, float *mean);

const imatrix_entry *imatrix_find(const imatrix *matrix, const char *name); /* NULL if there is none */

/* Values as an encoder wants them: at least a millionth of their mean, because a block whose inputs are all dead would become
 * zeros.   weights [k] */
void imatrix_weights(const imatrix_entry *entry, float *weights);

#endif
