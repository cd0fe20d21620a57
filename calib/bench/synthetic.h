/* A model of a real one's shape with random weights, and random tokens, in a directory that is thrown away: what benchmarks of whole
 * blocks and jobs work on.
 *
 *   synthetic_shape shape;   QL_TRY(synthetic_read("llama-2-70b/config.json", 16, arena, &shape));
 *   synthetic_files files;   QL_TRY(synthetic_make(&shape, rows, seq_len, arena, &files));  ...  synthetic_remove(&files);
 */
#ifndef CALIB_BENCH_SYNTHETIC_H
#define CALIB_BENCH_SYNTHETIC_H

#include "formats/model_config.h"

typedef struct synthetic_shape {
    json_t *document;           /* config.json of the small model; synthetic_close */
    model_config whole, config; /* as the file says; of the small model: scaled, some blocks, a small vocabulary */
    int64_t blocks;             /* of `config` that have weights: 1, which a block follows, or all of them */
} synthetic_shape;

typedef struct synthetic_files {
    const char *dir, *model, *tokens, *out, *work; /* out and work do not exist yet */
} synthetic_files;

/* config.json of a model, hidden, intermediate and query heads divided by `scale`; head_dim stays, KV heads are at least 1.
 * QL_USAGE if they do not divide. */
ql_status synthetic_read(const char *path, int64_t scale, int64_t blocks, ql_arena *arena, synthetic_shape *out);
/* The same of a model in memory (llama), for who names none. */
ql_status synthetic_llama(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t blocks,
                          ql_arena *arena, synthetic_shape *out);
void synthetic_close(synthetic_shape *shape);

/* Beneath TMPDIR or /tmp.  QL_USAGE for rows longer than the model takes. */
ql_status synthetic_make(const synthetic_shape *shape, int64_t rows, int64_t seq_len, ql_arena *arena,
                         synthetic_files *files);
void synthetic_remove(const synthetic_files *files); /* nothing happens if make failed early */

#endif
