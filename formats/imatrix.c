#include "formats/imatrix.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"

static const char SUM_ENDING[] = ".in_sum2", COUNT_ENDING[] = ".counts";

static int by_name(const void *left, const void *right) {
    const imatrix_entry *a = left, *b = right;
    return strcmp(a->name, b->name);
}

const imatrix_entry *imatrix_find(const imatrix *matrix, const char *name) {
    imatrix_entry key = {.name = name};
    return bsearch(&key, matrix->entries, (size_t)matrix->count, sizeof key, by_name);
}

void imatrix_mean(const double *sum_sq, uint64_t count, int64_t k, float *mean) {
    for (int64_t i = 0; i < k; i++) mean[i] = count ? (float)sum_sq[i] / (float)count : 1.0f;
}

void imatrix_weights(const imatrix_entry *entry, float *weights) {
    double mean = 0;
    for (int64_t i = 0; i < entry->k; i++) mean += entry->mean[i] / (double)entry->k;
    float least = mean > 0 ? (float)(1e-6 * mean) : 1.0f;
    for (int64_t i = 0; i < entry->k; i++) weights[i] = entry->mean[i] > least ? entry->mean[i] : least;
}

static ql_status finish(imatrix *matrix) {
    qsort(matrix->entries, (size_t)matrix->count, sizeof *matrix->entries, by_name);
    for (int64_t i = 0; i < matrix->count; i++) {
        const imatrix_entry *e = &matrix->entries[i];
        if (i && strcmp(e[-1].name, e->name) == 0) return ql_fail(QL_FORMAT, "\"%.100s\" twice", e->name);
        for (int64_t j = 0; j < e->k; j++)
            if (!(e->mean[j] >= 0 && isfinite(e->mean[j])))
                return ql_fail(QL_FORMAT, "\"%.100s\": value %lld is %g, expected a mean of squares", e->name,
                               (long long)j, (double)e->mean[j]);
    }
    return matrix->count ? QL_OK : ql_fail(QL_FORMAT, "no entries");
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------------------------ */

static ql_status check_tensor(const gguf_tensor *t, int64_t k, const char *what) {
    if (t->type->dtype == QL_F32 && t->ne[0] == k && t->ne[1] == 1 && t->ne[2] == 1 && t->ne[3] == 1) return QL_OK;
    return ql_fail(t->ne[1] > 1 ? QL_MISMATCH : QL_FORMAT,
                   "tensor \"%s\" is %s [%lld, %lld], expected %s: one matrix of F32", t->name, t->type->name,
                   (long long)t->ne[1], (long long)t->ne[0], what);
}

/* Sums divided by their count, which a float holds. */
static ql_status read_sums(const gguf_file *file, const gguf_tensor *sums, ql_arena *arena, imatrix_entry *e) {
    char name[GGUF_NAME_SIZE], *copy;
    float count;
    size_t length = strlen(sums->name) - strlen(SUM_ENDING);
    snprintf(name, sizeof name, "%.*s", (int)length, sums->name);
    QL_TRY(ql_arena_string(arena, name, &copy));
    strncat(name, COUNT_ENDING, sizeof name - length - 1);
    const gguf_tensor *counts = gguf_find(file, name);
    if (!counts) return ql_fail(QL_FORMAT, "tensor \"%s\" is missing", name);
    QL_TRY(check_tensor(sums, sums->ne[0], "sums"));
    QL_TRY(check_tensor(counts, 1, "a count"));
    QL_TRY(gguf_read(file, counts, &count));
    if (!(count >= 0 && count < 0x1p63f)) return ql_fail(QL_FORMAT, "tensor \"%s\" is %g", name, (double)count);
    *e = (imatrix_entry){.name = copy, .k = sums->ne[0], .count = (uint64_t)llrintf(count)};
    QL_TRY(ql_take(arena, (size_t)e->k, sizeof *e->mean, &e->mean));
    QL_TRY(gguf_read(file, sums, e->mean));
    for (int64_t i = 0; i < e->k; i++) e->mean[i] = e->count ? e->mean[i] / (float)e->count : 1.0f;
    return QL_OK;
}

static bool ends_with(const char *name, const char *end) {
    size_t a = strlen(name), b = strlen(end);
    return a > b && strcmp(name + a - b, end) == 0;
}

/* The first of several datasets. */
static ql_status read_dataset(const gguf_file *file, ql_arena *arena, imatrix *out) {
    const gguf_key *key = gguf_key_of(file, "imatrix.datasets");
    char *copy;
    if (!key || key->kind != GGUF_ARRAY || key->element != GGUF_STRING)
        return ql_fail(QL_FORMAT, "key \"imatrix.datasets\" is %s", key ? "no array of strings" : "missing");
    uint64_t length = 0;
    for (int i = 0; key->count && i < 8; i++) length |= (uint64_t)key->value[i] << (8 * i);
    QL_TRY(ql_take(arena, length + 1, 1, &copy));
    if (length) memcpy(copy, key->value + 8, length);
    copy[length] = 0;
    out->dataset = copy;
    return QL_OK;
}

static ql_status read_tensors(const gguf_file *file, ql_arena *arena, imatrix *out) {
    char *type;
    QL_TRY(gguf_string(file, "general.type", arena, &type));
    if (strcmp(type, "imatrix") != 0)
        return ql_fail(QL_FORMAT, "a GGUF file of type \"%.50s\", not an importance matrix", type);
    QL_TRY(gguf_int(file, "imatrix.chunk_count", 0, UINT32_MAX, &out->chunks));
    QL_TRY(gguf_int(file, "imatrix.chunk_size", 0, UINT32_MAX, &out->chunk_size));
    QL_TRY(read_dataset(file, arena, out));
    QL_TRY(ql_take(arena, (size_t)file->count, sizeof *out->entries, &out->entries));
    for (int64_t i = 0; i < file->count; i++)
        if (ends_with(file->tensors[i].name, SUM_ENDING))
            QL_TRY(read_sums(file, &file->tensors[i], arena, &out->entries[out->count++]));
    return finish(out);
}

static ql_status read_gguf(const char *path, ql_arena *arena, imatrix *out) {
    gguf_file file;
    QL_TRY(gguf_open(path, arena, &file));
    ql_status status = ql_context(read_tensors(&file, arena, out), "%s", path);
    gguf_close(&file);
    return status;
}

/* ---- legacy ---------------------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    ql_source *source;
    uint64_t at, size;
} reader;

static ql_status take(reader *r, void *data, uint64_t size) {
    if (size > r->size - r->at)
        return ql_fail(QL_FORMAT, "%llu bytes wanted at byte %llu, the file has %llu left; is it an importance matrix?",
                       (unsigned long long)size, (unsigned long long)r->at, (unsigned long long)(r->size - r->at));
    QL_TRY(ql_source_read(r->source, data, size, r->at));
    r->at += size;
    return QL_OK;
}

/* A count of things of `size` bytes, which must be in the file. */
static ql_status take_count(reader *r, const char *what, uint64_t size, int32_t least, int32_t *count) {
    QL_TRY(take(r, count, sizeof *count));
    if (*count < least || (uint64_t)*count > (r->size - r->at) / size)
        return ql_fail(QL_FORMAT, "%d %s at byte %llu; is it an importance matrix?", *count, what,
                       (unsigned long long)(r->at - 4));
    return QL_OK;
}

static ql_status read_text(reader *r, int32_t least, ql_arena *arena, const char **text) {
    int32_t length;
    char *copy;
    QL_TRY(take_count(r, "bytes of a name", 1, least, &length));
    QL_TRY(ql_take(arena, (size_t)length + 1, 1, &copy));
    QL_TRY(take(r, copy, (uint64_t)length));
    copy[length] = 0;
    *text = copy;
    return memchr(copy, 0, (size_t)length)
               ? ql_fail(QL_FORMAT, "a name with a NUL at byte %llu", (unsigned long long)r->at)
               : QL_OK;
}

static ql_status read_entry(reader *r, ql_arena *arena, imatrix_entry *e) {
    int32_t calls, k;
    QL_TRY(read_text(r, 1, arena, &e->name));
    QL_TRY(take(r, &calls, sizeof calls));
    QL_TRY(take_count(r, "values", sizeof(float), 1, &k));
    e->k = k, e->count = calls > 0 ? (uint64_t)calls : 0;
    QL_TRY(ql_take(arena, (size_t)k, sizeof *e->mean, &e->mean));
    QL_TRY(take(r, e->mean, (uint64_t)k * sizeof *e->mean));
    for (int64_t i = 0; i < k && calls > 0; i++) e->mean[i] /= (float)calls;
    return QL_OK;
}

static ql_status read_legacy(reader *r, ql_arena *arena, imatrix *out) {
    enum { LEAST_ENTRY = 4 + 1 + 4 + 4 + 4 };
    int32_t entries, chunks = 0;
    QL_TRY(take_count(r, "entries", LEAST_ENTRY, 1, &entries));
    QL_TRY(ql_take(arena, (size_t)entries, sizeof *out->entries, &out->entries));
    for (int32_t i = 0; i < entries; i++)
        QL_TRY(ql_context(read_entry(r, arena, &out->entries[out->count++]), "entry %d", i));
    if (r->at < r->size) {
        QL_TRY(take(r, &chunks, sizeof chunks));
        QL_TRY(read_text(r, 0, arena, &out->dataset));
    }
    out->chunks = chunks > 0 ? chunks : 0;
    return finish(out);
}

ql_status imatrix_read(const char *path, ql_arena *arena, imatrix *out) {
    *out = (imatrix){.dataset = ""};
    reader r = {0};
    QL_TRY(ql_source_open(path, NULL, &r.source));
    char magic[4] = {0};
    r.size = ql_source_size(r.source);
    ql_status status =
        r.size < 4 ? ql_fail(QL_FORMAT, "%s: %llu bytes are no importance matrix", path, (unsigned long long)r.size)
                   : ql_source_read(r.source, magic, sizeof magic, 0);
    bool is_gguf = memcmp(magic, "GGUF", sizeof magic) == 0;
    if (status == QL_OK && !is_gguf) status = ql_context(read_legacy(&r, arena, out), "%s", path);
    ql_source_close(r.source);
    return status == QL_OK && is_gguf ? read_gguf(path, arena, out) : status;
}

/* ---- writing --------------------------------------------------------------------------------------------------------------------- */

static ql_status put_keys(const imatrix *matrix, gguf_meta *meta) {
    QL_TRY(gguf_put_string(meta, "general.type", "imatrix"));
    QL_TRY(gguf_put_array(meta, "imatrix.datasets", GGUF_STRING, &matrix->dataset, 1));
    QL_TRY(gguf_put_u32(meta, "imatrix.chunk_count", (uint32_t)matrix->chunks));
    return gguf_put_u32(meta, "imatrix.chunk_size", (uint32_t)matrix->chunk_size);
}

static ql_status name_tensors(const imatrix *matrix, ql_arena *arena, gguf_tensor *tensors) {
    for (int64_t i = 0; i < matrix->count; i++)
        for (int part = 0; part < 2; part++) {
            const imatrix_entry *e = &matrix->entries[i];
            char *name;
            QL_TRY(ql_arena_format(arena, &name, "%s%s", e->name, part ? COUNT_ENDING : SUM_ENDING));
            tensors[2 * i + part] =
                (gguf_tensor){.name = name, .type = gguf_dtype(QL_F32), .rank = 2, .ne = {part ? 1 : e->k, 1, 1, 1}};
        }
    return QL_OK;
}

/* The sum whose quotient is the mean again: a product may be one place off. */
static float sum_of(float mean, float count) {
    float sum = mean * count;
    if (count > 0 && sum / count < mean) sum = nextafterf(sum, INFINITY);
    else if (count > 0 && sum / count > mean) sum = nextafterf(sum, 0);
    return sum;
}

static ql_status append(gguf_writer *writer, const imatrix_entry *e, ql_arena *arena) {
    float *sums, count = (float)e->count;
    QL_TRY(ql_take(arena, (size_t)e->k, sizeof *sums, &sums));
    for (int64_t i = 0; i < e->k; i++) sums[i] = sum_of(e->mean[i], count);
    QL_TRY(gguf_writer_append(writer, sums, (uint64_t)e->k * sizeof *sums));
    return gguf_writer_append(writer, &count, sizeof count);
}

static ql_status write_tensors(const char *path, const imatrix *matrix, const gguf_meta *meta, ql_arena *arena) {
    gguf_tensor *tensors;
    gguf_writer *writer;
    QL_TRY(ql_take(arena, 2 * (size_t)matrix->count, sizeof *tensors, &tensors));
    QL_TRY(name_tensors(matrix, arena, tensors));
    QL_TRY(gguf_writer_open(path, meta, tensors, 2 * matrix->count, &writer));
    for (int64_t i = 0; i < matrix->count; i++) {
        ql_status status = append(writer, &matrix->entries[i], arena);
        if (status == QL_OK) continue;
        gguf_writer_abort(writer);
        return status;
    }
    return gguf_writer_commit(writer, NULL);
}

ql_status imatrix_write(const char *path, const imatrix *matrix) {
    ql_arena *arena;
    gguf_meta meta = {0};
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = put_keys(matrix, &meta);
    if (status == QL_OK) status = write_tensors(path, matrix, &meta, arena);
    gguf_meta_free(&meta);
    ql_arena_close(arena);
    return status;
}
