/* Layouts: canonical codes to the bits that a runtime loads, and back.  A kind of file is one table of functions
 * (formats/layout_parts.h), in layout_<name>.c; everybody else goes through the functions below. */
#ifndef FORMATS_LAYOUT_H
#define FORMATS_LAYOUT_H

#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/model_config.h"

/* What a code stands for: an integer beside a zero point, a number of 8 bits, an entry of the NF4 table; in GGUF codes and scales lie
 * together in blocks. */
typedef enum code_type { CODE_INT, CODE_E4M3, CODE_NF4, CODE_BLOCKS, CODE_TYPES } code_type;

/* One quantized Linear in canonical form, host memory. */
typedef struct qmodule {
    const char *name; /* "model.layers.0.self_attn.q_proj" */
    int64_t n, k;
    code_type type;
    int bits;
    int64_t group;   /* inputs per scale, already resolved: never negative */
    uint32_t *codes; /* [n][ql_packed_words(k, bits)], the stream of ql_qweight */
    float *scale;    /* [n][G], where a scale serves several rows repeated in each; FP16-representable for CODE_INT */
    uint8_t *zero;   /* CODE_INT: [n][G] */
    int32_t *g_idx;  /* [k], NULL: k / group */
    float *input_scale;      /* [1], of static activations; NULL: there is none */
    uint8_t *absmax;         /* CODE_NF4: the scales as they are stored, one byte each (qmodule_nest) */
    float *nested;           /* CODE_NF4: [ceil(scales/256)] scales of those, and last their offset */
    const gguf_type *stored; /* CODE_BLOCKS: codes are [n][gguf_row_bytes] of this type, nothing else is there */
} qmodule;

/* Number of scales: NF4 blocks run over the ends of rows. */
static inline int64_t qmodule_scales(const qmodule *q) {
    return q->type == CODE_NF4 ? (q->n * q->k + 63) / 64 : q->n * ((q->k + q->group - 1) / q->group);
}

/* CODE_NF4: rounds the scales to what the file holds, and fills absmax and nested. */
ql_status qmodule_nest(qmodule *q, ql_arena *arena);

/* w[n * k + i] = scale * (code - zero), or scale * value of the code.   w [n][k] F32, the values that every loader decodes to. */
void qmodule_dequantize(const qmodule *q, float *w);

/* A module that is stored with other bits or another group size than the checkpoint as a whole. */
typedef struct layout_override {
    const char *module;
    int bits;
    int64_t group; /* as in layout_scheme */
} layout_override;

enum { GROUP_ROW = -1, GROUP_TENSOR = -2, FP8_BLOCK = 128 };

/* How a runtime rounds the inputs of quantized modules: not at all, with a scale per token that it finds, with one that the file holds. */
typedef enum activation_mode {
    ACTIVATIONS_16,
    ACTIVATIONS_TOKEN,
    ACTIVATIONS_STATIC,
    ACTIVATION_MODES
} activation_mode;

typedef enum layout_id {
    LAYOUT_GPTQ,
    LAYOUT_AWQ,
    LAYOUT_COMPRESSED,
    LAYOUT_FP8,
    LAYOUT_BITSANDBYTES,
    LAYOUTS
} layout_id;

/* What the whole checkpoint says about itself. */
typedef struct layout_scheme {
    layout_id layout;
    code_type type;
    int bits;
    int64_t group; /* GROUP_ROW, GROUP_TENSOR, or inputs per group; CODE_E4M3: 128 are blocks of 128 x 128 */
    activation_mode activations;
    ql_dtype dtype;   /* of what is not quantized: bitsandbytes repeats it; QL_BF16 or anything else for F16 */
    bool bytes;       /* compressed-tensors: a code is a byte, not a part of a packed word */
    bool input_zeros; /* 8-bit inputs per token have zero points */
    bool kv_cache;    /* compressed-tensors: runtimes keep keys and values in E4M3, with a scale per layer for each */
    bool symmetric, desc_act, static_groups, true_sequential;
    int version; /* GPTQ: 1 or 2 */
    double damp;
    const char *const *skipped; /* module names left in 16 bits, NULL-terminated, may be NULL */
    const layout_override *overrides;
    int64_t n_overrides;
    int64_t
        layers; /* blocks of the model: tells a kind of module that is skipped everywhere from one skipped here and there */
    /* When read from a directory, exceptions are patterns instead of names; all belong to the checkpoint. */
    const json_t *dynamic, *modules_in_block; /* GPTQ */
    const json_t *ignored;                    /* others: a list of what stays in 16 bits */
    const json_t *groups;                     /* compressed-tensors: config_groups */
} layout_scheme;

/* How one module is stored. */
typedef struct layout_rule {
    bool skipped;
    int bits;
    int64_t group; /* as in layout_scheme */
} layout_rule;

/* The tensors of one module, in file order of the layout.  encode fills data for each of them (sizes follow from the shapes);
 * names are allocated in the arena. */
enum { LAYOUT_MAX_TENSORS = 6 };
typedef struct layout_tensors {
    int count;
    st_tensor tensor[LAYOUT_MAX_TENSORS];
    void *data[LAYOUT_MAX_TENSORS]; /* NULL when only shapes were asked for */
} layout_tensors;

const char *layout_name(layout_id id);                  /* for people: "GPTQ" */
const char *layout_method(const layout_scheme *scheme); /* quant_method of config.json: "gptq" */

/* Can a file of this kind say all that the scheme says?  QL_MISMATCH: what it cannot. */
ql_status layout_check(const layout_scheme *scheme);
ql_status layout_config(const layout_scheme *scheme, json_t **quantization_config);

/* May a Linear [n][k] be stored?  NULL if so, else the reason ("K = 100 is not a multiple of 32"). */
const char *layout_obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena);

/* q->codes == NULL: shapes only (sizes, plans).  QL_MISMATCH for what the file cannot hold. */
ql_status layout_encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out);

/* Reads the scheme of a directory (QL_FORMAT if its files contradict each other), the rule of one module and the module itself.
 * Files of other tools may lack g_idx or hold an all-zero one (group k / g), have BF16 or F32 scales.  Every claim is compared
 * with the tensors.  g_idx of the result is NULL when input k belongs to group k / group. */
ql_status layout_read(const checkpoint *ck, layout_scheme *out);
ql_status layout_rule_of(const layout_scheme *scheme, const char *module, layout_rule *rule);
ql_status layout_decode(const checkpoint *ck, const layout_scheme *scheme, const char *module, int64_t n, int64_t k,
                        ql_arena *arena, qmodule *out);
bool layout_has(const checkpoint *ck, const layout_scheme *scheme,
                const char *module); /* is it quantized in the file? */

/* Endings of the tensors of a quantized module ("qweight"), NULL-terminated; is a tensor part of a quantized module? */
const char *const *layout_suffixes(const layout_scheme *scheme);
bool layout_is_part(const checkpoint *ck, const layout_scheme *scheme, const char *tensor);

/* GPTQ: false if every zero point is one off the middle of the range in the direction that a wrong v1/v2 label makes. */
bool layout_gptq_label_fits(const qmodule *q, int version);

#endif
