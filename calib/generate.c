#include "calib/generate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "calib/cli/cli.h"
#include "calib/machine.h"
#include "calib/phases.h"
#include "formats/generation.h"
#include "host/mat.h"
#include "host/replay.h"

/* Rows of a prompt that pass together: products of this many rows run at full speed. */
enum { PROMPT_ROWS = 512 };

typedef struct session {
    ql_ctx *ctx;
    model *m;
    ql_arena *device, *scratch, *host; /* scratch: a block on its way from the file */
    progress *p;
    int64_t rows;     /* most that pass together */
    double moved;     /* bytes of weights that a step reads */
    size_t workspace; /* of the plan that wants most */
    ql_plan **plans;  /* [layers * LINEARS], its own; NULL: none */
    forward forward;
    block *blocks;
    kv_cache cache;
    ql_mat table, norm, head;
    ql_mat x, ids, position; /* of one part of the prompt */
    ql_mat logits;           /* [1][vocab] */
    float *host_logits;
    const int32_t *ends;
    int64_t n_ends;
} session;

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

/* Bytes on the device.  In floating point: a config may claim any size. */
typedef struct footprint {
    double weights, embedding, cache;
    double loading; /* the largest tensor twice, as bytes of the file on the host and on the device, and a block */
} footprint;

static ql_status module_bytes(const model *m, int64_t layer, linear_id id, double *bytes) {
    char module[NAME_SIZE];
    int64_t n, k;
    layout_rule rule;
    module_name(module, layer, id);
    linear_shape(&m->config, id, &n, &k);
    *bytes = 4.0 * (double)n * (double)k;
    if (!m->quantized || !layout_has(m->ck, &m->scheme, module)) return QL_OK;
    QL_TRY(layout_rule_of(&m->scheme, module, &rule));
    if (m->byte_plan[id]) *bytes /= 4;
    if (m->byte_plan[id] || m->scheme.type != CODE_INT) return QL_OK; /* bytes; decoded */
    int64_t groups = ql_groups(k, rule.group < 0 ? k : rule.group);
    *bytes = (double)n * (4.0 * (double)ql_packed_words(k, rule.bits) + 5.0 * (double)groups); /* codes, scale, zero */
    return QL_OK;
}

/* Weights that every step reads, apart from the embedding, of which it reads one row; tied to the head they are one. */
static ql_status measure(const model *m, int64_t positions, footprint *out) {
    const model_config *c = &m->config;
    double table = 4.0 * (double)c->vocab * (double)c->hidden;
    *out = (footprint){.weights = table, .embedding = c->tied_embeddings ? 0 : table};
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (linear_id id = 0; id < LINEARS; id++) {
            double bytes;
            QL_TRY(module_bytes(m, layer, id, &bytes));
            out->weights += bytes;
        }
    double blocks = out->weights - table;
    for (int64_t i = 0; i < checkpoint_count(m->ck); i++)
        out->loading = fmax(out->loading, 2.0 * (double)checkpoint_at(m->ck, i)->size);
    out->loading += 2 * blocks / (double)c->layers; /* with codes of one byte each */
    out->cache = 8.0 * (double)c->layers * (double)positions * (double)c->kv_heads * (double)c->head_dim;
    return QL_OK;
}

/* Asked beforehand on the CPU, where memory that is not there would be given out; the GPU says no when it is asked. */
static ql_status check_memory(ql_ctx *ctx, const model *m, const footprint *need) {
    double weights = need->weights + need->embedding, free = (double)machine_memory_available();
    if (strcmp(ql_ctx_device(ctx), "cpu") != 0 || weights + need->cache + need->loading <= free) return QL_OK;
    return ql_fail(QL_NOMEM,
                   "%s: %.2f GB of weights, %.2f GB of keys and values, %.2f GB to load them; %.2f GB of memory are "
                   "available",
                   checkpoint_dir(m->ck), 1e-9 * weights, 1e-9 * need->cache, 1e-9 * need->loading, 1e-9 * free);
}

/* ---- the model and its buffers ----------------------------------------------------------------------------------------- */

static ql_status keep(session *s, ql_mat *mat) {
    ql_mat kept;
    if (!ql_is_present(*mat)) return QL_OK;
    QL_TRY(ql_arena_mat(s->device, mat->dtype, mat->rows, mat->cols, &kept));
    QL_TRY(ql_copy(s->ctx, kept.data, mat->data, ql_mat_bytes(kept)));
    s->moved += (double)ql_mat_bytes(kept);
    *mat = kept;
    return QL_OK;
}

/* Inputs of packed linears have the model's own 16 bits, as in every runtime. */
static ql_dtype half_of(const model *m) { return strcmp(m->config.torch_dtype, "float16") == 0 ? QL_F16 : QL_BF16; }

static ql_status pack(session *s, linear *lin, ql_plan **plan) {
    QL_TRY(linear_pack(s->ctx, half_of(s->m), QL_F32, s->rows, s->scratch, s->device, lin, plan));
    if (ql_plan_workspace(lin->plan) > s->workspace) s->workspace = ql_plan_workspace(lin->plan);
    s->moved += (double)ql_plan_packed(lin->plan);
    return QL_OK;
}

static ql_status keep_bytes(session *s, linear *lin) {
    size_t size = ql_plan_packed(lin->plan);
    const void *packed = lin->packed;
    QL_TRY(ql_arena_take(s->device, size, 1, &lin->packed));
    s->moved += (double)size;
    return ql_copy(s->ctx, lin->packed, packed, size);
}

static ql_status keep_linear(session *s, linear *lin, ql_plan **plan) {
    QL_TRY(keep(s, &lin->bias));
    QL_TRY(keep(s, &lin->w));
    QL_TRY(keep(s, &lin->inputs.scale));
    if (lin->packed) return keep_bytes(s, lin);
    if (!ql_is_present(lin->q.codes)) return QL_OK;
    ql_status status = pack(s, lin, plan);
    if (status != QL_UNSUPPORTED) return status;
    QL_TRY(keep(s, &lin->q.codes));
    QL_TRY(keep(s, &lin->q.grid.scale));
    QL_TRY(keep(s, &lin->q.grid.zero));
    return keep(s, &lin->q.grid.g_idx);
}

static ql_status load_block(session *s, int64_t layer) {
    block *b = &s->blocks[layer];
    ql_mat *const vectors[] = {&b->norm_in, &b->norm_mlp, &b->q_norm, &b->k_norm, &b->kv_scale[0], &b->kv_scale[1]};
    QL_TRY(model_load_block(s->m, layer, s->scratch, b));
    for (int i = 0; i < 6; i++) QL_TRY(keep(s, vectors[i]));
    for (int id = 0; id < LINEARS; id++) QL_TRY(keep_linear(s, &b->lin[id], &s->plans[layer * LINEARS + id]));
    QL_TRY(ql_sync(s->ctx)); /* the copies read what is released now */
    ql_arena_release(s->scratch, (ql_mark){0});
    return QL_OK;
}

static ql_status load(session *s) {
    model *m = s->m;
    QL_TRY(ql_take(s->host, (size_t)m->config.layers, sizeof *s->blocks, &s->blocks));
    QL_TRY(ql_take(s->host, (size_t)m->config.layers * LINEARS, sizeof(ql_plan *), &s->plans));
    for (int64_t layer = 0; layer < m->config.layers; layer++) {
        char text[64];
        QL_TRY(cli_check_signal());
        snprintf(text, sizeof text, "loading layer %lld", (long long)layer);
        progress_step(s->p, layer, text);
        QL_TRY(load_block(s, layer));
    }
    QL_TRY(model_load_head(m, s->device, &s->norm, &s->head));
    s->moved += (double)ql_mat_bytes(s->head);
    s->table = s->head;
    return m->config.tied_embeddings ? QL_OK : model_load_embedding(m, s->device, &s->table);
}

static void unload(session *s) {
    for (int64_t i = 0; s->plans && i < s->m->config.layers * LINEARS; i++) ql_plan_free(s->plans[i]);
    ql_arena_close(s->scratch);
    ql_arena_close(s->device);
}

static ql_status take_buffers(session *s, int64_t positions) {
    const model_config *c = &s->m->config;
    int64_t rows = s->rows;
    QL_TRY(ql_take(s->host, (size_t)c->layers, sizeof *s->cache.k, &s->cache.k));
    QL_TRY(ql_take(s->host, (size_t)c->layers, sizeof *s->cache.v, &s->cache.v));
    for (int64_t layer = 0; layer < c->layers; layer++) {
        QL_TRY(ql_arena_mat(s->device, QL_F32, positions, c->kv_heads * c->head_dim, &s->cache.k[layer]));
        QL_TRY(ql_arena_mat(s->device, QL_F32, positions, c->kv_heads * c->head_dim, &s->cache.v[layer]));
    }
    QL_TRY(ql_arena_mat(s->device, QL_F32, rows, c->hidden, &s->x));
    QL_TRY(ql_arena_mat(s->device, QL_I32, 1, rows, &s->ids));
    QL_TRY(ql_arena_mat(s->device, QL_I32, 1, rows, &s->position));
    QL_TRY(ql_arena_mat(s->device, QL_F32, 1, c->vocab, &s->logits));
    QL_TRY(ql_take(s->host, (size_t)c->vocab, sizeof *s->host_logits, &s->host_logits));
    QL_TRY(forward_open(s->ctx, c, QL_F32, positions, rows, s->device, &s->forward));
    int64_t attn = c->heads * c->head_dim, widest = attn > c->intermediate ? attn : c->intermediate;
    if (widest < c->hidden) widest = c->hidden;
    QL_TRY(ql_arena_mat(s->device, half_of(s->m), rows, ql_ceil_div(widest, 8) * 8, &s->forward.half)); /* 16 bytes */
    size_t workspace = s->workspace > s->m->byte_workspace ? s->workspace : s->m->byte_workspace;
    if (model_rounds_inputs(s->m) || model_rounds_cache(s->m))
        return forward_open_inputs(&s->forward, rows, workspace, s->device);
    return ql_arena_take(s->device, workspace + 256, 1, &s->forward.workspace);
}

/* ---- one part of the sequence ------------------------------------------------------------------------------------------ */

static ql_status upload_positions(session *s, int64_t rows) {
    int32_t position[PROMPT_ROWS];
    for (int64_t i = 0; i < rows; i++) position[i] = (int32_t)(s->cache.used + i);
    return ql_upload(s->ctx, s->position.data, position, (size_t)rows * sizeof *position);
}

/* The next rows through all blocks; their residual stream stays in s->x. */
static ql_status feed(session *s, const int32_t *ids, int64_t rows) {
    ql_mat x = ql_rows(s->x, 0, rows);
    batch part = {.n_seq = 1, .rows = rows, .position = ql_cols(s->position, 0, rows), .cache = &s->cache};
    QL_TRY(upload_positions(s, rows));
    QL_TRY(ql_upload(s->ctx, s->ids.data, ids, (size_t)rows * sizeof *ids));
    QL_TRY(ql_embed(s->ctx, s->table, ql_cols(s->ids, 0, rows), x));
    for (int64_t layer = 0; layer < s->m->config.layers; layer++)
        QL_TRY(block_forward(&s->forward, &s->blocks[layer], layer, &part, x));
    s->cache.used += rows;
    return QL_OK;
}

/* The arg max after row `row` of the part that passed last; the first one of equals. */
static ql_status choose(session *s, int64_t row, int32_t *id) {
    ql_mat norm = ql_rows(s->forward.norm, 0, 1);
    QL_TRY(ql_rmsnorm(s->ctx, ql_rows(s->x, row, 1), s->norm, (float)s->m->config.rms_eps, norm));
    QL_TRY(ql_gemm(s->ctx, norm, s->head, ql_no_mat(), s->logits));
    QL_TRY(ql_download(s->ctx, s->host_logits, s->logits.data, ql_mat_bytes(s->logits)));
    int64_t best = 0;
    for (int64_t v = 0; v < s->logits.cols; v++) {
        if (!isfinite(s->host_logits[v]))
            return ql_fail(QL_FORMAT, "the logit of token %lld is not finite at position %lld", (long long)v,
                           (long long)s->cache.used - 1);
        if (s->host_logits[v] > s->host_logits[best]) best = v;
    }
    *id = (int32_t)best;
    return QL_OK;
}

static bool is_end(const session *s, int32_t id) {
    for (int64_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] == id) return true;
    return false;
}

/* ---- the sequence ------------------------------------------------------------------------------------------------------ */

static ql_status prompt(session *s, const int32_t *ids, int64_t n_ids, int32_t *id) {
    int64_t rows = 0;
    for (int64_t first = 0; first < n_ids; first += rows) {
        rows = n_ids - first < s->x.rows ? n_ids - first : s->x.rows;
        QL_TRY(cli_check_signal());
        QL_TRY(feed(s, ids + first, rows));
    }
    return choose(s, rows - 1, id);
}

/* The first new id is there; the others follow one by one. */
static ql_status decode(session *s, int64_t count, generation *out) {
    int64_t layers = s->m->config.layers;
    for (out->count = 1; !(out->ended = is_end(s, out->ids[out->count - 1])) && out->count < count; out->count++) {
        QL_TRY(cli_check_signal());
        progress_step(s->p, layers + out->count, "decoding");
        QL_TRY(feed(s, &out->ids[out->count - 1], 1));
        QL_TRY(choose(s, 0, &out->ids[out->count]));
    }
    progress_step(s->p, layers + count, "done");
    return QL_OK;
}

static ql_status run(session *s, const int32_t *ids, int64_t n_ids, int64_t count, generation *out) {
    footprint need;
    double begin = seconds_now(), positions = (double)(n_ids + count);
    s->rows = n_ids < PROMPT_ROWS ? n_ids : PROMPT_ROWS;
    QL_TRY(model_plan_inputs(s->m, s->rows));
    QL_TRY(measure(s->m, n_ids + count, &need));
    QL_TRY(check_memory(s->ctx, s->m, &need));
    QL_TRY(load(s));
    QL_TRY(take_buffers(s, n_ids + count));
    out->load_seconds = seconds_now() - begin;
    begin = seconds_now();
    QL_TRY(prompt(s, ids, n_ids, &out->ids[0]));
    out->prompt_seconds = seconds_now() - begin;
    begin = seconds_now();
    QL_TRY(decode(s, count, out));
    out->decode_seconds = seconds_now() - begin;
    /* The cache grows by a row per step. */
    double row = need.cache / positions, rows = (double)n_ids + (double)out->count / 2;
    out->bytes_per_token = s->moved + row * rows;
    return QL_OK;
}

ql_status generate_check(const model *m, const int32_t *ids, int64_t n_ids, int64_t count) {
    if (n_ids < 1) return ql_fail(QL_USAGE, "no id to begin with");
    for (int64_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= m->config.vocab)
            return ql_fail(QL_USAGE, "id %d is no token: the vocabulary has %lld", ids[i], (long long)m->config.vocab);
    if (n_ids + count <= m->config.max_position) return QL_OK;
    return ql_fail(QL_USAGE, "%lld ids and %lld new ones need %lld positions, the model has %lld", (long long)n_ids,
                   (long long)count, (long long)(n_ids + count), (long long)m->config.max_position);
}

int64_t generate_steps(const model *m, int64_t count) { return m->config.layers + count; }

ql_status generate(ql_ctx *ctx, model *m, const int32_t *ids, int64_t n_ids, int64_t count, ql_arena *arena,
                   progress *p, generation *out) {
    session s = {.ctx = ctx, .m = m, .host = arena, .p = p};
    *out = (generation){0};
    QL_TRY(generation_ends(m->ck, m->config.vocab, arena, &s.ends, &s.n_ends));
    QL_TRY(ql_take(arena, (size_t)count, sizeof *out->ids, &out->ids));
    ql_status status = ql_arena_open(ctx, &s.device);
    if (status == QL_OK) status = ql_arena_open(ctx, &s.scratch);
    if (status == QL_OK) status = run(&s, ids, n_ids, count, out);
    unload(&s);
    return status;
}
