#include "calib/saved_rows.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "formats/json.h"
#include "host/log.h"
#include "host/mat.h"

enum { HASH = 32, PAUSE = 10 }; /* bytes; a set is made after this many times what the last one took */

typedef struct hashes {
    unsigned char of[LEAVES][HASH];
} hashes;

static bool leads(const saved_rows *s) { return ql_comm_rank(s->engine->comm) == 0; }

static ql_status leaf_path(const saved_rows *s, int64_t layer, int64_t leaf, ql_arena *arena, char **path) {
    return ql_arena_format(arena, path, "%s/%04lld-leaf%02lld.safetensors", s->dir, (long long)layer, (long long)leaf);
}

/* Leaves of this rank that have rows; returns false behind the last. */
static bool next_leaf(const saved_rows *s, int64_t *leaf) {
    const leaf_range mine = s->engine->data->leaves;
    while (*leaf < mine.end && leaf_is_empty(*leaf, mine.rows)) ++*leaf;
    return *leaf < mine.end;
}

ql_status saved_rows_open(engine *e, const char *work_dir, const char *job, double every, ql_arena *arena,
                          saved_rows *out) {
    char *dir;
    QL_TRY(ql_arena_format(arena, &dir, "%s/rows", work_dir));
    *out =
        (saved_rows){.engine = e, .work_dir = work_dir, .dir = dir, .job = job, .every = every, .last = seconds_now()};
    return QL_OK;
}

/* ---- one leaf -------------------------------------------------------------------------------------------------------------- */

/* Sequences of the leaf that no batch has any more; of all rows, in host memory. */
static ql_status find_dropped(const saved_rows *s, int64_t leaf, ql_arena *arena, int64_t **list, int64_t *count) {
    const dataset *d = s->engine->data;
    int64_t next = leaf_begin(leaf, d->leaves.rows), end = leaf_begin(leaf + 1, d->leaves.rows);
    *count = 0;
    QL_TRY(ql_take(arena, (size_t)(end - next), sizeof **list, list));
    for (int64_t i = 0; i < d->n_batches; i++) {
        const batch *b = &d->batches[i];
        if (b->leaf != leaf) continue;
        while (next < d->first_seq + b->first_seq) (*list)[(*count)++] = next++;
        next += b->n_seq;
    }
    while (next < end) (*list)[(*count)++] = next++;
    return QL_OK;
}

static st_tensor stream_tensor(const char *name, int64_t tokens, int64_t hidden) {
    return (st_tensor){
        .name = name, .dtype = QL_F32, .dtype_name = ql_dtype_name(QL_F32), .rank = 2, .shape = {tokens, hidden}};
}

static ql_status put_tensors(const saved_rows *s, int64_t leaf, ql_arena *arena, st_writer *writer,
                             const st_tensor *tensors, int count, const int64_t *dropped) {
    const dataset *d = s->engine->data;
    for (int i = 0; i < count; i++) {
        const void *data = dropped;
        const row_store *store = strcmp(tensors[i].name, "x") == 0 ? &d->rows.x : &d->original.x;
        if (tensors[i].dtype == QL_F32) QL_TRY(rows_of_leaf(d, store, leaf, arena, &data));
        QL_TRY(st_writer_put(writer, &tensors[i], data));
    }
    return QL_OK;
}

static ql_status write_leaf(const saved_rows *s, int64_t layer, int64_t leaf, ql_arena *arena, unsigned char *sha256) {
    const dataset *d = s->engine->data;
    const int64_t hidden = s->engine->model->config.hidden, tokens = tokens_of_leaf(d, leaf);
    st_tensor tensors[3];
    st_writer *writer;
    int64_t *dropped, n_dropped;
    int count = 0;
    char *path;
    QL_TRY(leaf_path(s, layer, leaf, arena, &path));
    QL_TRY(find_dropped(s, leaf, arena, &dropped, &n_dropped));
    tensors[count++] = stream_tensor("x", tokens, hidden);
    if (ql_is_present(d->original.x.all)) tensors[count++] = stream_tensor("original", tokens, hidden);
    if (n_dropped > 0)
        tensors[count++] = (st_tensor){
            .name = "dropped", .dtype = QL_I64, .dtype_name = ql_dtype_name(QL_I64), .rank = 1, .shape = {n_dropped}};
    QL_TRY(st_writer_open(path, tensors, count, NULL, &writer)); /* sorts the tensors */
    ql_status status = put_tensors(s, leaf, arena, writer, tensors, count, dropped);
    if (status == QL_OK) return st_writer_commit(writer, sha256);
    st_writer_abort(writer);
    return status;
}

static ql_status read_tensor(saved_rows *s, const st_file *file, const st_tensor *t, int64_t leaf, ql_arena *arena) {
    dataset *d = s->engine->data;
    void *data;
    QL_TRY(ql_take(arena, t->size, 1, &data));
    QL_TRY(st_read(file, t, data));
    if (strcmp(t->name, "dropped") == 0) {
        for (int64_t i = 0; i < t->shape[0]; i++) QL_TRY(dataset_drop(d, ((const int64_t *)data)[i] - d->first_seq));
        return QL_OK;
    }
    const row_store *store = strcmp(t->name, "x") == 0 ? &d->rows.x : &d->original.x;
    size_t wanted = (size_t)(tokens_of_leaf(d, leaf) * s->engine->model->config.hidden) * sizeof(float);
    if (t->dtype != QL_F32 || t->size != wanted || !ql_is_present(store->all))
        return ql_fail(QL_FORMAT, "%s: \"%s\" is not what this job saves; remove %s", file->path, t->name, s->dir);
    return rows_set_leaf(d, store, leaf, data);
}

static ql_status read_leaf(saved_rows *s, int64_t layer, int64_t leaf, ql_arena *arena) {
    st_file file;
    char *path;
    QL_TRY(leaf_path(s, layer, leaf, arena, &path));
    QL_TRY(st_open(path, NULL, arena, &file));
    ql_status status = QL_OK;
    for (int64_t i = 0; status == QL_OK && i < file.count; i++) {
        ql_mark mark = ql_arena_mark(arena);
        status = read_tensor(s, &file, &file.tensors[i], leaf, arena);
        ql_arena_release(arena, mark);
    }
    st_close(&file);
    return status;
}

/* ---- the set ---------------------------------------------------------------------------------------------------------------- */

/* All files but those of a layer; -1: all. */
static void remove_others(const saved_rows *s, int64_t layer) {
    char path[4096], kept[16];
    DIR *dir = opendir(s->dir);
    snprintf(kept, sizeof kept, "%04lld-", (long long)layer);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        bool is_leaf = strstr(e->d_name, "-leaf") != NULL;
        if (!is_leaf || (layer >= 0 && strncmp(e->d_name, kept, strlen(kept)) == 0)) continue;
        snprintf(path, sizeof path, "%s/%s", s->dir, e->d_name);
        remove(path);
    }
    if (dir) closedir(dir);
}

static ql_status write_index(const saved_rows *s, int64_t layer, const hashes *h, ql_arena *arena) {
    char *path;
    int64_t rows = s->engine->data->leaves.rows;
    json_t *leaves = json_object();
    for (int64_t leaf = 0; leaf < LEAVES; leaf++) {
        char name[8], text[65];
        if (leaf_is_empty(leaf, rows)) continue;
        snprintf(name, sizeof name, "%d", (int)leaf);
        ql_hex(h->of[leaf], HASH, text);
        json_object_set_new(leaves, name, json_string(text));
    }
    json_t *index = json_pack("{s:s, s:I, s:o}", "job", s->job, "layer", (json_int_t)layer, "sha256", leaves);
    ql_status status = index ? ql_arena_format(arena, &path, "%s/rows.json", s->dir)
                             : ql_fail(QL_NOMEM, "no memory for an index of saved activations");
    if (status == QL_OK) status = ql_json_save(index, path);
    json_decref(index);
    return status;
}

/* A failure is told by the ranks to each other as their number. */
static ql_status write_set(saved_rows *s, int64_t layer, ql_arena *arena, int64_t *failures) {
    size_t begin[QL_RANKS_MAX + 1];
    hashes h = {0};
    ql_comm *comm = s->engine->comm;
    int ranks = ql_comm_size(comm);
    ql_status status = leads(s) ? ql_dir_make(s->dir) : QL_OK;
    *failures = status != QL_OK;
    QL_TRY(ranks_sum(comm, "a directory for activations", failures)); /* it is there before anyone writes */
    for (int64_t leaf = s->engine->data->leaves.first; *failures == 0 && next_leaf(s, &leaf); leaf++) {
        ql_mark mark = ql_arena_mark(arena);
        status = write_leaf(s, layer, leaf, arena, h.of[leaf]);
        ql_arena_release(arena, mark);
        if (status != QL_OK) break;
    }
    *failures = status != QL_OK;
    QL_TRY(ranks_sum(comm, "activations", failures));
    if (*failures) return status;
    for (int r = 0; r <= ranks; r++) begin[r] = (size_t)(LEAVES * r / ranks) * HASH;
    QL_TRY(ql_comm_gather(comm, "hashes of activations", begin, &h));
    if (leads(s)) status = write_index(s, layer, &h, arena);
    *failures = status != QL_OK;
    return ranks_sum(comm, "an index of activations", failures);
}

static bool has_room(const saved_rows *s) {
    const dataset *d = s->engine->data;
    uint64_t free = 0, row = sizeof(float) * (uint64_t)s->engine->model->config.hidden;
    uint64_t need = (uint64_t)(d->leaves.rows * d->tokens.seq_len) * row * (ql_is_present(d->original.x.all) ? 2 : 1);
    bool known = ql_dir_free_bytes(s->work_dir, &free) == QL_OK;
    return !known || free / 2 > need; /* layers and the output want theirs */
}

/* Rank 0's clock and disk decide. */
static ql_status is_time(const saved_rows *s, uint8_t *yes) {
    double since = seconds_now() - s->last;
    *yes = leads(s) && since >= s->every && since >= PAUSE * s->cost && has_room(s);
    return ql_comm_broadcast(s->engine->comm, "time to save", 0, yes, sizeof *yes);
}

ql_status saved_rows_step(saved_rows *s, int64_t layer) {
    engine *e = s->engine;
    ql_arena *arena;
    uint8_t yes;
    int64_t failures = 0;
    if (!e->data || s->every <= 0) return QL_OK;
    QL_TRY(is_time(s, &yes));
    if (!yes) return QL_OK;
    double begin = seconds_now();
    phases_enter(&e->phases, PHASE_WRITE, 0);
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = write_set(s, layer, arena, &failures);
    ql_arena_close(arena);
    if (failures) {
        if (status != QL_OK) ql_log(QL_WARNING, "activations are not saved any more: %s", ql_last_error());
        if (leads(s)) remove_others(s, -1);
        s->every = 0;
        return QL_OK;
    }
    QL_TRY(status);
    if (leads(s)) remove_others(s, layer);
    s->last = seconds_now();
    s->cost = s->last - begin;
    return QL_OK;
}

/* ---- taking them back ---------------------------------------------------------------------------------------------------- */

static bool parse_hash(const char *text, unsigned char hash[HASH]) {
    for (int i = 0; i < HASH; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1) return false;
        hash[i] = (unsigned char)byte;
    }
    return true;
}

/* 0: there is no set that can be used. */
static int64_t read_index(const saved_rows *s, int64_t done, hashes *h) {
    char path[4096];
    json_t *index;
    int64_t layer = 0, rows = s->engine->data->leaves.rows;
    snprintf(path, sizeof path, "%s/rows.json", s->dir);
    if (!ql_path_exists(path) || ql_json_load(path, 1 << 20, &index) != QL_OK) return 0;
    const char *job = json_string_value(json_object_get(index, "job"));
    if (job && strcmp(job, s->job) == 0) layer = json_integer_value(json_object_get(index, "layer"));
    for (int64_t leaf = 0; leaf < LEAVES; leaf++) {
        char name[8];
        snprintf(name, sizeof name, "%d", (int)leaf);
        const char *text = json_string_value(json_object_get(json_object_get(index, "sha256"), name));
        if (leaf_is_empty(leaf, rows)) continue;
        if (!text || strlen(text) != 2 * HASH || !parse_hash(text, h->of[leaf])) layer = 0;
    }
    json_decref(index);
    return layer > 0 && layer <= done ? layer : 0;
}

static bool is_whole(const saved_rows *s, int64_t layer, int64_t leaf, const unsigned char *hash, ql_arena *arena) {
    char *path;
    unsigned char found[HASH];
    return leaf_path(s, layer, leaf, arena, &path) == QL_OK && ql_file_sha256(path, found) == QL_OK &&
           memcmp(found, hash, HASH) == 0;
}

static ql_status load_set(saved_rows *s, int64_t done, ql_arena *arena, int64_t *layer) {
    engine *e = s->engine;
    struct {
        hashes h;
        int64_t layer;
    } set = {0};
    int64_t damaged = 0;
    if (leads(s)) set.layer = read_index(s, done, &set.h);
    QL_TRY(ql_comm_broadcast(e->comm, "saved activations", 0, &set, sizeof set));
    if (set.layer == 0) return QL_OK;
    for (int64_t leaf = e->data->leaves.first; next_leaf(s, &leaf); leaf++)
        damaged += !is_whole(s, set.layer, leaf, set.h.of[leaf], arena);
    QL_TRY(ranks_sum(e->comm, "damaged activations", &damaged));
    if (damaged && leads(s))
        ql_log(QL_WARNING, "%s: %lld files are damaged or missing; the rows pass through all layers again", s->dir,
               (long long)damaged);
    if (damaged) return QL_OK;
    for (int64_t leaf = e->data->leaves.first; next_leaf(s, &leaf); leaf++)
        QL_TRY(read_leaf(s, set.layer, leaf, arena));
    e->samples_skipped = e->data->n_skipped;
    *layer = set.layer;
    return ranks_sum(e->comm, "samples skipped", &e->samples_skipped);
}

ql_status saved_rows_load(saved_rows *s, int64_t done, int64_t *layer) {
    ql_arena *arena;
    *layer = 0;
    if (!s->engine->data) return QL_OK;
    phases_enter(&s->engine->phases, PHASE_READ, 0);
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = load_set(s, done, arena, layer);
    ql_arena_close(arena);
    return status;
}

void saved_rows_remove(saved_rows *s) {
    if (s->engine->data && leads(s)) ql_dir_remove(s->dir);
}
