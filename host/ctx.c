/* Open and close a context; the only place that names the CUDA backend. */
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "host/ops.h"

static const ql_ops cpu_ops = {
#define ENTRY(name, parameters) .name = ql_cpu_##name,
    QL_DEVICE_OPS(ENTRY) QL_OPS(ENTRY)
#undef ENTRY
};

#ifdef QL_CUDA
static const ql_ops cuda_ops = {
#define ENTRY(name, parameters) .name = ql_cuda_##name,
    QL_DEVICE_OPS(ENTRY) QL_OPS(ENTRY)
#undef ENTRY
};
#endif

static ql_status open_with(const ql_ops *ops, int device, int threads, ql_ctx **out) {
    ql_ctx *ctx = ql_malloc(sizeof *ctx);
    if (!ctx) return ql_fail(QL_NOMEM, "no memory for a context");
    *ctx = (ql_ctx){.ops = ops, .threads = threads};
    ql_status status = ops->open(ctx, device);
    if (status == QL_OK) *out = ctx;
    else free(ctx);
    return status;
}

static ql_status open_cuda(int device, int threads, ql_ctx **ctx) {
#ifdef QL_CUDA
    return open_with(&cuda_ops, device, threads, ctx);
#else
    (void)device, (void)threads, (void)ctx;
    return ql_fail(QL_DEVICE,
                   "this build of qalib has no CUDA backend; use --device cpu, or build where nvcc is found");
#endif
}

ql_status ql_ctx_open(const char *device, int threads, ql_ctx **ctx) {
    *ctx = NULL;
    if (threads < 0 || threads > 4096) return ql_fail(QL_USAGE, "threads %d: expected 0 to 4096", threads);
    if (strcmp(device, "cpu") == 0) return open_with(&cpu_ops, 0, threads, ctx);
    if (strcmp(device, "auto") == 0) {
        if (open_cuda(0, threads, ctx) == QL_OK) return QL_OK;
        return open_with(&cpu_ops, 0, threads, ctx);
    }
    if (strcmp(device, "cuda") == 0) return open_cuda(0, threads, ctx);
    if (strncmp(device, "cuda:", 5) == 0 && device[5] >= '0' && device[5] <= '9') {
        char *end;
        long index = strtol(device + 5, &end, 10);
        if (!*end && index < 1024) return open_cuda((int)index, threads, ctx);
    }
    return ql_fail(QL_USAGE, "device \"%s\": expected auto, cpu, cuda or cuda:N", device);
}

void ql_ctx_close(ql_ctx *ctx) {
    if (!ctx) return;
    ctx->ops->close(ctx);
    free(ctx);
}

const char *ql_ctx_device(const ql_ctx *ctx) { return ctx->device; }
const char *ql_ctx_describe(const ql_ctx *ctx) { return ctx->description; }
int ql_ctx_threads(const ql_ctx *ctx) { return ctx->threads; }

ql_status ql_alloc(ql_ctx *ctx, size_t bytes, void **data) { return ctx->ops->alloc(ctx, bytes, data); }
void ql_free(ql_ctx *ctx, void *data) {
    if (data) ctx->ops->free(ctx, data);
}
ql_status ql_upload(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    return bytes ? ctx->ops->upload(ctx, device, host, bytes) : QL_OK;
}
ql_status ql_download(ql_ctx *ctx, void *host, const void *device, size_t bytes) {
    return bytes ? ctx->ops->download(ctx, host, device, bytes) : QL_OK;
}
ql_status ql_sync(ql_ctx *ctx) { return ctx->ops->sync(ctx); }

ql_status ql_pin(ql_ctx *ctx, size_t bytes, void **host) {
    *host = NULL;
    return ctx->ops->pin(ctx, bytes, host);
}
void ql_unpin(ql_ctx *ctx, void *host) {
    if (host) ctx->ops->unpin(ctx, host);
}
ql_status ql_upload_beside(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    return bytes ? ctx->ops->upload_beside(ctx, device, host, bytes) : QL_OK;
}

void *ql_ctx_stream(const ql_ctx *ctx) {
    void *stream = NULL;
    (void)ctx->ops->stream(ctx, &stream); /* cannot fail */
    return stream;
}

void ql_annotate(ql_ctx *ctx, const char *name) { (void)ctx->ops->annotate(ctx, name); } /* cannot fail */
