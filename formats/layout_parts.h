/* What the layouts share among themselves. */
#ifndef FORMATS_LAYOUT_PARTS_H
#define FORMATS_LAYOUT_PARTS_H

#include "formats/layout.h"

/* A kind of file; the functions of formats/layout.h check what is common and then call these. */
typedef struct layout {
    const char *name;            /* for people: "GPTQ" */
    const char *quant_method;    /* in config.json */
    const char *marker;          /* the tensor that only a quantized module has */
    const char *const *suffixes; /* of all that it may have, ends with NULL */
    ql_status (*check)(const layout_scheme *scheme);
    ql_status (*config)(const layout_scheme *scheme, json_t **quantization_config);
    ql_status (*read)(const checkpoint *ck, layout_scheme *out);
    ql_status (*rule)(const layout_scheme *scheme, const char *module, layout_rule *rule);
    const char *(*obstacle)(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena);
    ql_status (*encode)(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out);
    ql_status (*decode)(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q);
} layout;

extern const layout layout_gptq, layout_awq, layout_compressed, layout_fp8, layout_bitsandbytes;

/* Field i of a little-endian stream of b-bit fields in 32-bit words; putting expects zeros there. */
void layout_put_field(uint32_t *stream, int64_t i, int bits, uint32_t value);
uint32_t layout_get_field(const uint32_t *stream, int64_t i, int bits);

/* cols 0: a vector.  The name is left to layout_begin. */
st_tensor layout_tensor(ql_dtype dtype, int64_t rows, int64_t cols);

/* Names ("<module>.<suffix>") and, if there are codes, memory filled with zeros for the tensors that out->tensor describes. */
ql_status layout_begin(const qmodule *q, const char *const suffixes[], ql_arena *arena, layout_tensors *out);

const st_tensor *layout_find(const checkpoint *ck, const char *module, const char *suffix);

/* Is `found` what the module needs?  A tensor of 16-bit or 32-bit floats may be any of them.  QL_FORMAT names what differs;
 * hint: appended to a wrong shape. */
ql_status layout_check_tensor(const qmodule *q, const char *suffix, const st_tensor *want, const st_tensor *found,
                              const char *hint);

ql_status layout_take(ql_arena *arena, qmodule *q); /* memory for codes, scale and zero */
ql_status layout_read_tensor(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, void *data); /* void ** */

/* All values of a tensor of F16, BF16 or F32; a scale that is not positive and finite is QL_FORMAT. */
ql_status layout_read_floats(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, float **values);
ql_status layout_check_scale(const qmodule *q, const char *suffix, int64_t n, int64_t g, float scale);

/* Scales to and from F16 [G][N] (transposed) or [N][G].  QL_MISMATCH for one that F16 cannot hold, QL_FORMAT for one that is not
 * positive and finite. */
ql_status layout_put_scales(const qmodule *q, bool transposed, uint16_t *scales);
ql_status layout_get_scales(const checkpoint *ck, const st_tensor *tensor, const char *suffix, bool transposed,
                            ql_arena *arena, qmodule *q);
ql_status layout_check_zero(const qmodule *q, int64_t n, int64_t g); /* does a zero point fit into the bits? */
ql_status layout_check_integers(const layout_scheme *scheme, const char *name); /* neither FP8 nor 8-bit inputs? */
ql_status layout_check_symmetric(const qmodule *q); /* QL_MISMATCH unless all zero points are the middle */

/* Loaders sort the inputs by g_idx and then take `group` of them at a time, so no group may hold more. */
ql_status layout_check_g_idx(ql_status status, const char *suffix, const qmodule *q, ql_arena *arena);
ql_status layout_put_g_idx(const qmodule *q, const char *suffix, ql_arena *arena, int32_t *g_idx);
ql_status layout_get_g_idx(const checkpoint *ck, const st_tensor *tensor, const char *suffix, ql_arena *arena,
                           qmodule *q);

/* How a module named `stem` (of that length) + `suffix` is stored according to the writer's lists. */
layout_rule layout_listed_rule(const layout_scheme *scheme, const char *stem, size_t length, const char *suffix);
/* .rule of files whose only exceptions are a list of modules kept as they are. */
ql_status layout_ignored_rule(const layout_scheme *scheme, const char *module, layout_rule *rule);
/* The writer's skipped names as a list that starts with `first` (may be NULL); fused: also the names under which vLLM looks q, k, v
 * and gate, up up.  NULL if there is nothing to list. */
ql_status layout_skipped_list(const layout_scheme *scheme, const char *first, bool with_fused, json_t **list);
/* A list of strings of quantization_config, NULL if it is absent or null. */
ql_status layout_read_list(const json_t *config, const char *key, const json_t **list);
bool layout_is_listed(const json_t *list, const char *module); /* loaders look for a name anywhere in the module's */
bool layout_ends_with(const char *text, const char *suffix);

/* As Python's re.match: from the first character on, not necessarily to the last.  place: the key, for messages. */
ql_status layout_matches(const char *place, const char *pattern, const char *module, bool *hit);

/* formats/layout_bytes.c; suffixes: of the weight, its scale, and the input scale if the scheme has static activations. */
ql_status layout_bytes_encode(const layout_scheme *scheme, const char *const suffixes[], const qmodule *q,
                              ql_arena *arena, layout_tensors *out);
ql_status layout_bytes_decode(const checkpoint *ck, const layout_scheme *scheme, const char *const suffixes[],
                              ql_arena *arena, qmodule *q);

/* formats/layout_compressed_config.c */
ql_status layout_compressed_config(const layout_scheme *scheme, json_t **quantization_config);
ql_status layout_compressed_read(const checkpoint *ck, layout_scheme *out);
ql_status layout_compressed_rule(const layout_scheme *scheme, const char *module, layout_rule *rule);

/* formats/layout_gptq_config.c */
ql_status layout_gptq_config(const layout_scheme *scheme, json_t **quantization_config);
ql_status layout_gptq_read(const checkpoint *ck, layout_scheme *out);
ql_status layout_gptq_rule(const layout_scheme *scheme, const char *module, layout_rule *rule);
ql_status layout_gptq_warn_label(const checkpoint *ck, const layout_scheme *scheme);

#endif
