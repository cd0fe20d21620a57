/* The daemon has no devices: what host/mem.c asks of one is not linked, so that no backend is. */
#include "host/status.h"

static ql_status none(void) { return ql_fail(QL_DEVICE, "the daemon opens no devices"); }

ql_status ql_alloc(ql_ctx *ctx, size_t size, void **data) {
    (void)ctx, (void)size, (void)data;
    return none();
}

void ql_free(ql_ctx *ctx, void *data) { (void)ctx, (void)data; }

ql_status ql_upload(ql_ctx *ctx, void *to, const void *from, size_t size) {
    (void)ctx, (void)to, (void)from, (void)size;
    return none();
}

ql_status ql_download(ql_ctx *ctx, void *to, const void *from, size_t size) {
    (void)ctx, (void)to, (void)from, (void)size;
    return none();
}
