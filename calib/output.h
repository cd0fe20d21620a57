/* The output directory: from quantized layers and the source checkpoint to something that a loader takes, or visibly nothing.
 *
 *   output *out;
 *   QL_TRY(output_open(dir, ck, config, &request, &out));     // plans and checks everything, writes nothing yet
 *   for (layer = 0; ...; layer++)
 *       QL_TRY(output_layer(out, layer, modules, folded));    // modules[LINEARS]; each layer once, in order
 *   QL_TRY(output_finish(out, &texts));                       // the rest, then the index, config.json last
 *   output_close(out);
 *
 * The bytes depend on the source, the scheme and the modules alone (report.json, report.html and README.md are the caller's text).  While the
 * directory is incomplete it holds no config.json, but a marker with the job's name: only that job may start over in it.
 */
#ifndef CALIB_OUTPUT_H
#define CALIB_OUTPUT_H

#include "formats/layout.h"
#include "formats/layout_gguf.h"

/* Tensors of a block besides its linears that an output has of its own: those that smoothing changes, and the scales of the
 * key/value cache (F32 [1]), which no source has. */
typedef enum folded_id {
    FOLDED_NORM_IN,
    FOLDED_NORM_MLP,
    FOLDED_V_BIAS,
    FOLDED_UP_BIAS,
    FOLDED_K_SCALE,
    FOLDED_V_SCALE,
    FOLDED
} folded_id;
extern const char *const folded_names[FOLDED]; /* "input_layernorm.weight", ... */
static inline bool folded_is_added(folded_id id) { return id == FOLDED_K_SCALE || id == FOLDED_V_SCALE; }

typedef struct output_request {
    const layout_scheme *scheme; /* NULL: the dequantized result as a plain 16-bit checkpoint */
    const gguf_plan *gguf; /* instead of shards, model.gguf with these tensors (sizes are set); NULL: a checkpoint */
    uint64_t shard_size;   /* most bytes of a file; 0: 5e9 */
    const char *job;       /* names the job (its fingerprint); NULL: the directory must be empty */
} output_request;

/* Texts that the caller knows.  Any of them may be NULL. */
typedef struct output_texts {
    const char *base_model;  /* "org/name"; NULL: derived from the source directory */
    const char *recipe_yaml; /* recipe.yaml, and shown in the model card */
    const char *calibration; /* one sentence */
    const char *metrics;     /* Markdown */
    const char *mix;         /* GGUF: the kind of file; NULL elsewhere */
    const json_t *report;    /* report.json, and shown by report.html */
} output_texts;

typedef struct output output;

/* QL_DISK when `dir` is not empty and not an incomplete output of the same job, or when the disk is too small (needed and free
 * bytes are named); QL_FORMAT when a tensor that is copied holds NaN or infinity.  ck and config must outlive the output. */
ql_status output_open(const char *dir, const checkpoint *ck, const model_config *config, const output_request *request,
                      output **out);
/* Modules by linear_id; those that stay in 16 bits are not looked at.  folded: values of the tensors that smoothing changed (calib/smooth.h)
 * or calibration added, by folded_id; NULL, or NULL in it: as in the source. */
ql_status output_layer(output *out, int64_t layer, const qmodule modules[LINEARS], float *const folded[]);
/* The only file of weights of an output with a gguf plan. */
ql_status output_gguf(output *out, const gguf_meta *meta, const gguf_source *source);
ql_status output_finish(output *out, const output_texts *texts);
/* Without a finish the directory stays incomplete.  NULL is allowed. */
void output_close(output *out);

/* Bytes of all tensors, and of all files as far as they are known before the work. */
uint64_t output_tensor_bytes(const output *out);

#endif
