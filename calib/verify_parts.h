/* What the two halves of verify share. */
#ifndef CALIB_VERIFY_PARTS_H
#define CALIB_VERIFY_PARTS_H

#include "calib/verify.h"
#include "formats/layout.h"

typedef struct verifier {
    const char *dir;
    ql_arena *arena, *scratch; /* of the result; of one layer or tensor */
    verify_result *result;
    const checkpoint *ck, *base; /* base may be NULL */
    const model_config *config;
    const layout_scheme *scheme; /* NULL: dense */
    bool smoothed;               /* report.json says so: weights are the base's up to scales */
    float *rows_of[LINEARS];     /* of v and up in this layer: what their rows were multiplied by */
} verifier;

ql_status verify_note(verifier *v, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Bad data becomes a finding and lets the work go on; every other failure ends it. */
ql_status verify_absorb(verifier *v, ql_status status);

/* All values of a tensor as F32, in the scratch arena. */
ql_status verify_read_floats(verifier *v, const checkpoint *ck, const st_tensor *tensor, float **values,
                             int64_t *count);

/* Sets v->smoothed.  Applies to the base's weights of a Linear what smoothing did to them; w is what they have become.  In the
 * order of the Linears. */
ql_status verify_find_smoothing(verifier *v);
ql_status verify_smooth(verifier *v, int64_t layer, linear_id id, const float *w, float *base);

/* A GGUF file instead of config.json and shards: keys, types, every tensor decoded. */
ql_status verify_gguf(verifier *v, const char *path, const char *base);

/* Every number: quantized modules, then all other tensors. */
ql_status verify_weights(verifier *v);

#endif
