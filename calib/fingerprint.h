/* What a job depends on, field by field: equal fingerprints give equal bytes, and a refused resume can list what differs. */
#ifndef CALIB_FINGERPRINT_H
#define CALIB_FINGERPRINT_H

#include "calib/job.h"

/* Tool and algorithm version, model (config.json, each shard's size and header hash), tokens, statistics, recipe, device.
 * (json_decref).  tokens: NULL if there are none. */
ql_status fingerprint_quantize(ql_ctx *ctx, const model *m, const token_file *tokens, const quantize_request *request,
                               json_t **out);
ql_status fingerprint_calibrate(ql_ctx *ctx, const model *m, const token_file *tokens, const calibrate_request *request,
                                json_t **out);

/* SHA-256 of all of it, in hex. */
ql_status fingerprint_job(const json_t *fingerprint, char text[65]);
/* SHA-256 over the model's part alone: what a statistics store says about its source, 65 bytes. */
ql_status fingerprint_source(const json_t *fingerprint, char text[65]);

/* All ranks have the same one, or QL_MISMATCH names the first field that differs. */
ql_status fingerprint_agree(ql_comm *comm, const json_t *fingerprint, ql_arena *host);

#endif
