#include "formats/checkpoint_gguf.h"

#include <string.h>

#include "formats/layout_gguf.h"

struct gguf_checkpoint {
    gguf_file file;
    gguf_plan plan; /* of a file of this model: names, shapes, rows that move */
    model_config config;
    st_tensor *tensors; /* entry i of the plan */
    ql_ctx *ctx;        /* decodes on the CPU */
};

/* The tensor of an entry, and what it looks like from outside. */
static ql_status list_tensor(gguf_checkpoint *ck, const gguf_entry *e, st_tensor *out) {
    const gguf_tensor *t = gguf_find(&ck->file, e->tensor.name);
    if (!t) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is missing", ck->file.path, e->tensor.name);
    if (memcmp(t->ne, e->tensor.ne, sizeof t->ne) != 0)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is [%lld, %lld], its keys imply [%lld, %lld]", ck->file.path,
                       t->name, (long long)t->ne[1], (long long)t->ne[0], (long long)e->n, (long long)e->k);
    bool known = t->type->block < QL_BLOCK_TYPE_COUNT || t->type->dtype == QL_F32 || t->type->dtype == QL_F16 ||
                 t->type->dtype == QL_BF16;
    if (!known)
        return ql_fail(QL_MISMATCH, "%s: tensor \"%s\" is %s, which qalib does not decode", ck->file.path, t->name,
                       t->type->name);
    *out = (st_tensor){.name = e->source,
                       .dtype_name = "F32",
                       .dtype = QL_F32,
                       .rank = e->tensor.rank,
                       .shape = {e->n, e->k},
                       .begin = t->begin};
    if (e->tensor.rank == 1) out->shape[0] = e->k;
    return ql_mul_size((uint64_t)(e->n * e->k), 4, &out->size) ? QL_OK
                                                               : ql_fail(QL_FORMAT, "%s: too large", ck->file.path);
}

static ql_status list_tensors(gguf_checkpoint *ck, ql_arena *arena, const st_tensor ***tensors, int64_t *count) {
    QL_TRY(gguf_plan_make(&ck->config, MIX_F16, false, arena, &ck->plan));
    QL_TRY(ql_take(arena, (size_t)ck->plan.count, sizeof *ck->tensors, &ck->tensors));
    QL_TRY(ql_take(arena, (size_t)ck->plan.count, sizeof **tensors, tensors));
    *count = 0;
    for (int64_t i = 0; i < ck->plan.count; i++) {
        if (!ck->plan.entries[i].source) continue; /* factors: gguf_config has read them */
        QL_TRY(list_tensor(ck, &ck->plan.entries[i], &ck->tensors[i]));
        (*tensors)[(*count)++] = &ck->tensors[i];
    }
    if (ck->file.count == ck->plan.count) return QL_OK;
    return ql_fail(QL_MISMATCH, "%s: %lld tensors, a model of its keys has %lld", ck->file.path,
                   (long long)ck->file.count, (long long)ck->plan.count);
}

ql_status gguf_checkpoint_open(const char *path, ql_arena *arena, gguf_checkpoint **out, json_t **config,
                               const st_tensor ***tensors, int64_t *count) {
    gguf_checkpoint *ck = ql_malloc(sizeof *ck);
    *out = NULL, *config = NULL;
    if (!ck) return ql_fail(QL_NOMEM, "%s: no memory", path);
    *ck = (gguf_checkpoint){0};
    ql_status status = ql_ctx_open("cpu", 0, &ck->ctx);
    if (status == QL_OK) status = gguf_open(path, arena, &ck->file);
    if (status == QL_OK) status = gguf_config(&ck->file, config);
    if (status == QL_OK) status = model_config_parse(*config, path, arena, &ck->config);
    if (status == QL_OK) status = list_tensors(ck, arena, tensors, count);
    if (status == QL_OK) *out = ck;
    else gguf_checkpoint_close(ck);
    return status;
}

void gguf_checkpoint_close(gguf_checkpoint *ck) {
    if (!ck) return;
    gguf_close(&ck->file);
    ql_ctx_close(ck->ctx);
    ql_mfree(ck);
}

uint64_t gguf_checkpoint_bytes(const gguf_checkpoint *ck) {
    uint64_t bytes = 0;
    for (int64_t i = 0; i < ck->file.count; i++) bytes += ck->file.tensors[i].size;
    return bytes;
}

ql_status gguf_checkpoint_read(const gguf_checkpoint *ck, const st_tensor *tensor, void *data) {
    const gguf_entry *e = &ck->plan.entries[tensor - ck->tensors];
    return gguf_decode(ck->ctx, &ck->file, gguf_find(&ck->file, e->tensor.name), e->heads, data);
}
