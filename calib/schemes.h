/* Schemes: the names that people type, and what each stands for.
 *
 *   W4A16-GPTQ-g128       W{2,3,4,8}A16-{GPTQ,RTN,HQQ}, then -g32, -g64, -g128 or nothing for one group per row: GPTQ files, AWQ files
 *                         for HQQ with 4 bits
 *   W4A16-AWQ             the same with AWQ's scales and clipping, groups of 128 unless -g32 or -g64: AWQ files
 *   W8A8-INT8             SmoothQuant, then GPTQ to 8 bits per row; inputs in 8 bits per token, with -static by calibrated scales:
 *                         compressed-tensors
 *   FP8                   E4M3 per row, inputs per token; FP8-static: per tensor, both; FP8-KV: keys and values too: compressed-tensors
 *   FP8-block             E4M3 in blocks of 128 x 128: fp8
 *   NF4                   4-bit normal float in blocks of 64, nested scales: bitsandbytes
 *   Q4_K_M                and the other mixes of formats/layout_gguf.h: one GGUF file, with the importance of inputs where there are data
 *
 * A scheme fixes recipe, file format and statistics, so that its output is the same bytes wherever it is asked for.
 */
#ifndef CALIB_SCHEMES_H
#define CALIB_SCHEMES_H

#include "calib/layer.h"
#include "calib/scheme.h"

typedef struct named_scheme {
    const char *granularity; /* of the weights' scales, in words */
    const char *targets;     /* runtimes that load it, "vllm,transformers" */
    output_format format;
    recipe recipe; /* defaults but for what the name says */
} named_scheme;

/* QL_USAGE with what there is, if there is no such scheme. */
ql_status scheme_find(const char *name, named_scheme *out);

/* Full precision, shared by all in one pass; propagated for GPTQ below 4 bits, whose errors are large enough to gain by it. */
statistics_mode scheme_statistics(const recipe *r);

/* Bits of a weight in a row of k, scales and zero points included; of a mix, in the blocks of an 8B model. */
double scheme_bits_per_weight(const recipe *r, int64_t k);

/* The usual names, NULL-terminated. */
extern const char *const scheme_names[];

#endif
