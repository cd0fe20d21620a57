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
} verifier;

ql_status verify_note(verifier *v, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Bad data becomes a finding and lets the work go on; every other failure ends it. */
ql_status verify_absorb(verifier *v, ql_status status);

/* Every number: quantized modules, then all other tensors. */
ql_status verify_weights(verifier *v);

#endif
