/* From one kind of quantized directory to another that can hold the same codes: bit for bit, or not at all. */
#ifndef CALIB_EXPORT_H
#define CALIB_EXPORT_H

#include "calib/scheme.h"

typedef struct export_request {
    const char *in, *out;
    output_format format; /* not OUTPUT_DENSE */
    uint64_t shard_size;
} export_request;

typedef struct export_result {
    int64_t modules;
    uint64_t bytes;        /* of all tensors written */
    const char *from, *to; /* names of the layouts */
} export_result;

/* QL_MISMATCH names the first module that the other format cannot hold, and why; nothing is written then.  In the end both
 * directories are decoded once more and compared. */
ql_status export_run(const export_request *request, export_result *result);

#endif
