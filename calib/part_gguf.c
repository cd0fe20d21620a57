#include "calib/part_gguf.h"

#include <stdio.h>
#include <string.h>

#include "calib/output_text.h"

/* ---- before the work ------------------------------------------------------------------------------------------------------ */

ql_status part_gguf_meta(const checkpoint *ck, const gguf_plan *plan, bool important, ql_arena *arena,
                         gguf_meta *meta) {
    char *base;
    uint32_t weights = 0;
    for (int64_t i = 0; i < plan->count; i++) weights += gguf_is_linear(&plan->entries[i]);
    QL_TRY(output_base_model(checkpoint_dir(ck), arena, &base));
    const char *slash = strrchr(base, '/');
    QL_TRY(gguf_model_meta(plan->config, plan->mix, slash ? slash + 1 : base, meta));
    if (important) QL_TRY(gguf_put_u32(meta, GGUF_IMPORTANCE_KEY, weights));
    return gguf_tokenizer(ck, plan->config->vocab, meta);
}

/* Sizes of the tensors; a tokenizer that cannot be written is found before any work. */
static ql_status measure_file(part *p) {
    gguf_meta meta = {0};
    uint64_t size;
    ql_mark mark = ql_arena_mark(p->host);
    ql_status status = part_gguf_meta(p->model->ck, &p->gguf, p->important, p->host, &meta);
    if (status == QL_OK) status = gguf_file_size(&meta, p->gguf.tensors, p->gguf.count, &size);
    gguf_meta_free(&meta);
    ql_arena_release(p->host, mark);
    return status;
}

static ql_status read_importance(part *p) {
    imatrix *matrix;
    const char *path = p->request->imatrix_path;
    if (!path || !p->important) return QL_OK;
    QL_TRY(ql_take(p->host, 1, sizeof *matrix, &matrix));
    QL_TRY(imatrix_read(path, p->host, matrix));
    p->importance = matrix;
    return ql_context(gguf_check_importance(&p->gguf, matrix), "%s", path);
}

ql_status part_gguf_open(part *p) {
    const quantize_request *r = p->request;
    p->important = gguf_mix_reads_importance(r->recipe.mix) && (r->tokens_path || r->stats_dir || r->imatrix_path);
    QL_TRY(gguf_plan_make(&p->model->config, r->recipe.mix, p->important, p->host, &p->gguf));
    QL_TRY(modules_of_gguf(&p->gguf, p->host, &p->modules));
    QL_TRY(read_importance(p));
    return measure_file(p);
}

double part_gguf_bits(const part *p) {
    double bytes = 0, weights = 0;
    for (int64_t i = 0; i < p->gguf.count; i++) {
        const gguf_entry *e = &p->gguf.entries[i];
        if (!gguf_is_linear(e)) continue;
        weights += (double)e->n * (double)e->k;
        bytes += (double)e->n * (double)gguf_row_bytes(e->tensor.type, e->k);
    }
    return weights > 0 ? 8 * bytes / weights : 0;
}

/* ---- the file --------------------------------------------------------------------------------------------------------------- */

/* One committed layer at a time, in the order of the file. */
typedef struct layers {
    part *part;
    layer_result result; /* layer -1: none yet */
} layers;

static ql_status take_values(void *user, const gguf_entry *e, float *w) {
    return gguf_values_of_checkpoint(((layers *)user)->part->model->ck, e, w);
}

static ql_status take_encoded(void *user, const gguf_entry *e, void **bytes) {
    layers *l = user;
    long long layer;
    char name[NAME_SIZE + 8];
    if (!gguf_is_linear(e) || sscanf(e->tensor.name, "blk.%lld.", &layer) != 1) return QL_OK;
    if (layer != l->result.layer) {
        ql_arena_release(l->part->engine->host, (ql_mark){0});
        QL_TRY(part_load(l->part, layer, l->part->engine->host, &l->result));
    }
    for (linear_id id = 0; id < LINEARS; id++) {
        snprintf(name, sizeof name, "%s.weight", l->result.module[id].name);
        if (strcmp(name, e->source) == 0) *bytes = l->result.module[id].codes;
    }
    return QL_OK;
}

ql_status part_gguf_write(part *p, output *out) {
    layers committed = {.part = p, .result = {.layer = -1}};
    gguf_source source = {.values = take_values, .user = &committed, .encoded = take_encoded};
    gguf_meta meta = {0};
    QL_TRY(ql_ctx_open("cpu", ql_ctx_threads(p->engine->ctx), &source.ctx));
    ql_status status = gguf_check_rest(&p->gguf, &source);
    if (status == QL_OK) status = part_gguf_meta(p->model->ck, &p->gguf, p->important, p->host, &meta);
    if (status == QL_OK) status = output_gguf(out, &meta, &source);
    gguf_meta_free(&meta);
    ql_ctx_close(source.ctx);
    return status;
}
