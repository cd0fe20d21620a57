#include "formats/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "formats/checkpoint_gguf.h"
#include "formats/gguf.h"
#include "formats/json.h"
#include "host/log.h"

/* A config is a few kB, an index about 100 bytes per tensor: far beyond any real one. */
enum { CONFIG_LIMIT = 16 << 20, INDEX_LIMIT = 256 << 20 };
#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"

struct checkpoint {
    ql_arena *arena;
    char *dir, *root; /* symlinks may lead anywhere beneath root */
    json_t *config;
    st_file *files;
    int64_t file_count;
    const st_tensor **tensors; /* of all files, by name */
    int64_t count;
    uint64_t bytes;
    gguf_checkpoint *gguf; /* NULL: a directory */
};

/* ---- paths ------------------------------------------------------------------------------------------------------------- */

static ql_status path_of(const checkpoint *ck, const char *name, char **path) {
    return ql_arena_format(ck->arena, path, "%s/%s", ck->dir, name);
}

static bool exists(const checkpoint *ck, const char *name) {
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s", ck->dir, name) < (int)sizeof path && ql_path_exists(path);
}

/* A Hugging Face cache keeps models--x/blobs/HASH and models--x/snapshots/REV/file -> ../../blobs/HASH: the root is models--x. */
static ql_status find_root(checkpoint *ck) {
    char real[PATH_MAX], blobs[PATH_MAX + 8];
    if (!realpath(ck->dir, real)) return ql_fail_errno("%s", ck->dir);
    QL_TRY(ql_arena_string(ck->arena, real, &ck->root));
    char *revision = strrchr(real, '/');
    *revision = 0;
    char *snapshots = strrchr(real, '/');
    if (!snapshots || strcmp(snapshots, "/snapshots") != 0) return QL_OK;
    *snapshots = 0;
    snprintf(blobs, sizeof blobs, "%s/blobs", real);
    return ql_path_exists(blobs) ? ql_arena_string(ck->arena, real, &ck->root) : QL_OK;
}

static ql_status read_text(ql_source *source, size_t limit, ql_arena *arena, char **text) {
    uint64_t size = ql_source_size(source);
    if (size > limit)
        return ql_fail(QL_FORMAT, "%s: %llu bytes, at most %zu are allowed", ql_source_path(source),
                       (unsigned long long)size, limit);
    QL_TRY(ql_take(arena, size, 1, text));
    return ql_source_read(source, *text, size, 0);
}

static ql_status load_json(const checkpoint *ck, const char *name, size_t limit, json_t **document) {
    ql_mark mark = ql_arena_mark(ck->arena);
    char *path, *text;
    ql_source *source;
    QL_TRY(path_of(ck, name, &path));
    QL_TRY(ql_source_open(path, ck->root, &source));
    ql_status status = read_text(source, limit, ck->arena, &text);
    if (status == QL_OK) status = ql_json_parse(path, text, ql_source_size(source), document);
    ql_source_close(source);
    ql_arena_release(ck->arena, mark);
    return status;
}

/* ---- the list of files ------------------------------------------------------------------------------------------------- */

typedef struct names {
    const char **name;
    int64_t count;
} names;

static int by_text(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static bool is_plain_name(const char *name) {
    return name[0] && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* The distinct files of the index, sorted. */
static ql_status names_of_index(const checkpoint *ck, const json_t *weight_map, names *out) {
    const char *tensor;
    json_t *value;
    int64_t count = 0;
    QL_TRY(ql_take(ck->arena, json_object_size(weight_map), sizeof *out->name, &out->name));
    json_object_foreach((json_t *)weight_map, tensor, value) {
        const char *file = json_string_value(value);
        if (!file)
            return ql_fail(QL_FORMAT, "%s/" INDEX_NAME ": weight_map \"%.200s\" is %s, expected a file name", ck->dir,
                           tensor, ql_json_type_name(value));
        if (!is_plain_name(file))
            return ql_fail(QL_FORMAT,
                           "%s/" INDEX_NAME
                           ": weight_map \"%.200s\" names \"%.200s\", expected a file of the directory",
                           ck->dir, tensor, file);
        out->name[count++] = file;
    }
    qsort(out->name, (size_t)count, sizeof *out->name, by_text);
    for (int64_t i = 0; i < count; i++)
        if (i == 0 || strcmp(out->name[i], out->name[out->count - 1]) != 0) out->name[out->count++] = out->name[i];
    return QL_OK;
}

static bool ends_with(const char *name, const char *end) {
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

/* Why there is nothing to read, as far as the other files tell. */
static ql_status fail_no_weights(const checkpoint *ck, const char *other) {
    if (!other)
        return ql_fail(QL_MISSING, "%s: no safetensors file; is this the directory of a Hugging Face model?", ck->dir);
    if (ends_with(other, ".gguf"))
        return ql_fail(QL_FORMAT,
                       "%s: no safetensors file, but %s; qalib starts from the safetensors checkpoint of the "
                       "same model",
                       ck->dir, other);
    return ql_fail(QL_FORMAT,
                   "%s: no safetensors file, but %s, a Python pickle; qalib never runs pickles, convert it to "
                   "safetensors",
                   ck->dir, other);
}

/* Without index and model.safetensors: the one safetensors file of the directory, whatever its name. */
static ql_status only_name(const checkpoint *ck, names *out) {
    static const char *const others[] = {".bin", ".pt", ".pth", ".ckpt", ".gguf"};
    DIR *dir = opendir(ck->dir);
    if (!dir) return ql_fail_errno("%s: cannot read the directory", ck->dir);
    char found[NAME_MAX + 1] = "", other[NAME_MAX + 1] = "";
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (ends_with(entry->d_name, ".safetensors") && ++count) strcpy(found, entry->d_name);
        for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
            if (ends_with(entry->d_name, others[i])) strcpy(other, entry->d_name);
    }
    closedir(dir);
    if (count == 0) return fail_no_weights(ck, other[0] ? other : NULL);
    if (count > 1)
        return ql_fail(QL_MISSING,
                       "%s: %d safetensors files, but no " INDEX_NAME ": an incomplete download; download it "
                       "again",
                       ck->dir, count);
    char *copy;
    QL_TRY(ql_arena_string(ck->arena, found, &copy));
    QL_TRY(ql_take(ck->arena, 1, sizeof *out->name, &out->name));
    out->name[out->count++] = copy;
    return QL_OK;
}

static ql_status list_files(const checkpoint *ck, const json_t *weight_map, names *out) {
    *out = (names){0};
    if (weight_map) return names_of_index(ck, weight_map, out);
    if (!exists(ck, SINGLE_NAME)) return only_name(ck, out);
    QL_TRY(ql_take(ck->arena, 1, sizeof *out->name, &out->name));
    out->name[out->count++] = SINGLE_NAME;
    return QL_OK;
}

static ql_status open_files(checkpoint *ck, const names *list, bool by_index) {
    QL_TRY(ql_take(ck->arena, (size_t)list->count, sizeof *ck->files, &ck->files));
    for (int64_t i = 0; i < list->count; i++) {
        char *path;
        if (by_index && !exists(ck, list->name[i]))
            return ql_fail(QL_MISSING, "%s: " INDEX_NAME " names %.200s, which is not there: an incomplete download",
                           ck->dir, list->name[i]);
        QL_TRY(path_of(ck, list->name[i], &path));
        QL_TRY(st_open(path, ck->root, ck->arena, &ck->files[i]));
        ck->file_count++;
    }
    return QL_OK;
}

/* ---- the list of tensors ----------------------------------------------------------------------------------------------- */

static const st_file *file_of(const checkpoint *ck, const st_tensor *tensor) {
    for (int64_t i = 0; i < ck->file_count; i++)
        if (tensor >= ck->files[i].tensors && tensor < ck->files[i].tensors + ck->files[i].count) return &ck->files[i];
    return NULL;
}

static const char *base_name(const char *path) { return strrchr(path, '/') + 1; }

static int by_name(const void *left, const void *right) {
    const st_tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static ql_status merge_tensors(checkpoint *ck) {
    size_t total = 0;
    for (int64_t i = 0; i < ck->file_count; i++) total += (size_t)ck->files[i].count;
    QL_TRY(ql_take(ck->arena, total, sizeof *ck->tensors, &ck->tensors));
    for (int64_t i = 0; i < ck->file_count; i++)
        for (int64_t j = 0; j < ck->files[i].count; j++) ck->tensors[ck->count++] = &ck->files[i].tensors[j];
    qsort(ck->tensors, (size_t)ck->count, sizeof *ck->tensors, by_name);
    for (int64_t i = 1; i < ck->count; i++)
        if (strcmp(ck->tensors[i - 1]->name, ck->tensors[i]->name) == 0)
            return ql_fail(QL_FORMAT, "%s: tensor \"%.200s\" is in %s and in %s", ck->dir, ck->tensors[i]->name,
                           base_name(file_of(ck, ck->tensors[i - 1])->path),
                           base_name(file_of(ck, ck->tensors[i])->path));
    return QL_OK;
}

/* Every tensor of the index is in the file that it names; tensors that it does not name are left out, with one warning. */
static ql_status apply_index(checkpoint *ck, const json_t *weight_map) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)weight_map, name, value) {
        const char *expected = json_string_value(value);
        const st_tensor *tensor = checkpoint_find(ck, name);
        if (!tensor || strcmp(base_name(file_of(ck, tensor)->path), expected) != 0)
            return ql_fail(QL_FORMAT, "%s: " INDEX_NAME " has tensor \"%.200s\" in %s, which does not hold it%s%s",
                           ck->dir, name, expected, tensor ? "; it is in " : "",
                           tensor ? base_name(file_of(ck, tensor)->path) : "");
    }
    int64_t kept = 0, found = ck->count;
    const char *left_out = NULL;
    for (int64_t i = 0; i < found; i++) {
        if (json_object_get(weight_map, ck->tensors[i]->name)) ck->tensors[kept++] = ck->tensors[i];
        else left_out = ck->tensors[i]->name;
    }
    ck->count = kept;
    if (left_out)
        ql_log(QL_WARNING, "%s: %lld tensors are left out, for instance %.200s: " INDEX_NAME " does not name them",
               ck->dir, (long long)(found - kept), left_out);
    return QL_OK;
}

static ql_status open_tensors(checkpoint *ck, const json_t *weight_map) {
    names list;
    QL_TRY(list_files(ck, weight_map, &list));
    QL_TRY(open_files(ck, &list, weight_map != NULL));
    QL_TRY(merge_tensors(ck));
    if (weight_map) QL_TRY(apply_index(ck, weight_map));
    for (int64_t i = 0; i < ck->count; i++) ck->bytes += ck->tensors[i]->size;
    return QL_OK;
}

static ql_status open_weights(checkpoint *ck) {
    if (!exists(ck, INDEX_NAME)) return open_tensors(ck, NULL);
    json_t *index;
    QL_TRY(load_json(ck, INDEX_NAME, INDEX_LIMIT, &index));
    const json_t *weight_map = json_object_get(index, "weight_map");
    ql_status status = QL_OK;
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        status = ql_fail(QL_FORMAT, "%s/" INDEX_NAME ": \"weight_map\" is %s, expected tensor names with their files",
                         ck->dir, json_is_object(weight_map) ? "empty" : ql_json_type_name(weight_map));
    if (status == QL_OK) status = open_tensors(ck, weight_map);
    json_decref(index);
    return status;
}

/* ---- public ------------------------------------------------------------------------------------------------------------ */

static ql_status open_dir(checkpoint *ck, const char *dir) {
    QL_TRY(ql_arena_string(ck->arena, dir, &ck->dir));
    QL_TRY(find_root(ck));
    if (!exists(ck, "config.json"))
        return ql_fail(QL_MISSING, "%s: no config.json; is this the directory of a Hugging Face model?", dir);
    QL_TRY(load_json(ck, "config.json", CONFIG_LIMIT, &ck->config));
    return open_weights(ck);
}

/* A file instead of a directory: what it says about itself stands in for config.json and index. */
static ql_status open_file(checkpoint *ck, const char *path) {
    QL_TRY(ql_arena_string(ck->arena, path, &ck->dir));
    QL_TRY(ql_arena_string(ck->arena, path, &ck->root));
    QL_TRY(gguf_checkpoint_open(path, ck->arena, &ck->gguf, &ck->config, &ck->tensors, &ck->count));
    qsort(ck->tensors, (size_t)ck->count, sizeof *ck->tensors, by_name);
    ck->bytes = gguf_checkpoint_bytes(ck->gguf);
    return QL_OK;
}

ql_status checkpoint_open(const char *dir, checkpoint **out) {
    *out = NULL;
    checkpoint *ck = ql_malloc(sizeof *ck);
    if (!ck) return ql_fail(QL_NOMEM, "%s: no memory", dir);
    *ck = (checkpoint){0};
    char *file = NULL;
    ql_status status = ql_arena_open(NULL, &ck->arena);
    if (status == QL_OK) status = gguf_model_file(dir, ck->arena, &file);
    if (status == QL_OK) status = file ? open_file(ck, file) : open_dir(ck, dir);
    if (status == QL_OK) *out = ck;
    else checkpoint_close(ck);
    return status;
}

void checkpoint_close(checkpoint *ck) {
    if (!ck) return;
    for (int64_t i = 0; i < ck->file_count; i++) st_close(&ck->files[i]);
    gguf_checkpoint_close(ck->gguf);
    json_decref(ck->config);
    ql_arena_close(ck->arena);
    ql_mfree(ck);
}

const char *checkpoint_root(const checkpoint *ck) { return ck->root; }
const char *checkpoint_dir(const checkpoint *ck) { return ck->dir; }
const json_t *checkpoint_config(const checkpoint *ck) { return ck->config; }
int64_t checkpoint_count(const checkpoint *ck) { return ck->count; }
const st_tensor *checkpoint_at(const checkpoint *ck, int64_t i) { return ck->tensors[i]; }
uint64_t checkpoint_bytes(const checkpoint *ck) { return ck->bytes; }
int64_t checkpoint_file_count(const checkpoint *ck) { return ck->file_count; }
const st_file *checkpoint_file(const checkpoint *ck, int64_t i) { return &ck->files[i]; }

const st_tensor *checkpoint_find(const checkpoint *ck, const char *name) {
    st_tensor key = {.name = name};
    const st_tensor *wanted = &key;
    const st_tensor **found = bsearch(&wanted, ck->tensors, (size_t)ck->count, sizeof *ck->tensors, by_name);
    return found ? *found : NULL;
}

ql_status checkpoint_read(const checkpoint *ck, const st_tensor *tensor, void *data) {
    return checkpoint_read_part(ck, tensor, 0, tensor->size, data);
}

ql_status checkpoint_read_part(const checkpoint *ck, const st_tensor *tensor, size_t offset, size_t size, void *data) {
    if (!ck->gguf) return st_read_part(file_of(ck, tensor), tensor, offset, size, data);
    if (size != tensor->size)
        return ql_fail(QL_UNSUPPORTED, "tensor \"%.200s\": a part of a tensor of a GGUF file", tensor->name);
    return gguf_checkpoint_read(ck->gguf, tensor, data);
}
