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

/* What the whole checkpoint says about itself. */
typedef struct layout_scheme {
    int bits;
    int64_t group; /* -1: one group per row */
    bool symmetric, desc_act, static_groups, true_sequential;
    int version; /* GPTQ: 1 or 2 */
    double damp;
    const char *const *skipped; /* module names left in 16 bits, NULL-terminated, may be NULL */
} layout_scheme;

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

/* Reads the scheme of a directory (config.json or quantize_config.json) and one module. */
ql_status layout_gptq_scheme(const checkpoint *ck, layout_scheme *out);
ql_status layout_gptq_decode(const checkpoint *ck, const layout_scheme *scheme, const char *module, int64_t n,
                             int64_t k, ql_arena *arena, qmodule *out);
bool layout_gptq_has(const checkpoint *ck, const char *module); /* is this module quantized in the file? */

/* May a Linear [n][k] be stored at all?  NULL if so, else the reason ("K = 100 is not a multiple of 32"). */
const char *layout_gptq_obstacle(int64_t n, int64_t k, int bits, int64_t group, ql_arena *arena);

#endif
