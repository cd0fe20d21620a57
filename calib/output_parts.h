/* What the two halves of the output share: shards, and the files around them. */
#ifndef CALIB_OUTPUT_PARTS_H
#define CALIB_OUTPUT_PARTS_H

#include "calib/output.h"
#include "calib/output_plan.h"

/* Holds the job's name as long as the directory is incomplete. */
#define OUTPUT_MARKER ".qalib-incomplete"

/* A file that stands under its name, for SHA256SUMS. */
typedef struct written {
    struct written *next;
    const char *name;
    char sha256[65];
} written;

struct output {
    const char *dir, *job;
    const checkpoint *ck;
    const layout_scheme *scheme; /* NULL: dense, or GGUF */
    const gguf_plan *gguf;       /* NULL: a checkpoint */
    ql_arena *arena, *scratch;   /* the job's; one tensor's or module's */
    output_plan plan;
    ql_dtype dtype;     /* of everything that is not quantized */
    int64_t next;       /* item */
    st_writer *writer;  /* of the shard at hand, or NULL */
    st_tensor *tensors; /* its tensors */
    int64_t first;      /* its first item */
    bool begun;
    written *files; /* sorted by name */
};

ql_status output_marker(output *out, char **path);
ql_status output_remember(output *out, const char *name, const unsigned char sha256[32]);

/* Writes what comes next and is at hand: tensors of the source, and what one layer became (-1: none). */
ql_status output_advance(output *out, int64_t layer, const qmodule *modules, float *const *folded);
ql_status output_close_shard(output *out);

#endif
