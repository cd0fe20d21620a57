/* A GGUF file: its keys say which model it is, which kind of file, and so which tensors in which types; every one is decoded. */
#include <string.h>

#include "calib/verify_parts.h"
#include "formats/json.h"
#include "formats/layout_gguf.h"

static ql_status read_config(verifier *v, const gguf_file *file, model_config *config) {
    json_t *document;
    QL_TRY(gguf_config(file, &document));
    ql_status status = model_config_parse(document, file->path, v->arena, config);
    json_decref(document);
    return status;
}

/* Files of other tools may choose types as they like; ours, which have a SHA256SUMS, are of the mix that they name. */
static ql_status make_plan(verifier *v, const gguf_file *file, const model_config *config, gguf_plan *plan) {
    int64_t type = -1;
    gguf_mix mix = 0;
    QL_TRY(gguf_int(file, "general.file_type", 0, UINT32_MAX, &type));
    while (mix < GGUF_MIX_COUNT && gguf_mix_file_type(mix) != type) mix++;
    bool known = mix < GGUF_MIX_COUNT, important = gguf_key_of(file, GGUF_IMPORTANCE_KEY);
    if (!known && v->result->hashed)
        QL_TRY(
            verify_note(v, "%s: general.file_type is %lld, which qalib does not write", file->path, (long long)type));
    QL_TRY(gguf_plan_make(config, known ? mix : MIX_F16, important, v->arena, plan));
    for (int64_t i = 0; i < plan->count && !(known && v->result->hashed); i++) {
        const gguf_tensor *t = gguf_find(file, plan->entries[i].tensor.name);
        if (t) plan->entries[i].tensor.type = t->type;
    }
    return QL_OK;
}

static ql_status check_tensor(verifier *v, const gguf_file *file, const gguf_plan *plan, const gguf_source *source,
                              const gguf_entry *e) {
    double error;
    char *module;
    const gguf_type *type = e->tensor.type;
    ql_status status = gguf_verify_tensor(file, plan, source, e, &error);
    bool block = type->block < QL_BLOCK_TYPE_COUNT;
    if (gguf_is_linear(e)) v->result->modules += block;
    if (source->values && e->tensor.rank == 2) {
        QL_TRY(ql_arena_format(v->arena, &module, "%.*s", (int)(strlen(e->source) - strlen(".weight")), e->source));
        v->result->rows[v->result->row_count++] = (verify_row){.module = module,
                                                               .bits = block ? gguf_bits(type) : 0,
                                                               .group = block ? gguf_group(type) : 0,
                                                               .error = error,
                                                               .bound = gguf_most_error(type)};
    }
    return verify_absorb(v, status);
}

/* A token per row of the embedding: runtimes refuse anything else. */
static ql_status check_vocabulary(verifier *v, const gguf_file *file, const model_config *config) {
    const gguf_key *tokens = gguf_key_of(file, "tokenizer.ggml.tokens");
    if (!tokens || tokens->kind != GGUF_ARRAY || tokens->element != GGUF_STRING)
        return verify_note(v, "%s: has no tokenizer", file->path);
    if (tokens->count == (uint64_t)config->vocab) return QL_OK;
    return verify_note(v, "%s: %llu tokens, but the embedding has %lld rows", file->path,
                       (unsigned long long)tokens->count, (long long)config->vocab);
}

static ql_status check_file(verifier *v, const gguf_file *file, const gguf_source *source) {
    model_config config;
    gguf_plan plan;
    QL_TRY(read_config(v, file, &config));
    QL_TRY(make_plan(v, file, &config, &plan));
    QL_TRY(check_vocabulary(v, file, &config));
    v->result->quantized = true;
    v->result->tensors = file->count;
    QL_TRY(ql_take(v->arena, (size_t)plan.count, sizeof *v->result->rows, &v->result->rows));
    for (int64_t i = 0; i < plan.count; i++) QL_TRY(check_tensor(v, file, &plan, source, &plan.entries[i]));
    if (file->count == plan.count) return QL_OK;
    return verify_note(v, "%s: %lld tensors, a model of its keys has %lld", file->path, (long long)file->count,
                       (long long)plan.count);
}

ql_status verify_gguf(verifier *v, const char *path, const char *base) {
    gguf_file file = {0};
    checkpoint *truth = NULL;
    gguf_source source = {0};
    if (base) QL_TRY(checkpoint_open(base, &truth));
    if (base) source.values = gguf_values_of_checkpoint, source.user = truth;
    ql_status status = ql_ctx_open("cpu", 0, &source.ctx);
    if (status == QL_OK) status = gguf_open(path, v->arena, &file);
    if (status == QL_OK) status = check_file(v, &file, &source);
    gguf_close(&file);
    ql_ctx_close(source.ctx);
    checkpoint_close(truth);
    return verify_absorb(v, status);
}
