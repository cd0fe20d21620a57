/* A GGUF file behind the interface of formats/checkpoint.h: tensors under the names of the checkpoint, as F32, rows in its order. */
#ifndef FORMATS_CHECKPOINT_GGUF_H
#define FORMATS_CHECKPOINT_GGUF_H

#include "formats/safetensors.h"

typedef struct gguf_checkpoint gguf_checkpoint;

/* The listing lives in `arena`, sorted by nothing; config.json (json_decref) follows from the metadata.  QL_MISMATCH for an
 * architecture or a type that qalib does not read, QL_FORMAT for tensors that the model does not have. */
ql_status gguf_checkpoint_open(const char *path, ql_arena *arena, gguf_checkpoint **out, json_t **config,
                               const st_tensor ***tensors, int64_t *count);
void gguf_checkpoint_close(gguf_checkpoint *ck);           /* NULL is allowed */
uint64_t gguf_checkpoint_bytes(const gguf_checkpoint *ck); /* of all tensors in the file */
ql_status gguf_checkpoint_read(const gguf_checkpoint *ck, const st_tensor *tensor, void *data);

#endif
