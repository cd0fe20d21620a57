/* What a file or directory holds, as one JSON document. */
#ifndef CALIB_INSPECT_H
#define CALIB_INSPECT_H

#include <jansson.h>
#include <stdbool.h>

#include "host/status.h"

typedef struct inspect_request {
    const char *path;
    bool stats;        /* read all values: min, max, mean, standard deviation of each tensor */
    bool check_finite; /* read all values: QL_FORMAT names tensor and index of the first NaN or infinity */
} inspect_request;

/*   directory     kind "model", architecture, parameters, bytes, bits_per_weight, quantization, files, dtypes, tensors
 *   .safetensors  kind "safetensors", bytes, metadata, dtypes, tensors
 *   HDF5          kind "tokens" or "stats" with what its header says
 * The document belongs to the caller. */
ql_status inspect_path(const inspect_request *request, json_t **document);

#endif
