#include "host/replay.h"

#include <stdio.h>

#include "host/mem.h"
#include "host/ops.h"

ql_status ql_replay_open(ql_ctx *ctx, const char *label, ql_call call, void *data, int64_t count, ql_replay **replay) {
    ql_replay *r = ql_malloc(sizeof *r);
    *replay = NULL;
    if (!r) return ql_fail(QL_NOMEM, "%s: no memory for a recording", label);
    *r = (ql_replay){.ctx = ctx, .call = call, .data = data, .count = count};
    snprintf(r->label, sizeof r->label, "%s", label);
    ql_status status = call(data, 0);
    if (status == QL_OK) status = ctx->ops->sync(ctx);
    if (status == QL_OK) status = ctx->ops->replay_open(r);
    if (status == QL_OK) *replay = r;
    else ql_mfree(r);
    return status;
}

ql_status ql_replay_run(ql_replay *replay, double *seconds) { return replay->ctx->ops->replay_run(replay, seconds); }

void ql_replay_close(ql_replay *replay) {
    if (!replay) return;
    replay->ctx->ops->replay_close(replay);
    ql_mfree(replay);
}

ql_status ql_device_facts(ql_ctx *ctx, ql_facts *facts) { return ctx->ops->facts(ctx, facts); }

ql_status ql_copy(ql_ctx *ctx, void *to, const void *from, size_t bytes) {
    return bytes ? ctx->ops->copy(ctx, to, from, bytes) : QL_OK;
}
