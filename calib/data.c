#include "calib/data.h"

#include <string.h>

#include "host/log.h"
#include "host/mat.h"
#include "host/replay.h"

const char *const row_place_names[] = {"device", "host between steps", "host", NULL};

/* Rows per batch: enough for matrix products to run at full speed, few enough for the buffers of a 70B block on the CPU. */
enum { BATCH_ROWS = 4096 };

static int64_t batch_size(int64_t seq_len) { return seq_len >= BATCH_ROWS ? 1 : BATCH_ROWS / seq_len; }

static ql_status make_batch(dataset *d, int64_t leaf, int64_t first_seq, int64_t n_seq, batch *out) {
    const int64_t *start = d->tokens.start;
    int64_t *local;
    QL_TRY(ql_take(d->host, (size_t)n_seq + 1, sizeof *local, &local));
    for (int64_t s = 0; s <= n_seq; s++) local[s] = start[first_seq + s] - start[first_seq];
    *out = (batch){
        .leaf = leaf,
        .first_seq = first_seq,
        .n_seq = n_seq,
        .rows = local[n_seq],
        .first_row = start[first_seq],
        .start = local,
        .position = ql_cols(d->position, start[first_seq], local[n_seq]),
    };
    return QL_OK;
}

static ql_status cut(dataset *d, int64_t leaf, int64_t first, int64_t end) {
    int64_t size = batch_size(d->tokens.seq_len);
    for (; first < end; first += size) {
        batch *b = &d->batches[d->n_batches++];
        QL_TRY(make_batch(d, leaf, first, end - first < size ? end - first : size, b));
        if (b->rows > d->max_rows) d->max_rows = b->rows;
    }
    return QL_OK;
}

static ql_status make_batches(dataset *d, dataset_use use) {
    int64_t size = batch_size(d->tokens.seq_len), n_seq = d->tokens.n_seq, rows = d->leaves.rows;
    /* Every leaf may end with a short batch, and every dropped sequence splits one: room for one more each. */
    int64_t most = ql_ceil_div(n_seq, size) + LEAVES + d->skip_limit;
    QL_TRY(ql_take(d->host, (size_t)most, sizeof *d->batches, &d->batches));
    if (use == DATASET_WHOLE_BLOCKS) return cut(d, 0, 0, n_seq);
    for (int64_t leaf = d->leaves.first; leaf < d->leaves.end; leaf++)
        QL_TRY(cut(d, leaf, leaf_begin(leaf, rows) - d->first_seq, leaf_begin(leaf + 1, rows) - d->first_seq));
    return QL_OK;
}

static ql_status upload_positions(dataset *d) {
    const token_file *t = &d->tokens;
    int32_t *position;
    ql_mark mark = ql_arena_mark(d->host);
    QL_TRY(ql_take(d->host, (size_t)t->n_tokens, sizeof *position, &position));
    for (int64_t s = 0; s < t->n_seq; s++)
        for (int64_t i = t->start[s]; i < t->start[s + 1]; i++) position[i] = (int32_t)(i - t->start[s]);
    QL_TRY(ql_upload(d->ctx, d->position.data, position, ql_mat_bytes(d->position)));
    ql_arena_release(d->host, mark);
    return QL_OK;
}

static ql_status take_store(dataset *d, ql_dtype dtype, int64_t width, bool on_host, ql_arena *device, row_store *out) {
    const int64_t tokens = d->tokens.n_tokens;
    if (!on_host) return ql_arena_mat(device, dtype, tokens, width, &out->all);
    void **to = &d->pinned[d->n_pinned++];
    QL_TRY(ql_pin(d->ctx, (size_t)(tokens * width) * ql_dtype_size(dtype), to));
    if (!*to) return ql_fail(QL_USAGE, "device memory is host memory here: rows have no other place");
    out->all = ql_mat_of(*to, dtype, tokens, width);
    return ql_arena_mat(device, dtype, d->max_rows, width, &out->slot);
}

static ql_status take_stores(dataset *d, const model_config *config, const dataset_setting *s, ql_arena *device) {
    const int64_t attn = config->heads * config->head_dim, hidden = config->hidden;
    const int64_t width = attn > config->intermediate ? attn : config->intermediate;
    const bool x_on_host = s->place == ROWS_ON_HOST, act_on_host = s->place != ROWS_ON_DEVICE;
    QL_TRY(take_store(d, QL_F32, hidden, x_on_host, device, &d->rows.x));
    if (s->use == DATASET_STEPS_AND_ORIGINAL) QL_TRY(take_store(d, QL_F32, hidden, x_on_host, device, &d->original.x));
    if (s->use == DATASET_STEPS_AND_AGAIN) QL_TRY(take_store(d, QL_F32, hidden, x_on_host, device, &d->kept));
    if (s->use == DATASET_WHOLE_BLOCKS) return QL_OK;
    return take_store(d, s->precision, width, act_on_host, device, &d->rows.act);
}

/* The sequences of some leaves, as if there were no others. */
static ql_status view_tokens(dataset *d, const token_file *all) {
    int64_t first = leaf_begin(d->leaves.first, all->n_seq), end = leaf_begin(d->leaves.end, all->n_seq), *start;
    QL_TRY(ql_take(d->host, (size_t)(end - first) + 1, sizeof *start, &start));
    for (int64_t s = first; s <= end; s++) start[s - first] = all->start[s] - all->start[first];
    d->first_seq = first;
    d->tokens = *all;
    d->tokens.n_seq = end - first;
    d->tokens.n_tokens = start[end - first];
    d->tokens.ids = all->ids + all->start[first];
    d->tokens.start = start;
    return QL_OK;
}

ql_status dataset_open(ql_ctx *ctx, const model_config *config, const token_file *tokens, leaf_range leaves,
                       const dataset_setting *setting, ql_arena *device, dataset *out) {
    *out = (dataset){.ctx = ctx, .skip_limit = tokens->n_seq / 100, .leaves = leaves};
    QL_TRY(ql_arena_open(NULL, &out->host));
    ql_status status = view_tokens(out, tokens);
    if (status == QL_OK) status = ql_arena_mat(device, QL_I32, 1, out->tokens.n_tokens, &out->position);
    if (status == QL_OK) status = upload_positions(out);
    if (status == QL_OK) status = make_batches(out, setting->use);
    if (status == QL_OK) status = take_stores(out, config, setting, device);
    if (status != QL_OK) dataset_close(out);
    return status;
}

void dataset_close(dataset *d) {
    for (int i = 0; i < d->n_pinned; i++) ql_unpin(d->ctx, d->pinned[i]);
    d->n_pinned = 0;
    ql_arena_close(d->host);
    d->host = NULL;
}

static ql_status embed_batch(const dataset *d, ql_mat table, ql_mat ids, const batch *b) {
    ql_mat x = rows_room(&d->rows.x, b, table.cols);
    QL_TRY(ql_embed(d->ctx, table, ql_cols(ids, b->first_row, b->rows), x));
    QL_TRY(rows_keep(d, &d->rows.x, b, x));
    return ql_is_present(d->original.x.all) ? rows_keep(d, &d->original.x, b, x) : QL_OK;
}

ql_status dataset_embed(dataset *d, const model *m, ql_arena *device) {
    ql_mark mark = ql_arena_mark(device);
    ql_mat table, ids;
    if (d->tokens.n_tokens == 0) return QL_OK;
    QL_TRY(model_load_embedding(m, device, &table));
    QL_TRY(ql_arena_upload(device, QL_I32, 1, d->tokens.n_tokens, d->tokens.ids, &ids));
    for (int64_t i = 0; i < d->n_batches; i++) QL_TRY(embed_batch(d, table, ids, &d->batches[i]));
    ql_arena_release(device, mark);
    return QL_OK;
}

/* ---- where they are ------------------------------------------------------------------------------------------------------ */

/* In host memory the rows of a batch lie without gaps, however wide. */
static void *host_rows(const row_store *store, const batch *b) { return ql_rows(store->all, b->first_row, 0).data; }

ql_mat rows_room(const row_store *store, const batch *b, int64_t width) {
    if (!ql_is_present(store->slot)) return ql_cols(ql_rows(store->all, b->first_row, b->rows), 0, width);
    return ql_mat_of(store->slot.data, store->slot.dtype, b->rows, width);
}

ql_status rows_fetch(const dataset *d, const row_store *store, const batch *b, int64_t width, ql_mat *rows) {
    *rows = rows_room(store, b, width);
    return ql_is_present(store->slot) ? ql_copy(d->ctx, rows->data, host_rows(store, b), ql_mat_bytes(*rows)) : QL_OK;
}

ql_status rows_keep(const dataset *d, const row_store *store, const batch *b, ql_mat rows) {
    if (ql_is_present(store->slot)) return ql_copy(d->ctx, host_rows(store, b), rows.data, ql_mat_bytes(rows));
    ql_mat room = rows_room(store, b, rows.cols);
    return rows.data == room.data ? QL_OK : ql_convert(d->ctx, rows, room);
}

static int64_t first_token(const dataset *d, int64_t leaf) {
    return d->tokens.start[leaf_begin(leaf, d->leaves.rows) - d->first_seq];
}

int64_t tokens_of_leaf(const dataset *d, int64_t leaf) { return first_token(d, leaf + 1) - first_token(d, leaf); }

static ql_mat leaf_of(const dataset *d, const row_store *store, int64_t leaf) {
    return ql_rows(store->all, first_token(d, leaf), tokens_of_leaf(d, leaf));
}

ql_status rows_of_leaf(const dataset *d, const row_store *store, int64_t leaf, ql_arena *arena, const void **rows) {
    ql_mat mat = leaf_of(d, store, leaf);
    void *copy;
    *rows = mat.data;
    if (ql_is_present(store->slot)) return ql_sync(d->ctx); /* what was kept has arrived */
    QL_TRY(ql_arena_download(arena, d->ctx, mat, &copy));
    *rows = copy;
    return QL_OK;
}

ql_status rows_set_leaf(const dataset *d, const row_store *store, int64_t leaf, const void *rows) {
    ql_mat mat = leaf_of(d, store, leaf);
    if (!ql_is_present(store->slot)) return ql_upload(d->ctx, mat.data, rows, ql_mat_bytes(mat));
    QL_TRY(ql_sync(d->ctx));
    memcpy(mat.data, rows, ql_mat_bytes(mat));
    return QL_OK;
}

/* Batch i becomes its part before sequence `bad` and its part behind it; either may be empty. */
static ql_status drop_sequence(dataset *d, int64_t i, int64_t bad) {
    batch whole = d->batches[i], part[2];
    int parts = 0;
    int64_t before = bad, behind = whole.n_seq - bad - 1;
    if (before > 0) QL_TRY(make_batch(d, whole.leaf, whole.first_seq, before, &part[parts++]));
    if (behind > 0) QL_TRY(make_batch(d, whole.leaf, whole.first_seq + bad + 1, behind, &part[parts++]));
    memmove(&d->batches[i + parts], &d->batches[i + 1], (size_t)(d->n_batches - i - 1) * sizeof *d->batches);
    memcpy(&d->batches[i], part, (size_t)parts * sizeof *part);
    d->n_batches += parts - 1;
    return QL_OK;
}

ql_status dataset_drop(dataset *d, int64_t index) {
    for (int64_t i = 0; i < d->n_batches; i++) {
        int64_t at = index - d->batches[i].first_seq;
        if (at < 0 || at >= d->batches[i].n_seq) continue;
        d->n_skipped++;
        return d->n_skipped <= d->skip_limit ? drop_sequence(d, i, at)
                                             : ql_fail(QL_FORMAT, "more sequences dropped than may be skipped");
    }
    return ql_fail(QL_FORMAT, "sequence %lld to drop is none of this rank's", (long long)index);
}

ql_status dataset_check(dataset *d, int64_t i, ql_mat values, int64_t layer, const char *where, bool *dropped) {
    const batch *b = &d->batches[i];
    int64_t index, bad = 0;
    *dropped = false;
    QL_TRY(ql_find_nonfinite(d->ctx, values, &index));
    if (index < 0) return QL_OK;
    while (b->start[bad + 1] <= index / values.cols) bad++;
    int64_t sample = d->first_seq + b->first_seq + bad;
    if (d->n_skipped >= d->skip_limit)
        return ql_fail(
            QL_FORMAT,
            "layer %lld, %s: activations of sample %lld are not finite; %lld of %lld samples may be skipped (1 %%)",
            (long long)layer, where, (long long)sample, (long long)d->skip_limit, (long long)d->leaves.rows);
    ql_log(QL_WARNING, "layer %lld, %s: activations of sample %lld are not finite; the sample is skipped",
           (long long)layer, where, (long long)sample);
    d->n_skipped++;
    *dropped = true;
    return drop_sequence(d, i, bad);
}
