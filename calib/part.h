/* One output of a job: what happens to each module, which layers are committed, and in the end the directory.
 *
 *   part_open(part, request, ...)      resolves the recipe, checks the output directory, takes the journal's lock
 *   part_commit(part, result)          after each layer
 *   part_write(part, ...)              committed layers -> the layout of the output, config.json last
 *   part_close(part)
 *
 * A part's bytes depend on its own request alone, whatever else the job makes in the same pass.
 */
#ifndef CALIB_PART_H
#define CALIB_PART_H

#include "calib/job.h"
#include "calib/journal.h"
#include "calib/modules.h"

typedef struct part {
    const quantize_request *request;
    const model *model;
    const token_file *tokens; /* NULL: no rows */
    engine *engine;
    journal *journal; /* rank 0's */
    int64_t done;     /* layers */
    bool complete;
    module_table modules;
    char fingerprint[65];
    layout_scheme scheme;      /* of the output */
    gguf_plan gguf;            /* OUTPUT_GGUF: its tensors, and no scheme */
    bool important;            /* OUTPUT_GGUF: the encoder knows how much each input counts */
    const imatrix *importance; /* ... from a file; NULL: from statistics */
    ql_arena *host;            /* job lifetime */
    json_t *report;            /* set when the output is complete; the caller's */
} part;

/* Ready to work, or already complete: then part->report is set (on rank 0), and the output was looked at. */
ql_status part_open(ql_ctx *ctx, const quantize_request *request, const model *m, const token_file *tokens,
                    ql_arena *host, part *p);
void part_close(part *p);

static inline bool part_is_complete(const part *p) { return p->complete; }
static inline int64_t part_done(const part *p) { return p->done; }
static inline const module_rule *part_rules(const part *p, int64_t layer) {
    return modules_rule(&p->modules, layer, 0);
}

ql_status part_load(part *p, int64_t layer, ql_arena *host, layer_result *result);
/* On all ranks; rank 0 writes. */
ql_status part_commit(part *p, const layer_result *result);

/* The engine has given back what the layers worked in: it serves for its host arena and its phases.  device_peak: of that work. */
ql_status part_write(part *p, int64_t samples_skipped, size_t device_peak);

#endif
