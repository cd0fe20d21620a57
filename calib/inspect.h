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
 *                 (quantization: null, or method, version, bits, group_size, symmetric, desc_act, modules,
 *                 bits_per_quantized_weight, kept_in_16_bits)
 *   token file    kind "tokens", rows, seq_len, tokens, vocab, tokenizer_sha256, sha256
 *   statistics    kind "statistics", bytes, layer, n_seq, n_tokens, source_fingerprint, kv_heads, and inputs, each with name, k,
 *                 count, and whether it holds hessian, moments, histogram
 *   a store       a directory of those: kind "statistics store", layers, files
 * The document belongs to the caller. */
ql_status inspect_path(const inspect_request *request, json_t **document);

#endif
