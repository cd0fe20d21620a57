/* A whole job: from a model directory to one or more quantized ones (calib/part.h), resumable at every layer.
 *
 *   open the model; for each output resolve what happens to each module, check its directory, take its journal's lock
 *   rows are embedded once, then block after block:  committed -> replay forward    not yet -> quantize, commit, for each output
 *   committed layers -> the layout of each output, config.json last
 */
#ifndef CALIB_JOB_H
#define CALIB_JOB_H

#include "calib/layer.h"
#include "calib/progress.h"
#include "calib/scheme.h"

typedef struct quantize_request {
    const char *model_dir, *out_dir, *work_dir;
    const char *tokens_path,
        *stats_dir;           /* NULL: none; both: the statistics of these rows, made before (calib/cache.h) */
    const char *imatrix_path; /* importance for GGUF files, without data; NULL: none */
    statistics_mode mode;
    recipe recipe;
    output_format format;
    uint64_t shard_size;
    pass_setting pass;
    bool resume;
    progress_style progress;
    ql_comm *comm; /* NULL: one rank; else all call quantize_run, and rank 0 writes */
} quantize_request;

/* Makes several outputs in one pass over the model: requests[0..count-1] share model, rows or store, mode, pass, ranks, resume and progress, and
 * every one has its own directories.  With mode propagated, where the rows depend on the recipe, count is 1.
 * reports[i]: report.json as a document (json_decref), also when that output was complete already; NULL after a failure, and on
 * other ranks than 0. */
ql_status quantize_run(ql_ctx *ctx, const quantize_request requests[], int count, json_t *reports[]);

typedef struct calibrate_request {
    const char *model_dir, *tokens_path, *work_dir;
    int kinds; /* STATS_* */
    pass_setting pass;
    bool resume;
    progress_style progress;
    ql_comm *comm; /* NULL: one rank; else all call calibrate_run, and rank 0 writes */
} calibrate_request;

/* *report: of rank 0 (json_decref); NULL on the others. */
ql_status calibrate_run(ql_ctx *ctx, const calibrate_request *request, json_t **report);

#endif
