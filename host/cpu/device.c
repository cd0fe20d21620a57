/* The CPU as a device: host memory, OpenMP threads over single-threaded BLAS calls. */
#include <dlfcn.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/fault.h"
#include "host/mem.h"
#include "host/ops.h"

/* OpenBLAS changes the bits of a product with its number of threads, so each call gets one and the threads share tiles.
 * The reference BLAS has no such function. */
static const char *quiet_blas(void) {
    void (*set_threads)(int) = NULL;
    char *(*get_config)(void) = NULL;
    *(void **)&set_threads = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
    *(void **)&get_config = dlsym(RTLD_DEFAULT, "openblas_get_config");
    if (set_threads) set_threads(1);
    return get_config ? get_config() : "reference BLAS";
}

static void processor_name(char *name, size_t size) {
    snprintf(name, size, "CPU");
    FILE *info = fopen("/proc/cpuinfo", "re");
    char line[256];
    while (info && fgets(line, sizeof line, info)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        colon[strcspn(colon, "\n")] = 0;
        snprintf(name, size, "%s", colon + 2);
        break;
    }
    if (info) fclose(info);
}

ql_status ql_cpu_open(ql_ctx *ctx, int device) {
    (void)device;
    char processor[96];
    processor_name(processor, sizeof processor);
    if (ctx->threads == 0) ctx->threads = omp_get_max_threads();
    omp_set_num_threads(ctx->threads);
    snprintf(ctx->device, sizeof ctx->device, "cpu");
    snprintf(ctx->description, sizeof ctx->description, "%s, %.120s", processor, quiet_blas());
    return QL_OK;
}

ql_status ql_cpu_close(ql_ctx *ctx) {
    (void)ctx;
    return QL_OK;
}

ql_status ql_cpu_alloc(ql_ctx *ctx, size_t bytes, void **data) {
    (void)ctx;
    if (ql_fault("malloc") || posix_memalign(data, 256, bytes ? bytes : 1) != 0)
        return ql_fail(QL_NOMEM, "no memory: %zu bytes asked for on the CPU", bytes);
    return QL_OK;
}

ql_status ql_cpu_free(ql_ctx *ctx, void *data) {
    (void)ctx;
    free(data);
    return QL_OK;
}

ql_status ql_cpu_upload(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    (void)ctx;
    memcpy(device, host, bytes);
    return QL_OK;
}

ql_status ql_cpu_download(ql_ctx *ctx, void *host, const void *device, size_t bytes) {
    (void)ctx;
    memcpy(host, device, bytes);
    return QL_OK;
}

ql_status ql_cpu_sync(ql_ctx *ctx) {
    (void)ctx;
    return QL_OK;
}

ql_status ql_cpu_pin(ql_ctx *ctx, size_t bytes, void **host) {
    (void)ctx, (void)bytes, (void)host;
    return QL_OK;
}

ql_status ql_cpu_unpin(ql_ctx *ctx, void *host) {
    (void)ctx, (void)host;
    return QL_OK;
}

ql_status ql_cpu_upload_beside(ql_ctx *ctx, void *device, const void *host, size_t bytes) {
    return ql_cpu_upload(ctx, device, host, bytes);
}

ql_status ql_cpu_stream(const ql_ctx *ctx, void **stream) {
    (void)ctx;
    *stream = NULL;
    return QL_OK;
}

ql_status ql_cpu_idle(ql_ctx *ctx, bool *idle) {
    (void)ctx;
    *idle = true;
    return QL_OK;
}
