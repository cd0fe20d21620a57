/* A whole job: from a model directory to a quantized one, resumable at every layer.
 *
 *   open the model, resolve what happens to each module, check disk and output directory, take the journal's lock
 *   rows are embedded once, then block after block:  committed -> replay forward    not yet -> quantize, commit
 *   committed layers -> the layout of the output, config.json last
 */
#ifndef CALIB_JOB_H
#define CALIB_JOB_H

#include "calib/layer.h"
#include "calib/progress.h"

typedef enum output_format { OUTPUT_GPTQ, OUTPUT_GPTQ_V2, OUTPUT_DENSE } output_format;
extern const char *const output_format_names[]; /* "gptq", "gptq_v2", "dense"; ends with NULL */

typedef struct quantize_request {
    const char *model_dir, *out_dir, *work_dir;
    const char *tokens_path, *stats_dir; /* at most one; NULL: no data */
    statistics_mode mode;
    recipe recipe;
    output_format format;
    uint64_t shard_size;
    bool resume;
    progress_style progress;
} quantize_request;

/* *report: report.json as a document (json_decref), also when everything was complete already. */
ql_status quantize_run(ql_ctx *ctx, const quantize_request *request, json_t **report);

typedef struct calibrate_request {
    const char *model_dir, *tokens_path, *work_dir;
    int kinds; /* STATS_* */
    bool resume;
    progress_style progress;
} calibrate_request;

ql_status calibrate_run(ql_ctx *ctx, const calibrate_request *request, json_t **report);

#endif
