/* One decoder block of the job: collect statistics while all rows pass through it, quantize its linears, send the rows on.
 *
 * Three orders of the same few steps:
 *   sequential propagated   at each of the four inputs: rows arrive through what is already quantized, its linears are solved
 *   block propagated        all four inputs through the unquantized block, solve all, then the rows once more through the result
 *   full precision          all four inputs through the unquantized block, the rows go on unquantized (or statistics from a store)
 */
#ifndef CALIB_LAYER_H
#define CALIB_LAYER_H

#include "calib/data.h"
#include "calib/linear.h"
#include "calib/progress.h"
#include "calib/ranks.h"
#include "calib/smooth.h"

typedef enum statistics_mode { STATISTICS_NONE, STATISTICS_PROPAGATED, STATISTICS_FP } statistics_mode;
extern const char *const statistics_names[]; /* "none", "propagated", "fp" */

/* How rows pass: what device and user want. */
typedef struct pass_setting {
    bool bf16;              /* activations in BF16, else FP32 */
    uint64_t device_memory; /* that the job may take; rows wait in host memory if they do not fit.  0: what is free */
    double save_every;      /* seconds; activations are saved about so often (calib/saved_rows.h).  0: never */
} pass_setting;

static inline ql_dtype pass_precision(const pass_setting *pass) { return pass->bf16 ? QL_BF16 : QL_F32; }
const char *pass_name(const model *m); /* "fp32" or "bf16" */

typedef struct engine {
    ql_ctx *ctx;
    const model *model;
    const recipe *recipe;
    statistics_mode mode;
    ql_comm *comm;             /* NULL: one rank */
    int64_t samples_skipped;   /* by all ranks */
    dataset *data;             /* NULL: no rows (nearest rounding, or statistics from a store) */
    const char *stats_dir;     /* NULL: no store */
    int kinds;                 /* full-precision statistics: which of them are read, STATS_* */
    bool with_kv;              /* and the ranges of keys and values, for their cache */
    const imatrix *importance; /* of a file; NULL: follows from statistics, if there are any */
    uint64_t device_memory;    /* as pass_setting has it */
    row_place place;           /* of `data` */
    forward forward;
    ql_mat apart, apart_half;    /* F32, and BF16 in such a pass, [rows][hidden]: of a batch, from the original model */
    ql_arena *weights, *scratch; /* device: the block; everything else that lives as long as one block */
    ql_arena *host;              /* results of one block */
    phases phases;
    progress *progress; /* NULL: nobody looks */
} engine;

/* Does anything in the result depend on statistics? */
static inline bool engine_needs_data(const engine *e) { return e->kinds || e->with_kv; }

/* phases and arenas; rows are optional and their buffers come from `device`, or from host memory where the device has less than the job
 * needs (QL_NOMEM with figures: even so).  engine_close for whatever was opened. */
ql_status engine_open(ql_ctx *ctx, const model *m, const recipe *r, statistics_mode mode, engine *e);
ql_status engine_open_rows(engine *e, const token_file *tokens, dataset *data, ql_arena *device);
void engine_close(engine *e);

/* Most bytes of the device so far: what the GPU says, or on a processor what the arenas had, that of the rows included. */
size_t engine_device_peak(const engine *e, const ql_arena *rows);

/* What one block became. */
typedef struct layer_result {
    int64_t layer;
    bool quantized[LINEARS];
    qmodule module[LINEARS];
    linear_record record[LINEARS];
    float *folded[FOLDED]; /* tensors that smoothing changed or calibration added; NULL: as in the source */
} layer_result;

/* One block between reading and the next: its weights, and full-precision statistics where the mode has them. */
typedef struct layer_step {
    int64_t layer;
    block block;
    capture captures[SITES];
    bool with_data;  /* captures are filled */
    float kv_max[2]; /* largest magnitude of K after RoPE and of V, if the engine asked */
    ql_mark mark;
} layer_step;

/* Loads the block and, for full-precision statistics, collects or reads them; then rows have gone on already. */
ql_status layer_begin(engine *e, int64_t layer, layer_step *step);
/* Quantizes its modules by rules[LINEARS] and e->recipe; any number of times, once with propagated statistics, where rows go on to
 * the next block unless it is the last. */
ql_status layer_solve(engine *e, layer_step *step, const module_rule *rules, layer_result *result);
void layer_end(engine *e, const layer_step *step);

/* For a layer committed earlier: rows go through it as they did when it was made. */
ql_status layer_replay(engine *e, const layer_result *result);

/* Full-precision statistics of one block, rows go on.  captures: [SITES], kv: of K after RoPE and of V, may be NULL. */
ql_status layer_collect(engine *e, int64_t layer, int kinds, capture *captures, capture kv[2]);

/* The committed form: one safetensors file with `<module>.codes`, `.scale`, `.zero` and, with act-order groups, `.g_idx`, and the
 * tensors that smoothing changed under their own names. */
ql_status layer_save(const char *path, const layer_result *result, const model_config *config, ql_arena *host);
/* Most bytes of that file, from shapes alone.  dynamic: groups follow the act-order where a row has several. */
ql_status layer_file_size(const model_config *config, int64_t layer, const module_rule *rules, const recipe *r,
                          bool dynamic, ql_arena *host, uint64_t *size);
ql_status layer_load(const char *path, const engine *e, int64_t layer, const module_rule *rules, ql_arena *host,
                     layer_result *result);

/* A module's name as it stands in the results, "model.layers.3.mlp.up_proj", in `host`. */
ql_status layer_module_name(ql_arena *host, int64_t layer, linear_id id, char **name);

#endif
