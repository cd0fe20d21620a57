/* Layouts: canonical codes to the bits that a runtime loads, and back.  A runtime is one layout_<name>.c with these functions. */
#ifndef FORMATS_LAYOUT_H
#define FORMATS_LAYOUT_H

#include "formats/checkpoint.h"
#include "formats/model_config.h"

/* One quantized Linear in canonical form, host memory. */
typedef struct qmodule {
    const char *name; /* "model.layers.0.self_attn.q_proj" */
    int64_t n, k;
    int bits;
    int64_t group;   /* inputs per group, already resolved: never -1 */
    uint32_t *codes; /* [n][ql_packed_words(k, bits)], the stream of ql_qweight */
    float *scale;    /* [n][G], FP16-representable */
    uint8_t *zero;   /* [n][G] */
    int32_t *g_idx;  /* [k], NULL: k / group */
} qmodule;

/* w[n * k + i] = scale * (code - zero).   w [n][k] F32, the values that every loader decodes to. */
void qmodule_dequantize(const qmodule *q, float *w);

/* A module that is stored with other bits or another group size than the checkpoint as a whole. */
typedef struct layout_override {
    const char *module;
    int bits;
    int64_t group; /* -1: one group per row */
} layout_override;

/* What the whole checkpoint says about itself. */
typedef struct layout_scheme {
    int bits;
    int64_t group; /* -1: one group per row */
    bool symmetric, desc_act, static_groups, true_sequential;
    int version; /* GPTQ: 1 or 2 */
    double damp;
    const char *const *skipped; /* module names left in 16 bits, NULL-terminated, may be NULL */
    const layout_override *overrides;
    int64_t n_overrides;
    int64_t
        layers; /* blocks of the model: tells a kind of module that is skipped everywhere from one skipped here and there */
    /* When read from a directory, exceptions are patterns instead of names; both belong to the checkpoint. */
    const json_t *dynamic, *modules_in_block;
} layout_scheme;

/* How one module is stored. */
typedef struct layout_rule {
    bool skipped;
    int bits;
    int64_t group; /* -1: one group per row */
} layout_rule;

/* The tensors of one module, in file order of the layout.  encode fills data for each of them (sizes follow from the shapes);
 * names are allocated in the arena. */
enum { LAYOUT_MAX_TENSORS = 6 };
typedef struct layout_tensors {
    int count;
    st_tensor tensor[LAYOUT_MAX_TENSORS];
    void *data[LAYOUT_MAX_TENSORS]; /* NULL when only shapes were asked for */
} layout_tensors;

/* GPTQ v1 and v2.  q->codes == NULL: shapes only (sizes, plans).  QL_MISMATCH for what the file cannot hold. */
ql_status layout_gptq_encode(const qmodule *q, int version, ql_arena *arena, layout_tensors *out);
ql_status layout_gptq_config(const layout_scheme *scheme, json_t **quantization_config);

/* Reads the scheme of a directory (config.json or quantize_config.json; QL_FORMAT if they disagree), the rule of one module
 * and the module itself.  Files of other tools may lack g_idx or hold an all-zero one (group k / g), have BF16 or F32 scales.
 * Every claim is compared with the tensors.  g_idx of the result is NULL when input k belongs to group k / group. */
ql_status layout_gptq_scheme(const checkpoint *ck, layout_scheme *out);
ql_status layout_gptq_rule(const layout_scheme *scheme, const char *module, layout_rule *rule);
ql_status layout_gptq_decode(const checkpoint *ck, const layout_scheme *scheme, const char *module, int64_t n,
                             int64_t k, ql_arena *arena, qmodule *out);
bool layout_gptq_has(const checkpoint *ck, const char *module); /* is this module quantized in the file? */

/* False if every zero point is one off the middle of the range in the direction that a wrong v1/v2 label makes. */
bool layout_gptq_label_fits(const qmodule *q, int version);
ql_status layout_gptq_warn_label(const checkpoint *ck,
                                 const layout_scheme *scheme); /* the same test on the first module, as a warning */

/* May a Linear [n][k] be stored at all?  NULL if so, else the reason ("K = 100 is not a multiple of 32"). */
const char *layout_gptq_obstacle(int64_t n, int64_t k, int bits, int64_t group, ql_arena *arena);

#endif
